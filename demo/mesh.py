"""Network namespaces for the demo: pods on one bridge, and what lies outside of them.

The bridge is in a namespace too, so nothing is changed in the network of the machine. Names begin with `pysidecar-`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from demo.processes import must, run

RUN_NETNS = Path("/run/netns")
ETC_NETNS = Path("/etc/netns")
GATEWAY = "10.10.0.1"
APPLICATION_UID = 1000
PROXY_UID = 1337


@dataclass(frozen=True)
class Pod:
    """One namespace with an address on the bridge."""

    namespace: str
    address: str

    def command(self, command: Sequence[str], *, uid: int = 0) -> list[str]:
        """The command line that runs `command` in this pod."""
        user = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"] if uid else []
        return ["ip", "netns", "exec", self.namespace, *user, *command]


@dataclass
class Mesh:
    """The namespaces of one demo. `outside_addresses` live where the bridge is: the rest of the world."""

    label: str
    outside_addresses: Sequence[str] = ()
    hosts: dict[str, str] = field(default_factory=dict)
    """Names that the pods know, in their own /etc/hosts."""
    namespaces: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.outside = Pod(self._create("outside"), GATEWAY)
        addresses = [f"{GATEWAY}/16", *(f"{address}/32" for address in self.outside_addresses)]
        self._ip(self.outside, "link add mesh0 type bridge", *(f"addr add {a} dev mesh0" for a in addresses))
        self._ip(self.outside, "link set mesh0 up")

    def add_pod(self, name: str, address: str) -> Pod:
        """A pod with `address` on the bridge, the bridge as its gateway, and the mesh's names."""
        pod = Pod(self._create(name), address)
        far_end = f"v{len(self.namespaces)}"
        self._ip(
            self.outside,
            f"link add {far_end} type veth peer name eth0 netns {pod.namespace}",
            f"link set {far_end} master mesh0 up",
        )
        self._ip(pod, f"addr add {address}/16 dev eth0", "link set eth0 up", f"route add default via {GATEWAY}")
        return pod

    def _create(self, name: str) -> str:
        namespace = f"pysidecar-{self.label}-{name}"
        self.namespaces.append(namespace)
        # `ip netns exec` shows these files as /etc/hosts and /etc/resolv.conf.
        etc = ETC_NETNS / namespace
        etc.mkdir(parents=True)
        entries = {"localhost": "127.0.0.1", **self.hosts}
        (etc / "hosts").write_text("".join(f"{address} {host}\n" for host, address in entries.items()))
        (etc / "resolv.conf").write_text("nameserver 127.0.0.1\n")
        must(["ip", "netns", "add", namespace])
        self._ip(Pod(namespace, ""), "link set lo up")
        return namespace

    @staticmethod
    def _ip(pod: Pod, *lines: str) -> None:
        must(["ip", "-netns", pod.namespace, "-batch", "-"], text="\n".join(lines) + "\n")


def remove(namespaces: Sequence[str]) -> None:
    """Remove these namespaces, and with them their interfaces and rules. `left_over` tells what did not go."""
    for namespace in namespaces:
        if (RUN_NETNS / namespace).exists():
            run(["ip", "netns", "delete", namespace])
        shutil.rmtree(ETC_NETNS / namespace, ignore_errors=True)
    if ETC_NETNS.is_dir() and not any(ETC_NETNS.iterdir()):
        ETC_NETNS.rmdir()


def left_over(namespaces: Sequence[str]) -> list[str]:
    """What `remove` should have removed and is still there."""
    return [str(path) for name in namespaces for path in (RUN_NETNS / name, ETC_NETNS / name) if path.exists()]


def why_not() -> str | None:
    """Why traffic cannot be captured here; None when it can."""
    if os.geteuid() != 0:
        return "not root"
    for tool in ("ip", "iptables-restore", "setpriv"):
        if shutil.which(tool) is None:
            return f"no command {tool}"
    namespace = f"pysidecar-{os.getpid()}-probe"
    pod = Pod(namespace, "")
    try:
        tests = {
            "no network namespaces": ["ip", "netns", "add", namespace],
            "cannot become uid 1337 in a namespace": pod.command(["true"], uid=PROXY_UID),
            "no nat table in a namespace": pod.command(["iptables", "-t", "nat", "-S"]),
        }
        for reason, command in tests.items():
            done = run(command)
            if done.status:
                return f"{reason} ({done.output.strip()})"
    finally:
        remove([namespace])
    return None
