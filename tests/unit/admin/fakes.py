"""A main process for tests of the admin interface: everything that it would say, and a note of what it was told."""

from __future__ import annotations

import asyncio
import http.client
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from envoy.config.bootstrap.v3.bootstrap_pb2 import Bootstrap
from envoys import Reply
from google.protobuf.json_format import ParseDict

from proxy.admin.server import AdminServer
from proxy.config import model
from proxy.config.messages import find_descriptor, type_name
from proxy.config.reader import Scope, compile_message
from proxy.config.runtime import layered_runtime
from proxy.options import Options
from proxy.runtime.control import RuntimeControl
from proxy.stats.groups import Snapshot
from proxy.stats.histogram import HistogramStore

PATIENCE = 10.0
HOST_STATS = ("cx_active", "cx_connect_fail", "cx_total", "rq_active", "rq_error", "rq_pending_active", "rq_success",
              "rq_timeout", "rq_total")


def addresses(listener: Any) -> tuple[model.SocketAddress, ...]:
    """All addresses of a listener message."""
    found = [listener.address, *(extra.address for extra in listener.additional_addresses)]
    return tuple(model.SocketAddress(a.socket_address.address, a.socket_address.port_value) for a in found)


def import_types(document: Any) -> None:
    """Import the messages that a configuration names."""
    if isinstance(document, dict):
        if "@type" in document:
            assert find_descriptor(type_name(document["@type"]))
        document = list(document.values())
    if isinstance(document, list):
        for item in document:
            import_types(item)


def cluster_status(cluster: Any) -> dict[str, Any]:
    """What the workers tell of a static cluster that has not been used."""
    limits = {0: {"max_connections": 1024, "max_pending_requests": 1024, "max_requests": 1024, "max_retries": 3}}
    limits[1] = dict(limits[0])
    for thresholds in cluster.circuit_breakers.thresholds:
        for name in limits[0]:
            if thresholds.HasField(name):
                limits[thresholds.priority][name] = getattr(thresholds, name).value
    return {
        "name": cluster.name, "observability_name": cluster.alt_stat_name or cluster.name,
        "thresholds": [limits[0], limits[1]],
        "hosts": [{"address": f"{host.endpoint.address.socket_address.address}:"
                              f"{host.endpoint.address.socket_address.port_value}",
                   "hostname": host.endpoint.hostname, "weight": host.load_balancing_weight.value or 1,
                   "region": group.locality.region, "zone": group.locality.zone, "sub_zone": group.locality.sub_zone,
                   "stats": dict.fromkeys(HOST_STATS, 0)}
                  for group in cluster.load_assignment.endpoints for host in group.lb_endpoints]}


class FakeServer:
    """proxy.admin.api.Server."""

    def __init__(self, config: dict[str, Any] | None = None, **stats: Any) -> None:
        config = config or {"node": {"id": "n", "cluster": "c"}}
        import_types(config)
        message = ParseDict(config, Bootstrap())
        self.options = Options(concurrency=2, drain_strategy="gradual", disable_hot_restart=True)
        self.loaded: Any = SimpleNamespace(message=message, warnings=[], bootstrap=model.Bootstrap(
            node=model.Node(message.node.id, message.node.cluster), admin=model.Admin(),
            listeners=tuple(model.Listener(name=listener.name, addresses=addresses(listener), filter_chains=())
                            for listener in message.static_resources.listeners),
            clusters=tuple(model.Cluster(name=cluster.name) for cluster in message.static_resources.clusters),
            stats=model.StatsConfig(**stats), stats_flush_interval=0.02,
            runtime_layers=compile_message(message.layered_runtime, "", Scope(), layered_runtime) or ()))
        self.runtime = RuntimeControl(self.loaded.bootstrap, 2)
        self.late: list[int] = []
        self.holders: dict[str, list[tuple[str, int]]] = {}
        self.loop: Any = None
        self.state = "LIVE"
        self.started_at = time.time()
        self.initialization_time_ms: int | None = 13
        self.workers_started = True
        self.listeners_stopped = 0
        self.worker_restarts = 0
        self.open: list[dict[str, Any]] = []
        self.lines: list[Any] = []
        self.names: Callable[[bytes, int], list[tuple[int, dict[str, Any]]]] | None = None
        self.log_files: Any = SimpleNamespace(logger=lambda config: self.lines.append)
        self.histograms = HistogramStore()
        self.workers = Snapshot()
        self.said: list[Any] = []
        self.stuck: asyncio.Event | None = None

    async def snapshot(self) -> Snapshot:
        if self.stuck is not None:
            await self.stuck.wait()
        copy = Snapshot()
        for name in ("counters", "gauges", "levels", "shared"):
            setattr(copy, name, dict(getattr(self.workers, name)))
        self.runtime.layers.stats.collect(copy, False)
        return copy

    async def clusters(self) -> list[dict[str, Any]]:
        return [cluster_status(cluster) for cluster in self.loaded.message.static_resources.clusters]

    async def connections(self, limit: int) -> tuple[int, list[dict[str, Any]]]:
        return len(self.open), self.open[:limit]

    async def explain_name(self, name: bytes, qtype: int) -> list[tuple[int, dict[str, Any]]] | None:
        return None if self.names is None else self.names(name, qtype)

    async def drain_listeners(self, inbound_only: bool = False, graceful: bool = False,
                              skip_exit: bool = False) -> None:
        self.said.append(("drain", inbound_only, graceful, skip_exit))

    async def set_health_failed(self, failed: bool) -> None:
        self.state = "DRAINING" if failed else "LIVE"

    async def reopen_logs(self) -> None:
        self.said.append("reopen")

    async def set_log_level(self, component: str | None, level: str) -> None:
        self.said.append((component, level))

    async def reset_counters(self) -> None:
        self.workers.counters = dict.fromkeys(self.workers.counters, 0)
        stats = self.runtime.layers.stats
        for name in (name for name, kind in stats.KINDS.items() if kind == "Counter"):
            setattr(stats, name, 0)

    async def limit_clients(self) -> dict[str, list[tuple[str, int]]]:
        return self.holders

    async def modify_runtime(self, overrides: dict[str, str]) -> list[int]:
        async def tell(_: str, message: object) -> list[int]:
            return self.late

        return await self.runtime.change(overrides, tell)

    def quit(self) -> None:
        self.said.append("quit")


class Running:
    """The admin interface of a fake server at work, on a loop in a thread of its own."""

    def __init__(self, server: FakeServer, new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
        self.server = server
        self._loop = server.loop = new_loop()
        self.errors: list[dict[str, Any]] = []
        self._loop.set_exception_handler(lambda _loop, context: self.errors.append(context))
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.admin = AdminServer(server)
        self.address = self.run(self.admin.start(model.SocketAddress("127.0.0.1", 0)))

    def run(self, coro: Any) -> Any:
        """Await something on the loop."""
        return asyncio.run_coroutine_threadsafe(coro, self._loop).result(PATIENCE)

    def request(self, method: str, path: str, body: bytes | None = None,
                headers: dict[str, str] | None = None) -> Reply:
        """One exchange on a connection of its own."""
        connection = http.client.HTTPConnection(*self.address, timeout=PATIENCE)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            text = response.read().decode()
            return Reply(response.status, {name.lower(): value for name, value in response.getheaders()}, text)
        finally:
            connection.close()

    def get(self, path: str) -> Reply:
        """GET."""
        return self.request("GET", path)

    def post(self, path: str) -> Reply:
        """POST."""
        return self.request("POST", path)

    def until(self, condition: Any) -> None:
        """Wait for a condition."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, "condition did not come true"
            time.sleep(0.005)

    def stop(self) -> None:
        """End it; nothing may have gone wrong unseen."""
        self.run(self.admin.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.close()
        assert self.errors == [], self.errors


@contextmanager
def serving(server: FakeServer, new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
            ) -> Iterator[Running]:
    """Serve while the block runs."""
    running = Running(server, new_loop)
    try:
        yield running
    finally:
        running.stop()
