"""Where packets go once the rules are in the kernel: real sockets of real identities, for each backend and family."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import pytest

from .capture_world import (
    APPLICATION,
    DNS,
    PROXY_IN,
    PROXY_OUT,
    SECOND,
    SERVER,
    TUNNEL,
    WHERE,
    World,
)
from .netns import Namespace, require, require_python

pytestmark = pytest.mark.netns

BACKENDS = ("iptables-nft", "iptables-legacy", "libiptc", "nftables")
APP, PROXY = (1000, 1000), (1337, 1337)
TPROXY_PROXY = (0, 1337)  # with TPROXY the injector runs the proxy as root of that group
EVERYTHING = ("-u", "1337", "-b", "*", "-i", "*", "-d", "15020")
NOBODY = None  # refused or unanswered


@dataclass(frozen=True)
class Row:
    """`who` sends to `where`:`port`; `lands` is the listener's name."""

    who: tuple[int, int]
    where: str
    port: int
    lands: str | None
    udp: bool = False
    outside: bool = False
    groups: tuple[int, ...] = ()
    versions: tuple[int, ...] = (4, 6)


@dataclass(frozen=True)
class Case:
    name: str
    argv: tuple[str, ...]
    rows: tuple[Row, ...]
    env: Mapping[str, str] = field(default_factory=dict)


def outside(where: str, port: int, lands: str, **more: object) -> Row:
    return Row((0, 0), where, port, lands, outside=True, **more)  # type: ignore[arg-type]


CASES = (
    Case(
        "everything",
        EVERYTHING,
        (
            Row(APP, "server", APPLICATION, "outbound"),
            Row(APP, "other", SECOND, "outbound"),
            Row(PROXY, "server", APPLICATION, "server"),
            Row((1000, 1337), "server", APPLICATION, "server"),
            Row((1337, 1000), "server", APPLICATION, "server"),
            Row(APP, "server", APPLICATION, "outbound", groups=(1337,)),  # supplementary groups do not count
            # calls to the own pod
            Row(APP, "pod", APPLICATION, "application"),
            Row(APP, "lo", APPLICATION, "application"),
            Row(APP, "127.0.0.2", APPLICATION, "application", versions=(4,)),
            Row(PROXY, "pod", APPLICATION, "inbound"),
            Row(PROXY, "pod", TUNNEL, "tunnel"),
            Row(PROXY, "lo", APPLICATION, "application"),
            Row((1000, 1337), "pod", APPLICATION, "application"),
            # passthrough address
            Row(PROXY, "127.0.0.6", APPLICATION, "inbound", versions=(4,)),
            # UDP is never redirected
            Row(APP, "server", DNS, "resolver", udp=True),
            outside("pod", APPLICATION, "inbound"),
            outside("pod", SECOND, "inbound"),
            outside("pod", TUNNEL, "tunnel"),
        ),
    ),
    Case(
        "several identities: later ones are shadowed",
        ("-u", "3,4", "-g", "5", "-b", "*", "-i", "*"),
        (
            Row((3, 1000), "pod", APPLICATION, "inbound"),
            Row((4, 1000), "pod", APPLICATION, "application"),
            Row((1000, 5), "pod", APPLICATION, "application"),
            Row((4, 1000), "server", APPLICATION, "server"),
            Row((1000, 5), "server", APPLICATION, "server"),
            Row(PROXY, "server", APPLICATION, "outbound"),
        ),
    ),
    Case(
        "an excluded range beats an included port",
        ("-u", "1337", "-x", f"{SERVER[4]}/24,{SERVER[6]}/64", "-q", str(APPLICATION), "-i", ""),
        (
            Row(APP, "server", APPLICATION, "server"),
            Row(APP, "other", APPLICATION, "outbound"),
            Row(APP, "other", SECOND, "server second"),
            outside("pod", APPLICATION, "application"),
        ),
    ),
    Case(
        "an excluded port beats everything, self-calls too",
        ("-u", "1337", "-i", "*", "-q", f"{APPLICATION}", "-o", f"{APPLICATION}", "-b", "*"),
        (
            Row(APP, "server", APPLICATION, "server"),
            Row(PROXY, "pod", APPLICATION, "application"),
            Row(PROXY, "pod", SECOND, "inbound"),
        ),
    ),
    Case(
        "inbound ports and ranges of them",
        ("-u", "1337", "-b", f"{APPLICATION - 1}:{APPLICATION}", "-d", f"{APPLICATION}"),  # -d is ignored
        (
            outside("pod", APPLICATION, "inbound"),
            outside("pod", SECOND, "second"),
            Row(APP, "server", APPLICATION, "server"),
        ),
    ),
    Case(
        "excluded inbound ports and ranges of them",
        ("-u", "1337", "-b", "*", "-d", f"22,{APPLICATION - 1}:{APPLICATION}"),
        (outside("pod", APPLICATION, "application"), outside("pod", SECOND, "inbound")),
    ),
    Case("nothing asked for, nothing captured", ("-u", "1337"), (Row(APP, "server", APPLICATION, "server"),)),
    Case(
        "a captured loopback address removes the exemption of lo",
        ("-u", "1337", "-i", "127.1.2.3/32", "-b", "*"),
        (
            Row(APP, "127.1.2.3", APPLICATION, "outbound", versions=(4,)),
            Row(APP, "lo", APPLICATION, "application"),
        ),
    ),
    Case(
        "included owner groups",
        ("-u", "1337", "-i", "*"),
        (
            Row((1000, 2001), "server", APPLICATION, "outbound"),
            Row((1000, 2000), "server", APPLICATION, "outbound"),
            Row(APP, "server", APPLICATION, "server"),
        ),
        {"ISTIO_OUTBOUND_OWNER_GROUPS": "2000,2001"},
    ),
    Case(
        "excluded owner groups",
        ("-u", "1337", "-i", "*", "--redirect-dns"),
        (
            Row((1000, 2001), "server", APPLICATION, "server"),
            Row((1000, 2001), "server", DNS, "resolver", udp=True),
            Row(APP, "server", APPLICATION, "outbound"),
            Row(APP, "server", DNS, "dns proxy", udp=True),
        ),
        {"ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE": "2001"},
    ),
    Case(
        "an excluded interface is exempt in both directions",
        (*EVERYTHING, "-c", "eth0,absent0"),
        (Row(APP, "server", APPLICATION, "server"), outside("pod", APPLICATION, "application")),
    ),
    Case(
        "what comes in by a virtual interface is outbound",
        ("-u", "1337", "-b", "*", "-k", "eth0", "-i", f"{SERVER[4]}/24,{SERVER[6]}/64"),
        (outside("pod", APPLICATION, "outbound"),),
    ),
    Case(
        "DNS to the resolvers of resolv.conf",
        (*EVERYTHING, "--redirect-dns"),
        (
            Row(APP, "server", DNS, "dns proxy", udp=True),
            Row(APP, "server", DNS, "dns proxy tcp"),
            Row(APP, "other", DNS, "other resolver", udp=True),
            Row(APP, "other", DNS, "outbound"),
            Row(PROXY, "server", DNS, "resolver", udp=True),
            Row(PROXY, "server", DNS, "server dns"),
            Row(PROXY, "pod", APPLICATION, "inbound"),
        ),
    ),
    Case(
        "all DNS",
        (*EVERYTHING, "--redirect-dns", "--capture-all-dns"),
        (
            Row(APP, "server", DNS, "dns proxy", udp=True),
            Row(APP, "other", DNS, "dns proxy", udp=True),
            Row(APP, "lo", DNS, "dns proxy", udp=True),
            Row(APP, "pod", DNS, "dns proxy", udp=True),
            Row(APP, "other", DNS, "dns proxy tcp"),
            Row(PROXY, "other", DNS, "other resolver", udp=True),
        ),
    ),
    Case(
        "other ports",
        ("-u", "1337", "-b", "*", "-i", "*", "-p", str(TUNNEL), "-z", str(PROXY_OUT), "-e", str(PROXY_IN)),
        (
            Row(APP, "server", APPLICATION, "tunnel"),
            outside("pod", APPLICATION, "outbound"),
            outside("pod", PROXY_IN, "inbound"),
        ),
    ),
    Case(
        "TPROXY",
        ("-m", "TPROXY", "-u", "1337", "-b", "*", "-i", "*", "-d", str(SECOND)),
        (
            outside("pod", APPLICATION, "inbound"),
            outside("pod", SECOND, "second"),
            outside("pod", TUNNEL, "inbound"),
            Row(APP, "server", APPLICATION, "outbound"),
            Row(PROXY, "server", APPLICATION, "server"),
            Row(APP, "pod", APPLICATION, "application"),
            Row(APP, "lo", APPLICATION, "application"),
            Row(PROXY, "pod", APPLICATION, "inbound"),
        ),
    ),
    Case(
        "TPROXY with ports, INVALID packets dropped",
        ("-m", "TPROXY", "-u", "1337", "-b", f"{APPLICATION}", "-i", "*", "-t", "77", "-r", "177", "--drop-invalid"),
        (outside("pod", APPLICATION, "inbound"), outside("pod", SECOND, "second")),
    ),
)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    require()
    require_python(1000)
    with Namespace() as pod, Namespace() as server, World(pod, server) as world:
        pod.resolv_conf(f"nameserver {SERVER[4]}\nnameserver {SERVER[6]}\n")
        yield world


def installed(world: World, backend: str, *arguments: str, env: Mapping[str, str] | None = None) -> None:
    argv = ("--reconcile", "--dual-stack", "--backend", backend, *arguments)
    done = world.pod.python("-m", "init", *argv, env=env)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("backend", BACKENDS)
def test_where_packets_land(world: World, backend: str, case: Case) -> None:
    installed(world, backend, *case.argv, env=case.env)
    for row in case.rows:
        for version in row.versions:
            to = WHERE[row.where][version] if row.where in WHERE else row.where
            found = world.sends(to, row.port, who=row.who, udp=row.udp, outside=row.outside, groups=row.groups)
            assert (found.name if found else None) == row.lands, (row, to)
            if found and found.name in ("outbound", "inbound"):
                assert found.destination == (to, row.port)  # the proxy learns where it was going


@pytest.mark.parametrize("backend", BACKENDS)
def test_tproxy_keeps_the_address_of_the_client_up_to_the_application(world: World, backend: str) -> None:
    installed(world, backend, "-m", "TPROXY", "-u", "1337", "-b", "*", "-i", "*")
    for version, address in SERVER.items():
        to = WHERE["pod"][version]
        arrived = world.sends(to, APPLICATION, outside=True)
        assert arrived and (arrived.name, arrived.client) == ("inbound", address)
        # The proxy goes on to the application with that address and the mark; the replies find the proxy again.
        arrived = world.sends(to, APPLICATION, who=TPROXY_PROXY, source=address, mark=1337)
        assert arrived and (arrived.name, arrived.client) == ("application", address)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("argv", [(), ("--capture-all-dns",)], ids=["resolvers", "all"])
def test_queries_of_proxy_and_application_from_one_port_are_not_one_connection(
    world: World, backend: str, argv: tuple[str, ...]
) -> None:
    """Conntrack zones: the same source port, resolver and protocol, yet two conversations."""
    installed(world, backend, *EVERYTHING, "--redirect-dns", *argv)
    for version, address in SERVER.items():
        for attempt in range(2):
            port = 40_000 + version * 10
            assert world.sends(address, DNS, udp=True, sport=port, who=APP).name == "dns proxy", attempt  # type: ignore[union-attr]
            assert world.sends(address, DNS, udp=True, sport=port, who=PROXY).name == "resolver", attempt  # type: ignore[union-attr]


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_dual_stack_ipv6_is_left_alone(world: World, backend: str) -> None:
    """Rules of nft that name no family would capture it."""
    installed(world, backend, *EVERYTHING, "--redirect-dns", "--dual-stack=false")
    assert world.sends(SERVER[4], APPLICATION).name == "outbound"  # type: ignore[union-attr]
    assert world.sends(SERVER[6], APPLICATION).name == "server"  # type: ignore[union-attr]
    assert world.sends(WHERE["pod"][6], APPLICATION, outside=True).name == "application"  # type: ignore[union-attr]
    assert world.sends(WHERE["pod"][6], APPLICATION, who=PROXY).name == "application"  # type: ignore[union-attr]
    assert world.sends(SERVER[6], DNS, udp=True).name == "resolver"  # type: ignore[union-attr]
