"""An HTTP/1 connection to an upstream host: the client codec on a transport, one request at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, cast

from proxy.deadlines import NEVER
from proxy.http import reset
from proxy.http.http1_client import Http1ClientCodec
from proxy.upstream.dial import connection_closed

if TYPE_CHECKING:
    from proxy.http.h1 import HeadError
    from proxy.http.headers import Field, Headers
    from proxy.http.stream import Stream
    from proxy.upstream.cluster import Cluster, Host
    from proxy.upstream.pool import Pool


class ClientConnection(Http1ClientCodec, asyncio.Protocol):
    """Owned by its pool while idle, by one stream while it is busy. Calls the stream's ``upstream_*`` methods."""

    __slots__ = (
        "_closed_by_us", "_cluster", "_cut", "_ended", "_host", "_idle_timeout", "_idle_until", "_lost", "_now",
        "_opened_at", "_paused", "_pool", "_request_sent", "_reusable", "_stats", "_until", "deadline", "head",
        "local_address", "served", "stream", "transport",
    )

    transport: asyncio.Transport

    def __init__(self, pool: Pool, cluster: Cluster, host: Host) -> None:
        config = cluster.config
        super().__init__(config.max_response_headers_kb * 1024, config.max_response_headers_count)
        self.keep_trailers = config.http1.enable_trailers
        self._pool = pool
        self._cluster = cluster
        self._host = host
        self._stats = cluster.stats
        self._now = cluster.context.loop.time
        self._opened_at = self._now()
        self._until = self._opened_at + config.max_connection_duration if config.max_connection_duration else NEVER
        self._idle_timeout = config.idle_timeout or NEVER
        self._idle_until = NEVER
        self._request_sent = False
        self._reusable = False
        self._closed_by_us = False
        self._cut = False
        """We closed it in the middle of a request."""
        self._lost = False
        self._paused = False
        """Reading is paused for a slow client."""
        self._ended: Callable[[], None] | None = None
        """The end of the response, which the stream hears of when all that has arrived is parsed."""
        self.deadline = NEVER
        self.stream: Stream | None = None
        self.served = 0
        """Requests that were sent on this connection."""
        self.local_address = b""
        self.head = b""
        """The response head that is being parsed, when it came in one read: what plans are kept under."""

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        limit = self._cluster.config.per_connection_buffer_limit_bytes
        if limit:
            self.transport.set_write_buffer_limits(high=limit, low=limit // 2)
        address = transport.get_extra_info("sockname")
        if address:
            host, port = address[:2]
            self.local_address = (f"[{host}]:{port}" if ":" in host else f"{host}:{port}").encode()
        self._cluster.context.deadlines.watch(self)

    def data_received(self, data: bytes) -> None:
        self._stats.upstream_cx_rx_bytes_total += len(data)
        stream = self.stream
        if stream is None:
            # RFC 9112 section 9.2: nothing may come without a request. The connection is not usable.
            self._stats.upstream_cx_protocol_error += 1
            self.close()
            return
        if self._state == 0 and not self._rest:
            end = data.find(b"\r\n\r\n") + 4
            head = data[:end]
            plan = stream.manager.response_plans.get(head)
            if (plan is not None and stream.plan is not None and not self._head_request
                    and plan.run(stream, self, data, end)):
                return
            self.head = head
            self.feed(data)
            self.head = b""
        else:
            self.feed(data)
        self.settle()
        conn = stream.conn
        if conn.out:
            conn.flush()

    def eof_received(self) -> bool:
        stream = self.stream
        if stream is None:
            self._pool.forget_idle(self)
        elif self.until_close:
            self.keep_alive = False
            self.on_end(None)
            self.settle()
            stream.conn.flush()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._cluster.context.deadlines.unwatch(self)
        stream = self.stream
        now = self._now()
        connection_closed(self._cluster, self._host, self._opened_at, now, local=self._closed_by_us,
                          active_rq=stream is not None or self._cut)
        self._pool.connection_lost(self)
        if stream is None:
            return
        if self.until_close and exc is None:
            self.on_end(None)
            self.settle()
        else:
            self._detach()
            # A message cut short is broken; an end before its first byte is a lost connection.
            cut = not stream.is_tunnel and (self._state != self.HEAD or self.has_partial)
            if cut:
                self._stats.upstream_cx_protocol_error += 1
            stream.upstream_reset(reset.PROTOCOL_ERROR if cut else reset.CONNECTION_TERMINATION, self.served > 1)
        stream.conn.flush()

    def pause_writing(self) -> None:
        self._stats.upstream_flow_control_backed_up_total += 1
        if self.stream is not None:
            self.stream.conn.hold(self.stream.conn.UPSTREAM_FULL)

    def resume_writing(self) -> None:
        self._stats.upstream_flow_control_drained_total += 1
        if self.stream is not None:
            self.stream.conn.unhold(self.stream.conn.UPSTREAM_FULL)

    # Used by the stream.

    def start(self, stream: Stream, head: bytes, head_request: bool, upgrade: bool = False,
              complete: bool = True) -> None:
        """Send a request head. Unless that is all (``complete``), ``send`` and ``finish_request`` follow."""
        self.stream = stream
        self.served += 1
        self._request_sent = complete
        self._head_request = head_request
        self._upgrade = upgrade
        self.until_close = False
        self._state = 0
        self._stats.upstream_cx_tx_bytes_total += len(head)
        self.transport.write(head)

    def send(self, data: bytes) -> None:
        """Send encoded body bytes."""
        self._stats.upstream_cx_tx_bytes_total += len(data)
        self.transport.write(data)

    def finish_request(self) -> None:
        """The request is sent completely."""
        self._request_sent = True

    def finished(self, now: float) -> None:
        """A plan has passed the whole response on."""
        self.stream = None
        config = self._cluster.config
        pool = self._pool
        pool.request_done()
        if self._paused:
            self.resume_reading()
        limit = config.max_requests_per_connection
        if not self.keep_alive or (limit and self.served >= limit) or now >= self._until:
            self._retire(limit)
        else:
            self._state = self.HELD
            pool.release(self)

    def settle(self) -> None:
        """All that has arrived is parsed: if the response was complete, the connection is free and the stream ends.

        In this order, so that a pipelined request finds the connection idle.
        """
        ended = self._ended
        if ended is None:
            return
        self._ended = None
        if self._reusable:
            self._reusable = False
            if self._rest:
                # More than one response: whose would it be?
                self._stats.upstream_cx_protocol_error += 1
                self.close()
            else:
                self._pool.release(self)
        ended()

    def abandon(self) -> None:
        """The stream gives the request up: the connection cannot be used again (RFC 9112 section 9.6)."""
        if self.stream is not None:
            self._detach()
            self._cut = True
            self.close()

    def close(self) -> None:
        """Close from our side."""
        self._closed_by_us = True
        self._pool.forget_idle(self)
        self.ignore()
        # What is still unsent is of no use to anybody: abort does not wait for it, and sends FIN all the same.
        self.transport.abort()

    def pause_reading(self) -> None:
        """Stop reading the response: the client is slow."""
        self._stats.upstream_flow_control_paused_reading_total += 1
        if not self._lost and not self.transport.is_closing():
            self._paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Read on."""
        self._stats.upstream_flow_control_resumed_reading_total += 1
        self._paused = False
        if not self._lost and not self.transport.is_closing():
            self.transport.resume_reading()

    def became_idle(self) -> None:
        """The pool keeps the connection for later."""
        # A deadline that is set stays: it comes early, and on_deadline moves it.
        self._idle_until = when = self._now() + self._idle_timeout
        if self.deadline == NEVER:
            self.deadline = when if when < self._until else self._until
            deadlines = self._cluster.context.deadlines
            if self.deadline < deadlines.next:
                deadlines.sooner(self.deadline)

    def on_deadline(self, now: float) -> None:
        """Idle for too long, or too old. A deadline from before the current request only comes too early."""
        if self.stream is not None:
            return
        if now < self._idle_until and now < self._until:
            self.deadline = min(self._idle_until, self._until)
            return
        if now >= self._until:
            self._stats.upstream_cx_max_duration_reached += 1
        else:
            self._stats.upstream_cx_idle_timeout += 1
        self.close()

    # Http1ClientCodec

    def on_interim(self, status: int, headers: Headers) -> None:
        stream = self.stream
        self.head = b""
        if stream is not None and not stream.interim:
            stream.interim = True
            codes = self._stats.codes
            codes[status] = codes.get(status, 0) + 1
            stream.upstream_interim(status, headers)

    def on_response(self, status: int, headers: Headers, end_stream: bool) -> None:
        stream = cast("Stream", self.stream)
        if end_stream:
            self._done(stream)
            self._ended = partial(stream.upstream_headers, status, headers, True)
        else:
            stream.upstream_headers(status, headers, False)

    def on_data(self, data: bytes) -> None:
        stream = self.stream
        if stream is not None:
            stream.upstream_data(data)

    def on_end(self, trailers: list[Field] | None) -> None:
        stream = self.stream
        if stream is not None:
            self._done(stream)
            self._ended = partial(stream.upstream_end, trailers)

    def on_error(self, error: HeadError) -> None:
        stream = self.stream
        self._stats.upstream_cx_protocol_error += 1
        if stream is not None:
            self._detach()
            self._cut = True
            self.close()
            stream.upstream_reset(reset.PROTOCOL_ERROR, self.served > 1)

    def _detach(self) -> None:
        stream = self.stream
        if stream is not None:
            self.stream = None
            stream.upstream = None
            self._pool.request_done()

    def _done(self, stream: Stream) -> None:
        """The response is complete: the connection goes back to the pool once all that arrived is parsed, or away."""
        self.stream = None
        stream.upstream = None
        self._pool.request_done()
        if self._paused:
            # The slow client that it was paused for has nothing to do with the next request.
            self.resume_reading()
        limit = self._cluster.config.max_requests_per_connection
        if (self.keep_alive and self._request_sent and not self._lost and not (limit and self.served >= limit)
                and not self.transport.is_closing() and self._now() < self._until
                and not self.transport.get_write_buffer_size()):
            self._reusable = True
        else:
            self._retire(limit)

    def _retire(self, limit: int) -> None:
        """The connection has served its last request."""
        if self.until_close:
            return  # the peer has closed, or is about to
        if limit and self.served >= limit:
            self._stats.upstream_cx_max_requests += 1
        if not self._request_sent:
            self._cut = True
        if not self.keep_alive and not self._lost:
            self._stats.upstream_cx_close_notify += 1
        if not self._lost:
            self.close()
