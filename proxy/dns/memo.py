"""Ready replies by the bytes of a query without its id: what makes the usual query cheap."""

from __future__ import annotations

import ctypes
from asyncio import AbstractEventLoop, TimerHandle
from collections.abc import Callable
from itertools import cycle, repeat

MAX_QUERIES = 32_768
"""Queries in one memo; a full one is emptied. With 0x20 every spelling of a name is a query of its own."""
MAX_BYTES = 8 << 20
"""The same in bytes of queries and replies."""
FRESH = 1.0
"""Seconds that a reply whose TTLs count down is kept at most: so much later than it should they reach 0."""
STEPS = 16
"""In so many steps a FadingMemo forgets."""

NextReply = Callable[[], tuple[int, int, bytes]]
"""Gives a reply without its id, of several in turn (rotation): where it is in memory, its size, and itself, by which
it stays there. udp_batch hands it to the kernel from where it is."""


class Memo(dict[bytes, NextReply]):
    """Bounded. To be read as the dict that it is."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def keep(self, question: bytes, replies: list[bytes]) -> None:
        """Remember whole replies to a query without its id; several are given in turn. What is there already stays."""
        if question in self:
            return  # the same query twice in one batch
        size = sum(map(len, replies)) + len(question)
        if len(self) >= MAX_QUERIES or self.bytes + size > MAX_BYTES:
            self.clear()
        self.bytes += size
        self[question] = in_turn(replies)

    def clear(self) -> None:
        """Forget all."""
        super().clear()
        self.bytes = 0


class FadingMemo(Memo):
    """One reply a query, each for half to all of FRESH seconds.

    Not all together: after every second in which clients ask for a thousand names, these would come back at once, each
    at the price of a lookup, and the queries behind them would wait.
    """

    def __init__(self, loop: AbstractEventLoop) -> None:
        super().__init__()
        self._loop = loop
        self._steps: list[list[bytes]] = [[] for _ in range(STEPS)]
        self._now = 0
        self._spread = 0
        self._timer: TimerHandle | None = None

    def keep(self, question: bytes, replies: list[bytes]) -> None:
        if question in self:
            return
        super().keep(question, replies)
        self._spread = (self._spread + 1) % (STEPS // 2)
        self._steps[(self._now + STEPS // 2 + self._spread) % STEPS].append(question)
        if self._timer is None:
            self._timer = self._loop.call_later(FRESH / STEPS, self._step)

    def _step(self) -> None:
        self._timer = None
        self._now = (self._now + 1) % STEPS
        over, self._steps[self._now] = self._steps[self._now], []
        for question in over:
            if (take := self.pop(question, None)) is not None:
                self.bytes -= len(question) + take()[1] + 2
        if self:
            self._timer = self._loop.call_later(FRESH / STEPS, self._step)

    def clear(self) -> None:
        super().clear()
        for step in self._steps:
            step.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def in_turn(replies: list[bytes]) -> NextReply:
    """Whole replies as a memo keeps them."""
    ready = []
    for reply in replies:
        rest = reply[2:]
        ready.append((ctypes.cast(ctypes.c_char_p(rest), ctypes.c_void_p).value or 0, len(rest), rest))
    return repeat(ready[0]).__next__ if len(ready) == 1 else cycle(ready).__next__
