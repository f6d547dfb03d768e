"""One pool of tokens: workers that share it, limits that change, workers that die between any two system calls."""

from __future__ import annotations

import copy
import mmap
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from proxy.limits import tokens
from proxy.limits.tokens import Pool, eventfd_count, words_needed

WORKERS = 3


class Killed(BaseException):
    """What SIGKILL would be."""


class Window:
    """A worker's timer (tokens.Timer)."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self.over = callback
        self.of: object = getattr(callback, "__self__", None)

    def cancel(self) -> None:
        self.over = lambda: None


class Family:
    """Main's pool and that of each worker, in one process: what they share is shared, what they know is their own.

    ``windows``: workers may open some; whoever wants to see the end of one calls ``pass_time``.
    """

    def __init__(self, workers: int = WORKERS, limit: int | None = None, windows: bool = False) -> None:
        self.windows: list[Window] | None = [] if windows else None
        memory = memoryview(mmap.mmap(-1, 8 * words_needed(workers))).cast("Q")
        self.main = Pool(memory, workers)
        self.limited = limit is not None
        self.main.set_limit(limit)
        self.workers: list[Pool] = []
        self.workers += map(self.fork, range(workers))

    def fork(self, at: int) -> Pool:
        worker = copy.copy(self.main)
        if self.windows is not None and at < len(self.workers):
            self.windows = [window for window in self.windows if window.of is not self.workers[at]]
        worker.attach(at, self.limited, None if self.windows is None else self.later)
        return worker

    def later(self, seconds: float, callback: Callable[[], None]) -> Window:
        assert self.windows is not None and tokens.SHORTEST <= seconds <= tokens.WINDOW
        self.windows.append(Window(callback))
        return self.windows[-1]

    def pass_time(self) -> None:
        """All windows are over."""
        while self.windows:
            self.windows.pop().over()

    def set_limit(self, limit: int | None) -> None:
        """As main does it, with every worker following."""
        self.main.set_limit(limit)
        self.limited = limit is not None
        for worker in self.workers:
            worker.enforce(self.limited)

    def replace(self, at: int) -> None:
        """A worker is dead: main reaps it and forks another one."""
        self.main.reap(at)
        assert not self.main.lost, "nobody else was at work"
        self.workers[at] = self.fork(at)

    @property
    def free(self) -> int:
        return eventfd_count(self.main._free)

    @property
    def debt(self) -> int:
        return eventfd_count(self.main._debt)

    def close(self) -> None:
        self.main.close()


@pytest.fixture
def family() -> Iterator[Callable[..., Family]]:
    made: list[Family] = []

    def make(*arguments: int | None) -> Family:
        made.append(Family(*arguments))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def no_room_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "ROOM", 0)


@contextmanager
def killed_at(call: int, before: bool) -> Iterator[list[int]]:
    """Die before or after the effect of a system call, counted from 0; yields how many were made."""
    made = [0]
    originals = tokens._read, tokens._write

    def dying(original: Callable[..., int | None]) -> Callable[..., int | None]:
        def system_call(*arguments: int) -> int | None:
            at, made[0] = made[0], made[0] + 1
            if at == call and before:
                raise Killed
            try:
                return original(*arguments)
            finally:
                if at == call:
                    raise Killed

        return system_call

    tokens._read, tokens._write = map(dying, originals)  # type: ignore[assignment]
    try:
        yield made
    finally:
        tokens._read, tokens._write = originals


def takes(pool: Pool, times: int) -> list[bool]:
    return [pool.take() for _ in range(times)]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_as_many_as_allowed_wherever_they_are(family: Callable[..., Family], workers: int) -> None:
    pools = family(workers, 4)
    one, other = pools.workers[0], pools.workers[-1]
    assert takes(one, 3) == [True] * 3
    assert takes(other, 3) == [True, False, False]
    one.release()
    assert takes(other, 2) == [True, False]
    assert (pools.main.in_use, pools.main.highest, pools.main.refused) == (4, 4, 3)


@pytest.mark.parametrize("workers", [1, 3])
def test_nobody_gets_in_before_there_is_room(family: Callable[..., Family], workers: int) -> None:
    pools = family(workers, 5)
    one, other = pools.workers[0], pools.workers[-1]
    takes(one, 5)
    pools.main.set_limit(2)  # workers need not be told
    for _ in range(3):
        assert not other.take()
        one.release()
    assert not other.take()
    one.release()
    assert takes(other, 2) == [True, False]
    pools.main.set_limit(4)
    assert takes(other, 3) == [True, True, False]


@pytest.mark.parametrize("workers", [1, 3])
def test_a_limit_that_comes_and_goes(family: Callable[..., Family], workers: int) -> None:
    pools = family(workers, None)
    one, other = pools.workers[0], pools.workers[-1]
    takes(one, 3)
    pools.set_limit(2)
    assert not other.take() and not one.take()
    one.release()
    assert not other.take()
    one.release()
    assert takes(other, 2) == [True, False]
    pools.set_limit(None)
    assert takes(other, 3) == [True] * 3
    pools.set_limit(5)
    assert not one.take() and pools.main.in_use == 5
    other.release()
    assert takes(one, 2) == [True, False]


def test_what_is_charged_counts_though_there_is_no_room(family: Callable[..., Family]) -> None:
    pools = family(2, 2)
    one, other = pools.workers
    one.take()
    one.charge(3)
    assert (pools.main.in_use, pools.main.highest) == (4, 4)
    one.release()
    one.release()
    assert not other.take()
    one.release()
    assert takes(other, 2) == [True, False]


@pytest.mark.parametrize("windows", [False, True])
def test_what_is_charged_while_there_is_room_leaves_no_debt(family: Callable[..., Family], windows: bool) -> None:
    pools = family(2, 3000, windows)
    one, other = pools.workers
    for _ in range(5):
        one.charge(3)
        for _ in range(3):
            one.release()
    pools.pass_time()
    assert (pools.free, pools.debt, pools.main.in_use, pools.main.highest) == (3000, 0, 0, 3)
    with killed_at(-1, before=True) as calls:
        other.take()
    assert calls == [1], "nobody looks for debt"


@pytest.mark.usefixtures("no_room_needed")
def test_what_is_charged_goes_to_spare_tokens_first(family: Callable[..., Family]) -> None:
    pools = family(2, 5, True)
    one = pools.workers[0]
    takes(one, 4)
    one.release()
    one.release()
    with killed_at(-1, before=True) as calls:
        one.charge(2)
        assert calls == [0] and one.held == 4
    one.release()
    one.charge(3)
    assert (one.held, pools.free, pools.debt, pools.main.in_use) == (6, 0, 1, 6)


def test_what_is_free_is_retired_at_once(family: Callable[..., Family]) -> None:
    pools = family(2, 100)
    one, other = pools.workers
    takes(one, 4)
    pools.main.set_limit(10)
    assert (pools.free, pools.debt) == (6, 0), "takers have nothing to pay"
    pools.main.set_limit(1)
    assert (pools.free, pools.debt) == (0, 3)
    assert not other.take()


def test_retired_in_bulk(family: Callable[..., Family], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "LEFT_TO_TAKERS", 3)
    pools = family(2, 100)
    takes(pools.workers[1], 100)
    pools.main.set_limit(10)
    assert (pools.free, pools.debt) == (0, 90)
    for _ in range(100):
        pools.workers[1].release()
    pools.main.tidy()
    assert (pools.free, pools.debt) == (13, 3)
    assert takes(pools.workers[0], 11) == [True] * 10 + [False]
    assert pools.debt == 0
    pools.main.tidy()
    with killed_at(-1, before=True) as calls:
        pools.workers[0].take()
    assert calls == [1], "nobody looks for debt when there is none"


@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), ValueError("no eventfd-count")])
def test_counts_that_cannot_be_read(family: Callable[..., Family], monkeypatch: pytest.MonkeyPatch, error: Exception
                                    ) -> None:
    pools = family(2, 3)
    one, other = pools.workers
    takes(one, 2)
    with pytest.raises(Killed), killed_at(0, before=False):
        other.take()

    def fail(_: int) -> int:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(tokens, "eventfd_count", fail)
        pools.main.reap(1)
        assert pools.main.lost, "it is looked for again"
        pools.main.set_limit(1)
        pools.main.tidy()
        assert takes(pools.fork(1), 1) == [False]
    assert pools.main.audit()
    one.release()
    one.release()
    assert takes(one, 2) == [True, False]


def test_the_highest_is_not_less_than_what_is_in_use(family: Callable[..., Family]) -> None:
    pools = family(2, 10)
    one, other = pools.workers
    for worker in (one, other):
        takes(worker, 2)
        worker.release()
        worker.release()
    takes(one, 2)
    takes(other, 2)
    assert (pools.main.in_use, pools.main.highest) == (4, 4)


def test_numbers_of_operations_begin_again(family: Callable[..., Family]) -> None:
    pools = family(2, 5)
    worker = pools.workers[0]
    takes(worker, 3)
    worker._word = worker._words[0] = tokens._OVERFLOW | tokens.CHARGED | 3
    takes(worker, 1)
    assert worker._words[0] == tokens.CHARGED + 4
    assert pools.main.in_use == 4


@pytest.mark.parametrize("odd", [False, True])
def test_the_highest_number_is_seen_where_nobody_holds_more_than_before(family: Callable[..., Family], odd: bool
                                                                        ) -> None:
    pools = family(2, 20)
    one, other = pools.workers
    for worker in (one, other):  # each has held ten, one after the other
        takes(worker, 10)
        for _ in range(10):
            worker.release()
    if odd:
        takes(one, 7)
        one.charge(2)  # in one operation
    else:
        takes(one, 9)
    takes(other, 9)
    for _ in range(16):
        one.release()
        one.take()
    assert pools.main.highest == 18


def test_an_audit_waits_for_a_quiet_moment(family: Callable[..., Family]) -> None:
    pools = family(2, 3)
    one, other = pools.workers
    with pytest.raises(Killed), killed_at(0, before=False):
        one.take()
    working = other._words[1] = other._words[1] | tokens.BUSY
    pools.main.reap(0)
    assert pools.main.lost and not pools.main.audit()
    assert takes(pools.fork(0), 3) == [True, True, False], "until then the limit is too low"
    other._words[1] = working & ~tokens.BUSY
    assert pools.main.audit() and not pools.main.lost
    assert takes(other, 2) == [True, False]


def test_an_audit_sees_that_something_happened_meanwhile(family: Callable[..., Family],
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    pools = family(2, 3)
    one, other = pools.workers
    with pytest.raises(Killed), killed_at(0, before=False):
        one.take()
    counted = eventfd_count

    def slow(descriptor: int) -> int:
        count = counted(descriptor)
        other.take()
        other.release()
        return count

    monkeypatch.setattr(tokens, "eventfd_count", slow)
    pools.main.reap(0)
    assert pools.main.lost
    monkeypatch.undo()
    assert pools.main.audit()
    assert takes(other, 4) == [True, True, True, False]


@pytest.mark.usefixtures("no_room_needed")
def test_a_spare_token_costs_no_system_call_and_all_that_are_left_one(family: Callable[..., Family]) -> None:
    pools = family(2, 5, True)
    one, other = pools.workers
    takes(one, 4)
    with killed_at(-1, before=True) as calls:
        for _ in range(4):
            one.release()
        assert takes(one, 1) == [True] and calls == [0]
        assert (pools.free, one.held, pools.main.in_use) == (1, 1, 4), "main hears of it before long"
        pools.pass_time()
        assert calls == [1]
    assert (pools.free, one.held, pools.main.in_use) == (4, 1, 1)
    assert takes(other, 5) == [True] * 4 + [False]
    assert pools.main.highest == 5


def test_close_to_the_limit_a_place_is_free_at_once(family: Callable[..., Family]) -> None:
    room = 2 * tokens.ROOM
    pools = family(2, room + 2, True)
    one = pools.workers[0]
    takes(one, 3)
    one.release()
    assert (pools.free, pools.windows) == (room, [])
    one.release()
    assert (pools.free, len(pools.windows or ())) == (room, 1)
    pools.pass_time()
    assert (pools.free, pools.main.in_use) == (room + 1, 1)


@pytest.mark.usefixtures("no_room_needed")
def test_spare_tokens_are_bounded(family: Callable[..., Family]) -> None:
    pools = family(2, tokens.MOST_SPARE + 9, True)
    one = pools.workers[0]
    takes(one, tokens.MOST_SPARE + 9)
    for _ in range(tokens.MOST_SPARE + 9):
        one.release()
    assert (pools.free, one.held) == (9, 0)
    pools.pass_time()
    assert (pools.free, pools.main.in_use) == (tokens.MOST_SPARE + 9, 0)


@pytest.mark.usefixtures("no_room_needed")
def test_there_are_no_spare_tokens_while_there_is_debt(family: Callable[..., Family]) -> None:
    pools = family(2, 4, True)
    one, other = pools.workers
    takes(one, 2)
    other.charge(3)
    one.release()
    assert (pools.windows, pools.free, pools.debt) == ([], 1, 1)


@pytest.mark.usefixtures("no_room_needed")
def test_spare_tokens_of_a_dead_worker_come_back(family: Callable[..., Family]) -> None:
    pools = family(2, 4, True)
    takes(pools.workers[0], 3)
    pools.workers[0].release()
    pools.replace(0)
    assert takes(pools.workers[1], 5) == [True] * 4 + [False]


@pytest.mark.parametrize(("workers", "limit"), [(1, None), (1, 9), (3, None)])
def test_without_tokens_everybody_hears_of_it_when_the_window_is_over(family: Callable[..., Family], workers: int,
                                                                      limit: int | None) -> None:
    pools = family(workers, limit, True)
    worker = pools.workers[0]
    takes(worker, 5)
    worker.release()
    assert (worker.held, pools.main.in_use, len(pools.windows or ())) == (4, 0, 1)
    pools.pass_time()
    assert (worker.held, pools.main.in_use, pools.main.highest) == (4, 4, 5)
    takes(worker, 1)
    worker.settle()
    assert (worker.held, pools.main.in_use, pools.main.highest) == (5, 5, 5)


@pytest.mark.parametrize(("workers", "limit"), [(1, None), (1, 9), (3, None)])
def test_the_highest_number_was_over_before_the_window_was(family: Callable[..., Family], workers: int,
                                                           limit: int | None) -> None:
    pools = family(workers, limit, True)
    worker = pools.workers[0]
    for count in (2, 7, 5):
        takes(worker, count)
        for _ in range(count):
            worker.release()
    pools.pass_time()
    assert (worker.held, pools.main.in_use, pools.main.highest) == (0, 0, 7)


def test_a_single_worker_at_its_limit(family: Callable[..., Family]) -> None:
    pools = family(1, 3, True)
    (worker,) = pools.workers
    for _ in range(3):
        assert takes(worker, 5) == [True] * 3 + [False] * 2
        assert (pools.main.in_use, pools.main.highest) == (3, 3)
        worker.release()
        assert takes(worker, 2) == [True, False]
        pools.pass_time()
        for _ in range(3):
            worker.release()
    pools.set_limit(1)
    assert takes(worker, 2) == [True, False]
    worker.charge(2)
    assert not worker.take()
    for _ in range(2):
        worker.release()
        assert not worker.take()
    worker.release()
    assert takes(worker, 2) == [True, False]


LIMITS = st.one_of(st.none(), st.integers(0, 6))


class Schedule(RuleBasedStateMachine):
    """Any order of operations and deaths, against plain counting."""

    WORKERS = WORKERS
    WINDOWS = False

    def __init__(self) -> None:
        super().__init__()
        self.room, tokens.ROOM = tokens.ROOM, 0
        self.pools = Family(self.WORKERS, 3, self.WINDOWS)
        self.limit: int | None = 3
        self.held = [0] * self.WORKERS
        self.most = 0
        """Connections of one worker at a time."""

    def came(self, at: int, count: int) -> None:
        self.held[at] += count
        self.most = max(self.most, self.held[at])

    def teardown(self) -> None:
        tokens.ROOM = self.room
        self.pools.close()

    def spare(self, worker: Pool) -> int:
        return worker.spare if worker._charged else 0

    @rule(at=st.integers(0, 99))
    def take(self, at: int) -> None:
        at %= self.WORKERS
        own = self.pools.workers[at]
        # The spare ones of others are in their way, its own are not.
        spare = sum(self.spare(worker) for worker in self.pools.workers if worker is not own)
        room = self.limit is None or sum(self.held) + spare < self.limit
        assert own.take() is room
        self.came(at, room)

    @precondition(lambda self: any(self.held))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        at = data.draw(st.sampled_from([at for at, held in enumerate(self.held) if held]))
        self.pools.workers[at].release()
        self.held[at] -= 1

    @rule(at=st.integers(0, 99), count=st.integers(0, 3))
    def charge(self, at: int, count: int) -> None:
        at %= self.WORKERS
        self.pools.workers[at].charge(count)
        self.pools.pass_time()  # else ROOM has to be enough for it
        self.came(at, count)

    @rule(limit=LIMITS)
    def change(self, limit: int | None) -> None:
        self.pools.set_limit(limit)
        self.limit = limit

    @rule(limit=LIMITS, order=st.permutations(range(WORKERS)), data=st.data())
    def change_at_work(self, limit: int | None, order: list[int], data: st.DataObject) -> None:
        """Workers hear of it one after the other, and meanwhile everybody works."""
        pools, bounds = self.pools, {self.limit, limit}
        pools.main.set_limit(limit)
        pools.limited = limit is not None
        for told in order:
            for at in data.draw(st.lists(st.integers(0, self.WORKERS - 1), max_size=4)):
                if self.held[at] and data.draw(st.booleans()):
                    pools.workers[at].release()
                    self.held[at] -= 1
                elif pools.workers[at].take():
                    self.came(at, 1)
                    assert None in bounds or sum(self.held) <= max(filter(None, bounds), default=0)
            if told < self.WORKERS:
                pools.workers[told].enforce(pools.limited)
        for worker in pools.workers:
            worker.enforce(pools.limited)  # once more (RuntimeControl.change)
        self.limit = limit

    @rule()
    def pass_time(self) -> None:
        self.pools.pass_time()
        assert not any(worker._window for worker in self.pools.workers)
        assert self.pools.main.in_use == sum(self.held)
        assert self.pools.main.highest >= max(sum(self.held), self.most)
        assert self.WORKERS > 1 or self.pools.main.highest == self.most

    @rule()
    def tidy(self) -> None:
        self.pools.main.tidy()

    @rule(at=st.integers(0, 99))
    def die(self, at: int) -> None:
        at %= self.WORKERS
        self.pools.replace(at)
        self.held[at] = 0

    @rule(at=st.integers(0, 99), call=st.integers(0, 5), before=st.booleans(),
          what=st.sampled_from(["take", "release", "charge", "settle"]))
    def die_at_work(self, at: int, call: int, before: bool, what: str) -> None:
        at %= self.WORKERS
        worker = self.pools.workers[at]
        if what == "release" and not self.held[at]:
            return
        try:
            with killed_at(call, before):
                getattr(worker, what)()
                self.most = max(self.most, worker.held)
        except Killed:
            pass
        self.pools.replace(at)
        self.held[at] = 0

    @invariant()
    def nothing_is_lost(self) -> None:
        pools = self.pools
        assert [worker.held for worker in pools.workers] == self.held
        if self.WORKERS > 1:
            in_hand = sum(self.held) + sum(self.spare(worker) for worker in pools.workers) if pools.limited else 0
            assert pools.free + in_hand - pools.debt == pools.main.issued
        if not any(worker._window for worker in pools.workers):
            assert pools.main.in_use == sum(self.held)
        assert not any(word & tokens.BUSY for word in pools.main._words)


class ScheduleWithWindows(Schedule):
    """The same, with places that are spare for a moment."""

    WINDOWS = True


class ScheduleOfOne(ScheduleWithWindows):
    """A single worker has no tokens."""

    WORKERS = 1


TestSchedule = Schedule.TestCase
TestScheduleWithWindows = ScheduleWithWindows.TestCase
TestScheduleOfOne = ScheduleOfOne.TestCase
TestSchedule.settings = TestScheduleWithWindows.settings = TestScheduleOfOne.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None)
