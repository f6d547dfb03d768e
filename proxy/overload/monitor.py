"""What a resource monitor is, and the one whose pressure is written into a file."""

from __future__ import annotations

import os
import time
from typing import Protocol

SETTLED = 0.1
"""Seconds. A file that was written to more recently may change without another time stamp: those are kept in ticks."""


class MonitorError(Exception):
    """The pressure cannot be told; the text says why."""


class Monitor(Protocol):
    """Asked every refresh interval."""

    def pressure(self) -> float:
        """0 (idle) to 1 (exhausted), or beyond. Raises MonitorError."""


class InjectedResourceMonitor:
    """The pressure is the number in a file, which is read when it is another file or was written to.

    Envoy watches with inotify and notices only that a file was moved there. A look at its inode costs 2 us.
    """

    MAX_SIZE = 64

    def __init__(self, filename: str) -> None:
        self._filename = filename
        self._seen: tuple[int, ...] | None = None
        self._pressure = 0.0
        self._error = ""

    def pressure(self) -> float:
        """As the file says. Raises MonitorError."""
        try:
            stat = os.stat(self._filename)
            mark = (stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size)
            if mark != self._seen:
                self._seen = mark if time.time() - stat.st_mtime > SETTLED else None
                self._error = ""
                self._pressure = self._read()
        except OSError as error:
            self._seen = None
            raise MonitorError(f"{self._filename}: {error.strerror}") from None
        except ValueError as error:
            self._error = str(error)
        if self._error:
            raise MonitorError(self._error)
        return self._pressure

    def _read(self) -> float:
        # O_NONBLOCK: a named pipe must not stop main.
        descriptor = os.open(self._filename, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            text = os.read(descriptor, self.MAX_SIZE)
        finally:
            os.close(descriptor)
        try:
            pressure = float(text)
        except ValueError:
            raise ValueError("failed to parse injected resource pressure") from None
        if not 0 <= pressure <= 1:
            raise ValueError("pressure out of range")
        return pressure
