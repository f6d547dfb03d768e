"""A connection manager without sockets: scripted clients and upstreams on fake transports, a clock that is set by hand.

``World`` has everything of one worker that HTTP needs. ``world.client()`` is a downstream connection; upstream
connections appear in ``world.upstreams`` in the order in which they were dialled. Nothing happens by itself: what a
call causes is done when it returns.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from typing import Any

import pytest

from proxy.access_log.format import compile_format
from proxy.config import model
from proxy.config.model import SocketAddress
from proxy.config.overload_model import OverloadManager
from proxy.context import Context
from proxy.http import stream as stream_module
from proxy.http.filters import ROUTER
from proxy.http.manager import HttpConnectionManager
from proxy.http.server_connection import ServerConnection
from proxy.listener.connection import Connection
from proxy.options import Options
from proxy.stream_info import StreamInfo
from proxy.upstream.manager import ClusterManager
from tests.unit.http.fake_transport import AcceptedSocket, Transport

EPOCH = 1_700_000_000.0
"""Wall clock when the loop's time is 0."""


class Handle:
    """A timer."""

    def __init__(self, when: float, call: Callable[[], object]) -> None:
        self.when, self.call, self.cancelled = when, call, False

    def cancel(self) -> None:
        self.cancelled = True


class Gate:
    """Awaited once; ``open`` or ``fail`` lets the coroutine go on."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self.outcome: Callable[[], Any] | None = None
        self.task: FakeTask | None = None

    def __await__(self) -> Generator[Gate, None, Any]:
        if self.outcome is None:
            yield self
        assert self.outcome is not None
        return self.outcome()

    def open(self, value: object = None) -> None:
        self._settle(lambda: value)

    def fail(self, error: Exception) -> None:
        def raised() -> None:
            raise error
        self._settle(raised)

    def _settle(self, outcome: Callable[[], Any]) -> None:
        self.outcome = outcome
        if self.task is not None:
            self._loop.ready.append(self.task.step)


class FakeTask:
    def __init__(self, loop: Loop, coro: Coroutine[Any, Any, Any], name: str) -> None:
        self._coro, self._name, self._loop = coro, name, loop
        self._callbacks: list[Callable[[Any], object]] = []
        self._error: BaseException | None = None
        self.done = self._cancelled = False
        loop.ready.append(self.step)

    def step(self) -> None:
        if self.done:
            return
        try:
            gate = self._coro.send(None)
        except StopIteration:
            self._finish()
        except Exception as error:
            self._error = error
            self._finish()
        else:
            assert isinstance(gate, Gate)
            gate.task = self

    def _finish(self) -> None:
        self.done = True
        for callback in self._callbacks:
            callback(self)

    def cancel(self) -> None:
        if not self.done:
            self._cancelled = True
            self._coro.close()
            self._finish()

    def cancelled(self) -> bool:
        return self._cancelled

    def exception(self) -> BaseException | None:
        return self._error

    def get_name(self) -> str:
        return self._name

    def add_done_callback(self, callback: Callable[[Any], object]) -> None:
        self._callbacks.append(callback)


class Loop:
    """The part of an event loop that a worker uses, run by hand."""

    def __init__(self) -> None:
        self.clock = 0.0
        self.ready: deque[Callable[[], object]] = deque()
        self.timers: list[Handle] = []
        self.errors: list[dict[str, Any]] = []
        self.connect: Callable[[Callable[[], Any], str, int, Any], Gate] | None = None
        self.resolver: Callable[[str, int, int], list[Any]] | None = None

    def time(self) -> float:
        return self.clock

    def call_later(self, delay: float, call: Callable[..., object], *args: object) -> Handle:
        handle = Handle(self.clock + delay, lambda: call(*args))
        self.timers.append(handle)
        return handle

    def create_task(self, coro: Coroutine[Any, Any, Any], name: str = "") -> FakeTask:
        return FakeTask(self, coro, name)

    async def create_connection(self, factory: Callable[[], Any], host: str, port: int, local_addr: Any = None) -> Any:
        assert self.connect is not None
        return await self.connect(factory, host, port, local_addr)

    async def getaddrinfo(self, host: str, port: int, *, family: int = 0, type: int = 0) -> list[Any]:
        assert self.resolver is not None
        return self.resolver(host, port, family)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.errors.append(context)

    def run(self) -> None:
        """Whatever is ready."""
        while self.ready:
            self.ready.popleft()()

    def advance(self, seconds: float) -> None:
        """Let time pass, timer by timer."""
        until = self.clock + seconds
        self.run()
        while due := [h for h in self.timers if h.when <= until and not h.cancelled]:
            first = min(due, key=lambda h: h.when)
            self.timers.remove(first)
            self.clock = max(self.clock, first.when)
            first.call()
            self.run()
        self.timers = [h for h in self.timers if not h.cancelled]
        self.clock = until


class Peer:
    """The other end of a transport."""

    def __init__(self, world: World, name: str, local: tuple[str, int]) -> None:
        self.world = world
        self.name = name
        self.received = b""
        """Since the last ``take``."""
        self.transport = Transport(world.loop, self._wrote, local)
        self.sock = AcceptedSocket(self.transport)

    def _wrote(self, data: bytes) -> None:
        self.received += data
        self.world.record(self.name, data)

    def attach(self, protocol: Any) -> None:
        self.transport.protocol = protocol
        protocol.connection_made(self.transport)

    def send(self, *pieces: bytes) -> None:
        """One read of the proxy a piece."""
        for data in pieces:
            self.world.turn += 1
            if not self.transport.closing:
                self.transport.protocol.data_received(data)
            self.world.loop.run()

    def finish(self) -> None:
        """FIN."""
        self.world.turn += 1
        if not self.transport.closing:
            assert not self.transport.protocol.eof_received()
            self.transport.close()
        self.world.loop.run()

    def reset(self) -> None:
        """RST."""
        self.world.turn += 1
        self.transport.gone(ConnectionResetError(104, "Connection reset by peer"))
        self.world.loop.run()

    def take(self) -> bytes:
        """What has been received, with ids replaced; forgets it."""
        data, self.received = self.received, b""
        return normal(data)

    @property
    def closed(self) -> bool:
        return self.transport.closing


UUID = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


def normal(data: bytes) -> bytes:
    """Generated request ids replaced."""
    return UUID.sub(b"<id>", data)


class Listener:
    """What a connection asks its listener."""

    def __init__(self, world: World, **settings: Any) -> None:
        self.config = model.Listener(name="l", addresses=(SocketAddress("127.0.0.1", 10000),), filter_chains=(),
                                     **settings)
        self.stat_prefix = "listener.l"
        self.draining = False
        self.open: list[Connection] = []
        self.connections: dict[Connection, ServerConnection] = {}
        """As the real listener has them; only those that are open."""

    def drain_close(self) -> bool:
        return self.draining

    def connection_closed(self, connection: Connection, now: float) -> None:
        self.open.remove(connection)
        self.connections.pop(connection, None)


class LogFiles:
    def __init__(self, lines: list[bytes]) -> None:
        self._lines = lines
        self.infos: list[Callable[[StreamInfo], None]] = []

    def logger(self, config: model.AccessLog) -> Callable[[StreamInfo], None]:
        compiled = compile_format(config.format)

        def log(info: StreamInfo) -> None:
            self._lines.append(compiled(info).rstrip(b"\n"))
            for look in self.infos:
                look(info)
        return log


ISTIO_FORMAT = (
    '[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" %RESPONSE_CODE% %RESPONSE_FLAGS% '
    '%RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% "%UPSTREAM_TRANSPORT_FAILURE_REASON%" %BYTES_RECEIVED% '
    '%BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% "%REQ(X-FORWARDED-FOR)%" "%REQ(USER-AGENT)%" '
    '"%REQ(X-REQUEST-ID)%" "%REQ(:AUTHORITY)%" "%UPSTREAM_HOST%" %UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% '
    "%DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%\n"
)
SHORT_FORMAT = "%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS%"

HOST = SocketAddress("10.0.0.1", 8080)


def cluster(*hosts: SocketAddress, name: str = "up", **settings: Any) -> model.Cluster:
    return model.Cluster(name=name, endpoints=tuple(model.Endpoint(h) for h in hosts or (HOST,)), **settings)


def route(cluster_name: str = "up", prefix: bytes = b"/", name: str = "", decorator: bytes = b"",
          mutations: model.HeaderMutations | None = None, **action: Any) -> model.Route:
    action.setdefault("timeout", 15.0)
    return model.Route(name, model.RouteMatch(model.PREFIX, prefix), model.RouteAction(cluster=cluster_name, **action),
                       decorator_operation=decorator, mutations=mutations or model.HeaderMutations())


def virtual_host(*routes: model.Route, name: str = "v", domains: tuple[bytes, ...] = (b"*",),
                 **settings: Any) -> model.VirtualHost:
    return model.VirtualHost(name, domains, routes or (route(),), **settings)


def table(*hosts: model.VirtualHost, **settings: Any) -> model.RouteConfiguration:
    return model.RouteConfiguration("r", hosts or (virtual_host(),), **settings)


def manager(*hosts: model.VirtualHost, log: str = SHORT_FORMAT, routes: model.RouteConfiguration | None = None,
            **settings: Any) -> model.HttpConnectionManager:
    return model.HttpConnectionManager(
        "h", routes or table(*hosts), (model.HttpFilterConfig("router", ROUTER, None),),
        access_logs=(model.AccessLog("/dev/null", log),), **settings)


class World:
    """One worker with one connection manager."""

    def __init__(self, config: model.HttpConnectionManager | None = None, *clusters: model.Cluster,
                 overload: OverloadManager | None = None, **listener: Any) -> None:
        self.loop = Loop()
        self.loop.connect = self._connect
        self.log: list[bytes] = []
        self.log_files = LogFiles(self.log)
        self.turn = 0
        """The number of the event."""
        self.transcript: dict[tuple[int, str], bytes] = {}
        self.upstreams: list[Peer] = []
        self.dials: list[tuple[Gate, Callable[[], Any], SocketAddress, Any]] = []
        """Waiting, while ``hold`` is set."""
        self.hold = False
        self.refuse = False
        bootstrap = model.Bootstrap(node=model.Node(), admin=model.Admin(), listeners=(),
                                    clusters=clusters or (cluster(),), overload=overload)
        self.context = Context(self.loop, bootstrap, Options(), self.log_files)  # type: ignore[arg-type]
        ClusterManager(self.context)
        self.listener = Listener(self, **listener)
        self.config = config or manager()
        self.manager = HttpConnectionManager(self.config, self.listener, self.context)  # type: ignore[arg-type]
        self._ids = 0

    def wall(self) -> float:
        return EPOCH + self.loop.clock

    def record(self, who: str, data: bytes) -> None:
        """What one event makes the proxy write to one peer is one entry."""
        key = (self.turn, who)
        self.transcript[key] = self.transcript.get(key, b"") + data

    def client(self, local: SocketAddress | None = None) -> Peer:
        """A new downstream connection. ``local``: its restored original destination."""
        self._ids += 1
        peer = Peer(self, f"client {self._ids}", ("127.0.0.1", 10000))
        connection = Connection(peer.sock, SocketAddress("10.9.9.9", 40000 + self._ids),  # type: ignore[arg-type]
                                SocketAddress("127.0.0.1", 10000), self.listener, self._ids,  # type: ignore[arg-type]
                                self.loop.clock)
        if local is not None:
            connection.local, connection.restored = local, True
        self.listener.open.append(connection)
        protocol = self.manager.protocol(connection)
        self.listener.connections[connection] = protocol
        peer.attach(protocol)
        return peer

    def _connect(self, factory: Callable[[], Any], host: str, port: int, local_addr: Any) -> Gate:
        gate = Gate(self.loop)
        self.dials.append((gate, factory, SocketAddress(host, port), local_addr))
        if not self.hold:
            self.loop.ready.append(self.answer_dial)
        return gate

    def answer_dial(self) -> None:
        """Let the first waiting dial succeed (or not, while ``refuse`` is set)."""
        gate, factory, address, _ = self.dials.pop(0)
        if self.refuse:
            gate.fail(ConnectionRefusedError(111, "Connection refused"))
            return
        if gate.task is not None and gate.task.cancelled():
            return
        number = len(self.upstreams) + 1
        peer = Peer(self, f"upstream {number}", ("10.0.0.99", 50000 + number))
        peer.address = address  # type: ignore[attr-defined]
        self.upstreams.append(peer)
        protocol = factory()
        peer.attach(protocol)
        gate.open((peer.transport, protocol))

    def advance(self, seconds: float) -> None:
        self.turn += 1
        self.loop.advance(seconds)

    def stats(self) -> dict[str, Any]:
        """Everything that is not 0."""
        self.context.clusters.show_breakers()
        snapshot = self.context.registry.snapshot()
        groups = (snapshot.counters, snapshot.gauges, snapshot.histograms)
        return {name: value for group in groups for name, value in group.items() if value}

    def stat(self, name: str) -> int:
        return int(self.stats().get(name, 0))

    def settled(self) -> None:
        """Nothing unforeseen has happened, and nothing is left that should not be."""
        assert self.loop.errors == []
        assert not self.loop.ready
        stats = self.stats()
        busy = [p for p in (u.transport.protocol for u in self.upstreams) if p.stream is not None]
        assert stats.get("http.h.downstream_rq_active", 0) == sum(
            c.transport.protocol.stream is not None for c in self._clients())
        assert stats.get("cluster.up.upstream_rq_active", 0) == len(busy)
        assert stats.get("cluster.up.upstream_cx_active", 0) == (
            sum(not u.transport.lost for u in self.upstreams) + len(self.dials))

    def _clients(self) -> list[Any]:
        return [c for c in self.clients if not c.transport.lost]

    @property
    def clients(self) -> list[Peer]:
        """Downstream peers that are still connected."""
        members = self.context.deadlines._members
        return [_Open(m) for m in members if isinstance(m, ServerConnection)]  # type: ignore[misc]


class _Open:
    """As much of a Peer as ``settled`` needs."""

    def __init__(self, protocol: ServerConnection) -> None:
        self.transport = protocol.transport


@pytest.fixture
def world_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., World]:
    """Makes worlds whose wall clock follows their loop."""
    def make(*args: Any, **kwargs: Any) -> World:
        world = World(*args, **kwargs)
        monkeypatch.setattr(stream_module, "time", world.wall)
        return world
    return make
