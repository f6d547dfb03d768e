"""The status server: routes, readiness, and clients that mean no good."""

import asyncio
import gzip
import json
import socket
import time
import zlib
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

import pytest

from agent.errors import AgentError
from agent.status import compression, http_server
from agent.status.http_server import HttpServer, Reply, Request
from agent.status.options import StatusOptions
from agent.status.readiness import Readiness
from agent.status.server import Hooks, StatusServer
from tests.unit.agent.status_tools import LIVE, Called, FakeAdmin, statuses

GET = b"GET /healthz/ready HTTP/1.1\r\nhost: x\r\n\r\n"
LAST_GET = b"GET /healthz/ready HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"


async def echo(request: Request) -> Reply:
    return Reply(200, f"{request.method} {request.path} {request.peer}".encode())


def with_server(play: Callable[[HttpServer], Awaitable[Any]], handler: http_server.Handler = echo) -> Any:
    """Run `play` against a server, on a loop of its own; the server must be empty afterwards."""

    async def run() -> Any:
        server = HttpServer(handler)
        await server.start(0)
        try:
            async with asyncio.timeout(60):
                return await play(server)
        finally:
            await server.close()
            assert not server._connections

    return asyncio.run(run())


async def talk(server: HttpServer, *parts: bytes, eof: bool = False) -> bytes:
    """Everything that comes back until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0)
        if eof:
            writer.write_eof()
        return await reader.read()
    except ConnectionError:
        return b"reset"
    finally:
        writer.transport.abort()


@pytest.mark.parametrize(
    ("wire", "body"),
    [
        (b"GET /a?b HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", b"GET /a 127.0.0.1"),
        (b"GET http://x/a/b?c HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", b"GET /a/b 127.0.0.1"),
        (b"POST /p HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 3\r\n\r\nabc", b"POST /p 127.0.0.1"),
        (
            b"POST /p HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
            b"1\r\na\r\n0\r\n\r\n",
            b"POST /p 127.0.0.1",
        ),
        (b"HEAD /a HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", b""),
        (b"GET /a HTTP/1.0\r\n\r\n", b"GET /a 127.0.0.1"),
    ],
)
def test_any_split_gives_the_same_answer(wire: bytes, body: bytes) -> None:
    async def play(server: HttpServer) -> None:
        for cut in range(len(wire)):
            answer = await talk(server, wire[:cut], wire[cut:])
            head, _, got = answer.partition(b"\r\n\r\n")
            assert statuses(head) == [200]
            assert got == body

    with_server(play)


def test_keep_alive_and_pipelining() -> None:
    assert statuses(with_server(lambda server: talk(server, GET * 20, eof=True))) == [200] * 20


def test_expect_continue() -> None:
    async def play(server: HttpServer) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 1\r\n\r\n")
        assert b" 100 " in await reader.readuntil(b"\r\n\r\n")
        writer.write(b"x")
        answer = await reader.readuntil(b"\r\n\r\n")
        writer.transport.abort()
        return answer

    assert statuses(with_server(play)) == [200]


@pytest.mark.parametrize(
    ("wire", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),  # no host
        (b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"y" * 1_000_000, 431),
        (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 200000\r\n\r\n" + b"z" * 200_000, 413),
        (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", 400),
        (b"CONNECT x:1 HTTP/1.1\r\nhost: x\r\n\r\n", 405),
        (b"PRI * HTTP/2.0\r\nhost: x\r\n\r\nSM\r\n\r\n", 505),
    ],
)
def test_bad_requests_are_answered_and_closed(wire: bytes, status: int) -> None:
    assert statuses(with_server(lambda server: talk(server, wire, eof=True))) == [status]


def test_slow_and_silent_clients_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "REQUEST_TIMEOUT_S", 0.05)
    monkeypatch.setattr(http_server, "IDLE_TIMEOUT_S", 0.05)
    for start in (b"", b"GET / HT", b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nab"):
        assert statuses(with_server(lambda server, start=start: talk(server, start))) == []


def test_idle_connections_make_room_for_new_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "MAX_CONNECTIONS", 4)

    async def play(server: HttpServer) -> None:
        opened = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(12)]
        assert statuses(await talk(server, GET, eof=True)) == [200]
        assert len(server._connections) <= 4
        assert await opened[0][0].read() == b""  # the oldest went first
        for _, writer in opened:
            writer.transport.abort()

    with_server(play)


def test_busy_connections_are_never_dropped_for_new_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "MAX_CONNECTIONS", 2)
    release = asyncio.Event()
    started = asyncio.Semaphore(0)

    async def slow(_request: Request) -> Reply:
        started.release()
        await release.wait()
        return Reply(200)

    async def play(server: HttpServer) -> None:
        loop = asyncio.get_running_loop()
        busy = [loop.create_task(talk(server, LAST_GET)) for _ in range(2)]
        await started.acquire()
        await started.acquire()
        assert await talk(server, LAST_GET) in (b"", b"reset")
        release.set()
        assert [statuses(await each) for each in busy] == [[200], [200]]

    with_server(play, slow)


def test_close_lets_the_response_under_way_leave() -> None:
    async def run() -> bytes:
        entered, release = asyncio.Event(), asyncio.Event()

        async def slow(_request: Request) -> Reply:
            entered.set()
            await release.wait()
            return Reply(200, b"late")

        server = HttpServer(slow)
        await server.start(0)
        loop = asyncio.get_running_loop()
        client = loop.create_task(talk(server, GET))
        await entered.wait()
        closing = loop.create_task(server.close())
        release.set()
        await closing
        return await client

    answer = asyncio.run(run())
    assert answer.endswith(b"late")
    assert b"connection: close" in answer.lower()


def test_a_failing_handler_is_500(capfd: pytest.CaptureFixture[str]) -> None:
    async def broken(_request: Request) -> Reply:
        raise RuntimeError("broken")

    assert statuses(with_server(lambda server: talk(server, GET, eof=True), broken)) == [500]
    assert "RuntimeError('broken')" in capfd.readouterr().out


def test_port_in_use_is_named() -> None:
    with socket.create_server(("0.0.0.0", 0)) as taken:
        port = taken.getsockname()[1]

        async def run() -> None:
            await StatusServer(StatusOptions(port), readiness(FakeAdmin({})), Called().hooks()).start()

        with pytest.raises(AgentError, match=rf"listen on port {port} \(statusPort\): Address already in use"):
            asyncio.run(run())


def readiness(admin: FakeAdmin, awaits: tuple[str, ...] = (), **more: Any) -> Readiness:
    return Readiness(admin, awaits, time.monotonic(), **more)


@pytest.mark.parametrize(
    ("request_", "status", "called"),
    [
        (Request("GET", "/healthz/ready", "10.0.0.1"), 200, ""),
        (Request("POST", "/healthz/ready", "10.0.0.1"), 200, ""),
        (Request("GET", "/healthz/ready/", "127.0.0.1"), 404, ""),
        (Request("GET", "/", "127.0.0.1"), 404, ""),
        (Request("POST", "/quitquitquit", "127.0.0.1"), 200, "quit"),
        (Request("POST", "/quitquitquit", "127.0.0.6"), 200, "quit"),
        (Request("POST", "/quitquitquit", "::1"), 200, "quit"),
        (Request("POST", "/quitquitquit", "10.0.0.1"), 403, ""),
        (Request("GET", "/quitquitquit", "10.0.0.1"), 403, ""),
        (Request("GET", "/quitquitquit", "127.0.0.1"), 405, ""),
        (Request("POST", "/drain", "127.0.0.1"), 200, "drain"),
        (Request("POST", "/drain", "fe80::1"), 403, ""),
        (Request("PUT", "/drain", "::1"), 405, ""),
        (Request("GET", "/app-health/app/livez", "10.0.0.1"), 400, ""),
        (Request("GET", "/app-lifecycle/app/prestopz", "10.0.0.1"), 400, ""),
        (Request("GET", "/stats/prometheus", "10.0.0.1"), 200, ""),
        (Request("POST", "/metrics", "10.0.0.1"), 200, ""),
        (Request("GET", "/debug/drain", "10.0.0.1"), 403, ""),
        (Request("GET", "/debug/nothing", "10.0.0.1"), 403, ""),
        (Request("GET", "/debug/drain", "::1"), 200, ""),
        (Request("GET", "/debug/ndsz", "::1"), 404, ""),
        (Request("GET", "/debug/pprof/", "::1"), 200, ""),
        (Request("GET", "/debug/pprof/cmdline", "::1"), 200, ""),
        (Request("GET", "/debug/pprof/profile", "::1"), 404, ""),
        (Request("GET", "/debug/pprof/x", "::1"), 404, ""),
        (Request("GET", "/debug/nothing", "::1"), 404, ""),
    ],
)
def test_routes(request_: Request, status: int, called: str) -> None:
    calls = Called()
    options = StatusOptions(15020, merge_proxy_stats=False)
    server = StatusServer(options, readiness(FakeAdmin(LIVE)), calls.hooks())
    assert asyncio.run(server._answer(request_)).status == status
    assert calls.names == ([called] if called else [])


def answer(options: StatusOptions, hooks: Hooks, path: str, method: str = "GET", peer: str = "127.0.0.1") -> Reply:
    server = StatusServer(options, readiness(FakeAdmin(LIVE)), hooks)
    return asyncio.run(server._answer(Request(method, path, peer)))


def test_a_drain_that_cannot_start_is_told() -> None:
    reply = answer(StatusOptions(15020), Called(AgentError("no proxy yet")).hooks(), "/drain", "POST")
    assert (reply.status, reply.body) == (503, b"the drain could not be started: no proxy yet\n")


def test_metrics_for_this_host_only() -> None:
    options = StatusOptions(15020, merge_proxy_stats=False, metrics_localhost_only=True)
    assert answer(options, Called().hooks(), "/stats/prometheus", peer="10.0.0.1").status == 403
    assert answer(options, Called().hooks(), "/metrics", peer="::1").status == 200


def test_debug_pages() -> None:
    options = StatusOptions(15020)
    report = {"draining": True, "connections": [{"peer": "10.0.0.2:4711", "age_s": 3.5}]}
    hooks = Called().hooks(drain_report=lambda: report, name_table=lambda: '{"table": {}}')
    drain = answer(options, hooks, "/debug/drain")
    assert (json.loads(drain.body), drain.content_type) == (report, "application/json")
    assert json.loads(answer(options, Called().hooks(), "/debug/drain").body) == {"draining": False}
    assert answer(options, hooks, "/debug/ndsz").body == b'{"table": {}}\n'
    assert answer(options, Called().hooks(), "/debug/ndsz").body == b"{}\n"
    stacks = answer(options, hooks, "/debug/pprof/goroutine").body.decode()
    assert "task " in stacks and "thread " in stacks and "test_agent_status.py" in stacks
    assert b"no Go program" in answer(options, hooks, "/debug/pprof/heap").body
    assert answer(StatusOptions(15020, profiling=False), hooks, "/debug/pprof/").status == 404


@pytest.mark.parametrize(
    ("accept_encoding", "size", "compressed"),
    [
        ("gzip", 2000, True),
        ("br, GZIP;q=0.5", 2000, True),
        ("*", 2000, True),
        ("gzip", 100, False),
        ("", 2000, False),
        ("gzip;q=0", 2000, False),
        ("gzip;q=0.000, *", 2000, False),
        ("*;q=0, x-gzip", 2000, True),
        ("*;q=0", 2000, False),
        ("br", 2000, False),
    ],
)
def test_compression(accept_encoding: str, size: int, compressed: bool) -> None:
    body = (b"0123456789" * (size // 10 + 1))[:size]

    async def big(_request: Request) -> Reply:
        return Reply(200, body)

    wire = f"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\naccept-encoding: {accept_encoding}\r\n\r\n"
    head, _, got = with_server(lambda server: talk(server, wire.encode()), big).partition(b"\r\n\r\n")
    assert (b"content-encoding: gzip" in head) is compressed
    assert (gzip.decompress(got) if compressed else got) == body


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"plain", "bad compressed body"),
        (gzip.compress(b"x" * 1001, mtime=0), "larger than 1000 bytes"),
        (gzip.compress(b"x" * 100_000_000, 1, mtime=0), "larger than 1000 bytes"),
        (gzip.compress(b"x" * 1000, mtime=0)[:-9], "cut off"),
    ],
)
def test_bad_compressed_bodies(data: bytes, message: str) -> None:
    assert compression.decompress(gzip.compress(b"x" * 1000), 1000) == b"x" * 1000
    assert compression.decompress(zlib.compress(b"x" * 1000), 1000) == b"x" * 1000
    with pytest.raises(ValueError, match=message):
        compression.decompress(data, 1000)


def test_a_large_response_and_a_client_that_does_not_read_it(monkeypatch: pytest.MonkeyPatch) -> None:
    body = b"x" * 20_000_000

    async def big(_request: Request) -> Reply:
        return Reply(200, body)

    answer = with_server(lambda server: talk(server, GET, eof=True), big)
    assert answer.endswith(body)
    monkeypatch.setattr(http_server, "REQUEST_TIMEOUT_S", 0.05)

    async def stall(server: HttpServer) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1000)
        writer.write(GET)
        await asyncio.wait({each.task for each in await accepted(server) if each.task})
        writer.transport.abort()

    with_server(stall, big)


def test_responses_that_nobody_reads_give_way_to_new_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each holds a whole page in memory: there is room for two here, and the oldest is cut for the third."""
    monkeypatch.setattr(http_server, "MAX_UNSENT", 45_000_000)
    body = b"x" * 20_000_000
    answered = 0

    async def big(_request: Request) -> Reply:
        nonlocal answered
        answered += 1
        return Reply(200, body)

    async def play(server: HttpServer) -> None:
        clients = []
        for count in (1, 2):
            clients.append(await asyncio.open_connection("127.0.0.1", server.port, limit=1000))
            clients[-1][1].write(GET)
            while answered < count or not all(each.unsent for each in server._connections):
                await asyncio.sleep(0)
        assert (await talk(server, LAST_GET)).endswith(body)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await clients[0][0].readexactly(len(body))
        assert len(server._connections) == 1
        await clients[1][0].readuntil(b"\r\n\r\n")
        assert await clients[1][0].readexactly(len(body)) == body
        for _, writer in clients:
            writer.transport.abort()

    with_server(play, big)


def test_clients_that_do_not_read_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many fetch a page and never read it, a probe gets in."""
    monkeypatch.setattr(http_server, "MAX_CONNECTIONS", 2)
    body = b"x" * 20_000_000

    async def handler(request: Request) -> Reply:
        return Reply(200, body if request.path == "/metrics" else b"")

    async def play(server: HttpServer) -> None:
        clients = [await asyncio.open_connection("127.0.0.1", server.port, limit=1000) for _ in range(2)]
        for _, writer in clients:
            writer.write(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n")
        while len(server._connections) < 2 or not all(each.unsent for each in server._connections):
            await asyncio.sleep(0)
        assert statuses(await talk(server, LAST_GET)) == [200]
        for _, writer in clients:
            writer.transport.abort()

    with_server(play, handler)


async def accepted(server: HttpServer) -> list[http_server._Connection]:
    while not server._connections:
        await asyncio.sleep(0)
    return list(server._connections)


def test_clients_that_stopped_waiting_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """kubelet closes at its timeout; a hook that hangs must not hold a place for ever."""
    monkeypatch.setattr(http_server, "MAX_CONNECTIONS", 2)
    hang = asyncio.Event()
    entered = 0

    async def handler(request: Request) -> Reply:
        nonlocal entered
        if request.path == "/hang":
            entered += 1
            await hang.wait()
        return Reply(200)

    async def play(server: HttpServer) -> None:
        for count in (1, 2):
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(b"GET /hang HTTP/1.1\r\nhost: x\r\n\r\n")
            while entered < count:
                await asyncio.sleep(0)
            writer.close()
        while not all(each.reader.at_eof() for each in server._connections):
            await asyncio.sleep(0)
        assert statuses(await talk(server, GET, eof=True)) == [200]
        hang.set()

    with_server(play, handler)


def test_close_does_not_wait_for_what_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "CLOSE_S", 0.01)
    entered, never = asyncio.Event(), asyncio.Event()

    async def hang(_request: Request) -> Reply:
        entered.set()
        await never.wait()
        return Reply(200)

    async def play(server: HttpServer) -> bytes:
        loop = asyncio.get_running_loop()
        client = loop.create_task(talk(server, GET))
        await entered.wait()
        await server.close()
        return await client

    assert statuses(with_server(play, hang)) == []


@pytest.mark.parametrize("seed", range(4))
def test_mutated_requests_are_answered_or_closed(seed: int) -> None:
    """Whatever arrives, the next client is served and nothing is left behind."""
    random = Random(seed)
    samples = [
        LAST_GET,
        b"POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\nconnection: close\r\n\r\nabc",
        b"POST /x HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n1\r\na\r\n0\r\n\r\n",
        b"GET http://x/y?z HTTP/1.0\r\naccept-encoding: gzip\r\n\r\n",
    ]

    async def play(server: HttpServer) -> None:
        for _ in range(60):
            data = bytearray(random.choice(samples))
            for _ in range(random.randrange(1, 8)):
                data[random.randrange(len(data))] = random.randrange(256)
            answer = await talk(server, bytes(data), eof=True)
            assert set(statuses(answer)) <= {200, 400, 405, 413, 431, 501, 505}
        assert statuses(await talk(server, LAST_GET)) == [200]

    with_server(play)
