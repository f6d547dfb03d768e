"""What overload does to connections: refused, left with the kernel, tunnels that end. Real sockets on loopback."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from proxy.config import overload_model as model
from tests.unit.listener.plane import Client, Plane, Upstream, cluster, listener, plane, run, tcp_chain, until
from tests.unit.overload.overload_samples import configured


class Server(Upstream):
    """Closes what it accepted, too."""

    def __init__(self) -> None:
        super().__init__()
        self._accepted: list[Client] = []

    async def accept(self) -> Client:
        client = await super().accept()
        self._accepted.append(client)
        return client

    def close(self) -> None:
        for client in self._accepted:
            client.close()
        super().close()


def set_to(one: Plane, name: str, value: float) -> None:
    one.data_plane.set_overload({name: value})


@pytest.mark.parametrize("name", [model.REJECT_CONNECTIONS, model.TCP_ACCEPT])
def test_new_connections_are_closed_at_once(tmp_path: Path, name: str) -> None:
    point = name == model.TCP_ACCEPT

    async def scenario() -> None:
        upstream = Server()
        listeners = [listener(tcp_chain()), listener(tcp_chain(), name="bypass", bypass_overload_manager=True)]
        overload = configured(*(() if point else (name,)), points=(name,) if point else ())
        async with plane(tmp_path, listeners, [cluster(upstream.address)], overload=overload) as one:
            old = await one.connect(b"old")
            served = await upstream.accept()
            set_to(one, name, 1.0)
            for _ in range(3):
                refused = await one.connect()
                assert await refused.rest() == b""
                refused.close()
            other = await one.connect(b"x", name="bypass")
            await upstream.accept()
            assert await served.read(3) == b"old"
            assert one.stat("listener.l.downstream_cx_overload_reject") == 3
            assert one.stat("listener.bypass.downstream_cx_overload_reject") == 0
            if point:
                assert one.stat(f"overload.{name}.shed_load_count") == 3
            set_to(one, name, 0.0)
            new = await one.connect(b"new")
            assert await (await upstream.accept()).read(3) == b"new"
            for client in (old, other, new):
                client.close()
        upstream.close()

    run(scenario())


def test_new_connections_wait_in_the_kernel(tmp_path: Path) -> None:
    async def scenario() -> None:
        upstream = Server()
        overload = configured(model.STOP_ACCEPTING_CONNECTIONS)
        async with plane(tmp_path, [listener(tcp_chain())], [cluster(upstream.address)], overload=overload) as one:
            set_to(one, model.STOP_ACCEPTING_CONNECTIONS, 0.99)  # only saturation counts
            first = await one.connect(b"1")
            assert await (await upstream.accept()).read(1) == b"1"
            set_to(one, model.STOP_ACCEPTING_CONNECTIONS, 1.0)
            second = await one.connect(b"2")
            for _ in range(20):
                await asyncio.sleep(0)
            assert one.stat("listener.l.downstream_cx_total") == 1
            set_to(one, model.STOP_ACCEPTING_CONNECTIONS, 0.0)
            assert await (await upstream.accept()).read(1) == b"2"
            first.close()
            second.close()
        upstream.close()

    run(scenario())


def test_a_listener_that_starts_in_overload(tmp_path: Path) -> None:
    async def scenario() -> None:
        upstream = Server()
        overload = configured(model.STOP_ACCEPTING_CONNECTIONS)
        async with plane(tmp_path, [listener(tcp_chain())], [cluster(upstream.address)], overload=overload) as one:
            active = one.data_plane.listeners.listeners[0]
            (sock,) = active._sockets
            active.suspend(True)
            sock._accept_failed(OSError(24, "Too many open files"))
            sock.resume()  # a descriptor has become free: still suspended
            assert not sock.paused
            client = await one.connect(b"x")
            for _ in range(20):
                await asyncio.sleep(0)
            assert one.stat("listener.l.downstream_cx_total") == 0
            sock._accept_failed(OSError(24, "Too many open files"))
            active.suspend(False)  # the other way round: resumed by the pause's end
            sock.resume()
            assert await (await upstream.accept()).read(1) == b"x"
            client.close()
        upstream.close()

    run(scenario())


def test_tunnels_end_at_data(tmp_path: Path) -> None:
    async def scenario() -> None:
        upstream = Server()
        overload = configured(points=(model.TCP_DATA,))
        async with plane(tmp_path, [listener(tcp_chain())], [cluster(upstream.address)], overload=overload) as one:
            client = await one.connect(b"a")
            served = await upstream.accept()
            assert await served.read(1) == b"a"
            await served.send(b"b")
            assert await client.read(1) == b"b"
            set_to(one, model.TCP_DATA, 1.0)
            await client.send(b"c")
            assert await client.rest() == b""
            assert await served.rest() == b""
            assert await one.logged() == ["chain OM - 2 1 1 -"]
            assert one.stat("tcp.t.downstream_cx_overload_close") == 1
            assert one.stat("cluster.up.upstream_cx_destroy_local") == 1
            client.close()
        upstream.close()

    run(scenario())


def test_tunnels_do_not_begin(tmp_path: Path) -> None:
    async def scenario() -> None:
        upstream = Server()
        overload = configured(points=(model.TCP_CONNECT, model.NEW_CONNECTION))
        async with plane(tmp_path, [listener(tcp_chain(max_connect_attempts=2))], [cluster(upstream.address)],
                         overload=overload) as one:
            for name in (model.TCP_CONNECT, model.NEW_CONNECTION):
                set_to(one, name, 1.0)
                client = await one.connect()
                assert await client.rest() == b""
                client.close()
                set_to(one, name, 0.0)
            assert await one.logged(2) == ["chain OM - 0 0 0 -", "chain URX - 0 0 2 -"]
            assert one.stat("tcp.t.downstream_cx_overload_close") == 1
            assert one.stat(f"overload.{model.NEW_CONNECTION}.shed_load_count") == 2
            used = one.used("cluster.up")
            assert used["upstream_rq_cancelled"] == used["upstream_rq_pending_total"] == 2
            assert "upstream_cx_total" not in used
        upstream.close()

    run(scenario())


def test_more_attempts_than_a_stack_holds(tmp_path: Path) -> None:
    async def scenario() -> None:
        upstream = Server()
        overload = configured(points=(model.NEW_CONNECTION,))
        async with plane(tmp_path, [listener(tcp_chain(max_connect_attempts=2000))], [cluster(upstream.address)],
                         overload=overload) as one:
            set_to(one, model.NEW_CONNECTION, 1.0)
            client = await one.connect()
            assert await client.rest() == b""
            client.close()
            assert await one.logged() == ["chain URX - 0 0 2000 -"]
        upstream.close()

    run(scenario())


def test_values_that_come_before_listeners_accept(tmp_path: Path) -> None:
    async def scenario() -> None:
        overload = configured(model.REJECT_CONNECTIONS, model.DISABLE_KEEPALIVE)
        async with plane(tmp_path, [listener(tcp_chain())], [cluster()], overload=overload) as one:
            one.data_plane.set_overload({model.REJECT_CONNECTIONS: 1.0, model.DISABLE_KEEPALIVE: 0.5})
            active = one.data_plane.listeners.listeners[0]
            assert active.draining
            client: Client = await one.connect()
            assert await client.rest() == b""
            client.close()
            one.data_plane.set_overload({model.REJECT_CONNECTIONS: 0.0, model.DISABLE_KEEPALIVE: 0.0})
            assert not active.draining
            await until(lambda: one.stat("listener.l.downstream_cx_overload_reject") == 1)

    run(scenario())
