"""The action reduce_timeouts: downstream timeouts shrink from their full length towards a minimum as pressure grows.

Envoy's scaled timers fire ``minimum + (full - minimum) * (1 - scale)`` after they were set, with the scale of the
moment (ScaledRangeTimerManagerImpl). Here timeouts are stored points in time: those that are running are moved when
the scale changes, those that are set later are shorter from the start. Nobody asks for the scale on the way of a
request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.config import overload_model as model
from proxy.http import server_connection as sc

if TYPE_CHECKING:
    from proxy.config.overload_model import ScaledTimer
    from proxy.http.manager import HttpConnectionManager
    from proxy.listener.listener import ActiveListener
    from proxy.overload.worker import OverloadState

SHORTEST = 0.001
"""Seconds; 0 would mean that there is no timeout."""


class ReducedTimeouts:
    """The scaled timeouts of one HTTP connection manager. TRANSPORT_SOCKET_CONNECT and HTTP_DOWNSTREAM_STREAM_FLUSH
    have nothing to act on: there is neither TLS nor HTTP/2."""

    def __init__(self, state: OverloadState, manager: HttpConnectionManager, listener: ActiveListener) -> None:
        self._manager = manager
        self._listener = listener
        self._timers = {timer.timer: timer for timer in state.config.timers}
        self._scale = 0.0
        state.on_change(model.REDUCE_TIMEOUTS, self._changed)

    def stream_idle(self, full: float) -> float:
        """A stream's idle timeout as it is now; ``full`` is the configured one, in seconds."""
        return self._now(model.STREAM_IDLE, full)

    def _now(self, timer: str, full: float) -> float:
        setting = self._timers.get(timer)
        if setting is None or not full:
            return full
        return max(SHORTEST, full - self._span(setting, full) * self._scale)

    @staticmethod
    def _span(setting: ScaledTimer, full: float) -> float:
        return full - setting.minimum(full)

    def _changed(self, scale: float) -> None:
        moved, self._scale = scale - self._scale, scale
        manager, config = self._manager, self._manager.config
        manager.idle_timeout = self._now(model.CONNECTION_IDLE, config.idle_timeout)
        manager.stream_idle_timeout = self._now(model.STREAM_IDLE, config.stream_idle_timeout)
        manager.max_connection_duration = self._now(model.CONNECTION_MAX, config.max_connection_duration)
        for protocol in self._listener.connections.values():
            if isinstance(protocol, sc.ServerConnection) and protocol.manager is manager:
                self._move(protocol, moved)

    def _move(self, conn: sc.ServerConnection, moved: float) -> None:
        config = self._manager.config
        conn.idle_timeout = self._manager.idle_timeout
        stream_idle = config.stream_idle_timeout
        stream = conn.stream
        if stream is not None and stream.route is not None:
            override = getattr(stream.route.action, "idle_timeout", None)
            stream_idle = stream_idle if override is None else override
        timers = conn.timers
        for kind, name, full in ((sc.T_IDLE, model.CONNECTION_IDLE, config.idle_timeout),
                                 (sc.T_STREAM_IDLE, model.STREAM_IDLE, stream_idle),
                                 (sc.T_MAX_DURATION, model.CONNECTION_MAX, config.max_connection_duration)):
            setting = self._timers.get(name)
            if setting is not None and kind in timers:
                timers[kind] -= self._span(setting, full) * moved
                conn.due(timers[kind])
