"""What the tests of the status server share: an admin port, hooks, sources of metrics, and promtool."""

from __future__ import annotations

import asyncio
import re
import shutil
import ssl
import subprocess
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from agent.admin import Admin, AdminError
from agent.errors import AgentError
from agent.status.server import Hooks

LIVE = {"server.state": 0, "listener_manager.workers_started": 1}


def statuses(data: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+) ", data)]


class FakeAdmin(Admin):
    """Answers from a mapping; counts what it is asked."""

    def __init__(self, stats: dict[str, int] | Exception, live: bool = True) -> None:
        super().__init__(("127.0.0.1",), 1)
        self.answer = stats
        self.live = live
        self.asked: list[str] = []
        self.gate: asyncio.Event | None = None
        self.names: list[bool | AdminError | None] = []
        """Answers about the name table, one after the other."""

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

    async def name_table(self, timeout_s: float) -> bool | None:
        answer = self.names.pop(0)
        if isinstance(answer, AdminError):
            raise answer
        return answer


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Called:
    """Hooks that note what was called."""

    def __init__(self, drain_error: AgentError | None = None) -> None:
        self.names: list[str] = []
        self.drain_error = drain_error

    def hooks(self, **more: Any) -> Hooks:
        return Hooks(quit=lambda: self.names.append("quit"), drain=self._drain, **more)

    async def _drain(self) -> None:
        self.names.append("drain")
        if self.drain_error is not None:
            raise self.drain_error


def promtool(document: str) -> tuple[int, str]:
    """1: not a document (a scraper refuses it); 3: it is, with names or types that are not good style; 0: all good."""
    if shutil.which("promtool") is None:
        pytest.skip("no promtool (Debian package prometheus)")
    done = subprocess.run(["promtool", "check", "metrics"], input=document.encode(), capture_output=True)
    return done.returncode, (done.stdout + done.stderr).decode()


Handler = Callable[[str, asyncio.StreamWriter], Awaitable[None]]


def says(body: str | bytes, status: int = 200, *headers: str) -> Handler:
    data = body.encode() if isinstance(body, str) else body

    async def play(_head: str, writer: asyncio.StreamWriter) -> None:
        lines = [f"HTTP/1.1 {status} X", f"content-length: {len(data)}", *headers]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + data)

    return play


async def hangs(_head: str, writer: asyncio.StreamWriter) -> None:
    await writer.drain()
    await asyncio.Event().wait()


class Sources:
    """One server for each handler; requests are kept in `heads`, by index."""

    def __init__(self, *handlers: Handler | None) -> None:
        self._handlers = handlers
        self.heads: list[list[str]] = [[] for _ in handlers]
        self.ports: list[int] = []
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Sources:
        for index, handler in enumerate(self._handlers):
            server = await asyncio.start_server(self._serve(index, handler), "127.0.0.1", 0)
            self.ports.append(server.sockets[0].getsockname()[1])
            self._servers.append(server)
            if handler is None:
                server.close()  # a port where nobody listens any more
        return self

    def _serve(self, index: int, handler: Handler | None) -> Any:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert handler is not None and task is not None
            self._tasks.add(task)
            try:
                self.heads[index].append((await reader.readuntil(b"\r\n\r\n")).decode())
                await handler(self.heads[index][-1], writer)
                writer.close()
            finally:
                writer.transport.abort()

        return serve

    async def __aexit__(self, *_: object) -> None:
        for server in self._servers:
            server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


Stream = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class App:
    """An application on a port of its own; notes the requests and from where they came."""

    def __init__(self, play: Stream | bytes) -> None:
        self._play = play
        self.heads: list[str] = []
        self.peers: list[str] = []
        self.port = 0
        self.open: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.peers.append(writer.get_extra_info("peername")[0])
        self.open.append(writer)
        try:
            if not isinstance(self._play, bytes):
                await self._play(reader, writer)
                return
            while True:
                self.heads.append((await reader.readuntil(b"\r\n\r\n")).decode("latin-1"))
                writer.write(self._play.replace(b"PORT", str(self.port).encode()))
                if b"close" in self._play:
                    writer.close()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


@asynccontextmanager
async def running(app: App, tls: ssl.SSLContext | None = None) -> Any:
    server = await asyncio.start_server(app.serve, "127.0.0.1", 0, ssl=tls)
    app.port = server.sockets[0].getsockname()[1]
    try:
        yield app
    finally:
        server.close()
        for writer in app.open:
            writer.transport.abort()
        await asyncio.sleep(0)


def response(status: int, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"content-length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
