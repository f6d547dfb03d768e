"""The HTTP side of the admin interface, over real sockets."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
from collections.abc import Iterator

import pytest
import uvloop
from fakes import PATIENCE, FakeServer, Running, serving

from proxy.admin import protocol, server
from proxy.config import model


@pytest.fixture(scope="module", params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def running(request: pytest.FixtureRequest) -> Iterator[Running]:
    with serving(FakeServer(), request.param) as one:
        yield one


def talk(running: Running, *pieces: bytes, half_close: bool = False) -> bytes:
    """Send pieces, read until the server closes."""
    with socket.create_connection(running.address, PATIENCE) as sock:
        for piece in pieces:
            try:
                sock.sendall(piece)
            except OSError:
                break
        if half_close:
            sock.shutdown(socket.SHUT_WR)
        received = b""
        try:
            while data := sock.recv(65536):
                received += data
        except ConnectionResetError:
            pass
        return received


def head(method: str = "GET", path: str = "/ready", *headers: str, version: str = "1.1") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/{version}", "host: a", *headers, "", ""]).encode()


def test_a_reply_has_envoys_headers_in_envoys_order(running: Running) -> None:
    reply = talk(running, head("GET", "/ready", "connection: close")).decode()
    lines = reply.split("\r\n")
    assert lines[0] == "HTTP/1.1 200 OK"
    assert [line.partition(":")[0] for line in lines[1:8]] == [
        "content-type", "cache-control", "x-content-type-options", "date", "server", "connection", "transfer-encoding"]
    assert lines[8:] == ["", "5", "LIVE\n", "0", "", ""]


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_where_the_bytes_are_cut_does_not_matter(running: Running, cut: int) -> None:
    wire = head("GET", "/ready", "x-some: header", "connection: close")
    assert talk(running, wire[:cut], wire[cut:]).endswith(b"5\r\nLIVE\n\r\n0\r\n\r\n")


def test_pipelined_requests_are_answered_in_order(running: Running) -> None:
    reply = talk(running, head() * 3 + head("GET", "/hot_restart_version", "connection: close"))
    assert reply.count(b"HTTP/1.1 200 OK") == 4
    assert reply.index(b"LIVE") < reply.index(b"disabled")


def test_half_closing_client_gets_its_answer(running: Running) -> None:
    assert b"LIVE" in talk(running, head(), half_close=True)
    assert talk(running, head() * 3, half_close=True).count(b"LIVE") == 3


def test_garbage_after_a_request_is_refused_after_its_answer(running: Running) -> None:
    reply = talk(running, head() + b"BAD\r\n\r\n")
    assert reply.index(b"200 OK") < reply.index(b"400 Bad Request")
    assert reply.count(b"connection: close") == 1


def test_head_has_no_body(running: Running) -> None:
    reply = talk(running, head("HEAD", "/ready", "connection: close"))
    assert reply.endswith(b"transfer-encoding: chunked\r\n\r\n")


@pytest.mark.parametrize(("wire", "status", "body"), [
    (b"BAD\r\n\r\n", 400, b"Bad Request"),
    (b"GET /ready HTTP/1.1\r\n\r\n", 400, b""),
    (b"GET ready HTTP/1.1\r\nhost: a\r\n\r\n", 400, b"Bad Request"),
    (head(version="1.0"), 426, b"Upgrade Required"),
    (head("GET", "/ready", "x: " + "a" * 70_000), 431, b"Request Header Fields Too Large"),
    (head("GET", "/ready", *(f"x{n}: 1" for n in range(101))), 431, b"Request Header Fields Too Large"),
    (head("GET", "/" + "a" * 70_000), 431, b"Request Header Fields Too Large"),
    (b"GET /ready HTTP/1.1\r\nhost: a\r\nx: " + b"a" * 200_000, 431, b"Request Header Fields Too Large"),
    (head("POST", "/logging", "content-length: 1", "transfer-encoding: chunked"), 400, b"Bad Request"),
    (head("POST", "/logging", "content-length: 70000") + b"a" * 70_000, 413, b"Request Entity Too Large"),
])
def test_bad_requests_are_refused_and_the_connection_ends(running: Running, wire: bytes, status: int, body: bytes
                                                          ) -> None:
    reply = talk(running, wire)
    lines, _, content = reply.partition(b"\r\n\r\n")
    assert int(lines.split(b" ", 2)[1]) == status
    assert b"connection: close" in lines
    assert content == body


def test_absolute_targets_are_not_found(running: Running) -> None:
    reply = talk(running, head("GET", "http://x/ready") + head("GET", "/ready", "connection: close"))
    assert reply.startswith(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n")
    assert b"LIVE" in reply


def test_an_upgrade_is_not_taken_and_the_request_is_answered(running: Running) -> None:
    reply = talk(running, head("GET", "/ready", "connection: upgrade", "upgrade: websocket"))
    assert b"LIVE" in reply and b"connection: close" in reply


def test_continue_is_sent_before_the_body(running: Running) -> None:
    reply = talk(running, head("POST", "/reset_counters", "content-length: 2", "expect: 100-continue",
                               "connection: close"), b"ab")
    assert reply.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK")


def test_a_flood_of_pipelined_requests_ends_the_connection(running: Running) -> None:
    talk(running, head() * 1000)
    assert running.get("/ready").status == 200


def test_silent_clients_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "IDLE_TIMEOUT", 0.4)
    with serving(FakeServer()) as running:
        assert talk(running) == b""
        assert talk(running, head()).endswith(b"0\r\n\r\n")  # after the answer too


def test_slow_requests_are_dropped_however_steadily_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "REQUEST_TIMEOUT", 0.1)
    with serving(FakeServer()) as running, socket.create_connection(running.address, PATIENCE) as sock:
        sock.settimeout(0.02)
        sent = 0
        sock.sendall(b"GET /ready HTTP/1.1\r\nx: ")
        while sent < 1000:
            try:
                sock.sendall(b"a")
                sent += 1
                assert sock.recv(1) == b""
                break
            except TimeoutError:
                continue
            except ConnectionError:
                break
        assert sent < 1000


def test_clients_that_do_not_read_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "WRITE_TIMEOUT", 0.2)
    fake = FakeServer()
    fake.workers.counters = {f"cluster.{n:05}.{'x' * 500}": n for n in range(20_000)}
    with serving(fake) as running, socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(running.address)
        sock.sendall(head("GET", "/stats") * 5)
        running.until(lambda: running.admin._connections == {} and running.admin._http.downstream_cx_destroy)
        assert running.admin._http.downstream_rq_total == 1  # the next answer waits until this one is gone


def test_the_longest_idle_connection_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 3)
    with serving(FakeServer()) as running:
        clients = [socket.create_connection(running.address, PATIENCE) for _ in range(3)]
        running.until(lambda: len(running.admin._connections) == 3)
        assert running.get("/ready").text == "LIVE\n"
        assert _ended(clients[0])
        clients[1].sendall(head())
        assert b"200 OK" in clients[1].recv(65536)
        for client in clients:
            client.close()


def _ended(client: socket.socket) -> bool:
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True


def test_one_stuck_worker_does_not_hold_up_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HANDLER_TIMEOUT", 0.1)
    fake = FakeServer()
    with serving(fake) as running:
        fake.stuck = asyncio.Event()
        with socket.create_connection(running.address, PATIENCE) as waiting:
            waiting.sendall(head("GET", "/stats"))
            assert running.get("/ready").status == 200
            assert waiting.recv(65536).startswith(b"HTTP/1.1 503 Service Unavailable")


def test_a_command_that_fails_says_so_and_the_server_goes_on(capfd: pytest.CaptureFixture[str]) -> None:
    fake = FakeServer()
    with serving(fake) as running:
        fake.state = "NOT A STATE"
        reply = running.get("/stats")
        assert (reply.status, reply.text) == (500, "/stats failed: KeyError('NOT A STATE')\n")
        fake.state = "LIVE"
        assert running.get("/stats").status == 200
    assert "GET /stats failed: KeyError" in capfd.readouterr().err


def test_answers_under_way_get_out_when_the_server_closes() -> None:
    fake = FakeServer()
    with serving(fake) as running:
        fake.stuck = asyncio.Event()
        with socket.create_connection(running.address, PATIENCE) as client:
            client.sendall(head("GET", "/stats?filter=server.live"))
            running.until(lambda: running.admin._http.downstream_rq_active == 1)
            closing = asyncio.run_coroutine_threadsafe(running.admin.close(), fake.loop)
            fake.loop.call_soon_threadsafe(fake.stuck.set)
            reply = b""
            while data := client.recv(65536):
                reply += data
            assert b"server.live: 1" in reply and b"connection: close" in reply
            closing.result(PATIENCE)


def test_quit_is_answered(running: Running) -> None:
    reply = running.post("/quitquitquit")
    assert (reply.status, reply.text) == (200, "OK\n")
    assert running.server.said[-1] == "quit"


def test_forms_may_send_parameters_in_the_body(running: Running) -> None:
    form = {"content-type": "application/x-www-form-urlencoded"}
    assert running.request("POST", "/logging", b"paths=&level=debug", form).status == 200
    assert running.server.said[-1] == (None, "debug")
    assert running.request("POST", "/drain_listeners", b"graceful=on&inboundonly=on", form).text == "OK\n"
    assert running.server.said[-1] == ("drain", True, True, False)
    assert running.request("POST", "/drain_listeners?graceful", b"inboundonly=on", form).text == "OK\n"
    assert running.server.said[-1] == ("drain", False, True, False), "a query goes before the body"


def test_requests_are_logged() -> None:
    fake = FakeServer()
    admin = model.Admin(access_logs=(model.AccessLog("/dev/null", "x\n"),))
    fake.loaded.bootstrap = dataclasses.replace(fake.loaded.bootstrap, admin=admin)
    with serving(fake) as running:
        reply = running.request("GET", "/nope?x=1", headers={"user-agent": "tests"})
        running.until(lambda: fake.lines)
        (info,) = fake.lines
        assert (info.method, info.path, info.protocol, info.response_code) == (b"GET", b"/nope?x=1", b"HTTP/1.1", 404)
        assert info.request_headers.get(b"user-agent") == b"tests"
        assert info.request_headers.get(b":authority") == f"127.0.0.1:{running.address[1]}".encode()
        assert info.request_headers.get(b"x-forwarded-for") not in (None, b"127.0.0.1")
        assert info.bytes_sent == len(reply.text)


def test_the_interface_counts_itself() -> None:
    with serving(FakeServer()) as running:
        running.get("/nope")
        running.until(lambda: not running.admin._connections)
        text = running.get("/stats?usedonly&filter=admin").text
        lines = dict(line.split(": ") for line in text.splitlines())
        assert lines["http.admin.downstream_cx_total"] == "2"
        assert lines["http.admin.downstream_cx_active"] == "1"
        assert lines["http.admin.downstream_rq_4xx"] == "1"
        assert lines["http.admin.downstream_rq_active"] == "1"
        assert lines["listener.admin.http.admin.downstream_rq_4xx"] == "1"
        assert lines["listener.admin.main_thread.downstream_cx_total"] == "2"
        running.until(lambda: "P100" in running.get("/stats?filter=http.admin.downstream_rq_time").text)


def test_an_address_in_use_is_an_error(running: Running) -> None:
    with serving(FakeServer()) as other, pytest.raises(OSError, match="in use"):
        other.run(other.admin.start(running.address))
