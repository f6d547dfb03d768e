"""The whole status server on a loopback port: probes, metrics and a flood of readiness probes at the same time."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import subprocess
import sys
import time
from typing import Any

import pytest

from agent.errors import AgentError, ConfigError
from agent.status.options import StatusOptions
from agent.status.readiness import Readiness
from agent.status.server import Hooks, StatusServer
from tests.unit.agent.status_tools import LIVE, Called, FakeAdmin, Sources, promtool, says, statuses

PROXY = "# TYPE envoy_x counter\nenvoy_x 1\n# TYPE x gauge\nx 1\n" + "".join(f'y{{n="{n}"}} 1\n' for n in range(200))
APP = "# TYPE x gauge\nx 2\n# TYPE app_total counter\napp_total 2\n"


def make(ports: list[int], admin: FakeAdmin, hooks: Hooks | None = None, **more: Any) -> StatusServer:
    probers = {"/app-health/app/livez": {"httpGet": {"port": ports[1], "path": "/live"}, "timeoutSeconds": 5}}
    options = StatusOptions(
        0,
        instance_ip="127.0.0.1",
        app_probers=json.dumps(probers),
        prometheus_annotations=json.dumps({"scrape": "true", "port": str(ports[1])}),
        prometheus_port=ports[0],
        **more,
    )
    return StatusServer(options, Readiness(admin, (), time.monotonic()), hooks or Called().hooks())


async def ask(port: int, path: str, *headers: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
    writer.write(
        "\r\n".join([f"{method} {path} HTTP/1.1", f"host: 127.0.0.1:{port}", *headers, "connection: close"]).encode()
    )
    writer.write(b"\r\n\r\n")
    data = await reader.read()
    writer.close()
    head, _, body = data.partition(b"\r\n\r\n")
    fields = dict(line.lower().split(": ", 1) for line in head.decode().split("\r\n")[1:])
    return statuses(head)[0], fields, body


def test_all_of_it_at_once() -> None:
    async def run() -> None:
        admin, calls = FakeAdmin(LIVE), Called()
        async with Sources(says(PROXY), says(APP)) as sources, asyncio.timeout(60):
            server = make(sources.ports, admin, calls.hooks())
            await server.start()
            status, fields, body = await ask(server.port, "/stats/prometheus?usedonly", "accept-encoding: gzip")
            assert (status, fields["content-encoding"]) == (200, "gzip")
            assert fields["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
            page = gzip.decompress(body).decode()
            assert promtool(page)[0] != 1
            assert page.count("# TYPE x gauge\nx 1\n") == 1 and "app_total 2" in page
            assert "istio_agent_startup_duration_seconds" not in page  # not ready yet: nobody has asked
            assert (await ask(server.port, "/healthz/ready"))[::2] == (200, b"")
            assert b"\nistio_agent_startup_duration_seconds " in (await ask(server.port, "/metrics"))[2]
            assert (await ask(server.port, "/app-health/app/livez"))[0] == 200
            assert f"host: 127.0.0.1:{sources.ports[1]}\r\n" in sources.heads[1][-1]
            assert (await ask(server.port, "/app-health/app/readyz"))[0] == 400
            assert (await ask(server.port, "/drain", method="POST"))[::2] == (200, b"OK")
            status, fields, _ = await ask(server.port, "/drain")
            assert (status, fields["allow"]) == (405, "post")
            assert (await ask(server.port, "/quitquitquit", method="POST"))[0] == 200
            assert calls.names == ["drain", "quit"]
            port = server.port
            await server.close()
            with pytest.raises(ConnectionRefusedError):
                await ask(port, "/healthz/ready")

    asyncio.run(run())


@pytest.mark.parametrize("ready", [True, False])
def test_a_thousand_probes_ask_the_proxy_next_to_nothing(ready: bool) -> None:
    """Before it is ready the admin port is asked once in KEPT_S (here the clock stands still), afterwards never."""

    async def run() -> None:
        admin = FakeAdmin(LIVE if ready else {**LIVE, "server.state": 3})
        checks = Readiness(admin, (), 0, now=lambda: 1.0)
        server = StatusServer(StatusOptions(0), checks, Called().hooks())
        await server.start()

        async def probe_often() -> list[int]:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(b"GET /healthz/ready HTTP/1.1\r\nhost: x\r\n\r\n" * 100)
            writer.write_eof()
            data = await reader.read()
            writer.close()
            return statuses(data)

        async with asyncio.timeout(60):
            answers = await asyncio.gather(*(probe_often() for _ in range(10)))
        assert [status for each in answers for status in each] == [200 if ready else 503] * 1000
        assert len(admin.asked) == 1
        await server.close()

    asyncio.run(run())


def test_sidecars_only_have_an_application() -> None:
    async def run() -> bytes:
        async with Sources(says(PROXY), says(APP)) as sources, asyncio.timeout(60):
            server = make(sources.ports, FakeAdmin(LIVE), node_type="router")
            await server.start()
            page = (await ask(server.port, "/stats/prometheus"))[2]
            await server.close()
            return page

    page = asyncio.run(run())
    assert b"envoy_x 1" in page and b"app_total" not in page


def test_without_the_proxys_statistics() -> None:
    async def run() -> bytes:
        async with Sources(says(PROXY), says(APP)) as sources, asyncio.timeout(60):
            server = make(sources.ports, FakeAdmin(LIVE), merge_proxy_stats=False)
            await server.start()
            page = (await ask(server.port, "/stats/prometheus"))[2]
            await server.close()
            assert not sources.heads[0]
            return page

    page = asyncio.run(run())
    assert b"envoy_x" not in page and b"app_total 2" in page


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"app_probers": "{"}, "ISTIO_KUBE_APP_PROBERS is not JSON"),
        ({"prometheus_annotations": '{"port": "15020"}'}, "15020 is a port of the proxy itself"),
    ],
)
def test_bad_configuration_is_refused_before_anything_listens(more: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        StatusServer(StatusOptions(15020, **more), Readiness(FakeAdmin({}), (), 0), Called().hooks())


def test_what_is_imported_before_it_is_needed() -> None:
    """ssl comes with asyncio; what only some pods need must not cost the others memory."""
    rare = ("h2", "prometheus_client", "yaml", "proxy")
    code = f"import sys, agent.status.server; print([name for name in {rare} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_port_can_be_had_again_at_once() -> None:
    async def run() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        for _ in range(2):
            server = StatusServer(StatusOptions(port), Readiness(FakeAdmin(LIVE), (), 0), Called().hooks())
            await server.start()
            assert (await ask(port, "/healthz/ready"))[0] == 200
            other = StatusServer(StatusOptions(port), Readiness(FakeAdmin(LIVE), (), 0), Called().hooks())
            with pytest.raises(AgentError, match="statusPort"):
                await other.start()
            await other.close()
            await server.close()

    asyncio.run(run())
