"""One run at a time in a network namespace."""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from init.errors import KernelError

WAIT = 60.0  # seconds: longer than one healthy run can take, its binaries' own waiting included
_POLL = 0.02  # seconds between two tries
NAMESPACE = "/proc/thread-self/ns/net"


@contextmanager
def namespace_lock(on_wait: Callable[[], None], wait: float = WAIT) -> Iterator[None]:
    """Hold the lock of this network namespace, waiting up to `wait` seconds for another holder.

    The lock is on the namespace itself and not on a file: containers of a pod share the former only, and a read-only
    file system does not matter. The kernel releases it when the process ends, however it ends. `on_wait` is called
    once if another process holds it. Raises KernelError when the time is over.
    """
    try:
        fd = os.open(NAMESPACE, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise KernelError(f"cannot open {NAMESPACE}: {error.strerror}: mount /proc") from error
    try:
        _acquire(fd, on_wait, wait)
        yield
    finally:
        os.close(fd)


def _acquire(fd: int, on_wait: Callable[[], None], wait: float) -> None:
    deadline = time.monotonic() + wait
    waiting = False
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not waiting:
                waiting = True
                on_wait()
            if time.monotonic() > deadline:
                raise KernelError(
                    f"another process has held the lock of this network namespace ({NAMESPACE}) for {wait:g} s: "
                    "let it end, or end it, and run again"
                ) from None
            time.sleep(_POLL)
        else:
            return
