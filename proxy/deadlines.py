"""Timeouts without a timer a request: every object stores when it expires, one sweep finds those that have.

Setting a deadline is an assignment and a comparison. A timer of the loop is armed for the earliest deadline that was
ever set since the last sweep; the sweep computes the next one. Deadlines that move away (the usual case: the request
was answered) cost nothing, and the sweep then merely comes once too often.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop, TimerHandle
from typing import Protocol

NEVER = float("inf")
GRAIN = 0.002
"""Seconds; deadlines closer together than this share a sweep."""


class Expiring(Protocol):
    """Something with a deadline: absolute loop time in seconds, ``NEVER`` when nothing is pending."""

    deadline: float

    def on_deadline(self, now: float) -> None:
        """Called once the deadline has passed; sets ``deadline`` anew (``NEVER`` or later)."""


class Deadlines:
    """All expiring objects of one event loop."""

    __slots__ = ("_handle", "_members", "loop", "next")

    def __init__(self, loop: AbstractEventLoop) -> None:
        self.loop = loop
        self.next = NEVER
        self._handle: TimerHandle | None = None
        self._members: set[Expiring] = set()

    def watch(self, member: Expiring) -> None:
        """Include an object in the sweeps; its deadline may still be ``NEVER``."""
        self._members.add(member)
        if member.deadline < self.next:
            self.sooner(member.deadline)

    def unwatch(self, member: Expiring) -> None:
        """Forget an object; harmless when it is not watched."""
        self._members.discard(member)

    def sooner(self, when: float) -> None:
        """Call after setting a deadline that is earlier than ``next``."""
        self.next = when
        if self._handle is not None:
            self._handle.cancel()
        self._handle = self.loop.call_later(max(0.0, when - self.loop.time()) + GRAIN, self._sweep)

    def _sweep(self) -> None:
        self._handle = None
        self.next = NEVER
        now = self.loop.time()
        for member in [m for m in self._members if m.deadline <= now]:
            # An earlier callback of this sweep may have moved or ended this one.
            if member.deadline <= now and member in self._members:
                member.deadline = NEVER
                member.on_deadline(now)
        earliest = min([m.deadline for m in self._members], default=NEVER)
        if earliest < self.next:
            self.sooner(earliest)

    def close(self) -> None:
        """Stop sweeping."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        self._members.clear()
