"""The action reset_high_memory_stream: in overload, requests that hold most memory end.

Envoy keeps an account for each stream and sorts accounts into eight classes, each for twice the bytes of the one before
(WatermarkBufferFactory). Nothing is kept here: what a request holds is added up when somebody asks. Envoy acts when the
scale changes; here also every refresh interval for as long as the action is not idle, because requests go on growing.
"""

from __future__ import annotations

import contextlib
import socket
from asyncio import AbstractEventLoop
from collections.abc import Callable, Iterable
from struct import pack
from typing import TYPE_CHECKING

from proxy.config.overload_model import RESET_STREAMS
from proxy.http.server_connection import ServerConnection
from proxy.overload.stats import ResetStats

if TYPE_CHECKING:
    from proxy.listener.listener import ActiveListener
    from proxy.overload.worker import OverloadState
    from proxy.stats.groups import Registry

_RESET_ON_CLOSE = pack("ii", 1, 0)

CLASSES = 8
MOST_AT_ONCE = 50
"""Requests that end at one time, those with most bytes first (Envoy's limit)."""


def memory_class(size: int, power: int) -> int | None:
    """0 to 7 for that many bytes, None for less than half of 2**power (minimum_account_to_track_power_of_two)."""
    shifted = size >> (power - 1)
    return min(shifted.bit_length(), CLASSES) - 1 if shifted else None


def lowest_class(scale: float) -> int:
    """Requests of this class and those above end."""
    return CLASSES - min(int(scale * CLASSES) + 1, CLASSES)


def held(conn: ServerConnection) -> int:
    """Bytes that the request on a connection keeps in memory, in both directions."""
    stream = conn.stream
    if stream is None:
        return 0
    size = conn.transport.get_write_buffer_size() + len(conn._rest) + stream.body_size
    if stream.upstream is not None:
        size += stream.upstream.transport.get_write_buffer_size()
    return size


def end(conn: ServerConnection) -> None:
    """End the request and its connection, which for HTTP/1 is the same.

    With RST: what is unsent is dropped here and in the kernel, and nobody takes half a body for a whole one.
    """
    stream = conn.stream
    if stream is not None:
        stream.add_flag(b"OM")
        conn.stats.downstream_rq_rx_reset += 1
        stream.manager.router.abandon(stream)
        stream.finish()
    sock = conn.transport.get_extra_info("socket")
    if sock is not None and not conn.transport.is_closing():
        with contextlib.suppress(OSError):  # already gone
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    conn.close()
    conn.transport.abort()


class StreamResetter:
    """The action at work in one worker. ``listeners`` are those that overload actions concern."""

    def __init__(self, state: OverloadState, listeners: Callable[[], Iterable[ActiveListener]], registry: Registry,
                 loop: AbstractEventLoop) -> None:
        self._listeners = listeners
        self._power = state.config.account_power
        self._interval = state.config.refresh_interval
        self._loop = loop
        self._scale = 0.0
        self._pending = False
        if state.find(RESET_STREAMS) is not None:
            self._stats = registry.group(ResetStats, RESET_STREAMS)
            state.on_change(RESET_STREAMS, self._changed)

    def _changed(self, scale: float) -> None:
        self._scale = scale
        if not self._pending:
            self._run()

    def _run(self) -> None:
        self._pending = False
        if not self._scale:
            return
        lowest = lowest_class(self._scale)
        found = []
        for listener in self._listeners():
            for protocol in listener.connections.values():
                if isinstance(protocol, ServerConnection) and (size := held(protocol)):
                    kind = memory_class(size, self._power)
                    if kind is not None and kind >= lowest:
                        found.append((size, protocol))
        found.sort(key=lambda each: each[0], reverse=True)
        for _, conn in found[:MOST_AT_ONCE]:
            self._stats.count += 1
            end(conn)
        self._pending = True
        self._loop.call_later(self._interval, self._run)
