"""What a connection may keep in memory: its buffer limit and one read beyond it, whoever pours, whoever does not read.

Real sockets; the far side of what is poured never reads, so everything beyond the kernel's buffers would be held here.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from proxy.config import model
from proxy.http.server_connection import ServerConnection
from proxy.overload.streams import held
from proxy.tcp.session import TcpSession
from tests.unit.http.http_world import manager, route, virtual_host
from tests.unit.listener.plane import Client, Plane, Upstream, cluster, listener, plane, run, tcp_chain

LIMIT = 65536
READ = 256 * 1024
"""The most that the loop reads at a time."""
POURED = 64 << 20
HEAD = b"POST /a HTTP/1.1\r\nhost: h\r\ncontent-length: %d\r\n\r\n" % POURED
REPLY = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % POURED


def http_chain(**action: Any) -> model.FilterChain:
    return model.FilterChain("chain", model.FilterChainMatch(),
                             replace(manager(virtual_host(route(timeout=0.0, **action))), access_logs=()))


def kept(one: Plane) -> int:
    """Bytes that the only connection keeps, in both directions."""
    (protocol,) = one.data_plane.listeners.listeners[0].connections.values()
    if isinstance(protocol, ServerConnection):
        return held(protocol)
    assert isinstance(protocol, TcpSession)
    size = protocol.transport.get_write_buffer_size() + sum(map(len, protocol._early))
    return size + (protocol._upstream.transport.get_write_buffer_size() if protocol._upstream is not None else 0)


RETRY = model.RetryPolicy(retry_on=frozenset(("5xx",)), num_retries=3)


@pytest.mark.parametrize("upload", [True, False], ids=["upload", "download"])
@pytest.mark.parametrize("chain", [tcp_chain(), http_chain(), http_chain(retry_policy=RETRY)],
                         ids=["tcp", "http", "http-retries"])
def test_bounded(tmp_path: Path, chain: model.FilterChain, upload: bool) -> None:
    async def scenario() -> None:
        upstream = Upstream()
        one_listener = listener(chain, per_connection_buffer_limit_bytes=LIMIT)
        async with plane(tmp_path, [one_listener],
                         [cluster(upstream.address, per_connection_buffer_limit_bytes=LIMIT)]) as one:
            client = await one.connect(HEAD if upload else HEAD.replace(b"%d" % POURED, b"0"))
            server = await upstream.accept()
            await server.read(len(b"POST"))
            source, data = (client, bytes(POURED)) if upload else (server, REPLY + bytes(POURED))
            worst, sent = 0, 0
            # Poured as long as any of it is taken; what is kept is looked at after every piece.
            while sent < len(data) and await taken(source, data[sent:sent + 65536]):
                sent += 65536
                worst = max(worst, kept(one))
            worst = max(worst, kept(one))
            assert sent < POURED, "the kernel's buffers were large enough for everything"
            assert 0 < worst <= LIMIT + READ
            source.close()
            (client if source is server else server).close()
            await one.idle()
        upstream.close()

    run(scenario())


async def taken(source: Client, data: bytes) -> bool:
    """Send; False when nobody takes it any more."""
    try:
        async with asyncio.timeout(0.3):
            await asyncio.get_running_loop().sock_sendall(source.sock, data)
    except TimeoutError:
        return False
    return True
