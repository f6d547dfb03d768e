"""The DNS servers that are compared, each with the same names: how they are configured and started."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.machine import find_program
from bench.process import Child, wait_ready
from proxy.dns.message import CLASS_IN, HEADER, A, name_to_wire

CHECKOUT = Path(__file__).resolve().parent.parent
OURS, DNSMASQ, UNBOUND = "ours", "dnsmasq", "unbound"
SUBJECTS = (OURS, DNSMASQ, UNBOUND)
UPSTREAM = "127.0.0.77"
"""Where the server of all other names listens, on port 53: resolv.conf knows no other."""
UPSTREAM_NAMES = 1000
UPSTREAM_TTL = 3600
TTL = 30
"""Seconds, of the known names; as in a mesh."""
ANSWER_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Name:
    """A name with its address."""

    name: str
    address: str


def known_names(count: int) -> list[Name]:
    """Services of a cluster, at most 65,536."""
    return [Name(f"svc{n}.ns{n % 10}.svc.cluster.local", f"10.96.{n >> 8}.{n & 255}") for n in range(count)]


def upstream_names() -> list[Name]:
    return [Name(f"host{n}.example.com", f"10.97.{n >> 8}.{n & 255}") for n in range(UPSTREAM_NAMES)]


def query_file(folder: Path, label: str, names: Sequence[Name]) -> Path:
    """dnsperf's input: every name once, in an order that is not the table's."""
    path = folder / f"queries-{label}"
    step = 7919  # a prime, so that every name has its turn
    path.write_text("".join(f"{names[at * step % len(names)].name} A\n" for at in range(len(names))), encoding="ascii")
    return path


def hosts_file(folder: Path, label: str, names: Sequence[Name]) -> Path:
    """As dnsmasq's --addn-hosts takes it."""
    path = folder / f"hosts-{label}"
    path.write_text("".join(f"{one.address} {one.name}\n" for one in names), encoding="ascii")
    return path


def name_table(folder: Path, names: Sequence[Name]) -> Path:
    """As istiod sends it."""
    table = {}
    for one in names:
        short, namespace = one.name.split(".")[:2]
        table[one.name] = {"ips": [one.address], "registry": "Kubernetes", "shortname": short, "namespace": namespace}
    path = folder / "table.json"
    path.write_text(json.dumps({"table": table}), encoding="ascii")
    return path


def dnsmasq(hosts: Path, address: str, port: int, ttl: int, *more: str) -> list[str]:
    """A dnsmasq that reads no file of this machine."""
    return [str(find_program(DNSMASQ)), "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts",
            "--no-poll", "--user=root", "--pid-file=", f"--addn-hosts={hosts}", f"--local-ttl={ttl}",
            f"--listen-address={address}", "--bind-interfaces", f"--port={port}", *more]


def unbound_config(folder: Path, port: int, names: Sequence[Name]) -> Path:
    """One thread, the names as local data, the rest forwarded."""
    path = folder / "unbound.conf"
    data = "".join(f'  local-data: "{one.name}. {TTL} A {one.address}"\n' for one in names)
    path.write_text(f"""\
server:
  directory: "{folder}"
  chroot: ""
  username: ""
  pidfile: ""
  interface: 127.0.0.1
  port: {port}
  num-threads: 1
  do-daemonize: no
  do-not-query-localhost: no
  use-syslog: no
  module-config: "iterator"
  access-control: 127.0.0.0/8 allow
  local-zone: "svc.cluster.local." static
{data}
forward-zone:
  name: "."
  forward-addr: {UPSTREAM}
""", encoding="ascii")
    return path


def start_upstream(folder: Path, core: int) -> Child:
    """The server of the names that nobody knows yet."""
    hosts = hosts_file(folder, "upstream", upstream_names())
    child = Child("upstream", dnsmasq(hosts, UPSTREAM, 53, UPSTREAM_TTL), core=core, output=folder / "upstream")
    return ready(child, UPSTREAM, 53, upstream_names()[0])


def start(subject: str, folder: Path, core: int, port: int, names: Sequence[Name],
          prefix: Sequence[str] = ()) -> Child:
    """A server that knows the names and asks UPSTREAM for others; ``prefix`` goes before its command.

    Raises ProcessError.
    """
    folder = folder / subject
    folder.mkdir()
    environment = None
    if subject == OURS:
        (folder / "resolv.conf").write_text(f"nameserver {UPSTREAM}\n", encoding="ascii")
        (folder / "proxy.yaml").write_text("node: {id: bench, cluster: bench}\n", encoding="ascii")
        command = [sys.executable, "-m", "proxy", "-c", str(folder / "proxy.yaml"), "--concurrency", "1",
                   "--dns-listen", f"127.0.0.1:{port}", "--dns-name-table", str(name_table(folder, names)),
                   "--dns-domain", "ns1.svc.cluster.local", "--dns-resolv-conf", str(folder / "resolv.conf")]
        environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    elif subject == DNSMASQ:
        command = dnsmasq(hosts_file(folder, "known", names), "127.0.0.1", port, TTL, f"--server={UPSTREAM}",
                          "--cache-size=10000", "--dns-forward-max=1000")
    else:
        command = [str(find_program(UNBOUND)), "-d", "-p", "-c", str(unbound_config(folder, port, names))]
    child = Child(subject, [*prefix, *command], core=core, output=folder / "output", environment=environment)
    return ready(child, "127.0.0.1", port, *names[::max(1, len(names) // 10)], *upstream_names())


def ready(child: Child, address: str, port: int, *names: Name) -> Child:
    """Once it has answered for all these names as it should; raises ProcessError."""
    try:
        wait_ready(child, lambda: complaint(address, port, names))
    except BaseException:
        child.stop()
        raise
    return child


def complaint(address: str, port: int, names: Sequence[Name]) -> str:
    """What is wrong with a server's answers, "" when nothing is. Raises OSError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(ANSWER_SECONDS)
        sock.connect((address, port))
        for number, one in enumerate(names, 1):
            question = name_to_wire(one.name) + A.to_bytes(2, "big") + CLASS_IN.to_bytes(2, "big")
            sock.send(HEADER.pack(number, 0x0100, 1, 0, 0, 0) + question)
            reply = sock.recv(4096)
            if reply[:2] != number.to_bytes(2, "big") or reply[3] & 15 or not reply.endswith(
                    socket.inet_aton(one.address)):
                return f"{one.name}: expected {one.address}, got {reply[2:].hex()}"
    return ""
