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


class Family:
    """Main's pool and that of each worker, in one process: what they share is shared, what they know is their own."""

    def __init__(self, workers: int = WORKERS, limit: int | None = None) -> None:
        memory = memoryview(mmap.mmap(-1, 8 * words_needed(workers))).cast("Q")
        self.main = Pool(memory, workers)
        self.limited = limit is not None
        self.main.set_limit(limit)
        self.workers = [self.fork(at) for at in range(workers)]

    def fork(self, at: int) -> Pool:
        worker = copy.copy(self.main)
        worker.attach(at, self.limited)
        return worker

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
    worker._word = worker._words[0] = tokens._OVERFLOW | worker._word
    worker.release()
    assert worker._words[0] == tokens.CHARGED + 2
    assert pools.main.in_use == 2


def test_the_highest_number_is_seen_where_nobody_holds_more_than_before(family: Callable[..., Family]) -> None:
    pools = family(2, 20)
    one, other = pools.workers
    for worker in (one, other):  # each has held ten, one after the other
        takes(worker, 10)
        for _ in range(10):
            worker.release()
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


class Schedule(RuleBasedStateMachine):
    """Any order of operations and deaths, against plain counting."""

    def __init__(self) -> None:
        super().__init__()
        self.pools = Family(WORKERS, 3)
        self.limit: int | None = 3
        self.held = [0] * WORKERS

    def teardown(self) -> None:
        self.pools.close()

    @rule(at=st.integers(0, WORKERS - 1))
    def take(self, at: int) -> None:
        room = self.limit is None or sum(self.held) < self.limit
        assert self.pools.workers[at].take() is room
        self.held[at] += room

    @precondition(lambda self: any(self.held))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        at = data.draw(st.sampled_from([at for at, held in enumerate(self.held) if held]))
        self.pools.workers[at].release()
        self.held[at] -= 1

    @rule(at=st.integers(0, WORKERS - 1), count=st.integers(0, 3))
    def charge(self, at: int, count: int) -> None:
        self.pools.workers[at].charge(count)
        self.held[at] += count

    @rule(limit=st.one_of(st.none(), st.integers(0, 6)))
    def change(self, limit: int | None) -> None:
        self.pools.set_limit(limit)
        self.limit = limit

    @rule()
    def tidy(self) -> None:
        self.pools.main.tidy()

    @rule(at=st.integers(0, WORKERS - 1))
    def die(self, at: int) -> None:
        self.pools.replace(at)
        self.held[at] = 0

    @rule(at=st.integers(0, WORKERS - 1), call=st.integers(0, 4), before=st.booleans(),
          what=st.sampled_from(["take", "release", "charge"]))
    def die_at_work(self, at: int, call: int, before: bool, what: str) -> None:
        worker = self.pools.workers[at]
        if what == "release" and not self.held[at]:
            return
        try:
            with killed_at(call, before):
                getattr(worker, what)()
        except Killed:
            pass
        self.pools.replace(at)
        self.held[at] = 0

    @invariant()
    def nothing_is_lost(self) -> None:
        pools = self.pools
        held = sum(self.held) if pools.limited else 0
        assert pools.free + held - pools.debt == pools.main.issued
        assert pools.main.in_use == sum(self.held)
        assert not any(word & tokens.BUSY for word in pools.main._words)


TestSchedule = Schedule.TestCase
TestSchedule.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
