"""The drain decision: how likely a response is to end its connection, over the drain time."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from proxy.listener.drain import DrainDecision


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def every_draw(of: int) -> list[Callable[[int], int]]:
    """One random source for each number below ``of``; each insists on being asked for that range."""

    def draw(number: int) -> Callable[[int], int]:
        def randrange(stop: int) -> int:
            assert stop == of
            return number

        return randrange

    return [draw(number) for number in range(of)]


def share(elapsed: float, drain_time: int, strategy: str = "gradual") -> float:
    """The share of responses that close, this long after the drain began."""
    closes = 0
    for randrange in every_draw(drain_time):
        clock = Clock()
        decision = DrainDecision(strategy, float(drain_time), clock, randrange)
        decision.start()
        clock.now += elapsed
        closes += decision.close()
    return closes / drain_time


@pytest.mark.parametrize(("elapsed", "expected"), [
    (0.0, 0.0), (0.1, 0.1), (1.0, 0.1), (4.5, 0.5), (9.0, 0.9), (10.0, 1.0), (50.0, 1.0),
])
def test_gradual_grows_to_always(elapsed: float, expected: float) -> None:
    assert share(elapsed, 10) == expected


def test_immediate_is_always() -> None:
    assert share(0.0, 10, "immediate") == 1.0


def test_nothing_closes_before_the_drain() -> None:
    for strategy in ("gradual", "immediate"):
        decision = DrainDecision(strategy, 0.0, Clock())
        assert not decision.draining
        assert not decision.close()


def test_without_drain_time_everything_closes() -> None:
    decision = DrainDecision("gradual", 0.0, Clock())
    decision.start()
    assert decision.close()


def test_a_second_start_does_not_begin_anew() -> None:
    clock = Clock()
    decision = DrainDecision("gradual", 10.0, clock, lambda _: 9)
    decision.start()
    clock.now += 10
    decision.start()
    assert decision.close()
