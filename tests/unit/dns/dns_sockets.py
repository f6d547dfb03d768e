"""A DnsServer on real sockets of loopback, on the loop of the test; the servers behind it are a FakeForwarder."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import uvloop
from dns_service_world import TABLE, FakeForwarder

from proxy.config.model import SocketAddress
from proxy.deadlines import Deadlines
from proxy.dns import server as module
from proxy.dns.server import DnsServer
from proxy.dns.settings import DnsSettings, Listen
from proxy.stats.groups import Registry

PATIENCE = 10.0


def run(scenario: Coroutine[Any, Any, None]) -> None:
    """Run to the end on uvloop; an exception that nobody handled in the loop fails the test."""
    unhandled: list[dict[str, Any]] = []

    async def guarded() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
        async with asyncio.timeout(3 * PATIENCE):
            await scenario

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(guarded())
    assert unhandled == []


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.001)


class Sockets:
    """The server, its parts, and clients."""

    def __init__(self, server: DnsServer) -> None:
        self.server = server
        self.service = server.service
        self.stats = server.service.stats
        self.forwarder = cast(FakeForwarder, server.service.forwarder)
        self.addresses = {(kind, address.host): tuple(address) for kind, address in server.addresses}
        self.connections = server._connections
        self._loop = asyncio.get_running_loop()
        self._clients: list[socket.socket] = []

    def udp(self, host: str = "127.0.0.1", to: str = "") -> socket.socket:
        """A client's socket, connected: it takes replies of the address that it asked only."""
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        self._clients.append(sock)
        sock.setblocking(False)
        sock.connect((to or host, self.addresses["udp", host][1]))
        return sock

    async def ask(self, sock: socket.socket, packet: bytes) -> bytes:
        sock.send(packet)
        return await self.receive(sock)

    async def receive(self, sock: socket.socket) -> bytes:
        async with asyncio.timeout(PATIENCE):
            return await self._loop.sock_recv(sock, 65535)

    async def tcp(self, host: str = "127.0.0.1", *, receive_buffer: int = 0) -> socket.socket:
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        self._clients.append(sock)
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setblocking(False)
        await self._loop.sock_connect(sock, self.addresses["tcp", host])
        return sock

    async def send(self, sock: socket.socket, *packets: bytes) -> None:
        async with asyncio.timeout(PATIENCE):
            await self._loop.sock_sendall(sock, b"".join(framed(packet) for packet in packets))

    async def read(self, sock: socket.socket, size: int) -> bytes:
        """So many bytes, less at the end."""
        data = b""
        async with asyncio.timeout(PATIENCE):
            while len(data) < size and (piece := await self._loop.sock_recv(sock, size - len(data))):
                data += piece
        return data

    async def message(self, sock: socket.socket) -> bytes:
        """The next message over TCP, b"" at the end of the connection."""
        size = await self.read(sock, 2)
        return await self.read(sock, int.from_bytes(size, "big")) if size else b""

    def close(self) -> None:
        self.server.close()
        for sock in self._clients:
            sock.close()


def framed(packet: bytes) -> bytes:
    return len(packet).to_bytes(2, "big") + packet


def context() -> Any:
    loop = asyncio.get_running_loop()
    return SimpleNamespace(loop=loop, registry=Registry(), deadlines=Deadlines(loop))


@asynccontextmanager
async def serving(*hosts: str) -> AsyncIterator[Sockets]:
    """Port 0: every socket has a port of its own."""
    listen = tuple(Listen(SocketAddress(host, 0)) for host in hosts or ("127.0.0.1",))
    real, module.Forwarder = module.Forwarder, lambda loop, settings, stats: FakeForwarder(stats)
    try:
        server = DnsServer(context(), DnsSettings(listen=listen))
    finally:
        module.Forwarder = real
    server.bind()
    server.service.set_table(TABLE)
    server.start()
    sockets = Sockets(server)
    try:
        yield sockets
    finally:
        sockets.close()
        server._context.deadlines.close()
