"""Random settings: what iptables-restore and nft load treats every packet alike, and always loads."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from init.backends.choice import Backends
from init.packet import Host, Packet
from init.recipe import make_plan
from init.rules import VERSIONS, Plan
from init.walk import walk
from tests.unit.init import packet_world

from .netns import Namespace, require

pytestmark = pytest.mark.netns

HOST = Host(tuple(ip_address(a) for a in (*packet_world.POD.values(), *packet_world.LOOPBACK.values())))
PORTS = ("22", "53", "80", "8080", "9000:9010", "15008", "15020")
RANGES = ("10.1.0.0/16", "10.9.9.0/24", "1.2.3.4/32", "0.0.0.0/0", "127.1.2.3/32", "fd00::/8", "2001:db8::/32", "::/0")
IDS = (3, 4, 1000, 1337)


def csv(values: tuple[str, ...], most: int = 3) -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(values), max_size=most, unique=True).map(",".join)


FLAGS = st.fixed_dictionaries(
    {},
    optional={
        "-u": csv(tuple(map(str, IDS)), 2).filter(bool),
        "-g": csv(tuple(map(str, IDS)), 2),
        "-m": st.sampled_from(("REDIRECT", "TPROXY")),
        "-b": st.just("*") | csv(PORTS),
        "-d": csv(PORTS),
        "-i": st.just("*") | csv(RANGES),
        "-x": csv(RANGES),
        "-q": csv(PORTS),
        "-o": csv(PORTS),
        "-c": csv(("eth0", "net1", "lo")),
        "-k": csv(("eth0", "virt0")),
        "--redirect-dns": st.just("=true"),
        "--capture-all-dns": st.just("=true"),
        "--drop-invalid": st.just("=true"),
        "--dual-stack": st.just("=true"),
    },
)
GROUPS = st.fixed_dictionaries(
    {},
    optional={
        "ISTIO_OUTBOUND_OWNER_GROUPS": csv(tuple(map(str, IDS))).filter(bool),
        "ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE": csv(tuple(map(str, IDS))),
    },
)
ADDRESSES = {
    4: ("1.2.3.4", "10.1.2.3", "127.0.0.1", "127.1.2.3", "127.0.0.6", "10.96.0.10", packet_world.POD[4]),
    6: ("2001:db8::1", "fd00:5::1", "::1", "::6", "fd00:10::a", packet_world.POD[6]),
}


def packets(version: int) -> Iterator[Packet]:
    """Each kind of sender to each address and some ports, and what comes in."""
    for address in ADDRESSES[version]:
        for port in (22, 53, 8080, 9005, 15008):
            for uid, gid in ((1000, 1000), (1337, 1337), (3, 1000), (1000, 4)):
                for udp in (False, True):
                    if port == 53 or not udp:
                        yield packet_world.outbound(f"[{address}]:{port}", uid=uid, gid=gid, udp=udp)
    for port in (22, 80, 9005, 15008, 15020):
        for interface in ("eth0", "virt0", "net1"):
            for state in ("NEW", "INVALID"):
                yield packet_world.inbound(port, packet_world.POD[version], interface, state=state)


@pytest.fixture(scope="module")
def pod() -> Iterator[Namespace]:
    require()
    with Namespace() as namespace:
        yield namespace


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(flags=FLAGS, env=GROUPS)
def test_both_backends_treat_packets_alike(pod: Namespace, flags: dict[str, str], env: dict[str, str]) -> None:
    argv = [word for flag, value in flags.items() for word in ([flag + value] if value == "=true" else [flag, value])]
    resolv_conf = "nameserver 10.96.0.10\nnameserver fd00:10::a\n"
    made = packet_world.settings(*argv, env=env, resolv_conf=resolv_conf, dual="--dual-stack" in flags)
    plan = make_plan(made)
    effects = {}
    with pod.entered():
        for kind in ("iptables-nft", "nftables"):
            effects[kind] = effects_of(kind, plan)
    for one, other in zip(*effects.values(), strict=True):
        assert one == other


def effects_of(kind: str, plan: Plan) -> list[tuple[Packet, object]]:
    """What happens to every packet once the plan is in the kernel, which is left empty."""
    backend = Backends(None).get(kind)
    stores = [(store, store.holding(plan)) for store in backend.stores(plan)]
    for store, present in stores:
        store.replace(present, plan)
    try:
        kernel = backend.rules_in_kernel()
        return [
            (packet, walk(packet, {kind: kernel[version]} if version in kernel else {}, HOST).effect)
            for version in VERSIONS
            for packet in packets(version)
        ]
    finally:
        for store, _ in stores:
            store.replace(store.holding(plan), None)
