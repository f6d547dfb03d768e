"""STRICT_DNS clusters: answers that change, names that vanish, resolvers that fail."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from proxy.config import model
from proxy.config.model import SocketAddress
from tests.unit.http.http_world import World
from tests.unit.upstream.upstream_world import Resolver, User, answer, the_cluster, world_with

V4, V6 = socket.AF_INET, socket.AF_INET6


class Dns:
    """A cluster of the given names and its resolver."""

    def __init__(self, *names: str, **settings: Any) -> None:
        settings.setdefault("dns_lookup_family", "V4_ONLY")
        names = names or ("a",)
        self.world: World = world_with(model.Cluster(
            "up", type=model.STRICT_DNS, dns_refresh_rate=5.0, **settings,
            endpoints=tuple(model.Endpoint(SocketAddress(name, 80 + n)) for n, name in enumerate(names))))
        self.resolver = Resolver()
        self.world.loop.resolver = self.resolver
        self.cluster = the_cluster(self.world)

    def answers(self, *addresses: str, name: str = "a", family: int = V4) -> None:
        self.resolver.answers[name, family] = list(addresses)

    def fails(self, number: int, name: str = "a", family: int = V4) -> None:
        self.resolver.answers[name, family] = number

    def start(self) -> None:
        self.world.context.spawn(self.cluster.start(), "start")
        self.world.loop.run()

    def refresh(self) -> None:
        self.world.advance(5.1)

    @property
    def hosts(self) -> list[str]:
        return [host.address.text for host in self.cluster.hosts]


@pytest.fixture(autouse=True)
def one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """asyncio.gather needs a real loop; the names are asked in turn instead, with the same answers."""
    async def gather(*coroutines: Any) -> list[Any]:
        return [await c for c in coroutines]
    monkeypatch.setattr("proxy.upstream.strict_dns.asyncio.gather", gather)


def test_every_address_of_every_name() -> None:
    dns = Dns("a", "b")
    dns.answers("10.0.0.1", "10.0.0.2", "10.0.0.1")
    dns.answers("10.0.0.3", name="b")
    assert dns.hosts == []
    dns.start()
    assert dns.hosts == ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:81"]
    assert [h.hostname for h in dns.cluster.hosts] == [b"a", b"a", b"b"]
    assert (dns.cluster.stats.update_attempt, dns.cluster.stats.update_success) == (2, 2)


def test_answers_change() -> None:
    dns = Dns()
    dns.answers("10.0.0.1", "10.0.0.2")
    dns.start()
    kept = dns.cluster.hosts[1]
    users = []
    for host in dns.cluster.hosts:
        user = User()
        host.pools[0].acquire(user)
        dns.world.loop.run()
        answer(dns.world, user)
        users.append(user)
    dns.answers("10.0.0.2", "10.0.0.3")
    dns.refresh()
    assert dns.hosts == ["10.0.0.2:80", "10.0.0.3:80"]
    assert dns.cluster.hosts[0] is kept
    first, second = dns.world.upstreams
    assert first.closed and not second.closed
    assert dns.cluster.stats.membership_change == 2


def test_the_same_answer_in_another_order_changes_nothing() -> None:
    dns = Dns()
    dns.answers("10.0.0.1", "10.0.0.2")
    dns.start()
    before = dns.cluster.hosts
    dns.answers("10.0.0.2", "10.0.0.1")
    dns.refresh()
    assert dns.cluster.hosts is before
    assert (dns.cluster.stats.update_no_rebuild, dns.cluster.stats.membership_change) == (1, 1)


@pytest.mark.parametrize("number", [socket.EAI_NONAME, socket.EAI_NODATA])
def test_a_name_that_vanishes_empties_its_hosts(number: int) -> None:
    dns = Dns("a", "b")
    dns.answers("10.0.0.1")
    dns.answers("10.0.0.2", name="b")
    dns.start()
    dns.fails(number)
    dns.refresh()
    assert dns.hosts == ["10.0.0.2:81"]
    assert (dns.cluster.stats.update_empty, dns.cluster.stats.update_failure) == (1, 0)
    dns.fails(number, name="b")
    dns.refresh()
    assert dns.hosts == [] and dns.cluster.choose(None) is None
    dns.answers("10.0.0.1")
    dns.refresh()
    assert dns.hosts == ["10.0.0.1:80"]


@pytest.mark.parametrize("number", [socket.EAI_AGAIN, socket.EAI_FAIL, socket.EAI_SYSTEM])
def test_a_resolver_that_fails_keeps_the_hosts(number: int) -> None:
    dns = Dns()
    dns.answers("10.0.0.1")
    dns.start()
    dns.fails(number)
    dns.refresh()
    dns.refresh()
    assert dns.hosts == ["10.0.0.1:80"]
    assert (dns.cluster.stats.update_failure, dns.cluster.stats.membership_change) == (2, 1)
    dns.answers("10.0.0.2")
    dns.refresh()
    assert dns.hosts == ["10.0.0.2:80"]
    assert dns.world.loop.errors == []


def test_a_failing_resolver_at_the_start() -> None:
    dns = Dns()
    dns.fails(socket.EAI_AGAIN)
    dns.start()
    assert dns.hosts == []
    dns.answers("10.0.0.1")
    dns.refresh()
    assert dns.hosts == ["10.0.0.1:80"]


@pytest.mark.parametrize(("family", "v4", "v6", "expected", "asked"), [
    ("AUTO", ["10.0.0.1"], ["fd00::1"], ["[fd00::1]:80"], [V6]),
    ("AUTO", ["10.0.0.1"], socket.EAI_NONAME, ["10.0.0.1:80"], [V6, V4]),
    ("V4_PREFERRED", ["10.0.0.1"], ["fd00::1"], ["10.0.0.1:80"], [V4]),
    ("V4_PREFERRED", socket.EAI_NODATA, ["fd00::1"], ["[fd00::1]:80"], [V4, V6]),
    ("V4_ONLY", socket.EAI_NONAME, ["fd00::1"], [], [V4]),
    ("V6_ONLY", ["10.0.0.1"], ["fd00::1"], ["[fd00::1]:80"], [V6]),
])
def test_families(family: str, v4: list[str] | int, v6: list[str] | int, expected: list[str], asked: list[int]) -> None:
    dns = Dns(dns_lookup_family=family)
    dns.resolver.answers = {("a", V4): v4, ("a", V6): v6}
    dns.start()
    assert dns.hosts == expected
    assert [f for _, f in dns.resolver.asked] == asked


def test_all_families_at_once() -> None:
    dns = Dns(dns_lookup_family="ALL")
    dns.resolver.answers = {("a", socket.AF_UNSPEC): ["10.0.0.1", "fd00::1"]}
    dns.start()
    assert dns.hosts == ["10.0.0.1:80", "[fd00::1]:80"]


def test_names_are_asked_again_at_the_refresh_rate() -> None:
    dns = Dns()
    dns.answers("10.0.0.1")
    dns.start()
    for n in range(2, 6):
        dns.refresh()
        assert len(dns.resolver.asked) == n
