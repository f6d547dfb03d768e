"""The constant-rate generator: its response counter, and one short run against a server in this process."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from bench import openloop
from bench.openloop import Generator, Response, ResponseError

HEAD = b"HTTP/1.1 200 OK\r\nServer: x\r\nContent-Length: 4\r\nx: y\r\n\r\n"
WIRE = HEAD + b"body"


@pytest.mark.parametrize("cut", range(len(WIRE) + 1))
def test_read_boundary_is_invisible(cut: int) -> None:
    response = Response(4)
    results = [response.feed(part) for part in (WIRE[:cut], WIRE[cut:]) if part]
    assert results == [False] * (len(results) - 1) + [True]


def test_next_response_on_the_same_connection() -> None:
    response = Response(4)
    assert [response.feed(part) for part in (WIRE, HEAD, b"bo", b"dy", WIRE)] == [True, False, False, True, True]


@pytest.mark.parametrize(
    ("wire", "named"),
    [
        (WIRE.replace(b"200 OK", b"503 Service Unavailable"), "503"),
        (WIRE.replace(b"Length: 4", b"Length: 5"), "content-length of 4"),
        (WIRE.replace(b"Content-Length: 4", b"Transfer-Encoding: chunked"), "content-length of 4"),
        (WIRE + b"more", "4 bytes after the end"),
        (b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 20000, "head longer"),
    ],
)
def test_a_wrong_response_is_refused(wire: bytes, named: str) -> None:
    with pytest.raises(ResponseError, match=named):
        Response(4).feed(wire)


class Server(threading.Thread):
    """Answers each request on each connection with `reply`; an empty reply closes the connection."""

    def __init__(self, reply: bytes) -> None:
        super().__init__(daemon=True)
        self._reply = reply
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.requests = 0

    def run(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            buffer = b""
            while data := connection.recv(65536):
                buffer += data
                while b"\r\n\r\n" in buffer:
                    _, _, buffer = buffer.partition(b"\r\n\r\n")
                    self.requests += 1
                    if not self._reply:
                        return
                    connection.sendall(self._reply)

    def close(self) -> None:
        self.join(10)
        self._listener.close()
        assert not self.is_alive()


@pytest.fixture
def serve() -> Iterator[list[Server]]:
    servers: list[Server] = []
    yield servers
    for server in servers:
        server.close()


def run(servers: list[Server], reply: bytes, rate: float, seconds: float, warmup: float) -> openloop.Report:
    server = Server(reply)
    servers.append(server)
    server.start()
    return Generator(server.port, "/", "h", rate, seconds, warmup, connections=1, body=4).run()


def test_every_scheduled_request_is_sent_and_the_warm_up_is_not_counted(serve: list[Server]) -> None:
    report = run(serve, WIRE, rate=500, seconds=0.2, warmup=0.1)
    assert report.error == ""
    assert report.completed == 100
    assert serve[0].requests == 150
    assert 0 < report.p50_us <= report.p90_us <= report.p99_us <= report.max_us
    assert 0 <= report.lag_p50_us <= report.lag_p99_us


def test_a_bad_status_ends_the_run_with_the_reason(serve: list[Server]) -> None:
    report = run(serve, WIRE.replace(b"200 OK", b"503 No"), rate=500, seconds=0.2, warmup=0)
    assert "503" in report.error
    assert report.rate == 0


def test_a_closed_connection_ends_the_run_with_the_reason(serve: list[Server]) -> None:
    assert "closed" in run(serve, b"", rate=500, seconds=0.2, warmup=0).error


def test_command_and_report_survive_the_process_boundary() -> None:
    command = openloop.command(8080, "/1k", "details:9080", 14000.5, 4, 1024, 32)
    assert command[1:3] == ["-m", "bench.openloop"]
    assert "--rate=14000.5" in command
    assert "--body=1024" in command
    with pytest.raises(ValueError, match="not a report"):
        openloop.parse("[1]")
