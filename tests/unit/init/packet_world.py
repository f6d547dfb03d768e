"""A pod, packets of it and for it, and how tests write where they go."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any

from init.flags import resolve
from init.packet import Host, Outcome, Packet, Ruleset
from init.recipe import make_plan
from init.rules import Version
from init.settings import Machine, Settings, load

POD = {4: "10.9.9.9", 6: "fd00::9"}
LOOPBACK = {4: "127.0.0.1", 6: "::1"}
HOST = Host([ip_address(text) for text in ("127.0.0.1", "10.9.9.9", "::1", "::6", "fd00::9")])
CAPTURE = ("-u", "1337", "-b", "*", "-i", "*")


def settings(*argv: str, env: Mapping[str, str] | None = None, resolv_conf: str = "", dual: bool = True) -> Settings:
    addresses = [ip_address(POD[4]), *([ip_address(POD[6])] if dual else [])]
    machine = Machine(lambda _: None, lambda _: None, lambda: addresses, lambda: resolv_conf)
    return load(resolve((*argv, *(["--dual-stack"] if dual else [])), env or {}), machine)


def rules_of(made: Settings, version: Version) -> dict[str, Ruleset]:
    return {"recipe": Ruleset.of(make_plan(made).of(version))}


def endpoint(text: str) -> tuple[str, int]:
    address, _, port = text.rpartition(":")
    return address.strip("[]"), int(port)


def outbound(to: str, uid: int = 1000, gid: int | None = None, udp: bool = False, **more: Any) -> Packet:
    """A packet of the pod, with the source that the kernel chooses for its destination."""
    text, port = endpoint(to)
    address = ip_address(text)
    own = POD[address.version]
    source = ip_address(LOOPBACK[address.version]) if address.is_loopback else ip_address(own)
    fields: dict[str, Any] = {"source": source, "source_port": 40000, **more}
    gid = uid if gid is None else gid
    return Packet(
        False, "udp" if udp else "tcp", destination=address, destination_port=port, uid=uid, gid=gid, **fields
    )


def inbound(port: int, to: str = POD[4], interface: str = "eth0", **more: Any) -> Packet:
    source = ip_address("10.1.1.1" if ip_address(to).version == 4 else "fd01::1")
    fields: dict[str, Any] = {"protocol": "tcp", "source": source, "interface": interface, **more}
    return Packet(True, destination=ip_address(to), destination_port=port, **fields)


def said(outcome: Outcome) -> str:
    """`15001`, `app 8080`, `leaves`, `dropped`: as the table of outcomes writes it."""
    if outcome.verdict == "tproxied":
        return f"tproxy {outcome.port} mark {outcome.mark}"
    if outcome.verdict == "redirected":
        return str(outcome.port)
    return f"app {outcome.port}" if outcome.verdict == "delivered" else outcome.verdict
