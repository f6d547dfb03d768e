"""Which limits a configuration and its runtime set: a pure function, so that main can tell what a change would mean.

The operator's own listeners are exempt from the limit of all connections: those with ``ignore_global_conn_limit`` and
those with ``bypass_overload_manager`` (Istio's bootstrap sets both on 15021 and 15090); the admin interface is never
counted at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from proxy.config.overload_model import GLOBAL_CONNECTIONS
from proxy.limits.pools import GLOBAL, Limit, Pools, listener_key
from proxy.runtime.values import integer

if TYPE_CHECKING:
    from proxy.config.model import Bootstrap, Listener

MONITOR = GLOBAL_CONNECTIONS
LEGACY_KEY = "overload.global_downstream_max_connections"


def listener_limit_key(name: str) -> str:
    """The runtime key with a listener's own limit."""
    return f"envoy.resource_limits.listener.{name}.connection_limit"


def exempt(listener: Listener) -> bool:
    """Neither counted nor refused by the limit of all connections."""
    return listener.ignore_global_conn_limit or listener.bypass_overload_manager


def monitored_limit(bootstrap: Bootstrap) -> int | None:
    """max_active_downstream_connections of the resource monitor, None without one."""
    return None if bootstrap.overload is None else bootstrap.overload.max_active_downstream_connections


def make_pools(bootstrap: Bootstrap, workers: int, spare: int = 0, runtime: Mapping[str, object] | None = None
               ) -> Pools:
    """The pools of a configuration with its limits in force, to be made before workers are forked.

    ``runtime``: what is in force, if not what the configuration says.
    """
    limits = limits_of(bootstrap, dict(bootstrap.runtime) if runtime is None else runtime)
    pools = Pools(workers, [limit.key for limit in limits], spare)
    pools.put_in_force(limits)
    return pools


def limits_of(bootstrap: Bootstrap, runtime: Mapping[str, object]) -> list[Limit]:
    """All limits that connections of listeners are subject to. The resource monitor goes before the runtime key."""
    limits = []
    monitored = monitored_limit(bootstrap)
    if monitored is not None:
        limits.append(Limit(GLOBAL, monitored, "global", "", MONITOR))
    elif (value := integer(runtime.get(LEGACY_KEY))) is not None:
        limits.append(Limit(GLOBAL, value, "global", "", LEGACY_KEY))
    for listener in bootstrap.listeners:
        key = listener_limit_key(listener.name)
        if (value := integer(runtime.get(key))) is not None:
            limits.append(Limit(listener_key(listener.name), value, "listener", listener.name, key))
    for listener in bootstrap.listeners:
        default = listener.default_filter_chain
        for chain in (*listener.filter_chains, *(() if default is None else (default,))):
            limits += (Limit(one.id, one.max_connections, "filter", one.stat_prefix, f"{one.id}.max_connections")
                       for one in chain.connection_limits)
    return limits
