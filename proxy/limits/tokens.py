"""One connection limit, counted exactly over all workers without a lock.

Free places are the count of an eventfd semaphore that all workers inherit: whoever reads 1 from it may serve a
connection, and writes it back afterwards. What each worker holds stands in a word of shared memory that only it
writes, so main can give back what a killed worker held. Always, at rest::

    free + held by all workers - debt = limit

*Debt* is a second semaphore: tokens to be retired because the limit went down, or connections had to be counted that
nobody asked for, while all tokens were held. Whoever takes a token pays debt first, so nobody gets in before there is
room, and the first one does who comes when there is.

These are system calls and stores to shared memory, several percent of what a new connection costs. So while there is
ample room (``ROOM``) a worker keeps the tokens of connections that have ended for a moment (a *window*), as *spare*
places for the next ones: plain numbers of its own. Its word counts them as held until they are given back. Close to the
limit there are none: there a place is free for all workers before the client sees its end. Only a worker that is kept
from running for so long that the others fill all the room meanwhile leaves them too little, and never too much.

A worker may be killed in the middle of an operation; its word says so (``BUSY``), and what is lost then is whatever
the equation lacks (``audit``). Until that is known the limit is too low, never too high.

System V semaphores with SEM_UNDO would need no audit, but cost three times as much (a call through ctypes), end at
32767, and outlive processes that are all killed at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from os import eventfd_read as _read
from os import eventfd_write as _write
from pathlib import Path
from typing import Protocol

HELD = (1 << 24) - 1
"""The part of a word that counts connections: more than any process may have descriptors."""
STEP = 1 << 24
"""One operation; they are numbered so that an audit sees whether anything has happened meanwhile."""
_OVERFLOW = 1 << 60
"""Numbers of operations begin again here."""
_SOMETIMES = 30 * STEP
"""Zero in two of 32 operations, one of which is a take where a worker takes and releases in turn."""
CHARGED = 1 << 61
"""What the worker holds are tokens; without it, it only counts."""
BUSY = 1 << 63
"""An operation is under way."""

NO_LIMIT = 1 << 62

LOOKS = 8
"""At the words of all workers, for a moment in which none changes."""

LEFT_TO_TAKERS = 4096
"""Tokens; retiring them costs whoever takes the next one some milliseconds."""
MOST = 1 << 20
"""The highest limit of a pool. Tokens are retired one by one, which takes more than half a second for so many."""
WINDOW = 0.02
"""Seconds after which a worker says how many connections it has, and gives spare tokens back, at the latest."""
SHORTEST = 0.005
"""Seconds that a window for tokens must last to be worth it."""
FASTEST = 30_000
"""Connections a second that a worker could accept at most."""
MOST_SPARE = 63
"""Tokens that a worker may have spare."""
ROOM = MOST_SPARE + int(FASTEST * SHORTEST)
"""Free places for each worker, without which no token may be spare: others could need one before it is given back, and
be refused though there is room."""
_EVERY_PLACE = 1 << 63

_OWN_LIMIT, _DEBT_SEEN, _ISSUED = range(3)
_HEADER = 3


class Timer(Protocol):
    """asyncio.TimerHandle."""

    def cancel(self) -> None:
        """Do not call."""


Later = Callable[[float, Callable[[], None]], Timer]
"""Runs a callback after so many seconds (loop.call_later)."""


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

    Of the places that a worker has in hand some may be spare, which is nobody's business but its own; the others are
    connections. It has some as long as a window is open: tokens where it holds those, else as many as it may fill
    without having more connections than ever.
    """

    __slots__ = ("_alone", "_at", "_charged", "_debt", "_free", "_hand", "_header", "_later", "_own_peak", "_peak",
                 "_peaks", "_refusals", "_room", "_window", "_word", "_words", "issued", "keep", "lost", "spare",
                 "workers")

    def __init__(self, memory: memoryview, workers: int) -> None:
        self.workers = workers
        self._alone = workers == 1
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
        self._hand = 0
        """Connections, and spare places."""
        self.spare = 0
        """A worker: places that may be filled without asking."""
        self.keep = 0
        """A worker: spare places that there may be."""
        self._room = -1
        """Connections up to which places may be spare."""
        self._later: Later | None = None
        self._window: Timer | None = None

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

    def attach(self, worker: int, charged: bool, later: Later | None = None) -> None:
        """Become the pool of one worker, which holds nothing. ``charged``: a limit is in force.

        ``later`` closes windows; without it none is opened.
        """
        self._at = worker
        self._charged = charged and not self._alone
        self._hand = self.spare = self.keep = 0
        self._later = later
        self._window = None
        self._peak = self._peaks[worker]
        self._own_peak = 0
        self._room = self._room_for_spares()
        self._word = self._words[worker] = CHARGED if self._charged else 0

    def _room_for_spares(self) -> int:
        return self._header[_ISSUED] - ROOM * self.workers if self._charged else NO_LIMIT

    def take(self) -> bool:
        """Count one more connection if the limit allows it."""
        if self.spare:
            self.spare -= 1
            return True
        return self.find_place()

    def release(self) -> None:
        """A connection is over."""
        if self.spare < self.keep:
            self.spare += 1
        else:
            self.give_place()

    @property
    def held(self) -> int:
        """Connections of this worker."""
        return self._hand - self.spare

    def find_place(self) -> bool:
        """``take`` when no place is spare."""
        word = self._word
        if self._charged:
            at, words = self._at, self._words
            words[at] = word | BUSY
            try:
                _read(self._free)
                if self._header[_DEBT_SEEN]:
                    self._pay()
            except BlockingIOError:
                self._word = words[at] = word + STEP
                return self._refuse()
            self._hand += 1
            self._word = words[at] = word + (STEP + 1)
        elif self._hand >= self._header[_OWN_LIMIT]:
            self.settle()
            return self._refuse()
        elif self._open_window() and self.spare:
            self.spare -= 1
            return True
        else:
            self._hand += 1
            if self._window is None:
                self._say()
        # What all hold is added up where it is likely to be more than ever: more here than ever, or a refusal.
        if self._hand > self._own_peak or not word & _SOMETIMES:
            self._now_and_then()
        return True

    def give_place(self) -> None:
        """``release`` when no more places may be spare."""
        if self._hand - self.spare <= self._room and self._open_window():
            self.spare += 1
        elif self._charged:
            self._give_tokens(1)
        else:
            self._hand -= 1
            self._say()

    def _give_tokens(self, count: int) -> None:
        at, words, word = self._at, self._words, self._word - count
        self._hand -= count
        # Fewer held before more are free: whoever adds up sees too little, never too much.
        words[at] = word | BUSY
        _write(self._free, count)
        self._word = words[at] = word + STEP

    def _open_window(self) -> bool:
        """For a moment nobody has to know what happens here, if that cannot be in anybody's way."""
        if self._window is not None or self._later is None:
            return False
        if self._charged:
            more_room = self._room - (sum(self._words) & HELD)
            if more_room < 0 or self._header[_DEBT_SEEN]:
                return False
            self.keep = MOST_SPARE
            seconds = min(WINDOW, SHORTEST + more_room / (FASTEST * self.workers))
        else:
            limit = self._header[_OWN_LIMIT]
            if self._hand > limit:
                return False
            # No more than there were before, so that one more than ever is seen.
            self.spare = max(0, min(limit, self._own_peak) - self._hand)
            self._hand += self.spare
            self.keep = _EVERY_PLACE
            seconds = WINDOW
        self._window = self._later(seconds, self.settle)
        return True

    def settle(self) -> None:
        """Give spare places back, and let everybody know how many connections there are."""
        if self._window is None:
            return
        self._window.cancel()
        self._window = None
        self.keep = 0
        spare, self.spare = self.spare, 0
        if not self._charged:
            self._hand -= spare
            self._say()
        elif spare:
            self._give_tokens(spare)
        self._now_and_then()

    def _say(self) -> None:
        """Where there are no tokens: what is held, as everybody sees it."""
        word = (self._word & ~HELD) + STEP | self._hand
        self._word = self._words[self._at] = word

    def _refuse(self) -> bool:
        self._refusals[self._at] += 1
        self._note_peak()
        return False

    def _now_and_then(self) -> None:
        self._own_peak = max(self._own_peak, self._hand)
        if self._word & _OVERFLOW:
            self._word = self._words[self._at] = self._word & (HELD | CHARGED)
        self._note_peak()

    def _note_peak(self) -> None:
        peak = max(self._peak, self._own_peak)
        if sum(self._words) & HELD > peak and (held := self._look()) is not None:
            peak = max(peak, held)
        if peak > self._peak:
            self._peak = self._peaks[self._at] = peak

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
        if self.spare >= count:
            self.spare -= count
            return
        self.settle()
        at, words, word = self._at, self._words, self._word
        words[at] = word | BUSY
        if self._charged:
            self._withdraw(count)
        self._hand += count
        self._word = words[at] = word + STEP + count
        self._now_and_then()

    def _withdraw(self, count: int) -> None:
        """Take so many tokens from those that are free; what is not there becomes debt."""
        for done in range(count):
            try:
                _read(self._free)
            except BlockingIOError:
                self._owe(count - done)
                return

    def _owe(self, count: int) -> None:
        header = self._header
        header[_DEBT_SEEN] = 1
        _write(self._debt, count)
        header[_DEBT_SEEN] = 1  # main may have cleared it in between (tidy)

    def enforce(self, limited: bool) -> None:
        """The limit has changed: it comes into force (what is held becomes tokens, or debt), or there is none any more.
        """
        self.settle()
        if self._alone or limited == self._charged:
            self._room = self._room_for_spares()
            return
        word = self._word
        self._words[self._at] = word | BUSY | CHARGED
        if self._hand:
            if limited:
                self._withdraw(self._hand)
            else:
                _write(self._free, self._hand)
        self._charged = limited
        self._room = self._room_for_spares()
        self._word = self._words[self._at] = (word ^ CHARGED) + STEP

    # --- main -------------------------------------------------------------------------------------------------------

    def set_limit(self, limit: int | None) -> None:
        """Allow so many; None: no limit. Workers have to hear of it (``enforce``).

        Nobody is cut: while more are there than allowed, nobody else gets in.
        """
        if self._alone:
            self._header[_OWN_LIMIT] = NO_LIMIT if limit is None else limit
            return
        if limit is None:
            return  # workers stop asking for the tokens; they stay for the next limit
        more = limit - self.issued
        self.issued = self._header[_ISSUED] = limit
        if more > 0:
            _write(self._free, more)
        else:
            self._withdraw(-more)
        self.tidy()

    def tidy(self) -> None:
        """Retire tokens in bulk, and let takers forget about debt when there is none. Sees how many are held, too.

        The last ones are left to takers: while main has one in its hand that it may have to put back, somebody could
        be refused for whom there is room.
        """
        self._note_held()
        if self._alone or not self._header[_DEBT_SEEN]:
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
        """The most that workers or main have seen: exact for one worker, and for several once one has refused."""
        return max(self._peak, *self._peaks)

    @property
    def refused(self) -> int:
        """Connections that were not allowed."""
        return sum(self._refusals)


def tokens_held(words: Iterable[int]) -> int:
    """Tokens in these words' workers' hands."""
    return sum(word & HELD for word in words if word & CHARGED)
