"""The runtime together with the connection limits that follow from it, in the main process."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

from proxy import log
from proxy.config.runtime import no_such_listener
from proxy.limits.pools import SPARE, Order, TooManyLimits
from proxy.limits.rules import LEGACY_KEY, MONITOR, limits_of, make_pools, monitored_limit
from proxy.runtime.layers import RuntimeLayers, RuntimeRefused

if TYPE_CHECKING:
    from proxy.config.model import Bootstrap

Message = tuple[dict[str, object], Order]
"""What a worker has to know: all values, and which limits there are."""

Tell = Callable[[str, Message], Awaitable[list[int]]]
"""Has every worker do something with a message; the workers that have not in time."""

_log = log.get("main")


class RuntimeControl:
    """Made before workers are forked, which inherit its pools."""

    def __init__(self, bootstrap: Bootstrap, workers: int) -> None:
        self._bootstrap = bootstrap
        self.layers = RuntimeLayers(bootstrap)
        could_be_added = 1 + len(bootstrap.listeners) if self.layers.changeable else 0
        self.pools = make_pools(bootstrap, workers, min(SPARE, could_be_added), self.layers.values())

    def message(self) -> Message:
        """The request "runtime" for workers."""
        return self.layers.values(), self.pools.order()

    async def change(self, overrides: Mapping[str, str], tell: Tell) -> list[int]:
        """Change the admin layer and have every worker follow; those that have not in time.

        Raises layers.NoAdminLayer or RuntimeRefused; nothing has changed then.
        """
        self._override(overrides)
        late = await tell("runtime", self.message())
        if not late:
            # Once more: a worker could have kept places (tokens.Pool.settle) before another one had charged to a new
            # limit what it had open.
            late = await tell("runtime", self.message())
        return late

    def _override(self, overrides: Mapping[str, str]) -> None:
        values = self.layers.proposed(overrides)
        limits = limits_of(self._bootstrap, values)
        try:
            self.pools.put_in_force(limits)
        except TooManyLimits as error:
            raise RuntimeRefused(str(error)) from None
        self.layers.override(overrides)
        if LEGACY_KEY in overrides:
            self.warn_of_legacy_key()
        names = {listener.name for listener in self._bootstrap.listeners}
        for key, value in overrides.items():
            if value and (why := no_such_listener(key, names)) is not None:
                _log.warning("%s: %s", key, why)

    def warn(self) -> None:
        """What Envoy says at the start about the limit of all connections."""
        self.warn_of_legacy_key()
        if monitored_limit(self._bootstrap) is None:
            _log.warning("There is no configured limit to the number of allowed active downstream connections. "
                         "Configure a limit in `%s` resource monitor.", MONITOR)

    def warn_of_legacy_key(self) -> None:
        """The runtime key still works, unless the resource monitor is there as well."""
        if LEGACY_KEY not in self.layers.values():
            return
        _log.warning("Usage of the deprecated runtime key %s, consider switching to `%s` instead.This runtime key will "
                     "be removed in future.", LEGACY_KEY, MONITOR)
        if monitored_limit(self._bootstrap) is not None:
            _log.warning("Global downstream connections limits is configured via deprecated runtime key %s and in %s. "
                         "Using overload manager config.", LEGACY_KEY, MONITOR)
