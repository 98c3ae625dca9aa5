#!/bin/sh
# The first process of a Docker host in a container (Dockerfile, target host): a dockerd, an image busybox, the OCI
# runtime, then the node with the options given.
set -eu
rm -f /var/run/docker.pid
# Containers in a container: a dockerd in the first control group of a v2 tree may not hand resources down.
if [ -f /sys/fs/cgroup/cgroup.controllers ]; then
    mkdir -p /sys/fs/cgroup/host
    xargs -rn1 </sys/fs/cgroup/cgroup.procs >/sys/fs/cgroup/host/cgroup.procs 2>/dev/null || true
    sed 's/ / +/g; s/^/+/' </sys/fs/cgroup/cgroup.controllers >/sys/fs/cgroup/cgroup.subtree_control
fi
dockerd --bridge none >/var/log/dockerd.log 2>&1 &
until docker version >/dev/null 2>&1; do
    kill -0 $! || { tail -n 20 /var/log/dockerd.log; exit 1; }
    sleep 0.2
done
if ! docker image inspect busybox >/dev/null 2>&1; then
    tree=$(mktemp -d)
    mkdir "$tree/bin" "$tree/etc" "$tree/tmp"
    cp /bin/busybox "$tree/bin/busybox"
    for applet in $(busybox --list); do
        [ "$applet" = busybox ] || ln -s busybox "$tree/bin/$applet"
    done
    tar -C "$tree" -c . | docker import --change 'CMD ["sh"]' - busybox:latest
    rm -rf "$tree"
fi
calico-node "$@" install-runtime
exec calico-node "$@"
