"""Messages between main and a worker over a socketpair: requests with replies, one connection, both ways alike.

A message is four bytes of length and a marshal value ``(kind, id, name, value)``. marshal because both ends are the
same program, it takes plain containers of numbers and bytes, and a statistics snapshot costs a tenth of JSON.
"""

from __future__ import annotations

import asyncio
import itertools
import marshal
from collections.abc import Callable, Coroutine
from typing import Any, cast

MAX_MESSAGE = 64 * 1024 * 1024
"""Bytes. A snapshot of 10,000 clusters is about 30 MB; more is a defect."""

_REQUEST, _REPLY, _ERROR = range(3)
_HEAD = 4


class ChannelClosed(Exception):
    """The other process is gone."""


class RemoteError(Exception):
    """The other process could not do it; the text is its reason."""


class Refusal(Exception):
    """Raised by a handler: an expected failure whose text goes to the caller as RemoteError."""


class Channel(asyncio.Protocol):
    """One end. ``handler(name, value)`` answers the peer's requests, at once or by a coroutine.

    ``on_close`` is called when the peer is gone.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, handler: Callable[[str, Any], Any],
                 on_close: Callable[[], None]) -> None:
        self._loop = loop
        self._handler = handler
        self._on_close = on_close
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._answering: set[asyncio.Task[None]] = set()

    # --- asyncio.Protocol ---------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's class is not derived from it

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        at = 0
        while len(buffer) - at >= _HEAD:
            size = int.from_bytes(buffer[at:at + _HEAD], "big")
            if size > MAX_MESSAGE:
                raise ValueError(f"message of {size} bytes between main and worker, at most {MAX_MESSAGE} expected")
            if len(buffer) - at - _HEAD < size:
                break
            kind, number, name, value = marshal.loads(buffer[at + _HEAD:at + _HEAD + size])
            at += _HEAD + size
            if kind == _REQUEST:
                self._answer(number, name, value)
            else:
                self._resolve(kind, number, value)
        del buffer[:at]

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(ChannelClosed())
        self._on_close()

    # --- what callers use ---------------------------------------------------------------------------------------

    def request(self, name: str, value: Any = None) -> asyncio.Future[Any]:
        """Ask the peer; the future gets its reply, RemoteError or ChannelClosed. Cancelling it forgets the reply."""
        future: asyncio.Future[Any] = self._loop.create_future()
        if self._transport is None:
            future.set_exception(ChannelClosed())
            future.exception()
            return future
        number = next(self._ids)
        self._waiting[number] = future
        future.add_done_callback(lambda done: self._settled(number, done))
        self._send(_REQUEST, number, name, value)
        return future

    def close(self) -> None:
        """Close this end once what was written is out."""
        if self._transport is not None:
            self._transport.close()

    @property
    def connected(self) -> bool:
        """The peer can be asked."""
        return self._transport is not None

    # --- inside -------------------------------------------------------------------------------------------------

    def _send(self, kind: int, number: int, name: str, value: Any) -> None:
        if self._transport is not None:
            data = marshal.dumps((kind, number, name, value))
            self._transport.write(len(data).to_bytes(_HEAD, "big") + data)

    def _answer(self, number: int, name: str, value: Any) -> None:
        try:
            result = self._handler(name, value)
        except Exception as error:
            self._fail(number, name, error)
            return
        if asyncio.iscoroutine(result):
            task = self._loop.create_task(self._answer_later(number, name, result))
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)
        else:
            self._send(_REPLY, number, name, result)

    async def _answer_later(self, number: int, name: str, coroutine: Coroutine[Any, Any, Any]) -> None:
        try:
            self._send(_REPLY, number, name, await coroutine)
        except Exception as error:
            self._fail(number, name, error)

    def _fail(self, number: int, name: str, error: Exception) -> None:
        if not isinstance(error, Refusal):
            self._loop.call_exception_handler({"message": f"request '{name}' failed", "exception": error})
        self._send(_ERROR, number, name, str(error) or type(error).__name__)

    def _settled(self, number: int, future: asyncio.Future[Any]) -> None:
        self._waiting.pop(number, None)
        if not future.cancelled():
            future.exception()  # whoever asked may be gone; asyncio would complain of an error that nobody looked at

    def _resolve(self, kind: int, number: int, value: Any) -> None:
        future = self._waiting.get(number)
        if future is None or future.done():
            return  # the caller no longer waits
        if kind == _REPLY:
            future.set_result(value)
        else:
            future.set_exception(RemoteError(value))
