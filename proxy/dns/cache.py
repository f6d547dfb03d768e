"""Answers of the servers, kept for as long as their TTLs allow. One a worker, bounded in entries and in bytes.

What is evicted: entries wait in a line; the first that was not used since it last stood there goes, a used one goes to
the end instead. So a flood of names that are asked once does not push out those that are in use, and a hit costs one
assignment instead of a move in a list.
"""

from __future__ import annotations

from collections import OrderedDict

from proxy.dns.message import CD
from proxy.dns.query import Query
from proxy.dns.reply import Reply

BYTES_PER_ENTRY = 2048
"""Of memory, on average: what ``entries`` allows in all. Few answers are larger, and those leave room for fewer."""
LEAST_BYTES = 256 * 1024
"""Room for two replies of the largest size, however few entries there may be."""
FAILURE_TTL = 1.0
"""Seconds for which a failure is repeated instead of asking again: the least that RFC 9520 section 3.2 demands. (RFC
2308 section 7 would allow five minutes, but that a server works again should be noticed at once.)"""
FAILURES = 4096
STALE_TTL = 30
"""TTL of a stale answer (RFC 8767 section 5)."""
CHANCES = 1024
"""Used entries that one eviction lets pass at most: a fraction of a millisecond."""

DO = 0x8000
Key = tuple[bytes, int, int, int]
"""All on which an answer depends: name in lower case, type, class, and the flags CD and DO."""


def key_of(query: Query) -> Key:
    """The key of a query."""
    return query.key, query.qtype, query.qclass, query.flags & CD | (DO if query.dnssec_ok else 0)


class Entry:
    """One answer. ``stored`` and ``expires`` are loop time. ``missed``: it was needed as a stale one already, because
    no server answered."""

    __slots__ = ("expires", "missed", "reply", "stored", "used")

    def __init__(self, reply: Reply, stored: float, expires: float) -> None:
        self.reply = reply
        self.stored = stored
        self.expires = expires
        self.used = False
        self.missed = False


class Cache:
    """``entries``: 0 switches it off. ``max_ttl`` and ``stale`` (how long after its end an entry is of use) are
    seconds. ``now`` is loop time everywhere."""

    __slots__ = ("_entries", "_failures", "bytes", "limit", "limit_bytes", "max_ttl", "stale")

    def __init__(self, entries: int, max_ttl: float, stale: float) -> None:
        self.limit = entries
        self.limit_bytes = max(entries * BYTES_PER_ENTRY, LEAST_BYTES)
        self.max_ttl = max_ttl
        self.stale = stale
        self.bytes = 0
        self._entries: OrderedDict[Key, Entry] = OrderedDict()
        self._failures: OrderedDict[Key, tuple[float, Reply]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Key, now: float) -> Entry | None:
        """What is known and still valid."""
        entry = self._entries.get(key)
        if entry is None or now >= entry.expires:
            return None
        entry.used = True
        return entry

    def get_stale(self, key: Key, now: float) -> Entry | None:
        """What was valid until at most ``stale`` seconds ago (or is valid)."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if now >= entry.expires + self.stale:
            self._remove(key, entry)
            return None
        entry.used = True
        return entry

    def put(self, key: Key, reply: Reply, now: float) -> bool:
        """An answer came: it takes the place of the one before. Returns whether it is kept."""
        self._failures.pop(key, None)
        old = self._entries.get(key)
        if old is not None:
            self._remove(key, old)
        ttl = min(reply.ttl, self.max_ttl)
        if ttl <= 0 or not self.limit:
            return False
        size = reply.size
        # First, lest the new one is the only one that was not used yet.
        while self._entries and (len(self._entries) >= self.limit or self.bytes + size > self.limit_bytes):
            self._evict(now)
        self._entries[key] = Entry(reply, now, now + ttl)
        self.bytes += size
        return True

    def put_failure(self, key: Key, reply: Reply, now: float) -> None:
        """Repeat a failure for a moment. An answer from before stays, for when it may be given as a stale one."""
        if not self.limit:
            return
        self._failures[key] = now + FAILURE_TTL, reply
        self._failures.move_to_end(key)
        while len(self._failures) > FAILURES:
            self._failures.popitem(last=False)

    def get_failure(self, key: Key, now: float) -> Reply | None:
        """How the last attempt failed, if that was just now."""
        found = self._failures.get(key)
        if found is None:
            return None
        if now >= found[0]:
            del self._failures[key]
            return None
        return found[1]

    def clear(self) -> None:
        """Forget everything: other servers may know other names."""
        self._entries.clear()
        self._failures.clear()
        self.bytes = 0

    def _evict(self, now: float) -> None:
        entries = self._entries
        for _ in range(CHANCES):
            key, entry = next(iter(entries.items()))
            if not entry.used or now >= entry.expires + self.stale:
                break
            entry.used = False
            entries.move_to_end(key)
        else:
            key, entry = next(iter(entries.items()))
        self._remove(key, entry)

    def _remove(self, key: Key, entry: Entry) -> None:
        del self._entries[key]
        self.bytes -= entry.reply.size
