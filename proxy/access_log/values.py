"""What formatters compute at run time: memos for numbers and reasons, and the rarer operators as functions."""

from __future__ import annotations

import ipaddress
import os
import re
import time
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from proxy.http.headers import Headers
    from proxy.stream_info import StreamInfo

_MEMO_SIZE = 1024

now = time.time


class Decimals(dict[float, bytes]):
    """Number -> its decimal digits: sizes, codes and milliseconds repeat. A float key must be whole."""

    __slots__ = ()

    def __missing__(self, number: float) -> bytes:
        if len(self) >= _MEMO_SIZE:
            self.clear()
        text = self[number] = b"%d" % number
        return text


DECIMAL = Decimals()


class Underscored(dict["bytes | None", bytes]):
    """Text -> the same with every white space as an underscore; None and empty -> ``missing``."""

    __slots__ = ("_missing",)

    def __init__(self, missing: bytes) -> None:
        super().__init__()
        self._missing = missing

    def __missing__(self, text: bytes | None) -> bytes:
        if len(self) >= _MEMO_SIZE:
            self.clear()
        shown = self[text] = text.translate(_UNDERSCORES) if text else self._missing
        return shown


_UNDERSCORES = bytes(ord("_") if byte in b" \t\n\v\f\r" else byte for byte in range(256))


def elapsed(begin: float | None, end: float | None, scale: int) -> bytes | None:
    """Whole units (``scale`` a second) from one point in time to another; None when that cannot be said."""
    if begin is None or end is None or end < begin:
        return None
    return b"%d" % ((end - begin) * scale)


LONG_FLAGS = {
    b"UH": b"NoHealthyUpstream", b"UF": b"UpstreamConnectionFailure", b"UO": b"UpstreamOverflow",
    b"NR": b"NoRouteFound", b"URX": b"UpstreamRetryLimitExceeded", b"NC": b"NoClusterFound", b"DT": b"DurationTimeout",
    b"DC": b"DownstreamConnectionTermination", b"LH": b"FailedLocalHealthCheck", b"UT": b"UpstreamRequestTimeout",
    b"LR": b"LocalReset", b"UR": b"UpstreamRemoteReset", b"UC": b"UpstreamConnectionTermination",
    b"DI": b"DelayInjected", b"FI": b"FaultInjected", b"RL": b"RateLimited", b"UAEX": b"UnauthorizedExternalService",
    b"RLSE": b"RateLimitServiceError", b"IH": b"InvalidEnvoyRequestHeaders", b"SI": b"StreamIdleTimeout",
    b"DPE": b"DownstreamProtocolError", b"UPE": b"UpstreamProtocolError",
    b"UMSDR": b"UpstreamMaxStreamDurationReached", b"RFCF": b"ResponseFromCacheFilter",
    b"NFCF": b"NoFilterConfigFound", b"OM": b"OverloadManagerTerminated", b"DF": b"DnsResolutionFailed",
    b"DO": b"DropOverload", b"DR": b"DownstreamRemoteReset", b"UDO": b"UnconditionalDropOverload",
}
"""Response flags and their long names."""


def long_flags(info: StreamInfo) -> bytes | None:
    """%RESPONSE_FLAGS_LONG%."""
    if not info.flags:
        return None
    return b",".join([LONG_FLAGS.get(flag, flag) for flag in info.flags.split(b",")])


def host(address: bytes) -> bytes:
    """``ip`` of ``ip:port`` or ``[ip]:port``."""
    return address.rpartition(b":")[0].strip(b"[]")


@lru_cache(maxsize=_MEMO_SIZE)
def network(address: bytes, bits: int) -> bytes:
    """``ip:port`` -> the network of its first bits, ``127.0.0.0/16``; more bits than the address has count as all."""
    ip = ipaddress.ip_address(host(address).decode())
    return str(ipaddress.ip_network((ip, min(bits, ip.max_prefixlen)), strict=False)).encode()


def path(info: StreamInfo, with_query: bool, source: str) -> bytes | None:
    """%PATH(...)%: ``source`` is ORIG (x-envoy-original-path), PATH (as it is now) or ORIG_OR_PATH."""
    found = None
    if source != "PATH" and info.request_headers is not None:
        found = info.request_headers.get(b"x-envoy-original-path")
    if found is None and source != "ORIG":
        found = info.path
    if found is None or with_query:
        return found
    return found.partition(b"?")[0]


def query(info: StreamInfo) -> bytes | None:
    """%QUERY_PARAMS%: what follows the question mark; None without one."""
    if info.path is None:
        return None
    _, mark, rest = info.path.partition(b"?")
    return rest.partition(b"#")[0] if mark else None


_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})")


def _decoded(text: bytes) -> bytes:
    return _ESCAPE.sub(lambda match: bytes((int(match[1], 16),)), text) if b"%" in text else text


def query_parameter(info: StreamInfo, name: bytes) -> bytes | None:
    """%QUERY_PARAM(name)%: the first value, percent-decoded; empty for a name without value."""
    for item in (query(info) or b"").split(b"&"):
        key, _, value = item.partition(b"=")
        if item and _decoded(key) == name:
            return _decoded(value)
    return None


def _size(headers: Headers | None) -> int:
    return sum([len(name) + len(value) for name, value, _ in headers.fields]) if headers is not None else 0


def request_headers_bytes(info: StreamInfo) -> bytes:
    """%REQUEST_HEADERS_BYTES%: names and values, with :method, :path, :scheme, :authority and without host."""
    if info.request_headers is None:
        return b"0"
    size = _size(info.request_headers)
    for pseudo, value in ((b":method", info.method), (b":path", info.path), (b":scheme", info.scheme),
                          (b":authority", info.authority)):
        if value is not None:
            size += len(pseudo) + len(value)
    for value in info.request_headers.get_all(b"host"):
        size -= len(b"host") + len(value)
    return b"%d" % size


def response_headers_bytes(info: StreamInfo) -> bytes:
    """%RESPONSE_HEADERS_BYTES%: names and values, with :status."""
    status = len(b":status200") if info.response_code else 0
    return b"%d" % (_size(info.response_headers) + status)


def response_trailers_bytes(info: StreamInfo) -> bytes:
    """%RESPONSE_TRAILERS_BYTES%."""
    return b"%d" % _size(info.response_trailers)


def unique_id(info: StreamInfo) -> bytes:
    """%UNIQUE_ID%: a random UUID (version 4) for every line."""
    raw = bytearray(os.urandom(16))
    raw[6] = raw[6] & 0x0F | 0x40
    raw[8] = raw[8] & 0x3F | 0x80
    digits = raw.hex().encode()
    return b"-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
