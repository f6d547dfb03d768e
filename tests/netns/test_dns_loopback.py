"""A loopback address of the DNS server is out of reach for other hosts, whatever the kernel is told to route."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from proxy.config.model import SocketAddress
from proxy.dns.tcp import TcpListener
from proxy.dns.udp import UdpListener

from .netns import DEADLINE, Namespace, require

pytestmark = pytest.mark.netns

POD, OUTSIDER = "10.9.9.9", "10.9.9.1"
ROUTE_LOCALNET = "for name in all veth0; do echo 1 > /proc/sys/net/ipv4/conf/$name/route_localnet; done"


@pytest.fixture
def namespaces() -> Iterator[tuple[Namespace, Namespace]]:
    """A pod that takes packets for 127.0.0.1 from its network, and a neighbour that sends them."""
    require()
    with Namespace() as pod, Namespace() as outsider:
        pod.connect(outsider, "veth0", [f"{POD}/24"], [f"{OUTSIDER}/24"])
        for one in (pod, outsider):
            assert one.run(["sh", "-c", ROUTE_LOCALNET]).returncode == 0
        # The neighbour's own 127.0.0.1 gives way to a route to the pod.
        outsider.ip("route", "add", "127.0.0.1", "via", POD, "table", "77")
        outsider.ip("rule", "add", "pref", "1", "to", "127.0.0.1", "lookup", "77")
        outsider.ip("rule", "add", "pref", "10", "lookup", "local")
        outsider.ip("rule", "del", "pref", "0")
        yield pod, outsider


def test_other_hosts_do_not_reach_loopback(namespaces: tuple[Namespace, Namespace]) -> None:
    pod, outsider = namespaces
    service: Any = SimpleNamespace(stats=None)
    with pod.entered():
        udp = UdpListener(service, SocketAddress("127.0.0.1", 15053), service)
        udp.bind()
        tcp = TcpListener(service, service, SocketAddress("127.0.0.1", 15053), service, {})
        tcp.bind()
        plain = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        plain.bind(("127.0.0.1", 15054))
        local = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        client = socket.socket()
    with outsider.entered():
        foreign = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        foreign.bind((OUTSIDER, 0))
        foreign_client = socket.socket()
        foreign_client.bind((OUTSIDER, 0))
    listening = tcp._listen._sock
    assert udp._sock is not None and listening is not None
    listening.listen()
    with plain, local, client, foreign, foreign_client, udp._sock, listening:
        for sock in (plain, udp._sock, client, foreign_client):
            sock.settimeout(DEADLINE)
        # the way in exists
        foreign.sendto(b"other host", ("127.0.0.1", 15054))
        assert plain.recv(100) == b"other host"
        # and ends before the server
        foreign.sendto(b"other host", ("127.0.0.1", 15053))
        local.sendto(b"this host", ("127.0.0.1", 15053))
        assert udp._sock.recv(100) == b"this host"
        with pytest.raises(ConnectionRefusedError):
            foreign_client.connect(("127.0.0.1", 15053))
        client.connect(("127.0.0.1", 15053))
        # a process of this host that uses its other address, as redirected queries do
        local.connect(("127.0.0.1", 15053))
        with pod.entered():
            redirected = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with redirected:
            redirected.bind((POD, 0))
            redirected.sendto(b"redirected", ("127.0.0.1", 15053))
            assert udp._sock.recvfrom(100) == (b"redirected", redirected.getsockname())
