"""wrk: its command line and what it prints."""

from __future__ import annotations

import re
from dataclasses import dataclass

CONNECTIONS = 32
TIMEOUT_SECONDS = 5

TIME_UNITS_US = {"us": 1.0, "ms": 1e3, "s": 1e6, "m": 60e6, "h": 3600e6}
SIZE_UNITS = {"B": 1, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40}

PERCENTILE = re.compile(r"^\s+(50|75|90|99)%\s+([0-9.]+)(us|ms|s|m|h)\s*$", re.MULTILINE)
TOTAL = re.compile(r"^\s+(\d+) requests in ([0-9.]+)(us|ms|s|m|h), ([0-9.]+)([KMGT]?B) read\s*$", re.MULTILINE)
SOCKET_ERRORS = re.compile(
    r"^\s+Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)\s*$", re.MULTILINE
)
BAD_STATUS = re.compile(r"^\s+Non-2xx or 3xx responses: (\d+)\s*$", re.MULTILINE)
RATE = re.compile(r"^Requests/sec:\s+([0-9.]+)\s*$", re.MULTILINE)


class WrkError(Exception):
    """wrk failed, or printed something that is not its report."""


@dataclass(frozen=True, slots=True)
class WrkReport:
    """One run. Times are microseconds; `bytes_read` counts heads and bodies and is rounded by wrk."""

    requests: int
    seconds: float
    bytes_read: float
    rate: float
    p50_us: float
    p99_us: float
    bad_status: int
    errors_connect: int
    errors_read: int
    errors_write: int
    errors_timeout: int

    def complaint(self, body_bytes: int) -> str:
        """Why this run does not count, or an empty string."""
        found = [
            f"{count} {what}"
            for count, what in (
                (self.bad_status, "responses other than 2xx or 3xx"),
                (self.errors_connect, "connect errors"),
                (self.errors_read, "read errors"),
                (self.errors_write, "write errors"),
                (self.errors_timeout, "timeouts"),
            )
            if count
        ]
        if not self.requests:
            found.append("no response at all")
        # wrk rounds the total to two decimals of its unit, at worst 0.5 %.
        elif self.bytes_read < self.requests * body_bytes * 0.995:
            found.append(f"{self.bytes_read / self.requests:.0f} bytes a response, expected {body_bytes} or more")
        return ", ".join(found)


def command(port: int, path: str, host: str, seconds: int, new_connection: bool) -> list[str]:
    """Arguments for one thread, 32 connections; `new_connection` asks for one connection a request."""
    arguments = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--latency", "--timeout", f"{TIMEOUT_SECONDS}s"]
    arguments += ["-H", f"Host: {host}"]
    if new_connection:
        arguments += ["-H", "Connection: close"]
    return [*arguments, f"http://127.0.0.1:{port}{path}"]


def parse(output: str) -> WrkReport:
    """Raises WrkError naming the part that is missing."""
    total, rate = TOTAL.search(output), RATE.search(output)
    percentiles = {name: float(value) * TIME_UNITS_US[unit] for name, value, unit in PERCENTILE.findall(output)}
    for name, found in (
        ("the line with the total of requests", total),
        ("Requests/sec", rate),
        ("the 50% latency", "50" in percentiles),
        ("the 99% latency", "99" in percentiles),
    ):
        if not found:
            raise WrkError(f"wrk's output lacks {name}: {output.strip()[:400]!r}")
    assert total is not None and rate is not None
    errors = SOCKET_ERRORS.search(output)
    connect, read, write, timeout = (int(n) for n in errors.groups()) if errors else (0, 0, 0, 0)
    bad = BAD_STATUS.search(output)
    return WrkReport(
        requests=int(total[1]),
        seconds=float(total[2]) * TIME_UNITS_US[total[3]] / 1e6,
        bytes_read=float(total[4]) * SIZE_UNITS[total[5]],
        rate=float(rate[1]),
        p50_us=percentiles["50"],
        p99_us=percentiles["99"],
        bad_status=int(bad[1]) if bad else 0,
        errors_connect=connect,
        errors_read=read,
        errors_write=write,
        errors_timeout=timeout,
    )
