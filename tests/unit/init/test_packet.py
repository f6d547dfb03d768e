"""Where packets go: the walker through rules of the recipe and through what the real program left in the kernel."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from init.errors import KernelError, SettingsError
from init.flags import resolve
from init.iptables_text import read_rule
from init.packet import Host, Outcome, Packet, Ruleset
from init.recipe import make_plan
from init.rules import Match, Rule, Target, Version
from init.settings import Machine, Settings, load
from init.state import Dump, parse_save
from init.walk import MAX_DEPTH, walk

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


def saved(dump: Dump) -> Ruleset:
    chains = {t: {c: tuple(r.rule for r in rules) for c, rules in cs.items()} for t, cs in dump.chains.items()}
    return Ruleset(chains, dump.policies)


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
    protocol = "udp" if udp else "tcp"
    return Packet(False, protocol, destination=address, destination_port=port, uid=uid, gid=gid, **fields)


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


DNS = (*CAPTURE, "--redirect-dns")
DNS_53 = "nameserver 127.0.0.53\nnameserver ::127.0.0.53\n"

# Flags, then packets and where each goes. Facts 7 and traps; the numbers are those of Istio's measured outcomes.
OUTBOUND: list[tuple[Sequence[str], dict[str, str], str, list[tuple[Packet, str]]]] = [
    (
        CAPTURE,
        {},
        "",
        [
            (outbound("1.2.3.4:8080"), "15001"),
            (outbound("10.9.9.9:8080"), "app 8080"),
            (outbound("127.0.0.1:8080"), "app 8080"),
            (outbound("127.0.0.2:8080"), "app 8080"),
            (outbound("10.9.9.9:8080", uid=1337), "15006"),
            (outbound("10.9.9.9:15008", uid=1337), "app 15008"),
            (outbound("127.0.0.1:8080", uid=1337), "app 8080"),
            (outbound("1.2.3.4:8080", uid=1337), "leaves"),
            (outbound("1.2.3.4:8080", gid=1337), "leaves"),
            (outbound("10.9.9.9:8080", gid=1337), "app 8080"),
            # T14: passthrough to the application, from the address that says so
            (outbound("10.9.9.9:8080", uid=1337, source=ip_address("127.0.0.6")), "app 8080"),
            # T13: UDP is never redirected but for DNS
            (outbound("1.2.3.4:8080", udp=True), "leaves"),
            (outbound("1.2.3.4:53", udp=True), "leaves"),
            (outbound("[fd01::1]:8080"), "15001"),
            (outbound("[fd00::9]:8080"), "app 8080"),
            (outbound("[::1]:8080"), "app 8080"),
            (outbound("[fd00::9]:8080", uid=1337), "15006"),
            (outbound("[fd01::1]:8080", uid=1337), "leaves"),
            (outbound("[fd00::9]:8080", uid=1337, source=ip_address("::6")), "app 8080"),
        ],
    ),
    (
        (*CAPTURE[2:], "-u", "3,4", "-g", "5"),
        {},
        "",
        [  # T9: a second uid is shadowed by the first
            (outbound("10.9.9.9:8080", uid=3), "15006"),
            (outbound("10.9.9.9:8080", uid=4), "app 8080"),
            (outbound("10.9.9.9:8080", uid=1000, gid=5), "app 8080"),
            (outbound("1.2.3.4:8080", uid=4), "leaves"),
            (outbound("1.2.3.4:8080", uid=1000, gid=5), "leaves"),
        ],
    ),
    (
        ("-u", "1337", "-b", "*", "-x", "1.2.3.0/24", "-q", "8080", "-i", ""),
        {},
        "",
        [  # T1: -x before -q before -i
            (outbound("1.2.3.4:8080"), "leaves"),
            (outbound("1.2.4.4:8080"), "15001"),
            (outbound("1.2.4.4:8081"), "leaves"),
        ],
    ),
    (
        (*CAPTURE, "-x", "1.2.3.0/24", "-o", "8080,9000:9010", "-q", "8080,9001"),
        {},
        "",
        [  # T1: -o before everything; T2: and the self-call of that port goes straight to the application
            (outbound("1.2.4.4:8080"), "leaves"),
            (outbound("1.2.4.4:9001"), "leaves"),
            (outbound("1.2.4.4:9011"), "15001"),
            (outbound("1.2.3.4:9011"), "leaves"),
            (outbound("10.9.9.9:8080", uid=1337), "app 8080"),
            (outbound("10.9.9.9:8081", uid=1337), "15006"),
        ],
    ),
    (
        CAPTURE,
        {"ISTIO_OUTBOUND_OWNER_GROUPS": "2000,2001"},
        "",
        [
            (outbound("1.2.3.4:8080", gid=1000), "leaves"),
            (outbound("1.2.3.4:8080", gid=2001), "15001"),
            (outbound("1.2.3.4:8080", gid=2000), "15001"),
        ],
    ),
    (
        DNS,
        {"ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE": "888"},
        DNS_53,
        [
            (outbound("1.2.3.4:8080", gid=888), "leaves"),
            (outbound("127.0.0.53:53", gid=888, udp=True), "app 53"),
            (outbound("1.2.3.4:8080"), "15001"),
        ],
    ),
    (
        DNS,
        {},
        DNS_53,
        [
            (outbound("127.0.0.53:53", udp=True), "15053"),
            (outbound("127.0.0.53:53"), "15053"),
            (outbound("1.1.1.1:53", udp=True), "leaves"),
            (outbound("1.1.1.1:53"), "15001"),
            (outbound("127.0.0.53:53", uid=1337, udp=True), "app 53"),
            (outbound("[::127.0.0.53]:53", udp=True), "15053"),
            # T10: rule 12b spares TCP only, so UDP of an application on lo reaches the rules behind it
            (outbound("10.9.9.9:8080"), "app 8080"),
            (outbound("10.9.9.9:8080", udp=True), "app 8080"),
            # T11: the proxy's own DNS over TCP is exempt by uid, not by gid
            (outbound("10.9.9.9:53", uid=1337, gid=1), "app 53"),
            (outbound("10.9.9.9:53", uid=1, gid=1337), "15006"),
        ],
    ),
    (
        (*DNS, "-o", "53"),
        {},
        DNS_53,
        [  # T2: excluding port 53 switches DNS capture off
            (outbound("127.0.0.53:53", udp=True), "app 53"),
            (outbound("127.0.0.53:53"), "app 53"),
        ],
    ),
    (
        (*DNS, "--capture-all-dns"),
        {},
        "",
        [
            (outbound("1.1.1.1:53", udp=True), "15053"),
            (outbound("127.0.0.1:53", udp=True), "15053"),
            (outbound("10.9.9.9:53", udp=True), "15053"),
            (outbound("[fd01::1]:53", udp=True), "15053"),
            (outbound("1.1.1.1:53", uid=1337, udp=True), "leaves"),
        ],
    ),
    (
        ("-u", "1337", "-b", "*", "-i", "127.1.0.0/16,10.0.0.0/8"),
        {},
        "",
        [  # T12: one loopback range uncovers what applications send through lo
            (outbound("127.1.2.3:8080"), "15001"),
            (outbound("127.0.0.1:8080"), "app 8080"),
            (outbound("10.9.9.9:8080"), "15001"),
            (outbound("[fd00::9]:8080"), "app 8080"),
        ],
    ),
    (
        (*CAPTURE, "-c", "net1"),
        {},
        "",
        [
            (outbound("1.2.3.4:8080", interface="net1"), "leaves"),
            (outbound("1.2.3.4:8080", interface="net10"), "15001"),
            (inbound(8080, interface="net1"), "app 8080"),
            (inbound(8080, interface="net10"), "15006"),
        ],
    ),
    (("-u", "1337"), {}, "", [(outbound("1.2.3.4:8080"), "leaves"), (inbound(8080), "app 8080")]),  # T4
    (
        (*CAPTURE, "-d", "15090,15021"),
        {},
        "",
        [  # T6: the tunnel port comes first
            (inbound(8080), "15006"),
            (inbound(15021), "app 15021"),
            (inbound(15008), "app 15008"),
            (inbound(8080, protocol="udp"), "app 8080"),
            (inbound(8080, to=POD[6]), "15006"),
            (inbound(8080, to="10.7.7.7"), "15006"),
        ],
    ),
    (
        ("-u", "1337", "-i", "*", "-b", "8080,9090", "-d", "8080"),
        {},
        "",
        [(inbound(8080), "15006"), (inbound(9090), "15006"), (inbound(22), "app 22")],  # T5: -d without -b '*'
    ),
    (
        (*CAPTURE, "-k", "vm0,vm1", "-x", "1.2.3.0/24", "-q", "99"),
        {},
        "",
        [  # T15: traffic of virtual machines is outbound whatever -x and -q say
            (inbound(80, to="1.2.3.4", interface="vm0"), "15001"),
            (inbound(80, to="8.8.8.8", interface="vm1"), "15001"),
            (inbound(80, interface="eth0"), "15006"),
            (inbound(80, to="8.8.8.8", interface="vm1", protocol="udp"), "leaves"),
        ],
    ),
    (
        ("-u", "1337", "-b", "*", "-k", "vm0,vm1", "-i", "8.0.0.0/8"),
        {},
        "",
        [
            (inbound(80, to="8.8.8.8", interface="vm1"), "15001"),
            (inbound(80, to="9.9.9.9", interface="vm1"), "leaves"),  # RETURN comes before the inbound jump
        ],
    ),
    (
        (*CAPTURE, "--drop-invalid", "-c", "net1"),
        {},
        "",
        [  # T16: without TPROXY an excluded interface is not spared
            (inbound(80, state="INVALID"), "dropped"),
            (inbound(80, state="INVALID", interface="net1"), "dropped"),
            (inbound(80), "15006"),
        ],
    ),
    (
        (*CAPTURE, "-m", "TPROXY", "--drop-invalid", "-c", "net1", "-d", "15021"),
        {},
        "",
        [
            (inbound(80, state="INVALID"), "dropped"),
            (inbound(80, state="INVALID", interface="net1"), "app 80"),
            (inbound(80, interface="net1"), "app 80"),
            (inbound(80), "tproxy 15006 mark 1337"),
            (inbound(80, to=POD[6]), "tproxy 15006 mark 1337"),
            (inbound(15008), "tproxy 15006 mark 1337"),  # T6: no exemption of the tunnel in mangle
            (inbound(15021), "app 15021"),
            (inbound(80, mark=1337), "app 80"),
            (inbound(80, state="ESTABLISHED"), "app 80"),
            (outbound("1.2.3.4:8080"), "15001"),
            (outbound("10.9.9.9:8080"), "app 8080"),
            (outbound("10.9.9.9:8080", uid=1337), "15006"),
            (outbound("10.9.9.9:15008", uid=1337), "tproxy 15006 mark 1337"),  # marked 1338 on its way out
            (outbound("10.9.9.9:8080", uid=1337, source=ip_address("127.0.0.6")), "app 8080"),
            (outbound("10.9.9.9:8080", uid=1337, mark=1337), "15006"),
            (outbound("127.0.0.1:8080", uid=1337), "app 8080"),
        ],
    ),
    (
        (*CAPTURE, "-m", "TPROXY", "-k", "vm0"),
        {},
        "",
        # T15: mangle takes it for inbound before nat is asked
        [(inbound(80, interface="vm0"), "tproxy 15006 mark 1337")],
    ),
]
CASES = [
    pytest.param(settings(*argv, env=env, resolv_conf=resolv_conf), packet, expected, id=f"{number}-{at}")
    for number, (argv, env, resolv_conf, packets) in enumerate(OUTBOUND)
    for at, (packet, expected) in enumerate(packets)
]


@pytest.mark.parametrize(("made", "packet", "expected"), CASES)
def test_where_packets_go(made: Settings, packet: Packet, expected: str) -> None:
    outcome = walk(packet, rules_of(made, packet.version), HOST)
    assert said(outcome) == expected, [f"{step.place}: {step.effect}" for step in outcome.steps]
    assert not outcome.uncertain


def test_owner_groups_of_nobody_exempt_everybody() -> None:
    """T3: refused by settings, but a kernel may hold it."""
    made = replace(settings(*DNS, resolv_conf=DNS_53), owner_groups=())
    for packet in (outbound("1.2.3.4:8080"), outbound("127.0.0.53:53", udp=True)):
        outcome = walk(packet, rules_of(made, 4), HOST)
        assert said(outcome) in ("leaves", "app 53")
        assert outcome.decided_by is not None and outcome.decided_by.rule is not None
        assert outcome.decided_by.rule.matches == ()


def test_what_decides_and_what_is_on_the_way() -> None:
    made = settings(*DNS, "-m", "TPROXY", resolv_conf=DNS_53)

    def decision(packet: Packet) -> tuple[str, str, int, bool]:
        outcome = walk(packet, rules_of(made, packet.version), HOST)
        assert outcome.decided_by is not None
        return str(outcome.decided_by), outcome.zone, outcome.mark, outcome.captured

    assert decision(outbound("1.2.3.4:80")) == ("nat ISTIO_REDIRECT rule 1", "0", 0, True)
    # zone 2 is the application's, zone 1 the proxy's, and the first that is given stays
    assert decision(outbound("127.0.0.53:53", udp=True)) == ("nat ISTIO_OUTPUT_DNS rule 2", "2", 0, True)
    assert decision(outbound("127.0.0.53:53", uid=1337, udp=True)) == ("nat ISTIO_OUTPUT rule 4", "1", 0, False)
    assert decision(outbound("10.9.9.9:80", uid=1337)) == ("nat ISTIO_IN_REDIRECT rule 1", "0", 1338, True)
    assert decision(inbound(80)) == ("mangle ISTIO_TPROXY rule 1", "0", 1337, True)
    assert decision(inbound(80, state="ESTABLISHED")) == ("mangle ISTIO_DIVERT rule 2", "0", 1337, False)
    reply = inbound(40000, protocol="udp", source_port=53, source=ip_address("127.0.0.53"), state="ESTABLISHED")
    assert walk(reply, rules_of(made, 4), HOST).zone == "1"


def test_replies_of_the_application_get_the_mark_of_their_connection() -> None:
    """In TPROXY mode they are for the client's address, and only the mark keeps them in the pod."""
    made = settings(*CAPTURE, "-m", "TPROXY")
    reply = outbound("10.1.1.1:40000", source_port=8080, state="ESTABLISHED", connection_mark=1337)
    kept = walk(reply, rules_of(made, 4), replace(HOST, local_marks=[1337]))
    lost = walk(reply, rules_of(made, 4), HOST)
    assert (kept.verdict, kept.mark) == ("delivered", 1337)
    assert (lost.verdict, lost.mark) == ("leaves", 1337)


def test_a_policy_rule_is_what_keeps_tproxied_traffic_of_virtual_machines_in_the_pod() -> None:
    made = settings("-u", "1337", "-b", "*", "-i", "9.0.0.0/8", "-m", "TPROXY", "-k", "vm0")
    packet = inbound(80, to="8.8.8.8", interface="vm0")
    kept = walk(packet, rules_of(made, 4), replace(HOST, local_marks=[1337]))
    lost = walk(packet, rules_of(made, 4), HOST)
    assert (said(kept), str(kept.address)) == ("tproxy 15006 mark 1337", "8.8.8.8")
    assert (said(lost), str(lost.decided_by)) == ("leaves", "mangle ISTIO_TPROXY rule 1")


def cases() -> list[Any]:
    file = Path(__file__).resolve().parents[4] / "shared/istio/iptables/cases.json"
    return json.loads(file.read_text()) if file.exists() else []


# Where the packets of an application, of the proxy and of a client go in each recorded case that tells them apart.
RECORDED: dict[str, list[tuple[Packet, str]]] = {
    "defaults": [(outbound("1.2.3.4:80"), "leaves"), (inbound(80), "app 80")],
    "seed-asm": [(outbound("1.2.3.4:80"), "15001"), (inbound(15081), "app 15081"), (inbound(80), "15006")],
    "no-inbound": [(inbound(80), "app 80"), (outbound("1.2.3.4:80"), "15001")],
    "inbound-ports": [(inbound(8080), "15006"), (inbound(22), "app 22")],
    "outbound-cidrs": [
        (outbound("10.2.3.4:80"), "15001"),
        (outbound("11.2.3.4:80"), "leaves"),
        (inbound(22), "app 22"),
    ],
    "outbound-none": [(outbound("10.2.3.4:80"), "leaves"), (outbound("10.9.9.9:80", uid=1337), "15006")],
    "exclude-cidr": [(outbound("192.168.0.1:80"), "leaves"), (outbound("192.168.0.2:80"), "15001")],
    "outbound-ports": [(outbound("1.2.3.4:443"), "15001"), (outbound("1.2.3.4:444"), "leaves")],
    "exclude-outbound-ports": [(outbound("1.2.3.4:3306"), "leaves"), (outbound("1.2.3.4:3307"), "15001")],
    "uid-gid": [(outbound("1.2.3.4:80", gid=3000), "leaves"), (outbound("10.9.9.9:80", uid=2000), "app 80")],
    "tproxy": [(inbound(80), "tproxy 15006 mark 1337"), (inbound(15020), "app 15020")],
    "tproxy-ports": [(inbound(8080), "tproxy 15006 mark 1338"), (inbound(22), "app 22")],
    "dns": [(outbound("10.96.0.10:53", udp=True), "15053"), (outbound("1.1.1.1:53", udp=True), "leaves")],
    "dns-all": [(outbound("1.1.1.1:53", udp=True), "15053"), (outbound("1.1.1.1:53", 1337, udp=True), "leaves")],
    "dns-tproxy": [(outbound("10.96.0.10:53", udp=True), "15053"), (inbound(80), "tproxy 15006 mark 1337")],
    "dual-stack-cidrs": [(outbound("[fd01::1]:80"), "15001"), (outbound("[fd00:1::1]:80"), "leaves")],
    "dual-stack-tproxy": [(inbound(80, to=POD[6]), "tproxy 15006 mark 1337")],
    "v6only": [(outbound("[fd01::1]:80"), "15001"), (outbound("1.2.3.4:80"), "15001")],
    "exclude-interface": [
        (outbound("1.2.3.4:80", interface="net2"), "leaves"),
        (inbound(1, interface="net1"), "app 1"),
    ],
    "virt-interfaces": [(inbound(80, to="8.8.8.8", interface="kubevirt0"), "15001")],
    "drop-invalid": [(inbound(80, state="INVALID"), "dropped"), (inbound(80), "15006")],
    "custom-ports": [(outbound("1.2.3.4:80"), "25001"), (inbound(80), "25006"), (inbound(25008), "app 25008")],
    "env-outbound-owner-groups-include": [(outbound("1.2.3.4:80"), "leaves"), (outbound("1.2.3.4:80", gid=1), "15001")],
    "v6-address-single-stack-default": [(outbound("[fd01::1]:80"), "leaves"), (outbound("1.2.3.4:80"), "15001")],
}


@pytest.mark.parametrize("name", RECORDED)
def test_where_packets_go_by_the_rules_that_the_real_program_left(name: str, shared: Path) -> None:
    case = next(case for case in cases() if case["name"] == name)
    printed = {4: case["iptables-save"], 6: case["ip6tables-save"]}
    for packet, expected in RECORDED[name]:
        kernel = saved(parse_save("\n".join(printed[packet.version])))
        outcome = walk(packet, {"iptables-nft": kernel}, HOST)
        assert said(outcome) == expected, [f"{step.place}: {step.effect}" for step in outcome.steps]
        assert not outcome.uncertain


@pytest.mark.parametrize("case", cases(), ids=lambda case: str(case["name"]))
def test_recipe_and_recorded_rules_treat_packets_alike(case: dict[str, Any]) -> None:
    """The same outcome, decided by the same rule, for a set of packets that meets every rule of the recipe."""
    try:
        addresses = [ip_address(text.partition("/")[0]) for text in case["addresses"]]
        gids = {"daemon": 1, "mail": 8}
        machine = Machine(lambda _: None, gids.get, lambda: addresses, lambda: case["resolv_conf"])
        made = load(resolve(case["args"], case["env"]), machine)
    except SettingsError:
        assert case["name"].startswith("bad-")  # refused by us
        return
    plan = make_plan(made)
    printed = {4: case["iptables-save"], 6: case["ip6tables-save"]}
    seen = set()
    for version in plan.versions:
        own = Ruleset.of(plan.of(version))
        kernel = saved(parse_save("\n".join(printed[version])))
        for packet in probes(version):
            ours, real = walk(packet, {"": own}, HOST), walk(packet, {"": kernel}, HOST)
            assert (ours.effect, str(ours.decided_by)) == (real.effect, str(real.decided_by)), packet
            seen.add(ours.verdict)
    assert len(seen) > 1


def probes(version: Version) -> list[Packet]:
    remote = {4: ("1.2.3.4", "10.1.2.3", "192.168.0.1", "10.96.0.10"), 6: ("[fd01::1]", "[fd00:1::1]")}[version]
    own = {4: ("10.9.9.9", "127.0.0.1", "127.0.0.2"), 6: ("[fd00::9]", "[::1]")}[version]
    owners = ((1000, 1000), (1337, 0), (0, 1337), (2000, 3000), (1, 101), (0, 888), (5000, 5000))
    sent = [
        outbound(f"{address}:{port}", uid, gid, udp)
        for address in (*remote, *own)
        for port in (53, 80, 3306, 7777, 15008)
        for uid, gid in owners
        for udp in (False, True)
    ]
    sent += [outbound(f"{address}:80", uid, gid, interface="net1", mark=1337) for address in own for uid, gid in owners]
    came = [
        inbound(port, to=to, interface=interface, state=state, mark=mark)
        for to in (POD[version], {4: "8.8.8.8", 6: "fd08::8"}[version])
        for port in (22, 8080, 8081, 9090, 15008, 15021, 25008)
        for interface in ("eth0", "net2", "docker0")
        for state, mark in (("NEW", 0), ("ESTABLISHED", 0), ("INVALID", 0), ("NEW", 1338))
    ]
    return sent + came


def foreign(*lines: str) -> dict[str, Ruleset]:
    """The capture rules of an ordinary sidecar with `table: -A CHAIN ...` put in front of each chain, `table: :CHAIN
    POLICY` set."""
    base = Ruleset.of(make_plan(settings(*CAPTURE)).of(4))
    tables = {table: {chain: list(rules) for chain, rules in chains.items()} for table, chains in base.tables.items()}
    policies: dict[str, dict[str, str]] = {}
    before: dict[tuple[str, str], list[Rule]] = {}
    for line in lines:
        table, _, text = line.partition(": ")
        if text.startswith(":"):
            chain, policy = text[1:].split()
            policies.setdefault(table, {})[chain] = policy
            tables.setdefault(table, {}).setdefault(chain, [])
        else:
            _, chain, rule = f"{text} ".split(" ", 2)
            before.setdefault((table, chain), []).append(read_rule(table, chain, rule))
    for (table, chain), rules in before.items():
        tables.setdefault(table, {})[chain] = rules + tables.get(table, {}).get(chain, [])
    return {"kernel": Ruleset({t: {c: tuple(r) for c, r in cs.items()} for t, cs in tables.items()}, policies)}


FOREIGN: list[tuple[str, list[str], Packet, str, str]] = [
    (
        "accepted before capture",
        ["nat: -A OUTPUT -d 1.2.3.0/24 -m comment --comment 'a b' -j ACCEPT"],
        outbound("1.2.3.4:80"),
        "leaves",
        "nat OUTPUT rule 1",
    ),
    (
        "firewall behind the redirect",
        ["filter: -A INPUT -i lo -p tcp -m tcp --dport 15001 -j DROP"],
        outbound("1.2.3.4:80"),
        "dropped",
        "filter INPUT rule 1",
    ),
    (
        "firewall that sees the interface of the first route",
        ["filter: -A OUTPUT -o eth0 -d 127.0.0.1/32 -j REJECT --reject-with icmp-port-unreachable"],
        outbound("1.2.3.4:80"),
        "dropped",
        "filter OUTPUT rule 1",
    ),
    ("policy", ["filter: :INPUT DROP"], inbound(80), "dropped", "filter INPUT policy"),
    (
        "policy with an exception",
        ["filter: :INPUT DROP", "filter: -A INPUT -m conntrack --ctstate NEW,DNAT -j ACCEPT"],
        inbound(80),
        "15006",
        "nat ISTIO_IN_REDIRECT rule 1",
    ),
    (
        "return from a foreign chain goes on behind the jump",
        ["nat: -A OUTPUT -j MINE", "nat: -A MINE -p tcp -j RETURN"],
        outbound("1.2.3.4:80"),
        "15001",
        "nat ISTIO_REDIRECT rule 1",
    ),
    (
        "goto does not come back",
        ["nat: -A OUTPUT -g MINE", "nat: -A MINE -p udp -j ACCEPT"],
        outbound("1.2.3.4:80"),
        "leaves",
        "None",
    ),
    (
        "return from a built-in chain takes the policy",
        ["filter: :OUTPUT DROP", "filter: -A OUTPUT -p tcp -j RETURN", "filter: -A OUTPUT -j ACCEPT"],
        outbound("1.2.3.4:80", uid=1337),
        "dropped",
        "filter OUTPUT policy",
    ),
    (
        "another redirect first",
        ["nat: -A PREROUTING -p tcp -m multiport --dports 80,443 -j REDIRECT --to-ports 9000"],
        inbound(443),
        "9000",
        "nat PREROUTING rule 1",
    ),
    (
        "bare redirect keeps the port",
        ["nat: -A OUTPUT -d 1.2.3.4/32 -p tcp -j REDIRECT"],
        outbound("1.2.3.4:81"),
        "81",
        "nat OUTPUT rule 1",
    ),
    (
        "translated to another host",
        ["nat: -A PREROUTING -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.1.1.9:8080"],
        inbound(80),
        "leaves",
        "nat PREROUTING rule 1",
    ),
    (
        "the resolver of docker",
        ["nat: -A OUTPUT -d 127.0.0.11/32 -p udp -m udp --dport 53 -j DNAT --to-destination 127.0.0.11:37121"],
        outbound("127.0.0.11:53", udp=True),
        "app 37121",
        "nat OUTPUT rule 1",
    ),
    ("not tracked", ["raw: -A OUTPUT -p tcp -j NOTRACK"], outbound("1.2.3.4:80"), "leaves", "None"),
    (
        "log and count",
        ["nat: -A OUTPUT -j LOG --log-prefix x", "nat: -A OUTPUT", "nat: -A OUTPUT -j TRACE"],
        outbound("1.2.3.4:80"),
        "15001",
        "nat ISTIO_REDIRECT rule 1",
    ),
    (
        "log of packets that cannot be told",
        ["nat: -A OUTPUT -m limit --limit 5/min -j LOG"],
        outbound("1.2.3.4:80"),
        "15001",
        "nat ISTIO_REDIRECT rule 1",
    ),
    (
        "wildcard interface",
        ["nat: -A PREROUTING ! -i eth+ -j ACCEPT", "nat: -A PREROUTING -i et+ -s 10.1.0.0/16 -j ACCEPT"],
        inbound(80),
        "app 80",
        "nat PREROUTING rule 2",
    ),
]


@pytest.mark.parametrize(("lines", "packet", "expected", "by"), [pytest.param(*c[1:], id=c[0]) for c in FOREIGN])
def test_foreign_rules_in_the_way(lines: list[str], packet: Packet, expected: str, by: str) -> None:
    outcome = walk(packet, foreign(*lines), HOST)
    assert (said(outcome), str(outcome.decided_by)) == (expected, by), outcome.steps
    assert not outcome.uncertain


def test_rules_that_cannot_be_judged_are_named_and_not_taken() -> None:
    lines = (
        "nat: -A OUTPUT -p tcp -m string --string x --algo bm -j ACCEPT",
        "nat: -A OUTPUT -p udp -m string --string x --algo bm -j ACCEPT",  # another protocol: no doubt about it
        "filter: -A INPUT -j NFQUEUE --queue-num 3",
        "nat: -A OUTPUT -d 1.2.3.4/32 -p tcp -j REDIRECT --to-ports 7000-7010",
    )
    outcome = walk(outbound("1.2.3.4:80"), foreign(*lines), HOST)
    assert said(outcome) == "7000"
    assert outcome.uncertain == (
        "nat OUTPUT rule 1 of kernel (-p tcp -m string --string x --algo bm -j ACCEPT) has a condition that cannot be "
        "judged here and is taken not to match",
        "nat OUTPUT rule 3 of kernel (-d 1.2.3.4/32 -p tcp -j REDIRECT --to-ports 7000-7010) may choose any of the "
        "ports 7000-7010; the first is taken",
        "filter INPUT rule 1 of kernel (-j NFQUEUE --queue-num 3) has a target that cannot be judged here and is taken "
        "to let the packet go on",
    )


def test_stores_of_one_priority_are_asked_in_turn_until_one_translates() -> None:
    capture = Ruleset.of(make_plan(settings(*CAPTURE)).of(4))
    other = Ruleset({"nat": {"OUTPUT": (Rule("nat", "OUTPUT", (), Target("redirect", "9")),)}})
    accepting = Ruleset({"nat": {"OUTPUT": (Rule("nat", "OUTPUT", (), Target("accept")),)}})
    packet = outbound("1.2.3.4:80")
    assert said(walk(packet, {"a": capture, "b": other}, HOST)) == "15001"
    assert said(walk(packet, {"b": other, "a": capture}, HOST)) == "9"
    assert said(walk(packet, {"b": accepting, "a": capture}, HOST)) == "15001"  # ACCEPT ends one store's table only


def test_loops_and_explosions_end() -> None:
    def jump(chain: str, to: str) -> Rule:
        return Rule("nat", chain, (), Target("jump", to))

    looping = {"nat": {"OUTPUT": (jump("OUTPUT", "A"),), "A": (jump("A", "A"),)}}
    with pytest.raises(KernelError, match=f"more than {MAX_DEPTH} deep"):
        walk(outbound("1.2.3.4:80"), {"": Ruleset(looping)}, HOST)
    doubling = {"OUTPUT": (jump("OUTPUT", "0"),), "60": ()}
    doubling |= {str(at): (jump(str(at), str(at + 1)),) * 2 for at in range(60)}
    with pytest.raises(KernelError, match="rules would be looked at"):
        walk(outbound("1.2.3.4:80"), {"": Ruleset({"nat": doubling})}, HOST)


WORDS = (
    "-p -s -d -i -o -m -j -g ! tcp udp --sport --dport --dports --to-ports --to-destination --mark --set-xmark --zone "
    "--on-port --tproxy-mark --uid-owner --gid-owner --ctstate NEW,DNAT owner multiport mark connmark comment "
    "--comment REDIRECT TPROXY MARK DNAT CT ACCEPT DROP RETURN REJECT LOG SELF 1.2.3.0/24 ::/0 lo eth+ 53 0x539 -1 "
    "x 80-90 80:90 : , 1.2.3.4:5 [::1]:x /99 0-4294967295 \U0001f600"
).split()


@given(st.lists(st.lists(st.sampled_from(WORDS), max_size=8), max_size=6), st.booleans())
def test_no_rule_of_a_kernel_stops_the_walk(lines: list[list[str]], is_inbound: bool) -> None:
    chains = {
        chain: tuple(read_rule("nat", chain, " ".join(words)) for words in lines) if chain != "SELF" else ()
        for chain in ("PREROUTING", "OUTPUT", "INPUT", "SELF")
    }
    kernel = {"": Ruleset(dict.fromkeys(("raw", "mangle", "nat", "filter"), chains))}
    outcome = walk(inbound(80) if is_inbound else outbound("1.2.3.4:80"), kernel, HOST)
    assert outcome.verdict in ("redirected", "tproxied", "delivered", "leaves", "dropped")


def test_positions_of_inserted_rules_are_the_kernels() -> None:
    first, second, third = (
        Rule("nat", "OUTPUT", (Match("uid", str(n)),), Target("accept"), n or None) for n in range(3)
    )
    assert Ruleset.of([first, second, third]).tables["nat"]["OUTPUT"] == (second, third, first)
