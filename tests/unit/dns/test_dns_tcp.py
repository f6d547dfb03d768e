"""DNS over TCP on real sockets: several queries a connection, answers as they come, and every bound."""

from __future__ import annotations

import asyncio
import socket
from itertools import pairwise
from typing import Any

import dns.message
import pytest
from dns_service_world import packet, reply_to
from dns_sockets import Sockets, framed, run, serving, until
from dns_tables import kubernetes, table_of

from proxy.dns import tcp as module


def number(reply: bytes) -> int:
    return int.from_bytes(reply[:2], "big")


def only(dns_server: Sockets) -> Any:
    """The one connection."""
    connection, = dns_server.connections
    return connection


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_several_queries_on_one_connection(host: str) -> None:
    async def scenario() -> None:
        async with serving(host) as dns_server:
            client = await dns_server.tcp(host)
            await dns_server.send(client, *(packet("web.ns1", number=n) for n in range(1, 21)))
            assert [number(await dns_server.message(client)) for _ in range(20)] == list(range(1, 21))
            await dns_server.send(client, packet("web.ns1", number=99))
            reply = dns.message.from_wire(await dns_server.message(client))
            assert reply.id == 99 and reply.answer[0][0].address == "10.0.0.1"
            stats = dns_server.stats
            assert (stats.requests_tcp, stats.requests_total, stats.answers_local) == (21, 21, 21)
            assert (stats.tcp_connections_total, stats.tcp_connections_active) == (1, 1)
            client.shutdown(socket.SHUT_WR)
            assert await dns_server.message(client) == b""
            assert stats.tcp_connections_active == 0 and not dns_server.connections
    run(scenario())


def test_any_split_same_answers() -> None:
    wire = framed(packet("web.ns1", number=1)) + framed(packet("three.ns1", number=2))

    async def scenario() -> None:
        async with serving() as dns_server:
            for cut in range(len(wire) + 1):
                client = await dns_server.tcp()
                received = dns_server.stats.requests_total
                await asyncio.get_running_loop().sock_sendall(client, wire[:cut])
                complete = (cut >= len(framed(packet("web.ns1")))) + (cut == len(wire))
                await until(lambda wanted=received + complete: dns_server.stats.requests_total == wanted)
                await asyncio.get_running_loop().sock_sendall(client, wire[cut:])
                assert [number(await dns_server.message(client)) for _ in range(2)] == [1, 2]
                client.close()
    run(scenario())


def test_an_answer_waits_for_no_other() -> None:
    async def scenario() -> None:
        async with serving() as dns_server:
            client = await dns_server.tcp()
            await dns_server.send(client, packet("slow.example", number=1), packet("web.ns1", number=2),
                                  packet("slower.example", number=3))
            assert number(await dns_server.message(client)) == 2
            (slow, slow_done), (slower, slower_done) = dns_server.forwarder.asked
            client.shutdown(socket.SHUT_WR)  # it asks nothing more, and still gets what it asked
            slower_done(reply_to(slower), "upstream")
            assert number(await dns_server.message(client)) == 3
            slow_done(reply_to(slow), "upstream")
            assert number(await dns_server.message(client)) == 1
            assert await dns_server.message(client) == b""
    run(scenario())


def test_dropped_and_immediate_answers() -> None:
    async def scenario() -> None:
        async with serving() as dns_server:
            client = await dns_server.tcp()
            await dns_server.send(client, packet("x.example", number=1))
            await until(lambda: dns_server.forwarder.asked)
            dns_server.forwarder.asked.pop()[1](None, "queue full")
            assert only(dns_server).idle
            dns_server.forwarder.at_once = True
            await dns_server.send(client, *(packet("x.example", number=n) for n in range(200)))
            assert {number(await dns_server.message(client)) for _ in range(200)} == set(range(200))
    run(scenario())


def test_queries_under_way_are_bounded() -> None:
    async def scenario() -> None:
        async with serving() as dns_server:
            client = await dns_server.tcp()
            count = module.MAX_UNDER_WAY + 10
            await dns_server.send(client, *(packet("x.example", number=n) for n in range(count)))
            asked = dns_server.forwarder.asked
            await until(lambda: len(asked) == module.MAX_UNDER_WAY)
            await dns_server.send(client, packet("web.ns1", number=1000))
            got = []
            while asked:
                assert len(asked) <= module.MAX_UNDER_WAY
                query, done = asked.pop(0)
                done(reply_to(query), "upstream")
                got.append(number(await dns_server.message(client)))
            got.append(number(await dns_server.message(client)))
            # the last one was not even read before ten had been answered
            assert got.index(1000) >= 10 and [n for n in got if n != 1000] == list(range(count))
            assert dns_server.stats.requests_total == count + 1
    run(scenario())


def test_a_client_that_does_not_read_is_not_read() -> None:
    async def scenario() -> None:
        async with serving() as dns_server:
            dns_server.service.set_table(table_of(kubernetes(
                "many", "ns1", *(f"10.1.{n // 250}.{n % 250}" for n in range(2000)))))
            client = await dns_server.tcp(receive_buffer=4096)
            count = 500
            sending = asyncio.get_running_loop().create_task(
                dns_server.send(client, *(packet("many.ns1", number=n) for n in range(count))))
            await until(lambda: dns_server.connections and len(only(dns_server)._unsent) >= module.MAX_UNSENT)
            connection = only(dns_server)
            assert not connection._reading and len(connection._unsent) < module.MAX_UNSENT + 40_000
            assert dns_server.stats.requests_total < count
            for n in range(count):
                reply = await dns_server.message(client)
                assert number(reply) == n and len(reply) > 30_000
                assert len(connection._unsent) < module.MAX_UNSENT + 40_000
                assert len(connection._buffer) <= module.READ + module.MAX_QUERY
            await sending
            assert connection.idle and connection._reading and not connection._writing
    run(scenario())


@pytest.mark.parametrize(("name", "at_once"), [("web.ns1", module.SLICE), ("many.ns1", 1)])
def test_many_queries_leave_time_for_others(name: str, at_once: int) -> None:
    """However much is sent over however many connections: a round of the loop answers a few queries, large ones less.

    All is answered in the end, in order, also after the client has ended its side.
    """
    async def scenario() -> None:
        async with serving() as dns_server:
            dns_server.service.set_table(table_of(
                kubernetes("web", "ns1", "10.0.0.1"),
                kubernetes("many", "ns1", *(f"10.1.{n // 250}.{n % 250}" for n in range(2000)))))
            loop = asyncio.get_running_loop()
            clients = [await dns_server.tcp() for _ in range(4)]
            count = 60
            seen = [0]

            def look() -> None:
                seen.append(dns_server.stats.requests_tcp)
                if seen[-1] < count * len(clients):
                    loop.call_soon(look)

            for client in clients:
                client.send(b"".join(framed(packet(name, number=n)) for n in range(count)))
                client.shutdown(socket.SHUT_WR)
            loop.call_soon(look)

            async def replies(client: socket.socket) -> list[int]:
                return [number(await dns_server.message(client)) for _ in range(count)]

            found = await asyncio.gather(*map(replies, clients))
            assert found == [list(range(count))] * len(clients)
            # A look may fall between what is left of one round and the next one.
            assert max(after - before for before, after in pairwise(seen)) <= 2 * at_once
            assert [await dns_server.message(client) for client in clients] == [b""] * len(clients)
            assert not dns_server.connections
    run(scenario())


def test_answers_of_servers_pile_up_only_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_UNSENT_AT_ALL", 300_000)

    async def scenario() -> None:
        async with serving() as dns_server:
            client = await dns_server.tcp(receive_buffer=4096)
            await dns_server.send(client, *(packet("x.example", number=n) for n in range(module.MAX_UNDER_WAY)))
            await until(lambda: len(dns_server.forwarder.asked) == module.MAX_UNDER_WAY)
            for _, done in dns_server.forwarder.asked:
                done(bytes(65535), "a large reply")
            assert not dns_server.connections
    run(scenario())


@pytest.mark.parametrize("wire", [
    b"\x10\x01" + bytes(100),  # announces 4097 bytes
    b"\0\0", framed(b"short"), framed(bytes.fromhex("0007 8180") + bytes(8)),
    b"GET / HTTP/1.1\r\n\r\n",
])
def test_who_speaks_no_dns_is_closed(wire: bytes) -> None:
    async def scenario() -> None:
        async with serving() as dns_server:
            client = await dns_server.tcp()
            await asyncio.get_running_loop().sock_sendall(client, framed(packet("web.ns1", number=1)) + wire)
            got = await dns_server.message(client)
            assert got == b"" or (number(got) == 1 and await dns_server.message(client) == b"")
            assert not dns_server.connections
    run(scenario())


def test_what_is_no_question_is_refused_and_the_connection_goes_on() -> None:
    async def scenario() -> None:
        async with serving() as dns_server:
            client = await dns_server.tcp()
            await dns_server.send(client, packet("web.ns1", number=1)[:-2], packet("web.ns1", number=2))
            first, second = [dns.message.from_wire(await dns_server.message(client)) for _ in range(2)]
            assert (first.id, first.rcode(), second.id, second.rcode()) == (1, 1, 2, 0)
    run(scenario())


def test_idle_connections_end() -> None:
    async def scenario() -> None:
        async with serving() as dns_server:
            loop = asyncio.get_running_loop()
            client = await dns_server.tcp()
            await dns_server.send(client, packet("web.ns1"))
            await dns_server.message(client)
            connection = only(dns_server)
            assert 0 < connection.deadline - loop.time() <= module.IDLE
            # half a query moves nothing
            before = connection.deadline
            await loop.sock_sendall(client, b"\0\x20xx")
            await until(lambda: connection._buffer)
            assert connection.deadline == before
            connection.on_deadline(connection.deadline)
            assert await dns_server.message(client) == b""
            assert dns_server.stats.tcp_idle_timeouts_total == 1
            # who waits for an answer is not idle
            client = await dns_server.tcp()
            await dns_server.send(client, packet("x.example", number=3))
            await until(lambda: dns_server.forwarder.asked)
            connection = only(dns_server)
            connection.on_deadline(connection.deadline)
            query, done = dns_server.forwarder.asked.pop()
            done(reply_to(query), "upstream")
            assert number(await dns_server.message(client)) == 3
            assert dns_server.stats.tcp_idle_timeouts_total == 1
    run(scenario())


def test_a_connection_that_is_gone_gets_nothing() -> None:
    async def scenario() -> None:
        async with serving() as dns_server:
            client = await dns_server.tcp()
            await dns_server.send(client, packet("x.example"))
            await until(lambda: dns_server.forwarder.asked)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset
            client.close()
            await until(lambda: not dns_server.connections)
            query, done = dns_server.forwarder.asked.pop()
            done(reply_to(query), "upstream")
            assert dns_server.stats.tcp_connections_active == 0
    run(scenario())


def test_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """One too many takes the place of the one that is idle for longest, or else waits for longest."""
    monkeypatch.setattr(module, "MAX_CONNECTIONS", 3)

    async def scenario() -> None:
        async with serving() as dns_server:
            clients = [await dns_server.tcp() for _ in range(3)]
            await until(lambda: len(dns_server.connections) == 3)
            first = next(iter(dns_server.connections))
            first.deadline += 5.0
            fourth = await dns_server.tcp()
            assert await dns_server.message(clients[1]) == b"", "the second: the first was made younger"
            busy = [clients[0], clients[2], fourth]
            for n, client in enumerate(busy):
                await dns_server.send(client, packet("x.example", number=n))
            await until(lambda: len(dns_server.forwarder.asked) == 3)
            oldest = min(dns_server.connections, key=lambda one: one.deadline)
            oldest.deadline -= 1.0
            cut = busy.pop(next(n for n, one in enumerate(busy) if one.getsockname() == oldest._peer))
            late = await dns_server.tcp()
            await dns_server.send(late, packet("web.ns1", number=9))
            assert number(await dns_server.message(late)) == 9, "what is known is answered also then"
            assert await dns_server.message(cut) == b""
            stats = dns_server.stats
            assert (stats.tcp_connections_cut_total, stats.tcp_connections_total, stats.tcp_connections_active) == (
                1, 5, 3)
            for query, done in dns_server.forwarder.asked:
                done(reply_to(query), "upstream")
            assert len({number(await dns_server.message(client)) for client in busy}) == 2
    run(scenario())


def test_close_cuts_connections() -> None:
    async def scenario() -> None:
        async with serving() as dns_server:
            client = await dns_server.tcp()
            await dns_server.send(client, packet("x.example"))
            await until(lambda: dns_server.forwarder.asked)
            dns_server.server.close()
            assert await dns_server.message(client) == b""
            assert dns_server.forwarder.closed
    run(scenario())
