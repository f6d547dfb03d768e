"""The walker through what the real program left in the kernel, through foreign rules and through nonsense."""

from __future__ import annotations

import json
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from init.errors import KernelError, SettingsError
from init.flags import resolve
from init.iptables_text import read_rule
from init.packet import Packet, Ruleset
from init.recipe import make_plan
from init.rules import Match, Rule, Target, Version
from init.settings import Machine, load
from init.state import Dump, parse_save
from init.walk import MAX_DEPTH, walk
from tests.unit.init.packet_world import CAPTURE, HOST, POD, inbound, outbound, said, settings


def saved(dump: Dump) -> Ruleset:
    chains = {t: {c: tuple(r.rule for r in rules) for c, rules in cs.items()} for t, cs in dump.chains.items()}
    return Ruleset(chains, dump.policies)


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
