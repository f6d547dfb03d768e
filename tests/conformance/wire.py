"""A socket with a transcript: every byte that was received, and how the stream ended, in order."""

from __future__ import annotations

import re
import socket
import struct
import time
from collections.abc import Callable

from tests.conformance.dsl import CRLF, Op

_CONTENT_LENGTH = re.compile(rb"(?im)^content-length:[ \t]*(\d+)[ \t]*\r?$")
_CHUNKED = re.compile(rb"(?im)^transfer-encoding:.*chunked[ \t]*\r?$")
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})")


class Stuck(Exception):
    """An operation did not complete before its deadline."""


class Ended(Exception):
    """The peer ended the stream in the middle of what was to be read."""


class Wire:
    """One end of a connection. Reading operations consume from a buffer; `seen` keeps everything."""

    def __init__(self, sock: socket.socket, patience: float) -> None:
        self.sock = sock
        self.patience = patience
        self.seen: list[bytes | str] = []
        self.ended = False
        self._buffer = bytearray()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def do(self, op: Op) -> bool:
        """Perform a socket operation; False if `op` is none. Raises Stuck, Ended."""
        action = _ACTIONS.get(op.kind)
        if action is None:
            return False
        action(self, op)
        return True

    def note(self, text: str) -> None:
        """Add a remark to the transcript."""
        self.seen.append(text)

    # --- reading ---

    def fill(self, deadline: float) -> bool:
        """Receive some more; False at the end of the stream. Raises Stuck."""
        if self.ended:
            return False
        self.sock.settimeout(max(deadline - time.monotonic(), 0.001))
        try:
            data = self.sock.recv(262144)
        except TimeoutError:
            raise Stuck from None
        except ConnectionError:
            self.ended = True
            self.note("RST")
            return False
        if not data:
            self.ended = True
            self.note("FIN")
            return False
        self._got(data)
        return True

    def surplus(self) -> None:
        """Take what has already arrived, without waiting."""
        if self.ended or self.sock.fileno() < 0:
            return
        self.sock.setblocking(False)
        try:
            while data := self.sock.recv(262144):
                self._got(data)
        except OSError:
            return

    def readable(self) -> bool:
        """Wait without limit for bytes; False once the stream has ended or the socket was shut."""
        if self._buffer:
            return True
        try:
            self.sock.settimeout(None)
            data = self.sock.recv(262144)
        except OSError:
            return False
        if not data:
            self.ended = True
            return False
        self._got(data)
        return True

    def _got(self, data: bytes) -> None:
        self._buffer += data
        if self.seen and isinstance(self.seen[-1], bytes):
            self.seen[-1] += data
        else:
            self.seen.append(data)

    def _take(self, size: int) -> bytes:
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    def _until(self, mark: bytes, deadline: float) -> bytes:
        scanned = 0
        while (at := self._buffer.find(mark, scanned)) < 0:
            scanned = max(0, len(self._buffer) - len(mark))
            if not self.fill(deadline):
                raise Ended
        return self._take(at + len(mark))

    def _exactly(self, size: int, deadline: float) -> bytes:
        while len(self._buffer) < size:
            if not self.fill(deadline):
                raise Ended
        return self._take(size)

    def read_message(self, *, is_response: bool, head_only: bool = False) -> tuple[bytes, bytes]:
        """Head and body of one message, framed as RFC 9112 section 6.3 says. Raises Stuck, Ended."""
        deadline = time.monotonic() + self.patience
        headers = self._until(CRLF + CRLF, deadline)
        status = int(match[1]) if (match := _STATUS.match(headers)) else 0
        if head_only or (is_response and (status < 200 or status in (204, 304))):
            return headers, b""
        if _CHUNKED.search(headers):
            return headers, self._read_chunks(deadline)
        if match := _CONTENT_LENGTH.search(headers):
            return headers, self._exactly(int(match[1]), deadline)
        if not is_response:
            return headers, b""
        while self.fill(deadline):
            pass
        return headers, self._take(len(self._buffer))

    def _read_chunks(self, deadline: float) -> bytes:
        body = b""
        while size := int(self._until(CRLF, deadline).split(b";")[0], 16):
            body += self._exactly(size + 2, deadline)[:-2]
        while self._until(CRLF, deadline) != CRLF:
            pass
        return body

    # --- operations ---

    def _send(self, op: Op) -> None:
        self.sock.settimeout(self.patience)
        try:
            self.sock.sendall(op.data)
        except TimeoutError:
            raise Stuck from None
        except OSError:
            pass  # the peer may close before it has read everything; what it answered is what counts

    def _dribble(self, op: Op) -> None:
        for byte in op.data:
            self._send(Op("send", bytes((byte,))))

    def _message(self, op: Op) -> None:
        self.read_message(is_response=op.kind == "response", head_only=bool(op.data))

    def _read_until(self, op: Op) -> None:
        self._until(op.data, time.monotonic() + self.patience)

    def _recv(self, op: Op) -> None:
        self._exactly(op.data, time.monotonic() + self.patience)

    def _end(self, op: Op) -> None:
        deadline = time.monotonic() + self.patience
        while self.fill(deadline):
            pass
        if op.data and self.seen and self.seen[-1] in ("FIN", "RST"):
            self.seen[-1] = "FIN or RST"

    def _shut(self, _op: Op) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def hang_up(self) -> None:
        """End both directions; a thread blocked in reading wakes up."""
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def close(self) -> None:
        """Close both directions."""
        self.hang_up()
        self.sock.close()
        self.ended = True

    def _close(self, _op: Op) -> None:
        self.close()

    def _reset(self, _op: Op) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()
        self.ended = True


_ACTIONS: dict[str, Callable[[Wire, Op], None]] = {
    "send": Wire._send,
    "dribble": Wire._dribble,
    "response": Wire._message,
    "request": Wire._message,
    "until": Wire._read_until,
    "recv": Wire._recv,
    "end": Wire._end,
    "shut": Wire._shut,
    "close": Wire._close,
    "reset": Wire._reset,
}
