"""The admin interface: an HTTP/1.1 server on the loop of the main process."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import time
from collections.abc import Coroutine
from typing import Any

from proxy import log
from proxy.admin import home
from proxy.admin.api import Server
from proxy.admin.commands import COMMANDS, Command, Handler, help_text
from proxy.admin.console import Console
from proxy.admin.messages import HTML, Request, Response
from proxy.admin.protocol import AdminProtocol, Exchange
from proxy.config.model import SocketAddress
from proxy.http.headers import Headers
from proxy.http.manager import own_address
from proxy.stats.groups import HttpStats, ListenerHttpStats, ListenerStats, ListenerWorkerStats, Snapshot
from proxy.stream_info import StreamInfo

MAX_CONNECTIONS = 128
"""A further one takes the place of the one that has been idle longest, so that idle clients never lock out a probe."""
HANDLER_TIMEOUT = 30.0
"""Seconds for one command; what asks workers is bounded more tightly by the main process."""
CLOSE_TIMEOUT = 1.0
"""Seconds that answers under way have to get out when the process ends."""
BACKLOG = 128

_log = log.get("admin")


class AdminHttpStats(HttpStats):
    """``http.admin``: a connection manager without a router."""

    __slots__ = ()

    def collect(self, out: Snapshot, flush: bool) -> None:
        """All but the router's share."""
        super().collect(out, flush)
        routers = (f"{self.prefix}.no_", f"{self.prefix}.rq_")
        for name in [name for name in out.counters if name.startswith(routers)]:
            del out.counters[name]


class AdminServer:
    """Listens, counts, logs and hands requests to the table of commands."""

    def __init__(self, server: Server) -> None:
        """Raises proxy.stats.tags.TagError when a stats tag cannot be used."""
        self.console = Console(server)
        self.loop = server.loop
        self.closing = False
        self._server = server
        own = (Command("/", "this list as a page", self._home), Command("/help", "this list", self._help))
        self._commands = sorted((*own, *COMMANDS), key=lambda command: command.path)
        self._by_path = {command.path: command for command in self._commands}
        self._listening: asyncio.Server | None = None
        self._connections: dict[AdminProtocol, None] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._flush_timer: asyncio.TimerHandle | None = None
        self._address = SocketAddress("", 0)
        self._own_address = ""
        config = server.loaded.bootstrap
        self._flush_interval = config.stats_flush_interval
        self._loggers = [server.log_files.logger(access_log) for access_log in config.admin.access_logs]
        registry = self.console.registry
        self._http = registry.group(AdminHttpStats, "http.admin")
        self._listener = registry.group(ListenerStats, "listener.admin")
        self._listener_http = registry.group(ListenerHttpStats, "listener.admin.http.admin")
        self._main_thread = registry.group(ListenerWorkerStats, "listener.admin.main_thread")

    async def start(self, address: SocketAddress) -> SocketAddress:
        """Bind, listen, accept; returns the address with the port that was given. Raises OSError."""
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((address.host, address.port))
            sock.listen(BACKLOG)
            self._address = SocketAddress(*sock.getsockname()[:2])
            self._listening = await self.loop.create_server(lambda: AdminProtocol(self), sock=sock, backlog=BACKLOG)
        except BaseException:
            sock.close()
            raise
        self._own_address = own_address(self._server.options.local_address_ip_version) if self._loggers else ""
        self._schedule_flush()
        return self._address

    async def close(self) -> None:
        """Stop accepting, let answers out, close."""
        self.closing = True
        if self._flush_timer is not None:
            self._flush_timer.cancel()
        if self._listening is not None:
            self._listening.close()
        for connection in list(self._connections):
            connection.close()
        deadline = self.loop.time() + CLOSE_TIMEOUT
        while self._connections and self.loop.time() < deadline:
            await asyncio.sleep(0.005)
        for connection in list(self._connections):
            connection.abort()
        for task in list(self._tasks):
            task.cancel()

    # --- what connections call ---

    def spawn(self, coro: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Start a task and keep it until it ends."""
        task = self.loop.create_task(coro, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._reap)
        return task

    def _reap(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("task %s failed: %r", task.get_name(), error)

    def opened(self, connection: AdminProtocol) -> None:
        """A connection was accepted."""
        self._http.downstream_cx_total += 1
        self._http.downstream_cx_active += 1
        self._listener.downstream_cx_total += 1
        self._listener.downstream_cx_active += 1
        self._main_thread.downstream_cx_total += 1
        self._main_thread.downstream_cx_active += 1
        self._connections[connection] = None
        if len(self._connections) > MAX_CONNECTIONS:
            self._listener.downstream_cx_overflow += 1
            idle = next((c for c in self._connections if not c.busy and c is not connection), connection)
            idle.abort()
        elif self.closing:
            connection.abort()

    def closed(self, connection: AdminProtocol) -> None:
        """A connection is gone."""
        del self._connections[connection]
        self._http.downstream_cx_destroy += 1
        if connection.closed_locally:
            self._http.downstream_cx_destroy_local += 1
        else:
            self._http.downstream_cx_destroy_remote += 1
        self._http.downstream_cx_active -= 1
        self._listener.downstream_cx_destroy += 1
        self._listener.downstream_cx_active -= 1
        self._main_thread.downstream_cx_active -= 1
        milliseconds = int((self.loop.time() - connection.opened_at) * 1000)
        for lengths in (self._http.downstream_cx_length_ms, self._listener.downstream_cx_length_ms):
            lengths[milliseconds] = lengths.get(milliseconds, 0) + 1

    def received(self, size: int) -> None:
        """Bytes came in."""
        self._http.downstream_cx_rx_bytes_total += size

    def sent(self, size: int) -> None:
        """Bytes went out."""
        self._http.downstream_cx_tx_bytes_total += size

    def began(self) -> None:
        """A request is to be answered."""
        self._http.downstream_rq_total += 1
        self._http.downstream_rq_active += 1

    def answered(self, connection: AdminProtocol, exchange: Exchange) -> None:
        """Its answer was written."""
        self._http.downstream_rq_active -= 1
        for stats in (self._http, self._listener_http):
            stats.rq_class[exchange.status // 100] += 1
        now = self.loop.time()
        milliseconds = int((now - exchange.arrived_at) * 1000)
        times = self._http.downstream_rq_time
        times[milliseconds] = times.get(milliseconds, 0) + 1
        if self._loggers:
            info = self._stream_info(connection, exchange, now)
            for write in self._loggers:
                write(info)

    # --- commands ---

    async def dispatch(self, request: Request) -> Response:
        """The answer of the command that a request names."""
        command = self._by_path.get(request.path)
        if command is None:
            return Response(404, help_text(self._commands, "invalid path. "))
        if command.post and request.method != "POST":
            return Response(405, f"Method {request.method} not allowed, POST required.")
        return await self._run(command.handler, request)

    async def _run(self, handler: Handler, request: Request) -> Response:
        try:
            async with asyncio.timeout(HANDLER_TIMEOUT):
                return await handler(self.console, request)
        except TimeoutError:
            _log.warning("%s %s took longer than %s s", request.method, request.path, HANDLER_TIMEOUT)
            return Response(503, f"{request.path} took longer than {HANDLER_TIMEOUT:g} s\n")
        except Exception as error:
            _log.error("%s %s failed: %r", request.method, request.path, error)
            return Response(500, f"{request.path} failed: {error!r}\n")

    async def _home(self, _console: Console, _request: Request) -> Response:
        shown = [command for command in self._commands if command.path != "/"]
        return Response(200, home.page(shown, self._server.state, self._server.loaded.bootstrap.node.id), HTML)

    async def _help(self, _console: Console, _request: Request) -> Response:
        return Response(200, help_text(self._commands))

    # --- statistics and log ---

    def _schedule_flush(self) -> None:
        self._flush_timer = self.loop.call_later(self._flush_interval, self._flush)

    def _flush(self) -> None:
        self.console.flush()
        self._schedule_flush()

    def _stream_info(self, connection: AdminProtocol, exchange: Exchange, now: float) -> StreamInfo:
        """What the access log may ask. The client's address stands in x-forwarded-for, as for any edge listener."""
        info = StreamInfo()
        for name in StreamInfo.__slots__:
            if name != "__dict__":
                setattr(info, name, None)
        headers = exchange.header_fields()
        peer = connection.peer
        loopback = bool(peer) and ipaddress.ip_address(peer.partition("%")[0]).is_loopback
        headers.set(b"x-forwarded-for", (self._own_address if loopback else peer).encode())
        info.request_headers = headers
        info.response_headers = Headers([])
        info.method = exchange.method.encode()
        info.path = exchange.target
        info.authority = headers.get(b":authority")
        info.scheme = b"http"
        info.protocol = b"HTTP/1.1"
        info.start = exchange.arrived_at
        info.start_time = time.time() - (now - exchange.arrived_at)
        info.end = info.last_downstream_tx = now
        info.response_code = exchange.status
        info.flags = b""
        info.details = b"admin_filter_response"
        info.local_reply_body = b""
        info.bytes_received, info.bytes_sent = len(exchange.body), exchange.sent
        info.attempt_count = 0
        info.connection_id = 0
        info.downstream_remote_address = info.downstream_direct_remote_address = peer.encode()
        info.downstream_local_address = info.downstream_direct_local_address = self._address.text.encode()
        return info
