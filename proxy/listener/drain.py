"""Whether a response should end its connection because its listener drains (Envoy: DrainManagerImpl::drainClose)."""

from __future__ import annotations

import math
import random
from collections.abc import Callable


class DrainDecision:
    """``gradual``: the probability grows from 0 to 1 over ``drain_time`` seconds; ``immediate``: always."""

    __slots__ = ("_clock", "_drain_time", "_gradual", "_randrange", "_started")

    def __init__(self, strategy: str, drain_time: float, clock: Callable[[], float],
                 randrange: Callable[[int], int] = random.randrange) -> None:
        self._gradual = strategy == "gradual"
        self._drain_time = int(drain_time)
        self._clock = clock
        self._randrange = randrange
        self._started: float | None = None

    @property
    def draining(self) -> bool:
        """The drain sequence has begun."""
        return self._started is not None

    def start(self) -> None:
        """Begin; harmless when it has begun."""
        if self._started is None:
            self._started = self._clock()

    def close(self) -> bool:
        """Decide for one response."""
        if self._started is None:
            return False
        # Whole seconds, those that are left rounded down, as Envoy counts them.
        elapsed = math.ceil(self._clock() - self._started)
        return not self._gradual or elapsed >= self._drain_time or elapsed > self._randrange(self._drain_time)
