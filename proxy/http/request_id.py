"""x-request-id: UUID version 4 with Envoy's trace reason in the version digit (UuidRequestIdConfig)."""

from __future__ import annotations

import os
import random
from struct import Struct

NOT_TRACEABLE, SAMPLING, SERVICE_FORCED, CLIENT_FORCED = b"4", b"9", b"a", b"b"
_REASONS = {ord("9"): SAMPLING, ord("a"): SERVICE_FORCED, ord("b"): CLIENT_FORCED}
_AT = 14
"""Position of the version digit, which carries the trace reason."""


class RequestIds:
    """Random ids, made many at once: version and variant bits are set, and dashes put in, over the whole batch."""

    __slots__ = ("_ready",)
    BATCH = 256
    _KEEP = int.from_bytes(bytes.fromhex("ffffffffffff0fff3fffffffffffffff") * BATCH, "big")
    _SET = int.from_bytes(bytes.fromhex("00000000000040008000000000000000") * BATCH, "big")
    _GROUPS = Struct("8s4s4s4s12s")

    def __init__(self) -> None:
        self._ready: list[bytes] = []

    def make(self) -> bytes:
        """A new id, not marked for tracing."""
        ready = self._ready
        if not ready:
            size = 16 * self.BATCH
            bits = int.from_bytes(os.urandom(size), "big") & self._KEEP | self._SET
            text = bits.to_bytes(size, "big").hex().encode()
            ready = self._ready = [b"-".join(groups) for groups in self._GROUPS.iter_unpack(text)]
        return ready.pop()


def is_uuid(request_id: bytes) -> bool:
    """Whether an id has the length of a UUID, which is all that Envoy checks."""
    return len(request_id) == 36


def trace_reason(request_id: bytes) -> bytes:
    """The trace reason digit of an id; NOT_TRACEABLE for any other digit."""
    return _REASONS.get(request_id[_AT], NOT_TRACEABLE)


def with_trace_reason(request_id: bytes, reason: bytes) -> bytes:
    """The id with its trace reason replaced."""
    return request_id[:_AT] + reason + request_id[_AT + 1:]


def sampling_value(request_id: bytes) -> int | None:
    """The id's number in 0..9999 that sampling percentages are compared with (first 8 hex digits modulo 10000)."""
    try:
        return int(request_id[:8], 16) % 10000
    except ValueError:
        return None


def percent_enabled(percent: float, value: int | None) -> bool:
    """Whether a percentage takes this request; without a value a random draw decides."""
    if percent >= 100.0:
        return True
    if percent <= 0.0:
        return False
    return (random.randrange(10000) if value is None else value) < percent * 100
