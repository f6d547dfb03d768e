"""Names that are not the mesh's: from the cache, or from the servers of resolv.conf.

A client's query becomes a flight, which others join that ask the same meanwhile. A flight asks the fastest server;
without a reply for a while (Server.wait) the next one, and so on, as long as the whole may take; the earlier ones may
still answer. All flights of a worker share one timer (proxy.deadlines). Nothing here waits: ``done`` is called when it
is known what to say.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop
from collections.abc import Iterable
from typing import Any

from proxy.config.model import SocketAddress
from proxy.deadlines import NEVER, Deadlines
from proxy.dns import message
from proxy.dns.cache import DO, STALE_TTL, Cache, Entry, Key, key_of
from proxy.dns.exchange import Exchange
from proxy.dns.fair_queue import FairQueue
from proxy.dns.flight import Done, Flight, Probe, Waiter
from proxy.dns.message import CD, CLASS_IN, RD, REFUSED, SERVFAIL, TC
from proxy.dns.query import Query
from proxy.dns.reply import Reply
from proxy.dns.resolv_conf import without_ourselves
from proxy.dns.servers import Servers
from proxy.dns.settings import DnsSettings
from proxy.dns.stats import DnsStats
from proxy.log import get

log = get("dns")

MAX_ACTIVE = 512
"""Flights that may ask servers at once; each has a socket or a few."""
MAX_ACTIVE_OF_CLIENT = 256
"""Of them for one client (address and port), so that others find a place at once."""
MAX_QUEUED = 2048
MAX_WAITERS = 256
"""Queries that wait for one flight."""
MAX_WAITING = 8192
"""Queries that wait for all of them."""
FEW = 16
"""A client with fewer waiting than this is not who fills these two: for it both are doubled."""
STALE_AFTER = 1.8
"""Seconds without an answer after which an old one is given (RFC 8767 section 5: client response timer)."""
TOO_LATE = 0.01
"""Seconds before its end in which a flight is not started any more."""
STALE_AFTER_DOWN = 0.4
"""The same when no server answered what was asked before. Not 0: it may have been the names, not the servers."""
LOOP_WARNING_EVERY = 60.0

FlightKey = tuple[Key, int]


class Forwarder:
    """One a worker. ``exchange`` is for tests."""

    def __init__(self, loop: AbstractEventLoop, settings: DnsSettings, stats: DnsStats,
                 exchange: Exchange | None = None) -> None:
        self.loop = loop
        self.settings = settings
        self.stats = stats
        self.parallel = settings.parallel
        self.servers = Servers()
        self.deadlines = Deadlines(loop)
        self.exchange = exchange or Exchange(loop, self.deadlines, stats)
        self.cache = Cache(settings.cache_size, settings.cache_max_ttl, settings.serve_stale)
        self.probes: set[Probe] = set()
        self._flights: dict[FlightKey, Flight] = {}
        self._queue: FairQueue[Flight] = FairQueue()
        self._active_of: dict[tuple[object, ...], int] = {}
        self._active = 0
        self._waiting = 0
        self._waiting_of: dict[tuple[object, ...], int] = {}
        self._pumping = False
        self._epoch = 0
        self._warned = -NEVER

    def set_servers(self, addresses: Iterable[SocketAddress]) -> None:
        """Other servers. Those that stay keep their state; the cache is emptied, because others may know other names.

        A server that is our own address is left out, with a warning.
        """
        kept, refused = without_ourselves(addresses, [listen.address for listen in self.settings.listen])
        for address in refused:
            log.warning("DNS server %s is ourselves and is not asked: resolv.conf must name another one", address.text)
        if self.servers.update(kept):
            self._epoch += 1
            self.cache.clear()
            self._count_cache()

    def cached(self, query: Query) -> tuple[bytes, str] | None:
        """The reply and the reason, if the answer is known."""
        now = self.loop.time()
        entry = self.cache.get(key_of(query), now)
        if entry is None:
            return None
        self.stats.cache_hits += 1
        return entry.reply.render(query, int(now - entry.stored)), f"cache hit, {entry.expires - now:.0f} s left"

    def ask(self, query: Query, done: Done) -> None:
        """Find out. To be called when ``cached`` knows nothing; ``done`` may be called before this returns."""
        now = self.loop.time()
        stats = self.stats
        if self.cache.limit:
            stats.cache_misses += 1
        if not self.servers.all:
            stats.upstream_failures_total += 1
            done(message.reply(query, SERVFAIL), "no servers in resolv.conf: SERVFAIL")
            return
        if self.exchange.is_own(query):
            self._warn_of_loop(query, now)
            done(message.reply(query, REFUSED), "our own query to a server came back to us: REFUSED")
            return
        key = key_of(query)
        recursive = query.flags & RD
        if recursive and self._without_asking(key, query, done, now):
            return
        flight = self._flights.get((key, recursive))
        client = query.client[:2]
        waiting = self._waiting_of.get(client, 0)
        factor = 1 if waiting >= FEW else 2
        if self._waiting >= factor * MAX_WAITING or (
                flight is not None and len(flight.waiters) >= factor * MAX_WAITERS):
            self._refuse(query, done)
            return
        self._waiting += 1
        self._waiting_of[client] = waiting + 1
        if flight is not None:
            flight.waiters.append((query, done))
        else:
            self._begin(key, query, [(query, done)], now)

    def explain(self, key: bytes, qtype: int) -> dict[str, Any]:
        """What would be said about a name (in lower case) and from where, for people."""
        now = self.loop.time()
        entries = []
        for bits in (0, DO, CD, DO | CD):
            entry = self.cache.get_stale((key, qtype, CLASS_IN, bits), now)
            if entry is not None:
                entries.append(self._describe(entry, bits, now))
        return {"servers": [server.describe() for server in self.servers.all], "parallel": self.parallel,
                "active": self._active, "queued": len(self._queue), "waiting": self._waiting,
                "cache": {"entries": len(self.cache), "bytes": self.cache.bytes, "limit": self.cache.limit,
                          "found": entries}}

    def close(self) -> None:
        """Stop everything; clients that wait get nothing."""
        flights, self._flights = list(self._flights.values()), {}
        for flight in flights:
            flight.stop()
            waiters, flight.waiters = flight.waiters, []
            for _, done in waiters:
                done(None, "the proxy ends")
        for probe in list(self.probes):
            probe.stop()
        self.exchange.close()
        self.deadlines.close()

    # --- without a flight

    def _without_asking(self, key: Key, query: Query, done: Done, now: float) -> bool:
        """Answer at once what was not answered by any server a moment ago."""
        failure = self.cache.get_failure(key, now)
        flight = self._flights.get((key, RD))
        entry = self.cache.get_stale(key, now) if self.cache.stale else None
        if entry is not None and (failure is not None or (
                entry.missed and (self.servers.all_down() or (flight is not None and flight.late)))):
            self._say_stale(entry, query, done, now)
            if failure is None and flight is None:
                self._begin(key, query, [], now)  # one of the servers may be back
            return True
        if failure is not None:
            done(failure.render(query), f"failed a moment ago: {message.rcode_text(failure.rcode)}")
            return True
        return False

    def _say_stale(self, entry: Entry, query: Query, done: Done, now: float) -> None:
        self.stats.cache_stale += 1
        entry.missed = True
        _call(done, entry.reply.render(query, ttl=STALE_TTL), f"stale for {max(0.0, now - entry.expires):.0f} s")

    def _refuse(self, query: Query, done: Done) -> None:
        self.stats.queue_full_total += 1
        _call(done, message.reply(query, SERVFAIL), "queue full: SERVFAIL")

    def _refuse_all(self, flight: Flight) -> None:
        for query, done in self._take_off(flight):
            self._refuse(query, done)

    def _warn_of_loop(self, query: Query, now: float) -> None:
        if now >= self._warned + LOOP_WARNING_EVERY:
            self._warned = now
            log.warning("DNS query %s to a server came back to this proxy: traffic capture must leave out the user it "
                        "runs as", query.text)

    def _describe(self, entry: Entry, bits: int, now: float) -> dict[str, Any]:
        answers, authority, additional = entry.reply.counts
        return {"dnssec_ok": bool(bits & DO), "checking_disabled": bool(bits & CD),
                "rcode": message.rcode_text(entry.reply.rcode), "negative": entry.reply.negative, "answers": answers,
                "authority": authority, "additional": additional, "age_s": round(now - entry.stored, 1),
                "left_s": round(entry.expires - now, 1), "stale": now >= entry.expires}

    # --- flights

    def _begin(self, key: Key, query: Query, waiters: list[Waiter], now: float) -> None:
        flight = Flight(self, key, query, now, self.settings.forward_timeout)
        flight.waiters = waiters
        flight.epoch = self._epoch
        self._flights[key, query.flags & RD] = flight
        if waiters and self.cache.stale and query.flags & RD and self.cache.get_stale(key, now) is not None:
            flight.stale_at = now + (STALE_AFTER_DOWN if self.servers.all_down() else STALE_AFTER)
        self.deadlines.watch(flight)
        if self._active < MAX_ACTIVE and self._may(flight.client):
            self._start(flight, now)
            return
        flight.queued = True
        self._queue.push(flight.client, flight)
        while len(self._queue) > MAX_QUEUED:
            self._give_up_one()

    def _may(self, client: object) -> bool:
        return self._active_of.get(client, 0) < MAX_ACTIVE_OF_CLIENT  # type: ignore[call-overload, no-any-return]

    def _start(self, flight: Flight, now: float) -> None:
        self._active += 1
        self._active_of[flight.client] = self._active_of.get(flight.client, 0) + 1
        self.stats.upstream_active = self._active
        self.stats.upstream_requests_total += 1
        flight.start(now)

    def _give_up_one(self) -> None:
        """Drop what waits longest of the client with most waiting; others that joined it go on waiting."""
        found = self._queue.longest()
        assert found is not None
        client, flight = found
        self._queue.remove(client, flight)
        others = [waiter for waiter in flight.waiters if waiter[0].client[:2] != client]
        losers = [waiter for waiter in flight.waiters if waiter[0].client[:2] == client]
        flight.waiters = others
        if others:
            flight.client = others[0][0].client[:2]
            self._queue.push(flight.client, flight)
        else:
            self._take_off(flight)
        for query, done in self._no_longer_waiting(losers):
            self._refuse(query, done)

    def _take_off(self, flight: Flight) -> list[Waiter]:
        """Remove a flight; returns who waits for it."""
        del self._flights[flight.key, flight.flags & RD]
        flight.stop()
        if not flight.queued:
            self._active -= 1
            self.stats.upstream_active = self._active
            left = self._active_of[flight.client] - 1
            if left:
                self._active_of[flight.client] = left
            else:
                del self._active_of[flight.client]
        waiters, flight.waiters = flight.waiters, []
        return self._no_longer_waiting(waiters)

    def _no_longer_waiting(self, waiters: list[Waiter]) -> list[Waiter]:
        self._waiting -= len(waiters)
        waiting_of = self._waiting_of
        for query, _ in waiters:
            client = query.client[:2]
            left = waiting_of[client] - 1
            if left:
                waiting_of[client] = left
            else:
                del waiting_of[client]
        return waiters

    def _pump(self) -> None:
        """Start what waits. A flight may end as it starts, which brings us here again: then the outer loop goes on."""
        if self._pumping:
            return
        self._pumping = True
        try:
            while self._active < MAX_ACTIVE and (flight := self._queue.pop(self._may)) is not None:
                now = self.loop.time()
                if flight.end - now > TOO_LATE:
                    self._start(flight, now)
                else:
                    self._refuse_all(flight)
        finally:
            self._pumping = False

    # --- what flights report

    def landed(self, flight: Flight, reply: Reply, why: str) -> None:
        """There is an answer."""
        waiters = self._take_off(flight)
        self._count_duration(flight)
        if flight.flags & RD and flight.epoch == self._epoch:
            self.cache.put(flight.key, reply, self.loop.time())
            self._count_cache()
        for query, done in waiters:
            _call(done, reply.render(query, hidden=0), f"upstream {why}")
        self._pump()

    def crashed(self, flight: Flight, reply: Reply, why: str) -> None:
        """No server has an answer: an old one, or the failure."""
        waiters = self._take_off(flight)
        self._count_duration(flight)
        now = self.loop.time()
        entry = None
        self.stats.upstream_failures_total += 1
        truncated = reply.flags & TC
        if flight.flags & RD and flight.epoch == self._epoch and not truncated:
            self.cache.put_failure(flight.key, reply, now)
            entry = self.cache.get_stale(flight.key, now) if self.cache.stale else None
        if log.debug_on:
            log.debug("%s: %s", message.name_to_text(flight.key[0]), why)
        for query, done in waiters:
            if entry is not None:
                self._say_stale(entry, query, done, now)
            elif truncated and query.tcp:
                _call(done, message.reply(query, SERVFAIL), why)  # TC would only send it where it is already
            else:
                _call(done, reply.render(query, hidden=0), why)
        self._pump()

    def delayed(self, flight: Flight) -> None:
        """It takes long: whoever waits gets what was known; the flight goes on for those who come later."""
        now = self.loop.time()
        entry = self.cache.get_stale(flight.key, now)
        if entry is None:
            return
        waiters, flight.waiters = flight.waiters, []
        for query, done in self._no_longer_waiting(waiters):
            self._say_stale(entry, query, done, now)

    def expired(self, flight: Flight) -> None:
        """It never got its turn."""
        self._queue.remove(flight.client, flight)
        self._refuse_all(flight)

    def _count_duration(self, flight: Flight) -> None:
        durations = self.stats.upstream_request_duration
        elapsed = int((self.loop.time() - flight.started) * 1000)
        durations[elapsed] = durations.get(elapsed, 0) + 1

    def _count_cache(self) -> None:
        self.stats.cache_entries = len(self.cache)
        self.stats.cache_bytes = self.cache.bytes


def _call(done: Done, reply: bytes, why: str) -> None:
    try:
        done(reply, why)
    except Exception as error:
        # One client's defect must not keep the others from their answers.
        log.exception("DNS answer could not be given", error)
