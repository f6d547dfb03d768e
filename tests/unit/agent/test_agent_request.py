"""`pilot-agent request`: what it sends, what it prints, and every way in which an answer can fail."""

import socket
import time

import pytest

from agent.errors import AgentError
from agent.options import RequestOptions
from agent.request import Call


def ask(
    monkeypatch: pytest.MonkeyPatch, answer: bytes, options: RequestOptions | None = None, *, seconds: float = 60
) -> bytes:
    """One call that is answered with these bytes and the end of the stream; returns what was sent."""
    ours, theirs = socket.socketpair()
    theirs.sendall(answer)
    theirs.shutdown(socket.SHUT_WR)
    monkeypatch.setattr(Call, "_connect", lambda _self: ours)
    with theirs:
        Call(options or RequestOptions(15000, "GET", "/stats", ""), time.monotonic() + seconds).run()
        return theirs.recv(65536)


def answer(status: str, body: bytes = b"", *fields: str) -> bytes:
    head = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", *fields]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


@pytest.mark.parametrize("status", ["200 OK", "204 No Content", "302 Found", "404 Not Found"])
def test_body_and_a_newline_are_printed_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes], status: str
) -> None:
    body = b"" if status.startswith("204") else b'{"a": "\xff"}'
    ask(monkeypatch, answer(status, body) if body else b"HTTP/1.1 204 No Content\r\n\r\n")
    assert capfdbinary.readouterr() == (body + b"\n", b"")


def test_chunks_are_put_together(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    ask(
        monkeypatch,
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
        b"3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n",
    )
    assert capfdbinary.readouterr().out == b"abcd\n"


def test_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = ask(monkeypatch, answer("200 OK"))
    assert (
        sent == b"GET /stats HTTP/1.1\r\nhost: localhost:15000\r\nuser-agent: pilot-agent\r\nconnection: close\r\n\r\n"
    )
    sent = ask(monkeypatch, answer("200 OK"), RequestOptions(15020, "POST", "/drain", ""))
    assert b"POST /drain HTTP/1.1" in sent
    assert sent.endswith(b"content-length: 0\r\n\r\n")
    sent = ask(monkeypatch, answer("200 OK"), RequestOptions(15000, "POST", "/logging", "ä"))
    assert sent.endswith("content-length: 2\r\n\r\nä".encode())


@pytest.mark.parametrize(
    ("received", "message"),
    [
        (answer("400 Bad Request", b"usage: x\n"), "GET http://localhost:15000/stats: status 400: usage: x"),
        (answer("503 Service Unavailable"), "status 503: "),
        (answer("500 Oops", b"x" * 200_000), "status 500: xxx"),
        (b"", "the connection ended without an answer"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nab", "bad response"),
        (b"SSH-2.0-x\r\n\r\n", "bad response"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 200_000, "bad response"),
        (b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", "bad response"),
    ],
)
def test_failures(monkeypatch: pytest.MonkeyPatch, received: bytes, message: str) -> None:
    with pytest.raises(AgentError) as error:
        ask(monkeypatch, received)
    assert message in str(error.value)
    assert len(str(error.value)) < 70_000


def test_no_answer_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AgentError, match="no complete answer in 60s"):
        ask(monkeypatch, b"", seconds=0)


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = int(server.getsockname()[1])
    with pytest.raises(AgentError, match=f"connect to 127.0.0.1 port {port}: Connection refused"):
        Call(RequestOptions(port, "GET", "/", ""), time.monotonic() + 60).run()


def test_a_peer_that_does_not_read_the_body(
    monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """Its answer counts; without one that is an error, which is not the end of our standard output."""
    large = RequestOptions(15000, "POST", "/x", "y" * 4_000_000)
    for received, message in ((answer("413 Too Large", b"no"), "status 413: no"), (b"", "without an answer")):
        ours, theirs = socket.socketpair()
        theirs.sendall(received)
        theirs.close()
        monkeypatch.setattr(Call, "_connect", lambda _self, ours=ours: ours)
        with pytest.raises(AgentError, match=message):
            Call(large, time.monotonic() + 60).run()
    assert capfdbinary.readouterr().out == b""
