"""Which probes `--run-validation` makes of which settings: as a table, and against a walk through the planned rules."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from init_worlds import DUAL_POD, IPV4_POD, settings

from init.errors import ValidationError
from init.log import Log, LogOptions
from init.packet import Host, Packet, Ruleset
from init.probe import validate
from init.probe_plan import Identity, Probe, Skipped, Surroundings, captured_targets, choose_probes, inbound, outbound
from init.recipe import make_plan
from init.rules import Version
from init.settings import Settings
from init.values import IPAddress
from init.walk import walk

ROOT, PROXY, APPLICATION = Identity(0, 0), Identity(1337, 1337), Identity(1000, 1000)
DEFAULT_ROUTES = {"0.0.0.0/0": "eth0", "::/0": "eth0"}  # network -> interface, the first match counts
FULL = ("-u", "1337", "-b", "*", "-i", "*")


def world(
    identity: Identity = ROOT,
    addresses: Sequence[str] = DUAL_POD,
    interfaces: Mapping[str, str] = DEFAULT_ROUTES,
) -> Surroundings:
    """A pod with these addresses and routes; root can become anybody."""
    own = [ipaddress.ip_address(address) for address in addresses]

    def interface_to(address: IPAddress) -> str | None:
        if address in own or address.is_loopback:
            return None
        found = (name for network, name in interfaces.items() if address in ipaddress.ip_network(network))
        return next(found, None)

    return Surroundings(identity, lambda wanted: wanted == identity or identity.uid == 0, own, interface_to)


def tried(found: Probe | Skipped) -> str:
    """A probe or the reason why there is none, in one line."""
    return (
        str(found) if isinstance(found, Skipped) else f"{found.destination} as {found.identity} to {found.arrives_at}"
    )


@pytest.mark.parametrize(
    ("argv", "version", "expected"),
    [
        (FULL, 4, "192.0.2.1:15002 as uid 0 gid 0 to 15001"),
        (FULL, 6, "[2001:db8::1]:15002 as uid 0 gid 0 to 15001"),
        ((*FULL, "-p", "25001"), 4, "192.0.2.1:15002 as uid 0 gid 0 to 25001"),
        ((*FULL, "--iptables-probe-port=0"), 4, "192.0.2.1:15002 as uid 0 gid 0 to 15001"),
        # ports
        ((*FULL, "-o", "15002"), 4, "192.0.2.1:15003 as uid 0 gid 0 to 15001"),
        ((*FULL, "-o", "15000:15010,15011"), 4, "192.0.2.1:15012 as uid 0 gid 0 to 15001"),
        ((*FULL, "-o", "15002:65535,1:79"), 4, "192.0.2.1:80 as uid 0 gid 0 to 15001"),
        ((*FULL, "-o", "1:65535"), 4, "outbound IPv4 is not probed: these settings capture no destination"),
        (("-q", "80,443"), 4, "192.0.2.1:80 as uid 0 gid 0 to 15001"),
        (("-q", "80,443", "-o", "80"), 4, "192.0.2.1:443 as uid 0 gid 0 to 15001"),
        (("-q", "80:90", "-o", "70:85"), 4, "192.0.2.1:86 as uid 0 gid 0 to 15001"),
        (("-q", "53,54", "--redirect-dns"), 4, "192.0.2.1:54 as uid 0 gid 0 to 15001"),
        (("-q", "80", "-i", "10.0.0.0/8"), 4, "10.0.0.1:15002 as uid 0 gid 0 to 15001"),
        (("-q", "80", "-i", "10.0.0.0/8", "-x", "10.0.0.0/8"), 4, "192.0.2.1:80 as uid 0 gid 0 to 15001"),
        # ranges
        (("-i", "10.9.0.7/16"), 4, "10.9.0.1:15002 as uid 0 gid 0 to 15001"),
        (("-i", "10.9.0.7/32"), 4, "10.9.0.7:15002 as uid 0 gid 0 to 15001"),
        (("-i", "10.9.0.6/31", "-x", "10.9.0.6/32"), 4, "10.9.0.7:15002 as uid 0 gid 0 to 15001"),
        (("-i", "10.0.0.0/8", "-x", "10.0.0.0/16,10.1.0.0/16"), 4, "10.2.0.0:15002 as uid 0 gid 0 to 15001"),
        (("-i", "192.0.0.0/16", "-x", "192.0.2.0/24"), 4, "192.0.0.1:15002 as uid 0 gid 0 to 15001"),
        ((*FULL, "-x", "192.0.2.0/24"), 4, "198.51.100.1:15002 as uid 0 gid 0 to 15001"),
        ((*FULL, "-x", "128.0.0.0/1,0.0.0.0/2"), 4, "64.0.0.0:15002 as uid 0 gid 0 to 15001"),
        ((*FULL, "-x", "0.0.0.0/0"), 4, "outbound IPv4 is not probed: these settings capture no destination"),
        (("-i", "fd00:1::/64"), 4, "outbound IPv4 is not probed: these settings capture no destination"),
        (("-i", "fd00:1::/64"), 6, "[fd00:1::1]:15002 as uid 0 gid 0 to 15001"),
        (("-i", "::ffff:10.0.0.0/104"), 6, "outbound IPv6 is not probed: these settings capture no destination"),
        (("-i", "127.1.2.3/32"), 4, "outbound IPv4 is not probed: these settings capture no destination"),
        (("-i", "127.1.2.3/32,10.9.0.0/16"), 4, "10.9.0.1:15002 as uid 0 gid 0 to 15001"),
        (("-i", "224.0.0.0/4"), 4, "outbound IPv4 is not probed: these settings capture no destination"),
        (("-i", "10.10.0.41/32"), 4, "outbound IPv4 is not probed: there is no route to a captured destination"),
        ((), 4, "outbound IPv4 is not probed: these settings capture no destination"),
        # identities
        ((*FULL, "-u", "0"), 4, "192.0.2.1:15002 as uid 65534 gid 65534 to 15001"),
        ((*FULL, "-u", "0,65534", "-g", "1"), 4, "192.0.2.1:15002 as uid 65533 gid 0 to 15001"),
    ],
)
def test_outbound_destination(argv: tuple[str, ...], version: Version, expected: str) -> None:
    found = tried(outbound(settings(*argv, "--dual-stack", addresses=DUAL_POD), version, world()))
    assert found.startswith(expected)


@pytest.mark.parametrize(
    ("environ", "argv", "expected"),
    [
        ({"ISTIO_OUTBOUND_OWNER_GROUPS": "7,java"}, (), "192.0.2.1:15002 as uid 0 gid 7 to 15001"),
        ({"ISTIO_OUTBOUND_OWNER_GROUPS": "7,0"}, (), "192.0.2.1:15002 as uid 0 gid 0 to 15001"),
        ({"ISTIO_OUTBOUND_OWNER_GROUPS": "7,8"}, ("-g", "7"), "192.0.2.1:15002 as uid 0 gid 8 to 15001"),
        (
            {"ISTIO_OUTBOUND_OWNER_GROUPS": "7"},
            ("-g", "7"),
            "outbound IPv4 is not probed: these settings capture only groups that are the proxy's own",
        ),
        ({"ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE": "0,65534"}, (), "192.0.2.1:15002 as uid 0 gid 65533 to 15001"),
        (  # without effect when groups are included
            {"ISTIO_OUTBOUND_OWNER_GROUPS": "7", "ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE": "7"},
            (),
            "192.0.2.1:15002 as uid 0 gid 7 to 15001",
        ),
    ],
)
def test_outbound_group(environ: dict[str, str], argv: tuple[str, ...], expected: str) -> None:
    assert tried(outbound(settings(*FULL, *argv, environ=environ), 4, world())) == expected


@pytest.mark.parametrize(
    ("argv", "interfaces", "expected"),
    [
        (FULL, {"10.10.0.0/24": "eth0"}, "10.10.0.40:15002 as uid 0 gid 0 to 15001"),  # no default route
        ((*FULL, "-x", "10.10.0.40/32"), {"10.10.0.0/24": "eth0"}, "10.10.0.43:15002 as uid 0 gid 0 to 15001"),
        (("-i", "10.0.0.0/8"), {"10.10.0.0/24": "eth0"}, "10.10.0.40:15002 as uid 0 gid 0 to 15001"),
        (("-i", "10.11.0.0/16"), {"10.10.0.0/24": "eth0"}, "outbound IPv4 is not probed: there is no route"),
        (FULL, {}, "outbound IPv4 is not probed: there is no route to a captured destination such as 192.0.2.1:15002"),
        (
            (*FULL, "-c", "eth0,net1"),
            {"0.0.0.0/0": "eth0"},
            "outbound IPv4 is not probed: what is captured leaves by the excluded interface eth0",
        ),
        (
            (*FULL, "-c", "net1"),
            {"10.10.0.0/24": "eth0", "0.0.0.0/0": "net1"},
            "10.10.0.40:15002 as uid 0 gid 0 to 15001",
        ),
    ],
)
def test_outbound_route(argv: tuple[str, ...], interfaces: dict[str, str], expected: str) -> None:
    found = tried(outbound(settings(*argv), 4, world(addresses=IPV4_POD, interfaces=interfaces)))
    assert found.startswith(expected)


@pytest.mark.parametrize(
    ("argv", "environ", "version", "expected"),
    [
        ((), {}, 4, "127.0.0.6:15002 as uid 1337 gid 1337 to 15006"),
        ((), {}, 6, "[::6]:15002 as uid 1337 gid 1337 to 15006"),
        (("-u", "3,4", "-g", "5", "-z", "16006"), {}, 4, "127.0.0.6:15002 as uid 3 gid 5 to 16006"),
        (("-m", "TPROXY"), {}, 4, "127.0.0.6:15002 as uid 1337 gid 1337 to 15006"),
        (("--iptables-probe-port", "7"), {}, 4, "127.0.0.6:7 as uid 1337 gid 1337 to 15006"),
        (("-o", "15000:15010"), {}, 4, "inbound IPv4 is not probed: port 15002 is exempt"),
        (("-e", "15002"), {}, 4, "inbound IPv4 is not probed: port 15002 is exempt"),
        (("--redirect-dns", "--iptables-probe-port=53"), {}, 4, "inbound IPv4 is not probed: port 53 is exempt"),
        (("-c", "eth1,lo"), {}, 4, "inbound IPv4 is not probed: lo is an excluded interface"),
        # 127.0.0.6 counts as this host: the pod's own address serves as well, if there is one
        ((), {"ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR": "127.0.0.1/8"}, 4, "10.10.0.41:15002 as uid 1337"),
        ((), {"ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR": "127.0.0.1/8"}, 6, "[::6]:15002 as uid 1337"),
        ((), {"ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR": "127.0.0.1/30"}, 4, "127.0.0.6:15002 as uid 1337"),
    ],
)
def test_inbound_destination(argv: tuple[str, ...], environ: dict[str, str], version: Version, expected: str) -> None:
    found = inbound(settings(*argv, "--dual-stack", environ=environ, addresses=DUAL_POD), version, world())
    assert tried(found).startswith(expected)


def test_inbound_cannot_be_probed_where_every_address_is_loopback() -> None:
    covered = settings(environ={"ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR": "127.0.0.0/8"})
    found = inbound(covered, 4, world(addresses=("127.0.0.1", "169.254.0.9", "fd00:10::41")))
    assert "ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR 127.0.0.0/8 covers every address" in str(found)


@pytest.mark.parametrize(
    ("argv", "identity", "inbound_as", "outbound_as"),
    [
        (FULL, ROOT, PROXY, ROOT),
        (FULL, PROXY, PROXY, None),
        (FULL, Identity(1337, 1000), Identity(1337, 1000), None),
        (FULL, Identity(1000, 1337), None, None),
        (FULL, APPLICATION, None, APPLICATION),
        ((*FULL, "-u", "3,1337", "-g", "5"), PROXY, None, None),  # the second uid's own calls are not captured
        # without rule 12b, which a captured loopback range removes, those of every uid and gid of the proxy are
        (("-u", "3,1337", "-i", "127.1.1.1/32,10.0.0.0/8"), PROXY, PROXY, None),
        (("-u", "3", "-g", "5", "-i", "127.1.1.1/32,10.0.0.0/8"), Identity(9, 5), Identity(9, 5), None),
    ],
)
def test_who_can_probe_what(
    argv: tuple[str, ...], identity: Identity, inbound_as: Identity | None, outbound_as: Identity | None
) -> None:
    probes, skipped = choose_probes(settings(*argv), world(identity))
    assert {probe.direction: probe.identity for probe in probes} == {
        direction: who for direction, who in (("inbound", inbound_as), ("outbound", outbound_as)) if who is not None
    }
    assert len(probes) + len(skipped) == 2
    for one in skipped:
        assert str(identity) in one.reason and "cannot become" in one.reason
        assert one.harmless == (one.direction == "outbound")


def test_families() -> None:
    def families(*argv: str) -> list[tuple[str, int]]:
        probes, skipped = choose_probes(settings(*FULL, *argv, addresses=DUAL_POD), world())
        assert not skipped
        return [(probe.direction, probe.version) for probe in probes]

    assert families() == [("inbound", 4), ("outbound", 4)]
    assert families("--dual-stack") == [("inbound", 4), ("outbound", 4), ("inbound", 6), ("outbound", 6)]


def silent() -> Log:
    return Log(LogOptions("none", False, (), "none", False))


@pytest.mark.parametrize("timeout", ["0", "-1s"])
def test_no_time_is_a_failure_at_once(timeout: str) -> None:
    with pytest.raises(ValidationError, match="--probe-timeout .* leaves no time") as error:
        validate(settings(*FULL, "--probe-timeout", timeout), silent())
    assert error.value.exit_code == 126


def test_nothing_to_probe_is_a_failure_that_gives_the_reasons() -> None:
    with pytest.raises(ValidationError) as error:
        validate(settings("-c", "lo"), silent())
    assert [line.partition(" is not probed: ")[0] for line in error.value.lines] == [
        "validation: inbound IPv4",
        "validation: outbound IPv4",
    ]


def test_the_one_address_among_thousands_of_excluded_ranges_is_found() -> None:
    ranges = [f"10.{n >> 8}.{n & 255}.0/24" for n in range(3500)]
    excluded = [*ranges[:3210], *(f"10.12.138.{n}/32" for n in range(256) if n != 77), *ranges[3211:]]
    large = settings("-i", ",".join(ranges), "-x", ",".join(excluded))
    found = list(captured_targets(large, 4, [ipaddress.ip_address("10.10.0.41")]))
    assert found == [(ipaddress.ip_address("10.12.138.77"), 15002)]


PORTS = st.lists(st.sampled_from(["53", "80", "15002", "15003", "1:65535", "15000:15010"]), max_size=3).map(",".join)
RANGES = st.lists(
    st.sampled_from(
        "10.0.0.0/8 10.10.0.0/24 10.10.0.41/32 10.96.0.10/32 192.0.2.0/24 0.0.0.0/0 128.0.0.0/1 127.1.2.3/32 "
        "fd00::/8 fd00:10::41/128 fd00:10::/64 2001:db8::/32 ::/0 ::1/128".split()
    ),
    max_size=4,
).map(",".join)
IDS = st.lists(st.sampled_from(["0", "1337", "1000", "65534"]), min_size=1, max_size=3, unique=True).map(",".join)
FLAGS = st.fixed_dictionaries(
    {
        "--istio-service-cidr": st.just("*") | RANGES,
        "--istio-service-exclude-cidr": RANGES,
        "--istio-outbound-ports": PORTS,
        "--istio-local-outbound-ports-exclude": PORTS,
        "--istio-inbound-ports": st.sampled_from(["", "*", "8080"]),
        "--istio-inbound-interception-mode": st.sampled_from(["REDIRECT", "TPROXY"]),
        "--istio-exclude-interfaces": st.sampled_from(["", "eth0", "lo", "net1"]),
        "--proxy-uid": IDS,
        "--proxy-gid": IDS,
        "--redirect-dns": st.sampled_from(["true", "false"]),
        "--capture-all-dns": st.sampled_from(["true", "false"]),
        "--inbound-tunnel-port": st.sampled_from(["15008", "15002"]),
    }
)
GROUPS = st.sampled_from(
    [
        {},
        {"ISTIO_OUTBOUND_OWNER_GROUPS": "0,java"},
        {"ISTIO_OUTBOUND_OWNER_GROUPS": "1337"},
        {"ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE": "0,65534"},
    ]
)
LOOPBACKS = st.sampled_from(["127.0.0.1/32", "127.0.0.1/8", "127.0.0.1/29"])


@given(FLAGS, GROUPS, LOOPBACKS, st.sampled_from([ROOT, PROXY, APPLICATION, Identity(1000, 1337)]))
@example(dict.fromkeys(["--istio-service-cidr"], "*"), {}, "127.0.0.1/32", ROOT)
def test_the_planned_rules_send_every_probe_where_it_is_expected(
    flags: dict[str, str], groups: dict[str, str], loopback: str, identity: Identity
) -> None:
    """And a default route and a neighbour are enough: a direction is skipped only where no such probe exists."""
    wanted = settings(
        *(f"{name}={value}" for name, value in flags.items()),
        "--dual-stack",
        environ={**groups, "ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR": loopback},
        addresses=DUAL_POD,
    )
    around = world(identity)
    probes, skipped = choose_probes(wanted, around)
    assert len(probes) + len(skipped) == 4
    for probe in probes:
        assert arrival(wanted, around, probe) == ("redirected", probe.arrives_at), probe
    if identity == ROOT:
        for one in skipped:
            for uid in (0, 1000, 1337, 65533, 65534):
                attempt = sample(wanted, one, uid)
                assert arrival(wanted, around, attempt) != ("redirected", attempt.arrives_at), (one, attempt)


def sample(wanted: Settings, skipped: Skipped, uid: int) -> Probe:
    """What a simpler program would have tried."""
    address = {("inbound", 4): "127.0.0.6", ("inbound", 6): "::6", ("outbound", 4): "192.0.2.1"}
    target = ipaddress.ip_address(address.get((skipped.direction, skipped.version), "2001:db8::1"))
    arrives_at = wanted.inbound_capture_port if skipped.direction == "inbound" else wanted.proxy_port
    source = {4: "127.0.0.1", 6: "::1"}[skipped.version] if skipped.direction == "inbound" else ""
    identity = Identity(uid, uid)
    return Probe(skipped.direction, skipped.version, identity, source, target, wanted.probe_port, arrives_at)


def arrival(wanted: Settings, around: Surroundings, probe: Probe) -> tuple[str, int]:
    own = {4: "10.10.0.41", 6: "fd00:10::41"}[probe.version]
    packet = Packet(
        inbound=False,
        protocol="tcp",
        source=ipaddress.ip_address(probe.source or own),
        destination=probe.address,
        destination_port=probe.port,
        interface=around.interface_to(probe.address) or "lo",
        uid=probe.identity.uid,
        gid=probe.identity.gid,
    )
    here = Host([*around.addresses, ipaddress.ip_address("::6")])
    outcome = walk(packet, {"iptables": Ruleset.of(make_plan(wanted).of(probe.version))}, here)
    return outcome.verdict, outcome.port
