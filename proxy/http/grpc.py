"""Local replies to gRPC requests: HTTP 200 with the status in grpc-status (gRPC over HTTP2, "Responses")."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote_from_bytes

if TYPE_CHECKING:
    from proxy.http.headers import Headers

UNKNOWN = 2
STATUS = {400: 13, 401: 16, 403: 7, 404: 12, 429: 14, 502: 14, 503: 14, 504: 14}
"""HTTP status of a local reply -> gRPC status code (Envoy: Grpc::Utility::httpToGrpcStatus)."""
PLAIN = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")


def is_grpc(headers: Headers) -> bool:
    """Whether the request is gRPC by its content-type (grpc-web is not)."""
    content_type = headers.get(b"content-type")
    return content_type is not None and (content_type == b"application/grpc"
                                         or content_type.startswith(b"application/grpc+"))


def grpc_reply(status: int, body: bytes, reply: Headers) -> tuple[int, bytes]:
    """Turn a local reply into a trailers-only response; returns its HTTP status and body."""
    reply.set(b"content-type", b"application/grpc")
    reply.set(b"grpc-status", b"%d" % STATUS.get(status, UNKNOWN))
    if body:
        reply.set(b"grpc-message", quote_from_bytes(body, safe=PLAIN).encode())
    return 200, b""
