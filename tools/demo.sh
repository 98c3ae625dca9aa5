#!/bin/sh
# The main job on this machine: `demo.sh start` shows it, `demo.sh stop` undoes it.
#
# Uses the machine's own dockerd and network, on purpose. What was started or made here is noted in $STATE, so that a stop undoes that and
# nothing else. Every step is checked; a failure leaves all as it is, to be looked at, until `demo.sh stop`.
set -eu
cd "$(dirname "$0")/.."

STATE=/var/lib/calico-demo      # the node's state folder and our notes: another node's data in /var/lib/calico stays out of this
RUN=/run/calico                 # the default, so that calicoctl finds the node without being told
BIN=${CARGO_TARGET_DIR:-target}/release
SOCKET=unix:///var/run/docker.sock
PROXY=localhost:2377
METRICS=http://127.0.0.1:9091
DAEMON_JSON=/etc/docker/daemon.json
PROFILE=demo
A=calico-demo-a B=calico-demo-b C=calico-demo-c
unset DOCKER_HOST DOCKER_CONTEXT DOCKER_TLS_VERIFY ETCD_ENDPOINTS ETCD_AUTHORITY CALICO_DOCKER_HOST CALICO_DOCKER_CONFIG

step() { printf '\n== %s\n' "$*"; }
ok() { printf '   ok: %s\n' "$*"; }
note() { printf '   %s\n' "$*"; }
indent() { sed 's/^/   | /'; }
fail() {
    printf '\ndemo: FAILED: %s\n' "$*" >&2
    if [ -f "$STATE/node.log" ]; then
        printf 'demo: the last lines of %s:\n' "$STATE/node.log" >&2
        tail -n 15 "$STATE/node.log" | indent >&2
    fi
    printf 'demo: everything is left as it is; undo it with: make demo-stop\n' >&2
    exit 1
}
direct() { docker -H "$SOCKET" "$@"; }
through() { DOCKER_HOST=$PROXY docker "$@"; }
etcd() { ETCDCTL_API=3 etcdctl --endpoints "$(cat "$RUN/etcd-endpoint")" "$@"; }
ctl() { "$BIN/calicoctl" "$@"; }

# until SECONDS COMMAND…: repeats a command until it succeeds.
until_ok() {
    tries=$(($1 * 10)); shift
    until "$@" >/dev/null 2>&1; do
        tries=$((tries - 1))
        [ "$tries" -gt 0 ] || return 1
        sleep 0.1
    done
}

# alive PIDFILE NAME: whether the process noted there still runs and is that program.
alive() { [ -s "$1" ] && [ "$(cat "/proc/$(cat "$1")/comm" 2>/dev/null)" = "$2" ]; }
dead() { ! alive "$@"; }

# end PIDFILE NAME SECONDS: TERM, and KILL if that is not enough.
end() {
    if alive "$1" "$2"; then
        kill "$(cat "$1")"
        if ! until_ok "$3" dead "$1" "$2"; then
            note "$2 did not end within $3 s of SIGTERM: killed"
            kill -9 "$(cat "$1")" 2>/dev/null || true
        fi
    fi
    rm -f "$1"
}

reaches() { through exec "$1" ping -c 1 -W 1 "$2"; }
never_reaches() { ! through exec "$1" ping -c 2 -W 1 "$2" >/dev/null 2>&1; }

# ---------------------------------------------------------------------------------------------------------------------------------- start

start_dockerd() {
    if direct version >/dev/null 2>&1; then
        ok "dockerd runs already: $(direct version --format '{{.Server.Version}}')"
        return
    fi
    if [ -d /run/systemd/system ]; then
        echo systemd >"$STATE/dockerd-started"
        systemctl start docker || fail "systemctl start docker"
    else
        echo process >"$STATE/dockerd-started"
        setsid dockerd >"$STATE/dockerd.log" 2>&1 </dev/null &
        echo $! >"$STATE/dockerd.pid"
    fi
    until_ok 60 direct version || fail "dockerd does not answer on $SOCKET (see $STATE/dockerd.log or journalctl -u docker)"
    ok "dockerd started: $(direct version --format '{{.Server.Version}}')"
}

binaries() { [ -x "$BIN/calico-node" ] || cargo build --release --locked --bins; }
node() { "$BIN/calico-node" --state-dir "$STATE/node" --run-dir "$RUN" "$@"; }

# The OCI runtime, by which containers have their network before their first instruction. Where dockerd cannot be given it, the demo
# goes on without and says so: the network then comes some milliseconds late.
install_runtime() {
    if direct info -f '{{json .Runtimes}}' | jq -e 'has("calico")' >/dev/null; then
        fail "dockerd knows a runtime calico that this demo did not install: take it away first, with calico-node uninstall-runtime"
    fi
    if [ -e "$DAEMON_JSON" ]; then
        cp -p "$DAEMON_JSON" "$STATE/daemon.json.before"
    else
        [ -d "${DAEMON_JSON%/*}" ] || : >"$STATE/docker-folder-made"
        : >"$STATE/daemon.json-made"
    fi
    if node install-runtime >"$STATE/runtime.out" 2>&1; then
        : >"$STATE/runtime-installed"
        ok "dockerd knows the OCI runtime calico, by an entry in $DAEMON_JSON"
    else
        indent <"$STATE/runtime.out"
        note "so the demo goes on WITHOUT the OCI runtime"
        restore_daemon_json
    fi
    rm -f "$STATE/runtime.out"
}

# With --force, which names the containers that were made by hand in the meantime: the node goes, too.
uninstall_runtime() {
    [ -f "$STATE/daemon.json.before" ] || [ -f "$STATE/daemon.json-made" ] || return 0
    binaries
    node uninstall-runtime --force >"$STATE/runtime.out" 2>&1 || {
        indent <"$STATE/runtime.out"
        fail "calico-node uninstall-runtime"
    }
    grep 'cannot start without it' "$STATE/runtime.out" | indent
    rm -f "$STATE/runtime.out"
    restore_daemon_json
    ok "dockerd has no runtime calico any more"
}

# The file without our entry is what it was, to the byte; one that was not there is taken away.
restore_daemon_json() {
    if [ -f "$STATE/daemon.json.before" ]; then
        cmp -s "$STATE/daemon.json.before" "$DAEMON_JSON" || note "$DAEMON_JSON was changed by somebody else meanwhile, which stays"
    elif [ "$(cat "$DAEMON_JSON" 2>/dev/null)" = '{}' ]; then
        rm -f "$DAEMON_JSON"
        # Unless dockerd has put something of its own in there.
        [ ! -f "$STATE/docker-folder-made" ] || rmdir "${DAEMON_JSON%/*}" 2>/dev/null || true
    fi
    rm -f "$STATE/daemon.json.before" "$STATE/daemon.json-made" "$STATE/docker-folder-made" "$STATE/runtime-installed"
}

make_image() {
    if direct image inspect busybox >/dev/null 2>&1; then
        ok "the image busybox is there"
        return
    fi
    tree=$(mktemp -d)
    mkdir "$tree/bin" "$tree/etc" "$tree/tmp"
    cp "$(command -v busybox)" "$tree/bin/busybox"
    for applet in $("$tree/bin/busybox" --list); do
        [ "$applet" = busybox ] || ln -s busybox "$tree/bin/$applet"
    done
    made=yes
    tar -C "$tree" -c . | direct import --change 'CMD ["sh"]' - busybox:latest >"$STATE/image-made" || made=no
    rm -rf "$tree"
    [ "$made" = yes ] || { rm -f "$STATE/image-made"; fail "docker import of a busybox image"; }
    ok "made the image busybox from the package busybox-static"
}

start_node() {
    if curl -s -o /dev/null "http://$PROXY/_ping" || curl -s -o /dev/null "$METRICS/readyz"; then
        fail "something listens on $PROXY or $METRICS already (a node that this demo did not start?): stop it first"
    fi
    sysctl -n net.ipv4.ip_forward >"$STATE/ip_forward"
    [ -d "$RUN" ] || : >"$STATE/run-dir-made"
    setsid "$BIN/calico-node" --state-dir "$STATE/node" --run-dir "$RUN" >"$STATE/node.log" 2>&1 </dev/null &
    echo $! >"$STATE/node.pid"
    tries=600
    until curl -fs -o /dev/null "$METRICS/readyz"; do
        alive "$STATE/node.pid" calico-node || fail "calico-node ended at its start"
        tries=$((tries - 1))
        [ "$tries" -gt 0 ] || fail "calico-node is not ready after 60 s: $(curl -s "$METRICS/readyz")"
        sleep 0.1
    done
    ok "calico-node is ready (pid $(cat "$STATE/node.pid"), log $STATE/node.log)"
    ok "its etcd listens at $(cat "$RUN/etcd-endpoint")"
    # Pools that overlap a subnet of this machine: addresses from there are not given out.
    grep -i overlap "$STATE/node.log" | indent || true
}

# run_container NAME [docker run options]: with an address that the node chooses.
run_container() {
    name=$1; shift
    echo "   \$ docker run -d --name $name -e CALICO_IP=auto $* busybox"
    through run -d --name "$name" --hostname "$name" -e CALICO_IP=auto "$@" busybox tail -f /dev/null >"$STATE/run.out" 2>&1 || {
        indent <"$STATE/run.out"
        fail "docker run of $name. If all of the pool is taken or overlaps this machine's networks, add another one:
      calicoctl pool add 10.222.0.0/16, then give its addresses: CALICO_IP=10.222.0.0/16"
    }
    indent <"$STATE/run.out"
}

address_of() { through inspect -f '{{.NetworkSettings.IPAddress}}' "$1"; }

show_reachability() {
    step "two containers with a common profile, a third without one"
    run_container "$A" -e "CALICO_PROFILE=$PROFILE"
    run_container "$B" -e "CALICO_PROFILE=$PROFILE"
    run_container "$C"

    step "docker inspect shows their addresses"
    a=$(address_of "$A"); b=$(address_of "$B"); c=$(address_of "$C")
    for pair in "$A $a" "$B $b" "$C $c"; do
        name=${pair% *}; address=${pair#* }
        [ -n "$address" ] || fail "docker inspect shows no address for $name"
        through exec "$name" ip -4 addr show dev eth1 | grep -qF "inet $address/" || fail "$name has no $address on its eth1"
        ok "$name has $address, in docker inspect and on its eth1"
    done

    if [ -f "$STATE/runtime-installed" ]; then
        step "their network was there before their first instruction"
        for name in "$A" "$B" "$C"; do
            runtime=$(direct inspect -f '{{.HostConfig.Runtime}}' "$name")
            [ "$runtime" = calico ] || fail "docker inspect shows Runtime $runtime for $name, not calico"
        done
        ok "docker inspect shows Runtime calico for all three"
        echo "   \$ docker run --rm -e CALICO_IP=auto -e CALICO_PROFILE=$PROFILE busybox ping -c 1 -W 1 $b"
        through run --rm -e CALICO_IP=auto -e "CALICO_PROFILE=$PROFILE" busybox ping -c 1 -W 1 "$b" >"$STATE/run.out" 2>&1 || {
            indent <"$STATE/run.out"
            fail "a container whose first instruction is a ping does not reach $B"
        }
        indent <"$STATE/run.out"
        ok "a container that pings at once, and ends, was answered"
    fi

    step "who reaches whom"
    reaches "$A" "$b" | indent
    reaches "$A" "$b" >/dev/null || fail "$A does not reach $B, though both are in the profile $PROFILE"
    reaches "$B" "$a" >/dev/null || fail "$B does not reach $A, though both are in the profile $PROFILE"
    ok "$A and $B reach each other"
    ping -c 1 -W 1 "$c" >/dev/null || fail "the host does not reach $C: nothing can be concluded from its silence"
    ok "the host reaches $C: it is alive and wired"
    never_reaches "$A" "$c" || fail "$A reaches $C, which is in no profile"
    never_reaches "$C" "$a" || fail "$C reaches $A, though it is in no profile"
    ok "$A does not reach $C, nor $C $A"

    step "the same third container, once it is in the profile and once it is out of it again"
    ctl container "$C" profile append "$PROFILE" || fail "calicoctl container $C profile append $PROFILE"
    until_ok 5 reaches "$A" "$c" || fail "$A does not reach $C, though it is in the profile now"
    ok "in: $A reaches $C"
    ctl container "$C" profile remove "$PROFILE" || fail "calicoctl container $C profile remove $PROFILE"
    until_ok 5 never_reaches "$A" "$c" || fail "$A still reaches $C, though it has left the profile"
    ok "out: $A does not reach $C any more"
}

show_state() {
    step "the endpoint records in etcd"
    etcd get --prefix /calico/v1/host/ >"$STATE/show" || fail "etcdctl get"
    grep -A 1 /endpoint/ "$STATE/show" | indent
    for address in "$a" "$b" "$c"; do
        grep -qF "\"$address/32\"" "$STATE/show" || fail "etcd holds no endpoint record with $address"
    done
    ok "one record for each of the three"

    step "calicoctl endpoint show --detailed"
    ctl endpoint show --detailed >"$STATE/show" || fail "calicoctl endpoint show --detailed"
    indent <"$STATE/show"
    for address in "$a" "$b" "$c"; do
        grep -qF "$address" "$STATE/show" || fail "calicoctl endpoint show does not show $address"
    done

    step "the host's routes (protocol 97)"
    ip -4 route show proto 97 >"$STATE/show"
    indent <"$STATE/show"
    for address in "$a" "$b" "$c"; do
        grep -q "^$(echo "$address" | sed 's/\./\\./g') dev cali" "$STATE/show" || fail "there is no route to $address over a cali interface"
    done
    ok "one route for each of the three"

    step "the host's chains"
    iptables -S 2>/dev/null | grep -F calico- >"$STATE/show" || fail "there is no chain whose name begins with calico-"
    indent <"$STATE/show"
    ok "$(grep -c '^-N' "$STATE/show") chains, $(grep -c '^-A' "$STATE/show") rules"
    rm -f "$STATE/show" "$STATE/run.out"
}

say_how_to_go_on() {
    cat <<TEXT

demo: all of this was seen to be true. The node runs on; to go on by hand:

  export DOCKER_HOST=localhost:2377 PATH=$(cd "$BIN" && pwd):\$PATH
  docker run -it --rm -e CALICO_IP=auto -e CALICO_PROFILE=$PROFILE busybox      # then: ping $a
  docker run -d --name web -e CALICO_IP=auto -e CALICO_PROFILE=web busybox httpd -f -h /etc
  calicoctl profile $PROFILE rule show
  calicoctl container $C profile set $PROFILE
  calicoctl endpoint show --detailed
  calicoctl status
  tail -f $STATE/node.log

make demo-stop undoes all of it.
TEXT
}

start() {
    [ "$(id -u)" = 0 ] || { echo "demo: must be root: it changes this machine's network" >&2; exit 2; }
    step "what is needed"
    tools/setup.sh run
    ok "packages and Rust are there"
    cargo build --release --locked --bins
    ok "release build: $BIN/calico-node, $BIN/calicoctl, $BIN/calico-runtime"
    mkdir -p "$STATE"
    stop_containers_and_node
    step "dockerd, an image, the node"
    start_dockerd
    make_image
    install_runtime
    start_node
    show_reachability
    show_state
    say_how_to_go_on
}

# ----------------------------------------------------------------------------------------------------------------------------------- stop

# What a start needs gone as well: nothing of an earlier run of the demo is left but its dockerd and its image.
stop_containers_and_node() {
    if direct version >/dev/null 2>&1; then
        # Through the node where it lives: it frees their addresses.
        for name in "$A" "$B" "$C"; do
            direct container inspect "$name" >/dev/null 2>&1 || continue
            through rm -f "$name" >/dev/null 2>&1 || direct rm -f "$name" >/dev/null || fail "docker rm -f $name"
            ok "container $name removed"
        done
    else
        note "dockerd does not run: containers of the demo, if there are any, stay"
    fi
    uninstall_runtime
    [ -f "$STATE/node.pid" ] || return 0
    end "$STATE/node.pid" calico-node 30
    ok "node stopped"
    binaries
    node clean || fail "calico-node clean"
    [ ! -f "$STATE/run-dir-made" ] || rm -rf "$RUN"
    if [ -f "$STATE/ip_forward" ] && [ ! -f "$STATE/dockerd-started" ]; then
        sysctl -q "net.ipv4.ip_forward=$(cat "$STATE/ip_forward")"
    fi
    rm -rf "$STATE/node" "$STATE/run-dir-made" "$STATE/ip_forward" "$STATE/run.out" "$STATE/show"
    left=$( (ip -o link show | grep -o ' cali[^@:]*'; ip -4 route show proto 97; iptables-save | grep -F ':calico-'; ipset list -n | grep -F calico) 2>/dev/null || true)
    [ -z "$left" ] || { printf '%s\n' "$left" | indent; fail "calico-node clean left this"; }
    ok "no interface, route, chain or set of ours is left"
}

stop_dockerd() {
    [ -f "$STATE/dockerd-started" ] || return 0
    if [ "$(cat "$STATE/dockerd-started")" = systemd ]; then
        systemctl stop docker.socket docker.service || fail "systemctl stop docker"
    else
        end "$STATE/dockerd.pid" dockerd 60
    fi
    rm -f "$STATE/dockerd-started"
    ok "the dockerd that the demo started is stopped"
}

stop() {
    [ "$(id -u)" = 0 ] || { echo "demo: must be root" >&2; exit 2; }
    if [ ! -d "$STATE" ]; then
        echo "demo: nothing of the demo is here"
        return
    fi
    step "undoing the demo"
    stop_containers_and_node
    if [ -f "$STATE/image-made" ]; then
        if [ "$(direct image inspect -f '{{.Id}}' busybox:latest 2>/dev/null)" = "$(cat "$STATE/image-made")" ]; then
            if direct rmi busybox:latest >/dev/null 2>&1; then
                ok "image busybox removed"
            else
                note "the image busybox stays: a container of yours uses it"
            fi
        fi
        rm -f "$STATE/image-made"
    fi
    stop_dockerd
    rm -rf "$STATE"
    ok "$STATE removed"
}

case ${1:-} in
    start) start ;;
    stop) stop ;;
    *) echo "usage: demo.sh start|stop" >&2; exit 1 ;;
esac
