"""How runtime values are read: as Envoy does, whatever type they were written with."""

from __future__ import annotations

import json
import re

_NUMBER = re.compile(
    r"\s*([+-]?)(?:(0[xX][0-9a-fA-F]{1,16})|(\d{1,25}(?:\.\d{0,25})?|\.\d{1,25})([eE][+-]?\d{1,3})?)\s*", re.ASCII)

_WORDS = {"true": True, "yes": True, "y": True, "on": True, "false": False, "no": False, "n": False, "off": False}


def integer(value: object) -> int | None:
    """Envoy's Snapshot::getInteger: an unsigned number, fractions cut off; None: the default is used."""
    if isinstance(value, str):
        value = _number(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1 << 64:
        return None
    return int(value)


def boolean(value: object, default: bool) -> bool:
    """Envoy's Snapshot::getBoolean: YAML's words, and whole numbers (of 32 bits) of which 0 is false."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        word = value.strip()
        if word in (word.lower(), word.upper(), word.capitalize()) and word.lower() in _WORDS:
            return _WORDS[word.lower()]
        value = _number(value)
    if isinstance(value, int | float) and -1 << 31 <= value < (1 << 31) - 1 and value == int(value):
        return value != 0
    return default


def _number(text: str) -> int | float | None:
    found = _NUMBER.fullmatch(text)
    if found is None:
        return None
    sign, hexadecimal, decimal, exponent = found.groups()
    negative = sign == "-"
    number: int | float
    if hexadecimal:
        number = int(hexadecimal, 16)
    elif decimal.isdigit() and not exponent:
        number = int(decimal)
    else:
        number = float(decimal + (exponent or ""))
    return -number if negative else number


def text(value: object) -> str:
    """A value as ``/runtime`` shows it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, dict):
        return json.dumps(value, sort_keys=True, default=str)
    return str(value)
