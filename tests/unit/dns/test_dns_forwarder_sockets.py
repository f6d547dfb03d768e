"""The forwarder with real sockets and a server that speaks dnspython, on both loops: that the parts fit together."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import dns.flags
import dns.message
import dns.rrset
import pytest
import uvloop

from proxy.config.model import SocketAddress
from proxy.dns.forwarder import Forwarder
from proxy.dns.settings import DnsSettings
from proxy.dns.stats import DnsStats
from tests.unit.dns.dns_upstream_world import SOA, query_of, rrsets
from tests.unit.dns.test_dns_reply import same


def server_says(query: dns.message.Message, tcp: bool) -> bytes:
    """``large``: 200 addresses; ``none``: NXDOMAIN; else one address."""
    message = dns.message.make_response(query, our_payload=1232)
    message.flags |= dns.flags.RA
    name = query.question[0].name.to_text()
    if name.startswith("none"):
        message.set_rcode(3)
        message.authority.extend(rrsets(SOA.replace(" 300 ", " 60 ")))
    else:
        count = 200 if name.startswith("large") else 1
        message.answer.extend(rrsets(f"{name} 60 IN A {' '.join(f'10.1.1.{i}' for i in range(count))}"))
    if not tcp and name.startswith("large"):
        message.answer.clear()
        message.flags |= dns.flags.TC
    return message.to_wire(max_size=65535)


class Server(asyncio.DatagramProtocol):
    """Over UDP and TCP at the same port."""

    def __init__(self) -> None:
        self.writers: list[asyncio.StreamWriter] = []
        self.closed = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, address: Any) -> None:
        self.transport.sendto(server_says(dns.message.from_wire(data), False), address)

    def connection_lost(self, error: Exception | None) -> None:
        self.closed.set_result(None)

    async def stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        try:
            while True:
                data = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
                wire = server_says(dns.message.from_wire(data), True)
                writer.write(len(wire).to_bytes(2, "big") + wire)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def start(self) -> int:
        loop = asyncio.get_running_loop()
        self.listener = await asyncio.start_server(self.stream, "127.0.0.1", 0)
        port: int = self.listener.sockets[0].getsockname()[1]
        await loop.create_datagram_endpoint(lambda: self, ("127.0.0.1", port))
        return port

    async def close(self) -> None:
        self.transport.close()
        await self.closed
        self.listener.close()
        for writer in self.writers:
            writer.close()
            try:
                await writer.wait_closed()
            except ConnectionError:
                pass


class World:
    """A forwarder, a server, and a closed port."""

    def __init__(self, forwarder: Forwarder, good: SocketAddress, closed: SocketAddress) -> None:
        self.forwarder, self.good, self.closed = forwarder, good, closed

    async def ask(self, name: str, **more: Any) -> tuple[dns.message.Message, str]:
        query = query_of(name, **more)
        found = self.forwarder.cached(query)
        if found is None:
            came: asyncio.Future[tuple[bytes | None, str]] = asyncio.get_running_loop().create_future()
            self.forwarder.ask(query, lambda reply, why: came.set_result((reply, why)))
            reply, why = await asyncio.wait_for(came, 20)
            assert reply is not None
            found = reply, why
        return dns.message.from_wire(found[0]), found[1]


Test = Callable[[World], Awaitable[None]]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Any:
    def runner(test: Test, **settings: Any) -> None:
        async def main() -> None:
            server = Server()
            port = await server.start()
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.bind(("127.0.0.1", 0))
                closed = sock.getsockname()[1]
            forwarder = Forwarder(asyncio.get_running_loop(), DnsSettings(**settings), DnsStats("dns"))
            try:
                async with asyncio.timeout(30):
                    await test(World(forwarder, SocketAddress("127.0.0.1", port), SocketAddress("127.0.0.1", closed)))
            finally:
                forwarder.close()
                await server.close()
        factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop
        with asyncio.Runner(loop_factory=factory) as it:
            it.run(main())
    return runner


@pytest.mark.parametrize("parallel", [False, True])
def test_answers(run: Any, parallel: bool) -> None:
    async def test(world: World) -> None:
        forwarder = world.forwarder
        forwarder.set_servers([world.closed, world.good])
        for name, more in (("foo.example.", {}), ("none.example.", {"edns": 1232}), ("large.example.", {"edns": 4096}),
                           ("large.example.", {"tcp": True}), ("tcp.example.", {"tcp": True})):
            message, why = await world.ask(name, **more)
            expected = dns.message.from_wire(server_says(dns.message.from_wire(query_bytes(name)), True))
            same(message, expected)
            assert not message.flags & dns.flags.TC
            again, why_again = await world.ask(name, **more)
            same(again, expected)
            assert why_again.startswith("cache hit")
        stats = forwarder.stats
        assert stats.upstream_tcp_retries_total == 1
        assert stats.upstream_failures_total == stats.upstream_mismatched_total == 0
        small, _ = await world.ask("large.example.")
        assert small.flags & dns.flags.TC
    run(test, parallel=parallel)


def query_bytes(name: str) -> bytes:
    return dns.message.make_query(name, "A").to_wire()


def test_many_at_once(run: Any) -> None:
    async def test(world: World) -> None:
        world.forwarder.set_servers([world.good])
        names = [f"n{number}.example." for number in range(100)]
        found = await asyncio.gather(*[world.ask(name, client=("10.9.0.1", number))
                                       for number, name in enumerate(names)])
        for name, (message, _) in zip(names, found, strict=True):
            assert message.answer[0].name.to_text() == name
        assert world.forwarder.explain(b"", 1)["active"] == 0
        assert not world.forwarder.exchange._own
    run(test)


def test_nobody_is_there(run: Any) -> None:
    async def test(world: World) -> None:
        world.forwarder.set_servers([world.closed])
        message, why = await world.ask("foo.example.")
        assert message.rcode() == 2
        assert why.endswith("Connection refused)")
        await asyncio.sleep(0)
        assert not world.forwarder.exchange._own
    run(test)
