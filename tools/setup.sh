#!/bin/sh
# Installs what is missing. `setup.sh run`: what building and running need. `setup.sh test`: what the tests and lints need besides;
# `setup.sh bench`: what the benchmarks need besides.
#
# Quick when nothing is missing: one question to dpkg. Packages that start a service when they are installed (etcd-server, bird2, docker.io)
# are installed without it: their binaries are wanted, not a second etcd or BIRD beside the node's own.
set -eu

RUST=1.95
CARGO_DENY=0.20.2

# etcd-client's build compiles .proto files: protoc, and google/protobuf/descriptor.proto from libprotobuf-dev.
BUILD='ca-certificates gcc libc6-dev make protobuf-compiler libprotobuf-dev'
RUN='etcd-server etcd-client bird2 ipset iptables nftables iproute2 conntrack busybox-static curl jq kmod procps util-linux iputils-ping'
# golang-go and golang-github-gorilla-mux-dev: dockerd's own language and router, the reference for how requests are read.
# docker-compose and python3-venv (for Docker's SDK from PyPI): clients other than the docker command. openssl: certificates of the tests.
# g++: libFuzzer is compiled from source.
TEST='tcpdump socat shellcheck golang-go golang-github-gorilla-mux-dev docker-compose python3-venv openssl g++'
BENCH='haproxy nginx-light'

say() { echo "setup: $*" >&2; }
fail() { say "$*"; exit 1; }

case ${1:-run} in
    run) wanted="$BUILD $RUN" ;;
    test) wanted="$BUILD $RUN $TEST" ;;
    bench) wanted="$BUILD $RUN $BENCH" ;;
    *) fail "unknown set '$1': it must be run, test or bench" ;;
esac

# shellcheck disable=SC2086 # a list of words
missing_packages() {
    have=$(dpkg-query -W -f '${Package} ${db:Status-Status}\n' $wanted 2>/dev/null | awk '$2 == "installed" { print $1 }')
    for package in $wanted; do
        echo "$have" | grep -qx "$package" || printf '%s ' "$package"
    done
    command -v dockerd >/dev/null 2>&1 || printf 'docker.io '
}

POLICY=/usr/sbin/policy-rc.d
policy_is_ours=
drop_policy() { [ -z "$policy_is_ours" ] || rm -f "$POLICY"; policy_is_ours=; }

# Debian's package scripts ask this file before they start a service; 101 means no.
raise_policy() {
    if [ -e "$POLICY" ]; then
        say "$POLICY exists already and stays as it is: it decides whether the packages start their services"
        return
    fi
    trap drop_policy EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    policy_is_ours=yes
    printf '#!/bin/sh\nexit 101\n' >"$POLICY"
    chmod 755 "$POLICY"
}

# shellcheck disable=SC2086 # lists of words
install_packages() {
    [ "$(id -u)" = 0 ] || fail "packages are missing and only root may install them: $1"
    say "installing $1"
    raise_policy
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq -o DPkg::Lock::Timeout=300 update
    apt-get -qq -y -o DPkg::Lock::Timeout=300 install --no-install-recommends $1 >&2
    # Debian 12's docker.io holds the command line; later releases have it in a package of its own.
    if ! command -v docker >/dev/null 2>&1; then
        apt-get -qq -y -o DPkg::Lock::Timeout=300 install --no-install-recommends docker-cli >&2
    fi
    drop_policy
    # Nor at the next boot.
    for package in $1; do
        case $package in
            etcd-server) stay_off etcd ;;
            bird2) stay_off bird ;;
            haproxy | nginx-light) stay_off "${package%-light}" ;;
        esac
    done
}

stay_off() {
    if command -v systemctl >/dev/null 2>&1; then
        systemctl disable "$1.service" >/dev/null 2>&1 || say "could not disable $1.service: it may start at the next boot"
    fi
    update-rc.d "$1" disable >/dev/null 2>&1 || say "could not disable $1 in /etc/rc*.d: it may start at the next boot"
}

command -v dpkg-query >/dev/null 2>&1 || fail "this is not Debian: install these by hand: $wanted docker.io"
missing=$(missing_packages)
[ -z "$missing" ] || install_packages "$missing"

command -v cargo >/dev/null 2>&1 || PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
command -v cargo >/dev/null 2>&1 ||
    fail "Rust $RUST or newer is missing; install it with: curl -sSf https://sh.rustup.rs | sh -s -- -y --default-toolchain $RUST.0"
version=$(cargo --version | awk '{ print $2 }')
[ "$(printf '%s\n%s\n' "$RUST" "$version" | sort -V | head -n 1)" = "$RUST" ] ||
    fail "cargo is $version, Rust $RUST or newer is needed; install it with: rustup toolchain install $RUST.0 && rustup default $RUST.0"

if [ "${1:-run}" = test ]; then
    for part in fmt clippy; do
        cargo "$part" --version >/dev/null 2>&1 || fail "cargo $part is missing; install it with: rustup component add rustfmt clippy"
    done
    if ! command -v cargo-deny >/dev/null 2>&1; then
        say "installing cargo-deny $CARGO_DENY (a minute, once)"
        # Without its default features: no native TLS, since only the local checks are used (.deny.toml says why). Not optimised: a
        # check takes a second then, and the building half as long.
        cargo install --quiet --locked --no-default-features --debug --version "$CARGO_DENY" cargo-deny
    fi
fi
