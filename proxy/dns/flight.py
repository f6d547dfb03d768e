"""One question on its way through the servers, for all clients that wait for the answer."""

from __future__ import annotations

from asyncio import AbstractEventLoop
from collections.abc import Callable
from typing import Protocol

from proxy.deadlines import NEVER, Deadlines
from proxy.dns.cache import DO, Key
from proxy.dns.exchange import OUR_FAULT, Attempt, Exchange
from proxy.dns.message import (
    AD,
    BADVERS,
    CD,
    FORMERR,
    HEADER,
    NOERROR,
    NOTIMP,
    NXDOMAIN,
    OPT,
    RA,
    RD,
    REFUSED,
    SERVFAIL,
    TC,
    rcode_text,
)
from proxy.dns.query import Query
from proxy.dns.reply import BadReply, Reply, parse_reply
from proxy.dns.servers import MAX_TRY, WITHOUT_EDNS, Server, Servers
from proxy.dns.stats import DnsStats
from proxy.log import get

log = get("dns")

UDP_SIZE = 1232
"""What servers are told that we take: a datagram that no IPv6 path fragments ("DNS flag day 2020")."""
MAX_TRIES = 6
"""Queries for one flight, one after the other, unless there are more servers."""
ROUNDS = 3
"""The same when all servers are asked at once."""
YXDOMAIN = 6
"""A DNAME's target is too long (RFC 6672 section 2.2)."""
ANSWERS = frozenset((NOERROR, NXDOMAIN, YXDOMAIN))
"""Codes that answer the question. With others the next server is asked."""

Done = Callable[[bytes | None, str], None]
"""Called once with the reply to a client (None: none) and the reason for it."""
Waiter = tuple[Query, Done]

_OPT = {False: b"\0" + bytes((0, OPT)) + UDP_SIZE.to_bytes(2, "big") + bytes(6),
        True: b"\0" + bytes((0, OPT)) + UDP_SIZE.to_bytes(2, "big") + b"\0\0\x80\0\0\0"}


class Tower(Protocol):
    """What flights need of the forwarder."""

    loop: AbstractEventLoop
    deadlines: Deadlines
    exchange: Exchange
    servers: Servers
    stats: DnsStats
    parallel: bool
    probes: set[Probe]

    def landed(self, flight: Flight, reply: Reply, why: str) -> None:
        """There is an answer."""

    def crashed(self, flight: Flight, reply: Reply, why: str) -> None:
        """No server has an answer; what to say if nothing better is known."""

    def delayed(self, flight: Flight) -> None:
        """``stale_at`` has come."""

    def expired(self, flight: Flight) -> None:
        """It waited in the queue until its end."""


class Flight:
    """``key``: what is asked. ``client``: in whose name it waits in the queue. ``end`` and ``stale_at`` (when clients
    should be given an old answer; NEVER: there is none) are loop time; ``late``: that time has come. ``epoch``: which
    set of servers it asks."""

    __slots__ = ("attempts", "bad", "client", "deadline", "dnssec_ok", "end", "epoch", "flags", "key", "late",
                 "next_try", "order", "plain", "question", "queued", "spent", "stale_at", "started", "tcp", "tower",
                 "tries", "truncated", "waiters", "why")

    def __init__(self, tower: Tower, key: Key, query: Query, now: float, timeout: float) -> None:
        self.tower = tower
        self.key = key
        # In lower case: there are servers that answer so anyway, and the answer is for clients with other cases too.
        self.question = query.key + query.question[-4:]
        # AD: we understand it (RFC 6840 section 5.7), and hide it from clients that do not.
        self.flags = query.flags & (RD | CD) | AD
        self.dnssec_ok = bool(key[3] & DO)
        self.tcp = query.tcp
        """Asked over TCP, so is the server, as pilot-agent does it: the client got TC, or wants to be sure."""
        self.client: tuple[object, ...] = query.client[:2]
        self.waiters: list[Waiter] = []
        self.started = now
        self.end = self.deadline = now + timeout
        self.next_try = NEVER
        self.stale_at = NEVER
        self.late = False
        self.epoch = 0
        self.queued = False
        self.order: list[Server] = []
        self.attempts: list[Attempt] = []
        self.tries = 0
        self.spent: set[Server] = set()
        """Servers that answered, but not well, or cannot be reached."""
        self.plain: set[Server] = set()
        """Servers that refused an OPT record."""
        self.bad: tuple[Reply, Server] | None = None
        self.truncated: Reply | None = None
        self.why = "no server answered"

    def start(self, now: float) -> None:
        """Ask the first server, or all. May end the flight at once."""
        self.queued = False
        self.order = list(self.tower.servers.order())
        self._advance(now)
        if not self.tower.parallel and self.attempts:
            probed = self.tower.servers.to_probe(self.order[0], now)
            if probed is not None:
                Probe(self, probed, now)

    def stop(self) -> None:
        """Nothing is wanted any more."""
        for attempt in self.attempts:
            attempt.server.pending -= 1
            attempt.cancel()
        self.attempts.clear()
        self.tower.deadlines.unwatch(self)

    def packet(self, number: int, edns: bool) -> bytes:
        """The query for a server."""
        head = HEADER.pack(number, self.flags, 1, 0, 0, 1 if edns else 0)
        return head + self.question + _OPT[self.dnssec_ok] if edns else head + self.question

    # --- asking

    def _advance(self, now: float) -> None:
        """Ask whoever is next. Otherwise there may still be replies to come; otherwise the flight ends."""
        if self.truncated is not None:
            # One attempt over TCP is all: a client with a truncated reply may try for itself.
            live = [attempt.expires for attempt in self.attempts if attempt.tcp and not attempt.unanswered]
            if live:
                self.next_try = min(live)
                self._arm()
            else:
                self._crash()
            return
        asked = self._ask_all(now) if self.tower.parallel else self._ask_next(now)
        if not asked:
            self.next_try = NEVER
            # A server that has answered once, not well, is not waited for any more.
            if all(attempt.server in self.spent for attempt in self.attempts):
                self._crash()
                return
        self._arm()

    def _ask_next(self, now: float) -> bool:
        order = self.order
        limit = max(MAX_TRIES, len(order))
        while self.tries < limit and len(self.spent) < len(order):
            turn, place = divmod(self.tries, len(order))
            self.tries += 1
            server = order[place]
            if server in self.spent:
                continue
            wait = min(server.wait * 2 ** turn, MAX_TRY)
            # A server without TCP is asked over UDP in the next round.
            if self._send(server, now, wait, self.tcp and not turn):
                self.next_try = now + wait
                return True
        return False

    def _ask_all(self, now: float) -> bool:
        if now < self.next_try and any(attempt.server not in self.spent for attempt in self.attempts):
            return True
        if self.tries >= ROUNDS:
            return False
        turn, self.tries = self.tries, self.tries + 1
        self.next_try = now + MAX_TRY
        asked = [self._send(server, now, MAX_TRY, self.tcp and not turn)
                 for server in self.order if server not in self.spent]
        return any(asked)

    def _send(self, server: Server, now: float, wait: float, tcp: bool, edns: bool = True) -> bool:
        tower = self.tower
        edns = edns and now >= server.no_edns_until
        number = tower.exchange.new_id()
        attempt = Attempt(self, server, self.question, number, tcp, edns, now, now + wait)
        try:
            tower.exchange.send(attempt, self.packet(number, edns))
        except OSError as error:
            self._lost(attempt, error.strerror or str(error), error.errno not in OUR_FAULT, now)
            return False
        server.asked += 1
        server.pending += 1
        self.attempts.append(attempt)
        return True

    def _lost(self, attempt: Attempt, why: str, its_fault: bool, now: float) -> None:
        server = attempt.server
        self.why = f"{server.address.text}: {why}"
        if not attempt.tcp or self.truncated is not None:
            self.spent.add(server)
        if its_fault and not attempt.tcp and not attempt.unanswered:
            server.unanswered(attempt.sent, now)

    def _arm(self) -> None:
        self.deadline = min(self.end, self.next_try, self.stale_at)
        if self.deadline < self.tower.deadlines.next:
            self.tower.deadlines.sooner(self.deadline)

    # --- what comes

    def on_message(self, attempt: Attempt, message: bytes) -> None:
        """A server replied."""
        tower, server = self.tower, attempt.server
        now = tower.loop.time()
        self._ended(attempt)
        server.answered(None if attempt.tcp else now - attempt.sent, now)
        try:
            reply = parse_reply(message, self.question)
        except BadReply as error:
            if message[2] & TC >> 8 and not attempt.tcp:
                reply = Reply(TC | RA, NOERROR)  # cut somewhere, by a server that does not count records
            else:
                tower.stats.upstream_mismatched_total += 1
                self.why = f"bad reply of {server.address.text}: {error}"
                self.spent.add(server)
                self._advance(now)
                return
        if reply.flags & TC and not attempt.tcp:
            self._over_tcp(reply, server, now)
        elif reply.rcode in ANSWERS:
            server.refusals = 0
            if server in self.plain and not attempt.edns:
                server.no_edns_until = now + WITHOUT_EDNS
            tower.landed(self, reply, f"{server.address.text} in {(now - attempt.sent) * 1000:.1f} ms"
                                      f"{' over TCP' if attempt.tcp else ''}")
        elif reply.rcode in (FORMERR, NOTIMP, BADVERS) and attempt.edns and server not in self.plain:
            self.plain.add(server)
            if self._send(server, now, server.wait, attempt.tcp, edns=False):
                self.next_try = now + server.wait
                self._arm()
            else:
                self._advance(now)
        else:
            self._refused(reply, server, now)

    def _refused(self, reply: Reply, server: Server, now: float) -> None:
        if reply.rcode == REFUSED:
            server.refusals += 1
        self.spent.add(server)
        self.why = f"{rcode_text(reply.rcode)} of {server.address.text}"
        if self.bad is None:
            self.bad = reply, server
        self._advance(now)

    def _over_tcp(self, reply: Reply, server: Server, now: float) -> None:
        """The reply was too large for a datagram."""
        self.truncated = reply
        if any(attempt.tcp for attempt in self.attempts):
            return  # two tries got such a reply
        self.tower.stats.upstream_tcp_retries_total += 1
        if self._send(server, now, MAX_TRY, tcp=True):
            self.next_try = now + MAX_TRY
            self._arm()
        else:
            self._advance(now)

    def on_failure(self, attempt: Attempt, why: str) -> None:
        """A server cannot be reached."""
        now = self.tower.loop.time()
        self._ended(attempt)
        self._lost(attempt, why, True, now)
        self._advance(now)

    def _ended(self, attempt: Attempt) -> None:
        attempt.server.pending -= 1
        self.attempts.remove(attempt)

    def on_deadline(self, now: float) -> None:
        """Time for the next server, for an old answer, or for the end."""
        if self.queued:
            self.tower.expired(self)
            return
        self.deadline = self.end
        over = now >= self.end
        for attempt in self.attempts:
            if not attempt.unanswered and (over or now >= attempt.expires):
                attempt.unanswered = True
                self.why = f"{attempt.server.address.text} did not answer in time"
                self.tower.stats.upstream_timeouts_total += 1
                if not attempt.tcp:
                    attempt.server.unanswered(attempt.sent, now)
        if over:
            self._crash()
            return
        if now >= self.stale_at:
            self.stale_at = NEVER
            self.late = True
            self.tower.delayed(self)
        if now >= self.next_try:
            self._advance(now)
        else:
            self.deadline = min(self.end, self.next_try, self.stale_at)

    def _crash(self) -> None:
        """Of what the servers said the best is passed on: a truncated answer, a refusal, or nothing."""
        if self.truncated is not None:
            self.tower.crashed(self, self.truncated, f"truncated, and no answer over TCP: {self.why}")
        elif self.bad is not None:
            reply, server = self.bad
            # Codes above 15 are between the server and us (RFC 6891 section 9).
            reply = reply if reply.rcode < 16 else Reply(RA, SERVFAIL)
            self.tower.crashed(self, reply, f"all upstreams failed: {rcode_text(reply.rcode)} of {server.address.text}")
        else:
            self.tower.crashed(self, Reply(RA, SERVFAIL), f"all upstreams failed: SERVFAIL ({self.why})")


class Probe:
    """A flight's question asked of one more server, only to learn whether and how fast it answers."""

    __slots__ = ("attempt", "deadline", "tower")

    def __init__(self, flight: Flight, server: Server, now: float) -> None:
        self.tower = flight.tower
        self.deadline = now + MAX_TRY
        exchange = self.tower.exchange
        number = exchange.new_id()
        edns = now >= server.no_edns_until
        self.attempt = Attempt(self, server, flight.question, number, False, edns, now, self.deadline)
        try:
            exchange.send(self.attempt, flight.packet(number, edns))
        except OSError as error:
            if error.errno not in OUR_FAULT:
                server.unanswered(now, now)
            return
        server.asked += 1
        server.pending += 1
        self.tower.probes.add(self)
        self.tower.deadlines.watch(self)

    def on_message(self, attempt: Attempt, message: bytes) -> None:
        """It is there."""
        now = self.tower.loop.time()
        attempt.server.answered(now - attempt.sent, now)
        attempt.server.refusals = attempt.server.refusals + 1 if message[3] & 15 == REFUSED else 0
        self.stop()

    def on_failure(self, attempt: Attempt, why: str) -> None:
        """It cannot be reached."""
        attempt.server.unanswered(attempt.sent, self.tower.loop.time())
        self.stop()

    def on_deadline(self, now: float) -> None:
        """It does not answer."""
        self.attempt.server.unanswered(self.attempt.sent, now)
        self.stop()

    def stop(self) -> None:
        """The end."""
        self.attempt.server.pending -= 1
        self.attempt.cancel()
        self.tower.probes.discard(self)
        self.tower.deadlines.unwatch(self)
