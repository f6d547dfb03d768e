"""One pool of tokens: workers that share it, limits that change, workers that die between any two system calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from proxy.limits import tokens
from proxy.limits.tokens import Pool, eventfd_count
from tests.unit.limits.family import Family, Killed, killed_at


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


def test_a_limit_that_comes_finds_free_places_for_those_that_are_there(family: Callable[..., Family]) -> None:
    pools = family(2, None)
    one, other = pools.workers
    takes(one, 3)
    takes(other, 2)
    pools.set_limit(6)
    assert (pools.free, pools.debt) == (1, 0)
    assert takes(other, 2) == [True, False]


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
