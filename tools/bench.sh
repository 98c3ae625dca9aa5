#!/bin/sh
# The benchmark in a lab of its own: a network, mount and process namespace, a folder, a control group. Whatever happens inside, all of it is
# gone at the end: the kernel ends the processes with the namespace, the rest is removed here. The machine's own dockerd and network are not used.
set -eu
cd "$(dirname "$0")/.."
[ "$(id -u)" = 0 ] || { echo "bench: must be root: it makes namespaces" >&2; exit 2; }

LAB=$(mktemp -d "${TMPDIR:-/tmp}/calico-bench.XXXXXX")
GROUP=$(basename "$LAB")
inside=
tidy() {
    trap - EXIT INT TERM
    [ -z "$inside" ] || kill -9 "$inside" 2>/dev/null || true
    wait
    # A control group can only be removed once its processes are gone for good.
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        find /sys/fs/cgroup -depth -type d -path "*/$GROUP*" -exec rmdir {} + 2>/dev/null || true
        [ -n "$(find /sys/fs/cgroup -maxdepth 2 -name "$GROUP*")" ] || break
        sleep 0.5
    done
    rm -rf --one-file-system "$LAB"
}
trap tidy EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

cargo bench --locked --bench calico --no-run
# The shell in between is the namespace's first process: it reaps what containers leave. The run folder is a tmpfs, as on every host.
# shellcheck disable=SC2016 # that shell expands it
CALICO_BENCH_LAB=$LAB CALICO_BENCH_CGROUP=/$GROUP \
    unshare --net --mount --pid --fork --kill-child --mount-proc sh -c 'mkdir "$CALICO_BENCH_LAB/run" && mount -t tmpfs -o mode=755 tmpfs "$CALICO_BENCH_LAB/run" && "$@"; exit $?' reaper cargo bench --locked --offline --quiet --bench calico -- "$@" &
inside=$!
wait "$inside"
inside=
