"""DNS over UDP on real sockets: batches, families, wildcard addresses, failures to send and to bind."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import socket
from types import SimpleNamespace
from typing import Any

import dns.edns
import dns.message
import pytest
from dns_service_world import TABLE, debug_log, packet, reply_to
from dns_sockets import context, run, serving, until

from proxy.config.model import SocketAddress
from proxy.dns import udp as module
from proxy.dns import udp_batch
from proxy.dns.message import name_to_wire
from proxy.dns.server import DnsServer
from proxy.dns.settings import DnsSettings, Listen
from proxy.dns.udp import UdpListener
from proxy.listener.accept import BindError


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "0.0.0.0", "::"])
def test_the_same_answer_with_and_without_the_memo(host: str) -> None:
    async def scenario() -> None:
        async with serving(host) as dns_server:
            to = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
            client = dns_server.udp(host, to)
            first = await dns_server.ask(client, packet("web.ns1", number=1))
            second = await dns_server.ask(client, packet("web.ns1", number=2))
            assert dns.message.from_wire(first).answer[0][0].address == "10.0.0.1"
            assert second == b"\0\2" + first[2:]
            assert len(dns_server.service.memo) == 1
            assert (dns_server.stats.requests_total, dns_server.stats.requests_udp,
                    dns_server.stats.answers_local) == (2, 2, 2)
            dns_server.forwarder.known[name_to_wire("x.example")] = reply_to
            assert ([(await dns_server.ask(client, packet("x.example", number=n)))[:2] for n in (3, 4)]
                    == [b"\0\3", b"\0\4"])
            assert dns_server.stats.cache_hits == 2 and dns_server.stats.requests_total == 4
            # an answer that comes later
            client.send(packet("y.example", number=5))
            await until(lambda: dns_server.forwarder.asked)
            query, done = dns_server.forwarder.asked.pop()
            assert query.client[:2] == client.getsockname()[:2] and hash(query.client) is not None
            done(reply_to(query), "upstream")
            assert await dns_server.receive(client) == reply_to(query)
    run(scenario())


def test_a_batch_of_everything() -> None:
    """Remembered, cached, unknown and malformed queries of several clients in one reading."""
    async def scenario() -> None:
        async with serving() as dns_server:
            one, two = dns_server.udp(), dns_server.udp()
            dns_server.forwarder.known[name_to_wire("x.example")] = reply_to
            await dns_server.ask(one, packet("web.ns1"))
            await dns_server.ask(one, packet("x.example"))
            wires = {1: "web.ns1", 2: "x.example", 3: "three.ns1", 4: "web.ns1", 5: "new.example", 6: "web.ns1",
                     7: "x.example"}
            for sock in (one, two):
                for number, name in wires.items():
                    sock.send(packet(name, number=number))
                for nonsense in (b"", b"x", bytes(12), b"\0" * 600, packet("web.ns1")[:-2]):
                    sock.send(nonsense)
            for sock in (one, two):
                replies = [await dns_server.receive(sock) for _ in range(6 + 3)]
                codes = {int.from_bytes(reply[:2], "big"): reply[3] & 15 for reply in replies if reply[1]}
                assert codes == {1: 0, 2: 0, 3: 0, 4: 0, 6: 0, 7: 1}, "id 7: a query that was cut, FORMERR"
            assert len(dns_server.forwarder.asked) == 2
            assert dns_server.stats.malformed_total == 10
            assert dns_server.stats.requests_total == 2 + 2 * 12
    run(scenario())


def test_more_than_a_batch_at_once() -> None:
    async def scenario() -> None:
        async with serving() as dns_server:
            client = dns_server.udp()
            await dns_server.ask(client, packet("three.ns1"))
            numbers = range(1000, 1000 + 3 * udp_batch.BATCH + 1)
            for number in numbers:
                client.send(packet("three.ns1", number=number))
            got = [await dns_server.receive(client) for _ in numbers]
            assert [int.from_bytes(reply[:2], "big") for reply in got] == list(numbers)
            firsts = [dns.message.from_wire(reply).answer[0][0].address for reply in got]
            assert {firsts.count(address) for address in set(firsts)} <= {len(got) // 3, len(got) // 3 + 1}
    run(scenario())


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_queries_as_large_as_we_say_we_take(host: str) -> None:
    async def scenario() -> None:
        async with serving(host) as dns_server:
            client = dns_server.udp(host, "127.0.0.1")
            room = udp_batch.DATAGRAM - len(packet("web.ns1", use_edns=0)) - 4
            for padding, code in ((room, 0), (room + 1, 1)):
                query = packet("web.ns1", use_edns=0, options=[dns.edns.GenericOption(12, bytes(padding))])
                assert dns.message.from_wire(await dns_server.ask(client, query)).rcode() == code
            assert dns.message.from_wire(await dns_server.ask(client, packet("web.ns1", use_edns=0))).payload == 4096
    run(scenario())


def test_a_wildcard_address_answers_from_the_address_that_was_asked() -> None:
    async def scenario() -> None:
        async with serving("0.0.0.0") as dns_server:
            client = dns_server.udp("0.0.0.0", "127.0.0.7")  # connected: a reply of another address is not seen
            assert (await dns_server.ask(client, packet("web.ns1")))[:2] == b"\0\7"
    run(scenario())


def test_a_reply_that_the_kernel_refuses_is_counted_and_the_others_are_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with serving() as dns_server:
            client = dns_server.udp()
            await dns_server.ask(client, packet("web.ns1"))
            real, calls = udp_batch._sendmmsg, []

            def refuse_the_second(descriptor: int, messages: int, count: int, flags: int) -> int:
                calls.append(count)
                if len(calls) == 1:
                    return real(descriptor, messages, 1, flags)  # as the kernel: up to the one that fails
                if len(calls) == 2:
                    ctypes.set_errno(errno.EPERM)
                    return -1
                return real(descriptor, messages, count, flags)

            monkeypatch.setattr(udp_batch, "_sendmmsg", refuse_the_second)
            for number in (1, 2, 3):
                client.send(packet("web.ns1", number=number))
            assert [(await dns_server.receive(client))[1] for _ in range(2)] == [1, 3]
            assert dns_server.stats.send_failed_total == 1
            monkeypatch.undo()
            dns_server.forwarder.known[name_to_wire("x.example")] = reply_to
            query = packet("x.example")
            dns_server.server._sockets[0]._answer(query, ("127.0.0.1", 0))  # nobody has port 0
            await until(lambda: dns_server.stats.send_failed_total == 2)
    run(scenario())


def test_a_flood_takes_time_from_its_client_only() -> None:
    """Queries that no memo knows are answered in turn for each client; whoever has too many waiting loses some."""
    async def scenario() -> None:
        async with serving() as dns_server:
            listener = dns_server.server._sockets[0]
            flood, other, third = ("127.0.0.1", 1001), ("127.0.0.1", 1002), ("127.0.0.1", 1003)
            more = 100
            for n in range(module.MAX_WAITING + more):
                listener._answer(packet(f"x{n}.example", number=n), flood)
            listener._answer(packet("y.example", number=1), other)
            listener._answer(packet("z.example", number=1), third)
            assert len(listener._waiting) == module.MAX_WAITING
            asked = dns_server.forwarder.asked
            await until(lambda: len(asked) == module.MAX_WAITING)
            order = [query.client for query, _ in asked]
            assert order[:3] == [flood, other, third] and set(order[3:]) == {flood}
            kept = [query.id for query, _ in asked if query.client == flood]
            assert kept == list(range(more + 2, module.MAX_WAITING + more)), "the oldest are lost"
            assert dns_server.stats.dropped_total == more + 2
            assert dns_server.stats.requests_total == module.MAX_WAITING + more + 2
            # what a memo knows does not wait at all
            client = dns_server.udp()
            await dns_server.ask(client, packet("web.ns1"))
            for n in range(200):
                listener._answer(packet(f"v{n}.example"), flood)
            before = len(asked)
            assert await dns_server.ask(client, packet("web.ns1"))
            assert len(asked) - before < 200
    run(scenario())


def test_nobody_waits_for_a_closed_socket() -> None:
    async def scenario() -> None:
        async with serving() as dns_server:
            dns_server.server._sockets[0]._answer(packet("x.example"), ("127.0.0.1", 1001))
            dns_server.server.close()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert not dns_server.forwarder.asked
    run(scenario())


def test_every_query_has_its_line_at_debug(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with serving("127.0.0.1", "0.0.0.0") as dns_server:
            with debug_log(monkeypatch) as lines:
                for host in ("127.0.0.1", "0.0.0.0"):
                    client = dns_server.udp(host, "127.0.0.1")
                    for _ in range(2):
                        await dns_server.ask(client, packet("web.ns1"))
            assert sum("web.ns1. IN A: NOERROR" in line for line in lines) == 4
    run(scenario())


# --- binding ----------------------------------------------------------------------------------------------------------


def taken(kind: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, kind)
    sock.bind(("127.0.0.1", 0))
    return sock


@pytest.mark.parametrize(("kind", "protocol"), [(socket.SOCK_DGRAM, "UDP"), (socket.SOCK_STREAM, "TCP")])
def test_an_address_that_is_taken(kind: int, protocol: str) -> None:
    async def scenario() -> None:
        with taken(kind) as sock:
            if kind == socket.SOCK_STREAM:
                sock.listen()
            port = sock.getsockname()[1]
            for required in (True, False):
                listen = Listen(SocketAddress("127.0.0.1", port), required)
                server = DnsServer(context(), DnsSettings(listen=(listen,)))
                with pytest.raises(BindError) as raised:
                    server.bind()
                assert str(raised.value) == (f"cannot bind '127.0.0.1:{port}' for DNS over {protocol}: "
                                             f"{os.strerror(errno.EADDRINUSE)}")
                server.close()
    run(scenario())


def test_loopback_of_a_family_that_does_not_exist_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """192.0.2.1 (RFC 5737) stands for ::1 on a host without IPv6."""
    async def scenario() -> None:
        missing, there = SocketAddress("192.0.2.1", 15053), SocketAddress("127.0.0.1", 0)
        server = DnsServer(context(), DnsSettings(listen=(Listen(missing, False), Listen(there, False))))
        server.bind()
        assert [address.host for _, address in server.addresses] == ["127.0.0.1"] * 2
        server.close()
        server = DnsServer(context(), DnsSettings(listen=(Listen(missing, False),)))
        with pytest.raises(BindError, match="cannot bind any of 192.0.2.1:15053 for DNS"):
            server.bind()
        server = DnsServer(context(), DnsSettings(listen=(Listen(there, True), Listen(missing, True))))
        with pytest.raises(BindError, match="cannot bind '192.0.2.1:15053' for DNS over UDP: Cannot assign"):
            server.bind()
        server.close()
    run(scenario())


def test_workers_share_an_address() -> None:
    async def scenario() -> None:
        loop: Any = context().loop
        service: Any = SimpleNamespace(stats=None, table=TABLE)
        first = UdpListener(loop, SocketAddress("127.0.0.1", 0), service)
        first.bind()
        second = UdpListener(loop, first.address, service)
        second.bind()
        first.close()
        second.close()
    run(scenario())
