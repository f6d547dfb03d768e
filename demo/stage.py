"""Where the demo plays: pods with captured traffic, or (without root) plain listeners on loopback."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from demo import access_log, mesh
from demo.processes import DemoError, Process, Processes, end_sessions, must, wait_until

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = Path(sys.executable).parent
FOLDER_PREFIX = "pysidecar-demo-"
SLOW_SECONDS = 0.5
TERMINATION_DRAIN_SECONDS = 4
REVIEWS = {"reviews-v1": "10.10.0.41", "reviews-v2": "10.10.0.42", "reviews-v3": "10.10.0.43"}
SLOW = "reviews-v2"
PRODUCTPAGE = "10.10.0.10"
DETAILS = "10.10.0.20"
REDIS = "10.10.0.61"
UNKNOWN = "198.51.100.7"
CLUSTER_IPS = {"reviews": "10.96.0.13", "details": "10.96.0.11", "redis": "10.96.0.15", "unknown.example": UNKNOWN}
IPTABLES = ["istio-iptables", "-p", "15001", "-z", "15006", "-u", "1337", "-m", "REDIRECT", "-i", "*", "-b", "*"]
IPTABLES += ["-d", "15090,15021,15020"]


@dataclass(frozen=True)
class Target:
    """What curl is given to reach a service: its URL without a path, and options that resolve the name."""

    url: str
    options: tuple[str, ...] = ()


class Stage:
    """Common to both: the sidecar, a folder with its files, processes that are ended on `close`."""

    captured: bool
    reviews: Target
    details: Target
    inbound: Target
    redis: tuple[str, int]

    def __init__(self, proxy: str | None) -> None:
        self._proxy = proxy
        self.folder = Path(tempfile.mkdtemp(prefix=f"{FOLDER_PREFIX}{os.getpid()}-", dir="/tmp"))
        self.folder.chmod(0o755)
        self.processes = Processes(self.folder)
        self._sidecars = 0
        self.namespaces: list[str] = []
        self.status_port = 15020
        self.ready_url = "http://127.0.0.1:15021/healthz/ready"
        self.admin = "127.0.0.1:15000"

    # How commands run; pods override.

    def as_application(self, command: Sequence[str]) -> list[str]:
        return list(command)

    def as_outsider(self, command: Sequence[str]) -> list[str]:
        return list(command)

    def as_sidecar(self, command: Sequence[str]) -> list[str]:
        return list(command)

    sidecar_uid: int | None = None

    def configuration(self) -> dict[str, Any]:
        """The proxy's configuration."""
        raise NotImplementedError

    def open(self) -> None:
        """Start everything; the sidecar is ready afterwards."""
        raise NotImplementedError

    def serve(self, name: str, *options: str, within: Callable[[Sequence[str]], list[str]]) -> None:
        """Start one server program."""
        command = within([sys.executable, "-m", "demo.server", name, *options])
        self.processes.start(name, command, cwd=ROOT).wait_for_text("ready")

    def start_sidecar(self) -> None:
        """`pilot-agent proxy sidecar` with the configuration file, until `pilot-agent wait` says it is ready."""
        config = self.folder / "sidecar.json"
        config.write_text(json.dumps(self.configuration(), indent=1), encoding="utf-8")
        config.chmod(0o644)
        home = self.folder / "home"
        home.mkdir(exist_ok=True)
        if self.sidecar_uid is not None:
            os.chown(home, self.sidecar_uid, self.sidecar_uid)
        proxy_config: dict[str, Any] = {
            "customConfigFile": str(config),
            "concurrency": 2,
            "terminationDrainDuration": f"{TERMINATION_DRAIN_SECONDS}s",
            "statusPort": self.status_port,
            "proxyAdminPort": int(self.admin.rpartition(":")[2]),
            "binaryPath": self._proxy or str(SCRIPTS / "pysidecar-proxy"),
        }
        environment = {
            "PATH": f"{SCRIPTS}:{os.environ.get('PATH', os.defpath)}",
            "HOME": str(home),
            "POD_NAME": "productpage-v1",
            "POD_NAMESPACE": "bookinfo",
            "INSTANCE_IP": PRODUCTPAGE,
            "PROXY_CONFIG": json.dumps(proxy_config),
        }
        self._sidecars += 1
        command = self.as_sidecar([str(SCRIPTS / "pilot-agent"), "proxy", "sidecar"])
        self.sidecar = self.processes.start(
            f"sidecar{self._sidecars}", command, environment=environment, cwd=home, owner=self.sidecar_uid
        )
        command = [str(SCRIPTS / "pilot-agent"), "wait", "--timeoutSeconds", "20", "--periodMillis", "100"]
        waiting = self.processes.start(f"wait{self._sidecars}", self.as_sidecar([*command, "--url", self.ready_url]))
        wait_until(lambda: any_ended(waiting, self.sidecar), seconds=30, what="pilot-agent wait")
        if waiting.popen.poll() != 0:
            raise DemoError(f"the sidecar did not become ready:\n{waiting.tail()}\nIts output:\n{self.sidecar.tail()}")

    def log_lines(self, wanted: Callable[[access_log.Line], bool], count: int = 1) -> list[access_log.Line]:
        """The access-log lines that satisfy `wanted`, once there are `count` (they are written in batches)."""
        found: list[access_log.Line] = []

        def there() -> bool:
            found[:] = [line for line in access_log.parse(self.sidecar.text()) if wanted(line)]
            return len(found) >= count

        with contextlib.suppress(DemoError):  # too few lines are the caller's to judge
            wait_until(there, seconds=5, what="access log")
        return found

    def load(self, name: str, url: str, *options: str, outside: bool = False) -> Process:
        """Clients that keep asking until their stdin is closed (demo/load.py); they have begun on return."""
        wrap = self.as_outsider if outside else self.as_application
        command = wrap([sys.executable, "-m", "demo.load", url, *options])
        process = self.processes.start(name, command, cwd=ROOT, stdin=-1)
        process.wait_for_text("started")
        return process

    def close(self) -> None:
        """End all processes and remove all that was made."""
        self.processes.stop_all()
        mesh.remove(self.namespaces)
        shutil.rmtree(self.folder, ignore_errors=True)

    def left_over(self) -> list[str]:
        """What `close` did not remove."""
        running = [f"process {p.name}" for p in self.processes.started if p.popen.poll() is None]
        return running + mesh.left_over(self.namespaces) + ([str(self.folder)] if self.folder.exists() else [])

    def leave(self) -> None:
        """Leave all running; `stop_kept` ends it."""
        sessions = [process.popen.pid for process in self.processes.started if process.popen.poll() is None]
        state = {"sessions": {str(pid): start_time(pid) for pid in sessions}, "namespaces": self.namespaces}
        (self.folder / "state.json").write_text(json.dumps(state), encoding="utf-8")

    def enter_hint(self) -> list[str]:
        """How a user gets in, where the demo was left running."""
        raise NotImplementedError


class PodStage(Stage):
    """Namespaces, kernel rules, the sidecar as uid 1337 and the application as uid 1000."""

    captured = True
    reviews = Target("http://reviews:9080")
    details = Target("http://details:9080")
    inbound = Target(f"http://{PRODUCTPAGE}:9080")
    unknown = Target("http://unknown.example:8088")
    redis = (CLUSTER_IPS["redis"], 6379)
    sidecar_uid = mesh.PROXY_UID

    def as_application(self, command: Sequence[str]) -> list[str]:
        return self.pod.command(command, uid=mesh.APPLICATION_UID)

    def as_outsider(self, command: Sequence[str]) -> list[str]:
        return self.mesh.outside.command(command, uid=mesh.APPLICATION_UID)

    def as_sidecar(self, command: Sequence[str]) -> list[str]:
        return self.pod.command(command, uid=mesh.PROXY_UID)

    def configuration(self) -> dict[str, Any]:
        """examples/sidecar.json and one route before the others: /spread over all three endpoints of reviews."""
        document: dict[str, Any] = json.loads((ROOT / "examples/sidecar.json").read_text(encoding="utf-8"))
        listener = next(x for x in document["static_resources"]["listeners"] if x["name"] == "0.0.0.0_9080")
        manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
        hosts = manager["route_config"]["virtual_hosts"]
        reviews = next(host for host in hosts if host["name"].startswith("reviews."))
        cluster = "outbound|9080||reviews.bookinfo.svc.cluster.local"
        spread = {"name": "spread", "match": {"prefix": "/spread"}, "route": {"cluster": cluster, "timeout": "0s"}}
        reviews["routes"].insert(0, spread)
        return document

    def open(self) -> None:
        label = str(os.getpid())
        self.mesh = mesh.Mesh(label, (DETAILS, REDIS, UNKNOWN), CLUSTER_IPS, self.namespaces)
        self.pod = self.mesh.add_pod("productpage", PRODUCTPAGE)
        for name, address in REVIEWS.items():
            pod = self.mesh.add_pod(name, address)
            delay = ("--delay", str(SLOW_SECONDS)) if name == SLOW else ()
            self.serve(name, "--http", f"{address}:9080", *delay, within=self._as_user_of(pod))
        self.serve("redis-0", "--tcp", f"{REDIS}:6379", within=self.as_outsider)
        self.serve("unknown", "--http", f"{UNKNOWN}:8088", within=self.as_outsider)
        self.serve("productpage", "--http", "0.0.0.0:9080", within=self.as_application)
        must(self.pod.command([str(SCRIPTS / IPTABLES[0]), *IPTABLES[1:]]))
        self.start_sidecar()

    @staticmethod
    def _as_user_of(pod: mesh.Pod) -> Callable[[Sequence[str]], list[str]]:
        return lambda command: pod.command(command, uid=mesh.APPLICATION_UID)

    def rules(self) -> list[str]:
        """The rules of the nat table, as the kernel has them."""
        return must(self.pod.command(["iptables", "-t", "nat", "-S"])).splitlines()

    def enter_hint(self) -> list[str]:
        return [
            "Enter the pod (as root), as the application:",
            f"  ip netns exec {self.pod.namespace} setpriv --reuid=1000 --regid=1000 --clear-groups sh",
            "in there:",
            "  curl http://reviews:9080/reviews/0                    through the sidecar",
            f"  curl http://{self.admin}/clusters                 the proxy's admin port",
            f"the world outside:  ip netns exec {self.mesh.outside.namespace} curl {self.inbound.url}/headers",
        ]


class LoopbackStage(Stage):
    """examples/loopback.yaml with free ports in place of its own; nothing is captured."""

    captured = False

    def __init__(self, proxy: str | None) -> None:
        super().__init__(proxy)
        text = (ROOT / "examples/loopback.yaml").read_text(encoding="utf-8")
        self._document: dict[str, Any] = yaml.safe_load(text)
        self._ports = free_ports(sorted({15020, *ports_of(self._document)}))
        port = self._ports
        self.status_port = port[15020]
        self.ready_url = f"http://127.0.0.1:{port[15021]}/healthz/ready"
        self.admin = f"127.0.0.1:{port[15000]}"
        self.reviews = self._target("reviews", port[19080])
        self.details = self._target("details", port[19080])
        self.inbound = Target(f"http://127.0.0.1:{port[19010]}")
        self.redis = ("127.0.0.1", port[16379])

    @staticmethod
    def _target(name: str, port: int) -> Target:
        return Target(f"http://{name}:{port}", ("--resolve", f"{name}:{port}:127.0.0.1"))

    def configuration(self) -> dict[str, Any]:
        document: dict[str, Any] = replace_ports(self._document, self._ports)
        return document

    def open(self) -> None:
        for name, port in zip(REVIEWS, (9041, 9042, 9043), strict=True):
            delay = ("--delay", str(SLOW_SECONDS)) if name == SLOW else ()
            self.serve(name, "--http", f"127.0.0.1:{self._ports[port]}", *delay, within=list)
        self.serve("redis-0", "--tcp", f"127.0.0.1:{self._ports[6379]}", within=list)
        self.serve("productpage", "--http", f"127.0.0.1:{self._ports[9010]}", within=list)
        self.start_sidecar()

    def load(self, name: str, url: str, *options: str, outside: bool = False) -> Process:
        return super().load(name, url.replace("//reviews:", "//127.0.0.1:"), *options, outside=outside)

    def enter_hint(self) -> list[str]:
        return [
            f"curl {' '.join(self.reviews.options)} {self.reviews.url}/reviews/0      through the sidecar",
            f"curl http://{self.admin}/clusters      the proxy's admin port",
        ]


def any_ended(*processes: Process) -> bool:
    return any(process.popen.poll() is not None for process in processes)


def ports_of(node: Any) -> set[int]:
    """All port_value numbers of a configuration."""
    if isinstance(node, dict):
        own = {node["port_value"]} if isinstance(node.get("port_value"), int) else set()
        return own.union(*(ports_of(value) for value in node.values())) - {0}
    return set().union(*(ports_of(item) for item in node)) if isinstance(node, list) else set()


def replace_ports(node: Any, ports: dict[int, int]) -> Any:
    """A copy with other port_value numbers."""
    if isinstance(node, dict):
        return {
            key: ports[value] if key == "port_value" and value in ports else replace_ports(value, ports)
            for key, value in node.items()
        }
    return [replace_ports(item, ports) for item in node] if isinstance(node, list) else node


def free_ports(wanted: Sequence[int]) -> dict[int, int]:
    """A free port of the machine for each number."""
    with contextlib.ExitStack() as stack:
        found = {}
        for number in wanted:
            probe = stack.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            found[number] = probe.getsockname()[1]
        return found


def start_time(pid: int) -> str:
    """The start time of a process in clock ticks since boot: with the pid it names one process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def stop_kept(pid: str) -> int:
    """End the demos of this user that were left running, or the one that process `pid` was; returns how many."""
    stopped = 0
    for folder in Path("/tmp").glob(f"{FOLDER_PREFIX}{pid or '*'}-*"):
        state_file = folder / "state.json"
        if folder.is_symlink() or folder.stat().st_uid != os.geteuid() or not state_file.is_file():
            continue
        state = json.loads(state_file.read_text(encoding="utf-8"))
        end_sessions([int(pid) for pid, began in state["sessions"].items() if start_time(int(pid)) == began])
        mesh.remove(state["namespaces"])
        shutil.rmtree(folder)
        stopped += 1
    return stopped
