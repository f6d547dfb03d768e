"""Queries to servers over real sockets on the loopback: forged replies, closed ports, framing, reuse."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvloop

from proxy.config.model import SocketAddress
from proxy.deadlines import Deadlines
from proxy.dns import exchange as exchange_module
from proxy.dns.exchange import IDLE_TIMEOUT, MAX_IDLE, Attempt, Exchange, RandomIds
from proxy.dns.query import Query, parse_query
from proxy.dns.servers import Server
from proxy.dns.stats import DnsStats

QUESTION = b"\x03foo\x07example\x00\0\1\0\1"
ANSWER = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4\x0a\1\1\1"


def query(number: int) -> bytes:
    return number.to_bytes(2, "big") + b"\1\0\0\1\0\0\0\0\0\0" + QUESTION


def reply(number: int, question: bytes = QUESTION) -> bytes:
    return number.to_bytes(2, "big") + b"\x81\x80\0\1\0\1\0\0\0\0" + question + ANSWER


class Owner:
    """What came of an attempt: the reply, or why there is none."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.came: asyncio.Future[bytes | str] = loop.create_future()

    def on_message(self, attempt: Attempt, message: bytes) -> None:
        self.came.set_result(message)

    def on_failure(self, attempt: Attempt, why: str) -> None:
        self.came.set_result(why)


class Client:
    """An exchange and a way to ask with it."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.stats = DnsStats("dns")
        self.deadlines = Deadlines(self.loop)
        self.exchange = Exchange(self.loop, self.deadlines, self.stats)

    def ask(self, server: Server, number: int = 7, tcp: bool = False) -> tuple[Attempt, asyncio.Future[bytes | str]]:
        owner = Owner(self.loop)
        attempt = Attempt(owner, server, QUESTION, number, tcp, True, 0.0, 1.0)
        self.exchange.send(attempt, query(number))
        return attempt, owner.came

    def close(self) -> None:
        self.exchange.close()
        self.deadlines.close()
        assert not self.exchange._own
        assert not self.exchange._tcp
        assert not self.exchange._idle


Test = Callable[[Client], Awaitable[None]]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Any:
    """Run a coroutine with a client, on both loops; no descriptor may be left over."""
    def runner(test: Test) -> None:
        async def main() -> None:
            client = Client()
            await asyncio.wait_for(test(client), 20)
            client.close()
        factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop
        with asyncio.Runner(loop_factory=factory) as it:
            it.run(asyncio.sleep(0))  # the first of all loops opens descriptors that stay
        before = len(os.listdir("/proc/self/fd"))
        with asyncio.Runner(loop_factory=factory) as it:
            it.run(main())
        assert len(os.listdir("/proc/self/fd")) == before
    return runner


def udp_server(host: str = "127.0.0.1") -> tuple[socket.socket, Server]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.bind((host, 0))
    sock.settimeout(5)
    return sock, Server(SocketAddress(host, sock.getsockname()[1]))


def came_back(packet: bytes, address: tuple[object, ...], tcp: bool = False) -> Query:
    found = parse_query(packet, tcp, address)
    assert isinstance(found, Query)
    return found


def test_a_reply_counts_only_from_whom_was_asked_and_about_what_was_asked(run: Any) -> None:
    async def test(client: Client) -> None:
        sock, server = udp_server()
        other, _ = udp_server()
        with sock, other:
            attempt, came = client.ask(server)
            packet, address = sock.recvfrom(4096)
            assert packet == query(7)
            assert client.exchange.is_own(came_back(packet, address))
            other.sendto(reply(7), address)
            for forged in (reply(8), reply(7, QUESTION.replace(b"foo", b"fop")), reply(7)[:11], b"", query(7)):
                sock.sendto(forged, address)
            sock.sendto(reply(7), address)
            sock.sendto(reply(7)[:-1] + b"\2", address)
            assert await came == reply(7)
            assert attempt.channel is None
            # What came from the other port was dropped by the kernel, what came behind the reply is too late.
            assert client.stats.upstream_mismatched_total == 5
            assert not client.exchange.is_own(came_back(packet, address))
    run(test)


def test_more_forged_replies_than_are_read_at_once(run: Any) -> None:
    async def test(client: Client) -> None:
        sock, server = udp_server()
        with sock:
            _, came = client.ask(server)
            _, address = sock.recvfrom(4096)
            for _ in range(50):
                sock.sendto(reply(9), address)
            sock.sendto(reply(7), address)
            assert await came == reply(7)
            assert client.stats.upstream_mismatched_total == 50
    run(test)


def test_a_closed_port_is_known_at_once(run: Any) -> None:
    async def test(client: Client) -> None:
        sock, server = udp_server()
        sock.close()
        _, came = client.ask(server)
        assert await came == "Connection refused"
    run(test)


def test_ipv6(run: Any) -> None:
    async def test(client: Client) -> None:
        sock, server = udp_server("::1")
        with sock:
            _, came = client.ask(server)
            packet, address = sock.recvfrom(4096)
            assert client.exchange.is_own(came_back(packet, address))
            sock.sendto(reply(7), address)
            assert await came == reply(7)
    try:
        udp_server("::1")[0].close()
    except OSError:
        pytest.skip("no IPv6 here")
    run(test)


def test_cancelled_attempts_hear_nothing(run: Any) -> None:
    async def test(client: Client) -> None:
        sock, server = udp_server()
        with sock:
            attempt, came = client.ask(server)
            _, address = sock.recvfrom(4096)
            sock.sendto(reply(7), address)
            attempt.cancel()
            attempt.cancel()
            await asyncio.sleep(0)
            assert not came.done()
    run(test)


def test_ports_are_random_and_never_shared(run: Any) -> None:
    async def test(client: Client) -> None:
        sock, server = udp_server()
        with sock:
            attempts = [client.ask(server)[0] for _ in range(50)]
            ports = [sock.recvfrom(4096)[1][1] for _ in attempts]
            assert len(set(ports)) == 50
            steps = {b - a for a, b in zip(ports, ports[1:], strict=False)}
            assert len(steps) > 25  # not one after the other
            for attempt in attempts:
                attempt.cancel()
    run(test)


def test_ids_are_random() -> None:
    ids = RandomIds()
    taken = [ids.take() for _ in range(4096)]
    assert all(0 <= number <= 65535 for number in taken)
    assert len(set(taken)) > 3800  # of 65536: about 3970 different ones
    assert len({number >> 8 for number in taken}) == 256
    assert len({number & 255 for number in taken}) == 256


# --- TCP --------------------------------------------------------------------------------------------------------------


class TcpServer:
    """Answers what ``script`` says: bytes are written as they are, None closes."""

    def __init__(self, *script: list[bytes | None]) -> None:
        self.script = list(script)
        self.connections = 0
        self.queries: list[bytes] = []

    async def __aenter__(self) -> TcpServer:
        self.listener = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.server = Server(SocketAddress("127.0.0.1", self.listener.sockets[0].getsockname()[1]))
        self.tasks: set[asyncio.Task[Any]] = set()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.listener.close()
        await self.listener.wait_closed()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        self.connections += 1
        try:
            while True:
                size = int.from_bytes(await reader.readexactly(2), "big")
                self.queries.append(await reader.readexactly(size))
                for part in self.script.pop(0):
                    if part is None:
                        return
                    writer.write(part)
                    await writer.drain()
                    await asyncio.sleep(0)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def framed(message: bytes) -> bytes:
    return len(message).to_bytes(2, "big") + message


def test_any_cut_makes_the_same_reply_and_the_connection_is_used_again(run: Any) -> None:
    async def test(client: Client) -> None:
        wire = framed(reply(7))
        script: list[list[bytes | None]] = [[wire[:cut], wire[cut:]] for cut in range(len(wire))]
        script.append([wire[at:at + 1] for at in range(len(wire))])
        async with TcpServer(*script) as server:
            for _ in range(len(wire) + 1):
                _, came = client.ask(server.server, tcp=True)
                assert await came == reply(7)
            assert server.queries == [query(7)] * (len(wire) + 1)
            assert server.connections == 1
            client.exchange.close()
    run(test)


def test_a_client_that_has_a_port_like_ours(run: Any) -> None:
    """The kernel gives one port to several sockets: of TCP and UDP, or of TCP to several addresses."""
    async def test(client: Client) -> None:
        sock, server = udp_server()
        async with TcpServer([framed(reply(8))]) as tcp_server:
            with sock:
                udp_attempt, _ = client.ask(server)
                _, address = sock.recvfrom(4096)
                _, came = client.ask(tcp_server.server, 8, tcp=True)
                (connection,) = client.exchange._tcp
                own = connection._sock.getsockname()
                for tcp, number, where in ((False, 7, address), (True, 8, own)):
                    packet = query(number)
                    assert client.exchange.is_own(came_back(packet, where, tcp))
                    assert not client.exchange.is_own(came_back(packet, where, not tcp))
                    assert not client.exchange.is_own(came_back(query(number + 1), where, tcp))
                    assert not client.exchange.is_own(came_back(packet.replace(b"foo", b"fop"), where, tcp))
                assert await came == reply(8)
                udp_attempt.cancel()
                client.exchange.close()
    run(test)


def test_a_large_reply(run: Any) -> None:
    async def test(client: Client) -> None:
        large = reply(7) + bytes(65535 - len(reply(7)))
        async with TcpServer([framed(large)]) as server:
            _, came = client.ask(server.server, tcp=True)
            assert await came == large
            client.exchange.close()
    run(test)


def test_a_connection_that_ended_while_it_was_idle_is_made_anew(run: Any) -> None:
    async def test(client: Client) -> None:
        async with TcpServer([framed(reply(7)), None], [framed(reply(8))]) as server:
            _, came = client.ask(server.server, 7, tcp=True)
            await came
            # Its end has not been seen yet: the query crosses it.
            _, came = client.ask(server.server, 8, tcp=True)
            assert await came == reply(8)
            assert server.connections == 2
            client.exchange.close()
    run(test)


@pytest.mark.parametrize(("script", "why"), [
    ([None], "connection closed by the server"),
    ([framed(reply(7))[:20], None], "connection closed by the server"),
    ([framed(reply(8))], "reply to another query"),
    ([framed(b"")], "reply to another query"),
    ([framed(reply(7, QUESTION.upper()))], "reply to another query"),
])
def test_what_is_no_reply_ends_the_connection(run: Any, script: list[bytes | None], why: str) -> None:
    async def test(client: Client) -> None:
        async with TcpServer(script) as server:
            _, came = client.ask(server.server, tcp=True)
            assert await came == why
            assert not client.exchange._tcp
            assert client.stats.upstream_mismatched_total == (why == "reply to another query")
    run(test)


def test_a_closed_tcp_port(run: Any) -> None:
    async def test(client: Client) -> None:
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        server = Server(SocketAddress("127.0.0.1", sock.getsockname()[1]))
        sock.close()
        try:
            _, came = client.ask(server, tcp=True)
        except ConnectionRefusedError:
            return  # the loopback may know at once
        assert await came == "Connection refused"
    run(test)


def test_more_than_was_asked_for_ends_the_connection(run: Any) -> None:
    async def test(client: Client) -> None:
        async with TcpServer([framed(reply(7)) + b"\0"], [framed(reply(8))]) as server:
            _, came = client.ask(server.server, 7, tcp=True)
            assert await came == reply(7)
            assert not client.exchange._tcp
            _, came = client.ask(server.server, 8, tcp=True)
            assert await came == reply(8)
            client.exchange.close()
    run(test)


def test_cancelling_closes_because_a_reply_would_be_in_the_way(run: Any) -> None:
    async def test(client: Client) -> None:
        async with TcpServer([], [framed(reply(8))]) as server:
            attempt, came = client.ask(server.server, 7, tcp=True)
            while not server.queries:
                await asyncio.sleep(0)
            attempt.cancel()
            assert not client.exchange._tcp
            _, other = client.ask(server.server, 8, tcp=True)
            assert await other == reply(8)
            assert not came.done()
            client.exchange.close()
    run(test)


def test_idle_connections_are_few_and_end_by_themselves(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(client: Client) -> None:
        count = MAX_IDLE + 2
        script: list[list[bytes | None]] = [[framed(reply(number))] for number in range(count)]
        async with TcpServer(*script) as server:
            asked = [client.ask(server.server, number, tcp=True)[1] for number in range(count)]
            # Which connection gets which part of the script is the server's: any reply frees its connection.
            await asyncio.gather(*asked)
            assert len(client.exchange._tcp) <= MAX_IDLE
            for connection in list(client.exchange._tcp):
                assert connection.deadline <= client.loop.time() + IDLE_TIMEOUT
                connection.on_deadline(connection.deadline)
            assert not client.exchange._tcp
    run(test)


def test_connections_are_bounded(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange_module, "MAX_TCP", 3)

    async def test(client: Client) -> None:
        async with TcpServer(*[[]] * 3) as server:
            attempts = [client.ask(server.server, tcp=True)[0] for _ in range(3)]
            with pytest.raises(OSError, match="3 TCP connections to servers already"):
                client.ask(server.server, tcp=True)
            for attempt in attempts:
                attempt.cancel()
    run(test)


def test_an_idle_connection_makes_room_for_a_new_one(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange_module, "MAX_TCP", 1)

    async def test(client: Client) -> None:
        async with TcpServer([framed(reply(7))]) as one, TcpServer([framed(reply(8))]) as two:
            assert await client.ask(one.server, 7, tcp=True)[1] == reply(7)
            assert await client.ask(two.server, 8, tcp=True)[1] == reply(8)
            assert len(client.exchange._tcp) == 1
            client.exchange.close()
    run(test)


def test_a_server_that_speaks_without_being_asked(run: Any) -> None:
    async def test(client: Client) -> None:
        async with TcpServer([framed(reply(7)), b"", framed(reply(7))]) as server:
            assert await client.ask(server.server, tcp=True)[1] == reply(7)
            while client.exchange._tcp:
                await asyncio.sleep(0)
            assert client.stats.upstream_mismatched_total <= 1
    run(test)
