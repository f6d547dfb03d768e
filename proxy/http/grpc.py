"""gRPC over HTTP/1: local replies are HTTP 200 with the status in grpc-status, and grpc-timeout can set time limits.

See "gRPC over HTTP2", "Requests" and "Responses".
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import quote_from_bytes

if TYPE_CHECKING:
    from proxy.config.model import RouteAction
    from proxy.http.headers import Headers

UNKNOWN = 2
DEADLINE_EXCEEDED = 4
AT_ONCE = 1e-6
"""A deadline that has passed: where 0.0 is no limit."""
TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
UNIT_NS = {b"H": 3600 * 10**9, b"M": 60 * 10**9, b"S": 10**9, b"m": 10**6, b"u": 10**3, b"n": 1}
STATUS = {400: 13, 401: 16, 403: 7, 404: 12, 429: 14, 502: 14, 503: 14, 504: 14}
"""HTTP status of a local reply -> gRPC status code (Envoy: Grpc::Utility::httpToGrpcStatus)."""
PLAIN = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")


def is_grpc(headers: Headers) -> bool:
    """Whether the request is gRPC by its content-type (grpc-web is not)."""
    content_type = headers.get(b"content-type")
    return content_type is not None and (content_type == b"application/grpc"
                                         or content_type.startswith(b"application/grpc+"))


def grpc_timeout(headers: Headers) -> int | None:
    """The client's deadline in milliseconds, rounded up; None where there is none (gRPC over HTTP2, "Requests")."""
    found = TIMEOUT.fullmatch(headers.get(b"grpc-timeout") or b"")
    return -(-int(found[1]) * UNIT_NS[found[2]] // 1_000_000) if found else None


def set_grpc_timeout(headers: Headers, milliseconds: int) -> None:
    """Tell the upstream its deadline, in the smallest unit that does with 8 digits."""
    value, unit = next(((milliseconds * 1_000_000 // UNIT_NS[unit], unit) for unit in (b"m", b"S", b"M")
                        if milliseconds * 1_000_000 // UNIT_NS[unit] < 10 ** 8), (milliseconds // 3_600_000, b"H"))
    headers.set(b"grpc-timeout", b"%d%b" % (value, unit))


def response_timeout(action: RouteAction, headers: Headers) -> float:
    """The route's timeout for a gRPC request, by grpc-timeout and max_grpc_timeout; 0.0 is none. Seconds."""
    wanted = (grpc_timeout(headers) or 0) / 1000
    if action.grpc_timeout_offset < wanted:
        wanted -= action.grpc_timeout_offset
    limit = action.max_grpc_timeout
    return limit if limit and (not wanted or wanted > limit) else wanted


def stream_duration(action: RouteAction, headers: Headers) -> float | None:
    """How long the route lets the stream last, by grpc-timeout where the route asks for that (seconds).

    0.0 is no limit, None that of the connection manager. A gRPC request's grpc-timeout becomes the duration.
    """
    asked = grpc_timeout(headers)
    limit = action.grpc_timeout_header_max
    if asked is None or limit is None:
        return action.max_stream_duration
    duration = asked / 1000
    if limit and duration > limit:
        duration = limit
    duration = max(0.0, duration - action.grpc_timeout_header_offset)
    if is_grpc(headers):
        set_grpc_timeout(headers, round(duration * 1000))
    return duration or AT_ONCE


def grpc_reply(status: int, body: bytes, reply: Headers, grpc_status: int | None = None) -> tuple[int, bytes]:
    """Turn a local reply into a trailers-only response; returns its HTTP status and body."""
    reply.set(b"content-type", b"application/grpc")
    reply.set(b"grpc-status", b"%d" % (STATUS.get(status, UNKNOWN) if grpc_status is None else grpc_status))
    if body:
        reply.set(b"grpc-message", quote_from_bytes(body, safe=PLAIN).encode())
    return 200, b""
