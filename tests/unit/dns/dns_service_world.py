"""A DnsService without sockets: a forwarder that notes what it is asked, a loop whose timers the test runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import dns.message
import dns.rrset
from dns_tables import external, kubernetes, table_of

from proxy.dns import service as module
from proxy.dns.query import Query
from proxy.dns.service import LATER, DnsService
from proxy.dns.stats import DnsStats

CLIENT = ("127.0.0.1", 40000)
TABLE = table_of(kubernetes("web", "ns1", "10.0.0.1"), kubernetes("three", "ns1", "10.0.1.1", "10.0.1.2", "10.0.1.3"),
                 external("www.google.com", "1.1.1.1"))


class FakeLoop:
    """``call_later`` only."""

    def __init__(self) -> None:
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def call_later(self, delay: float, call: Callable[[], None]) -> Any:
        timer = (delay, call)
        self.timers.append(timer)
        return SimpleNamespace(cancel=lambda: self.timers.remove(timer))

    def run_timers(self) -> None:
        timers, self.timers = self.timers, []
        for _, call in timers:
            call()


class FakeForwarder:
    """Knows what is in ``known`` (key -> function of a query), keeps what it is asked in ``asked``."""

    def __init__(self, stats: DnsStats) -> None:
        self.stats = stats
        self.known: dict[bytes, Callable[[Query], bytes]] = {}
        self.asked: list[tuple[Query, Callable[[bytes | None, str], None]]] = []
        self.servers: list[Any] = []
        self.at_once = False
        self.closed = False

    def cached(self, query: Query) -> tuple[bytes, str] | None:
        make = self.known.get(query.key)
        if make is None:
            return None
        self.stats.cache_hits += 1
        return make(query), "cache hit, 12 s left"

    def ask(self, query: Query, done: Callable[[bytes | None, str], None]) -> None:
        if self.at_once:
            done(reply_to(query), "at once")
        else:
            self.asked.append((query, done))

    def set_servers(self, servers: list[Any]) -> None:
        self.servers = servers

    def explain(self, key: bytes, qtype: int) -> dict[str, Any]:
        return {"key": key, "type": qtype}

    def close(self) -> None:
        self.closed = True


def reply_to(query: Query, address: str = "9.9.9.9", rcode: int = 0) -> bytes:
    """A server's reply."""
    message = dns.message.make_response(dns.message.from_wire(packet_of(query)))
    message.set_rcode(rcode)
    if not rcode:
        message.answer.append(dns.rrset.from_text(message.question[0].name, 60, "IN", "A", address))
    return message.to_wire(max_size=65535)


def packet_of(query: Query) -> bytes:
    return query.id.to_bytes(2, "big") + bytes.fromhex("0100 0001 0000 0000 0000") + query.question


def packet(name: str, kind: str = "A", number: int = 7, **how: Any) -> bytes:
    """A query on the wire."""
    return dns.message.make_query(name, kind, id=number, **how).to_wire(max_size=65535)


class World:
    def __init__(self, table: Any = TABLE) -> None:
        self.loop = FakeLoop()
        self.stats = DnsStats("dns")
        self.forwarder = FakeForwarder(self.stats)
        self.service = DnsService(cast(Any, self.loop), cast(Any, self.forwarder), self.stats)
        if table is not None:
            self.service.set_table(table)
        self.later: list[bytes | None] = []

    def ask(self, wire: bytes, tcp: bool = False) -> bytes | None:
        """One query the whole way: memo, then service."""
        if not tcp and (rest := self.service.remembered(wire[2:])) is not None:
            return wire[:2] + rest
        return self.service.answer(wire, tcp, CLIENT, lambda reply, client: self.later.append(reply))

    def addresses(self, wire: bytes, tcp: bool = False) -> list[str]:
        """The addresses of an answer that comes at once."""
        reply = self.ask(wire, tcp)
        assert reply is not None and reply is not LATER
        assert reply[:2] == wire[:2]
        return [item.address for rrset in dns.message.from_wire(reply).answer for item in rrset]


@contextmanager
def debug_log(monkeypatch: Any) -> Iterator[list[str]]:
    """The lines that the DNS log gets at debug."""
    lines: list[str] = []
    monkeypatch.setattr(module.log, "debug_on", True)
    monkeypatch.setattr(module.log.__class__, "debug", lambda _self, text, *args: lines.append(text % args))
    yield lines
    monkeypatch.undo()


