"""Rules in the words of nft: Istio's scripts byte for byte, where this one departs from them, and reading back."""

from __future__ import annotations

import pytest
from init_worlds import DUAL_POD, IPV4_POD, IPV6_POD, plan

from init.nft_text import by_chain, intended, line, normal, read_listing, read_rule, removal, script, statement
from init.rules import Match, Plan, Rule, Target

EMPTY = """\
add table inet istio-proxy-nat
flush table inet istio-proxy-nat
add chain inet istio-proxy-nat output { type nat hook output priority -100 ; }
add chain inet istio-proxy-nat istio-inbound
add chain inet istio-proxy-nat istio-redirect
add chain inet istio-proxy-nat istio-in-redirect
add chain inet istio-proxy-nat istio-output
add rule inet istio-proxy-nat istio-inbound meta l4proto tcp tcp dport 15008 counter return
add rule inet istio-proxy-nat istio-redirect meta l4proto tcp counter redirect to :15001
add rule inet istio-proxy-nat istio-in-redirect meta l4proto tcp counter redirect to :15006
add rule inet istio-proxy-nat output counter jump istio-output
add rule inet istio-proxy-nat istio-output oifname lo ip saddr 127.0.0.6/32 counter return
add rule inet istio-proxy-nat istio-output oifname lo meta l4proto tcp ip daddr != 127.0.0.1/32 tcp dport != 15008 \
skuid 1337 counter jump istio-in-redirect
add rule inet istio-proxy-nat istio-output oifname lo skuid != 1337 counter return
add rule inet istio-proxy-nat istio-output skuid 1337 counter return
add rule inet istio-proxy-nat istio-output oifname lo meta l4proto tcp ip daddr != 127.0.0.1/32 tcp dport != 15008 \
skgid 1337 counter jump istio-in-redirect
add rule inet istio-proxy-nat istio-output oifname lo skgid != 1337 counter return
add rule inet istio-proxy-nat istio-output skgid 1337 counter return
add rule inet istio-proxy-nat istio-output ip daddr 127.0.0.1/32 counter return
"""
TPROXY = """\
add rule prerouting iifname not-istio-nic counter return
add rule output oifname not-istio-nic counter return
add rule istio-divert counter meta mark set 1337
add rule istio-divert counter accept
add rule istio-tproxy meta l4proto tcp ip daddr != 127.0.0.1/32 tproxy ip to :15006 meta mark set 1337 counter accept
add rule istio-tproxy meta l4proto tcp ip6 daddr != ::1/128 tproxy ip6 to :15006 meta mark set 1337 counter accept
add rule prerouting meta l4proto tcp counter jump istio-inbound
add rule istio-inbound meta l4proto tcp ct state related,established counter jump istio-divert
add rule istio-inbound meta l4proto tcp counter jump istio-tproxy
add rule prerouting meta l4proto tcp mark 1337 counter ct mark set mark
add rule output oifname lo meta l4proto tcp mark 1337 counter return
add rule output oifname lo meta l4proto tcp ip daddr != 127.0.0.1/32 skuid 1337 counter meta mark set 1338
add rule output oifname lo meta l4proto tcp ip6 daddr != ::1/128 skuid 1337 counter meta mark set 1338
add rule output oifname lo meta l4proto tcp ip daddr != 127.0.0.1/32 skgid 1337 counter meta mark set 1338
add rule output oifname lo meta l4proto tcp ip6 daddr != ::1/128 skgid 1337 counter meta mark set 1338
add rule output meta l4proto tcp ct mark 1337 counter meta mark set ct mark
insert rule istio-inbound index 0 meta l4proto tcp mark 1337 counter return
insert rule istio-inbound index 1 iifname lo meta l4proto tcp ip saddr 127.0.0.6/32 counter return
insert rule istio-inbound index 1 iifname lo meta l4proto tcp ip6 saddr ::6/128 counter return
insert rule istio-inbound index 2 iifname lo meta l4proto tcp mark != 1338 counter return
"""
WORLDS: dict[str, tuple[list[str], dict[str, object]]] = {
    name: (words.split(), world)
    for name, words, world in (
        ("everything", "-b * -d 15090,15021:15023 -i * -o 22,80:90 -q 443 -c net1 -k eth1,eth2", {}),
        ("ports", "-b 80,8080:8090 -q 99 --drop-invalid", {}),
        ("cidrs", "-b * -i 10.0.0.0/8,0.0.0.0/0,fd00::/8,::/0 -x 10.1.2.3/8,fd00:1::7/64 -k eth1 --dual-stack", {}),
        ("tproxy", "-m TPROXY -b 80,90:99 -i * -u 1,2 -g 3 -c net1 --drop-invalid --dual-stack", {}),
        ("tproxy-4", "-m TPROXY -b * -d 22 -i * -t 4294967295", {"addresses": IPV4_POD}),
        ("dns", "-b * -i * --redirect-dns --dual-stack -u 1,2", {"servers": ["10.1.1.1", "fd00::53"]}),
        ("dns-4", "-b * -i * --redirect-dns -m TPROXY", {"addresses": IPV4_POD, "servers": ["10.1.1.1", "fd00::53"]}),
        ("dns-only-6", "-b * -i * --redirect-dns", {"addresses": IPV4_POD, "servers": ["fd00::53"]}),
        ("dns-all", "-b * -i * --redirect-dns --capture-all-dns -e 22", {"addresses": IPV6_POD}),
        ("groups", "-b * -i *", {"environ": {"ISTIO_OUTBOUND_OWNER_GROUPS": "7,9"}}),
        ("loopback", "-b * -i *", {"environ": {"ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR": "127.1.2.3/9"}}),
    )
}


def plan_of(name: str) -> Plan:
    argv, world = WORLDS[name]
    return plan(*argv, **{"addresses": DUAL_POD, **world})


def lines_of(found: Plan) -> list[str]:
    return script(found).splitlines()


def rules_of(lines: list[str], table: str) -> list[str]:
    """The commands for rules in one table, its name left out."""
    return [
        line.replace(f" inet istio-proxy-{table} ", " ") for line in lines if f" rule inet istio-proxy-{table} " in line
    ]


def test_script_of_the_smallest_plan() -> None:
    assert script(plan()) == EMPTY


def test_script_of_tproxy() -> None:
    argv = "-m TPROXY -b * -x 1.1.0.0/16 -i 9.9.0.0/16 -c not-istio-nic --redirect-dns --dual-stack".split()
    lines = lines_of(plan(*argv, addresses=DUAL_POD, servers=["127.0.0.53"]))
    assert rules_of(lines, "mangle") == TPROXY.splitlines()
    assert [line.split()[-1] for line in lines if line.startswith("add table")] == [
        f"istio-proxy-{table}" for table in ("nat", "mangle", "raw")
    ]
    assert [
        line.split("mangle ")[1].split(" {")[0] for line in lines if "add chain inet istio-proxy-mangle" in line
    ] == [*("prerouting", "output", "istio-divert", "istio-tproxy", "istio-inbound")]


def test_spelling_of_dns() -> None:
    lines = lines_of(plan("--redirect-dns", "--dual-stack", addresses=DUAL_POD, servers=["10.1.1.1", "fd00::53"]))
    assert [line for line in rules_of(lines, "nat") if "53" in line] == [
        "add rule istio-output oifname lo meta l4proto tcp ip daddr != 127.0.0.1/32 tcp dport != { 53, 15008 } "
        "skuid 1337 counter jump istio-in-redirect",
        "add rule istio-output oifname lo meta l4proto tcp ip6 daddr != ::1/128 tcp dport != { 53, 15008 } "
        "skuid 1337 counter jump istio-in-redirect",
        "add rule istio-output oifname lo meta l4proto tcp tcp dport != 53 skuid != 1337 counter return",
        "add rule istio-output oifname lo meta l4proto tcp tcp dport != 53 skgid != 1337 counter return",
        "add rule istio-output-dns ip daddr 10.1.1.1/32 tcp dport 53 counter redirect to :15053",
        "add rule istio-output-dns ip6 daddr fd00::53/128 tcp dport 53 counter redirect to :15053",
        "add rule istio-output-dns ip daddr 10.1.1.1/32 udp dport 53 counter redirect to :15053",
        "add rule istio-output-dns ip6 daddr fd00::53/128 udp dport 53 counter redirect to :15053",
    ]
    assert rules_of(lines, "nat").count("add rule istio-output counter jump istio-output-dns") == 1
    assert rules_of(lines, "raw") == [
        "add rule output counter jump istio-output-dns",
        "add rule istio-output-dns udp dport 53 meta skuid 1337 counter ct zone set 1",
        "add rule istio-output-dns udp sport 15053 meta skuid 1337 counter ct zone set 2",
        "add rule istio-output-dns udp dport 53 meta skgid 1337 counter ct zone set 1",
        "add rule istio-output-dns udp sport 15053 meta skgid 1337 counter ct zone set 2",
        "add rule prerouting counter jump istio-inbound",
        "add rule istio-output-dns udp dport 53 ip daddr 10.1.1.1/32 counter ct zone set 2",
        "add rule istio-inbound udp sport 53 ip saddr 10.1.1.1/32 counter ct zone set 1",
        "add rule istio-output-dns udp dport 53 ip6 daddr fd00::53/128 counter ct zone set 2",
        "add rule istio-inbound udp sport 53 ip6 saddr fd00::53/128 counter ct zone set 1",
    ]


def test_spelling_of_ports_and_interfaces() -> None:
    nat = rules_of(lines_of(plan_of("everything")), "nat")
    for expected in (
        "add rule prerouting iifname net1 counter return",
        "add rule istio-inbound meta l4proto tcp tcp dport 15021-15023 counter return",
        "add rule istio-output tcp dport 80-90 counter return",
        "add rule istio-output udp dport 22 counter return",
        "add rule istio-output meta nfproto ipv4 tcp dport 443 counter jump istio-redirect",
        "insert rule prerouting index 0 iifname eth1 counter return",
        "insert rule prerouting index 0 meta nfproto ipv4 iifname eth2 counter jump istio-redirect",
    ):
        assert expected in nat
    assert "add rule prerouting iifname eth1 counter return" in rules_of(lines_of(plan("-k", "eth1")), "nat")


@pytest.mark.parametrize("name", WORLDS)
def test_without_ipv6_nothing_is_done_to_ipv6(name: str) -> None:
    argv, world = WORLDS[name]
    found = plan(*(word for word in argv if word != "--dual-stack"), **{**world, "addresses": IPV4_POD})
    assert not found.ipv6
    rules = list(intended(found))
    assert {rule.version for rule in rules} <= {None, 4}
    reached = {("nat", "OUTPUT"), ("nat", "PREROUTING"), ("mangle", "OUTPUT"), ("mangle", "PREROUTING")}
    reached |= {("raw", "OUTPUT"), ("raw", "PREROUTING")}
    for _ in range(4):  # what an IPv6 packet can reach by jumps
        reached |= {
            (rule.table, rule.target.value)
            for rule in rules
            if (rule.table, rule.chain) in reached and rule.version is None and rule.target.kind == "jump"
        }
    met = [rule for rule in rules if (rule.table, rule.chain) in reached and rule.version is None]
    assert {rule.target.kind for rule in met} <= {"return", "jump"}
    assert {rule.target.value for rule in met if rule.target.kind == "jump"} == {"ISTIO_OUTPUT"}


def test_drop_invalid_drops_every_protocol() -> None:
    assert "add rule prerouting ct state invalid counter jump istio-drop" in rules_of(
        lines_of(plan("--drop-invalid", "--dual-stack", addresses=DUAL_POD)), "mangle"
    )
    assert "add rule prerouting meta nfproto ipv4 ct state invalid counter jump istio-drop" in rules_of(
        lines_of(plan("--drop-invalid")), "mangle"
    )


@pytest.mark.parametrize("name", WORLDS)
def test_every_chain_that_is_jumped_to_is_declared(name: str) -> None:
    lines = lines_of(plan_of(name))
    declared = {tuple(line.split()[3:5]) for line in lines if line.startswith("add chain")}
    jumps = [line.split() for line in lines if " jump " in line]
    assert jumps
    assert {(words[3], words[-1]) for words in jumps} <= declared


@pytest.mark.parametrize("name", WORLDS)
def test_each_rule_is_read_as_it_is_written(name: str) -> None:
    for rule in intended(plan_of(name)):
        found = read_rule(rule.table, rule.chain, statement(rule))
        assert normal(found) == normal(rule)
        assert line(found) == line(rule)


@pytest.mark.parametrize(
    ("printed", "written"),
    [
        (
            'iifname "lo" meta mark != 0x0000053a counter packets 3 bytes 180 return',
            "iifname lo mark != 1338 counter return",
        ),
        ("meta l4proto 6 ip daddr 127.0.0.0/8 counter return", "meta l4proto tcp ip daddr 127.0.0.1/8 counter return"),
        ("tcp dport != { 22, 53 } counter drop", "meta l4proto tcp tcp dport != { 53, 22, 53 } counter drop"),
        ("tcp dport != { 53 } counter drop", "tcp dport != 53 counter drop"),
        ("ct state established,related counter drop", "ct state related,established counter drop"),
        ("ct state 0x2,0x4 counter drop", "ct state related,established counter drop"),
        ("counter ct mark set meta mark", "counter ct mark set mark"),
        ("meta skuid 7 meta skgid != 8 counter ct zone set 2", "skuid 7 skgid != 8 counter ct zone set 2"),
        ('ip6 daddr ::1 return comment "why { not"', "ip6 daddr ::1/128 counter return"),
        ("ip daddr 0.0.0.0/0 counter accept", "meta nfproto ipv4 counter accept"),
        ('tcp dport 5 log prefix "new: " level warn drop', "tcp dport 5 counter drop"),
        ("ip protocol tcp accept", "meta nfproto ipv4 meta l4proto tcp counter accept"),
        ("meta nfproto 2 counter meta mark set 0x00000007", "meta nfproto ipv4 counter meta mark set 7"),
    ],
)
def test_spellings_of_one_meaning(printed: str, written: str) -> None:
    assert normal(read_rule("mangle", "OUTPUT", printed)) == normal(read_rule("mangle", "OUTPUT", written))


@pytest.mark.parametrize(
    ("printed", "others", "target"),
    [
        ("ip saddr @blocked tcp dport 80 drop", ["ip saddr @blocked"], Target("drop")),
        ("tcp dport { 80, 443 } ct direction original accept", ["ct direction original"], Target("accept")),
        ("tcp flags & (fin | syn) == syn limit rate 5/second accept", None, Target("accept")),
        ("tcp dport vmap { 80 : accept, 81 : drop }", [], Target("other", "tcp dport vmap { 80 : accept, 81 : drop }")),
        ("ip daddr 10.0.0.1 queue num 3", [], Target("other", "queue num 3")),
        ("reject with tcp reset", [], Target("other", "-j REJECT")),
        ("goto elsewhere", [], Target("other", "-g elsewhere")),
        ("jump elsewhere", [], Target("jump", "elsewhere")),
        ("dnat ip to 10.0.0.1:80", [], Target("other", "-j DNAT --to-destination 10.0.0.1:80")),
        ("redirect to :8000-8010 random", [], Target("other", "-j REDIRECT --to-ports 8000-8010")),
        ("notrack", [], Target("other", "-j NOTRACK")),
        ("tproxy to :80 accept", ["tproxy to :80"], Target("accept")),
        ("meta mark set meta mark and 0xff", [], None),
        ("meta mark & 0x000000ff == 0x00000001 drop", ["mark & 0x000000ff == 0x00000001"], Target("drop")),
        ("ct state vmap { established : accept }", [], None),
        ("counter", [], Target("none")),
        ("", [], Target("none")),
    ],
)
def test_what_is_not_of_capture(printed: str, others: list[str] | None, target: Target | None) -> None:
    rule = read_rule("nat", "OUTPUT", printed)
    found = [match.value for match in rule.matches if match.kind == "other"]
    assert found == others if others is not None else found
    assert rule.target == target if target is not None else rule.target.kind == "other"


def test_sets_are_not_taken_for_ports_or_interfaces() -> None:
    rule = read_rule("nat", "OUTPUT", 'iifname { "a", "b" } tcp dport @ports drop')
    assert [match.kind for match in rule.matches] == ["other"]


LISTING = """\
table inet istio-proxy-nat { # progname x
    comment "a } brace"
    set ports {
        type inet_service
        elements = { 80,
                     443 }
    }

    chain output {
        comment "of ours"
        type nat hook output priority -100; policy accept;
        counter packets 1 bytes 60 jump istio-output
        tcp dport { 1,
                    2 } drop
    }

    chain istio-output {
    }
}
# Warning: table ip nat is managed by iptables-nft, do not touch!
table ip nat {
}
"""


def test_listing() -> None:
    tables = read_listing(LISTING)
    assert [(table.family, table.name) for table in tables] == [("inet", "istio-proxy-nat"), ("ip", "nat")]
    ours = tables[0]
    assert ours.rest == ('comment "a } brace"', "set ports { type inet_service elements = { 80, 443 } }")
    assert [(chain.name, chain.head) for chain in ours.chains] == [
        ("output", "type nat hook output priority -100; policy accept;"),
        ("istio-output", ""),
    ]
    assert ours.chains[0].rules == ("counter packets 1 bytes 60 jump istio-output", "tcp dport { 1, 2 } drop")
    assert len(read_listing(ours.text)) == 1


def test_order_of_insertion() -> None:
    order = by_chain(intended(plan_of("tproxy")))["mangle"]["ISTIO_INBOUND"]
    assert [statement(rule) for rule in order[:4]] == [
        "meta l4proto tcp mark 1337 counter return",
        "iifname lo meta l4proto tcp ip6 saddr ::6/128 counter return",
        "iifname lo meta l4proto tcp mark != 1338 counter return",
        "iifname lo meta l4proto tcp ip saddr 127.0.0.6/32 counter return",
    ]


def test_odd_interface_names_are_quoted() -> None:
    for name, written in (("lo", "lo"), ("eth0", "eth0"), ("mark", '"mark"'), ("rt0", '"rt0"'), ("icmpv6", '"icmpv6"')):
        rule = Rule("nat", "OUTPUT", (Match("out-interface", name),), Target("return"))
        assert statement(rule) == f"oifname {written} counter return"
        assert read_rule("nat", "OUTPUT", statement(rule)) == rule


def test_removal_works_for_tables_that_are_not_there() -> None:
    assert removal(["raw"]) == ["add table inet istio-proxy-raw", "delete table inet istio-proxy-raw"]
