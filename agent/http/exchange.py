"""One HTTP/1.1 request and its response, without I/O: bytes in, bytes out, every size bounded."""

from collections.abc import Iterable
from dataclasses import dataclass

import h11

MAX_HEAD = 64 * 1024
READ_SIZE = 16 * 1024  # between two turns of the event loop: chunks of a byte are thousands of events
_MAX_INFORMATIONAL = 20  # responses before the real one

Headers = Iterable[tuple[str, str]]


class HttpError(Exception):
    """No usable response: the peer broke the protocol, said too much, or closed too early."""


@dataclass(frozen=True, slots=True)
class Response:
    """`headers` and `trailers` have lower-case names; trailers come with HTTP/2 only."""

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()
    trailers: tuple[tuple[bytes, bytes], ...] = ()

    def header(self, name: bytes) -> str:
        """The first value of that name (in lower case), "" when there is none."""
        return next((value.decode("latin-1") for key, value in self.headers if key == name), "")


class Budget:
    """Bytes that several bodies may have together."""

    __slots__ = ("left",)

    def __init__(self, size: int) -> None:
        self.left = size

    def take(self, size: int) -> None:
        """Raises HttpError when they are used up."""
        self.left -= size
        if self.left < 0:
            raise HttpError("all responses together are too large")


class Exchange:
    """Send `request`, then feed what comes back to `receive` until it returns the response."""

    def __init__(
        self,
        method: str,
        target: str,
        host: str,
        *,
        max_body: int,
        keep_body: bool = True,
        headers: Headers = (),
        keep_alive: bool = False,
        truncate: bool = False,
        budget: Budget | None = None,
    ) -> None:
        """`max_body` in bytes; a longer body is an error, or with `truncate` the response ends there.

        Without `keep_body` the body is read and counted, not kept. `headers` must not name host, connection or the
        framing of a body: the request has none. Raises HttpError when no request can be made of this.
        """
        self._connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
        self._max_body = max_body
        self._keep_body = keep_body
        self._truncate = truncate
        self._budget = budget
        self._status = 0
        self._headers: tuple[tuple[bytes, bytes], ...] = ()
        self._size = 0
        self._informational = 0
        self._body: list[bytes] = []
        fields = [("host", host), *headers]
        if not any(name.lower() == "user-agent" for name, _ in fields):
            fields.append(("user-agent", "pilot-agent"))
        if not keep_alive:
            fields.append(("connection", "close"))
        if method not in ("GET", "HEAD"):
            fields.append(("content-length", "0"))
        try:
            encoded = [(name.encode("ascii"), value.encode("latin-1")) for name, value in fields]
            head = self._connection.send(h11.Request(method=method, target=target, headers=encoded))
            end = self._connection.send(h11.EndOfMessage())
        except (h11.LocalProtocolError, UnicodeEncodeError) as error:
            raise HttpError(f"not a valid request: {error}") from None
        self.request = (head or b"") + (end or b"")

    @property
    def reusable(self) -> bool:
        """Whether the connection may carry another exchange."""
        connection = self._connection
        return (
            connection.our_state is h11.DONE
            and connection.their_state is h11.DONE
            and connection.trailing_data == (b"", False)
        )

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
                    self._headers = tuple((bytes(name), bytes(value)) for name, value in event.headers)
                elif isinstance(event, h11.Data):
                    if self._take(bytes(event.data)):
                        return self._response()
                elif isinstance(event, h11.EndOfMessage):
                    return self._response()
                elif event is h11.NEED_DATA:
                    return None
                elif not isinstance(event, h11.InformationalResponse):
                    raise HttpError("bad response: the protocol was switched unasked")
                else:
                    self._informational += 1
                    if self._informational > _MAX_INFORMATIONAL:
                        raise HttpError("bad response: too many informational responses before it")
        except h11.RemoteProtocolError as error:
            if not data:
                raise HttpError("connection closed before the response was complete") from None
            raise HttpError(f"bad response: {error}") from None

    def output(self) -> bytes:
        """What has to be sent meanwhile; HTTP/1 has nothing."""
        return b""

    def _response(self) -> Response:
        return Response(self._status, b"".join(self._body), self._headers)

    def _take(self, data: bytes) -> bool:
        """Whether that is all that was wanted."""
        if self._budget is not None:
            self._budget.take(len(data))
        room = self._max_body - self._size
        self._size += len(data)
        if self._size > self._max_body and not self._truncate:
            raise HttpError(f"response body is larger than {self._max_body} bytes")
        if self._keep_body:
            self._body.append(data[:room])
        return self._size > self._max_body
