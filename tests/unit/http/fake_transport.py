"""A transport and the socket below it, in memory."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.unit.http.http_world import Loop


class FakeSocket:
    def __init__(self) -> None:
        self.options: list[tuple[int, ...]] = []

    def setsockopt(self, *option: int) -> None:
        self.options.append(option)


class AcceptedSocket:
    """The socket below a transport, which the last bytes of a connection go to directly: ``room`` of them at most."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self.room: int | None = None
        self.ended = False

    def send(self, data: bytes, flags: int) -> int:
        assert flags == socket.MSG_MORE and not self.ended
        if self.room == 0:
            raise BlockingIOError
        taken = data if self.room is None else data[:self.room]
        self._transport.write(taken)
        return len(taken)

    def shutdown(self, how: int) -> None:
        assert how == socket.SHUT_WR and not self.ended
        self.ended = True


class Transport:
    """Records what is written; its end is reported in the next turn, as real ones do."""

    def __init__(self, loop: Loop, wrote: Callable[[bytes], None], local: tuple[str, int]) -> None:
        self._loop, self._wrote = loop, wrote
        self.socket = FakeSocket()
        self._info = {"socket": self.socket, "sockname": local}
        self.protocol: Any = None
        self.closing = self.aborted = self.lost = False
        self.paused = False
        self.limits: dict[str, int] = {}
        self.unsent = 0
        """Bytes that the peer has not taken yet, as the test has it."""

    def get_extra_info(self, name: str) -> Any:
        return self._info.get(name)

    def set_write_buffer_limits(self, **limits: int) -> None:
        self.limits = limits

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def write(self, data: bytes) -> None:
        assert data, "nothing was written"
        assert not self.closing, "written after close"
        self._wrote(bytes(data))

    def writelines(self, pieces: list[bytes]) -> None:
        self.write(b"".join(pieces))

    def is_closing(self) -> bool:
        return self.closing

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            self._loop.ready.append(lambda: self.gone(None))

    def abort(self) -> None:
        self.aborted = True
        self.close()

    def gone(self, error: Exception | None) -> None:
        if not self.lost:
            self.closing = self.lost = True
            self.protocol.connection_lost(error)
