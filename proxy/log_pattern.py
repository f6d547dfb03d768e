"""spdlog's pattern language (--log-format) as a list of functions.

Source: spdlog wiki, "Custom formatting", and Envoy's additions %_ and %j. A flag that is not here is an error; spdlog
itself prints it as it stands.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from typing import NamedTuple

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + "/"


class Record(NamedTuple):
    """One log line before it is laid out."""

    level: str
    name: str
    text: str
    file: str
    line: int
    function: str


_Part = Callable[[Record, float], str]

_SHORT_LEVEL = {"trace": "T", "debug": "D", "info": "I", "warning": "W", "error": "E", "critical": "C"}

_C_ESCAPES = {"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t", '"': '\\"', "'": "\\'"}


def escape_c(text: str) -> str:
    """C escapes for quotes, backslashes and everything that is not printable ASCII (--log-format-escaped)."""
    out = []
    for char in text:
        known = _C_ESCAPES.get(char)
        if known is not None:
            out.append(known)
        elif " " <= char <= "~":
            out.append(char)
        else:
            out.extend(f"\\{byte:03o}" for byte in char.encode("utf-8", "surrogateescape"))
    return "".join(out)


def _source(path: str) -> str:
    return path.removeprefix(_ROOT)


def _strftime(spec: str) -> _Part:
    return lambda record, now: time.strftime(spec, time.localtime(now))


def _fraction(digits: int) -> _Part:
    scale = 10 ** digits
    return lambda record, now: f"{int(now % 1 * scale):0{digits}d}"


_FLAGS: dict[str, _Part] = {
    "v": lambda record, now: record.text,
    "_": lambda record, now: record.text.replace("\n", "\\n"),
    "j": lambda record, now: json.dumps(record.text)[1:-1],
    "l": lambda record, now: record.level,
    "L": lambda record, now: _SHORT_LEVEL[record.level],
    "n": lambda record, now: record.name,
    # Envoy shows the thread; here a worker is a process.
    "t": lambda record, now: str(os.getpid()),
    "P": lambda record, now: str(os.getpid()),
    "g": lambda record, now: _source(record.file),
    "s": lambda record, now: os.path.basename(record.file),
    "#": lambda record, now: str(record.line),
    "!": lambda record, now: record.function,
    "@": lambda record, now: f"{_source(record.file)}:{record.line}",
    "e": _fraction(3),
    "f": _fraction(6),
    "F": _fraction(9),
    "E": lambda record, now: str(int(now)),
    "z": lambda record, now: re.sub("(..)$", r":\1", time.strftime("%z", time.localtime(now))),
    # Colour ranges and alignment marks of a terminal: nothing in a file.
    "^": lambda record, now: "",
    "$": lambda record, now: "",
    "%": lambda record, now: "%",
    "T": _strftime("%H:%M:%S"),
    "X": _strftime("%H:%M:%S"),
    "D": _strftime("%m/%d/%y"),
    "x": _strftime("%m/%d/%y"),
    "r": _strftime("%I:%M:%S %p"),
    "R": _strftime("%H:%M"),
    "c": _strftime("%a %b %e %H:%M:%S %Y"),
    "C": _strftime("%y"),
    **{flag: _strftime("%" + flag) for flag in "YmdHMSIpaAbB"},
}

_FLAG = re.compile(r"%(?P<align>[-=]?)(?P<width>\d{1,3})?(?P<cut>!(?=[^\s]))?(?P<flag>.)", re.DOTALL)


def _padded(part: _Part, align: str, width: int, cut: bool) -> _Part:
    def pad(record: Record, now: float) -> str:
        text = part(record, now)
        text = text.ljust(width) if align == "-" else text.center(width) if align == "=" else text.rjust(width)
        return text[:width] if cut else text
    return pad


def compile_pattern(pattern: str) -> Callable[[Record], str]:
    """A function from a record to its line, without newline; ValueError names a flag that is not known."""
    parts: list[_Part] = []
    at = 0
    while at < len(pattern):
        if pattern[at] != "%":
            end = pattern.find("%", at)
            literal = pattern[at:end if end >= 0 else len(pattern)]
            parts.append(lambda record, now, literal=literal: literal)  # type: ignore[misc]
            at += len(literal)
            continue
        match = _FLAG.match(pattern, at)
        # "%!" alone is the function's name; "%-8!l" cuts to the width.
        if match is not None and match["cut"] and match["width"] is None:
            flag, end = "!", at + 2
            parts.append(_FLAGS[flag])
            at = end
            continue
        part = _FLAGS.get(match["flag"]) if match is not None else None
        if match is None or part is None:
            raise ValueError(f"unknown flag '{match[0] if match else '%'}' in log format '{pattern}', "
                             f"known flags: {' '.join('%' + f for f in _FLAGS)}")
        if match["width"]:
            part = _padded(part, match["align"], int(match["width"]), bool(match["cut"]))
        parts.append(part)
        at = match.end()
    frozen = tuple(parts)

    def render(record: Record) -> str:
        now = time.time()
        return "".join([part(record, now) for part in frozen])

    return render
