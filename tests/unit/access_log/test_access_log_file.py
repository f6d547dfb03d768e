"""Log files: batches, rotation, several writers, full disks and readers that do not read."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import select
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvloop

from proxy.access_log import file as log_file
from proxy.access_log.file import BACKLOG, FilesystemStats, LogFileError, LogFiles
from proxy.config.model import AccessLog
from proxy.stats.groups import Registry, Snapshot
from proxy.stream_info import StreamInfo

NEVER = 3600.0
"""A flush interval that no test lives to see."""

LINE = b"0123456789abcde\n"


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def loop(request: pytest.FixtureRequest) -> Iterator[asyncio.AbstractEventLoop]:
    """Main runs asyncio's loop, a worker uvloop."""
    loop = request.param()
    yield loop
    loop.close()


@pytest.fixture
def files(loop: asyncio.AbstractEventLoop) -> Iterator[LogFiles]:
    files = LogFiles(loop, NEVER, 1000)
    yield files
    files.close()


def run_until(loop: asyncio.AbstractEventLoop, condition: Callable[[], bool]) -> None:
    async def wait() -> None:
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.001)

    loop.run_until_complete(wait())


def counts(files: LogFiles) -> dict[str, int]:
    snapshot = Snapshot()
    files.stats.collect(snapshot, False)
    return {name.removeprefix("filesystem."): n for name, n in (snapshot.counters | snapshot.gauges).items()}


def test_first_line_at_once_then_by_size(files: LogFiles, tmp_path: Path) -> None:
    path = tmp_path / "log"
    file = files.file(str(path))
    assert path.read_bytes() == b""  # opened before it is used
    file.write(LINE)
    assert path.read_bytes() == LINE
    for _ in range(62):
        file.write(LINE)
    assert path.read_bytes() == LINE  # 992 bytes wait
    assert counts(files) == {"write_buffered": 63, "write_completed": 1, "write_failed": 0, "flushed_by_timer": 0,
                             "reopen_failed": 0, "write_total_buffered": 992}
    file.write(LINE)
    assert path.read_bytes() == LINE * 64
    assert counts(files)["write_completed"] == 2
    assert counts(files)["write_total_buffered"] == 0


def test_flush_by_timer(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> None:
    files = LogFiles(loop, 0.01, 1000)
    file = files.file(str(tmp_path / "log"))
    file.write(LINE)
    file.write(LINE)
    run_until(loop, lambda: (tmp_path / "log").read_bytes() == LINE * 2)
    assert counts(files)["flushed_by_timer"] == 1
    files.close()


def test_one_file_a_path_and_statistics_in_a_registry(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> None:
    registry = Registry()
    files = LogFiles(loop, NEVER, 1000, registry)
    assert files.file(str(tmp_path / "log")) is files.file(str(tmp_path / "log"))
    files.file(str(tmp_path / "log")).write(LINE)
    assert registry.snapshot().counters["filesystem.write_buffered"] == 1
    files.stats = Registry().group(FilesystemStats, "filesystem")
    files.file(str(tmp_path / "log")).write(LINE)
    assert counts(files)["write_buffered"] == 1
    files.close()


def test_what_waits_is_written_at_close(files: LogFiles, tmp_path: Path) -> None:
    file = files.file(str(tmp_path / "log"))
    file.write(b"a\n")
    file.write(b"b\n")
    files.close()
    assert (tmp_path / "log").read_bytes() == b"a\nb\n"


def test_rotation(files: LogFiles, tmp_path: Path) -> None:
    path, old = tmp_path / "log", tmp_path / "log.1"
    file = files.file(str(path))
    file.write(b"1\n")
    file.write(b"2\n")
    path.rename(old)
    files.reopen()
    file.write(b"3\n")
    files.flush()
    assert (old.read_bytes(), path.read_bytes()) == (b"1\n", b"2\n3\n")


def test_rotation_to_nowhere_keeps_the_old_file(files: LogFiles, tmp_path: Path) -> None:
    folder, moved = tmp_path / "d", tmp_path / "moved"
    folder.mkdir()
    file = files.file(str(folder / "log"))
    file.write(b"1\n")
    folder.rename(moved)
    files.reopen()
    file.write(b"2\n")
    files.flush()
    assert (moved / "log").read_bytes() == b"1\n2\n"
    assert counts(files)["reopen_failed"] == 1


def test_a_file_that_cannot_be_opened(files: LogFiles, tmp_path: Path) -> None:
    path = tmp_path / "none" / "log"
    with pytest.raises(LogFileError, match=f"unable to open file '{path}': No such file or directory"):
        files.logger(AccessLog(str(path), "x\n"))


def test_writers_append_whole_lines(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> None:
    path = tmp_path / "log"
    writers = [LogFiles(loop, NEVER, 300) for _ in range(3)]
    for n in range(300):
        for name, files in zip(b"abc", writers, strict=True):
            files.file(str(path)).write(bytes([name]) * (n % 50 + 1) + b"\n")
    for files in writers:
        files.close()
    lines = path.read_bytes().splitlines()
    assert len(lines) == 900
    assert all(len(set(line)) == 1 for line in lines)


# --- the logger -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("wanted", "logged"), [
    (None, [b"-", b"UF", b"UF,URX", b"NR"]),
    (frozenset(), [b"UF", b"UF,URX", b"NR"]),
    (frozenset({"URX", "NR"}), [b"UF,URX", b"NR"]),
    (frozenset({"U"}), []),
])
def test_response_flag_filter(files: LogFiles, tmp_path: Path, wanted: frozenset[str] | None,
                              logged: list[bytes]) -> None:
    write = files.logger(AccessLog(str(tmp_path / "log"), "%RESPONSE_FLAGS%\n", wanted))
    for flags in (b"", b"UF", b"UF,URX", b"NR"):
        info = StreamInfo()
        info.flags = flags
        write(info)
    files.flush()
    assert (tmp_path / "log").read_bytes().splitlines() == logged


def test_a_format_without_newline_is_written_as_it_stands(files: LogFiles, tmp_path: Path) -> None:
    write = files.logger(AccessLog(str(tmp_path / "log"), "[%RESPONSE_FLAGS%]"))
    for _ in range(3):
        write(StreamInfo())
        files.flush()
    assert (tmp_path / "log").read_bytes() == b"[-][-][-]"


# --- a disk that is full ----------------------------------------------------------------------------------------------


class FullDisk:
    """os.write to a disk with ``space`` bytes left."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, space: int) -> None:
        self.space = space
        self._write = os.write
        monkeypatch.setattr(os, "write", self)

    def __call__(self, fd: int, data: bytes) -> int:
        if fd == 2:
            return self._write(fd, data)
        if not self.space:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = self._write(fd, data[:self.space])
        self.space -= written
        return written


def test_full_disk_loses_whole_lines_counts_them_and_goes_on(
        files: LogFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log"
    file = files.file(str(path))
    file.write(b"first\n")
    disk = FullDisk(monkeypatch, 9)
    for text in (b"aaaa\n", b"bbbb\n", b"cccc\n"):
        file.write(text)
    files.flush()
    assert path.read_bytes() == b"first\naaaa\nbbbb"
    assert counts(files)["write_failed"] == 2
    file.write(b"dddd\n")
    files.flush()
    assert counts(files)["write_failed"] == 3
    disk.space = 1000
    file.write(b"eeee\n")
    files.flush()
    assert path.read_bytes() == b"first\naaaa\nbbbb\neeee\n"  # a torn line never swallows the next one
    logged = capfd.readouterr().err
    assert logged.count("lines are lost: No space left on device") == 1
    assert logged.count("writing again") == 1


# --- pipes ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def fifo(tmp_path: Path) -> Iterator[tuple[str, int]]:
    """A named pipe of the smallest size, and its reading end."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, select.PIPE_BUF)
    yield str(path), reader
    os.close(reader)


def drained(reader: int) -> bytes:
    out = b""
    try:
        while data := os.read(reader, 65536):
            out += data
    except BlockingIOError:
        pass
    return out


def test_pipe_that_is_full_is_not_waited_for(
        loop: asyncio.AbstractEventLoop, files: LogFiles, fifo: tuple[str, int],
        capfd: pytest.CaptureFixture[str]) -> None:
    path, reader = fifo
    file = files.file(path)
    sent = 0
    while counts(files)["write_failed"] == 0:
        file.write(b"%015d\n" % sent)
        sent += 1
        assert sent < 2 * BACKLOG // len(LINE)
    assert counts(files)["write_total_buffered"] <= BACKLOG + 1000
    got = b""

    def all_arrived() -> bool:
        nonlocal got
        got += drained(reader)
        return counts(files)["write_total_buffered"] == 0

    files.flush()
    run_until(loop, all_arrived)
    got += drained(reader)
    lines = [int(line) for line in got.splitlines()]
    assert lines == list(range(len(lines)))  # in order, whole, none twice
    assert len(lines) + counts(files)["write_failed"] == sent
    assert "its reader does not keep up" in capfd.readouterr().err


def test_pipe_gets_groups_of_whole_lines(loop: asyncio.AbstractEventLoop, files: LogFiles,
                                         fifo: tuple[str, int]) -> None:
    path, reader = fifo
    file = files.file(path)
    files.min_size = 1 << 20
    file.write(LINE)
    for n in range(1000):
        file.write(b"x" * (n % 90) + b"\n")
    files.flush()
    pieces = []
    while (piece := drained(reader)) or counts(files)["write_total_buffered"]:
        pieces.append(piece)
        loop.run_until_complete(asyncio.sleep(0))
    pieces = [piece for piece in pieces if piece]
    assert len(pieces) > 10
    assert all(len(piece) <= select.PIPE_BUF and piece.endswith(b"\n") for piece in pieces)


def test_reader_that_is_gone(files: LogFiles, capfd: pytest.CaptureFixture[str],
                             monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    monkeypatch.setitem(log_file._STREAMS, "/dev/stdout", writer)
    monkeypatch.setattr(log_file, "_standard_stream", lambda path, stream: (os.dup(stream), True))
    file = files.file("/dev/stdout")
    os.close(reader)
    file.write(LINE)
    assert counts(files)["write_failed"] == 1
    assert "lines are lost: Broken pipe" in capfd.readouterr().err
    files.close()
    os.close(writer)


def test_close_gives_a_reader_a_moment_and_then_gives_up(files: LogFiles, fifo: tuple[str, int]) -> None:
    path, _ = fifo
    file = files.file(path)
    for _ in range(10):
        file.write(b"x" * 2000 + b"\n")
    stats = files.stats
    files.close()
    assert stats.write_failed > 0


@pytest.mark.parametrize("blocking", [True, False])
def test_standard_output_that_is_a_shared_pipe(
        loop: asyncio.AbstractEventLoop, files: LogFiles, monkeypatch: pytest.MonkeyPatch, blocking: bool) -> None:
    """Another user's pipe cannot be opened again: its descriptor is shared, and stays blocking for the others."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, select.PIPE_BUF)
    os.set_blocking(writer, blocking)
    monkeypatch.setitem(log_file._STREAMS, "/dev/stdout", writer)
    real_open = os.open

    def refuse(path: str, *args: int) -> int:
        if path == "/dev/stdout":
            raise PermissionError(errno.EACCES, "Permission denied")
        return real_open(path, *args)

    monkeypatch.setattr(os, "open", refuse)
    file = files.file("/dev/stdout")
    for n in range(1000):
        file.write(b"%015d\n" % n)
    files.flush()
    assert os.get_blocking(writer) is blocking
    got = b""

    def all_arrived() -> bool:
        nonlocal got
        got += drained(reader)
        return len(got) == 1000 * len(LINE)

    run_until(loop, all_arrived)
    assert [int(line) for line in got.splitlines()] == list(range(1000))
    files.close()
    os.close(reader)
    os.close(writer)


def test_standard_output_that_is_a_socket(
        loop: asyncio.AbstractEventLoop, files: LogFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    monkeypatch.setitem(log_file._STREAMS, "/dev/stderr", theirs.fileno())
    file = files.file("/dev/stderr")
    total = 100_000
    for n in range(total):
        file.write(b"%015d\n" % n)
        if counts(files)["write_failed"]:
            total = n  # the last one that was accepted is the one before
            break
    files.flush()
    got = b""

    def all_arrived() -> bool:
        nonlocal got
        try:
            got += ours.recv(1 << 20)
        except BlockingIOError:
            pass
        return counts(files)["write_total_buffered"] == 0

    run_until(loop, all_arrived)
    while True:
        try:
            got += ours.recv(1 << 20)
        except BlockingIOError:
            break
    lines = [int(line) for line in got.splitlines()]
    assert lines == list(range(len(lines)))
    assert len(lines) + counts(files)["write_failed"] == total + (1 if counts(files)["write_failed"] else 0)
    assert os.get_blocking(theirs.fileno())
    files.close()
    ours.close()
    theirs.close()


def test_standard_output_that_is_a_file_shares_its_position(files: LogFiles, tmp_path: Path,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    """`proxy > out.log 2>&1`: log and access log alternate in one file and overwrite nothing."""
    path = tmp_path / "out"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    monkeypatch.setitem(log_file._STREAMS, "/dev/stdout", fd)
    file = files.file("/dev/stdout")
    os.write(fd, b"log 1\n")
    file.write(b"access 1\n")
    os.write(fd, b"log 2\n")
    file.write(b"access 2\n")
    files.flush()
    assert path.read_bytes() == b"log 1\naccess 1\nlog 2\naccess 2\n"
    os.close(fd)


def test_rotation_from_a_pipe_to_a_file_keeps_what_waits(files: LogFiles, fifo: tuple[str, int]) -> None:
    path, reader = fifo
    file = files.file(path)
    for n in range(1000):
        file.write(b"%015d\n" % n)
    files.flush()
    os.unlink(path)
    files.reopen()
    lines = [int(line) for line in (drained(reader) + Path(path).read_bytes()).splitlines()]
    assert lines == list(range(1000))
    assert counts(files)["write_buffered"] == 1000
