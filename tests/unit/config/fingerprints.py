"""Compares compiled configurations: closures and compiled patterns count by what they hold, not by identity."""

from __future__ import annotations

import dataclasses
import functools
import re
import types
from collections.abc import Mapping
from typing import Any

from google.protobuf.message import Message

from proxy.config.regex import SafeRegex


class HoldsMessage(AssertionError):
    """A compiled configuration refers to protobuf."""


def fingerprint(value: Any) -> Any:
    """A comparable picture of a compiled object. Raises HoldsMessage when a protobuf message is in it."""
    if isinstance(value, Message):
        raise HoldsMessage(repr(type(value)))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return (type(value).__name__,
                *((f.name, fingerprint(getattr(value, f.name))) for f in dataclasses.fields(value)))
    if isinstance(value, tuple | list):
        return tuple(fingerprint(item) for item in value)
    if isinstance(value, frozenset | set):
        return frozenset(fingerprint(item) for item in value)
    if isinstance(value, Mapping):
        return tuple(sorted((key, fingerprint(item)) for key, item in value.items()))
    if isinstance(value, types.FunctionType):
        cells = tuple(fingerprint(cell.cell_contents) for cell in value.__closure__ or ())
        return value.__code__, cells, fingerprint(value.__defaults__)
    if isinstance(value, types.MethodType | types.BuiltinMethodType):
        return value.__name__, fingerprint(value.__self__)
    if isinstance(value, functools.partial):
        return fingerprint((value.func, value.args, value.keywords))
    if isinstance(value, SafeRegex):
        return value.text
    if isinstance(value, re.Pattern):
        return value.pattern
    if type(value).__module__.startswith("re2"):
        return value.pattern
    if value is None or isinstance(value, str | bytes | int | float | types.ModuleType):
        return value
    if type(value).__module__ == "ipaddress":
        return str(value)
    raise TypeError(f"no fingerprint for {type(value)}")
