"""What the connection manager does to response headers before they are encoded.

Envoy: ConnectionManagerUtility::mutateResponseHeaders and the base headers of encodeHeaders.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.config import model
from proxy.http.date import http_date
from proxy.http.headers import Field, field

if TYPE_CHECKING:
    from proxy.http.headers import Headers
    from proxy.http.stream import Stream

CONNECTION_LEVEL = (b"connection", b"keep-alive", b"proxy-connection")
CONNECTION_LEVEL_SET = frozenset((*CONNECTION_LEVEL, b"upgrade"))


class ResponseRules:
    """The rules of one connection manager."""

    __slots__ = ("_append_server", "_date", "_date_second", "_overwrite_server",
                 "_return_id", "_server", "_via", "config")

    def __init__(self, config: model.HttpConnectionManager) -> None:
        self.config = config
        self._server = field(b"server", config.server_name)
        self._overwrite_server = config.server_header_transformation == model.OVERWRITE
        self._append_server = config.server_header_transformation != model.PASS_THROUGH
        self._via = config.via
        self._return_id = config.always_set_request_id_in_response
        self._date: Field = (b"date", b"", b"")
        self._date_second = 0

    def apply(self, stream: Stream, headers: Headers) -> None:
        """Change response headers; connection and framing are the encoder's."""
        index = headers.index
        if not CONNECTION_LEVEL_SET.isdisjoint(index):
            if stream.upgrade is None or stream.response_code != 101:
                headers.remove(b"upgrade")
                headers.remove(b"connection")
            for name in CONNECTION_LEVEL[1:]:
                if name in index:
                    headers.remove(name)
        if b"date" not in index:
            second = int(stream.start_time + (stream.conn.now() - stream.start))
            if second != self._date_second:
                self._date_second = second
                self._date = field(b"date", http_date(second).encode())
            headers.put(self._date)
        if b"server" in index:
            if self._overwrite_server:
                headers.replace(self._server)
        elif self._append_server:
            headers.put(self._server)
        if stream.manager.tracing:
            if stream.manager.egress:
                headers.remove(b"x-envoy-decorator-operation")
            elif stream.decorator:
                headers.set(b"x-envoy-decorator-operation", stream.decorator)
        if self._return_id or (stream.request_headers is not None
                               and b"x-envoy-force-trace" in stream.request_headers.index):
            known = stream.request_headers.get(b"x-request-id") if stream.request_headers is not None else None
            if known is not None:
                headers.set(b"x-request-id", known)
        if self._via:
            old = headers.get(b"via")
            headers.set(b"via", self._via if old is None else old + b", " + self._via)
