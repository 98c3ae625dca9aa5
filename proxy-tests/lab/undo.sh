#!/bin/sh
# Removes one lab: undo.sh FOLDER NAME. A lab starts this before it makes anything, with a pipe as its input. The end of the pipe, which
# comes with the end of the test process, however that ends, is the sign to begin; the word "keep" calls it off.
folder=$1 name=$2

processes() {
    # All that runs in the lab's namespaces ...
    for space in $(ip netns list | awk -v begin="$name-" 'index($1, begin) == 1 { print $1 }'); do ip netns pids "$space"; done
    # ... and all whose root file system lies in the lab's folder: the containers.
    grep -lE "^[0-9]+ [0-9]+ [0-9:]+ [^ ]* / .*$name/|^[0-9]+ [0-9]+ [0-9:]+ [^ ]*$name/[^ ]* / " /proc/[0-9]*/mountinfo 2>/dev/null | cut -d/ -f3
}

undo() {
    for _ in $(seq 100); do
        alive=$(processes | grep -vx $$ | sort -u)
        [ -n "$alive" ] || break
        # shellcheck disable=SC2086
        kill -9 $alive 2>/dev/null
        sleep 0.05
    done
    # Where containerd's shims listened, outside the lab's folder.
    cat "$folder"/h*/exec/containerd/daemon/io.containerd.runtime.v2.task/moby/*/address 2>/dev/null |
        sed 's,unix://,\n,g' | grep '^/run/containerd/s/' | xargs -r rm -f
    # With users remapped, dockerd keeps its things in a folder named after them.
    for container in "$folder"/h*/root/containers/* "$folder"/h*/root/*.*/containers/*; do
        [ -d "$container" ] || continue
        find /sys/fs/cgroup -depth -type d -path "*/${container##*/}*" -exec rmdir {} + 2>/dev/null
    done
    # What a node was kept in.
    find /sys/fs/cgroup -depth -type d -name "$name-*" -exec rmdir {} + 2>/dev/null
    awk -v below="$folder/" 'index($2, below) == 1 { print $2 }' /proc/mounts | sort -r | xargs -r umount -l 2>/dev/null
    ip netns list | awk -v begin="$name-" 'index($1, begin) == 1 { print $1 }' | xargs -r -n1 ip netns del
    rm -rf "$folder"
}

word=
read -r word
[ "$word" = keep ] || undo
