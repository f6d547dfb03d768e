"""The agent's own log lines: Istio's text and JSON forms, scopes and levels.

Not the standard library's logging: scopes with a level each, targets and the two line forms are all there is to it,
`wait` must start fast, and one `write` a line keeps lines whole beside those of the proxy on the same descriptor.
"""

import json
import os
import select
import stat
import sys
import time
from collections.abc import Mapping

from agent import terminal
from agent.errors import UsageError, reason
from agent.options import LogOptions

LEVELS: Mapping[str, int] = {"none": 0, "fatal": 1, "error": 2, "warn": 3, "info": 4, "debug": 5}
_NONE, _ERROR, _WARN, _INFO, _DEBUG = 0, 2, 3, 4, 5
_NAMES = {number: name for name, number in LEVELS.items()}

# The scopes that the real program registers; a pod may name any of them in --log_output_level.
SCOPES = (
    "default", "xdsproxy", "dns", "sds", "cache", "ca", "citadelclient", "probes", "healthcheck", "security",
    "spiffe", "wasm", "ads", "klog", "grpc",
)  # fmt: skip

_STDOUT, _STDERR = 1, 2
_MAX_UNKNOWN = 16
# One line, whatever a peer managed to get into a message.
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), 127)} | {9: " ", 10: "\\n", 13: "\\r"}


# How long a line waits for a reader that is slow. One that has stopped is waited for once, not with every line.
_PATIENCE_MS = 100


class _Output:
    """A descriptor to which lines are written, never waiting for long: the agent has a proxy to look after, and a
    container runtime that has stopped reading must not keep it from draining. What does not fit is lost, and counted.

    Only a pipe, a terminal or a socket can make a writer wait. The first two are opened anew for O_NONBLOCK, which on
    the description that we share with others would surprise them.
    """

    __slots__ = ("_file", "_identity", "_is_ours", "_lost", "_waits")

    def __init__(self, descriptor: int) -> None:
        status = os.fstat(descriptor)
        self._identity = (status.st_dev, status.st_ino)
        self._file, self._is_ours = descriptor, False
        self._waits = stat.S_ISSOCK(status.st_mode)
        self._lost = 0
        if stat.S_ISFIFO(status.st_mode) or stat.S_ISCHR(status.st_mode):
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
            try:
                self._file, self._is_ours = os.open(f"/proc/self/fd/{descriptor}", flags), True
            except OSError:
                self._waits = True  # another user's: looked at before each line instead

    def is_still(self, descriptor: int) -> bool:
        """Whether the number stands for the same file as before."""
        status = os.fstat(descriptor)
        return (status.st_dev, status.st_ino) == self._identity

    def close(self) -> None:
        if self._is_ours:
            os.close(self._file)

    def write(self, data: bytes) -> None:
        try:
            if self._lost:
                note = b"%d lines of the log were lost: nobody read it\n" % self._lost
                if self._written(note, 0) < len(note):
                    self._lost += 1
                    return
                self._lost = 0
            if self._written(data, _PATIENCE_MS) < len(data):
                self._lost += 1
        except OSError:
            pass  # Nobody reads any more (closed pipe) or the disk is full: no reason to stop supervising.

    def _written(self, data: bytes, patience_ms: int) -> int:
        """How many bytes of it were taken in time."""
        done = 0
        while done < len(data):
            if self._waits and not _is_writable(self._file, patience_ms):
                break
            try:
                done += os.write(self._file, data[done:])
            except BlockingIOError:
                if not _is_writable(self._file, patience_ms):
                    break
        return done


def _is_writable(descriptor: int, patience_ms: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(patience_ms))


class _Sink:
    """Where lines go and in which form; one for the process."""

    __slots__ = ("_outputs", "as_json", "descriptors", "unknown_scopes")

    def __init__(self) -> None:
        self.descriptors: tuple[int, ...] = (_STDOUT,)
        self.as_json = False
        self.unknown_scopes: tuple[str, ...] = ()
        self._outputs: dict[int, _Output] = {}

    def output(self, descriptor: int) -> _Output | None:
        """None for a descriptor that is not open."""
        output = self._outputs.get(descriptor)
        try:
            if output is None or not output.is_still(descriptor):
                if output is not None:
                    output.close()
                output = self._outputs[descriptor] = _Output(descriptor)
        except OSError:
            self._outputs.pop(descriptor, None)
            return None
        return output


_sink = _Sink()


class Scope:
    """A named part of the log with a level of its own."""

    __slots__ = ("caller", "level", "name", "stack_level")

    def __init__(self, name: str) -> None:
        self.name = name
        self.level = _INFO
        self.stack_level = _NONE
        self.caller = False

    def debug(self, text: str) -> None:
        if self.level >= _DEBUG:
            self._write(_DEBUG, text)

    def info(self, text: str) -> None:
        if self.level >= _INFO:
            self._write(_INFO, text)

    def warn(self, text: str) -> None:
        if self.level >= _WARN:
            self._write(_WARN, text)

    def error(self, text: str) -> None:
        if self.level >= _ERROR:
            self._write(_ERROR, text)

    def _write(self, level: int, text: str) -> None:
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1_000_000):06d}Z"
        caller = stack = ""
        if self.caller:
            frame = sys._getframe(2)
            caller = f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"
        if level <= self.stack_level:
            import traceback

            stack = "".join(traceback.format_stack(sys._getframe(2), limit=32))
        named = "" if self.name == "default" else self.name
        if _sink.as_json:
            record = {"level": _NAMES[level], "time": stamp, "scope": named, "caller": caller, "msg": text}
            record["stack"] = stack
            line = json.dumps({key: value for key, value in record.items() if value or key == "msg"}) + "\n"
        else:
            parts = [stamp, _NAMES[level], named, caller, text.translate(_CONTROL)]
            line = "\t".join(part for part in parts if part) + "\n" + stack
        data = line.encode(errors="backslashreplace")
        for descriptor in _sink.descriptors:
            output = _sink.output(descriptor)
            if output is not None:
                output.write(data)


_scopes = {name: Scope(name) for name in SCOPES}


def scope(name: str = "default") -> Scope:
    """The scope of that name. Raises KeyError for one that is not in SCOPES."""
    return _scopes[name]


def configure(options: LogOptions) -> None:
    """Apply the logging flags.

    A scope that does not exist is no error: meshes have one setting of levels for istiod and for the pods, and istiod
    has other scopes. `unknown_scopes` names them. Raises UsageError naming the flag for an unknown level, or a target
    that cannot be written.
    """
    levels = _levels("--log_output_level", options.output_level)
    if not levels.keys() & {"grpc", "all"}:
        levels["grpc"] = _NONE  # part of the default, default:info,grpc:none
    stacks = _levels("--log_stacktrace_level", options.stacktrace_level)
    callers = {name.strip() for name in options.caller.split(",") if name.strip()}
    for name, at in _scopes.items():
        at.level = levels.get("all", levels.get(name, _INFO))
        at.stack_level = stacks.get("all", stacks.get(name, _NONE))
        at.caller = bool(callers & {name, "all"})
    if options.klog_verbosity > 0:
        _scopes["klog"].level = _DEBUG
    _sink.descriptors = tuple(_open(target) for target in dict.fromkeys(options.targets))
    _sink.as_json = options.as_json
    named = {*levels, *stacks, *callers}
    _sink.unknown_scopes = tuple(sorted(name[:64] for name in named - {*SCOPES, "all"})[:_MAX_UNKNOWN])


def unknown_scopes() -> tuple[str, ...]:
    """Scopes of the logging flags that there are not."""
    return _sink.unknown_scopes


def _levels(flag: str, text: str) -> dict[str, int]:
    """`scope:level,...`; a level alone is for the scope `default`."""
    levels: dict[str, int] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, colon, level = item.partition(":")
        if not colon:
            name, level = "default", item
        if level not in LEVELS:
            raise UsageError(f"{flag}: unknown level {level[:64]!r}: expected {', '.join(LEVELS)}")
        levels[name] = LEVELS[level]
    return levels


def _open(target: str) -> int:
    if target == "stdout":
        return _STDOUT
    if target == "stderr":
        return _STDERR
    try:
        return os.open(target, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except (OSError, ValueError) as error:
        raise UsageError(f"--log_target: cannot write {target[:256]!r}: {reason(error)}") from None


def print_error(error: Exception) -> None:
    """The last words of a command: on standard error, and in the log where that is another place."""
    # Whoever does not read it must not keep the process from its end.
    if _is_writable(_STDERR, _PATIENCE_MS):
        terminal.print_error(str(error))
    if _STDERR not in _sink.descriptors:
        scope().error(str(error))
