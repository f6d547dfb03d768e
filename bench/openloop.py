"""HTTP/1.1 load at a constant rate, measured from when each request was due: `python -m bench.openloop --help`.

wrk sends a request when the previous one was answered, so a proxy that stalls is asked less while it stalls
(coordinated omission). Here the schedule is fixed beforehand: a request that finds every connection busy waits, and
its latency counts from the moment it was due. The wake-ups come from a timerfd, because the timeouts of epoll and of
event loops are whole milliseconds. How late the generator itself noticed that a request was due is reported beside
the latencies: it is part of them, for every proxy alike.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import select
import socket
import struct
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass

from bench.stats import percentile

CLOCK_MONOTONIC = 1
TFD_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC
DRAIN_SECONDS = 5
HEAD_LIMIT = 64 * 1024


@dataclass(frozen=True, slots=True)
class Report:
    """Microseconds; `error` is empty when every scheduled request was answered correctly."""

    rate: float
    completed: int
    p50_us: float
    p90_us: float
    p99_us: float
    max_us: float
    lag_p50_us: float
    lag_p99_us: float
    error: str


class ResponseError(Exception):
    """The response is not the expected one."""


class Response:
    """Counts the bytes of one response at a time: status 200 with the expected content-length."""

    __slots__ = ("_body_bytes", "_buffer", "_missing")

    def __init__(self, body_bytes: int) -> None:
        self._body_bytes = body_bytes
        self._buffer = b""
        self._missing = -1

    def feed(self, data: bytes) -> bool:
        """True when `data` completes the response. Raises ResponseError."""
        if self._missing < 0:
            data = self._buffer + data
            head_end = data.find(b"\r\n\r\n") + 4
            if head_end < 4:
                if len(data) > HEAD_LIMIT:
                    raise ResponseError(f"response head longer than {HEAD_LIMIT} bytes")
                self._buffer = data
                return False
            self._buffer = b""
            self._check(data[:head_end])
            self._missing = head_end + self._body_bytes
        self._missing -= len(data)
        if self._missing > 0:
            return False
        if self._missing < 0:
            raise ResponseError(f"{-self._missing} bytes after the end of the response")
        self._missing = -1
        return True

    def _check(self, head: bytes) -> None:
        if not head.startswith(b"HTTP/1.1 200 "):
            raise ResponseError(f"response begins {head[:80]!r}, expected HTTP/1.1 200")
        if b"\r\ncontent-length: %d\r\n" % self._body_bytes not in head.lower():
            raise ResponseError(f"no content-length of {self._body_bytes} in the response head")


class Connection:
    """A non-blocking socket and the time at which its request was due."""

    __slots__ = ("due", "response", "socket")

    def __init__(self, port: int, body_bytes: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=5)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.response = Response(body_bytes)
        self.due = 0


def periodic_timer(first_ns: int, interval_ns: int) -> int:
    """A timerfd that becomes readable at `first_ns` (CLOCK_MONOTONIC) and every `interval_ns` from then on."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = int(libc.timerfd_create(CLOCK_MONOTONIC, TFD_FLAGS))
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), "timerfd_create")
    specification = struct.pack("qqqq", *divmod(interval_ns, 10**9), *divmod(first_ns, 10**9))
    absolute = 1
    if libc.timerfd_settime(descriptor, absolute, specification, None) != 0:
        raise OSError(ctypes.get_errno(), "timerfd_settime")
    return descriptor


class Generator:
    """One run. `warmup` seconds at the same rate come first and are not counted."""

    def __init__(
        self, port: int, path: str, host: str, rate: float, seconds: float, warmup: float, connections: int, body: int
    ) -> None:
        self._request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode("ascii")
        self._interval = 1e9 / rate
        self._skipped = int(rate * warmup)
        self._total = self._skipped + max(1, int(rate * seconds))
        self._connections = [Connection(port, body) for _ in range(connections)]
        self._latencies: list[int] = []
        self._lags: list[int] = []
        self._finished_ns = 0
        self._counting_from_ns = 0

    def run(self) -> Report:
        try:
            self._loop()
            error = ""
        except (ResponseError, OSError) as problem:
            error = f"{type(problem).__name__}: {problem}"
        finally:
            for connection in self._connections:
                connection.socket.close()
        return self._report(error)

    def _loop(self) -> None:
        clock, request, interval, total = time.monotonic_ns, self._request, self._interval, self._total
        idle = deque(self._connections)
        overdue: deque[int] = deque()
        by_descriptor = {c.socket.fileno(): c for c in self._connections}
        latencies, lags = self._latencies, self._lags
        start = clock() + 10_000_000
        self._counting_from_ns = start + int(self._skipped * interval)
        give_up = start + int(total * interval) + DRAIN_SECONDS * 10**9
        timer = periodic_timer(start, max(1, int(interval)))
        poller = select.epoll()
        try:
            poller.register(timer, select.EPOLLIN)
            for descriptor in by_descriptor:
                poller.register(descriptor, select.EPOLLIN)
            issued = completed = 0
            next_due = start
            while completed < total:
                for descriptor, _ in poller.poll(1.0):
                    if descriptor == timer:
                        os.read(timer, 8)
                        continue
                    connection = by_descriptor[descriptor]
                    data = connection.socket.recv(262144)
                    if not data:
                        raise ResponseError("the proxy closed a keep-alive connection")
                    if not connection.response.feed(data):
                        continue
                    latencies.append(clock() - connection.due)
                    completed += 1
                    if overdue:
                        connection.due = overdue.popleft()
                        connection.socket.send(request)
                    else:
                        idle.append(connection)
                now = clock()
                while next_due <= now and issued < total:
                    lags.append(now - next_due)
                    if idle:
                        connection = idle.popleft()
                        connection.due = next_due
                        connection.socket.send(request)
                    else:
                        overdue.append(next_due)
                    issued += 1
                    next_due = start + int(issued * interval)
                if now > give_up:
                    raise ResponseError(f"{total - completed} of {total} requests without an answer at the end")
            self._finished_ns = clock()
        finally:
            poller.close()
            os.close(timer)

    def _report(self, error: str) -> Report:
        latencies = sorted(self._latencies[self._skipped :])
        lags = sorted(self._lags[self._skipped :])
        if error or not latencies or not lags:
            return Report(0.0, len(latencies), 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, error or "nothing was measured")
        seconds = (self._finished_ns - self._counting_from_ns) / 1e9
        return Report(
            rate=len(latencies) / seconds,
            completed=len(latencies),
            p50_us=percentile(latencies, 50) / 1e3,
            p90_us=percentile(latencies, 90) / 1e3,
            p99_us=percentile(latencies, 99) / 1e3,
            max_us=latencies[-1] / 1e3,
            lag_p50_us=percentile(lags, 50) / 1e3,
            lag_p99_us=percentile(lags, 99) / 1e3,
            error="",
        )


def command(port: int, path: str, host: str, rate: float, seconds: float, body: int, connections: int) -> list[str]:
    """Arguments that run this module in a process of its own."""
    options = {
        "port": port,
        "path": path,
        "host": host,
        "rate": rate,
        "seconds": seconds,
        "warmup": min(1.0, seconds / 4),
        "connections": connections,
        "body": body,
    }
    return [sys.executable, "-m", "bench.openloop", *(f"--{name}={value}" for name, value in options.items())]


def parse(output: str) -> Report:
    """What a run printed. Raises ValueError where it is not a report."""
    fields = json.loads(output)
    if not isinstance(fields, dict):
        raise ValueError(f"not a report: {output[:200]!r}")
    return Report(**fields)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.openloop", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", default="/")
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--rate", type=float, required=True, help="requests per second, all connections together")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--warmup", type=float, default=0.5, help="seconds that come first and are not counted")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--body", type=int, required=True, help="bytes of the body that each response must have")
    options = parser.parse_args()
    gc.disable()
    report = Generator(
        options.port,
        options.path,
        options.host,
        options.rate,
        options.seconds,
        options.warmup,
        options.connections,
        options.body,
    ).run()
    print(json.dumps(asdict(report)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
