"""The agent's own log lines: Istio's text and JSON forms, scopes and levels.

Not the standard library's logging: scopes with a level each, targets and the two line forms are all there is to it,
`wait` must start fast, and one `write` a line keeps lines whole beside those of the proxy on the same descriptor.
"""

import json
import os
import sys
import time
from collections.abc import Mapping

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


class _Sink:
    """Where lines go and in which form; one for the process."""

    __slots__ = ("as_json", "descriptors", "unknown_scopes")

    def __init__(self) -> None:
        self.descriptors: tuple[int, ...] = (_STDOUT,)
        self.as_json = False
        self.unknown_scopes: tuple[str, ...] = ()


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
            try:
                os.write(descriptor, data)
            except OSError:
                # Nobody reads any more (closed pipe) or the disk is full: no reason to stop supervising.
                pass


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


def writes_to_stderr() -> bool:
    """Whether log lines already appear where command errors are printed."""
    return _STDERR in _sink.descriptors
