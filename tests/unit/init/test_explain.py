"""`explain`: the command line, what is read, and what is said about it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from init.errors import KernelError, UsageError
from init.explain import Answer, explain, host_of, packet_of, read_stores, run
from init.flags import resolve
from init.iptables_text import read_rule
from init.packet import Host, IPAddress, Packet, Ruleset
from init.question import Question, read, split
from init.recipe import make_plan
from init.route_lookup import Route
from init.rules import Plan, Rule, Target, Version
from init.settings import Machine, load

ADDRESSES = [ip_address(text) for text in ("127.0.0.1", "10.9.9.9", "::1", "fe80::1", "fd00::9")]
POD_NETWORK = ip_network("fd00::/64")
CAPTURE = ("-u", "1337", "-b", "*", "-i", "*", "--dual-stack")


def plan(*argv: str) -> Plan:
    machine = Machine(lambda _: None, lambda _: None, lambda: ADDRESSES, lambda: "nameserver 10.96.0.10")
    return make_plan(load(resolve((*CAPTURE, *argv), {}), machine))


def question(*argv: str, **environ: str) -> Question:
    return read(split(argv), environ)


@pytest.mark.parametrize(
    ("argv", "refusal"),
    [
        (["--foo"], "unknown flag: --foo"),
        (["--foo=1"], "unknown flag: --foo"),
        (["-u", "1"], "unknown flag: -u"),
        (["--ui", "1"], "unknown flag: --ui"),
        (["init"], "unexpected argument: init: expected flags only"),
        (["--"], "unknown flag: --"),
        (["--uid"], "flag needs an argument: --uid"),
        (["--udp=true"], "--udp: takes no value"),
        ([], "--uid: is missing: expected NUMBER\n--to: is missing: expected ADDRESS:PORT"),
        (["--inbound"], "--port: is missing: expected NUMBER"),
        (
            ["--uid", "x", "--to", "1.2.3.4:80"],
            "--uid: 'x' is refused: expected a number 0 to 4294967294",
        ),
        (["--uid", "0x10", "--to", "1.2.3.4:80"], "--uid: '0x10' is refused: expected a number 0 to 4294967294"),
        (["--uid=", "--to", "1.2.3.4:80"], "--uid: '' is refused: expected a number 0 to 4294967294"),
        (["--uid=4294967295", "--to", "1.2.3.4:80"], "--uid: '4294967295' is refused"),
        (["--uid=1", "--gid=-1", "--to", "1.2.3.4:80"], "--gid: '-1' is refused"),
        (["--uid=1", "--mark=0x100000000", "--to", "1.2.3.4:80"], "--mark: '0x100000000' is refused"),
        (["--uid=1", "--to", "1.2.3.4"], "--to: '1.2.3.4' is refused: expected the form 10.0.0.5:80 or [::1]:80"),
        (["--uid=1", "--to", "::1"], "--to: '::1' is refused"),
        (["--uid=1", "--to", "1.2.3.4:0"], "--to: '1.2.3.4:0' is refused"),
        (["--uid=1", "--to", "1.2.3.4:65536"], "--to: '1.2.3.4:65536' is refused"),
        (["--uid=1", "--to", "1.2.3.4:080"], "--to: '1.2.3.4:080' is refused"),
        (["--uid=1", "--to", "[1.2.3.4]:80"], "--to: '[1.2.3.4]:80' is refused"),
        (["--uid=1", "--to", "[fe80::1%eth0]:80"], "--to: '[fe80::1%eth0]:80' is refused"),
        (["--uid=1", "--to", "example.com:80"], "--to: 'example.com:80' is refused"),
        (["--uid=1", "--to", "1.2.3.4:80", "--from", "nobody"], "--from: 'nobody' is refused: expected the form"),
        (["--uid=1", "--to", "1.2.3.4:80", "--from", "::1"], "--from: ::1 is not of the family of --to, IPv4"),
        (["--uid=1", "--to", "1.2.3.4:80", "--port", "1"], "--port: is for --inbound"),
        (["--inbound", "--port", "80", "--uid", "1"], "--uid: has no meaning with --inbound"),
        (["--inbound", "--port", "80", "--to", "1.2.3.4:80"], "--to: '1.2.3.4:80' is refused: expected the form 10.0."),
        (["--inbound", "--port", "http"], "--port: 'http' is refused: expected a number 1 to 65535"),
        (["--inbound", "--port", "80", "--interface", "a/b"], "--interface: 'a/b' is not an interface name"),
        (["--inbound", "--port", "80", "--interface="], "--interface: '' is not an interface name"),
        (["--inbound", "--port", "80", "--output", "xml"], "--output: 'xml' is not an output format"),
    ],
)
def test_what_is_refused(argv: list[str], refusal: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError) as caught:
        question(*argv)
    assert str(caught.value).startswith(refusal)
    assert run(argv, {}) == 255
    assert capsys.readouterr().err.startswith(f"Error: {refusal}")


def test_what_is_asked() -> None:
    asked = question("--uid", "1000", "--to=[::1]:80", "--udp", "--mark=0x539", "--from", "[fd00::9]:53", "--gid", "5")
    assert (asked.to, asked.port, asked.version) == (ip_address("::1"), 80, 6)
    assert (asked.uid, asked.gid, asked.mark, asked.udp) == (1000, 5, 1337, True)
    assert (asked.source, asked.source_port, asked.inbound) == (ip_address("fd00::9"), 53, False)
    assert question("--uid", "7", "--to", "1.2.3.4:80").gid == 7
    assert question("--uid", "7", "--uid", "8", "--to", "1.2.3.4:80").uid == 8
    assert question("--uid", "7", "--to", "[::ffff:1.2.3.4]:80").to == ip_address("1.2.3.4")  # what the kernel sends
    came = question("--inbound", "--port", "8080", "--interface", "eth1", "--output", "json")
    assert (came.port, came.to, came.source, came.interface, came.as_json) == (8080, None, None, "eth1", True)
    assert question("--inbound", "--port=1", "--to=[fd00::9]").to == ip_address("fd00::9")
    assert question("--inbound", "--port=1", NETWORK_NAMESPACE="/x").namespace == "/x"
    assert question("--inbound", "--port=1", "--network-namespace=/y", NETWORK_NAMESPACE="/x").namespace == "/y"


def test_help_names_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--uid", "x", "-h"], {}) == 0
    out = capsys.readouterr().out
    assert out.startswith("Usage: istio-iptables explain") and "--network-namespace PATH" in out


def routes(local_marks: Sequence[int] = ()) -> Callable[[IPAddress, int, int | None], Route]:
    """Routing of a pod with one interface and no IPv6 default route."""

    def lookup(to: IPAddress, mark: int, uid: int | None) -> Route:
        if to.is_loopback or to in ADDRESSES or mark in local_marks:
            return Route("lo", ip_address("127.0.0.1") if to.version == 4 and to.is_loopback else to, True)
        if to.version == 6 and to not in POD_NETWORK:
            raise KernelError(f"no packet can be sent to {to}: Network is unreachable: see `ip route`")
        return Route("eth7", ADDRESSES[1] if to.version == 4 else ADDRESSES[4], False)

    return lookup


def test_what_the_question_leaves_out_is_asked_of_routing() -> None:
    def made(*argv: str) -> Packet:
        return packet_of(question(*argv), ADDRESSES, routes())

    sent = made("--uid", "1", "--to", "1.2.3.4:80")
    assert (str(sent.source), sent.interface, sent.source_port) == ("10.9.9.9", "eth7", 40000)
    assert made("--uid", "1", "--to", "127.0.0.1:80").source == ip_address("127.0.0.1")
    assert made("--uid", "1", "--to", "0.0.0.0:80").destination == ip_address("127.0.0.1")
    given = made("--uid", "1", "--to", "1.2.3.4:80", "--from", "10.8.8.8:53", "--interface", "net1")
    assert (str(given.source), given.source_port, given.interface) == ("10.8.8.8", 53, "net1")
    with pytest.raises(KernelError, match="no packet can be sent to fd01::1: Network is unreachable"):
        made("--uid", "1", "--to", "[fd01::1]:80")
    assert made("--uid", "1", "--to", "[fd01::1]:80", "--from", "fd00::9", "--interface", "net1").version == 6
    came = made("--inbound", "--port", "80")
    assert (str(came.destination), str(came.source), came.interface, came.uid) == (
        "10.9.9.9",
        "192.0.2.1",
        "eth7",
        None,
    )
    assert made("--inbound", "--port", "80", "--from", "fd00::77").destination == ip_address("fd00::9")


def answer(packet: Packet, kernel: Mapping[str, Ruleset], local_marks: Sequence[int] = ()) -> Answer:
    lookup = routes(local_marks)
    return explain(packet, kernel, host_of(packet, ADDRESSES, kernel, lookup))


def kernel(made: Plan, version: Version = 4) -> dict[str, Ruleset]:
    return {"iptables-nft": Ruleset.of(made.of(version))}


def ask(*argv: str) -> Packet:
    return packet_of(question(*argv), ADDRESSES, routes())


def test_the_trace_of_a_captured_packet() -> None:
    held = kernel(plan("--redirect-dns"))
    assert answer(ask("--uid", "1000", "--to", "1.2.3.4:80"), held).text().splitlines() == [
        "packet: tcp from 10.9.9.9 of uid 1000 gid 1000 to 1.2.3.4:80, out by eth7",
        "raw OUTPUT rule 1: -j ISTIO_OUTPUT_DNS",
        "  raw ISTIO_OUTPUT_DNS: no rule matches",
        "raw OUTPUT: policy ACCEPT",
        "nat OUTPUT rule 1: -j ISTIO_OUTPUT",
        "  nat ISTIO_OUTPUT rule 8: -j ISTIO_OUTPUT_DNS",
        "    nat ISTIO_OUTPUT_DNS: no rule matches",
        "  nat ISTIO_OUTPUT rule 10: -j ISTIO_REDIRECT",
        "    nat ISTIO_REDIRECT rule 1: -p tcp -j REDIRECT --to-ports 15001",
        "raw PREROUTING rule 1: -j ISTIO_INBOUND",
        "  raw ISTIO_INBOUND: no rule matches",
        "raw PREROUTING: policy ACCEPT",
        "nat PREROUTING: not asked: conntrack has this connection's translation",
        "-> captured: redirected to port 15001 (outbound) by nat ISTIO_REDIRECT rule 1",
    ]
    dns = answer(ask("--uid", "1000", "--to", "10.96.0.10:53", "--udp"), held).text()
    assert (
        "  raw ISTIO_OUTPUT_DNS rule 5: -p udp --dport 53 -d 10.96.0.10/32 -j CT --zone 2 (conntrack zone 2 set)" in dns
    )
    assert dns.endswith("-> captured: redirected to port 15053 (DNS) by nat ISTIO_OUTPUT_DNS rule 2\n")


CONCLUSIONS: list[tuple[list[str], list[str], str]] = [
    (
        ["--uid=1337", "--to=1.2.3.4:80"],
        [],
        "not captured: leaves the pod towards 1.2.3.4:80, by nat ISTIO_OUTPUT rule 4 "
        "(-m owner --uid-owner 1337 -j RETURN)",
    ),
    (
        ["--uid=1000", "--to=[fd00::9]:80"],
        [],
        "not captured: delivered to the application at [fd00::9]:80, by nat ISTIO_OUTPUT rule 3 "
        "(-o lo -m owner ! --uid-owner 1337 -j RETURN)",
    ),
    (
        ["--uid=1337", "--to=10.9.9.9:80"],
        [],
        "captured: redirected to port 15006 (inbound) by nat ISTIO_IN_REDIRECT rule 1",
    ),
    (["--inbound", "--port=80"], [], "captured: redirected to port 15006 (inbound) by nat ISTIO_IN_REDIRECT rule 1"),
    (
        ["--inbound", "--port=80"],
        ["-m", "TPROXY"],
        "captured: handed to the transparent socket on port 15006 with mark 1337 (inbound) "
        "by mangle ISTIO_TPROXY rule 1",
    ),
    (
        ["--inbound", "--port=80", "--udp"],
        [],
        "not captured: delivered to the application at 10.9.9.9:80, no rule captures it",
    ),
    (
        ["--inbound", "--port=80", "--udp", "--to=8.8.8.8"],
        [],
        "not captured: forwarded towards 8.8.8.8:80, no rule captures it",
    ),
]


@pytest.mark.parametrize(("argv", "flags", "conclusion"), CONCLUSIONS)
def test_conclusions(argv: list[str], flags: list[str], conclusion: str) -> None:
    packet = ask(*argv)
    assert answer(packet, kernel(plan(*flags), packet.version), [1337]).conclusion == conclusion


def foreign(table: str, chain: str, text: str) -> Ruleset:
    return Ruleset({table: {chain: (read_rule(table, chain, text),)}})


def test_without_rules() -> None:
    packet = ask("--uid=1000", "--to=1.2.3.4:80")
    text = "not captured: no rule of this program is in the kernel"
    assert answer(packet, {}).conclusion == text
    assert answer(packet, {"iptables-nft": Ruleset({"nat": {"OUTPUT": ()}})}).conclusion == text
    assert answer(packet, {"iptables-nft": foreign("nat", "OUTPUT", "-p udp -j ACCEPT")}).conclusion == text
    assert answer(packet, {"iptables-nft": foreign("nat", "OUTPUT", "-p tcp -j ACCEPT")}).conclusion == text
    moved = answer(packet, {"iptables-nft": foreign("nat", "OUTPUT", "-p tcp -j DNAT --to-destination 10.9.9.9:99")})
    assert moved.conclusion == (
        "not captured: delivered to the application at 10.9.9.9:99, "
        "by nat OUTPUT rule 1 (-p tcp -j DNAT --to-destination 10.9.9.9:99)"
    )
    dropped = answer(packet, {"iptables-nft": foreign("filter", "OUTPUT", "-p tcp -j REJECT --reject-with tcp-reset")})
    assert dropped.conclusion == "dropped by filter OUTPUT rule 1 (-p tcp -j REJECT --reject-with tcp-reset)"
    elsewhere = answer(packet, {"iptables-nft": foreign("nat", "OUTPUT", "-p tcp -j REDIRECT --to-ports 99")})
    assert elsewhere.conclusion == (
        "not captured: redirected to port 99 by a foreign rule, nat OUTPUT rule 1 (-p tcp -j REDIRECT --to-ports 99)"
    )


def test_a_missing_policy_rule_is_said() -> None:
    packet, held = ask("--inbound", "--port=80"), kernel(plan("-m", "TPROXY"))
    (line,) = answer(packet, held).missing
    assert line.startswith("no policy rule for mark 1337 leads to a table with the route `local default dev lo`")
    assert answer(packet, held, [1337]).missing == []
    assert answer(ask("--uid=1000", "--to=1.2.3.4:80"), held).missing == []


def test_rules_in_several_places() -> None:
    capture = Ruleset.of(plan().of(4))
    packet = ask("--uid=1000", "--to=1.2.3.4:80")
    agreed = answer(packet, {"iptables-nft": capture, "iptables-legacy": capture, "nftables": Ruleset()})
    assert "rules are in several places: iptables-nft, iptables-legacy\n" in agreed.text()
    assert "iptables-nft:   nat ISTIO_OUTPUT rule 9: -j ISTIO_REDIRECT\n" in agreed.text()
    assert agreed.uncertain == []
    other = answer(packet, {"iptables-nft": capture, "iptables-legacy": foreign("nat", "OUTPUT", "-j REDIRECT")})
    assert other.conclusion.startswith("captured: redirected to port 15001")
    (line,) = other.uncertain
    assert line == (
        "of tables with one priority the younger is asked first; in another order: "
        "not captured: redirected to port 80 by a foreign rule, nat OUTPUT rule 1 (-j REDIRECT)"
    )


def test_doubts_are_said_and_terminals_left_alone() -> None:
    odd = Rule("filter", "OUTPUT", (), Target("other", "-j WEIRD --text \x1b[2J"))
    held = {"iptables-nft": Ruleset({"filter": {"OUTPUT": (odd,)}}, unreadable=["table inet firewall"])}
    said = answer(ask("--uid=1000", "--to=1.2.3.4:80"), held).text()
    assert "uncertain: table inet firewall cannot be read by iptables-nft and is left out\n" in said
    assert r"uncertain: filter OUTPUT rule 1 of iptables-nft (-j WEIRD --text \x1b[2J) has a target that" in said
    assert "\x1b" not in said


def test_json() -> None:
    packet = ask("--uid=1000", "--to=1.2.3.4:80", "--mark=5")
    document: dict[str, Any] = json.loads(answer(packet, kernel(plan())).json())
    assert document["packet"]["uid"] == 1000 and document["packet"]["mark"] == 5
    assert (document["verdict"], document["captured"], document["port"]) == ("redirected", True, 15001)
    assert document["decided_by"] == {
        "store": "iptables-nft",
        "table": "nat",
        "chain": "ISTIO_REDIRECT",
        "rule": 1,
        "iptables": "-p tcp -j REDIRECT --to-ports 15001",
    }
    assert document["trace"][0]["iptables"] == "-j ISTIO_OUTPUT"
    assert document["stores"] == ["iptables-nft"] and document["uncertain"] == document["missing"] == []


@dataclass
class Fake:
    """A backend that only reads."""

    kind: str
    held: Mapping[Version, Ruleset] | KernelError

    def stores(self, plan: Plan) -> Sequence[Any]:
        raise AssertionError("explain writes nothing")

    def traces(self) -> Sequence[Any]:
        raise AssertionError("explain reads everything")

    def rules_in_kernel(self) -> Mapping[Version, Ruleset]:
        if isinstance(self.held, KernelError):
            raise self.held
        return self.held


def test_what_can_be_read_is_read() -> None:
    four, six = Ruleset(), Ruleset({"nat": {}})
    nft, legacy = Fake("nftables", {4: four, 6: six}), Fake("iptables-legacy", KernelError("cannot run it"))
    assert read_stores([nft, legacy], 6) == (
        {"nftables": six},
        ["iptables-legacy cannot be read, and is taken to hold no rule: cannot run it"],
    )
    assert read_stores([Fake("nftables", {4: four})], 6) == ({}, [])
    with pytest.raises(KernelError, match="cannot run it"):
        read_stores([legacy], 4)


def test_marks_that_stay_inside_are_found_by_routing() -> None:
    held = kernel(plan("-m", "TPROXY"))
    packet = ask("--inbound", "--port=80")
    assert host_of(packet, ADDRESSES, held, routes([1337, 7])) == Host(ADDRESSES, frozenset({1337}))
    assert host_of(packet, ADDRESSES, held, routes()) == Host(ADDRESSES, frozenset())
    odd = Ruleset({"mangle": {"PREROUTING": (Rule("mangle", "PREROUTING", (), Target("tproxy", "x", "y")),)}})
    assert answer(packet, {"nftables": odd}).uncertain
