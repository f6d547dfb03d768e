"""The HTTP clients: every split of a response, and peers that refuse, stall, lie or talk too much."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from agent.admin import Admin, AdminError
from agent.errors import AgentError
from agent.http import client
from agent.http.blocking import Target, get, parse_url
from agent.http.exchange import Budget, Exchange, HttpError
from agent.options import WaitOptions
from agent.wait import wait_until_ready

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nready"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nrea\r\n2\r\ndy\r\n0\r\n\r\n"
UNTIL_EOF = b"HTTP/1.0 200 OK\r\n\r\nready"
CONTINUED = b"HTTP/1.1 100 Continue\r\n\r\n" + OK

Play = Callable[[socket.socket], None]


class Peer:
    """A server in a thread that plays one function for each connection, in turn; the last one is repeated."""

    def __init__(self, *plays: Play) -> None:
        self._plays = list(plays)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.requests: list[bytes] = []
        self._open: list[socket.socket] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            self._open.append(connection)
            if not self._plays:
                return
            try:
                request = connection.recv(65536)
                if request:
                    self.requests.append(request)
                    play = self._plays.pop(0) if len(self._plays) > 1 else self._plays[0]
                    play(connection)
            except OSError:
                pass  # the client had enough

    def close(self) -> None:
        self._plays.clear()
        socket.create_connection(("127.0.0.1", self.port)).close()
        self._thread.join()
        for connection in (*self._open, self._listener):
            connection.close()


@pytest.fixture
def peer() -> Iterator[Callable[..., Peer]]:
    peers: list[Peer] = []

    def make(*plays: Play) -> Peer:
        peers.append(Peer(*plays))
        return peers[-1]

    yield make
    for each in peers:
        each.close()


def says(data: bytes) -> Play:
    def play(connection: socket.socket) -> None:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)

    return play


def silent(connection: socket.socket) -> None:
    connection.recv(1)  # returns when the client gives up


def target(port: int, path: str = "/healthz/ready") -> Target:
    return parse_url(f"http://127.0.0.1:{port}{path}")


@pytest.mark.parametrize("wire", [OK, CHUNKED, UNTIL_EOF, CONTINUED])
def test_any_split_gives_the_same_response(wire: bytes) -> None:
    for cut in range(len(wire) + 1):
        exchange = Exchange("GET", "/", "h", max_body=100)
        response = None
        for part in (wire[:cut], wire[cut:]):
            response = response or (exchange.receive(part) if part else None)
        response = response or exchange.receive(b"")
        assert response is not None
        assert (response.status, response.body) == (200, b"ready")


def test_request_bytes() -> None:
    head = Exchange("POST", "/drain_listeners?inboundonly&graceful", "localhost:1", max_body=0).request
    assert head.startswith(b"POST /drain_listeners?inboundonly&graceful HTTP/1.1\r\n")
    assert b"content-length: 0\r\n" in head
    assert b"connection: close\r\n" in head
    with pytest.raises(HttpError, match="not a valid request"):
        Exchange("GET", "/a b", "h", max_body=0)


@pytest.mark.parametrize(
    ("wire", "message"),
    [
        (b"", "connection closed before the response"),
        (b"SSH-2.0-x\r\n\r\n", "bad response"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nrea", "connection closed before"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 21 + OK, "too many informational responses"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 101, "response body is larger than 100 bytes"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"x" * 1_000_000, "bad response"),
    ],
)
def test_bad_responses(wire: bytes, message: str) -> None:
    exchange = Exchange("GET", "/", "h", max_body=100)
    with pytest.raises(HttpError, match=message):
        assert exchange.receive(wire) is None
        exchange.receive(b"")


@pytest.mark.parametrize("wire", [OK, CHUNKED, UNTIL_EOF])
def test_blocking_get(peer: Callable[..., Peer], wire: bytes) -> None:
    server = peer(says(wire))
    assert get(target(server.port, "/a?b=c"), time.monotonic() + 30) == 200
    assert server.requests[0].startswith(b"GET /a?b=c HTTP/1.1\r\n")
    assert f"host: 127.0.0.1:{server.port}\r\n".encode() in server.requests[0].lower()


def test_localhost_is_both_families() -> None:
    try:
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("this machine has no IPv6")

    def answer() -> None:
        connection, _ = listener.accept()
        with connection:
            says(OK)(connection)

    with listener:
        thread = threading.Thread(target=answer)
        thread.start()
        port = listener.getsockname()[1]
        assert get(parse_url(f"http://localhost:{port}/"), time.monotonic() + 30) == 200
        thread.join()


@pytest.mark.parametrize(
    ("play", "message"),
    [
        (silent, "no complete response in time"),
        (says(OK[:-1]), "connection closed before"),
        (says(b""), "connection closed before the response"),
        (says(b"nonsense\r\n\r\n"), "bad response"),
    ],
)
def test_blocking_get_fails(peer: Callable[..., Peer], play: Play, message: str) -> None:
    with pytest.raises(HttpError, match=message):
        get(target(peer(play).port), time.monotonic() + 0.2)


def test_blocking_get_refused_and_unresolvable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(HttpError, match=f"connect to 127.0.0.1 port {port}: Connection refused"):
        get(target(port), time.monotonic() + 30)
    with pytest.raises(HttpError, match=r"resolve no-such-host\.invalid:"):
        get(parse_url("http://no-such-host.invalid/"), time.monotonic() + 10)


@pytest.mark.parametrize(
    "url", ["", "localhost", "ftp://h/", "http://", "http://u@h/", "http://h:0/", "http://h/ x", "http://[::1"]
)
def test_urls_refused(url: str) -> None:
    with pytest.raises(ValueError, match="."):
        parse_url(url)


def test_url_parts() -> None:
    assert parse_url("http://[::1]:8/x?y#z") == Target("::1", 8, "[::1]:8", "/x?y")
    assert parse_url("http://h") == Target("h", 80, "h", "/")


def wait(port: int, timeout_s: float, request_timeout_s: float = 5.0) -> None:
    url = f"http://127.0.0.1:{port}/healthz/ready"
    wait_until_ready(WaitOptions(timeout_s, request_timeout_s, 0.001, url), parse_url(url))


def test_wait_until_exactly_200(peer: Callable[..., Peer]) -> None:
    not_ready = [says(b"HTTP/1.1 %d X\r\ncontent-length: 0\r\n\r\n" % status) for status in (503, 204, 302)]
    server = peer(*not_ready, says(OK[:-1]), says(b"junk\r\n\r\n"), says(OK))
    wait(server.port, 60)
    assert len(server.requests) == 6


def test_wait_ends_with_the_last_failure(peer: Callable[..., Peer]) -> None:
    server = peer(says(b"HTTP/1.1 503 X\r\ncontent-length: 0\r\n\r\n"))
    with pytest.raises(AgentError, match=r"timed out after 0.3s waiting for .* last error: status 503"):
        wait(server.port, 0.3)


def test_wait_limits_one_request_and_the_whole(peer: Callable[..., Peer]) -> None:
    server = peer(silent, says(OK))
    wait(server.port, 60, request_timeout_s=0.05)
    with pytest.raises(AgentError, match="last error: no complete response in time"):
        wait(peer(silent).port, 0.2, request_timeout_s=0)  # 0: no limit but that of the whole


def ask(admin_port: int, pattern: str = "x", timeout_s: float = 30) -> dict[str, int]:
    return asyncio.run(Admin(("::1", "127.0.0.1"), admin_port).stats(pattern, timeout_s))


def text(body: bytes, status: int = 200) -> Play:
    return says(b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%s" % (status, len(body), body))


def test_admin_stats(peer: Callable[..., Peer]) -> None:
    server = peer(text(b"a.b: 3\nh: P0(nan,1)\n:\nlistener.[::1]_80.x: 4\nv: \xff\nbig: " + b"9" * 5000 + b"\n"))
    stats = ask(server.port, "^(a[.]b)$")
    assert (stats["a.b"], stats["listener.[::1]_80.x"]) == (3, 4)
    assert stats.keys() == {"a.b", "listener.[::1]_80.x", "big"}
    assert server.requests[0].startswith(b"GET /stats?usedonly&filter=^(a[.]b)$ HTTP/1.1\r\n")


@pytest.mark.parametrize(
    ("play", "message"),
    [
        (text(b"no way", 404), "status 404: no way"),
        (silent, "no answer within 0.2s"),
        (says(b""), "connection closed before the response"),
        (says(b"x" * 100_000), "bad response"),
    ],
)
def test_admin_fails(peer: Callable[..., Peer], play: Play, message: str) -> None:
    server = peer(play)
    with pytest.raises(AdminError, match=message) as error:
        ask(server.port, timeout_s=0.2)
    assert f"GET /stats?usedonly&filter=x on admin port {server.port}: " in str(error.value)


def test_admin_body_is_bounded(peer: Callable[..., Peer], monkeypatch: pytest.MonkeyPatch) -> None:
    server = peer(text(b"x" * 1001))

    async def body() -> None:
        await client.request("GET", ("127.0.0.1",), server.port, "/", timeout_s=30, max_body=1000)

    with pytest.raises(HttpError, match="larger than 1000 bytes"):
        asyncio.run(body())


def test_admin_ready_and_drain(peer: Callable[..., Peer]) -> None:
    server = peer(text(b"LIVE\n"), text(b"DRAINING\n", 503), text(b"OK\n"))

    async def play() -> tuple[bool, bool]:
        admin = Admin(("127.0.0.1",), server.port)
        live = await admin.is_live(30), await admin.is_live(30)
        await admin.drain_listeners(inbound_only=True, timeout_s=30)
        await admin.drain_listeners(inbound_only=False, timeout_s=30)
        return live

    assert asyncio.run(play()) == (True, False)
    lines = [request.split(b"\r\n")[0] for request in server.requests]
    assert lines[2:] == [
        b"POST /drain_listeners?inboundonly&graceful HTTP/1.1",
        b"POST /drain_listeners?graceful HTTP/1.1",
    ]


def answered(exchange: Exchange, wire: bytes) -> bytes | None:
    response = exchange.receive(wire)
    return None if response is None else response.body


def test_a_body_may_be_cut_instead_of_refused() -> None:
    wire = b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n"
    exchange = Exchange("GET", "/", "h", max_body=10, truncate=True)
    assert answered(exchange, wire + b"x" * 10) is None  # there may be no more
    assert answered(exchange, b"x") == b"x" * 10
    assert not exchange.reusable


@pytest.mark.parametrize(
    ("wire", "reusable"),
    [
        (OK, True),
        (CHUNKED, True),
        (OK + b"HTTP/1.1 200 OK\r\n", False),  # an answer that nobody asked for
        (OK.replace(b"OK\r\n", b"OK\r\nconnection: close\r\n"), False),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n", False),
    ],
)
def test_when_a_connection_may_be_kept(wire: bytes, reusable: bool) -> None:
    exchange = Exchange("GET", "/", "h", max_body=10, keep_alive=True)
    assert answered(exchange, wire) is not None
    assert exchange.reusable is reusable


def test_several_bodies_share_a_budget() -> None:
    budget = Budget(8)
    assert answered(Exchange("GET", "/", "h", max_body=10, budget=budget), OK) == b"ready"
    with pytest.raises(HttpError, match="all responses together are too large"):
        Exchange("GET", "/", "h", max_body=10, budget=budget).receive(OK)


def test_headers_of_a_request_and_of_its_response() -> None:
    exchange = Exchange("GET", "/", "h", max_body=10, headers=[("User-Agent", "x"), ("A", "\xe9")])
    assert exchange.request == (
        b"GET / HTTP/1.1\r\nHost: h\r\nUser-Agent: x\r\nA: \xe9\r\nConnection: close\r\n\r\n".replace(b"Host", b"host")
        .replace(b"Connection", b"connection")
    )  # fmt: skip
    response = exchange.receive(OK.replace(b"OK\r\n", b"OK\r\nX-Y: 1\r\nx-y: 2\r\n"))
    assert response is not None
    assert (response.header(b"x-y"), response.header(b"z")) == ("1", "")
    for bad in (("a b", "c"), ("a", "b\r\nc: d"), ("a", "\u4e16"), ("\xe9", "c")):
        with pytest.raises(HttpError, match="not a valid request"):
            Exchange("GET", "/", "h", max_body=10, headers=[bad])
