"""One connection limit, counted exactly over all workers without a lock.

Free places are the count of an eventfd semaphore that all workers inherit: whoever reads 1 from it may serve a
connection, and writes it back afterwards. What each worker holds stands in a word of shared memory that only it
writes, so main can give back what a killed worker held. Always, at rest::

    free + held by all workers - debt = limit

*Debt* is a second semaphore: tokens to be retired because the limit went down, or connections had to be counted that
nobody asked for, while all tokens were held. Whoever takes a token pays debt first, so nobody gets in before there is
room, and the first one does who comes when there is.

A worker may be killed in the middle of an operation; its word says so (``BUSY``), and what is lost then is whatever
the equation lacks (``audit``). Until that is known the limit is too low, never too high.

System V semaphores with SEM_UNDO would need no audit, but cost three times as much (a call through ctypes), end at
32767, and outlive processes that are all killed at once.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from os import eventfd_read as _read
from os import eventfd_write as _write
from pathlib import Path

HELD = (1 << 24) - 1
"""The part of a word that counts connections: more than any process may have descriptors."""
STEP = 1 << 24
"""One operation; they are numbered so that an audit sees whether anything has happened meanwhile."""
CHARGED = 1 << 61
"""What the worker holds are tokens; without it, it only counts."""
BUSY = 1 << 63
"""An operation is under way."""
_OVERFLOW = 1 << 60
"""Numbers of operations begin again here."""
_SOMETIMES = 15 * STEP
"""Zero in every sixteenth operation."""

NO_LIMIT = 1 << 62

LOOKS = 8
"""At the words of all workers, for a moment in which none changes."""

LEFT_TO_TAKERS = 4096
"""Tokens; retiring them costs whoever takes the next one some milliseconds."""
MOST = 1 << 20
"""The highest limit of a pool. Tokens are retired one by one, which takes more than half a second for so many."""


_OWN_LIMIT, _DEBT_SEEN = range(2)
_HEADER = 2


def words_needed(workers: int) -> int:
    """64-bit words of shared memory for one pool."""
    return _HEADER + 3 * workers


def eventfd_count(descriptor: int) -> int:
    """The count of an eventfd (proc(5), fdinfo). Raises OSError, or ValueError where the kernel does not tell."""
    for line in Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "eventfd-count":
            return int(value, 16)
    raise ValueError(f"/proc/self/fdinfo/{descriptor} has no eventfd-count")


class Pool:
    """One limit, as main and each worker sees it. ``memory`` is shared, zeroed, and ``words_needed`` long.

    Main makes it before the fork and calls ``set_limit``, ``reap`` and ``audit``; a worker calls ``attach``, then
    ``take``, ``charge`` and ``release``. A single worker needs no tokens: the limit is compared with its count.
    """

    __slots__ = ("_at", "_charged", "_debt", "_free", "_header", "_own_peak", "_peak", "_peaks", "_refusals", "_word",
                 "_words", "issued", "lost", "workers")

    def __init__(self, memory: memoryview, workers: int) -> None:
        self.workers = workers
        self._header = memory[:_HEADER]
        self._words = memory[_HEADER:_HEADER + workers]
        self._peaks = memory[_HEADER + workers:_HEADER + 2 * workers]
        self._refusals = memory[_HEADER + 2 * workers:_HEADER + 3 * workers]
        self._header[_OWN_LIMIT] = NO_LIMIT
        self._free = self._debt = -1
        if workers > 1:
            flags = os.EFD_SEMAPHORE | os.EFD_NONBLOCK | os.EFD_CLOEXEC
            self._free = os.eventfd(0, flags)
            try:
                self._debt = os.eventfd(0, flags)
            except OSError:
                os.close(self._free)
                raise
        self.issued = 0
        """Main: the limit that the tokens stand for; 0 while only counting."""
        self.lost = False
        """Main: a worker died in the middle of an operation; ``audit`` has to find out what it held."""
        self._at = 0
        self._word = 0
        self._peak = 0
        self._own_peak = 0
        self._charged = False

    @property
    def pool(self) -> Pool:
        """Itself (limits.worker.Place)."""
        return self

    def descriptors(self) -> set[int]:
        """What a worker has to keep open."""
        return {self._free, self._debt} - {-1}

    def close(self) -> None:
        """Close the semaphores (tests; a process closes them by ending)."""
        for descriptor in self.descriptors():
            os.close(descriptor)
        self._free = self._debt = -1

    # --- a worker ---------------------------------------------------------------------------------------------------

    def attach(self, worker: int, charged: bool) -> None:
        """Become the pool of one worker, which holds nothing. ``charged``: a limit is in force."""
        self._at = worker
        self._charged = charged and self.workers > 1
        self._word = self._words[worker] = CHARGED if self._charged else 0
        self._peak = self._peaks[worker]
        self._own_peak = 0

    def take(self) -> bool:
        """Count one more connection if the limit allows it."""
        at, words, word = self._at, self._words, self._word
        if self._charged:
            words[at] = word | BUSY
            try:
                _read(self._free)
                if self._header[_DEBT_SEEN]:
                    self._pay()
            except BlockingIOError:
                self._word = words[at] = word + STEP
                return self._refuse()
            self._word = words[at] = word + (STEP + 1)
        elif word & HELD >= self._header[_OWN_LIMIT]:
            return self._refuse()
        else:
            self._word = words[at] = word + (STEP + 1)
        # What all hold is added up where it is likely to be more than ever: more here than ever, or a refusal.
        if word & HELD >= self._own_peak or not word & _SOMETIMES:
            self._own_peak = max(self._own_peak, (word & HELD) + 1)
            self._note_peak()
        return True

    def _refuse(self) -> bool:
        self._refusals[self._at] += 1
        self._note_peak()
        return False

    def _note_peak(self) -> None:
        if sum(self._words) & HELD > self._peak and (held := self._look()) is not None and held > self._peak:
            self._peak = self._peaks[self._at] = held

    def _look(self) -> int | None:
        """What all hold at one moment; None when there was none in which nobody worked.

        Words that are added up while others change may count one place twice.
        """
        before = list(self._words)
        for _ in range(LOOKS):
            after = list(self._words)
            if after == before:
                return sum(after) & HELD
            before = after
        return None

    def _pay(self) -> None:
        """Retire the token in hand for each debt, and find another. Raises BlockingIOError when there is none."""
        while True:
            try:
                _read(self._debt)
            except BlockingIOError:
                return
            _read(self._free)

    def charge(self, count: int = 1) -> None:
        """Count connections that are there whether or not the limit allows it."""
        words, word = self._words, self._word
        words[self._at] = word | BUSY
        if self._charged and count:
            self._owe(count)
        self._settled(word + count)
        self._note_peak()

    def _owe(self, count: int) -> None:
        header = self._header
        header[_DEBT_SEEN] = 1
        _write(self._debt, count)
        header[_DEBT_SEEN] = 1  # main may have cleared it in between (tidy)

    def release(self) -> None:
        """A connection is over."""
        at, words, word = self._at, self._words, self._word - 1
        if self._charged:
            # Fewer held before more are free: whoever adds up sees too little, never too much.
            words[at] = word | BUSY
            _write(self._free, 1)
            word += STEP
        if word & _OVERFLOW:
            word &= HELD | CHARGED
        self._word = words[at] = word

    def enforce(self, limited: bool) -> None:
        """A limit comes into force (what is held becomes tokens, or debt), or there is none any more."""
        if self.workers == 1 or limited == self._charged:
            return
        word = self._word
        self._words[self._at] = word | BUSY | CHARGED
        if held := word & HELD:
            if limited:
                self._owe(held)
            else:
                _write(self._free, held)
        self._charged = limited
        self._settled(word ^ CHARGED)

    def _settled(self, word: int) -> None:
        self._word = self._words[self._at] = word + STEP

    # --- main -------------------------------------------------------------------------------------------------------

    def set_limit(self, limit: int | None) -> None:
        """Allow so many; None: no limit. Workers have to hear of it when a limit comes or goes (``enforce``).

        Nobody is cut: while more are there than allowed, nobody else gets in.
        """
        if self.workers == 1:
            self._header[_OWN_LIMIT] = NO_LIMIT if limit is None else limit
            return
        if limit is None:
            return  # workers stop asking for the tokens; they stay for the next limit
        more = limit - self.issued
        self.issued = limit
        if more > 0:
            _write(self._free, more)
        elif rest := self._retire(-more):
            self._owe(rest)
        self.tidy()

    def _retire(self, count: int) -> int:
        """Take so many tokens out of use; how many of them were not free."""
        for done in range(count):
            try:
                _read(self._free)
            except BlockingIOError:
                return count - done
        return 0

    def tidy(self) -> None:
        """Retire tokens in bulk, and let takers forget about debt when there is none. Sees how many are held, too.

        The last ones are left to takers: while main has one in its hand that it may have to put back, somebody could
        be refused for whom there is room.
        """
        self._note_held()
        if self.workers == 1 or not self._header[_DEBT_SEEN]:
            return
        try:
            debt, free = eventfd_count(self._debt), eventfd_count(self._free)
        except (OSError, ValueError):
            return  # no descriptor left, or a kernel that does not tell: debt stays with takers
        for _ in range(min(debt, free) - LEFT_TO_TAKERS):
            try:
                _read(self._free)
            except BlockingIOError:
                break
            try:
                _read(self._debt)
            except BlockingIOError:
                _write(self._free, 1)
                break
        if not debt:
            self._header[_DEBT_SEEN] = 0
            try:
                debt = eventfd_count(self._debt)
            except (OSError, ValueError):
                debt = 1  # who knows
            if debt:
                self._header[_DEBT_SEEN] = 1

    def reap(self, worker: int) -> None:
        """Give back what a dead worker held. Its sockets have to be closed: it was waited for."""
        word = self._words[worker]
        self._words[worker] = 0
        if not word & CHARGED:
            return
        if word & BUSY:
            self.lost = True
            self.audit()
        elif word & HELD:
            _write(self._free, word & HELD)

    def audit(self) -> bool:
        """Find what was lost and give it back. False: somebody was at work; try again soon.

        Only when every living worker knows that the limit is in force: before, what it holds is neither token nor debt.
        """
        before = list(self._words)
        try:
            missing = self.issued + eventfd_count(self._debt) - eventfd_count(self._free) - tokens_held(before)
        except (OSError, ValueError):
            return False
        if any(word & BUSY for word in before) or list(self._words) != before:
            return False
        self.lost = False
        if missing > 0:
            _write(self._free, missing)
        elif missing < 0:
            self._owe(-missing)
        return True

    @property
    def in_use(self) -> int:
        """Connections counted now."""
        held = self._note_held()
        return sum(self._words) & HELD if held is None else held

    def _note_held(self) -> int | None:
        held = self._look()
        if held is not None and held > self._peak:
            self._peak = held
        return held

    @property
    def highest(self) -> int:
        """The most that workers or main have seen."""
        return max(self._peak, *self._peaks)

    @property
    def refused(self) -> int:
        """Connections that were not allowed."""
        return sum(self._refusals)


def tokens_held(words: Iterable[int]) -> int:
    """Tokens in these words' workers' hands."""
    return sum(word & HELD for word in words if word & CHARGED)
