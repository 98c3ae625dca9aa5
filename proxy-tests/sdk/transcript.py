"""Uses Docker's SDK for Python in breadth and prints what came of it, without what differs from run to run.

transcript.py DOCKER_HOST: run at dockerd and through the node on equal state, it prints the same.
"""

import faulthandler
import io
import json
import re
import socket
import sys
import tarfile
import threading
import time

import docker
import websocket
from docker.errors import APIError, ContainerError, ImageNotFound, NotFound

IDLE = ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done"]

# One that hangs tells where.
faulthandler.dump_traceback_later(50, exit=True)
client = docker.DockerClient(base_url=sys.argv[1], timeout=60)
api = client.api
seen = {}


def plain(value):
    """The value as text, with ids numbered in the order of their appearance and times left out."""
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=repr)
    text = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+(Z|[+-][\d:]+)", "<time>", text)
    text = re.sub(r"(sha256:)?\b([0-9a-f]{64}|[0-9a-f]{12})\b", number, text)
    return re.sub(r"\b[0-9a-f]{2}(:[0-9a-f]{2}){5}\b", "<mac>", text)


def number(match):
    """An id's number; the short form of an id has that of the long one."""
    key = match.group(2)[:12]
    return "<id %d>" % seen.setdefault(key, len(seen) + 1)


def say(what, value=None):
    print(plain(what) if value is None else "%s: %s" % (what, plain(value)))


def section(title):
    print("## " + title)


def error(what, call):
    """What a call that fails says of it."""
    try:
        say(what, ["no error", call()])
    except (APIError, ContainerError) as failure:
        say(what, [type(failure).__name__, getattr(failure, "status_code", None), failure.args[0] if isinstance(failure, ContainerError) else failure.explanation])


def tar(name, content):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def everything(sock):
    """All that comes out of a socket, to its end."""
    raw = getattr(sock, "_sock", sock)
    chunks = []
    while chunk := raw.recv(65536):
        chunks.append(chunk)
    return b"".join(chunks)


def streams(raw):
    """What each stream in a multiplexed one says: how it is cut into frames is a matter of time."""
    said = {}
    while raw:
        kind, size = raw[0], int.from_bytes(raw[4:8], "big")
        said[kind] = said.get(kind, b"") + raw[8 : 8 + size]
        raw = raw[8 + size :]
    return said


def connected():
    """A socket of our own to the same place."""
    scheme, place = sys.argv[1].split("://")
    if scheme == "unix":
        own = socket.socket(socket.AF_UNIX)
        own.connect(place)
        return own
    host, port = place.split(":")
    return socket.create_connection((host, int(port)))


def sdk_basics():
    section("system")
    say("ping", client.ping())
    version = client.version()
    say("version", [version["ApiVersion"], version["MinAPIVersion"]])
    info = client.info()
    say("info", [info["Driver"], info["Name"], info["Containers"]])
    say("df", sorted(client.df()))
    error("login", lambda: client.login("a", "b", registry="localhost:9"))


def run():
    section("run")
    say("output", client.containers.run("busybox", ["sh", "-c", "echo out; sleep 0.1; echo err >&2"], stderr=True, remove=True).decode())
    say("environment", client.containers.run("busybox", "sh -c 'echo $A $B'", environment={"A": "1", "B": "b b"}, remove=True).decode())
    say("stream", b"".join(client.containers.run("busybox", "sh -c 'for n in 1 2 3; do echo $n; sleep 0.1; done'", stream=True, remove=False, name="streamed")).decode())
    client.containers.get("streamed").remove()
    error("exit code", lambda: client.containers.run("busybox", "sh -c 'echo oh >&2; exit 5'", remove=True))
    error("no such command", lambda: client.containers.run("busybox", "/no/such", name="nothing"))
    client.containers.get("nothing").remove()
    error("bad option", lambda: client.containers.run("busybox", "true", mem_limit="1m"))
    try:
        client.containers.run("localhost:9/none", "true")
    except (ImageNotFound, APIError) as failure:
        say("no such image", [type(failure).__name__, failure.status_code])


def execs(box):
    section("exec")
    say("run", list(box.exec_run("sh -c 'echo out; sleep 0.1; echo err >&2; exit 3'")))
    say("demux", list(box.exec_run("sh -c 'echo out; echo err >&2'", demux=True)))
    say("environment", list(box.exec_run("sh -c 'pwd; id -u; echo $A'", environment=["A=1"], workdir="/tmp", user="0")))
    say("much output", len(box.exec_run("sh -c 'yes 0123456789 | head -c 3000000'").output))
    code, stream = box.exec_run("sh -c 'for n in 1 2 3; do echo $n; sleep 0.1; done'", stream=True)
    say("stream", [code, b"".join(stream)])
    code, stream = box.exec_run("sh -c 'echo out; sleep 0.2; echo err >&2; sleep 0.2; echo out'", stream=True, demux=True)
    say("stream, demux", [code, list(stream)])
    # A socket: both ways, then one end closed before the other.
    code, sock = box.exec_run("sh -c 'read a; echo got $a; cat; echo end'", stdin=True, socket=True)
    raw = getattr(sock, "_sock", sock)
    raw.sendall(b"one\n")
    time.sleep(0.2)
    raw.sendall(b"two\n")
    raw.shutdown(1)
    say("socket", streams(everything(sock)))
    sock.close()
    code, sock = box.exec_run("sh -c 'stty -echo; read a; echo got $a'", stdin=True, tty=True, socket=True)
    getattr(sock, "_sock", sock).sendall(b"typed\n")
    say("terminal", everything(sock).decode().split()[-2:])
    sock.close()
    created = api.exec_create(box.id, "sh -c 'sleep 0.1; exit 4'")
    api.exec_start(created, detach=True)
    while api.exec_inspect(created)["Running"]:
        time.sleep(0.05)
    detail = api.exec_inspect(created)
    say("inspect", [detail["ExitCode"], detail["ProcessConfig"], detail["Running"]])
    error("no such exec", lambda: api.exec_inspect("0" * 64))


def attach():
    section("attach")
    echo = client.containers.create("busybox", "cat", stdin_open=True, name="echo")
    sock = echo.attach_socket(params={"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1})
    echo.start()
    raw = getattr(sock, "_sock", sock)
    raw.sendall(b"one\n")
    time.sleep(0.2)
    raw.sendall(b"two\n")
    raw.shutdown(1)
    say("socket", streams(everything(sock)))
    sock.close()
    say("its end", echo.wait())
    echo.remove()
    # Detached, its input outlives who attaches.
    echo = client.containers.run("busybox", "cat", stdin_open=True, detach=True, name="echo")
    # The SDK's own attach_socket(ws=True) asks for a scheme that its library of web sockets does not know.
    web = websocket.create_connection("ws://localhost/v1.41/containers/%s/attach/ws?stdin=1&stdout=1&stream=1" % echo.id, socket=connected())
    say("web socket", [web.status, web.getheaders().get("upgrade")])
    web.send_binary(b"three\n")
    got = b""
    while not got.endswith(b"three\n"):
        part = web.recv()
        got += part if isinstance(part, bytes) else part.encode()
    say("web socket says", got)
    web.close()
    echo.kill()
    say("killed", echo.wait())
    echo.remove()
    clock = client.containers.run("busybox", "sh -c 'while :; do echo tick; sleep 0.1; done'", detach=True, name="clock")
    stream = clock.attach(stream=True)
    say("stream", [next(stream).split()[0], next(stream).split()[0]])
    clock.kill()
    say("rest of the stream", set(b"".join(stream).split()) <= {b"tick"})
    clock.wait()
    clock.remove()


def logs():
    section("logs")
    talker = client.containers.run("busybox", "sh -c 'for n in 1 2 3 4; do echo out $n; sleep 0.05; echo err $n >&2; sleep 0.05; done'", detach=True, name="talker")
    follow = b"".join(talker.logs(stream=True, follow=True, stderr=False))
    say("follow", follow)
    say("wait", talker.wait())
    say("tail", talker.logs(tail=2, stdout=False))
    say("since", talker.logs(since=int(time.time()) + 100))
    say("timestamps", talker.logs(timestamps=True, stderr=False).decode())
    talker.remove()
    error("no container", lambda: talker.logs())


def files(box):
    section("files")
    say("put", box.put_archive("/tmp", tar("hello", b"hello\n" * 1000)))
    say("there", list(box.exec_run("wc -c /tmp/hello")))
    stream, stat = box.get_archive("/tmp/hello")
    say("stat", [stat["name"], stat["size"], stat["mode"]])
    with tarfile.open(fileobj=io.BytesIO(b"".join(stream))) as archive:
        member = archive.getmembers()[0]
        say("got", [member.name, len(archive.extractfile(member).read())])
    stream, _ = box.get_archive("/bin/busybox", chunk_size=10000, encode_stream=True)
    say("big", sum(len(chunk) for chunk in stream) > 500000)
    error("nothing to get", lambda: box.get_archive("/no/such"))
    error("nowhere to put", lambda: box.put_archive("/no/such", tar("a", b"")))
    say("diff", sorted(entry["Path"] for entry in box.diff()))
    say("export", sum(len(chunk) for chunk in box.export()) > 500000)


def life(box):
    section("life")
    say("top", [len(box.top()["Processes"]) >= 1, box.top()["Titles"]])
    stats = box.stats(stream=False)
    say("stats", sorted(stats))
    stream = box.stats(stream=True, decode=True)
    say("stats stream", [next(stream)["name"], next(stream)["name"]])
    stream.close() if hasattr(stream, "close") else None
    box.pause()
    box.reload()
    say("paused", [box.status, box.attrs["State"]["Paused"]])
    error("start of a paused one", lambda: box.start())
    box.unpause()
    box.rename("crate")
    box.reload()
    say("renamed", box.name)
    say("update", box.update(cpu_shares=512, restart_policy={"Name": "on-failure", "MaximumRetryCount": 2}))
    box.reload()
    say("updated", [box.attrs["HostConfig"]["CpuShares"], box.attrs["HostConfig"]["RestartPolicy"]])
    box.resize(24, 80)
    box.restart(timeout=1)
    box.reload()
    say("restarted", box.status)
    image = box.commit("committed", tag="1", changes="CMD true", message="m", author="a")
    say("committed", [image.tags, image.attrs["Config"]["Cmd"], image.attrs["Author"]])
    box.stop(timeout=1)
    say("wait", box.wait())
    error("stop twice", lambda: box.stop())
    error("exec in a stopped one", lambda: box.exec_run("true"))
    box.start()
    box.kill(signal="KILL")
    say("killed", box.wait()["StatusCode"])
    say("list", [[one.name, one.status, one.image.tags] for one in client.containers.list(all=True)])
    say("filtered", [one.name for one in client.containers.list(all=True, filters={"name": "crate", "status": "exited"})])
    say("none", client.containers.list(filters={"label": "no=such"}))
    error("create twice", lambda: client.containers.create("busybox", name="crate"))
    box.remove(v=True)
    error("gone", lambda: client.containers.get("crate"))
    say("pruned", sorted(client.containers.prune()))


def images():
    section("images")
    file = b"FROM busybox\nARG WORD\nRUN echo $WORD > /made && sleep 0.3\nLABEL made=yes\nCMD cat /made\n"
    image, lines = client.images.build(fileobj=io.BytesIO(file), tag="built:1", buildargs={"WORD": "brick"}, rm=True, nocache=True)
    say("built", [image.tags, image.labels])
    say("lines", [line for line in lines if "stream" in line])
    say("runs", client.containers.run("built:1", remove=True))
    context = tar("Dockerfile", b"FROM busybox\nCOPY Dockerfile /\nRUN false\n")
    try:
        client.images.build(fileobj=io.BytesIO(context), custom_context=True, rm=True, forcerm=True)
    except docker.errors.BuildError as failure:
        say("fails", failure.msg)
    say("tag", [image.tag("other", "2"), sorted(client.images.get("built:1").tags)])
    say("history", [step["CreatedBy"] for step in image.history()][:3])
    saved = b"".join(image.save(named=True))
    say("saved", len(saved) > 500000)
    client.images.remove("other:2")
    client.images.remove("built:1", force=True)
    say("loaded", [one.tags for one in client.images.load(saved)])
    say("list", sorted(tag for one in client.images.list() for tag in one.tags))
    error("no such image", lambda: client.images.get("no-such"))
    client.images.remove("built:1", force=True)
    client.images.remove("committed:1", force=True)
    say("prune", sorted(client.images.prune(filters={"dangling": True})))


def volumes():
    section("volumes")
    volume = client.volumes.create("jar", labels={"a": "b"})
    say("created", [volume.name, volume.attrs["Driver"], volume.attrs["Labels"]])
    say("used", client.containers.run("busybox", "sh -c 'echo jam > /jar/jam; cat /jar/jam'", volumes={"jar": {"bind": "/jar", "mode": "rw"}}, remove=True))
    say("list", [one.name for one in client.volumes.list()])
    volume.remove()
    error("gone", lambda: client.volumes.get("jar"))
    say("prune", sorted(client.volumes.prune()))


def networks():
    section("networks")
    network = client.networks.create("lane", driver="bridge", labels={"a": "b"})
    say("created", [network.name, network.attrs["Driver"], network.attrs["Labels"]])
    left = client.containers.run("busybox", IDLE, detach=True, name="left", network="lane")
    right = client.containers.run("busybox", IDLE, detach=True, name="right")
    network.connect(right, aliases=["r"])
    right.reload()
    say("connected", sorted(right.attrs["NetworkSettings"]["Networks"]))
    say("aliases", right.attrs["NetworkSettings"]["Networks"]["lane"]["Aliases"][:1])
    network.reload()
    say("members", sorted(one.name for one in network.containers))
    say("names resolve", left.exec_run("ping -c 1 -W 2 r").exit_code)
    network.disconnect(right)
    error("disconnect twice", lambda: network.disconnect(right))
    error("remove in use", lambda: network.remove())
    for one in (left, right):
        one.remove(force=True)
    network.remove()
    error("gone", lambda: client.networks.get("lane"))
    say("prune", client.networks.prune())


def events():
    section("events")
    since = int(time.time())
    stream = client.events(decode=True, filters={"container": "noticed"})
    got = []

    def listen():
        for event in stream:
            got.append(event["Action"])
            if event["Action"] == "destroy":
                return

    listener = threading.Thread(target=listen)
    listener.start()
    # The stream may begin late, so it goes on until it has seen an end.
    while listener.is_alive():
        client.containers.run("busybox", "true", name="noticed", remove=True)
        listener.join(0.5)
    stream.close()
    say("last", got[-4:])
    past = api.events(since=since, until=int(time.time()) + 1, decode=True, filters={"container": "noticed", "event": ["create"]})
    say("past", all(event["Action"] == "create" for event in past))


def concurrency():
    section("many at once")
    outputs = [None] * 8

    def one(index):
        mine = docker.DockerClient(base_url=sys.argv[1])
        outputs[index] = mine.containers.run("busybox", "echo %d" % index, remove=True).decode().strip()
        mine.close()

    threads = [threading.Thread(target=one, args=(index,)) for index in range(len(outputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    say("outputs", outputs)


def versions():
    section("versions")
    for version in ["1.24", "1.30", "1.35", "1.41"]:
        old = docker.DockerClient(base_url=sys.argv[1], version=version)
        box = old.containers.run("busybox", IDLE, detach=True, name="old")
        say(version, [box.status, list(box.exec_run("echo exec")), sorted(box.attrs["NetworkSettings"])])
        box.remove(force=True)
        old.close()


def main():
    sdk_basics()
    run()
    box = client.containers.run("busybox", IDLE, detach=True, name="box", labels={"a": "b"}, hostname="box")
    say("box", [box.status, box.name, box.labels, box.short_id])
    execs(box)
    attach()
    logs()
    files(box)
    life(box)
    images()
    volumes()
    networks()
    events()
    concurrency()
    versions()
    client.close()


main()
