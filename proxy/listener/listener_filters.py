"""The listener-filter stage of a connection: what is found out about it before a filter chain is chosen.

Filters look at the bytes with MSG_PEEK, so nothing has to be pushed back. The kernel wakes us once for new data
(SO_RCVLOWAT), not for what has been seen already. Envoy: ActiveTcpSocket.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from proxy.config import model
from proxy.deadlines import NEVER
from proxy.limits.worker import discharge
from proxy.listener.http_inspector import HTTP2, HTTP10, HTTP11, MAX_INSPECT_SIZE, NOT_HTTP, classify
from proxy.listener.original_dst import original_destination
from proxy.stats.groups import HttpInspectorStats

if TYPE_CHECKING:
    from proxy.context import Context
    from proxy.listener.connection import Connection
    from proxy.listener.listener import ActiveListener

SERVER_FIRST_PATIENCE = 5.0
"""Seconds for the first byte where the configuration sets no limit but wants to go on: a protocol in which the server
speaks first would wait for ever."""

_PEEK = socket.MSG_PEEK | socket.MSG_DONTWAIT
_FIRST_PEEK = 2048
_ESTABLISHED, _CLOSED = 1, 7
"""TCP_ESTABLISHED and TCP_CLOSE of netinet/tcp.h."""

Step = Callable[["ActiveTcpSocket"], bool]
"""One filter at work: True when it is done, False when it waits for data."""


def original_dst(pending: ActiveTcpSocket) -> bool:
    """extensions.filters.listener.original_dst."""
    connection = pending.connection
    address = original_destination(connection.sock)
    if address is not None:
        connection.local = address
        connection.restored = True
    return True


def http_inspector(context: Context) -> Step:
    """extensions.filters.listener.http_inspector."""
    stats = context.registry.group(HttpInspectorStats, "http_inspector")

    def inspect(pending: ActiveTcpSocket) -> bool:
        connection = pending.connection
        if connection.transport_protocol != "raw_buffer":
            return True
        found = classify(pending.data) if pending.data else None
        if found is None:
            if not pending.eof:
                return False
            # The client sends nothing more and it is not HTTP so far: whatever it is, it is all there.
            found = NOT_HTTP
        connection.application_protocol = found
        if found == HTTP11:
            stats.http11_found += 1
        elif found == HTTP10:
            stats.http10_found += 1
        elif found == HTTP2:
            stats.http2_found += 1
        else:
            stats.http_not_found += 1
        return True

    return inspect


MAKERS: dict[str, tuple[Callable[[Context], Step], bool]] = {
    model.ORIGINAL_DST_FILTER: (lambda _: original_dst, False),
    model.HTTP_INSPECTOR_FILTER: (http_inspector, True),
}
"""Listener filter -> (what makes it, whether it looks at data)."""


class ListenerFilters:
    """The filters of one listener, compiled: ``steps`` of (filter, disabled predicate, looks at data)."""

    __slots__ = ("go_on", "patience", "steps", "timeout")

    def __init__(self, config: model.Listener, context: Context) -> None:
        self.steps = tuple((MAKERS[f.type][0](context), f.disabled, MAKERS[f.type][1])
                           for f in config.listener_filters)
        self.timeout = config.listener_filters_timeout
        self.go_on = config.continue_on_listener_filters_timeout
        self.patience = SERVER_FIRST_PATIENCE if self.go_on and not self.timeout else 0.0


class ActiveTcpSocket:
    """A connection in the listener-filter stage; it ends in ``next_stage(connection)``, or closed."""

    __slots__ = ("_at", "_context", "_filters", "_listener", "_next_stage", "_reading", "connection", "data",
                 "deadline", "eof")

    def __init__(self, connection: Connection, listener: ActiveListener, filters: ListenerFilters, context: Context,
                 next_stage: Callable[[Connection], None]) -> None:
        self.connection = connection
        self._listener = listener
        self._next_stage = next_stage
        self._filters = filters
        self._context = context
        self._at = 0
        self._reading = False
        self.data = b""
        """What has been peeked so far."""
        self.eof = False
        """The client sends nothing more."""
        self.deadline = NEVER

    def run(self) -> None:
        """Go on with the first filter that is not done yet."""
        steps = self._filters.steps
        while self._at < len(steps):
            step, disabled, looks = steps[self._at]
            if disabled is None or not disabled(self.connection.local.port):
                if looks and not self.data and not self._peek():
                    return
                if not step(self):
                    if self._wait():
                        return
                    self.eof = True
                    step(self)
            self._at += 1
        self._done()

    def _peek(self) -> bool:
        """Look at all that has arrived. False: the connection has ended."""
        before = len(self.data)
        size = _FIRST_PEEK if before < _FIRST_PEEK else MAX_INSPECT_SIZE
        sock = self.connection.sock
        try:
            self.data = sock.recv(size, _PEEK)
            if len(self.data) == size < MAX_INSPECT_SIZE:
                self.data = sock.recv(MAX_INSPECT_SIZE, _PEEK)
        except BlockingIOError:
            return True
        except OSError:
            self._gone()
            return False
        if not self.data:
            # Closed without a byte: a probe. There is nothing to serve.
            self._gone()
            self._listener.log_end(self.connection, self._context.loop.time())
            return False
        if len(self.data) == before:
            # Woken without new data: the end of the stream, or the kernel is short of memory. Either way this is all.
            self.eof = True
            return not self._reset()
        return True

    def _reset(self) -> bool:
        # Bytes that came before a RST can still be read: only the state tells.
        if self._state() != _CLOSED:
            return False
        self._gone()
        return True

    def _state(self) -> int:
        return self.connection.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]

    def _wait(self) -> bool:
        """Be woken for more data, unless the connection is gone; False when no more will come."""
        sock = self.connection.sock
        if self.data:
            if self.eof or self._state() != _ESTABLISHED:
                return self._reset()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, len(self.data) + 1)
        if not self._reading:
            self._reading = True
            self._context.loop.add_reader(sock, self._readable)
            self._listener.pending.add(self)
            self._listener.stats.downstream_pre_cx_active += 1
            limit = self._filters.timeout or self._filters.patience
            if limit:
                self.deadline = self._context.loop.time() + limit
            self._context.deadlines.watch(self)
        return True

    def _readable(self) -> None:
        if self._peek():
            self.run()

    def on_deadline(self, now: float) -> None:
        """listener_filters_timeout: go on as if nothing had been found out, or close."""
        filters = self._filters
        if not filters.timeout:
            if not self.data:
                self._done()
            return
        self._listener.stats.downstream_pre_cx_timeout += 1
        if filters.go_on:
            self._done()
        else:
            self.close()
            self._listener.log_end(self.connection, now)

    def _stop(self) -> None:
        if self._reading:
            self._reading = False
            self._listener.pending.discard(self)
            self._context.loop.remove_reader(self.connection.sock)
            self._context.deadlines.unwatch(self)
            self._listener.stats.downstream_pre_cx_active -= 1
            if self.data:
                self.connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)

    def _done(self) -> None:
        self._stop()
        self._next_stage(self.connection)

    def _gone(self) -> None:
        self._listener.stats.downstream_listener_filter_remote_close += 1
        self.close()

    def close(self) -> None:
        """Drop the connection."""
        self._stop()
        if self.connection.charged:
            discharge(self.connection)
        self.connection.sock.close()
