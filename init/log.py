"""Log lines in the form of Istio's: `time<TAB>level<TAB>message`, or one JSON object a line."""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TextIO

from init.errors import UsageError, shown
from init.flags import TRUE, Value

# Istio's levels: a scope set to one of them logs that one and all before it.
LEVELS = ("none", "fatal", "error", "warn", "info", "debug")
_OURS = ("default", "all")  # scopes that speak of this program


@dataclass(frozen=True, slots=True)
class LogOptions:
    """What the `--log_*` flags say, as far as the scope `default` goes."""

    level: str
    as_json: bool
    targets: tuple[str, ...]
    stacktrace_level: str
    caller: bool


def log_options(values: Mapping[str, Value]) -> LogOptions:
    """Read the logging flags. Raises UsageError."""
    callers = values["log_caller"].text.split(",")
    if not values["vklog"].text.removeprefix("-").isascii() or not values["vklog"].text.removeprefix("-").isdigit():
        raise UsageError(f"--vklog: {shown(values['vklog'].text)} is not a whole number")
    return LogOptions(
        level=_level(values["log_output_level"], "info"),
        as_json=values["log_as_json"].text in TRUE,
        targets=values["log_target"].all,
        stacktrace_level=_level(values["log_stacktrace_level"], "none"),
        caller=any(scope in _OURS for scope in callers),
    )


def _level(value: Value, default: str) -> str:
    """The level of scope `default` in `scope:level,...`; a bare level means that scope, `all` overrides it."""
    levels = {"default": default}
    for item in value.text.split(",") if value.text else ():
        scope, colon, level = item.rpartition(":")
        if level not in LEVELS or (colon and not scope):
            raise UsageError(
                f"{value.origin}: {shown(item)} is not a log level: expected scope: and one of {', '.join(LEVELS)}"
            )
        levels[scope or "default"] = level
    return levels.get("all", levels["default"])


class Log:
    """Writes to every target of its options. Raises UsageError if a file among them cannot be opened."""

    def __init__(self, options: LogOptions) -> None:
        self._options = options
        self._rank = LEVELS.index(options.level)
        self._stack_rank = LEVELS.index(options.stacktrace_level)
        self._files: list[TextIO] = []
        self._outputs = [output for target in options.targets if (output := self._open(target)) is not None]

    def _open(self, target: str) -> TextIO | None:
        if target in ("stdout", "stderr"):
            output: TextIO | None = sys.stdout if target == "stdout" else sys.stderr  # None when it is closed
            return output
        try:
            file = open(target, "a", encoding="utf-8")
        except (OSError, ValueError) as error:
            raise UsageError(f"--log_target: cannot append to {shown(target)}: {error}") from error
        self._files.append(file)
        return file

    def close(self) -> None:
        """Close the files among the targets."""
        for file in self._files:
            try:
                file.close()
            except OSError:  # what could not be written still cannot
                pass

    def debug(self, message: str) -> None:
        """Detail for finding a fault."""
        self._write("debug", message)

    def info(self, message: str) -> None:
        """What was done."""
        self._write("info", message)

    def warn(self, message: str) -> None:
        """What the operator may not have meant."""
        self._write("warn", message)

    def errors(self, messages: Sequence[str]) -> None:
        """Why the run fails."""
        for message in messages:
            self._write("error", message)

    def _write(self, level: str, message: str) -> None:
        rank = LEVELS.index(level)
        if rank > self._rank:
            return
        nanoseconds = time.time_ns()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(nanoseconds // 10**9))
        fields = {"level": level, "time": f"{stamp}.{nanoseconds % 10**9 // 1000:06}Z"}
        if self._options.caller:
            frame = sys._getframe(2)
            fields["caller"] = f"{frame.f_globals['__name__'].replace('.', '/')}.py:{frame.f_lineno}"
        fields["msg"] = message
        if rank <= self._stack_rank:
            import traceback

            fields["stack"] = "".join(traceback.format_stack()[:-2]).rstrip()
        line = self._format(fields)
        for output in self._outputs:
            try:
                output.write(line + "\n")
                output.flush()
            except OSError:  # a log that cannot be written must not stop work half done
                pass

    def _format(self, fields: dict[str, str]) -> str:
        if self._options.as_json:
            import json

            return json.dumps(fields, ensure_ascii=False)
        stack = fields.pop("stack", "")
        order = [fields[name] for name in ("time", "level", "caller", "msg") if name in fields]
        return "\t".join(order) + (f"\n{stack}" if stack else "")
