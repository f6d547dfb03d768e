"""A worker's half of the overload manager: the values that main tells, and what asks for them.

Nothing here is on the way of a connection or request unless an action or load-shed point is configured for it; parts of
the data plane ask for theirs when they are made and get None otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from random import random
from typing import TYPE_CHECKING

from proxy.config import overload_model as model
from proxy.overload.stats import ShedStats

if TYPE_CHECKING:
    from proxy.stats.groups import Registry


class Chance:
    """An action that meets some connections or requests: called, it says whether it meets this one."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0
        """How likely, 0 to 1."""

    def __call__(self) -> bool:
        value = self.value
        return value > 0 and (value >= 1 or random() < value)


class LoadShedPoint(Chance):
    """The same with the statistic that load-shed points have."""

    __slots__ = ("_stats",)

    def __init__(self, stats: ShedStats) -> None:
        super().__init__()
        self._stats = stats

    def __call__(self) -> bool:
        sheds = super().__call__()
        self._stats.shed_load_count += sheds
        return sheds


Changed = Callable[[float], None]


class OverloadState:
    """All actions and load-shed points of a worker. ``any_of`` and ``on_change`` are for when things are made."""

    def __init__(self, config: model.OverloadManager, registry: Registry) -> None:
        self.config = config
        self._chances: dict[str, Chance] = {action.name: Chance() for action in config.actions}
        self._chances |= {point.name: LoadShedPoint(registry.group(ShedStats, f"overload.{point.name}"))
                          for point in config.load_shed_points}
        self._changed: dict[str, list[Changed]] = {}

    def find(self, name: str) -> Chance | None:
        """An action or load-shed point, None when it is not configured."""
        return self._chances.get(name)

    def on_change(self, name: str, changed: Changed) -> None:
        """Have ``changed`` called with every new value of what is configured under this name."""
        if name in self._chances:
            self._changed.setdefault(name, []).append(changed)

    def apply(self, values: dict[str, float]) -> None:
        """What main has told: new values by name."""
        for name, value in values.items():
            chance = self._chances[name]
            if chance.value != value:
                chance.value = value
                for changed in self._changed.get(name, ()):
                    changed(value)


def find(state: OverloadState | None, name: str) -> Chance | None:
    """An action or load-shed point of what may not exist at all."""
    return None if state is None else state.find(name)


def any_of(*chances: Chance | None) -> Callable[[], bool] | None:
    """One question out of several, asked in this order; None when there is nothing to ask."""
    asked = [chance for chance in chances if chance is not None]
    if not asked:
        return None
    if len(asked) == 1:
        return asked[0]
    return lambda: any(chance() for chance in asked)
