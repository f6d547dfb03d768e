"""What a data plane tells of its connections."""

from __future__ import annotations

from pathlib import Path

from tests.unit.listener.plane import Upstream, cluster, listener, plane, run, tcp_chain, until
from tests.unit.listener.test_listener import HTTP_INSPECTOR


def test_open_connections_the_oldest_first(tmp_path: Path) -> None:
    """Those that are proxied and those whose listener filters still wait; closed ones are gone."""

    async def scene() -> None:
        up = Upstream()
        quiet = listener(tcp_chain(), name="quiet", listener_filters=(HTTP_INSPECTOR,))
        raw = listener(tcp_chain(), name="raw", traffic_direction="INBOUND")
        async with plane(tmp_path, [quiet, raw], [cluster(up.address)]) as proxy:
            data_plane = proxy.data_plane
            assert data_plane.connections(10) == (0, [])
            first = await proxy.connect(b"x", name="raw")
            server = await up.accept()
            second = await proxy.connect(name="quiet")
            await until(lambda: data_plane.connections(10)[0] == 2)
            _, (older, younger) = data_plane.connections(10)
            assert older.pop("age") >= younger.pop("age") >= 0
            host, port = first.sock.getsockname()
            assert older == {
                "listener": "raw", "direction": "INBOUND", "peer": f"{host}:{port}", "local": proxy.address("raw").text,
                "requests": 0, "active": 1}
            assert (younger["listener"], younger["direction"], younger["active"]) == ("quiet", "UNSPECIFIED", 0)
            total, rows = data_plane.connections(1)
            assert (total, [row["listener"] for row in rows]) == (2, ["raw"])
            for client in (first, second, server):
                client.close()
            await until(lambda: data_plane.connections(10)[0] == 0)
        up.close()

    run(scene())
