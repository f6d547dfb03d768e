"""The limits of one worker: which pools its listeners ask, and how connections get on and off their books."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from socket import SocketType
from typing import TYPE_CHECKING, Protocol

from proxy.limits.pools import GLOBAL, Order, Pools, WorkerPools, listener_key
from proxy.limits.rules import exempt

if TYPE_CHECKING:
    from proxy.config.model import Listener
    from proxy.limits.tokens import Later, Pool
    from proxy.listener.connection import Connection
    from proxy.listener.listener import ActiveListener
    from proxy.stats.groups import ListenerStats


MOST_CLIENTS = 10_000
"""Addresses that a worker tells of, for each limit."""


class Place(Protocol):
    """What a connection is charged to. A place is given up by adding one to ``spare`` if that is below ``keep``, else
    by ``give_place`` (see `tokens.Pool.release`)."""

    spare: int
    keep: int

    @property
    def pool(self) -> Pool:
        """Where it counts."""

    def release(self) -> None:
        """The connection is over."""

    def give_place(self) -> None:
        """The same, where no place can be kept."""


Charged = tuple[Place, ...]
"""Everything that a connection counts in."""


Accepted = Callable[[SocketType, tuple[str, int]], None]
"""Takes each accepted socket with its peer's name."""


class Serve(Protocol):
    """Takes those sockets on that were not refused."""

    def __call__(self, sock: SocketType, peer: tuple[str, int], charged: Charged = ()) -> None: ...


class WorkerLimits:
    """One a worker, made before its listeners. ``later`` is its loop's call_later (`Pool.attach`)."""

    def __init__(self, pools: Pools, worker: int, later: Later | None = None) -> None:
        self._pools = WorkerPools(pools, worker, later)

    def of_listener(self, config: Listener) -> tuple[Pool | None, Pool | None]:
        """The pool of all connections, where the listener is not exempt, and the listener's own."""
        in_use = self._pools.in_use
        return (None if exempt(config) else in_use.get(GLOBAL)), in_use.get(listener_key(config.name))

    def pool(self, key: str) -> Pool:
        """The pool of a network filter (``key``: its id)."""
        return self._pools.in_use[key]

    def clients(self, connections: Iterable[Connection]) -> dict[str, list[tuple[str, int]]]:
        """Who holds the connections that count for each limit: (IP address, connections), the most first.

        After it the pools show what is in use at this moment.
        """
        for pool in self._pools.in_use.values():
            pool.settle()
        keys = {id(pool): key for key, pool in self._pools.in_use.items()}
        counts: dict[str, Counter[str]] = {}
        for connection in connections:
            for place in connection.charged:
                key = keys[id(place.pool)]
                counts.setdefault(key, Counter())[connection.remote.host] += 1
        return {key: count.most_common(MOST_CLIENTS) for key, count in counts.items()}

    async def apply(self, order: Order, listeners: Iterable[ActiveListener]) -> None:
        """Follow main: charge what is open where a limit is new. When this returns the limits are in force."""
        new = self._pools.apply(order)
        if not new:
            return
        listeners = list(listeners)
        for listener in listeners:
            listener.limits_changed()
        # A connection on its way to its network filter is registered nowhere: for one round of the loop, if it was
        # accepted before, and for one more, if its listener filters have ended meanwhile.
        for _ in range(2):
            await asyncio.sleep(0)
            for listener in listeners:
                self._charge_missing(listener, new)

    def _charge_missing(self, listener: ActiveListener, new: set[str]) -> None:
        pools = self.of_listener(listener.config)
        for key, pool in ((GLOBAL, pools[0]), (listener_key(listener.config.name), pools[1])):
            if pool is not None and key in new:
                missing = [c for c, _ in listener.all_connections() if pool not in c.charged]
                pool.charge(len(missing))
                for connection in missing:
                    connection.charged += (pool,)


def gate(everything: Pool | None, own: Pool | None, serve: Serve, rejects: Callable[[], bool] | None,
         stats: ListenerStats) -> Accepted:
    """Asks everybody who may refuse an accepted socket, in Envoy's order: the limit of all connections, overload
    (``rejects``), the listener's own limit."""
    charged: Charged = tuple(pool for pool in (everything, own) if pool is not None)

    def accepted(sock: SocketType, peer: tuple[str, int]) -> None:
        if everything is not None and not everything.take():
            stats.downstream_global_cx_overflow += 1
        elif rejects is not None and rejects():
            if everything is not None:
                everything.release()
        elif own is not None and not own.take():
            stats.downstream_cx_overflow += 1
            if everything is not None:
                everything.release()
        else:
            serve(sock, peer, charged)
            return
        sock.close()

    return accepted


def discharge(connection: Connection) -> None:
    """A connection is over: it counts nowhere any more."""
    for pool in connection.charged:
        pool.release()
    connection.charged = ()


def transfer(connection: Connection, old: ActiveListener, new: ActiveListener) -> None:
    """A connection goes to the listener of its original destination, whose limit cannot refuse it (as in Envoy)."""
    left, entered = old.pools[1], new.pools[1]
    if left is not None and left in connection.charged:
        left.release()
        connection.charged = tuple(pool for pool in connection.charged if pool is not left)
    if entered is not None:
        entered.charge()
        connection.charged += (entered,)
