"""An HTTP/1 connection from a client: the server codec on a transport, its streams one after the other.

Output of one event is collected in ``out`` and written at once; reading stops while any reason in ``held`` lasts.
All timeouts of the connection and of its current stream stand in ``timers``; the earliest is the deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from proxy.deadlines import NEVER
from proxy.http.http1_server import NO_BODY, Http1ServerCodec, reason_phrase
from proxy.http.stream import Stream

if TYPE_CHECKING:
    from proxy.http.h1 import HeadError
    from proxy.http.headers import Field, Headers
    from proxy.http.manager import HttpConnectionManager
    from proxy.listener.connection import Connection

OPEN, DRAINING, CLOSING, CLOSED = range(4)
"""Envoy's DrainState: DRAINING still serves (with connection: close), CLOSING ends after the current response."""

JOIN_LIMIT = 65536
"""Pieces of output up to this size are joined into one write."""

(T_IDLE, T_MAX_DURATION, T_DRAIN, T_DELAYED_CLOSE, T_STREAM_IDLE, T_REQUEST, T_REQUEST_HEADERS, T_ROUTE, T_PER_TRY,
 T_PER_TRY_IDLE, T_MAX_STREAM, T_BACKOFF, T_CLUSTER_STREAM) = range(13)


class ServerConnection(Http1ServerCodec, asyncio.Protocol):
    """One downstream connection (Envoy: ConnectionManagerImpl with its codec)."""

    UPSTREAM_FULL, PIPELINE_FULL, BODY_FULL, CLIENT_FULL = 1, 2, 4, 8
    T_ROUTE = T_ROUTE

    __slots__ = (
        "_closed_by_us", "_head_started", "_unsent", "connection", "deadline", "direct_local_text", "drain_state",
        "filter_chain_name", "held", "id", "idle_timeout", "listener", "local_text", "manager", "now", "out",
        "remote_text", "requests", "stats", "stream", "timers", "transport", "whole", "write_paused",
    )

    transport: asyncio.Transport

    def __init__(self, manager: HttpConnectionManager, connection: Connection) -> None:
        config = manager.config
        super().__init__(config.http1, config.max_request_headers_kb * 1024, config.max_headers_count,
                         config.headers_with_underscores_action)
        self.keep_trailers = config.http1.enable_trailers
        self.manager = manager
        self.connection = connection
        self.listener = connection.listener
        self.stats = manager.stats
        self.id = connection.id
        self.idle_timeout = manager.idle_timeout
        self.now: Callable[[], float] = manager.now
        self.local_text: bytes = connection.local.text.encode()
        self.direct_local_text = (connection.direct_local.text.encode() if connection.restored else self.local_text)
        self.remote_text: bytes = connection.remote.text.encode()
        chain = connection.filter_chain
        self.filter_chain_name = chain.name.encode() if chain is not None and chain.name else None
        self.stream: Stream | None = None
        self.out: list[bytes] = []
        self.timers: dict[int, float] = {}
        self.deadline = NEVER
        self.held = 0
        self.requests = 0
        self.drain_state = OPEN
        self.write_paused = False
        self._unsent = 0
        """Bytes that waited to be written when the delayed close was last looked at."""
        self._closed_by_us = False
        self._head_started = False
        self.whole: bytes | None = None
        """The read that is being parsed, when it is one request head: what plans are kept under."""

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        limit = self.listener.config.per_connection_buffer_limit_bytes
        if limit:
            self.transport.set_write_buffer_limits(high=limit, low=limit // 2)
        self.stats.downstream_cx_total += 1
        self.stats.downstream_cx_active += 1
        manager = self.manager
        if manager.idle_timeout:
            self.arm(T_IDLE, manager.idle_timeout)
        if manager.max_connection_duration:
            self.arm(T_MAX_DURATION, manager.max_connection_duration)
        manager.context.deadlines.watch(self)

    def data_received(self, data: bytes) -> None:
        self.stats.downstream_cx_rx_bytes_total += len(data)
        if self._state == 0 and not self._rest:
            plan = self.manager.request_plans.get(data)
            if plan is not None and plan.run(self):
                return
            self.whole = data if data.find(b"\r\n\r\n") == len(data) - 4 else None
            self.feed(data)
            self.whole = None
        else:
            self.feed(data)
        if (self.stream is None and self._rest and not self._head_started and not self.write_paused
                and self.drain_state != CLOSED):
            self._head_begins()
        if self.out:
            self.flush()

    def eof_received(self) -> bool:
        # HTTP/1 has no half-closed connections (as in Envoy): the client is gone.
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        now = self.now()
        manager = self.manager
        manager.context.deadlines.unwatch(self)
        self.timers.clear()
        stats = self.stats
        stats.downstream_cx_active -= 1
        stats.downstream_cx_destroy += 1
        stream = self.stream
        if stream is None and self._head_started and not self._closed_by_us and self.drain_state != CLOSED:
            # The client left in the middle of a head: a request that never became one is logged all the same.
            stream = self._new_stream()
            stream.protocol = b"HTTP/1.1"
        if self._closed_by_us:
            stats.downstream_cx_destroy_local += 1
        else:
            stats.downstream_cx_destroy_remote += 1
        if stream is not None:
            stats.downstream_cx_destroy_active_rq += 1
            if self._closed_by_us:
                stats.downstream_cx_destroy_local_active_rq += 1
            else:
                stats.downstream_cx_destroy_remote_active_rq += 1
        self.drain_state = CLOSED
        self.out.clear()
        self.ignore()
        length = int((now - self.connection.accepted_at) * 1000)
        stats.downstream_cx_length_ms[length] = stats.downstream_cx_length_ms.get(length, 0) + 1
        if stream is not None:
            stream.downstream_gone()
        self.connection.closed(now)

    def pause_writing(self) -> None:
        self.write_paused = True
        stream = self.stream
        if stream is None:
            self._wait_for_client()
        elif stream.upstream is not None:
            stream.upstream.pause_reading()

    def resume_writing(self) -> None:
        self.write_paused = False
        if self.stream is not None:
            if self.stream.upstream is not None:
                self.stream.upstream.resume_reading()
        elif self.held & self.CLIENT_FULL:
            self.unhold(self.CLIENT_FULL | self.PIPELINE_FULL)
            if self.drain_state < CLOSING:
                self._next_request()
                self.flush()

    def _wait_for_client(self) -> None:
        """It does not read its responses: no further request is begun, or they would pile up here."""
        if self.drain_state < CLOSING:
            self.hold(self.CLIENT_FULL)
            self._state = self.HELD

    # Output

    def write(self, data: bytes) -> None:
        """Add to the output of this event."""
        self.out.append(data)

    def write_chunk(self, data: bytes) -> None:
        """Add one chunk of a chunked body."""
        self.out += (b"%x\r\n" % len(data), data, b"\r\n")

    def flush(self) -> None:
        """Hand the collected output to the transport."""
        out = self.out
        if not out or self.drain_state == CLOSED:
            return
        if len(out) == 1:
            data = out[0]
            self.stats.downstream_cx_tx_bytes_total += len(data)
            self.transport.write(data)
        else:
            size = sum(map(len, out))
            self.stats.downstream_cx_tx_bytes_total += size
            if size <= JOIN_LIMIT:
                self.transport.write(b"".join(out))
            else:
                self.transport.writelines(out)
        self.out = []

    def _flush_last(self) -> None:
        """The same when nothing comes after it, not even a delay: FIN goes along with it."""
        out = self.out
        if out and sum(map(len, out)) <= JOIN_LIMIT and not self.transport.get_write_buffer_size():
            data = b"".join(out)
            sent = self.connection.send_last(data)
            self.stats.downstream_cx_tx_bytes_total += sent
            self.out = [data[sent:]] if sent < len(data) else []
        self.flush()

    # Backpressure towards the client

    def hold(self, reason: int) -> None:
        """Stop reading for a reason; reading resumes when the last reason is gone."""
        if not self.held and self.drain_state != CLOSED and not self.transport.is_closing():
            self.stats.downstream_flow_control_paused_reading_total += 1
            self.transport.pause_reading()
        self.held |= reason

    def unhold(self, reason: int) -> None:
        """A reason not to read is gone."""
        if not self.held & reason:
            return
        self.held &= ~reason
        if not self.held and self.drain_state != CLOSED and not self.transport.is_closing():
            self.stats.downstream_flow_control_resumed_reading_total += 1
            self.transport.resume_reading()

    def on_hold(self) -> None:
        self.hold(self.PIPELINE_FULL)

    # Http1ServerCodec

    def _new_stream(self) -> Stream:
        stats = self.stats
        stats.downstream_rq_total += 1
        stats.downstream_rq_active += 1
        self.requests += 1
        return Stream(self, self.manager)

    def _head_begins(self) -> None:
        """The first bytes of a head without its end: the client may take only so long."""
        manager = self.manager
        if manager.shedding is not None and manager.shedding.aborts(self):
            return
        self._head_started = True
        config = manager.config
        if config.request_headers_timeout:
            self.arm(T_REQUEST_HEADERS, config.request_headers_timeout)
        if config.request_timeout:
            self.arm(T_REQUEST, config.request_timeout)
        if config.stream_idle_timeout:
            self.arm(T_STREAM_IDLE, manager.stream_idle_timeout)

    def on_request(self, method: bytes, path: bytes, authority: bytes | None, http10: bool, headers: Headers,
                   length: int, tokens: list[bytes]) -> None:
        manager = self.manager
        shedding = manager.shedding
        if shedding is not None and not self._head_started and shedding.aborts(self):
            return
        stream = self.stream = self._new_stream()
        if self._head_started:
            self._head_started = False
            self.timers.pop(T_REQUEST_HEADERS, None)
        if manager.max_requests and self.requests >= manager.max_requests:
            self.stats.downstream_cx_max_requests_reached += 1
            stream.saw_close = True
            self.drain_state = CLOSING
        if manager.stream_timers:
            self.arm_stream(length == NO_BODY)
        if shedding is None or not shedding.refuses(stream, method, path, authority, http10, headers, length, tokens):
            stream.begin(method, path, authority, http10, headers, length, tokens)

    def arm_stream(self, complete: bool) -> None:
        """Start the timers of a stream whose head has arrived."""
        config = self.manager.config
        if config.stream_idle_timeout:
            self.arm(T_STREAM_IDLE, self.manager.stream_idle_timeout)
        if config.request_timeout:
            if complete:
                self.timers.pop(T_REQUEST, None)
            elif T_REQUEST not in self.timers:
                self.arm(T_REQUEST, config.request_timeout)
        if config.max_stream_duration:
            self.arm(T_MAX_STREAM, config.max_stream_duration)

    def on_data(self, data: bytes) -> None:
        stream = self.stream
        if stream is not None:
            if len(self.timers) > 1:
                self.touch()
            stream.request_data(data)

    def on_end(self, trailers: list[Field] | None) -> None:
        stream = self.stream
        if stream is not None:
            self.timers.pop(T_REQUEST, None)
            stream.request_end(trailers)

    def on_error(self, error: HeadError) -> None:
        stats = self.stats
        stats.downstream_cx_protocol_error += 1
        self._head_started = False
        stream = self.stream
        if stream is not None:
            stream.protocol_error(error)
        else:
            stream = self.stream = self._new_stream()
            stream.request_complete = True
            stream.protocol = b"HTTP/1.1"
            stream.add_flag(b"DPE")
            stream.local_reply(error.status, reason_phrase(error.status), error.details, close=True)

    # The end of streams and of the connection

    def end_after_response(self) -> None:
        """The response being sent is the last one of the connection, as the client wishes."""
        self.drain_state = CLOSING

    def closing_after(self, stream: Stream, close: bool, headers: Headers) -> bool:
        """Whether the response being encoded announces the end of the connection (Envoy: encodeHeaders)."""
        if self.drain_state == OPEN and self.listener.draining and (
                self.connection.drain_close() or self.manager.ends_keepalive()):
            self._start_drain()
            self.stats.downstream_cx_drain_close += 1
        if close:
            self.drain_state = CLOSING
        if stream.http10 and b"content-length" not in headers.index and stream.method != b"HEAD":
            stream.saw_close = True
        if self.drain_state == OPEN and stream.saw_close:
            self.drain_state = CLOSING
        if not stream.request_complete:
            self.drain_state = CLOSING
            self.stats.downstream_rq_response_before_rq_complete += 1
        return self.drain_state != OPEN

    def stream_finished(self, stream: Stream, now: float) -> None:
        """The stream is over: the next request, or the end of the connection."""
        self.stream = None
        timers = self.timers
        if self.drain_state or self.held or len(timers) > 1:
            if self.drain_state == CLOSED:
                return
            self._drop_stream_timers()
            if self.held:
                self.unhold(self.UPSTREAM_FULL | self.BODY_FULL)
            if self.drain_state == CLOSING:
                self._close_after(stream)
                return
            if self.held:
                self.unhold(self.PIPELINE_FULL)
        if self.idle_timeout:
            # The deadline is never later than this: on_deadline sees to that, so nothing has to be armed.
            timers[T_IDLE] = now + self.idle_timeout
        if self.write_paused:
            self._wait_for_client()
        else:
            self._next_request()

    def _next_request(self) -> None:
        self._state = 0
        if self._rest:
            self.next_message()
            if self._rest and self.stream is None and not self.write_paused and self.drain_state != CLOSED:
                self._head_begins()

    def _close_after(self, stream: Stream) -> None:
        complete = stream.request_complete
        sans_length = stream.http10 and (stream.response_headers is None
                                         or b"content-length" not in stream.response_headers)
        self.close_after_flush(delay=not (stream.saw_close and (complete or sans_length)))

    def reset_stream(self, stream: Stream) -> None:
        """The response cannot be finished: what was sent goes out, then the connection ends."""
        if self.drain_state == OPEN:
            self.drain_state = CLOSING
        stream.saw_close = False
        self.stats.downstream_rq_tx_reset += 1
        stream.finish()

    def _start_drain(self) -> None:
        self.drain_state = DRAINING
        self.arm(T_DRAIN, self.manager.config.drain_timeout)

    def close_after_flush(self, *, delay: bool) -> None:
        """Write what is left and close: at once, or after delayed_close_timeout unless the client is faster."""
        timeout = self.manager.config.delayed_close_timeout
        if delay:
            self.flush()
        else:
            self._flush_last()
        self.ignore()
        if delay and timeout:
            # What still arrives is read and dropped: closing with unread data would reset the connection and could
            # take the reply with it.
            self.drain_state = CLOSING
        else:
            self.close()
        self._unsent = self.transport.get_write_buffer_size()
        if timeout and (delay or self._unsent):
            self.timers.clear()
            self.arm(T_DELAYED_CLOSE, timeout)

    def close(self) -> None:
        """Close from our side. A request in flight is cut (the worker ends) and logged as that."""
        self._closed_by_us = True
        self.drain_state = CLOSED
        self.ignore()
        if hasattr(self, "transport"):  # else accepted, but the loop has not got round to connection_made
            self.transport.close()
        if self.stream is not None:
            self.stream.cut()

    def work(self) -> tuple[int, int]:
        """Requests so far, and those under way."""
        return self.requests, int(self.stream is not None)

    # Timers

    def arm(self, kind: int, seconds: float) -> None:
        """Start (or restart) one of the timers."""
        self.timers[kind] = when = self.now() + seconds
        self.due(when)

    def due(self, when: float) -> None:
        """Some timer expires then."""
        if when < self.deadline:
            self.deadline = when
            deadlines = self.manager.context.deadlines
            if when < deadlines.next:
                deadlines.sooner(when)

    def touch(self) -> None:
        """The stream is alive: its idle timers start anew."""
        stream = self.stream
        timers = self.timers
        if T_STREAM_IDLE in timers:
            idle = self.manager.stream_idle_timeout
            if stream is not None and stream.route is not None:
                override = getattr(stream.route.action, "idle_timeout", None)
                if override is not None:
                    idle = self.manager.stream_idle(override)
            timers[T_STREAM_IDLE] = self.now() + idle
        if T_PER_TRY_IDLE in timers and stream is not None and stream.per_try_idle:
            timers[T_PER_TRY_IDLE] = self.now() + stream.per_try_idle

    def _drop_stream_timers(self) -> None:
        timers = self.timers
        for kind in [k for k in timers if k >= T_STREAM_IDLE]:
            del timers[kind]

    def on_deadline(self, now: float) -> None:
        """Some timer may have expired: act on those that have, and find the next."""
        timers = self.timers
        for kind in [k for k, when in timers.items() if when <= now]:
            if timers.pop(kind, NEVER) <= now:
                self._expired(kind)
        if self.idle_timeout and T_IDLE not in timers and self.drain_state == OPEN:
            timers[T_IDLE] = now + self.idle_timeout
        self.deadline = min(timers.values(), default=NEVER)
        if self.drain_state != CLOSED:
            self.flush()

    def _expired(self, kind: int) -> None:
        stats = self.stats
        if kind == T_DELAYED_CLOSE:
            unsent = self.transport.get_write_buffer_size()
            if 0 < unsent < self._unsent:
                # As in Envoy the time begins anew whenever the client has taken something.
                self._unsent = unsent
                self.arm(T_DELAYED_CLOSE, self.manager.config.delayed_close_timeout)
                return
            stats.downstream_cx_delayed_close_timeout += 1
            self.close()
            self.transport.abort()
        elif kind == T_DRAIN:
            if self.stream is None:
                self.close_after_flush(delay=True)
            else:
                self.drain_state = CLOSING
        elif kind == T_IDLE:
            if self.stream is not None or self._head_started:
                return
            stats.downstream_cx_idle_timeout += 1
            self._end_when_idle(self.requests == 0)
        elif kind == T_MAX_DURATION:
            stats.downstream_cx_max_duration_reached += 1
            if self.manager.config.http1_safe_max_connection_duration and self.requests:
                self.drain_state = DRAINING
            else:
                self._end_when_idle(self.requests == 0)
        else:
            self.manager.stream_timeout(self, kind)

    def _end_when_idle(self, at_once: bool) -> None:
        if at_once:
            self.close_after_flush(delay=False)
        elif self.drain_state == OPEN:
            self._start_drain()
