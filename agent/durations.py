"""Durations as text: Go's (environment, flags) and protobuf's (ProxyConfig). Values are seconds."""

import re

_GO_UNIT_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_GO_PART = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
_PROTO = re.compile(r"-?[0-9]{1,12}(\.[0-9]{1,9})?s")

# Go holds a duration in 64-bit nanoseconds, about 292 years; the same bound keeps our timers sane.
MAX_SECONDS = (2**63 - 1) / 1e9
_MAX_TEXT = 64


def parse_go_duration(text: str) -> float:
    """Seconds of a duration in Go's syntax (`5s`, `1m30s`, `250ms`, `0`).

    Raises ValueError when it is not one.
    """
    rest = text[1:] if text[:1] in ("-", "+") else text
    if rest == "0":
        return 0.0
    total, at = 0.0, 0
    while at < len(rest) <= _MAX_TEXT:
        part = _GO_PART.match(rest, at)
        if part is None:
            break
        total += float(part[1]) * _GO_UNIT_S[part[2]]
        at = part.end()
    if not rest or at != len(rest) or total > MAX_SECONDS:
        raise ValueError(f"{text[:_MAX_TEXT]!r} is not a duration such as 5s, 1m30s or 250ms")
    return -total if text.startswith("-") else total


def parse_proto_duration(text: str) -> float:
    """Seconds of a protobuf JSON duration: decimal seconds with the suffix `s`.

    Raises ValueError when it is not one (`1m` is not).
    """
    if len(text) > _MAX_TEXT or not _PROTO.fullmatch(text) or abs(float(text[:-1])) > MAX_SECONDS:
        raise ValueError(f"{text[:_MAX_TEXT]!r} is not a duration in seconds such as 5s or 1.5s")
    return float(text[:-1])


def format_seconds(seconds: float) -> str:
    """`5s`, `1.5s`: the protobuf form, without trailing zeros."""
    return f"{seconds:.9f}".rstrip("0").rstrip(".") + "s"
