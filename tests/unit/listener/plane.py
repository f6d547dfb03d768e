"""A data plane on the loop of the test, with scripted clients and upstreams on loopback."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import uvloop

from proxy.config import model
from proxy.config.model import SocketAddress
from proxy.config.overload_model import OverloadManager
from proxy.dataplane import DataPlane
from proxy.options import Options

DEADLINE = 10.0
LOG_FORMAT = ("%FILTER_CHAIN_NAME% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %BYTES_RECEIVED% %BYTES_SENT% "
              "%UPSTREAM_REQUEST_ATTEMPT_COUNT% %UPSTREAM_TRANSPORT_FAILURE_REASON%\n")


def run(scenario: Coroutine[Any, Any, None]) -> None:
    """Run to the end on uvloop; an exception that nobody handled in the loop fails the test."""
    unhandled: list[dict[str, Any]] = []

    async def guarded() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
        async with asyncio.timeout(3 * DEADLINE):
            await scenario

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(guarded())
    assert unhandled == []


async def until(condition: Callable[[], object]) -> None:
    """Wait for a condition."""
    async with asyncio.timeout(DEADLINE):
        while not condition():
            await asyncio.sleep(0.002)


class Client:
    """A non-blocking socket with coroutines."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._loop = asyncio.get_running_loop()

    @classmethod
    async def connect(cls, address: SocketAddress, data: bytes = b"") -> Client:
        sock = socket.socket(socket.AF_INET6 if ":" in address.host else socket.AF_INET)
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, tuple(address))
        except OSError:
            sock.close()
            raise
        client = cls(sock)
        if data:
            await client.send(data)
        return client

    async def send(self, data: bytes) -> None:
        async with asyncio.timeout(DEADLINE):
            await self._loop.sock_sendall(self.sock, data)

    async def read(self, size: int) -> bytes:
        """Exactly so many bytes, less at the end."""
        data = b""
        async with asyncio.timeout(DEADLINE):
            while len(data) < size and (piece := await self._loop.sock_recv(self.sock, size - len(data))):
                data += piece
        return data

    async def rest(self) -> bytes | None:
        """Everything up to FIN; None: reset."""
        data = b""
        async with asyncio.timeout(DEADLINE):
            try:
                while piece := await self._loop.sock_recv(self.sock, 65536):
                    data += piece
            except ConnectionResetError:
                return None
        return data

    def finish(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self) -> None:
        self.sock.close()


class Upstream:
    """A listening socket; ``accept`` gives its next connection."""

    def __init__(self) -> None:
        self._sock = socket.create_server(("127.0.0.1", 0))
        self._sock.setblocking(False)
        self.address = SocketAddress(*self._sock.getsockname())

    async def accept(self) -> Client:
        async with asyncio.timeout(DEADLINE):
            sock, _ = await asyncio.get_running_loop().sock_accept(self._sock)
        return Client(sock)

    def close(self) -> None:
        self._sock.close()


def refused() -> tuple[SocketAddress, Callable[[], None]]:
    """An address that nobody listens on, held until the function is called."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    return SocketAddress(*sock.getsockname()), sock.close


def tcp_chain(cluster: str = "up", name: str = "chain", match: model.FilterChainMatch | None = None,
              **settings: Any) -> model.FilterChain:
    return model.FilterChain(name, match or model.FilterChainMatch(),
                             model.TcpProxy(stat_prefix="t", cluster=cluster, **settings))


def cluster(*hosts: SocketAddress, name: str = "up", **settings: Any) -> model.Cluster:
    return model.Cluster(name=name, endpoints=tuple(model.Endpoint(h) for h in hosts), **settings)


def listener(*chains: model.FilterChain, host: str = "127.0.0.1", port: int = 0, name: str = "l",
             **settings: Any) -> model.Listener:
    return model.Listener(name=name, addresses=(SocketAddress(host, port),), filter_chains=chains, stat_prefix=name,
                          **settings)


class Plane:
    """A started data plane."""

    def __init__(self, data_plane: DataPlane, log: Path) -> None:
        self.data_plane = data_plane
        self._log = log

    def address(self, name: str = "l", index: int = 0) -> SocketAddress:
        return self.data_plane.addresses()[name][index]

    async def connect(self, data: bytes = b"", name: str = "l") -> Client:
        return await Client.connect(self.address(name), data)

    def stat(self, name: str) -> int:
        snapshot = self.data_plane.snapshot(False)
        for values in (snapshot.counters, snapshot.gauges, snapshot.levels):
            if name in values:
                return values[name]
        raise KeyError(name)

    def used(self, prefix: str) -> dict[str, int]:
        """The statistics under a prefix that are not 0."""
        snapshot = self.data_plane.snapshot(False)
        return {name[len(prefix) + 1:]: value for values in (snapshot.counters, snapshot.gauges)
                for name, value in values.items() if value and name.startswith(f"{prefix}.")}

    def log(self) -> list[str]:
        self.data_plane.flush_logs()
        return self._log.read_text().splitlines() if self._log.exists() else []

    async def logged(self, count: int = 1) -> list[str]:
        await until(lambda: len(self.log()) >= count)
        return self.log()

    async def idle(self, name: str = "l") -> None:
        """Wait until every connection has ended."""
        await until(lambda: not self.stat(f"listener.{name}.downstream_cx_active")
                    and not self.stat(f"listener.{name}.downstream_pre_cx_active"))


@asynccontextmanager
async def plane(folder: Path, listeners: list[model.Listener], clusters: list[model.Cluster],
                options: Options | None = None, log_listener: bool = False,
                overload: OverloadManager | None = None) -> AsyncIterator[Plane]:
    """A data plane whose tcp_proxy (or listeners) write an access log into the folder."""
    log = folder / "access.log"
    access_logs = (model.AccessLog(str(log), LOG_FORMAT),)

    def logging(chain: model.FilterChain | None) -> Any:
        if chain is None or log_listener:
            return chain
        return replace(chain, network_filter=replace(chain.network_filter, access_logs=access_logs))

    bootstrap = model.Bootstrap(
        node=model.Node(), admin=model.Admin(), clusters=tuple(clusters), overload=overload,
        listeners=tuple(replace(
            one, filter_chains=tuple(map(logging, one.filter_chains)),
            default_filter_chain=logging(one.default_filter_chain),
            access_logs=access_logs if log_listener else (),
        ) for one in listeners))
    data_plane = DataPlane(bootstrap, options or Options(concurrency=1), asyncio.get_running_loop(), 0)
    data_plane.bind()
    await data_plane.start()
    try:
        yield Plane(data_plane, log)
    finally:
        data_plane.close()
        # Transports close themselves in the next rounds of the loop.
        for one in data_plane.listeners.listeners:
            await until(lambda one=one: not one.connections)

