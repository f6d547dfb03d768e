"""Main's half: triggers, what workers are told and when, statistics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from proxy.config import overload_model as model
from proxy.config.overload_model import (
    DownstreamConnections,
    InjectedResource,
    OverloadManager,
    Reaction,
    Trigger,
)
from proxy.overload import manager as manager_module
from proxy.overload.manager import SHRINK_INTERVAL
from proxy.overload.monitor import MonitorError
from proxy.overload.triggers import ReactionState, scale
from proxy.stats.groups import Snapshot


@pytest.mark.parametrize(("trigger", "pressure", "expected"), [
    (Trigger("r", 0.9), 0.0, 0.0), (Trigger("r", 0.9), 0.8999, 0.0), (Trigger("r", 0.9), 0.9, 1.0),
    (Trigger("r", 0.9), 3.0, 1.0), (Trigger("r", 0.0), 0.0, 1.0),
    (Trigger("r", 0.5, 0.9), 0.5, 0.0), (Trigger("r", 0.5, 0.9), 0.7, 0.5), (Trigger("r", 0.5, 0.9), 0.9, 1.0),
    (Trigger("r", 0.5, 0.9), 1.5, 1.0), (Trigger("r", 0.5, 1.0), 0.625, 0.25),
])
def test_triggers(trigger: Trigger, pressure: float, expected: float) -> None:
    assert scale(trigger, pressure) == pytest.approx(expected)


def test_the_trigger_that_asks_for_most_counts() -> None:
    state = ReactionState(Reaction("x", (Trigger("a", 0.9), Trigger("b", 0.0, 1.0))))
    assert state.update("other", 1.0) is None
    assert (state.update("b", 0.25), state.value) == (0.25, 0.25)
    assert (state.update("a", 0.95), state.value) == (1.0, 1.0)
    assert state.update("a", 0.99) is None
    assert (state.update("b", 0.5), state.value) == (0.5, 1.0)
    assert (state.update("a", 0.5), state.value) == (0.0, 0.5)


class Loop:
    """Time and timers that are moved by hand."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[tuple[float, Callable[[], object]]] = []

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, call: Callable[[], object]) -> None:
        self.timers.append((self.now + delay, call))

    def advance(self, seconds: float) -> None:
        self.now += seconds
        due = [call for when, call in self.timers if when <= self.now]
        self.timers = [each for each in self.timers if each[0] > self.now]
        for call in due:
            call()


class World:
    """A manager whose resource ``r`` says what ``says`` is, or fails with that text."""

    def __init__(self, *actions: Reaction, points: tuple[Reaction, ...] = (), connections: int = 0) -> None:
        self.says: float | str = 0.0
        self.in_use = self.refused = 0
        self.told: list[dict[str, float]] = []
        self.shrunk = 0
        self.loop: Any = Loop()
        monitors: list[tuple[str, model.Monitor]] = [("r", InjectedResource("/nonexistent"))]
        if connections:
            monitors.append((model.GLOBAL_CONNECTIONS, DownstreamConnections(connections)))
        self.manager = manager_module.OverloadManager(
            OverloadManager(tuple(monitors), actions, points), self.loop, tell=self.told.append, shrink=self._shrink,
            pids=lambda: (), connections=self if connections else None)
        name, _, stats = self.manager._resources[0]
        self.manager._resources[0] = name, self, stats
        self.manager.start()

    def pressure(self) -> float:
        if isinstance(self.says, str):
            raise MonitorError(self.says)
        return self.says

    def _shrink(self) -> None:
        self.shrunk += 1

    def refresh(self, says: float | str) -> list[dict[str, float]]:
        """What the workers are told after the next refresh interval."""
        self.says = says
        self.told.clear()
        self.loop.advance(1.0)
        return list(self.told)

    def stats(self) -> dict[str, int]:
        out = Snapshot()
        self.manager.collect(out)
        return {name.removeprefix("overload."): value for group in (out.counters, out.gauges)
                for name, value in group.items()}


def reaction(name: str, *triggers: Trigger) -> Reaction:
    return Reaction(name, triggers or (Trigger("r", 0.9),))


def test_workers_are_told_of_changes_only() -> None:
    world = World(reaction(model.REJECT_CONNECTIONS, Trigger("r", 0.5, 0.9)), reaction(model.DISABLE_KEEPALIVE),
                  points=(reaction(model.TCP_ACCEPT),))
    assert world.refresh(0.4) == []
    assert world.refresh(0.7) == [{model.REJECT_CONNECTIONS: 0.5}]
    assert world.refresh(0.7) == []
    assert world.manager.values == {model.REJECT_CONNECTIONS: 0.5}
    assert world.refresh(0.95) == [{model.REJECT_CONNECTIONS: 1.0, model.DISABLE_KEEPALIVE: 1.0, model.TCP_ACCEPT: 1.0}]
    assert world.refresh(0.6) == [{model.REJECT_CONNECTIONS: 0.25, model.DISABLE_KEEPALIVE: 0.0, model.TCP_ACCEPT: 0.0}]
    # What a worker that starts now is told.
    assert world.manager.values == {model.REJECT_CONNECTIONS: 0.25}


def test_statistics() -> None:
    world = World(reaction(model.REJECT_CONNECTIONS, Trigger("r", 0.5, 0.9)), reaction(model.SHRINK_HEAP),
                  points=(reaction(model.TCP_ACCEPT, Trigger("r", 0.5, 0.9)),), connections=4)
    world.in_use = 3
    world.refused = 2
    world.refresh(0.7)
    assert world.stats() == {
        "r.pressure": 70, "r.failed_updates": 0, "r.skipped_updates": 0,
        f"{model.GLOBAL_CONNECTIONS}.pressure": 75, f"{model.GLOBAL_CONNECTIONS}.failed_updates": 2,
        f"{model.REJECT_CONNECTIONS}.active": 0, f"{model.REJECT_CONNECTIONS}.scale_percent": 50,
        f"{model.SHRINK_HEAP}.active": 0, f"{model.SHRINK_HEAP}.scale_percent": 0,
        f"{model.SHRINK_HEAP}.shrink_count": 0, f"{model.TCP_ACCEPT}.scale_percent": 50,
    }
    world.refresh(0.95)
    stats = world.stats()
    assert (stats[f"{model.REJECT_CONNECTIONS}.active"], stats[f"{model.SHRINK_HEAP}.active"]) == (1, 1)


def test_a_monitor_that_fails_keeps_what_it_said() -> None:
    world = World(reaction(model.REJECT_CONNECTIONS))
    world.refresh(0.95)
    for _ in range(3):
        assert world.refresh("no idea") == []
    assert world.stats()["r.failed_updates"] == 3
    assert world.stats()["r.pressure"] == 95
    assert world.manager.values == {model.REJECT_CONNECTIONS: 1.0}


def test_connections_as_a_trigger() -> None:
    world = World(reaction(model.DISABLE_KEEPALIVE, Trigger(model.GLOBAL_CONNECTIONS, 0.75)), connections=4)
    assert world.refresh(0.0) == []
    world.in_use = 3
    assert world.refresh(0.0) == [{model.DISABLE_KEEPALIVE: 1.0}]


def test_memory_is_given_back_while_saturated(monkeypatch: pytest.MonkeyPatch) -> None:
    released: list[int] = []
    monkeypatch.setattr(manager_module, "release_memory", lambda: released.append(1))
    world = World(reaction(model.SHRINK_HEAP))
    world.refresh(0.5)
    world.loop.advance(SHRINK_INTERVAL)
    assert (world.shrunk, released) == (0, [])
    world.refresh(0.9)
    world.loop.advance(SHRINK_INTERVAL)
    world.loop.advance(SHRINK_INTERVAL)
    assert (world.shrunk, released, world.stats()[f"{model.SHRINK_HEAP}.shrink_count"]) == (2, [1, 1], 2)
    world.refresh(0.1)
    world.loop.advance(SHRINK_INTERVAL)
    assert world.shrunk == 2


def test_the_delay_between_two_looks() -> None:
    world = World()
    world.loop.advance(1.0)
    world.loop.advance(1.5)
    assert world.manager.flush() == {"overload.refresh_interval_delay": {1000: 1, 1500: 1}}
    assert world.manager.flush() == {"overload.refresh_interval_delay": {}}


def test_memory_really_goes_back() -> None:
    manager_module.release_memory()
