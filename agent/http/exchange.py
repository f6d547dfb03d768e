"""One HTTP/1.1 request and its response, without I/O: bytes in, bytes out, every size bounded."""

from dataclasses import dataclass

import h11

MAX_HEAD = 64 * 1024
READ_SIZE = 64 * 1024


class HttpError(Exception):
    """No usable response: the peer broke the protocol, said too much, or closed too early."""


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    body: bytes


class Exchange:
    """Send `request`, then feed what comes back to `receive` until it returns the response."""

    def __init__(self, method: str, target: str, host: str, *, max_body: int, keep_body: bool = True) -> None:
        """`max_body` in bytes; a longer body is an error. Without `keep_body` it is read and counted, not kept."""
        self._connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
        self._max_body = max_body
        self._keep_body = keep_body
        self._status = 0
        self._size = 0
        self._body: list[bytes] = []
        headers = [("host", host), ("user-agent", "pilot-agent"), ("connection", "close")]
        if method not in ("GET", "HEAD"):
            headers.append(("content-length", "0"))
        try:
            head = self._connection.send(h11.Request(method=method, target=target, headers=headers))
            end = self._connection.send(h11.EndOfMessage())
        except h11.LocalProtocolError as error:
            raise HttpError(f"not a valid request: {error}") from None
        self.request = (head or b"") + (end or b"")

    def receive(self, data: bytes) -> Response | None:
        """Take bytes of the response (b"" is the end of the stream). Returns the response once it is complete.

        Raises HttpError.
        """
        try:
            self._connection.receive_data(data)
            while True:
                event = self._connection.next_event()
                if isinstance(event, h11.Response):
                    self._status = event.status_code
                elif isinstance(event, h11.Data):
                    self._take(bytes(event.data))
                elif isinstance(event, h11.EndOfMessage):
                    return Response(self._status, b"".join(self._body))
                elif event is h11.NEED_DATA:
                    return None
                elif not isinstance(event, h11.InformationalResponse):
                    raise HttpError("bad response: the protocol was switched unasked")
        except h11.RemoteProtocolError as error:
            if not data:
                raise HttpError("connection closed before the response was complete") from None
            raise HttpError(f"bad response: {error}") from None

    def _take(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > self._max_body:
            raise HttpError(f"response body is larger than {self._max_body} bytes")
        if self._keep_body:
            self._body.append(data)
