"""tcp_proxy between real sockets. Flags, statistics and log fields are those of Envoy 1.40 in the same scenes."""

from __future__ import annotations

import asyncio
import random
import socket
from pathlib import Path

import pytest

from proxy.config import model
from tests.unit.listener.plane import Upstream, cluster, listener, plane, refused, run, tcp_chain, until

BIG = 8 * 1024 * 1024


def test_bytes_go_both_ways_and_both_half_closes_are_passed_on(tmp_path: Path) -> None:
    async def scene() -> None:
        up = Upstream()
        async with plane(tmp_path, [listener(tcp_chain())], [cluster(up.address)]) as proxy:
            client = await proxy.connect(b"hello")
            server = await up.accept()
            assert await server.read(5) == b"hello"
            client.finish()
            assert await server.rest() == b""
            await server.send(b"after your end")
            server.finish()
            assert await client.rest() == b"after your end"
            await proxy.idle()
            assert await proxy.logged() == ["chain - - 5 14 1 -"]
            assert proxy.used("tcp.t") == {
                "downstream_cx_total": 1, "downstream_cx_rx_bytes_total": 5, "downstream_cx_tx_bytes_total": 14}
            used = proxy.used("cluster.up")
            assert {name: used[name] for name in used if name.startswith("upstream_")} == {
                "upstream_cx_total": 1, "upstream_cx_destroy": 1, "upstream_cx_destroy_remote": 1,
                "upstream_cx_destroy_with_active_rq": 1, "upstream_cx_destroy_remote_with_active_rq": 1,
                "upstream_cx_rx_bytes_total": 14, "upstream_cx_tx_bytes_total": 5,
                "upstream_rq_total": 1, "upstream_rq_pending_total": 1}
            client.close()
            server.close()
        up.close()

    run(scene())


def test_the_upstream_may_speak_and_end_first(tmp_path: Path) -> None:
    async def scene() -> None:
        up = Upstream()
        async with plane(tmp_path, [listener(tcp_chain())], [cluster(up.address)]) as proxy:
            client = await proxy.connect()
            server = await up.accept()
            await server.send(b"220 ready")
            server.finish()
            assert await client.rest() == b"220 ready"
            await client.send(b"thanks")
            assert await server.read(6) == b"thanks"
            assert proxy.stat("listener.l.downstream_cx_active") == 1
            client.finish()
            assert await server.rest() == b""
            await proxy.idle()
            assert proxy.stat("cluster.up.upstream_cx_destroy_local") == 1
            assert await proxy.logged() == ["chain - - 6 9 1 -"]
            client.close()
            server.close()
        up.close()

    run(scene())


def test_a_reset_by_the_upstream_reaches_the_client(tmp_path: Path) -> None:
    async def scene() -> None:
        up = Upstream()
        async with plane(tmp_path, [listener(tcp_chain())], [cluster(up.address)]) as proxy:
            client = await proxy.connect(b"x")
            server = await up.accept()
            assert await server.read(1) == b"x"
            server.reset()
            assert await client.rest() is None
            assert await proxy.logged() == ["chain UR - 1 0 1 -"]
            client.close()
        up.close()

    run(scene())


def test_a_reset_by_the_client_reaches_the_upstream(tmp_path: Path) -> None:
    async def scene() -> None:
        up = Upstream()
        async with plane(tmp_path, [listener(tcp_chain())], [cluster(up.address)]) as proxy:
            client = await proxy.connect(b"x")
            server = await up.accept()
            assert await server.read(1) == b"x"
            client.reset()
            assert await server.rest() is None
            assert await proxy.logged() == ["chain - - 1 0 1 -"]
            server.close()
        up.close()

    run(scene())


def test_without_a_cluster_or_a_host_the_connection_is_closed(tmp_path: Path) -> None:
    async def scene() -> None:
        listeners = [listener(tcp_chain("nowhere", "nc"), name="nc"), listener(tcp_chain("empty", "uh"), name="uh")]
        async with plane(tmp_path, listeners, [cluster(name="empty")]) as proxy:
            for name in ("nc", "uh"):
                client = await proxy.connect(name=name)
                assert await client.rest() == b""
                client.close()
            assert await proxy.logged(2) == ["nc NC - 0 0 0 -", "uh UH - 0 0 0 -"]
            assert proxy.stat("tcp.t.downstream_cx_no_route") == 1
            assert proxy.stat("cluster.empty.upstream_cx_none_healthy") == 1

    run(scene())


@pytest.mark.parametrize("attempts", [1, 3])
def test_a_refused_connection(tmp_path: Path, attempts: int) -> None:
    async def scene() -> None:
        address, release = refused()
        chain = tcp_chain(max_connect_attempts=attempts)
        async with plane(tmp_path, [listener(chain)], [cluster(address)]) as proxy:
            client = await proxy.connect(b"lost")
            assert await client.rest() in (None, b"")  # RST where the data was there before the refusal
            assert await proxy.logged() == [
                f"chain UF,URX - 0 0 {attempts} delayed_connect_error:_Connection_refused"]
            assert proxy.stat("cluster.up.upstream_cx_connect_fail") == attempts
            assert proxy.stat("cluster.up.upstream_cx_connect_attempts_exceeded") == 1
            assert proxy.stat("cluster.up.upstream_cx_active") == 0
            client.close()
        release()

    run(scene())


def test_a_later_attempt_may_succeed(tmp_path: Path) -> None:
    async def scene() -> None:
        address, release = refused()
        up = Upstream()
        chain = tcp_chain(max_connect_attempts=2)
        async with plane(tmp_path, [listener(chain)], [cluster(address, up.address)]) as proxy:
            # Round robin over two hosts: of two connections in a row one meets the refusing host first.
            for _ in range(2):
                client = await proxy.connect(b"x")
                server = await up.accept()
                assert await server.read(1) == b"x"
                for end in (client, server):
                    end.finish()
                assert await client.rest() == b""
                client.close()
                server.close()
            lines = await proxy.logged(2)
            assert "chain UF - 1 0 2 delayed_connect_error:_Connection_refused" in lines
        release()
        up.close()

    run(scene())


def test_the_circuit_breaker_limits_connections(tmp_path: Path) -> None:
    async def scene() -> None:
        up = Upstream()
        limited = cluster(up.address, default=model.Thresholds(max_connections=1))
        async with plane(tmp_path, [listener(tcp_chain())], [limited]) as proxy:
            first = await proxy.connect(b"x")
            server = await up.accept()
            second = await proxy.connect()
            assert await second.rest() == b""
            assert await proxy.logged() == ["chain UO - 0 0 0 -"]
            assert proxy.stat("cluster.up.upstream_cx_overflow") == 1
            assert proxy.stat("cluster.up.circuit_breakers.default.cx_open") == 1
            first.reset()
            assert await server.rest() is None
            await proxy.idle()
            third = await proxy.connect(b"y")
            again = await up.accept()
            assert await again.read(1) == b"y"
            for one in (second, server, third, again):
                one.close()
        up.close()

    run(scene())


def test_an_idle_session_ends(tmp_path: Path) -> None:
    async def scene() -> None:
        up = Upstream()
        async with plane(tmp_path, [listener(tcp_chain(idle_timeout=0.05))], [cluster(up.address)]) as proxy:
            client = await proxy.connect()
            server = await up.accept()
            assert await client.rest() == b""
            assert await server.rest() == b""
            assert await proxy.logged() == ["chain - - 0 0 1 -"]
            assert proxy.stat("tcp.t.idle_timeout") == 1
            client.close()
            server.close()
        up.close()

    run(scene())


def test_a_session_has_a_longest_duration(tmp_path: Path) -> None:
    async def scene() -> None:
        up = Upstream()
        chain = tcp_chain(max_downstream_connection_duration=0.05)
        async with plane(tmp_path, [listener(chain)], [cluster(up.address)]) as proxy:
            client = await proxy.connect(b"x")
            server = await up.accept()
            assert await client.rest() == b""
            assert await server.rest() == b"x"
            assert await proxy.logged() == ["chain DT - 1 0 1 -"]
            assert proxy.stat("tcp.t.max_downstream_connection_duration") == 1
            client.close()
            server.close()
        up.close()

    run(scene())


def test_a_client_that_leaves_while_the_upstream_is_dialled(tmp_path: Path) -> None:
    async def scene() -> None:
        full = Upstream()
        full._sock.listen(0)
        filler = socket.create_connection(full.address)  # the queue of one is full: the next connect waits
        async with plane(tmp_path, [listener(tcp_chain())], [cluster(full.address)]) as proxy:
            client = await proxy.connect()
            await until(lambda: proxy.stat("cluster.up.upstream_rq_pending_active") == 1)
            client.reset()
            assert await proxy.logged() == ["chain - - 0 0 1 -"]
            used = proxy.used("cluster.up")
            assert used["upstream_rq_cancelled"] == 1
            assert "upstream_cx_active" not in used
            assert "upstream_rq_pending_active" not in used
        filler.close()
        full.close()

    run(scene())


@pytest.mark.parametrize("to_upstream", [True, False])
def test_a_side_that_does_not_read_stops_the_other(tmp_path: Path, to_upstream: bool) -> None:
    async def scene() -> None:
        up = Upstream()
        limit = 65536
        one = listener(tcp_chain(), per_connection_buffer_limit_bytes=limit)
        async with plane(tmp_path, [one], [cluster(up.address, per_connection_buffer_limit_bytes=limit)]) as proxy:
            client = await proxy.connect()
            server = await up.accept()
            source, sink = (client, server) if to_upstream else (server, client)
            data = bytes(5 * BIG)  # more than the kernel buffers of both connections hold
            paused, resumed = (
                f"{'tcp.t.downstream' if to_upstream else 'cluster.up.upstream'}_flow_control_{what}_reading_total"
                for what in ("paused", "resumed"))
            sending = asyncio.get_running_loop().create_task(source.send(data))
            await until(lambda: proxy.stat(paused) > proxy.stat(resumed) and not sending.done())
            # What the proxy holds is bounded: the rest waits in the kernel's buffers and in the sender.
            session = next(iter(next(iter(proxy.data_plane.listeners.listeners)).connections.values()))
            transport = session._upstream.transport if to_upstream else session.transport  # type: ignore[attr-defined]
            assert transport.get_write_buffer_size() < 1024 * 1024
            assert await sink.read(len(data)) == data
            await sending
            assert proxy.stat(resumed) == proxy.stat(paused)
            client.close()
            server.close()
        up.close()

    run(scene())


def test_weighted_clusters(tmp_path: Path) -> None:
    async def scene() -> None:
        up = Upstream()
        chain = tcp_chain(weighted_clusters=(("never", 0), ("up", 3)))
        async with plane(tmp_path, [listener(chain)], [cluster(up.address)]) as proxy:
            for _ in range(5):
                client = await proxy.connect(b"x")
                server = await up.accept()
                assert await server.read(1) == b"x"
                client.close()
                server.close()
        up.close()

    run(scene())


def test_large_transfers_are_exact(tmp_path: Path) -> None:
    async def scene() -> None:
        data = random.Random(1).randbytes(BIG)
        up = Upstream()
        async with plane(tmp_path, [listener(tcp_chain())], [cluster(up.address)]) as proxy:
            client = await proxy.connect()
            server = await up.accept()
            loop = asyncio.get_running_loop()
            sends = [loop.create_task(client.send(data)), loop.create_task(server.send(data[::-1]))]
            assert await asyncio.gather(server.read(BIG), client.read(BIG)) == [data, data[::-1]]
            await asyncio.gather(*sends)
            client.finish()
            server.finish()
            await proxy.idle()
            assert await proxy.logged() == [f"chain - - {BIG} {BIG} 1 -"]
            client.close()
            server.close()
        up.close()

    run(scene())
