"""Filter chains at work: what a connection is handed to once its listener filters are done."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from proxy.config import model
from proxy.http.manager import HttpConnectionManager
from proxy.listener.connection_limit import ConnectionLimits
from proxy.listener.match import compile_matches
from proxy.tcp.tcp_proxy import TcpProxy

if TYPE_CHECKING:
    from proxy.context import Context
    from proxy.listener.connection import Connection
    from proxy.listener.listener import ActiveListener


class Closable(Protocol):
    """An open connection, as its listener knows it."""

    def close(self) -> None:
        """Cut the connection."""

    def work(self) -> tuple[int, int]:
        """Requests so far, and those under way."""


class ClosableProtocol(asyncio.Protocol):
    """What a network filter makes for a connection; calls ``connection.closed`` once when the socket is gone."""

    __slots__ = ()

    def close(self) -> None:
        """Cut the connection."""
        raise NotImplementedError

    def work(self) -> tuple[int, int]:
        """Requests so far, and those under way; a connection that knows no requests is one itself (0, 1)."""
        raise NotImplementedError


class NetworkFilter(Protocol):
    """A terminal network filter, made once for each filter chain."""

    reads_at_once: bool
    """It reads from a new connection without waiting for anything."""

    def protocol(self, connection: Connection) -> Any:
        """A ClosableProtocol for a new connection."""

    def opened_in_vain(self, connection: Connection) -> None:
        """A filter before this one has refused the connection, which is still to be closed: count it."""

    def received_in_vain(self, size: int) -> None:
        """Bytes that such a connection sent."""

    def closed_in_vain(self, connection: Connection, now: float, local: bool) -> None:
        """Such a connection is over, closed by us (``local``) or by its client."""


NETWORK_FILTERS: dict[type, Callable[..., NetworkFilter]] = {
    model.HttpConnectionManager: HttpConnectionManager,
    model.TcpProxy: TcpProxy,
}
"""Configuration class -> filter class, called with (config, listener, context)."""


class ActiveFilterChain:
    """One filter chain with its network filters."""

    __slots__ = ("config", "limits", "network_filter", "protocol")

    def __init__(self, config: model.FilterChain, listener: ActiveListener, context: Context) -> None:
        self.config = config
        filter_config = config.network_filter
        self.network_filter = NETWORK_FILTERS[type(filter_config)](filter_config, listener, context)
        self.protocol = self.network_filter.protocol
        self.limits: ConnectionLimits | None = None
        """What may refuse a connection before the terminal filter sees it."""
        if config.connection_limits and context.limits is not None:
            self.limits = ConnectionLimits(config.connection_limits, self.network_filter, context, context.limits.pool)


class FilterChainManager:
    """All chains of a listener. ``find`` is the chain of a connection, or None."""

    def __init__(self, config: model.Listener, listener: ActiveListener, context: Context) -> None:
        self.chains = [ActiveFilterChain(c, listener, context) for c in config.filter_chains]
        self.default: ActiveFilterChain | None = None
        if config.default_filter_chain is not None:
            self.default = ActiveFilterChain(config.default_filter_chain, listener, context)
            self.chains.append(self.default)
        matches = [(c.config.match, c) for c in self.chains if c is not self.default]
        match: Callable[[Connection], ActiveFilterChain | None]
        match = compile_matches(matches) if matches else lambda _: None
        if (default := self.default) is None:
            self.find = match
        else:
            self.find = lambda connection: match(connection) or default
