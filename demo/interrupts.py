"""Ctrl-C and SIGTERM end the demo once, and never between starting something and remembering to remove it."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_held = 0
_pending = False
_raised = False


def install() -> None:
    """From now on the first of SIGNALS raises KeyboardInterrupt; what follows it has no effect."""
    for number in SIGNALS:
        signal.signal(number, _on_signal)


def hold() -> None:
    """Raise nothing any more."""
    global _held
    _held += 1


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Raise nothing inside; what came meanwhile is raised at the end."""
    global _held
    _held += 1
    try:
        yield
    finally:
        _held -= 1
        if _pending and not _held:
            _raise_once()


def _on_signal(_signal: int, _frame: FrameType | None) -> None:
    global _pending
    if _held:
        _pending = True
    else:
        _raise_once()


def _raise_once() -> None:
    global _raised
    if not _raised:
        _raised = True
        raise KeyboardInterrupt
