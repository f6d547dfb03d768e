"""Any order of operations on one pool of tokens, of deaths, and of changes of the limit."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from proxy.limits import tokens
from proxy.limits.tokens import Pool
from tests.unit.limits.family import WORKERS, Family, Killed, killed_at

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
          what=st.sampled_from(["take", "release", "charge", "settle", "enforce"]))
    def die_at_work(self, at: int, call: int, before: bool, what: str) -> None:
        at %= self.WORKERS
        worker = self.pools.workers[at]
        if what == "release" and not self.held[at]:
            return
        try:
            with killed_at(call, before):
                if what == "enforce":
                    worker.enforce(not self.pools.limited)
                else:
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
