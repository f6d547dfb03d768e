"""A pod whose DNS is captured, and outside it a resolver (dnsmasq) and a service.

In the pod: the real rules of `istio-iptables --redirect-dns`, the agent and our proxy as uid 1337, and resolv.conf as
Kubernetes writes it.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.mesh_pod import CAPTURE, proxy_config

from .netns import DEADLINE, REPOSITORY, Namespace, require, require_python

POD, OUTSIDE = "10.9.9.9", "10.9.9.1"
POD6, OUTSIDE6 = "fd00:9::9", "fd00:9::1"
PROXY_UID, APP_UID = 1337, 1000
SHOP, SHOP_PORT = "240.240.0.7", 80
"""An auto-allocated address: nothing routes there but the proxy."""
BIG = [f"10.7.{n}.1" for n in range(60)]
"""More addresses than 512 bytes hold."""
SEARCH = ("bookinfo.svc.cluster.local", "svc.cluster.local", "cluster.local")


def names(**hosts: list[str]) -> dict[str, Any]:
    """A name table: Kubernetes services of `bookinfo` by their short names, everything with a dot as external."""
    table: dict[str, Any] = {}
    for host, ips in hosts.items():
        if "." in host:
            table[host] = {"ips": ips, "registry": "External"}
        else:
            full = f"{host}.bookinfo.svc.cluster.local"
            table[full] = {"ips": ips, "registry": "Kubernetes", "shortname": host, "namespace": "bookinfo"}
    return {"table": table}


TABLE = names(
    **{
        "reviews": ["10.96.0.13"],
        "dual": ["10.96.0.20", "fd00:96::20"],
        "pair": ["10.96.0.21", "10.96.0.22"],
        "shop.example": [SHOP],
        "*.wild.example": ["240.240.0.8"],
    }
)


@dataclass
class DnsWorld:
    """`outside` has the resolver at both its addresses; its log tells who asked it for what."""

    pod: Namespace
    outside: Namespace
    folder: Path
    resolver_log: Path

    def app(self, *command: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run as the application."""
        return self.pod.run(command, uid=APP_UID, stdin=stdin, timeout=30)

    def dig(self, *arguments: str, uid: int = APP_UID) -> list[str]:
        """The lines of `dig +short` to the resolver of resolv.conf."""
        done = self.pod.run(["dig", "+short", "+tries=1", "+time=5", *arguments], uid=uid, timeout=30)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.splitlines()

    def get(self, port: int, path: str) -> str:
        """A page of the pod's agent or proxy."""
        return self.pod.run(["curl", "-s", "--max-time", "5", f"http://127.0.0.1:{port}{path}"]).stdout

    def is_ready(self) -> bool:
        """The answer to the kubelet's probe is 200."""
        return self.pod.run(["curl", "-sf", "--max-time", "5", "http://127.0.0.1:15021/healthz/ready"]).returncode == 0

    def is_serving(self) -> bool:
        """The proxy's workers have started."""
        return self.get(15000, "/ready") == "LIVE\n"

    @property
    def log(self) -> str:
        """What agent and proxy have written."""
        return (self.folder / "agent.log").read_text()

    def eventually(self, what: str, condition: Callable[[], object]) -> None:
        """Return once it holds."""
        deadline = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < deadline, f"never happened: {what}"

    def workers(self) -> list[int]:
        """Processes of the proxy's workers: those whose parent is a proxy too."""
        done = subprocess.run(["ip", "netns", "pids", self.pod.name], capture_output=True, text=True, check=True)
        parents = {}
        for pid in map(int, done.stdout.split()):
            with contextlib.suppress(OSError):
                if b"\0-m\0proxy\0" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    parents[pid] = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        return [pid for pid, parent in parents.items() if parent in parents]

    def asked(self, name: str) -> int:
        """How often the resolver was asked for a name."""
        return self.resolver_log.read_text().count(f"] {name} from ")

    def write_table(self, table: dict[str, Any]) -> None:
        """Replace the name table, whole or not at all."""
        new = self.folder / "new.json"
        new.write_text(json.dumps(table))
        new.rename(self.folder / "name-table.json")


def _configuration() -> dict[str, Any]:
    """`tests/e2e/mesh_pod.py`'s, and the listener that istiod makes for an external service with such an address."""
    config = proxy_config()
    kind = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"
    tcp = {"@type": kind, "stat_prefix": "shop", "cluster": "shop"}
    config["static_resources"]["listeners"].append({
        "name": f"{SHOP}_{SHOP_PORT}", "bind_to_port": False, "traffic_direction": "OUTBOUND",
        "address": {"socket_address": {"address": SHOP, "port_value": SHOP_PORT}},
        "filter_chains": [{"filters": [{"name": "tcp", "typed_config": tcp}]}],
    })  # fmt: skip
    endpoint = {"endpoint": {"address": {"socket_address": {"address": OUTSIDE, "port_value": 8000}}}}
    config["static_resources"]["clusters"].append({
        "name": "shop", "type": "STATIC", "connect_timeout": "2s",
        "load_assignment": {"cluster_name": "shop", "endpoints": [{"lb_endpoints": [endpoint]}]},
    })  # fmt: skip
    return config


def _resolver(outside: Namespace, log: Path) -> None:
    records = [
        f"--host-record=outside.test,{OUTSIDE},{OUTSIDE6}", "--host-record=short.test,10.7.7.7,5",
        *(f"--host-record=big.test,{address}" for address in BIG),
        "--txt-record=outside.test,hello", "--local=/cluster.local/test/example/",
    ]  # fmt: skip
    outside.start([
        "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--user=root",
        "--bind-interfaces", f"--listen-address={OUTSIDE},{OUTSIDE6}", "--log-queries", f"--log-facility={log}",
        "--pid-file=", "--local-ttl=60", *records,
    ])  # fmt: skip


@contextlib.contextmanager
def dns_world(
    *capture: str,
    resolvers: tuple[str, ...] = (OUTSIDE,),
    table: dict[str, Any] | None = TABLE,
    uid: int = PROXY_UID,
    **environment: str,
) -> Iterator[DnsWorld]:
    """`capture`: more flags of istio-iptables; `uid` and `environment`: of the agent.

    The sidecar is ready when the block begins if there is a `table`.
    """
    require()
    require_python(PROXY_UID)
    for program in ("dnsmasq", "dig", "curl"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    with tempfile.TemporaryDirectory(prefix="pysidecar-test-", dir="/tmp") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        folder.chmod(0o755)
        pod, outside = stack.enter_context(Namespace()), stack.enter_context(Namespace())
        pod.connect(outside, "eth0", [f"{POD}/24", f"{POD6}/64"], [f"{OUTSIDE}/24", f"{OUTSIDE6}/64"])
        pod.ip("route", "add", "default", "via", OUTSIDE)
        servers = "".join(f"nameserver {address}\n" for address in resolvers)
        pod.resolv_conf(f"search {' '.join(SEARCH)}\n{servers}options ndots:5\n")
        _resolver(outside, folder / "resolver.log")
        outside.start([sys.executable, "-m", "http.server", "--bind", OUTSIDE, "--directory", str(folder), "8000"])
        done = pod.python("-m", "init", *CAPTURE, "--redirect-dns", *capture)
        assert done.returncode == 0, done.stderr
        world = DnsWorld(pod, outside, folder, folder / "resolver.log")
        if table is not None:
            world.write_table(table)
        (folder / "envoy.json").write_text(json.dumps(_configuration()))
        (folder / "page").write_text("the page of the shop\n")
        log = folder / "agent.log"
        log.touch()
        log.chmod(0o666)
        agent = pod.start(
            ["sh", "-c", 'exec "$@" >"$0" 2>&1', str(log), sys.executable, "-m", "agent", "proxy", "sidecar"],
            uid=uid,
            env={
                "PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1",
                "POD_NAME": "app-1", "POD_NAMESPACE": "bookinfo", "INSTANCE_IP": POD,
                "ISTIO_META_DNS_CAPTURE": "true", "DNS_NAME_TABLE": str(folder / "name-table.json"),
                "PROXY_CONFIG": json.dumps({"customConfigFile": str(folder / "envoy.json"), "concurrency": 2}),
                **environment,
            },
        )  # fmt: skip
        try:
            started = world.is_ready if table is not None else world.is_serving
            world.eventually("the sidecar has started", lambda: started() or agent.poll() is not None)
            assert agent.poll() is None, "the agent has ended"
            yield world
        except BaseException:
            print(world.log[-20_000:])
            raise
