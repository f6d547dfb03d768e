"""Deadlines: sweeps come in time, whatever members do in them."""

from __future__ import annotations

from asyncio import AbstractEventLoop
from collections.abc import Callable
from typing import cast

from proxy.deadlines import GRAIN, NEVER, Deadlines
from tests.unit.http.http_world import Loop


class Member:
    def __init__(self, deadlines: Deadlines, deadline: float = NEVER,
                 action: Callable[[Member, float], None] | None = None) -> None:
        self.deadlines, self.deadline, self.action = deadlines, deadline, action
        self.calls: list[float] = []
        deadlines.watch(self)

    def on_deadline(self, now: float) -> None:
        assert self.deadline == NEVER
        self.calls.append(now)
        if self.action is not None:
            self.action(self, now)

    def move(self, when: float) -> None:
        self.deadline = when
        if when < self.deadlines.next:
            self.deadlines.sooner(when)


def made() -> tuple[Loop, Deadlines]:
    loop = Loop()
    return loop, Deadlines(cast(AbstractEventLoop, loop))


def test_each_is_called_once_and_in_time() -> None:
    loop, deadlines = made()
    members = [Member(deadlines, when) for when in (5.0, 1.0, 3.0, NEVER)]
    loop.advance(10)
    for member, when in zip(members, (5.0, 1.0, 3.0), strict=False):
        (called,) = member.calls
        assert when <= called <= when + 2 * GRAIN
    assert members[3].calls == []
    assert not [h for h in loop.timers if not h.cancelled]


def test_a_deadline_that_moved_away() -> None:
    loop, deadlines = made()
    member = Member(deadlines, 1.0)
    loop.advance(0.5)
    member.move(4.0)
    loop.advance(3)
    assert member.calls == []
    loop.advance(1)
    assert len(member.calls) == 1


def test_a_deadline_that_comes_closer() -> None:
    loop, deadlines = made()
    member = Member(deadlines, 100.0)
    member.move(1.0)
    loop.advance(1 + GRAIN)
    assert len(member.calls) == 1
    assert len([h for h in loop.timers if not h.cancelled]) <= 1


def test_rearming_in_the_callback() -> None:
    loop, deadlines = made()
    member = Member(deadlines, 1.0, lambda m, now: m.move(now + 1))
    loop.advance(10.5)
    assert len(member.calls) == 10


def test_a_past_deadline_set_in_the_callback_does_not_spin() -> None:
    loop, deadlines = made()
    member = Member(deadlines, 1.0, lambda m, now: m.move(now) if len(m.calls) < 5 else None)
    loop.advance(1 + 20 * GRAIN)
    assert len(member.calls) == 5
    assert len(set(member.calls)) == 5


def test_removal_within_a_sweep() -> None:
    loop, deadlines = made()
    members: list[Member] = []

    def remove_others(member: Member, now: float) -> None:
        for other in members:
            if other is not member:
                deadlines.unwatch(other)

    members += [Member(deadlines, 1.0, remove_others) for _ in range(5)]
    loop.advance(5)
    assert sum(len(m.calls) for m in members) == 1


def test_moving_another_within_a_sweep() -> None:
    loop, deadlines = made()
    members: list[Member] = []

    def postpone_others(member: Member, now: float) -> None:
        for other in members:
            if other.deadline <= now:
                other.move(now + 10)

    members += [Member(deadlines, 1.0, postpone_others) for _ in range(3)]
    loop.advance(5)
    assert sorted(len(m.calls) for m in members) == [0, 0, 1]
    loop.advance(20)
    assert all(m.calls for m in members)


def test_adding_within_a_sweep() -> None:
    loop, deadlines = made()
    added: list[Member] = []
    Member(deadlines, 1.0, lambda m, now: added.append(Member(deadlines, now + 1)))
    loop.advance(3)
    assert len(added[0].calls) == 1


def test_close() -> None:
    loop, deadlines = made()
    member = Member(deadlines, 1.0)
    deadlines.close()
    loop.advance(5)
    assert member.calls == []
    assert all(h.cancelled for h in loop.timers)
