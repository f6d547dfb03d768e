"""The gRPC health protocol as bytes, and HTTP/2 exchanges against h2's own server side."""

from collections.abc import Callable

import h2.config
import h2.connection
import h2.events
import pytest

from agent.http.exchange import HttpError, Response
from agent.http.h2_exchange import Http2Exchange
from agent.status.grpc_health import check_request, complaint

SERVING = b"\0\0\0\0\2\x08\1"
OK = ((b"grpc-status", b"0"),)


@pytest.mark.parametrize(
    ("service", "wire"),
    [
        ("", b"\0\0\0\0\0"),
        ("abc", b"\0\0\0\0\5\x0a\3abc"),
        ("x" * 200, b"\0\0\0\0\xcb\x0a\xc8\1" + b"x" * 200),
    ],
)
def test_request(service: str, wire: bytes) -> None:
    assert check_request(service) == wire


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (Response(200, SERVING, (), OK), ""),
        (Response(200, SERVING, OK, ()), ""),
        (Response(200, b"\0\0\0\0\7\x12\1x\x15abcd\x08\1"[:4] + b"\x0a\x12\1x\x15abcd\x08\1", (), OK), ""),
        (Response(200, b"\0\0\0\0\0", (), OK), "service is UNKNOWN"),
        (Response(200, b"\0\0\0\0\2\x08\2", (), OK), "service is NOT_SERVING"),
        (Response(200, b"\0\0\0\0\2\x08\3", (), OK), "service is SERVICE_UNKNOWN"),
        (Response(200, b"\0\0\0\0\2\x08\x7f", (), OK), "service is 127"),
        (Response(503, b"", (), ()), "HTTP status 503"),
        (Response(200, b"", (), ()), "gRPC status missing"),
        (Response(200, b"", (), ((b"grpc-status", b"12"),)), "gRPC status UNIMPLEMENTED"),
        (Response(200, b"", (), ((b"grpc-status", b"5"), (b"grpc-message", b"no x"))), "gRPC status NOT_FOUND: no x"),
        (Response(200, b"", (), ((b"grpc-status", b"99"),)), "gRPC status 99"),
        (Response(200, b"", (), ((b"grpc-status", b"9" * 5000),)), "gRPC status 999"),
        (Response(200, b"", (), OK), "bad HealthCheckResponse: expected one message"),
        (Response(200, SERVING + SERVING, (), OK), "expected one message"),
        (Response(200, b"\1" + SERVING[1:], (), OK), "compressed"),
        (Response(200, b"\0\0\0\0\1\x08", (), OK), "cut off"),
        (Response(200, b"\0\0\0\0\2\x12\x7f", (), OK), "cut off"),
        (Response(200, b"\0\0\0\0\2\x0b\0", (), OK), "wire type 3"),
        (Response(200, b"\0\0\0\0\x0c\x08" + b"\xff" * 11, (), OK), "number is too long"),
    ],
)
def test_answers(response: Response, reason: str) -> None:
    found = complaint(response)
    assert reason in found and bool(found) == bool(reason)


class Peer:
    """h2 as a server: `play` is called with the connection once the request is complete."""

    def __init__(self, play: Callable[[h2.connection.H2Connection], None]) -> None:
        self.connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding=None))
        self.connection.initiate_connection()
        self.play = play
        self.headers: dict[str, str] = {}
        self.body = b""

    def feed(self, data: bytes) -> bytes:
        for event in self.connection.receive_data(data):
            if isinstance(event, h2.events.RequestReceived):
                self.headers = {bytes(name).decode(): bytes(value).decode("latin-1") for name, value in event.headers}
            elif isinstance(event, h2.events.DataReceived):
                self.body += event.data
            elif isinstance(event, h2.events.StreamEnded):
                self.play(self.connection)
        return self.connection.data_to_send()


def exchange(**more: object) -> Http2Exchange:
    defaults = {"scheme": "http", "max_body": 100, "body": b"abc", "headers": [("Connection", "close"), ("X", "\xe9")]}
    return Http2Exchange("POST", "/p", "h:1", **{**defaults, **more})  # type: ignore[arg-type]


def converse(client: Http2Exchange, peer: Peer, step: int = 1 << 20) -> Response:
    wire, sent = peer.feed(client.request), 0
    while True:
        part, wire = wire[:step], wire[step:]
        response = client.receive(part)
        sent += len(part)
        if response is not None:
            return response
        wire += peer.feed(client.output())


def answer(connection: h2.connection.H2Connection) -> None:
    connection.send_headers(1, [(":status", "200"), ("a", "b")])
    connection.send_data(1, b"body")
    connection.send_headers(1, [("grpc-status", "0")], end_stream=True)


def test_any_split_gives_the_same_response() -> None:
    for step in (1, 2, 3, 7, 1 << 20):
        peer = Peer(answer)
        response = converse(exchange(trailers=True), peer, step)
        assert response == Response(200, b"body", ((b":status", b"200"), (b"a", b"b")), ((b"grpc-status", b"0"),))
        assert peer.body == b"abc"
        assert peer.headers[":authority"] == "h:1" and peer.headers["te"] == "trailers"
        assert "connection" not in peer.headers and peer.headers["x"] == "\xe9"


def test_body_is_cut_or_refused() -> None:
    def big(connection: h2.connection.H2Connection) -> None:
        connection.send_headers(1, [(":status", "200")])
        connection.send_data(1, b"x" * 1000)

    assert converse(exchange(truncate=True), Peer(big)).body == b"x" * 100
    with pytest.raises(HttpError, match="larger than 100 bytes"):
        converse(exchange(), Peer(big))


def reset(connection: h2.connection.H2Connection) -> None:
    connection.reset_stream(1, 7)


def goaway(connection: h2.connection.H2Connection) -> None:
    connection.close_connection(11)


@pytest.mark.parametrize(
    ("play", "message"),
    [(reset, "the stream was reset: REFUSED_STREAM"), (goaway, "the peer went away: ENHANCE_YOUR_CALM")],
)
def test_refusals(play: Callable[[h2.connection.H2Connection], None], message: str) -> None:
    with pytest.raises(HttpError, match=message):
        converse(exchange(), Peer(play))


@pytest.mark.parametrize(
    ("wire", "message"),
    [
        (b"", "closed before the response"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "the peer speaks HTTP/1"),
        (b"\0\0\x08\x06\0\0\0\0\0pingping" * 20_000, "sent more than"),
        (b"\0\0\1\x01\x04\0\0\0\1\xff", "bad HTTP/2"),
    ],
)
def test_bad_peers(wire: bytes, message: str) -> None:
    client = exchange()
    first = b"" if wire.startswith(b"HTTP") or not wire else b"\0\0\0\x04\0\0\0\0\0"
    if first:
        assert client.receive(first) is None
    with pytest.raises(HttpError, match=message):
        for at in range(0, len(wire) or 1, 65536):
            client.receive(wire[at : at + 65536])
