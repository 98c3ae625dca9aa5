# calico-node in a container. The binaries are built on the host (Debian 12 like the base, so that they find the same libc): `make image`.
#
# compose/node.yml runs it.
#
# --privileged and --network host: it programs the host's interfaces, routes and firewall. --pid host: it enters the network namespaces of containers by
# their processes. /run: Docker's socket, and ours for the host's calicoctl. /var/lib/docker/containers: it adds a container's own name to
# its hosts file. This container itself must not be started through the proxy that it holds. The OCI runtime is called by dockerd and so has to lie
# where dockerd runs: compose/node.yml says how it gets there.

FROM debian:12 AS node
RUN apt-get update \
    && printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d && chmod 755 /usr/sbin/policy-rc.d \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        bird2 ca-certificates conntrack etcd-client etcd-server ipset iproute2 iptables kmod nftables \
    && rm -rf /var/lib/apt/lists/* /usr/sbin/policy-rc.d
COPY target/release/calico-node target/release/calicoctl target/release/calico-runtime /usr/local/bin/
ENTRYPOINT ["calico-node"]

# A whole Docker host in a container, for the lab of compose/three-hosts.yml: dockerd and a node.
FROM node AS host
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends busybox-static curl docker.io iputils-ping \
    && rm -rf /var/lib/apt/lists/*
COPY compose/host.sh /usr/local/bin/host
VOLUME /var/lib/docker
ENTRYPOINT ["host"]
