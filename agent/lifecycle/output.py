"""The proxy's standard error: passed on as it comes, with the last lines kept for the report of a crash.

Access logs go to standard output, which the proxy inherits untouched; what passes here are its own few log lines.
"""

import asyncio
import os
import select
import stat

TAIL_BYTES = 16 * 1024
TAIL_LINES = 5
MAX_LINE = 400  # characters of one line in a report
_CRITICAL = "[critical]"  # as Envoy marks the level
_READ_SIZE = 64 * 1024
_LAST_READ = 1024 * 1024  # what may wait in the pipe when the proxy has ended; Linux lets a pipe grow to this
_LAST_WRITE_S = 1.0


class Relay:
    """A pipe whose write end becomes the standard error of the proxy. Use: `open`, spawn, `spawned`, ..., `close`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, target: int = 2) -> None:
        self._loop = loop
        self._read_end, self.write_end = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._read_end, False)  # the proxy's end is a description of its own and stays blocking
        self._target, self._owned = _writable(target)
        self._waiting = b""
        self._tail = bytearray()
        self._closed = False
        loop.add_reader(self._read_end, self._readable)

    def give_to(self, uid: int) -> None:
        """Let another user open `/dev/stderr` by its name."""
        os.fchown(self.write_end, uid, uid)

    def spawned(self) -> None:
        """Close our copy of the proxy's end."""
        os.close(self.write_end)
        self.write_end = -1

    def last_lines(self) -> list[str]:
        """The last lines, oldest first, each bounded.

        If there are critical ones among what is remembered, the first of those: the reason stands before a backtrace,
        and the first complaint about a configuration before what follows from it.
        """
        lines = self._tail.decode("utf-8", "replace").splitlines()
        lines = [line.strip()[:MAX_LINE] for line in lines if line.strip()]
        critical = [line for line in lines if _CRITICAL in line]
        return critical[:TAIL_LINES] or lines[-TAIL_LINES:]

    def close(self) -> None:
        """Pass on what is left in the pipe, and end. A process that still holds the other end is not waited for."""
        if self._closed:
            return
        self._stop()
        read = 0
        while read < _LAST_READ and (data := self._read()):
            read += len(data)
            self._write_out(data)
        self._write_out(b"")
        if self.write_end >= 0:
            self.spawned()
        os.close(self._read_end)
        if self._owned:
            os.close(self._target)

    def _stop(self) -> None:
        self._closed = True
        self._loop.remove_reader(self._read_end)
        if self._owned:
            self._loop.remove_writer(self._target)

    def _read(self) -> bytes:
        try:
            data = os.read(self._read_end, _READ_SIZE)
        except BlockingIOError:
            return b""
        self._tail += data[-TAIL_BYTES:]
        del self._tail[:-TAIL_BYTES]
        return data

    def _readable(self) -> None:
        data = self._read()
        if not data:
            self._loop.remove_reader(self._read_end)  # nobody holds the other end any more
            return
        self._waiting = self._write(data)
        if self._waiting:
            # Whoever reads our standard error is slow: the pipe fills, and the proxy waits as it would without us.
            self._loop.remove_reader(self._read_end)
            self._loop.add_writer(self._target, self._writable_again)

    def _writable_again(self) -> None:
        self._waiting = self._write(self._waiting)
        if not self._waiting:
            self._loop.remove_writer(self._target)
            self._loop.add_reader(self._read_end, self._readable)

    def _write(self, data: bytes) -> bytes:
        """What could not be written yet. What cannot be written at all (no reader, full disk) is dropped."""
        while data:
            try:
                data = data[os.write(self._target, data) :]
            except BlockingIOError:
                return data
            except OSError:
                return b""
        return b""

    def _write_out(self, data: bytes) -> None:
        """Write with a time limit, at the end."""
        left = self._write(self._waiting + data)
        while left and select.select((), (self._target,), (), _LAST_WRITE_S)[1]:
            left = self._write(left)
        self._waiting = b""


def _writable(target: int) -> tuple[int, bool]:
    """A descriptor for `target` that never blocks, and whether it is a new one.

    Only a pipe or terminal can block for long. It is opened anew, because O_NONBLOCK on the description that we share
    with others would surprise them; where that is not allowed the shared one has to do.
    """
    try:
        mode = os.fstat(target).st_mode
        if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
            return os.open(f"/proc/self/fd/{target}", flags), True
    except OSError:
        pass
    return target, False
