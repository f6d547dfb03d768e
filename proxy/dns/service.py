"""One worker's DNS: what a query is answered with. Memo -> name table -> cache -> servers.

Memos (proxy.dns.memo) hold ready replies by the bytes of a query without its id. Answers of the table stay until it is
swapped, answers of the cache for a second at most.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from proxy.dns import local
from proxy.dns.memo import FadingMemo, Memo
from proxy.dns.message import CLASS_ANY, CLASS_IN, NXDOMAIN, RCODE_MASK, TC, rcode_text
from proxy.dns.query import Address, Query, parse_query
from proxy.dns.stats import DnsStats
from proxy.log import get

if TYPE_CHECKING:
    from proxy.config.model import SocketAddress
    from proxy.dns.forwarder import Forwarder
    from proxy.dns.table import Table

log = get("dns")

LATER = b""
"""What ``answer`` returns when the reply comes by ``respond``."""

MAX_REMEMBERED = 512
"""Bytes of a query that may be remembered."""
MAX_REPLIES = 8_192
"""Bytes of all replies to one query that may be remembered."""
Respond = Callable[[bytes | None, Address], None]
"""Takes the reply that comes later (None: there is none) and the client's address."""


class DnsService:
    """Without sockets: messages in, messages out."""

    def __init__(self, loop: AbstractEventLoop, forwarder: Forwarder, stats: DnsStats) -> None:
        self.forwarder = forwarder
        self.stats = stats
        self.table: Table | None = None
        self.memo = Memo()
        """Answers of the table, until it is swapped."""
        self.fresh = FadingMemo(loop)
        """Answers of the cache, for a second at most."""
        self._turn = 0

    # --- what it knows --------------------------------------------------------------------------------------------

    def set_table(self, table: Table) -> None:
        """Answer from this table from now on; nothing of the one before is kept."""
        self.table = table
        self.memo.clear()
        self.fresh.clear()
        self.stats.name_table_loaded = 1
        self.stats.name_table_names = len(table)
        log.debug("name table with %d names is in force", len(table))

    def set_servers(self, servers: Iterable[SocketAddress]) -> None:
        """Ask these servers from now on."""
        self.forwarder.set_servers(list(servers))
        self.fresh.clear()

    def close(self) -> None:
        """Forget everything; queries under way get no reply."""
        self.memo.clear()
        self.fresh.clear()
        self.forwarder.close()

    def remembered(self, question: bytes) -> bytes | None:
        """The reply without id to a query without id, if a memo has it. udp_batch does the same by itself."""
        if log.debug_on:
            return None  # every query gets its line
        stats = self.stats
        reply = self.memo.get(question)
        if reply is not None:
            stats.answers_local += 1
        else:
            reply = self.fresh.get(question)
            if reply is None:
                return None
            stats.cache_hits += 1
        stats.requests_total += 1
        stats.requests_udp += 1
        return reply()[2]

    # --- queries --------------------------------------------------------------------------------------------------

    def answer(self, packet: bytes, tcp: bool, client: Address, respond: Respond) -> bytes | None:
        """The reply to a message; None: it gets none; LATER: ``respond`` is called once, from a later round of the
        loop or this one."""
        stats = self.stats
        stats.requests_total += 1
        if tcp:
            stats.requests_tcp += 1
        else:
            stats.requests_udp += 1
        query = parse_query(packet, tcp, client)
        if not isinstance(query, Query):
            stats.malformed_total += 1
            if log.debug_on:
                log.debug("%s", _refusal(packet, query, client))
            return query
        reply = self._from_table(query, packet)
        if reply is not None:
            return reply
        cached = self.forwarder.cached(query)
        if cached is not None:
            reply, reason = self._corrected(query, *cached)
            self._settle(query, reply, reason)
            if not tcp and len(packet) <= MAX_REMEMBERED and len(reply) <= MAX_REPLIES:
                self.fresh.keep(packet[2:], [reply])
            return reply

        def done(reply: bytes | None, reason: str) -> None:
            if reply is not None:
                reply, reason = self._corrected(query, reply, reason)
            self._settle(query, reply, reason)
            respond(reply, client)

        self.forwarder.ask(query, done)
        return LATER

    def _from_table(self, query: Query, packet: bytes) -> bytes | None:
        table = self.table
        if table is None or query.qclass not in (CLASS_IN, CLASS_ANY):
            return None
        found = local.answer(table, query, self._turn)
        if found is None:
            return None
        if found.variants > 1:
            # Others do not count: clients ask for A and AAAA in turn, and would get every second rotation.
            self._turn += 1
        self.stats.answers_local += 1
        reply = found.reply
        self._settle(query, reply, found.reason)
        size = len(reply) * found.variants
        if not query.tcp and len(packet) <= MAX_REMEMBERED and size <= MAX_REPLIES and not reply[2] & TC >> 8:
            turns = [found.reply] if found.variants == 1 else [
                one.reply for one in (local.answer(table, query, turn) for turn in range(found.variants))
                if one is not None]
            self.memo.keep(packet[2:], turns)
        return reply

    def _corrected(self, query: Query, reply: bytes, reason: str) -> tuple[bytes, str]:
        table = self.table
        if table is None or (ours := local.corrected(table, query, reply)) is reply:
            return reply, reason
        return ours, f"{reason}: NXDOMAIN for a name of the table"

    def _settle(self, query: Query, reply: bytes | None, reason: str) -> None:
        """Count and log an answer."""
        if reply is not None and reply[2] & TC >> 8:
            self.stats.truncated_total += 1
        if log.debug_on:
            log.debug("%s %s: %s", _address(query.client), query.text, described(reply, reason))

    # --- explain --------------------------------------------------------------------------------------------------

    def explain(self, name: bytes, qtype: int) -> dict[str, Any]:
        """What would be answered to a query over TCP, and why; plain containers. Nothing is asked or counted."""
        query = Query(0, 0x0100, name, qtype, CLASS_IN, tcp=True)
        found = None if self.table is None else local.answer(self.table, query, 0)
        result: dict[str, Any] = {"table": {"loaded": self.table is not None,
                                            "names": 0 if self.table is None else len(self.table)}}
        if found is not None:
            return {"source": "table", "reason": found.reason, "reply": found.reply, **result}
        theirs = self.forwarder.explain(query.key, qtype)
        reason = "no name table yet" if self.table is None else local.passed_on(self.table, query)
        return {"source": "upstream", "reason": reason, "reply": b"", **result, "upstream": theirs}


# --- texts ------------------------------------------------------------------------------------------------------------


def described(reply: bytes | None, reason: str) -> str:
    """``NOERROR, 2 answers (reason)``."""
    if reply is None:
        return f"no reply ({reason})"
    code = reply[3] & RCODE_MASK
    answers = int.from_bytes(reply[6:8], "big")
    cut = ", truncated" if reply[2] & TC >> 8 else ""
    count = "" if code == NXDOMAIN and not answers else f", {answers} answer{'' if answers == 1 else 's'}"
    return f"{rcode_text(code)}{count}{cut} ({reason})"


def _refusal(packet: bytes, reply: bytes | None, client: Address) -> str:
    size = f"message of {len(packet)} bytes from {_address(client)}"
    if reply is None:
        return f"{size} is dropped: expected a query, got {'a reply' if len(packet) >= 12 else 'no whole header'}"
    return f"{size} is no question that is answered here: {rcode_text(reply[3] & RCODE_MASK)}"


def _address(client: Address) -> str:
    if len(client) < 2:
        return "?"
    host, port = client[0], client[1]
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
