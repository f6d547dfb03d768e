"""extensions.filters.network.connection_limit: the network filter in front of a chain's terminal one.

A connection over the limit never reaches the terminal filter's protocol. It is closed at once, or after ``delay``,
which keeps a client that tries again in a loop from doing so at full speed; until then it counts (Envoy:
connection_limit Filter).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from proxy.deadlines import NEVER
from proxy.runtime.values import boolean
from proxy.stats.groups import ConnectionLimitStats

if TYPE_CHECKING:
    from proxy.config import model
    from proxy.context import Context
    from proxy.limits.tokens import Pool
    from proxy.listener.connection import Connection
    from proxy.listener.filter_chain import NetworkFilter
    from proxy.listener.listener import ActiveListener

READ_SIZE = 65536


class FilterLimit:
    """One filter: its pool, its statistics, its switch. A connection is charged to it like to any pool."""

    __slots__ = ("_context", "_enabled", "_key", "_pool", "delay", "stats")
    spare = keep = 0
    """Its statistics have to know of every connection that ends."""

    def __init__(self, config: model.ConnectionLimit, pool: Pool, context: Context) -> None:
        self._context = context
        self._pool = pool
        self._key = config.runtime_key
        self._enabled = config.enabled_by_default
        self.delay = config.delay
        self.stats = context.registry.group(ConnectionLimitStats, f"connection_limit.{config.stat_prefix}")

    @property
    def enabled(self) -> bool:
        """runtime_enabled. What was opened while it was off never counts."""
        runtime: Mapping[str, object] = self._context.runtime
        return boolean(runtime.get(self._key), self._enabled) if self._key else self._enabled

    @property
    def pool(self) -> Pool:
        """What it counts in."""
        return self._pool

    def take(self) -> bool:
        """Let one more connection in if there is room."""
        if not self._pool.take():
            self.stats.limited_connections += 1
            return False
        self.stats.active_connections += 1
        return True

    def charge(self) -> None:
        """Count a connection that is kept for a while though there is no room."""
        self._pool.charge()
        self.stats.active_connections += 1

    def release(self) -> None:
        """A connection that was counted is gone."""
        self._pool.release()
        self.stats.active_connections -= 1

    give_place = release


class ConnectionLimits:
    """All connection_limit filters of a chain, in order."""

    __slots__ = ("_context", "_limits", "_terminal")

    def __init__(self, configs: tuple[model.ConnectionLimit, ...], terminal: NetworkFilter, context: Context,
                 pool: Callable[[str], Pool]) -> None:
        self._context = context
        self._terminal = terminal
        self._limits = [FilterLimit(config, pool(config.id), context) for config in configs]

    def refuse(self, connection: Connection, listener: ActiveListener) -> bool:
        """Count a connection in. True: it is over a limit, and everything has been done about it."""
        for limit in self._limits:
            if not limit.enabled:
                continue
            if not limit.take():
                if limit.delay:
                    limit.charge()
                    connection.charged += (limit,)
                refused = Refused(connection, listener, self._terminal, self._context, limit.delay)
                if not limit.delay:
                    refused.end(local=True)
                return True
            connection.charged += (limit,)
        return False


class Refused:
    """A connection over the limit, until it is closed. It reads, and so hears of its client's end, only where the
    terminal filter would: tcp_proxy does not before its upstream is connected.
    """

    __slots__ = ("_connection", "_context", "_listener", "_reading", "_terminal", "_unread", "deadline")

    def __init__(self, connection: Connection, listener: ActiveListener, terminal: NetworkFilter, context: Context,
                 delay: float) -> None:
        self._connection = connection
        self._listener = listener
        self._terminal = terminal
        self._context = context
        self._unread = listener.config.per_connection_buffer_limit_bytes or 1 << 62
        self._reading = bool(delay) and terminal.reads_at_once
        self.deadline = context.loop.time() + delay if delay else NEVER
        terminal.opened_in_vain(connection)
        listener.connections[connection] = self
        if delay:
            context.deadlines.watch(self)
        if self._reading:
            context.loop.add_reader(connection.sock, self._readable)

    def _readable(self) -> None:
        try:
            data = self._connection.sock.recv(READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.end(local=False)
            return
        self._terminal.received_in_vain(len(data))
        self._unread -= len(data)
        if self._unread <= 0:
            self._stop_reading()

    def _stop_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._context.loop.remove_reader(self._connection.sock)

    def on_deadline(self, now: float) -> None:
        """The delay is over."""
        self.end(local=True)

    def close(self) -> None:
        """Cut it (the worker ends)."""
        self.end(local=True)

    def work(self) -> tuple[int, int]:
        """Requests so far, and those under way: none."""
        return 0, 0

    def end(self, local: bool) -> None:
        """Close the socket: with FIN, or RST where the kernel holds data that nobody has read."""
        self.deadline = NEVER
        self._context.deadlines.unwatch(self)
        self._stop_reading()
        connection, now = self._connection, self._context.loop.time()
        self._listener.connection_closed(connection, now)
        self._terminal.closed_in_vain(connection, now, local)
        connection.sock.close()
