"""The servers to ask: what is known about each, and in which order to ask them.

As in unbound and BIND the fastest that answers is asked, by smoothed round-trip time (RFC 6298). Unlike them the others
are not tried at a client's expense: now and then a query is sent to one of them besides, only to learn how it is.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import Any

from proxy.config.model import SocketAddress
from proxy.log import get

log = get("dns")

FIRST_TRY = 1.0
"""Seconds to wait for a server of which nothing is known yet."""
MIN_TRY, MAX_TRY = 0.4, 2.0
"""Bounds of the wait for one server. A server that knows an answer needs a millisecond; one that must ask others first
may need half a second, and its reply is taken as well when the next one has been asked already."""
DOWN_AFTER = 3
"""Queries in sequence without a reply."""
REFUSES_AFTER = 3
"""Refusals in sequence: it answers, but not us."""
PROBE_IDLE = 10.0
"""Seconds after which a server that is not asked otherwise is asked besides, to know its round-trip time."""
PROBE_BAD = 1.0
"""The same for one that is down, or that did not answer last time; doubled with each probe without a reply."""
PROBE_BAD_MAX = 16.0
WITHOUT_EDNS = 300.0
"""Seconds for which a server that refused an OPT record is asked without."""


class Server:
    """One server. Times are seconds, ``srtt`` is 0 before the first reply."""

    __slots__ = ("address", "asked", "failed", "failures", "family", "last_reply", "next_probe", "no_edns_until",
                 "pending", "probes", "refusals", "replied", "rttvar", "sockaddr", "srtt")

    def __init__(self, address: SocketAddress) -> None:
        self.address = address
        self.family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        self.sockaddr: tuple[Any, ...] | None = None
        self.srtt = 0.0
        self.rttvar = 0.0
        self.failures = 0
        """Tries without a reply that began after the last reply."""
        self.refusals = 0
        self.last_reply = float("-inf")
        self.next_probe = 0.0
        self.probes = 0
        """Probes since the last reply."""
        self.no_edns_until = 0.0
        self.asked = 0
        self.replied = 0
        self.failed = 0
        self.pending = 0
        """Tries under way."""

    def __repr__(self) -> str:
        return f"<Server {self.address.text} {self.state} srtt={self.srtt * 1000:.1f}ms>"

    @property
    def down(self) -> bool:
        """It does not answer."""
        return self.failures >= DOWN_AFTER

    @property
    def state(self) -> str:
        """One word for people."""
        return "down" if self.down else "refusing" if self.refusals >= REFUSES_AFTER else \
            "up" if self.srtt else "unknown"

    @property
    def wait(self) -> float:
        """How long to wait for it before asking the next."""
        first = self.srtt + 4 * self.rttvar if self.srtt else FIRST_TRY
        return min(max(first, MIN_TRY), MAX_TRY)

    @property
    def rank(self) -> tuple[bool, bool, int, float]:
        """Whoever has the lowest is asked first: the fastest of those that answer, then one that is not known yet."""
        return self.down, self.refusals >= REFUSES_AFTER, self.failures, self.srtt or MAX_TRY

    def destination(self) -> tuple[Any, ...]:
        """Its address for socket.connect. Raises OSError, for instance when an IPv6 scope's interface is gone."""
        if self.sockaddr is None or "%" in self.address.host:
            found = socket.getaddrinfo(self.address.host, self.address.port, self.family, socket.SOCK_DGRAM,
                                       flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV)
            self.sockaddr = found[0][4]
        return self.sockaddr

    def answered(self, seconds: float | None, now: float) -> None:
        """A reply came, after so long (None: not to be counted, as over TCP)."""
        self.replied += 1
        if self.failures >= DOWN_AFTER:
            log.info("DNS server %s answers again", self.address.text)
        self.failures = 0
        self.probes = 0
        self.last_reply = now
        self.next_probe = now + PROBE_IDLE
        if seconds is None:
            return
        seconds = max(seconds, 1e-6)
        if self.srtt:
            self.rttvar += (abs(seconds - self.srtt) - self.rttvar) / 4
            self.srtt += (seconds - self.srtt) / 8
        else:
            self.srtt = seconds
            self.rttvar = seconds / 2

    def unanswered(self, asked: float, now: float) -> None:
        """It did not answer in time what it was asked then, or it cannot be reached."""
        self.failed += 1
        # A server that answers others meanwhile is well: it is this one name that takes long.
        if asked >= self.last_reply:
            if not self.failures:
                self.next_probe = now + PROBE_BAD
            self.failures += 1
            if self.failures == DOWN_AFTER:
                log.info("DNS server %s does not answer", self.address.text)

    def probed(self, now: float) -> None:
        """It is asked besides; when to do so again."""
        self.next_probe = now + (min(PROBE_BAD * 2 ** self.probes, PROBE_BAD_MAX) if self.failures else PROBE_IDLE)
        self.probes = min(self.probes + 1, 10)

    def describe(self) -> dict[str, object]:
        """For the admin page."""
        return {"address": self.address.text, "state": self.state, "rtt_ms": round(self.srtt * 1000, 3),
                "rtt_variance_ms": round(self.rttvar * 1000, 3), "unanswered_in_sequence": self.failures,
                "refusals_in_sequence": self.refusals, "asked": self.asked, "replies": self.replied,
                "failures": self.failed, "pending": self.pending}


class Servers:
    """All servers, in the order of resolv.conf."""

    __slots__ = ("all",)

    def __init__(self) -> None:
        self.all: list[Server] = []

    def update(self, addresses: Iterable[SocketAddress]) -> bool:
        """Other addresses; a server that stays keeps what is known about it. Returns whether anything changed."""
        known = {server.address: server for server in self.all}
        new = [known.get(address) or Server(address) for address in dict.fromkeys(addresses)]
        changed = [server.address for server in new] != [server.address for server in self.all]
        self.all = new
        return changed

    def order(self) -> list[Server]:
        """All of them, whom to ask first at the front; equal ones in the file's order."""
        if len(self.all) == 1:
            return self.all
        return sorted(self.all, key=_rank)

    def all_down(self) -> bool:
        """There are servers, and none of them answers."""
        for server in self.all:
            if server.failures < DOWN_AFTER:
                return False
        return bool(self.all)

    def to_probe(self, besides: Server, now: float) -> Server | None:
        """A server whose turn it is to be asked besides the one that is; most times there is none."""
        for server in self.all:
            if now >= server.next_probe and server is not besides:
                server.probed(now)
                return server
        return None


def _rank(server: Server) -> tuple[bool, bool, int, float]:
    return server.rank
