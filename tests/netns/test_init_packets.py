"""Where packets go once `istio-iptables` has run: real sockets, real uids."""

from __future__ import annotations

import select
import socket
import struct
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from .netns import DEADLINE, Namespace, require, require_python

pytestmark = pytest.mark.netns

POD = "10.9.9.9"
REMOTE = "10.9.9.1"
OTHER_REMOTE = "10.8.8.8"  # routed to the same server
APPLICATION, PROXY_OUT, PROXY_IN, TUNNEL = 8080, 15001, 15006, 15008
ANY_PORT = 9999

CLIENT = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=10) as connection:
    connection.recv(1)
"""


@dataclass
class World:
    """A pod, and a server that owns two addresses; every listener tells where a connection arrived."""

    pod: Namespace
    listeners: dict[str, socket.socket] = field(default_factory=dict)

    def listen(self, name: str, namespace: Namespace, address: str, port: int) -> None:
        with namespace.entered():
            self.listeners[name] = socket.create_server((address, port))

    def arrives(self, uid: int, gid: int, address: str, port: int) -> tuple[str, str, int]:
        """Connect from the pod; the listener that got it and the original destination that the kernel reports."""
        client = self.pod.start([sys.executable, "-c", CLIENT, address, str(port)], uid=uid, gid=gid)
        names = {listener: name for name, listener in self.listeners.items()}
        deadline = time.monotonic() + DEADLINE
        ready, _, _ = select.select(list(names), [], [], deadline - time.monotonic())
        if not ready:
            client.kill()
            raise AssertionError(f"nobody got it: {client.communicate()[1]}")
        (listener,) = ready
        connection, _ = listener.accept()
        with connection:
            destination = original_destination(connection)
            connection.sendall(b"x")
        _, errors = client.communicate(timeout=DEADLINE)
        assert client.returncode == 0, errors
        return names[listener], *destination


def original_destination(connection: socket.socket) -> tuple[str, int]:
    """SO_ORIGINAL_DST, or the socket's own address where no rule changed it."""
    so_original_dst = 80
    try:
        raw = connection.getsockopt(socket.IPPROTO_IP, so_original_dst, 16)
    except OSError:
        host, port = connection.getsockname()
        return host, port
    port, address = struct.unpack_from("!2xH4s", raw)
    return socket.inet_ntoa(address), port


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    require()
    require_python(1000)
    with Namespace() as pod, Namespace() as server:
        pod.connect(server, "eth0", [f"{POD}/24"], [f"{REMOTE}/24"])
        pod.ip("route", "add", "default", "via", REMOTE)
        server.ip("address", "add", f"{OTHER_REMOTE}/32", "dev", "lo")
        world = World(pod)
        try:
            world.listen("application", pod, "0.0.0.0", APPLICATION)
            world.listen("proxy outbound", pod, "0.0.0.0", PROXY_OUT)
            world.listen("proxy inbound", pod, "0.0.0.0", PROXY_IN)
            world.listen("tunnel", pod, "0.0.0.0", TUNNEL)
            world.listen("server", server, "0.0.0.0", APPLICATION)
            world.listen("server other port", server, "0.0.0.0", ANY_PORT)
            yield world
        finally:
            for listener in world.listeners.values():
                listener.close()


def installed(world: World, *arguments: str) -> None:
    done = world.pod.python("-m", "init", "--reconcile", *arguments)
    assert done.returncode == 0, done.stderr


def test_captured_traffic_keeps_its_destination_and_the_proxy_is_exempt(world: World) -> None:
    installed(world, "-u", "1337", "-b", "*", "-i", "*")
    app, proxy = (1000, 1000), (1337, 1337)
    assert world.arrives(*app, REMOTE, APPLICATION) == ("proxy outbound", REMOTE, APPLICATION)
    assert world.arrives(*app, OTHER_REMOTE, ANY_PORT) == ("proxy outbound", OTHER_REMOTE, ANY_PORT)
    assert world.arrives(*proxy, REMOTE, APPLICATION) == ("server", REMOTE, APPLICATION)
    assert world.arrives(1000, 1337, REMOTE, APPLICATION) == ("server", REMOTE, APPLICATION)


def test_calls_within_the_pod(world: World) -> None:
    installed(world, "-u", "1337", "-b", "*", "-i", "*")
    for own in (POD, "127.0.0.1", "127.0.0.2"):
        assert world.arrives(1000, 1000, own, APPLICATION)[0] == "application"
    assert world.arrives(1337, 1337, POD, APPLICATION) == ("proxy inbound", POD, APPLICATION)
    assert world.arrives(1337, 1337, POD, TUNNEL)[0] == "tunnel"
    assert world.arrives(1000, 1337, POD, APPLICATION)[0] == "application"


def test_only_the_first_uid_calls_itself_through_the_proxy(world: World) -> None:
    installed(world, "-u", "3,4", "-g", "5", "-b", "*", "-i", "*")
    assert world.arrives(3, 1000, POD, APPLICATION)[0] == "proxy inbound"
    assert world.arrives(4, 1000, POD, APPLICATION)[0] == "application"
    assert world.arrives(1000, 5, POD, APPLICATION)[0] == "application"


def test_excluded_ranges_beat_included_ports(world: World) -> None:
    installed(world, "-u", "1337", "-x", "10.9.9.0/24", "-q", str(APPLICATION), "-i", "")
    app = (1000, 1000)
    assert world.arrives(*app, REMOTE, APPLICATION)[0] == "server"
    assert world.arrives(*app, OTHER_REMOTE, APPLICATION)[0] == "proxy outbound"
    assert world.arrives(*app, OTHER_REMOTE, ANY_PORT)[0] == "server other port"


def test_excluded_ports_beat_everything(world: World) -> None:
    installed(world, "-u", "1337", "-i", "*", "-q", str(APPLICATION), "-o", str(APPLICATION), "-b", "*")
    assert world.arrives(1000, 1000, REMOTE, APPLICATION)[0] == "server"
    assert world.arrives(1337, 1337, POD, APPLICATION)[0] == "application"


def test_inbound_ports(world: World) -> None:
    from_outside = Namespace()
    with from_outside:
        from_outside.connect(world.pod, "eth1", ["10.7.7.2/24"], ["10.7.7.1/24"])
        outside = World(from_outside, world.listeners)
        installed(world, "-u", "1337", "-b", "*", "-d", str(ANY_PORT))
        assert outside.arrives(0, 0, "10.7.7.1", APPLICATION) == ("proxy inbound", "10.7.7.1", APPLICATION)
        assert outside.arrives(0, 0, "10.7.7.1", TUNNEL)[0] == "tunnel"
        installed(world, "-u", "1337", "-b", "*", "-d", f"22,{APPLICATION - 1}:{APPLICATION}")
        assert outside.arrives(0, 0, "10.7.7.1", APPLICATION)[0] == "application"
        installed(world, "-u", "1337", "-b", str(ANY_PORT))
        assert outside.arrives(0, 0, "10.7.7.1", APPLICATION)[0] == "application"
        assert outside.arrives(0, 0, "10.7.7.1", ANY_PORT) == ("proxy inbound", "10.7.7.1", ANY_PORT)


def test_a_captured_loopback_range_also_captures_calls_to_it(world: World) -> None:
    installed(world, "-u", "1337", "-i", "127.1.2.3/32", "-b", "*")
    assert world.arrives(1000, 1000, "127.1.2.3", APPLICATION) == ("proxy outbound", "127.1.2.3", APPLICATION)
    assert world.arrives(1000, 1000, "127.0.0.1", APPLICATION)[0] == "application"
