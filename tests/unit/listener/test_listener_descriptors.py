"""Accepting without descriptors or memory: no event of the socket is heard for a while, and the log says so once."""

from __future__ import annotations

import errno
import resource
import socket
from typing import Any

import pytest

from proxy import worker
from proxy.config.model import SocketAddress
from proxy.listener import accept
from proxy.listener.accept import PAUSE, QUIET, ListenSocket


class Loop:
    """Readers and timers, run by hand."""

    def __init__(self) -> None:
        self.clock = 1000.0
        self.readers: set[Any] = set()
        self.timers: list[tuple[float, Any]] = []

    def time(self) -> float:
        return self.clock

    def add_reader(self, sock: Any, call: Any) -> None:
        self.readers.add(sock)

    def remove_reader(self, sock: Any) -> None:
        self.readers.discard(sock)

    def call_later(self, delay: float, call: Any) -> Any:
        timer = self.clock + delay, call

        class Handle:
            def cancel(inner) -> None:
                if timer in self.timers:
                    self.timers.remove(timer)

        self.timers.append(timer)
        return Handle()

    def advance(self, seconds: float) -> None:
        self.clock += seconds
        for timer in [timer for timer in self.timers if timer[0] <= self.clock]:
            self.timers.remove(timer)
            timer[1]()


class Full:
    """A listening socket whose accepts fail."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.tries = 0

    def _accept(self) -> Any:
        self.tries += 1
        raise OSError(self.number, "no")


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []

    class Log:
        @staticmethod
        def warning(text: str, *values: object) -> None:
            found.append(text % values)

    monkeypatch.setattr(accept, "log", Log)
    monkeypatch.setattr(accept.Exhaustion, "last", -QUIET)
    return found


def listening(loop: Loop, number: int, port: int = 1) -> tuple[ListenSocket, Full]:
    one = ListenSocket(loop, SocketAddress("127.0.0.1", port), None, 0, lambda *_: None)  # type: ignore[arg-type]
    sock: Any = Full(number)
    one._sock, one._listening = sock, True
    loop.add_reader(sock, None)
    return one, sock


@pytest.mark.parametrize("number", sorted(accept.OUT_OF_RESOURCES), ids=lambda n: errno.errorcode[n])
def test_one_line_a_burst_and_no_spinning(lines: list[str], number: int) -> None:
    loop = Loop()
    pair = [listening(loop, number, port) for port in (1, 2)]
    for _ in range(100):  # twenty seconds, in which the kernel would report both sockets readable without end
        for one, sock in pair:
            if sock in loop.readers:
                one._readable()
            assert sock not in loop.readers
            assert one.paused
        loop.advance(PAUSE)
    assert [sock.tries for _, sock in pair] == [100, 100]
    assert lines == ["listener 127.0.0.1:1: accept failed: no; new connections wait"]
    loop.advance(QUIET)
    pair[1][0]._readable()
    assert len(lines) == 2


def test_a_free_descriptor_ends_the_pause(lines: list[str]) -> None:
    loop = Loop()
    one, sock = listening(loop, errno.EMFILE)
    one._readable()
    one.resume()
    assert sock in loop.readers
    assert loop.timers == []
    one.resume()  # not paused: nothing happens
    assert not one.paused


def test_an_error_of_the_connection_is_no_lack(lines: list[str]) -> None:
    loop = Loop()
    one, sock = listening(loop, errno.ECONNABORTED)
    one._readable()
    assert sock in loop.readers
    assert not one.paused
    assert lines == []


class Endless(Full):
    """A listening socket with connections."""

    def _accept(self) -> Any:
        self.tries += 1
        one, other = socket.socketpair()
        other.close()
        return one.detach(), ("127.0.0.1", 1)


def limited(monkeypatch: pytest.MonkeyPatch, soft: int, count: int) -> None:
    """That many descriptors are allowed, and so many open."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, soft))
    monkeypatch.setattr(accept, "open_descriptors", lambda: count)


def with_connections(loop: Loop) -> tuple[ListenSocket, Endless]:
    one, _ = listening(loop, 0)
    sock: Any = Endless(0)
    loop.readers.clear()
    one._sock = sock
    loop.add_reader(sock, None)
    one.accepted = lambda accepted, _: accepted.close()
    return one, sock


def test_the_last_descriptors_are_not_for_clients(lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    limited(monkeypatch, 20000, 19744)
    loop = Loop()
    one, sock = with_connections(loop)
    one._readable()
    assert sock.tries == accept.ACCEPT_BATCH
    one._few = 3  # any descriptor is one of the last but the reserve: from here on it is one at a time, and counted
    one._readable()
    assert sock.tries == accept.ACCEPT_BATCH + 1
    one._readable()
    assert sock.tries == accept.ACCEPT_BATCH + 1
    assert sock not in loop.readers
    for _ in range(5):
        loop.advance(PAUSE)
        one.resume()  # a connection has ended, but its upstream connection has not
    assert sock.tries == accept.ACCEPT_BATCH + 1
    monkeypatch.setattr(accept, "open_descriptors", lambda: 19743)
    loop.advance(PAUSE)
    assert sock in loop.readers
    one._readable()
    assert sock.tries == accept.ACCEPT_BATCH + 2
    one._few = 19744  # there is room again
    for _ in range(2):
        one._readable()
    assert sock.tries == accept.ACCEPT_BATCH * 3 + 2
    assert lines == ["listener 127.0.0.1:1: only reserved descriptors are left; new connections wait"]


@pytest.mark.parametrize(("soft", "spare", "few", "batch"), [
    (16, 14, 12, 1), (256, 224, 192, 2), (1024, 896, 768, 8), (20000, 19744, 19488, 16),
    (resource.RLIM_INFINITY, 1 << 31, (1 << 31) - 256, 16)])
def test_the_reserve(monkeypatch: pytest.MonkeyPatch, soft: int, spare: int, few: int, batch: int) -> None:
    limited(monkeypatch, soft, 0)
    one, sock = with_connections(Loop())
    assert (one._spare, one._few) == (spare, few)
    one._few = 1 << 31
    one._readable()
    assert sock.tries == batch


def test_open_descriptors_are_counted() -> None:
    one, other = socket.socketpair()
    with other:
        before = accept.open_descriptors()
        one.close()
        assert accept.open_descriptors() <= before  # less, where the kernel counts


def test_asyncio_runs_out_in_the_admin_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[str] = []

    class Log:
        @staticmethod
        def warning(text: str, *values: object) -> None:
            found.append(text % values)

        @staticmethod
        def exception(text: str, error: Exception) -> None:
            found.append(f"defect: {text} {error}")

    monkeypatch.setattr(worker, "_log", Log)
    monkeypatch.setattr(accept.Exhaustion, "last", -QUIET)
    loop: Any = Loop()
    context = {"message": "socket.accept() out of system resource", "socket": object(),
               "exception": OSError(errno.ENFILE, "Too many open files in system")}
    for _ in range(3):
        worker.log_loop_error(loop, context)
    worker.log_loop_error(loop, {"message": "a task failed", "exception": OSError(errno.ENFILE, "no")})
    assert found == ["socket.accept() out of system resource: Too many open files in system; new connections wait",
                     "defect: a task failed [Errno 23] no"]
