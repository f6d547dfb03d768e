"""One HTTP/2 request and its response, without I/O. Imported only when a probe needs it."""

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions

from agent.http.exchange import Headers, HttpError, Response

_MAX_HEAD = 64 * 1024
_OVERHEAD = 256 * 1024  # bytes of frames beyond the body: settings, pings, headers
_CONNECTION_SPECIFIC = {"connection", "host", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade"}


class Http2Exchange:
    """The counterpart of Exchange: send `request`, feed `receive`, send what `output` returns in between."""

    def __init__(
        self,
        method: str,
        target: str,
        host: str,
        *,
        scheme: str,
        max_body: int,
        headers: Headers = (),
        body: bytes = b"",
        trailers: bool = False,
        truncate: bool = False,
    ) -> None:
        """`trailers`: say that they are welcome (gRPC). `body` must fit into the first window (64 KiB).

        The rest as for Exchange.
        """
        config = h2.config.H2Configuration(client_side=True, header_encoding=None)
        self._connection = h2.connection.H2Connection(config)
        self._max_body = max_body
        self._truncate = truncate
        self._status = 0
        self._size = 0
        self._received = 0
        self._body: list[bytes] = []
        self._headers: tuple[tuple[bytes, bytes], ...] = ()
        self._trailers: tuple[tuple[bytes, bytes], ...] = ()
        fields = [(":method", method), (":scheme", scheme), (":authority", host), (":path", target)]
        fields += [(n.lower(), v) for n, v in headers if n.lower() not in _CONNECTION_SPECIFIC]
        if not any(name == "user-agent" for name, _ in fields):
            fields.append(("user-agent", "pilot-agent"))
        if trailers:
            fields.append(("te", "trailers"))
        self._connection.local_settings.enable_push = 0
        self._connection.local_settings.max_header_list_size = _MAX_HEAD
        self._connection.initiate_connection()
        self._stream = self._connection.get_next_available_stream_id()
        try:
            encoded = [(name.encode("ascii"), value.encode("latin-1")) for name, value in fields]
            self._connection.send_headers(self._stream, encoded, end_stream=not body)
            if body:
                self._connection.send_data(self._stream, body, end_stream=True)
        except (h2.exceptions.ProtocolError, UnicodeEncodeError) as error:
            raise HttpError(f"not a valid request: {error}") from None
        self.request = self._connection.data_to_send()

    def receive(self, data: bytes) -> Response | None:
        """Take bytes of the response (b"" is the end of the stream). Returns the response once it is complete.

        Raises HttpError.
        """
        if not data:
            raise HttpError("connection closed before the response was complete")
        if not self._received and data.startswith(b"HTTP/1"):
            raise HttpError("the peer speaks HTTP/1, not HTTP/2")
        self._received += len(data)
        if self._received > self._max_body + _OVERHEAD:
            raise HttpError(f"the peer sent more than {self._max_body + _OVERHEAD} bytes")
        try:
            for event in self._connection.receive_data(data):
                response = self._event(event)
                if response is not None:
                    return response
        except h2.exceptions.ProtocolError as error:
            raise HttpError(f"bad HTTP/2: {error}") from None
        return None

    def output(self) -> bytes:
        return self._connection.data_to_send()

    def _event(self, event: h2.events.Event) -> Response | None:
        if isinstance(event, h2.events.ResponseReceived):
            self._headers = tuple((bytes(name), bytes(value)) for name, value in event.headers)
            status = next((value for name, value in self._headers if name == b":status"), b"")
            self._status = int(status) if status.isdigit() and len(status) == 3 else 0
            if not self._status:
                raise HttpError(f"bad HTTP/2: status {status[:20]!r}")
        elif isinstance(event, h2.events.TrailersReceived):
            self._trailers = tuple((bytes(name), bytes(value)) for name, value in event.headers)
        elif isinstance(event, h2.events.DataReceived):
            room = self._max_body - self._size
            self._size += len(event.data)
            if self._size > self._max_body and not self._truncate:
                raise HttpError(f"response body is larger than {self._max_body} bytes")
            self._body.append(event.data[:room])
            if self._size > self._max_body:
                return self._response()
            self._connection.acknowledge_received_data(event.flow_controlled_length, self._stream)
        elif isinstance(event, h2.events.StreamEnded):
            return self._response()
        elif isinstance(event, h2.events.StreamReset):
            raise HttpError(f"the stream was reset: {_code(event.error_code)}")
        elif isinstance(event, h2.events.ConnectionTerminated):
            if (event.last_stream_id or 0) < self._stream or event.error_code:
                raise HttpError(f"the peer went away: {_code(event.error_code)}")
        return None

    def _response(self) -> Response:
        return Response(self._status, b"".join(self._body), self._headers, self._trailers)


def _code(code: int | None) -> str:
    try:
        return h2.errors.ErrorCodes(code or 0).name
    except ValueError:
        return str(code)
