"""Docker's SDK for Python with containers that ask for Calico: addresses.py DOCKER_HOST. Ends with 0 if all is as it should be."""

import sys

import docker
from docker.errors import APIError

IDLE = ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done"]

client = docker.DockerClient(base_url=sys.argv[1], timeout=60)


def refused(status, words, **options):
    """A create that is refused, as users of the SDK see it."""
    try:
        client.containers.create("busybox", IDLE, name="never", **options)
    except APIError as failure:
        assert failure.status_code == status, failure
        assert failure.is_client_error() == (status < 500)
        assert all(word in failure.explanation for word in words), failure.explanation
        assert failure.explanation.startswith("calico: "), failure.explanation
    else:
        raise AssertionError("%s was not refused" % options)


def shown(container):
    container.reload()
    return container.attrs["NetworkSettings"]


def main():
    network = client.networks.create("lane")
    box = client.containers.create("busybox", IDLE, name="box", network="lane", environment={"CALICO_IP": "192.168.1.1", "CALICO_PROFILE": "web"})
    for _ in range(2):
        settings = shown(box)
        assert (settings["IPAddress"], settings["IPPrefixLen"]) == ("192.168.1.1", 32), settings
        lane = settings["Networks"]["lane"]
        assert list(settings["Networks"]) == ["lane"] and lane["IPAddress"] == "192.168.1.1", settings
        assert lane["NetworkID"] == network.id and box.short_id in lane["Aliases"], lane
        assert lane["MacAddress"] == settings["MacAddress"] != "", settings
        box.start()
    assert "192.168.1.1/32" in box.exec_run("ip address show eth1").output.decode()
    listed = {one.name: one for one in client.containers.list(all=True)}
    assert list(listed) == ["box"] and listed["box"].status == "running", listed
    [plain] = client.api.containers()
    assert plain["NetworkSettings"]["Networks"]["lane"]["IPAddress"] == "192.168.1.1", plain

    other = client.containers.run("busybox", IDLE, detach=True, name="other", environment=["CALICO_IP=auto", "CALICO_PROFILE=web"])
    address = shown(other)["Networks"]["none"]["IPAddress"]
    assert address.startswith("192.168."), address
    assert other.exec_run(["ping", "-c", "1", "-W", "2", "192.168.1.1"]).exit_code == 0

    # What cannot be, says why.
    holder = ["192.168.1.1", "box", box.id[:12]]
    refused(409, holder, environment={"CALICO_IP": "192.168.1.1"})
    refused(400, ["banana"], environment={"CALICO_IP": "banana"})
    refused(400, ["8.8.8.8", "pool"], environment={"CALICO_IP": "8.8.8.8"})
    refused(400, ["host"], environment={"CALICO_IP": "auto"}, network_mode="host")
    assert len(client.containers.list(all=True)) == 2

    # Its network is Calico's alone.
    network.disconnect(box)
    network.connect(box)
    try:
        client.networks.get("bridge").connect(box)
        raise AssertionError("joined the bridge")
    except APIError as failure:
        assert failure.status_code == 403 and "Calico" in failure.explanation, failure
    assert shown(box)["Networks"]["lane"]["IPAddress"] == "192.168.1.1"

    # It keeps its address through its life, and a copy is another container.
    for step in (box.restart, box.pause, box.unpause, lambda: box.rename("crate"), box.stop, box.start):
        step()
        assert shown(box)["IPAddress"] == "192.168.1.1"
    image = box.commit("copy")
    assert client.containers.run("copy", ["echo $CALICO_IP"], remove=True, entrypoint=["sh", "-c"]).decode() == "192.168.1.1\n"
    client.images.remove(image.id, force=True)

    # Recreated by our own label: rename, create, stop, start, remove.
    box.rename("box-old")
    new = client.containers.create("busybox", IDLE, name="box", labels={"calico.replace": box.id}, environment={"CALICO_IP": "192.168.1.1", "CALICO_PROFILE": "web"})
    try:
        new.start()
        raise AssertionError("both have it")
    except APIError as failure:
        assert failure.status_code == 409 and box.id[:12] in failure.explanation, failure
    box.stop()
    new.start()
    box.remove()
    assert other.exec_run(["ping", "-c", "1", "-W", "2", "192.168.1.1"]).exit_code == 0
    for one in (new, other):
        one.remove(force=True)
    network.remove()
    assert client.containers.prune()["ContainersDeleted"] is None


main()
