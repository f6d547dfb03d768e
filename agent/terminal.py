"""What a command prints, straight to the descriptors: UTF-8 whatever the locale says, and every byte at once.

(Python's own streams encode by locale, are None where a descriptor is closed, and fail late, when they are flushed.)
"""

import contextlib
import os

from agent.errors import AgentError

_STDOUT, _STDERR = 1, 2


def open_standard_descriptors() -> None:
    """Whoever started us without them: the next files and sockets that are opened would be taken for standard ones."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number, which is this one


def discard_output() -> None:
    """Nobody reads any more: what others have in their buffers must not fail when it is flushed."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), _STDOUT)


def write(data: bytes) -> None:
    """All of it to standard output.

    Raises BrokenPipeError when nobody reads any more, AgentError when it cannot be written.
    """
    try:
        _write_all(_STDOUT, data)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise AgentError(f"cannot write to standard output: {error.strerror}") from None


def print_line(text: str) -> None:
    """A line, or several, on standard output. Raises as `write` does."""
    write(_encoded(text) + b"\n")


def print_error(text: str) -> None:
    """`Error: ...` on standard error. Never raises: there is no better place to complain."""
    with contextlib.suppress(OSError):
        _write_all(_STDERR, _encoded(f"Error: {text}\n"))


def _encoded(text: str) -> bytes:
    return text.encode(errors="backslashreplace")


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
