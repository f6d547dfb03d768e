"""Files that access logs are appended to: lines wait in memory and are written in batches of whole lines.

The first line after start is written at once, then whatever waits when it exceeds the flush size or the flush
interval is over. Several workers append to one file: each batch is one ``write`` on a descriptor opened with O_APPEND,
and to a pipe at most PIPE_BUF bytes at a time, so lines never mix. A pipe or socket that takes no more is never waited
for: lines queue up to BACKLOG bytes, further ones are dropped, counted (``filesystem.write_failed``) and reported.
"""

from __future__ import annotations

import os
import select
import socket
import stat
import time
from asyncio import AbstractEventLoop, TimerHandle
from collections import deque
from collections.abc import Callable

from proxy import log
from proxy.access_log.format import compile_format
from proxy.config.model import AccessLog
from proxy.stats.groups import Counter, Gauge, Registry, Snapshot, StatGroup
from proxy.stream_info import StreamInfo

BACKLOG = 1024 * 1024
"""Bytes that wait for a reader of a pipe, per file and worker."""

EXIT_PATIENCE = 0.25
"""Seconds that ``close`` waits for the reader of a full pipe."""

RETRY_INTERVAL = 0.02
"""Seconds between looks at a full pipe that others write to as well."""

_STREAMS = {"/dev/stdout": 1, "/dev/stderr": 2}

_log = log.get("file")


class LogFileError(OSError):
    """A file that cannot be opened; the text is Envoy's: ``unable to open file '/x': No such file or directory``."""


class FilesystemStats(StatGroup):
    """``filesystem``. ``write_buffered`` counts lines that were accepted, ``write_completed`` calls of write()."""

    write_buffered: Counter
    write_completed: Counter
    write_failed: Counter
    flushed_by_timer: Counter
    reopen_failed: Counter
    write_total_buffered: Gauge
    __slots__ = (*__annotations__, "refresh")

    refresh: Callable[[], None]
    """Brings the numbers that are not kept while lines are written up to date."""

    def __init__(self, prefix: str) -> None:
        super().__init__(prefix)
        self.refresh = lambda: None

    def collect(self, out: Snapshot, flush: bool) -> None:
        self.refresh()
        super().collect(out, flush)


class LogFiles:
    """All log files of one process by path. Times in seconds, sizes in bytes."""

    def __init__(self, loop: AbstractEventLoop, flush_interval: float, min_size: int,
                 registry: Registry | None = None) -> None:
        self.loop = loop
        self.min_size = min_size
        self._interval = flush_interval
        self._files: dict[str, LogFile] = {}
        self._timer: TimerHandle | None = None
        self._stats: FilesystemStats
        self.stats = registry.group(FilesystemStats, "filesystem") if registry else FilesystemStats("filesystem")

    @property
    def stats(self) -> FilesystemStats:
        """The group that counts; assigning one of a registry makes it part of that registry's snapshots."""
        return self._stats

    @stats.setter
    def stats(self, stats: FilesystemStats) -> None:
        self._stats = stats
        stats.refresh = self._refresh

    def logger(self, config: AccessLog) -> Callable[[StreamInfo], None]:
        """A function that writes a stream's line; opens the file now. Raises LogFileError, FormatError."""
        write = self.file(config.path).write
        formatter = compile_format(config.format)
        if config.flags is None:
            return lambda info: write(formatter(info))
        wanted = frozenset(flag.encode() for flag in config.flags)

        def log_flagged(info: StreamInfo) -> None:
            flags = info.flags
            if flags and (not wanted or not wanted.isdisjoint(flags.split(b","))):
                write(formatter(info))

        return log_flagged

    def file(self, path: str) -> LogFile:
        """The file of that path, opened when it is asked for first. Raises LogFileError."""
        found = self._files.get(path)
        if found is None:
            found = self._files[path] = LogFile(self, path)
            if self._timer is None:
                self._timer = self.loop.call_later(self._interval, self._tick)
        return found

    def reopen(self) -> None:
        """Open every file anew by its path; what waits goes to the new file. One that cannot be opened is kept."""
        for file in self._files.values():
            file.reopen()

    def flush(self) -> None:
        """Write what waits, as far as the readers of pipes take it."""
        for file in self._files.values():
            file.flush()

    def close(self) -> None:
        """Write what waits, giving the readers of pipes a moment, and close all files."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _tick(self) -> None:
        self._timer = self.loop.call_later(self._interval, self._tick)
        for file in self._files.values():
            if file.waiting:
                self.stats.flushed_by_timer += 1
                file.flush()

    def _refresh(self) -> None:
        waiting = 0
        for file in self._files.values():
            file.count()
            waiting += file.waiting
        self.stats.write_total_buffered = waiting


class LogFile:
    """One file. ``write`` is called for every line and does as little as it can."""

    __slots__ = ("_backlog", "_backlog_size", "_counted", "_fd", "_lines", "_owner", "_path", "_pipe", "_reported",
                 "_retry", "_shared", "_size", "_threshold", "_torn", "_watching")

    def __init__(self, owner: LogFiles, path: str) -> None:
        self._owner = owner
        self._path = path
        self._lines: list[bytes] = []
        self._size = 0
        self._threshold = -1  # the first line goes out at once
        self._counted = 0
        self._backlog: deque[bytes] = deque()
        self._backlog_size = 0
        self._watching = False
        self._retry: TimerHandle | None = None
        self._torn = False
        self._reported = False
        try:
            self._fd, self._pipe, self._shared = _open(path)
        except OSError as error:
            raise LogFileError(f"unable to open file '{path}': {error.strerror}") from None

    def write(self, line: bytes) -> None:
        """Take one line (or several whole ones)."""
        self._lines.append(line)
        self._size = size = self._size + len(line)
        if size > self._threshold:
            self.flush()

    @property
    def waiting(self) -> int:
        """Bytes that are not written yet."""
        return self._size + self._backlog_size

    def flush(self) -> None:
        """Write what waits; lines that a pipe does not take now stay in the backlog."""
        self.count()
        self._threshold = self._owner.min_size
        lines = self._lines
        if lines:
            if self._pipe is None:
                self._write_all(b"".join(lines))
            else:
                self._queue(lines)
            lines.clear()
            self._counted = self._size = 0
        if self._backlog and not self._watching:
            self._drain()

    def count(self) -> None:
        """Bring ``write_buffered`` up to date."""
        self._owner.stats.write_buffered += len(self._lines) - self._counted
        self._counted = len(self._lines)

    def reopen(self) -> None:
        """Open the path anew, then write what waits to it."""
        try:
            fd, pipe, shared = _open(self._path)
        except OSError as error:
            self._owner.stats.reopen_failed += 1
            _log.error("unable to open file '%s': %s; still writing to the old one", self._path, error.strerror)
        else:
            self._unwatch()
            os.close(self._fd)
            self._fd, self._pipe, self._shared = fd, pipe, shared
            self._torn = False
            if pipe is None and self._backlog:
                self._lines[:0] = self._backlog
                self._counted += len(self._backlog)
                self._size += self._backlog_size
                self._backlog.clear()
                self._backlog_size = 0
        self.flush()

    def close(self) -> None:
        """Write what waits and close."""
        self._unwatch()
        self.flush()
        if self._backlog:
            deadline = time.monotonic() + EXIT_PATIENCE
            poller = select.poll()
            poller.register(self._fd, select.POLLOUT)
            while self._backlog and (left := deadline - time.monotonic()) > 0 and poller.poll(left * 1000):
                self._drain()
            if self._backlog:
                self._lost(sum(piece.count(b"\n") for piece in self._backlog), "its reader does not keep up")
        self._unwatch()
        os.close(self._fd)

    # --- regular files ------------------------------------------------------------------------------------------

    def _write_all(self, data: bytes) -> None:
        """One write; a short one (the disk is full) is continued once, then the rest is lost."""
        rest = b"\n" + data if self._torn else data
        why = "the disk takes no more"
        for _ in range(2):
            try:
                written = os.write(self._fd, rest)
            except OSError as error:
                why = str(error.strerror)
                break
            self._owner.stats.write_completed += 1
            # The next batch ends a line that was cut here, so that it does not swallow the first one.
            self._torn = 0 < written < len(rest) and rest[written - 1:written] != b"\n"
            rest = rest[written:]
            if not rest:
                self._recovered()
                return
        self._lost(min(data.count(b"\n"), rest.count(b"\n")), why)

    # --- pipes, sockets, terminals --------------------------------------------------------------------------------

    def _queue(self, lines: list[bytes]) -> None:
        """Lines to groups of at most PIPE_BUF bytes at the end of the backlog, as far as they fit."""
        limit = select.PIPE_BUF
        group = bytearray()
        dropped = 0
        for line in lines:
            if self._backlog_size + len(group) + len(line) > BACKLOG:
                dropped += 1
                continue
            if group and len(group) + len(line) > limit:
                self._backlog.append(bytes(group))
                self._backlog_size += len(group)
                group.clear()
            group += line
        if group:
            self._backlog.append(bytes(group))
            self._backlog_size += len(group)
        if dropped:
            self._lost(dropped, "its reader does not keep up")

    def _drain(self) -> None:
        """Write the backlog until the other side takes no more; then wait until it does."""
        assert self._pipe is not None
        backlog = self._backlog
        stats = self._owner.stats
        while backlog:
            piece = backlog[0]
            try:
                written = self._pipe(piece)
            except (BlockingIOError, InterruptedError):
                written = 0
            except OSError as error:
                self._lost(sum(piece.count(b"\n") for piece in backlog), str(error.strerror))
                backlog.clear()
                self._backlog_size = 0
                self._unwatch()
                return
            if not written:
                break
            stats.write_completed += 1
            self._backlog_size -= written
            if written == len(piece):
                backlog.popleft()
            else:
                backlog[0] = piece[written:]
        if backlog:
            self._watch()
        else:
            self._unwatch()
            self._recovered()

    def _watch(self) -> None:
        loop = self._owner.loop
        if self._shared:
            # add_writer makes a descriptor non-blocking (uvloop), for everyone who has it.
            self._retry = loop.call_later(RETRY_INTERVAL, self._drain)
        elif not self._watching:
            loop.add_writer(self._fd, self._drain)
        self._watching = True

    def _unwatch(self) -> None:
        if self._watching:
            if self._retry is not None:
                self._retry.cancel()
                self._retry = None
            else:
                self._owner.loop.remove_writer(self._fd)
            self._watching = False

    # --- losses -------------------------------------------------------------------------------------------------

    def _lost(self, lines: int, why: str) -> None:
        self._owner.stats.write_failed += max(1, lines)
        if not self._reported:
            self._reported = True
            _log.error("access log '%s': lines are lost: %s (filesystem.write_failed counts them)", self._path, why)

    def _recovered(self) -> None:
        if self._reported:
            self._reported = False
            _log.info("access log '%s': writing again", self._path)


def _open(path: str) -> tuple[int, Callable[[bytes], int] | None, bool]:
    """A descriptor, for everything but a regular file the function that writes to it without waiting, and sharing.

    Shared is what other processes have as well: its flags are not ours to change.
    """
    stream = _STREAMS.get(path)
    shared = False
    if stream is not None:
        fd, shared = _standard_stream(path, stream)
    else:
        try:
            is_fifo = stat.S_ISFIFO(os.stat(path).st_mode)
        except OSError:
            is_fifo = False
        # A fifo without reader cannot be opened for writing alone without waiting for one.
        access = os.O_RDWR | os.O_NONBLOCK if is_fifo else os.O_WRONLY
        fd = os.open(path, access | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode):
        return fd, None, shared
    if stat.S_ISSOCK(mode):
        return fd, lambda data: _send(fd, data), shared
    if os.get_blocking(fd):
        return fd, lambda data: _write_if_ready(fd, data), shared
    return fd, lambda data: os.write(fd, data), shared


def _standard_stream(path: str, stream: int) -> tuple[int, bool]:
    """stdout or stderr. A pipe is opened anew, because O_NONBLOCK belongs to everyone who shares a descriptor.

    Anything else is duplicated: a second position in one regular file would overwrite what the first has written, and
    sockets, or files of another user, cannot be opened by path at all.
    """
    if stat.S_ISFIFO(os.fstat(stream).st_mode):
        try:
            return os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC), False
        except OSError:
            pass  # another user's pipe: share the descriptor
    return os.dup(stream), True


def _send(fd: int, data: bytes) -> int:
    with socket.socket(fileno=os.dup(fd)) as sock:
        return sock.send(data, socket.MSG_DONTWAIT)


def _write_if_ready(fd: int, data: bytes) -> int:
    """Write to a blocking pipe or terminal of which others have the descriptor as well.

    A pipe that polls writable takes PIPE_BUF bytes at once, unless another writer is faster in between.
    """
    poller = select.poll()
    poller.register(fd, select.POLLOUT)
    events = poller.poll(0)
    if not events or not events[0][1] & (select.POLLOUT | select.POLLERR):
        return 0
    return os.write(fd, data[:select.PIPE_BUF])
