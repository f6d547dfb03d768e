"""The holder of idle connections, and how their memory is shown."""

from __future__ import annotations

import resource
import socket
import threading

import pytest

from bench import holder, report
from bench.cases import select
from bench.measure import Series

RESPONSE = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"


class Server:
    """Answers each connection once with these bytes."""

    def __init__(self, answer: bytes) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self.requests: list[bytes] = []
        self.accepted: list[socket.socket] = []
        self._answer = answer
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                sock, _ = self._socket.accept()
            except OSError:
                return
            self.accepted.append(sock)
            if self._answer:
                self.requests.append(sock.recv(4096))
                sock.sendall(self._answer)
                if self._answer != RESPONSE:
                    sock.close()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(10)
        for sock in self.accepted:
            sock.close()


def test_connections_are_held_from_several_addresses() -> None:
    server = Server(RESPONSE)
    held = holder.hold(server.port, 5, "h", "/1k")
    assert {sock.getsockname()[0] for sock in held} == {"127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5"}
    assert server.requests == [b"GET /1k HTTP/1.1\r\nHost: h\r\n\r\n"] * 5
    for sock in held:
        sock.close()
    server.close()


@pytest.mark.parametrize("answer", [b"HTTP/1.1 503 X\r\ncontent-length: 0\r\n\r\n", b"HTTP/1.1 200 OK\r\n",
                                    b"HTTP/1.1 200 OK\r\n\r\n", RESPONSE[:-1]])
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_another_response_is_an_error(answer: bytes) -> None:
    server = Server(answer)
    with pytest.raises(OSError, match=r"not the expected response|the connection ended"):
        holder.hold(server.port, 1, "h", "/1k")
    server.close()


def test_too_few_descriptors(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (100, 1000))
    assert holder.main(["1", "990", "h", "-"]) == 1
    assert "990 connections need a hard limit of 1040 descriptors; it is 1000" in capsys.readouterr().err


def test_rows() -> None:
    (case,) = select("connections")
    ours, envoy = (Series(case.name, name, {"new": [new], "used": [used]})
                   for name, new, used in (("ours", 1500.0, 5000.0), ("envoy", 12000.0, 16000.0)))
    rows = report.rows(case, [ours, envoy], "ours")
    assert [(row.metric, row.unit, row.verdict) for row in rows if row.subject == "ours"] == [
        ("new", "B", "ok"), ("used", "B", "MISSED")]
    assert rows[0].cells()[2] == "1,500 B"
    assert rows[0].target == "<= 4,096 B"
