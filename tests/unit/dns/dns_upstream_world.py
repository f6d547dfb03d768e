"""A forwarder with a clock turned by hand and servers that are the test's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import dns.flags
import dns.message
import dns.rcode
import dns.rrset

from proxy.config.model import SocketAddress
from proxy.deadlines import NEVER
from proxy.dns.exchange import Attempt, Exchange
from proxy.dns.flight import Flight
from proxy.dns.forwarder import Forwarder
from proxy.dns.query import Query, parse_query
from proxy.dns.settings import DnsSettings
from proxy.dns.stats import DnsStats
from tests.unit.http.http_world import Loop

CLIENT = ("10.9.0.1", 40000)
SERVERS = ("10.0.0.1", "10.0.0.2", "10.0.0.3")
SOA = "example. 300 IN SOA ns.example. admin.example. 1 3600 600 86400 60"


def rrsets(*lines: str) -> list[dns.rrset.RRset]:
    """``foo.example. 60 IN A 10.1.1.1 10.1.1.2``; the values of one record have no blanks unless it stands alone."""
    out = []
    for line in lines:
        owner, ttl, rclass, kind, values = line.split(maxsplit=4)
        many = values.split() if kind in ("A", "AAAA") else [values]
        out.append(dns.rrset.from_text(owner, int(ttl), rclass, kind, *many))
    return out


def query_packet(name: str, kind: str = "A", *, edns: int | None = None, do: bool = False, number: int = 7,
                 cd: bool = False, rd: bool = True, ad: bool = False) -> bytes:
    """A client's message."""
    message = dns.message.make_query(name, kind, use_edns=-1 if edns is None and not do else 0,
                                     payload=edns or 1232, want_dnssec=do)
    message.id = number
    message.flags = (dns.flags.RD if rd else 0) | (dns.flags.CD if cd else 0) | (dns.flags.AD if ad else 0)
    return message.to_wire()


def query_of(name: str, kind: str = "A", *, tcp: bool = False, client: tuple[object, ...] = CLIENT,
             **more: Any) -> Query:
    """A client's query, parsed."""
    query = parse_query(query_packet(name, kind, **more), tcp, client)
    assert isinstance(query, Query)
    return query


def response(query: dns.message.Message, answer: tuple[str, ...] = (), authority: tuple[str, ...] = (),
             additional: tuple[str, ...] = (), *, rcode: str = "NOERROR", tc: bool = False, aa: bool = False,
             edns: bool = True) -> bytes:
    """What a server says."""
    message = dns.message.make_response(query, our_payload=4096)
    message.flags |= dns.flags.RA | (dns.flags.TC if tc else 0) | (dns.flags.AA if aa else 0)
    if not edns:
        message.use_edns(-1)
    message.answer.extend(rrsets(*answer))
    message.authority.extend(rrsets(*authority))
    message.additional.extend(rrsets(*additional))
    message.set_rcode(dns.rcode.from_text(rcode))
    return message.to_wire(max_size=65535)


class Sent:
    """One query at one server, which the test answers."""

    def __init__(self, world: World, attempt: Attempt, packet: bytes) -> None:
        self.world, self.attempt, self.packet = world, attempt, packet
        self.cancelled = False
        self.query = dns.message.from_wire(packet)
        attempt.channel = self

    def __repr__(self) -> str:
        return f"<{self.server} {'tcp' if self.attempt.tcp else 'udp'} {self.query.question[0]}>"

    @property
    def server(self) -> str:
        return self.attempt.server.address.host

    def cancel(self) -> None:
        self.cancelled = True
        self.world.open.remove(self)

    def raw(self, message: bytes) -> None:
        """These bytes come, if they match; returns what Exchange would do with others: nothing."""
        assert not self.cancelled
        if self.attempt.matches(message):
            self.world.open.remove(self)
            self.attempt.channel = None
            self.attempt.owner.on_message(self.attempt, message)
        else:
            self.world.stats.upstream_mismatched_total += 1

    def answer(self, *records: str, after: float = 0.0, **more: Any) -> None:
        """A reply, some seconds later."""
        self.world.loop.advance(after)
        self.raw(response(self.query, records, **more))

    def refuse(self, why: str = "Connection refused") -> None:
        """The port is closed."""
        self.world.open.remove(self)
        self.attempt.channel = None
        self.attempt.owner.on_failure(self.attempt, why)


class FakeExchange:
    """Keeps what is sent."""

    def __init__(self) -> None:
        self.world: World
        self.number = 100
        self.own: set[tuple[object, ...]] = set()
        self.error: Callable[[Attempt], OSError | None] = lambda attempt: None

    def new_id(self) -> int:
        self.number += 1
        return self.number

    def is_own(self, query: Query) -> bool:
        return query.client[:2] in self.own

    def send(self, attempt: Attempt, packet: bytes) -> None:
        if (error := self.error(attempt)) is not None:
            raise error
        self.world.open.append(Sent(self.world, attempt, packet))

    def close(self) -> None:
        pass


class Asked:
    """One query of a client and what became of it."""

    def __init__(self, query: Query) -> None:
        self.query = query
        self.replies: list[bytes | None] = []
        self.why = ""

    def done(self, reply: bytes | None, why: str) -> None:
        self.replies.append(reply)
        self.why = why

    @property
    def answered(self) -> bool:
        return bool(self.replies)

    @property
    def message(self) -> dns.message.Message:
        """The one reply."""
        (reply,) = self.replies
        assert reply is not None
        assert len(reply) <= self.query.limit
        message = dns.message.from_wire(reply)
        assert message.id == self.query.id
        assert reply[12:12 + len(self.query.question)] == self.query.question
        assert (message.edns >= 0) == (self.query.edns is not None)
        return message

    @property
    def rcode(self) -> str:
        return dns.rcode.to_text(self.message.rcode())

    @property
    def addresses(self) -> list[str]:
        return [item.to_text() for rrset in self.message.answer for item in rrset]

    @property
    def ttls(self) -> list[int]:
        return [rrset.ttl for rrset in self.message.answer]


class World:
    """``open``: what the servers have not answered yet. ``probes``: servers may be asked only to learn about them."""

    def __init__(self, servers: int = 1, probes: bool = False, **settings: Any) -> None:
        self.loop = Loop()
        self.stats = DnsStats("dns")
        self.exchange = FakeExchange()
        self.exchange.world = self
        self.open: list[Sent] = []
        self.forwarder = Forwarder(cast(Any, self.loop), replace(DnsSettings(), **settings), self.stats,
                                   cast(Exchange, self.exchange))
        self.set_servers(*SERVERS[:servers])
        if not probes:
            for server in self.forwarder.servers.all:
                server.next_probe = NEVER

    def set_servers(self, *hosts: str) -> None:
        self.forwarder.set_servers([SocketAddress(host, 53) for host in hosts])

    def ask(self, name: str = "foo.example.", kind: str = "A", **more: Any) -> Asked:
        """As the service does it: the cache first."""
        asked = Asked(query_of(name, kind, **more))
        known = self.forwarder.cached(asked.query)
        if known is not None:
            asked.done(*known)
        else:
            self.forwarder.ask(asked.query, asked.done)
        return asked

    def take(self, host: str | None = None) -> Sent:
        """The one open query (of a server)."""
        (sent,) = [one for one in self.open if host is None or one.server == host]
        return sent

    @property
    def servers_asked(self) -> list[str]:
        return [one.server for one in self.open]

    def settled(self) -> None:
        """Nothing may be left over."""
        forwarder = self.forwarder
        assert not self.open
        assert not forwarder._flights
        assert not forwarder.probes
        assert len(forwarder._queue) == forwarder._active == forwarder._waiting == 0
        assert not forwarder._active_of
        assert not forwarder._waiting_of
        assert self.stats.upstream_active == 0
        assert not forwarder.deadlines._members
        assert [server.pending for server in forwarder.servers.all] == [0] * len(forwarder.servers.all)

    def flight(self) -> Flight:
        (flight,) = self.forwarder._flights.values()
        return flight
