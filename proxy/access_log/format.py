"""Format strings of access logs and header values: text with ``%OPERATOR(argument):length%`` -> a function.

``compile_format`` turns a format into the source of one Python function and compiles it: the literal text becomes one
template, every operator one expression (see operators.py). Nothing of a format string reaches the source but through
``repr``. Values are written as they are: no control character but a tab gets through the codecs, so none can end a
line (Envoy relies on the same).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import cast

from proxy.access_log.operators import NONE, OPERATORS, REQUIRED, UNSUPPORTED, FormatError
from proxy.access_log.values import Underscored
from proxy.stream_info import StreamInfo

__all__ = ["FormatError", "Formatter", "compile_format"]

Formatter = Callable[[StreamInfo], bytes]

_COMMAND = re.compile(r"%(?P<name>[A-Z0-9_]+)(?:\((?P<argument>.*?)\))?(?::(?P<length>[0-9]{1,9}))?%", re.DOTALL)

_NO_HEADERS: dict[bytes, tuple[bytes, bytes, bytes]] = {}


class Code:
    """A formatter while it is put together."""

    def __init__(self, missing: bytes) -> None:
        self.missing = repr(missing)
        """Source of the value of an operator that has none."""
        self.names: dict[str, object] = {"NO_HEADERS": _NO_HEADERS}
        """What the source refers to."""
        self.prologue: dict[str, str] = {}
        """Local variable -> its expression."""
        self._missing = missing

    def bind(self, value: object, name: str = "") -> str:
        """A name by which the source can use ``value``."""
        name = name or f"X{len(self.names)}"
        self.names[name] = value
        return name

    def underscored(self) -> str:
        """The memo that replaces white space."""
        return self.bind(Underscored(self._missing), "UNDERSCORED")

    def index(self, side: str) -> str:
        """The local variable with the index of ``request_headers``, ``response_headers`` or ``response_trailers``."""
        self.prologue[side] = f"NO_HEADERS if (h := i.{side}) is None else h.index"
        return side


@lru_cache(maxsize=1024)
def compile_format(text: str, missing: bytes = b"-") -> Formatter:
    """A function from a StreamInfo to the formatted bytes; ``missing`` stands where an operator has no value.

    Raises FormatError for bad syntax, an operator that does not exist, one that is not supported yet, bad arguments.
    """
    code = Code(missing)
    template = bytearray()
    expressions: list[str] = []
    at = 0
    while at < len(text):
        end = text.find("%", at)
        if end != at:
            literal = text[at:end if end >= 0 else len(text)]
            template += literal.encode().replace(b"%", b"%%")
            at += len(literal)
        elif text.startswith("%%", at):
            template += b"%%"
            at += 2
        else:
            match = _COMMAND.match(text, at)
            if match is None:
                raise FormatError(f"incorrect format: couldn't find valid command at position {at} of {text!r}")
            template += b"%b"
            expressions.append(_expression(code, match))
            at = match.end()
    return _function(code, bytes(template), expressions)


def _expression(code: Code, match: re.Match[str]) -> str:
    name, argument = match["name"], match["argument"] or ""
    length = None if match["length"] is None else int(match["length"])
    operator = OPERATORS.get(name)
    if operator is None:
        if name in UNSUPPORTED:
            raise FormatError(f"operator {name} is not supported yet, supported: {_known()}")
        raise FormatError(f"unknown operator {name}, known: {_known()}")
    if operator.argument == REQUIRED and not argument:
        raise FormatError(f"{name} requires parameters")
    if operator.argument == NONE and (argument or length is not None):
        raise FormatError(f"{name} does not take any parameters or length")
    if length is not None and not operator.length:
        raise FormatError(f"{name} does not allow length to be specified")
    try:
        return operator.build(code, argument, length)
    except FormatError as error:
        raise FormatError(f"{match[0]}: {error}") from None


def _known() -> str:
    return ", ".join(sorted(OPERATORS))


def _function(code: Code, template: bytes, expressions: list[str]) -> Formatter:
    if not expressions:
        result = repr(template % ())
    elif template == b"%b":
        result = expressions[0]
    else:
        result = f"{template!r} % (" + "".join(f"\n        ({e})," for e in expressions) + "\n    )"
    lines = [f"    {name} = {expression}\n" for name, expression in code.prologue.items()]
    source = f"def formatter(i):\n{''.join(lines)}    return {result}\n"
    names = dict(code.names)
    exec(compile(source, "<access log format>", "exec"), names)
    return cast(Formatter, names["formatter"])
