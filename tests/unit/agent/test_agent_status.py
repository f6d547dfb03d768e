"""The status server: routes, readiness, and clients that mean no good."""

import asyncio
import re
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from agent.admin import Admin, AdminError
from agent.errors import AgentError
from agent.status import http_server
from agent.status.http_server import HttpServer, Reply, Request
from agent.status.readiness import Readiness
from agent.status.server import StatusServer

GET = b"GET /healthz/ready HTTP/1.1\r\nhost: x\r\n\r\n"


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


def statuses(data: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+) ", data)]


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
        busy = [loop.create_task(talk(server, GET, eof=True)) for _ in range(2)]
        await started.acquire()
        await started.acquire()
        assert await talk(server, GET) in (b"", b"reset")
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
            await StatusServer(readiness(FakeAdmin({})), lambda: None).start(port)

        with pytest.raises(AgentError, match=rf"listen on port {port} \(statusPort\): Address already in use"):
            asyncio.run(run())


class FakeAdmin(Admin):
    """Answers from a mapping; counts what it is asked."""

    def __init__(self, stats: dict[str, int] | Exception, live: bool = True) -> None:
        super().__init__(("127.0.0.1",), 1)
        self.answer = stats
        self.live = live
        self.asked: list[str] = []
        self.gate: asyncio.Event | None = None

    async def stats(self, pattern: str, timeout_s: float) -> dict[str, int]:
        self.asked.append(pattern)
        if self.gate:
            await self.gate.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def is_live(self, timeout_s: float) -> bool:
        self.asked.append("/ready")
        return self.live


def readiness(admin: FakeAdmin, awaits: tuple[str, ...] = ()) -> Readiness:
    return Readiness(admin, awaits, time.monotonic())


LIVE = {"server.state": 0, "listener_manager.workers_started": 1}
UPDATES = {"cluster_manager.cds.update_success": 1, "listener_manager.lds.update_success": 1}


@pytest.mark.parametrize(
    ("awaits", "stats", "live", "reason"),
    [
        ((), LIVE, False, ""),
        ((), {**LIVE, "server.state": 3}, False, "server state is INITIALIZING"),
        ((), {**LIVE, "server.state": 9}, False, "server state is 9"),
        ((), {**LIVE, "listener_manager.workers_started": 0}, False, "workers have not started"),
        ((), {}, True, ""),  # statistics left out by the file: /ready decides
        ((), {}, False, "does not answer /ready with 200"),
        ((), AdminError("refused"), False, "refused"),
        (("cds", "lds"), {**LIVE, **UPDATES}, False, ""),
        (("cds", "lds"), LIVE, True, "cds updates: not received, lds updates: not received"),
        (
            ("cds", "lds"),
            {**LIVE, "cluster_manager.cds.update_success": 1, "listener_manager.lds.update_rejected": 2},
            True,
            "cds updates: received, lds updates: rejected 2 times",
        ),
        (("lds",), {**LIVE, "listener_manager.lds.update_success": 1}, False, ""),
    ],
)
def test_readiness(
    awaits: tuple[str, ...], stats: Any, live: bool, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    checks = readiness(FakeAdmin(stats, live), awaits)
    assert asyncio.run(checks.check()) is (reason == "")
    out = capfd.readouterr().out
    assert reason in out
    assert ("The proxy is ready (" in out) == (reason == "")


def test_readiness_passes_once_and_for_all() -> None:
    admin = FakeAdmin({**LIVE, **UPDATES})
    checks = readiness(admin, ("cds", "lds"))

    async def run() -> None:
        assert await checks.check()
        admin.answer = AdminError("gone")
        assert await checks.check()
        assert len(admin.asked) == 2
        checks.shut_down()
        assert not await checks.check()

    asyncio.run(run())


def test_a_flood_of_probes_is_one_check() -> None:
    admin = FakeAdmin(LIVE)

    async def run() -> list[bool]:
        admin.gate = asyncio.Event()
        checks = readiness(admin)
        many = asyncio.gather(*(checks.check() for _ in range(100)))
        await asyncio.sleep(0)
        admin.gate.set()
        return await many

    assert asyncio.run(run()) == [True] * 100
    assert len(admin.asked) == 1


def test_the_same_reason_is_logged_once(capfd: pytest.CaptureFixture[str]) -> None:
    admin = FakeAdmin(AdminError("refused"))
    checks = readiness(admin)

    async def run() -> None:
        for _ in range(5):
            assert not await checks.check()
        admin.answer = {**LIVE, "server.state": 2}
        assert not await checks.check()

    asyncio.run(run())
    assert capfd.readouterr().out.count("not ready") == 2


def test_shut_down_while_a_check_is_under_way() -> None:
    admin = FakeAdmin(LIVE)

    async def run() -> bool:
        admin.gate = asyncio.Event()
        checks = readiness(admin)
        check = asyncio.get_running_loop().create_task(checks.check())
        await asyncio.sleep(0)
        checks.shut_down()
        admin.gate.set()
        return await check

    assert asyncio.run(run()) is False


@pytest.mark.parametrize(
    ("request_", "status", "quits"),
    [
        (Request("GET", "/healthz/ready", "10.0.0.1"), 200, 0),
        (Request("POST", "/healthz/ready", "10.0.0.1"), 200, 0),
        (Request("POST", "/quitquitquit", "127.0.0.1"), 200, 1),
        (Request("POST", "/quitquitquit", "127.0.0.6"), 200, 1),
        (Request("POST", "/quitquitquit", "::1"), 200, 1),
        (Request("POST", "/quitquitquit", "10.0.0.1"), 403, 0),
        (Request("GET", "/quitquitquit", "10.0.0.1"), 403, 0),
        (Request("GET", "/quitquitquit", "127.0.0.1"), 405, 0),
        (Request("GET", "/", "127.0.0.1"), 404, 0),
        (Request("POST", "/drain", "127.0.0.1"), 404, 0),
        (Request("GET", "/healthz/ready/", "127.0.0.1"), 404, 0),
    ],
)
def test_routes(request_: Request, status: int, quits: int) -> None:
    called: list[None] = []
    server = StatusServer(readiness(FakeAdmin(LIVE)), lambda: called.append(None))
    assert asyncio.run(server._answer(request_)).status == status
    assert len(called) == quits
