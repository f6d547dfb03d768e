"""A pod, a server outside it, and who gets what the pod's processes and the outside send.

Clients are one process in each namespace that takes any identity for one socket at a time; listeners are sockets of
the test, so that one select shows where a connection arrived.
"""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import sys
import time
from dataclasses import dataclass, field
from types import TracebackType

from .netns import DEADLINE, Namespace

POD = {4: "10.9.9.9", 6: "fd00:9::9"}
SERVER = {4: "10.9.9.1", 6: "fd00:9::1"}
OTHER = {4: "10.8.8.8", 6: "fd00:8::8"}  # routed to the same server
LOOPBACK = {4: "127.0.0.1", 6: "::1"}
WHERE = {"pod": POD, "server": SERVER, "other": OTHER, "lo": LOOPBACK}

APPLICATION, PROXY_OUT, PROXY_IN, TUNNEL, DNS, DNS_PROXY = 8080, 15001, 15006, 15008, 53, 15053
SECOND = 9999  # another port of the application and of the server

CLIENT = r"""
import json, os, socket, sys
for line in sys.stdin:
    ask = json.loads(line)
    family = socket.AF_INET6 if ":" in ask["to"] else socket.AF_INET
    kind = socket.SOCK_DGRAM if ask["udp"] else socket.SOCK_STREAM
    os.setgroups(ask["groups"]); os.setegid(ask["gid"]); os.seteuid(ask["uid"])
    try:
        with socket.socket(family, kind) as sock:  # from here on it is the socket of that uid and gid
            sock.settimeout(ask["timeout"])
            os.seteuid(0)
            if ask["mark"]:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, ask["mark"])
            if ask["source"]:
                level, transparent = (socket.IPPROTO_IPV6, 75) if family == socket.AF_INET6 else (socket.SOL_IP, 19)
                sock.setsockopt(level, transparent, 1)
            if ask["source"] or ask["sport"]:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind((ask["source"], ask["sport"]))
            os.seteuid(ask["uid"])
            sock.connect((ask["to"], ask["port"]))
            if ask["udp"]:
                sock.send(b"?")
            said = sock.recv(64).decode()
    except OSError as error:
        said = "failed: " + (error.strerror or "timeout")
    os.seteuid(0); os.setegid(0)
    print(json.dumps(said), flush=True)
"""


class Client:
    """A process in a namespace that connects as anybody."""

    def __init__(self, namespace: Namespace) -> None:
        self.process = namespace.start([sys.executable, "-c", CLIENT])

    def ask(
        self,
        to: str,
        port: int,
        *,
        uid: int = 0,
        gid: int = 0,
        groups: tuple[int, ...] = (),
        udp: bool = False,
        source: str = "",
        sport: int = 0,
        mark: int = 0,
        timeout: float = DEADLINE,
    ) -> None:
        request = {
            "to": to, "port": port, "uid": uid, "gid": gid, "groups": groups, "udp": udp, "source": source,
            "sport": sport, "mark": mark, "timeout": timeout,
        }  # fmt: skip
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate()[1]
        return str(json.loads(line))


@dataclass
class Arrival:
    """Where something arrived: the listener's name, what it was sent to, who sent it."""

    name: str
    destination: tuple[str, int]
    client: str


@dataclass
class World:
    """`listeners` by name; a name says whose it is and not which address family."""

    pod: Namespace
    server: Namespace
    listeners: dict[socket.socket, str] = field(default_factory=dict)
    clients: dict[Namespace, Client] = field(default_factory=dict)

    def __enter__(self) -> World:
        self.pod.connect(self.server, "eth0", [f"{POD[4]}/24", f"{POD[6]}/64"], [f"{SERVER[4]}/24", f"{SERVER[6]}/64"])
        for family, version in (("-4", 4), ("-6", 6)):
            self.pod.ip(family, "route", "add", "default", "via", SERVER[version])
            self.server.ip(family, "address", "add", OTHER[version], "dev", "lo")
        for version in (4, 6):
            everywhere = {4: "0.0.0.0", 6: "::"}[version]
            for name, port in (("application", APPLICATION), ("second", SECOND), ("tunnel", TUNNEL)):
                self.listen(name, self.pod, everywhere, port)
            self.listen("outbound", self.pod, everywhere, PROXY_OUT)
            self.listen("inbound", self.pod, everywhere, PROXY_IN, transparent=True)
            for name, port in (("server", APPLICATION), ("server second", SECOND), ("server dns", DNS)):
                self.listen(name, self.server, everywhere, port)
            self.datagrams("dns proxy", self.pod, LOOPBACK[version], DNS_PROXY)
            self.listen("dns proxy tcp", self.pod, LOOPBACK[version], DNS_PROXY)
            self.datagrams("resolver", self.server, SERVER[version], DNS)
            self.datagrams("other resolver", self.server, OTHER[version], DNS)
        for namespace in (self.pod, self.server):
            self.clients[namespace] = Client(namespace)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for listener in self.listeners:
            listener.close()

    def listen(self, name: str, namespace: Namespace, address: str, port: int, *, transparent: bool = False) -> None:
        self._open(name, namespace, address, port, socket.SOCK_STREAM, transparent).listen()

    def datagrams(self, name: str, namespace: Namespace, address: str, port: int) -> None:
        self._open(name, namespace, address, port, socket.SOCK_DGRAM, False)

    def _open(
        self, name: str, namespace: Namespace, address: str, port: int, kind: int, transparent: bool
    ) -> socket.socket:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        owner = 1337 if namespace is self.pod else 0  # what the DNS proxy answers must be known as the proxy's
        with namespace.entered():
            os.seteuid(owner)
            try:
                listener = socket.socket(family, kind)
            finally:
                os.seteuid(0)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if transparent:
            level, option = (socket.IPPROTO_IPV6, 75) if family == socket.AF_INET6 else (socket.SOL_IP, 19)
            listener.setsockopt(level, option, 1)
        listener.bind((address, port))
        self.listeners[listener] = name
        return listener

    def arrival(self, client: Client) -> Arrival | None:
        """The listener that gets what `client` was asked to send, and None if it failed; answers it."""
        assert client.process.stdout is not None
        deadline = time.monotonic() + DEADLINE
        ready, _, _ = select.select([*self.listeners, client.process.stdout], [], [], deadline - time.monotonic())
        assert ready, "nobody got it, and it did not fail either"
        for listener in ready:
            if listener is client.process.stdout:
                continue
            name = self.listeners[listener]
            if listener.type == socket.SOCK_DGRAM:
                _, address = listener.recvfrom(64)
                listener.sendto(name.encode(), address)
                found = Arrival(name, listener.getsockname()[:2], address[0])
            else:
                connection, address = listener.accept()
                with connection:
                    connection.sendall(name.encode())
                    found = Arrival(name, original_destination(connection), address[0])
            assert client.answer() == name
            return found
        said = client.answer()
        assert said.startswith("failed"), said
        return None

    def sends(
        self, to: str, port: int, *, who: tuple[int, int] = (1000, 1000), udp: bool = False, outside: bool = False,
        groups: tuple[int, ...] = (), source: str = "", sport: int = 0, mark: int = 0,
    ) -> Arrival | None:  # fmt: skip
        """Send from the pod as `who` (uid, gid), or from outside it; None when it is refused."""
        client = self.clients[self.server if outside else self.pod]
        uid, gid = (0, 0) if outside else who
        client.ask(to, port, uid=uid, gid=gid, groups=groups, udp=udp, source=source, sport=sport, mark=mark)
        return self.arrival(client)


def original_destination(connection: socket.socket) -> tuple[str, int]:
    """SO_ORIGINAL_DST, or the socket's own address where no rule changed it."""
    so_original_dst = 80
    if connection.family == socket.AF_INET:
        try:
            raw = connection.getsockopt(socket.IPPROTO_IP, so_original_dst, 16)
        except OSError:
            return connection.getsockname()[:2]
        port, packed = struct.unpack_from("!2xH4s", raw)
        return socket.inet_ntop(socket.AF_INET, packed), port
    try:
        raw = connection.getsockopt(socket.IPPROTO_IPV6, so_original_dst, 28)
    except OSError:
        return connection.getsockname()[:2]
    port, packed = struct.unpack_from("!2xH4x16s", raw)
    return socket.inet_ntop(socket.AF_INET6, packed), port
