"""Points in time as text: %START_TIME(...)%, %EMIT_TIME(...)% and their _LOCAL forms.

The conversions are strftime's with Envoy's additions (%s epoch seconds, %f fraction, %3f, %E3S, %Ez, ...). Envoy prints
a conversion that it does not know as it stands; here that is an error.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable

TimeFormatter = Callable[[float], bytes]

_MEMO_SIZE = 1024

_STRFTIME = frozenset("aAbBcCdDeFgGhHIjklmMnprRStTuUVwWxXyY")
"""Conversions that are the C library's and do not depend on time zone or fraction."""

_CONVERSION = re.compile(
    r"%(?:(?P<digits>[1-9])f"
    r"|E(?P<places>\d{1,2}|\*)(?P<sub>[Sf])"
    r"|(?P<extended>Ez|E\*z|E4Y)"
    r"|(?P<plain>.))",
    re.DOTALL,
)


class TimeFormatError(ValueError):
    """A conversion that is not known."""


class MillisecondMemo(dict[float, bytes]):
    """``start_time * 1000 // 1`` -> ``2026-11-21T00:19:22.223Z``; thousands of lines share a millisecond's text.

    The key stays a float because flooring is cheaper than making an int of it.
    """

    __slots__ = ("_local",)

    def __init__(self, local: bool) -> None:
        super().__init__()
        self._local = local

    def __missing__(self, milliseconds: float) -> bytes:
        if len(self) >= _MEMO_SIZE:
            self.clear()
        second, fraction = divmod(int(milliseconds), 1000)
        if self._local:
            t = time.localtime(second)
            zone = time.strftime("%z", t)
        else:
            t = time.gmtime(second)
            zone = "Z"
        text = self[milliseconds] = b"%04d-%02d-%02dT%02d:%02d:%02d.%03d%b" % (*t[:6], fraction, zone.encode())
        return text


_Piece = Callable[[time.struct_time, int, int], str]
"""(calendar, epoch second, nanosecond) -> text"""


def _zone(separator: str, seconds: bool) -> _Piece:
    def piece(t: time.struct_time, second: int, nanosecond: int) -> str:
        minutes = abs(t.tm_gmtoff) // 60
        text = f"{'-' if t.tm_gmtoff < 0 else '+'}{minutes // 60:02d}{separator}{minutes % 60:02d}"
        return f"{text}{separator}{abs(t.tm_gmtoff) % 60:02d}" if seconds else text
    return piece


def _fraction(places: str, point: bool) -> _Piece:
    """``places`` digits; ``*``: as many as needed."""
    def piece(t: time.struct_time, second: int, nanosecond: int) -> str:
        digits = f"{nanosecond:09d}"
        text = digits.rstrip("0") if places == "*" else digits.ljust(int(places), "0")[:int(places)]
        if not point:
            return text or ("0" if places == "*" else "")
        return f"{t.tm_sec:02d}.{text}" if text else f"{t.tm_sec:02d}"
    return piece


_PLAIN: dict[str, _Piece] = {
    "f": _fraction("9", False),
    "s": lambda t, second, nanosecond: str(second),
    "z": _zone("", False),
    # The C library calls it GMT.
    "Z": lambda t, second, nanosecond: "UTC" if t.tm_zone == "GMT" else t.tm_zone,
    "%": lambda t, second, nanosecond: "%",
}

_EXTENDED: dict[str, _Piece] = {
    "Ez": _zone(":", False),
    "E*z": _zone(":", True),
    "E4Y": lambda t, second, nanosecond: f"{t.tm_year:04d}",
}


def _strftime(conversion: str) -> _Piece:
    return lambda t, second, nanosecond: time.strftime(conversion, t)


def _literal(text: str) -> _Piece:
    return lambda t, second, nanosecond: text


def _piece(match: re.Match[str]) -> _Piece:
    if match["digits"]:
        return _fraction(match["digits"], False)
    if match["sub"]:
        return _fraction(match["places"], match["sub"] == "S")
    if match["extended"]:
        return _EXTENDED[match["extended"]]
    plain = match["plain"]
    if plain in _PLAIN:
        return _PLAIN[plain]
    if plain in _STRFTIME:
        return _strftime("%" + plain)
    raise TimeFormatError(f"unknown conversion '{match[0]}', expected one of strftime's or "
                          f"%s %f %1f..%9f %E3S %E*S %E3f %Ez %E*z %E4Y")


def compile_time_format(text: str, local: bool) -> TimeFormatter:
    """A function from wall-clock seconds to text; raises TimeFormatError."""
    pieces: list[_Piece] = []
    at = 0
    while at < len(text):
        if text[at] == "%":
            match = _CONVERSION.match(text, at)
            if match is None:
                raise TimeFormatError("'%' at the end")
            pieces.append(_piece(match))
            at = match.end()
        else:
            end = text.find("%", at)
            end = len(text) if end < 0 else end
            pieces.append(_literal(text[at:end]))
            at = end
    calendar = time.localtime if local else time.gmtime

    def render(now: float) -> bytes:
        # A float of today's epoch is exact to a fraction of a microsecond only.
        second, microsecond = divmod(int(now * 1_000_000), 1_000_000)
        t = calendar(second)
        return "".join([piece(t, second, microsecond * 1000) for piece in pieces]).encode()

    return render
