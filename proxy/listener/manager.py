"""All listeners of one worker, and which of them an address belongs to (Envoy: ConnectionHandlerImpl)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.config.model import SocketAddress
from proxy.listener.listener import ActiveListener

if TYPE_CHECKING:
    from proxy.context import Context


class ListenerManager:
    """Made once per worker, after the clusters."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._by_address: dict[SocketAddress, ActiveListener] = {}
        self.listeners = [ActiveListener(c, context, self.find) for c in context.bootstrap.listeners]
        self._index()

    def _index(self) -> None:
        self._by_address = {a: one for one in reversed(self.listeners) for a in one.addresses}

    def find(self, address: SocketAddress) -> ActiveListener | None:
        """The listener of exactly this address, else the one of the family's wildcard address and this port."""
        found = self._by_address.get(address)
        if found is None:
            found = self._by_address.get(SocketAddress("::" if ":" in address.host else "0.0.0.0", address.port))
        return found

    @property
    def has_connections(self) -> bool:
        """Some connection is open."""
        return any(listener.connections for listener in self.listeners)

    def bind(self) -> None:
        """Bind all addresses. Raises accept.BindError."""
        for listener in self.listeners:
            listener.bind()
        self._index()

    def start(self) -> None:
        """Listen and accept."""
        for listener in self.listeners:
            listener.start()

    def drain(self, *, inbound_only: bool, graceful: bool, skip_exit: bool) -> None:
        """/drain_listeners: stop listening at once, or (``graceful``) after the drain time; ``skip_exit``: never."""
        for listener in self.listeners:
            if inbound_only and listener.config.traffic_direction != "INBOUND":
                continue
            if graceful:
                listener.drain(None if skip_exit else self._context.options.drain_time)
            else:
                listener.stop()

    def health_changed(self) -> None:
        """``context.health_failed`` was set or cleared."""
        for listener in self.listeners:
            listener.health_changed()

    def close(self) -> None:
        """Close all sockets: the worker ends."""
        for listener in self.listeners:
            listener.close()
