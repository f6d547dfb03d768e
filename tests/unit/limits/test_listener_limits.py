"""Limits of listeners with real sockets: every way in which a connection ends frees its place."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest

from proxy.config import model
from proxy.config.overload_model import DownstreamConnections, OverloadManager
from proxy.limits.pools import GLOBAL, Limit, Pools, listener_key
from proxy.limits.rules import MONITOR
from tests.unit.listener.plane import Client, Plane, Upstream, cluster, listener, plane, run, tcp_chain, until

HTTP_INSPECTOR = model.ListenerFilter(model.HTTP_INSPECTOR_FILTER)


def monitored(limit: int) -> OverloadManager:
    return OverloadManager(((MONITOR, DownstreamConnections(limit)),))


def pools(proxy: Plane) -> Pools:
    limits = proxy.data_plane.context.limits
    assert limits is not None
    return limits._pools._pools


async def put_in_force(proxy: Plane, **limits: int) -> None:
    """Limits of listeners, by name."""
    pools(proxy).put_in_force(
        [Limit(listener_key(name), value, "listener", name, "") for name, value in limits.items()])
    await proxy.data_plane.set_runtime({}, pools(proxy).order())


async def refused(proxy: Plane, name: str = "l") -> bool:
    client = await proxy.connect(b"", name)
    try:
        return await client.rest() in (b"", None)
    finally:
        client.close()


def test_connections_that_are_still_looked_at_count(tmp_path: Path) -> None:
    async def scene() -> None:
        up = Upstream()
        sniffing = listener(tcp_chain(), listener_filters=(HTTP_INSPECTOR,), listener_filters_timeout=0.2)
        async with plane(tmp_path, [sniffing], [cluster(up.address)], overload=monitored(1)) as proxy:
            pool = pools(proxy).pool(GLOBAL)
            client = await proxy.connect()  # sends nothing: closed after the timeout
            await until(lambda: pool.in_use == 1)
            assert await refused(proxy)
            assert proxy.stat("listener.l.downstream_global_cx_overflow") == 1
            assert await client.rest() == b"" and pool.in_use == 0
            client.close()
            for data, end in ((b"G", Client.reset), (b"", Client.close)):
                client = await proxy.connect(data)
                await until(lambda: pool.in_use == 1)
                end(client)
                await until(lambda: pool.in_use == 0)
        up.close()

    run(scene())


def test_a_connection_without_a_chain_frees_its_place(tmp_path: Path) -> None:
    async def scene() -> None:
        match = model.FilterChainMatch(destination_port=1)
        async with plane(tmp_path, [listener(tcp_chain(match=match))], [], overload=monitored(1)) as proxy:
            for _ in range(3):
                assert await refused(proxy)
            assert proxy.stat("listener.l.no_filter_chain_match") == 3
            assert pools(proxy).pool(GLOBAL).in_use == 0

    run(scene())


def test_places_are_free_within_a_window(tmp_path: Path) -> None:
    async def scene() -> None:
        up = Upstream()
        match = model.FilterChainMatch(destination_port=1)
        listeners = [listener(tcp_chain()), listener(tcp_chain(match=match), name="without a chain"),
                     listener(tcp_chain(), name="sniffing", listener_filters=(HTTP_INSPECTOR,),
                              listener_filters_timeout=60)]
        async with plane(tmp_path, listeners, [cluster(up.address)], overload=monitored(1)) as proxy:
            pool = pools(proxy).pool(GLOBAL)
            loop = asyncio.get_running_loop()
            pool._later = lambda _, callback: loop.call_later(3600, callback)
            for name, data in (("l", b"x"), ("sniffing", b"G")):
                for _ in range(3):
                    client = await proxy.connect(data, name)
                    await until(lambda: pool.held == 1)
                    assert await refused(proxy, name)
                    client.reset()
                    await until(lambda: pool.held == 0)
                    assert pool.spare == 1
            for _ in range(3):
                assert await refused(proxy, "without a chain") and pool.held == 0
            assert (pool.spare, pool.refused, pool.in_use) == (1, 6, 1), "told when the window is over"
            pool.settle()
            assert (pool.spare, pool.in_use, pool.highest) == (0, 0, 1)
        up.close()

    run(scene())


@pytest.mark.parametrize("settings", [{"bypass_overload_manager": True}, {"ignore_global_conn_limit": True}])
def test_the_operator_gets_in(tmp_path: Path, settings: Any) -> None:
    async def scene() -> None:
        up = Upstream()
        listeners = [listener(tcp_chain()), listener(tcp_chain(), name="operator", **settings)]
        async with plane(tmp_path, listeners, [cluster(up.address)], overload=monitored(0)) as proxy:
            assert await refused(proxy)
            client = await proxy.connect(b"x", "operator")
            server = await up.accept()
            assert await server.read(1) == b"x"
            assert pools(proxy).pool(GLOBAL).in_use == 0
            client.close()
            server.close()
        up.close()

    run(scene())


def test_a_limit_finds_those_that_are_there(tmp_path: Path) -> None:
    async def scene() -> None:
        up = Upstream()
        sniffing = listener(tcp_chain(), listener_filters=(HTTP_INSPECTOR,), listener_filters_timeout=60)
        async with plane(tmp_path, [sniffing], [cluster(up.address)]) as proxy:
            served, looked_at = await proxy.connect(b"\0"), await proxy.connect()
            server = await up.accept()
            await until(lambda: proxy.stat("listener.l.downstream_pre_cx_active") == 1)
            # In the kernel's queue, or just being opened, when the limit comes.
            late = Client(socket.create_connection(proxy.address()))
            late.sock.sendall(b"\0")
            await put_in_force(proxy, l=2)
            pool = pools(proxy).pool(listener_key("l"))
            await until(lambda: pool.in_use + proxy.stat("listener.l.downstream_cx_overflow") == 3)
            assert await refused(proxy)
            for client in (late, served, looked_at):
                client.reset()
            await until(lambda: pool.in_use == 0)
            server.close()
        up.close()

    run(scene())


def test_a_limit_finds_those_on_their_way(tmp_path: Path) -> None:
    async def scene() -> None:
        up = Upstream()
        sniffing = listener(tcp_chain(), listener_filters=(HTTP_INSPECTOR,), listener_filters_timeout=60,
                            continue_on_listener_filters_timeout=True)
        async with plane(tmp_path, [sniffing], [cluster(up.address)]) as proxy:
            client = await proxy.connect()
            await until(lambda: proxy.stat("listener.l.downstream_pre_cx_active") == 1)
            (looked_at,) = proxy.data_plane.listeners.listeners[0].pending
            loop = asyncio.get_running_loop()
            coming = loop.create_task(put_in_force(proxy, l=1))
            loop.call_soon(looked_at.on_deadline, loop.time())  # after the first step of the change
            await coming
            pool = pools(proxy).pool(listener_key("l"))
            assert pool.in_use == 1
            assert await refused(proxy)
            client.reset()
            await until(lambda: pool.in_use == 0)
        up.close()

    run(scene())


def test_clients_of_a_limit(tmp_path: Path) -> None:
    async def scene() -> None:
        up = Upstream()
        async with plane(tmp_path, [listener(tcp_chain())], [cluster(up.address)], overload=monitored(5)) as proxy:
            clients = [await proxy.connect(b"x") for _ in range(2)]
            servers = [await up.accept() for _ in clients]
            assert proxy.data_plane.limit_clients() == {GLOBAL: [("127.0.0.1", 2)]}
            for one in clients + servers:
                one.close()
            await proxy.idle()
            assert proxy.data_plane.limit_clients() == {}
        up.close()

    run(scene())


def test_a_refused_connection_that_pours_is_not_read_for_ever(tmp_path: Path) -> None:
    async def scene() -> None:
        manager = model.HttpConnectionManager("h", model.RouteConfiguration("r", ()), ())
        chain = model.FilterChain("c", model.FilterChainMatch(), manager, (model.ConnectionLimit("id", "p", 1, 30.0),))
        one = listener(chain, per_connection_buffer_limit_bytes=4096)
        async with plane(tmp_path, [one], []) as proxy:
            first = await proxy.connect(b"G")
            await until(lambda: proxy.stat("connection_limit.p.active_connections") == 1)
            second = await proxy.connect(b"x" * 5000)
            await until(lambda: proxy.stat("http.h.downstream_cx_rx_bytes_total") == 5001)
            await second.send(b"y" * 5000)
            third = await proxy.connect()
            await until(lambda: proxy.stat("connection_limit.p.limited_connections") == 2)
            assert proxy.stat("http.h.downstream_cx_rx_bytes_total") == 5001
            assert proxy.stat("connection_limit.p.active_connections") == 3
            proxy.data_plane.listeners.close()
            await until(lambda: proxy.stat("connection_limit.p.active_connections") == 0)
            for client in (first, second, third):
                client.close()

    run(scene())
