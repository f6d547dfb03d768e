"""Addresses for hosts without one: istiod's own values for both algorithms, conflicts, exhaustion."""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.dns.auto_allocate import (
    LABEL,
    SLOTS,
    Allocation,
    HashedService,
    Prefixes,
    ServiceEntry,
    Used,
    allocate,
    fnv1a_32,
    hashed_addresses,
    wants_addresses,
)

DNS = "DNS"


# --- in order: the story of istiod's ipallocate_test, step by step ----------------------------------------------------


class Story:
    """Entries by key, and an allocator that goes on from step to step and writes into their status."""

    def __init__(self, prefixes: Prefixes | None = None) -> None:
        self.entries: dict[str, ServiceEntry] = {}
        self.used = Used()
        self.prefixes = prefixes or Prefixes()

    def put(self, entry: ServiceEntry) -> Allocation:
        """Create or change an entry."""
        self.entries[entry.key] = entry
        result = allocate(self.entries.values(), self.prefixes, self.used)
        self.used = result.used
        for key, assigned in result.assigned.items():
            self.entries[key] = replace(self.entries[key], assigned=assigned)
        return result

    def hosts(self, key: str) -> Mapping[str, tuple[str, ...]]:
        """The addresses of an entry's hosts."""
        return self.entries[key].assigned


def pair(number: int) -> tuple[str, str]:
    return f"240.240.0.{number}", f"2001:2::{number:x}"


def test_istiods_own_story() -> None:
    story = Story()
    first = ServiceEntry("default", "pre-existing", ("test.testing.io",), DNS, assigned={"test.testing.io": pair(1)})
    story.put(first)
    for name, more in (("own", {"addresses": ("1.2.3.4",)}), ("bad", {"addresses": ("1:2::3::4",)}),
                       ("opt-out", {"labels": {LABEL: "false"}})):
        assert f"boop/{name}" not in story.put(ServiceEntry("boop", name, (f"{name}.io",), DNS, **more)).assigned
    story.put(ServiceEntry("boop", "existing", ("existing.io",), DNS, created=1))
    assert story.hosts("boop/existing") == {"existing.io": pair(2)}
    # a user takes one of its addresses: it gets another pair
    result = story.put(ServiceEntry("boop", "user", ("user.io",), DNS, addresses=(pair(2)[0],), created=9))
    assert story.hosts("boop/existing") == {"existing.io": pair(3)}
    assert result.warnings == ("boop/existing: 240.240.0.2 is boop/user's; its hosts get new addresses",)
    # a younger entry claims to have had the same addresses: the older one keeps them
    story.put(ServiceEntry("boop", "younger", ("younger.io",), DNS, assigned={"younger.io": pair(3)}, created=2))
    assert story.hosts("boop/existing") == {"existing.io": pair(3)}
    assert story.hosts("boop/younger") == {"younger.io": pair(4)}
    # hosts come and go; a wildcard gets nothing; a host twice is one
    story.put(replace(first, hosts=("test.testing.io", "added.io", "*.wildcard.io", "added.io")))
    assert story.hosts(first.key) == {"test.testing.io": pair(1), "added.io": pair(5)}
    story.put(replace(story.entries[first.key], hosts=("test.testing.io",)))
    assert story.hosts(first.key) == {"test.testing.io": pair(1)}
    story.put(replace(story.entries[first.key], hosts=("test.testing.io", "added.io")))
    assert story.hosts(first.key) == {"test.testing.io": pair(1), "added.io": pair(6)}
    story.put(replace(story.entries[first.key], hosts=("added.io",)))
    assert story.hosts(first.key) == {"added.io": pair(6)}
    many = ("seven.io", "eight.io", "nine.io", "A.io")
    story.put(replace(story.entries[first.key], hosts=many))
    assert story.hosts(first.key) == {host: pair(7 + n) for n, host in enumerate(many)}
    story.put(replace(story.entries[first.key], hosts=("*.dynamic.io",), resolution="DYNAMIC_DNS"))
    assert story.hosts(first.key) == {"*.dynamic.io": pair(11)}
    story.put(replace(story.entries[first.key], hosts=(), resolution=DNS))
    assert story.hosts(first.key) == {}


def test_the_older_entry_keeps_an_address_whatever_the_order() -> None:
    younger = ServiceEntry("a", "younger", ("y.io",), DNS, assigned={"y.io": pair(1)}, created=5)
    older = ServiceEntry("z", "older", ("o.io",), DNS, assigned={"o.io": pair(1)}, created=4)
    for entries in ([younger, older], [older, younger]):
        result = allocate(entries)
        assert result.assigned == {"z/older": {"o.io": pair(1)}, "a/younger": {"y.io": pair(2)}}
        assert result.used.owners[ipaddress.ip_address(pair(1)[0])] == "z/older"
        assert result.warnings == ("a/younger: 240.240.0.1 is z/older's; its hosts get new addresses",)


def test_other_prefixes() -> None:
    story = Story(Prefixes.parse("240.240.2.0/24", "2001:2:0:2::/64"))
    one, two = ("240.240.2.1", "2001:2:0:2::1"), ("240.240.2.2", "2001:2:0:2::2")
    story.put(ServiceEntry("a", "a", ("one.io", "two.io"), DNS, assigned={"one.io": one}))
    assert story.hosts("a/a") == {"one.io": one, "two.io": two}


@pytest.mark.parametrize(("v4", "v6", "error"), [
    ("240.240.0.0", "2001:2::/48", "IPv4 prefix '240.240.0.0': a CIDR"),
    ("x", "2001:2::/48", "IPv4 prefix 'x': a CIDR"),
    ("2001:2::/48", "2001:2::/48", "IPv4 prefix '2001:2::/48'"),
    ("10.0.0.0/8", "10.0.0.0/8", "IPv6 prefix '10.0.0.0/8'"),
    ("10.0.0.1/32", "2001:2::/48", "room for an address"),
])
def test_prefixes_that_are_none(v4: str, v6: str, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        Prefixes.parse(v4, v6)


@pytest.mark.parametrize(("change", "expected"), [
    ({}, True), ({"resolution": "NONE"}, False), ({"resolution": "STATIC"}, True),
    ({"addresses": ("10.0.0.0/8",)}, False),
    ({"labels": {LABEL: "False"}}, False), ({"labels": {LABEL: "true"}}, True), ({"labels": {"other": "false"}}, True),
])
def test_which_entries_get_addresses(change: dict[str, object], expected: bool) -> None:
    assert wants_addresses(replace(ServiceEntry("n", "e", ("h",), DNS), **change)) == expected


def test_addresses_stay_whoever_asks() -> None:
    """Another istiod with nothing but the entries, in another order, changes nothing."""
    entries = [ServiceEntry("n", f"e{n}", (f"h{n}.io", f"g{n}.io"), DNS, created=n) for n in range(20)]
    first = allocate(entries)
    kept = [replace(entry, assigned=first.assigned[entry.key]) for entry in entries]
    random.Random(1).shuffle(kept)
    second = allocate(kept)
    assert second.assigned == first.assigned and second.warnings == ()


def test_an_exhausted_prefix() -> None:
    prefixes = Prefixes.parse("10.9.9.0/30", "fd00::/120")
    entries = [ServiceEntry("n", f"e{n}", (f"h{n}.io",), DNS) for n in range(5)]
    result = allocate(entries, prefixes)
    assert [result.assigned[entry.key][entry.hosts[0]] for entry in entries] == [
        ("10.9.9.1", "fd00::1"), ("10.9.9.2", "fd00::2"), ("10.9.9.3", "fd00::3"), ("fd00::4",), ("fd00::5",)]
    assert result.warnings == ("n/e3: no address left in 10.9.9.0/30 for host 'h3.io'",
                               "n/e4: no address left in 10.9.9.0/30 for host 'h4.io'")
    # what nobody remembers is found again, once around
    gone = replace(entries[4], assigned={}, hosts=("new.io",))
    again = allocate([gone], prefixes, Used(next_v4=ipaddress.IPv4Address("10.9.9.4")))
    assert again.assigned == {"n/e4": {"new.io": ("10.9.9.1", "fd00::1")}}
    # around the end, over addresses that users have
    taken = ServiceEntry("n", "user", ("u.io",), DNS, addresses=("10.9.9.1", "10.9.9.3", "fd00::1"))
    around = allocate([taken, gone], prefixes, Used(next_v4=ipaddress.IPv4Address("10.9.9.3")))
    assert around.assigned == {"n/e4": {"new.io": ("10.9.9.2", "fd00::2")}}


def test_the_end_of_all_addresses() -> None:
    prefixes = Prefixes.parse("255.255.255.252/30", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffc/126")
    entry = ServiceEntry("n", "e", ("1", "2", "3"), DNS)
    result = allocate([entry], prefixes)
    assert result.assigned["n/e"]["3"] == ("255.255.255.255", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")
    more = allocate([replace(entry, hosts=("4",))], prefixes, result.used)
    assert more.assigned == {"n/e": {"4": ()}} and len(more.warnings) == 2


ENTRIES = st.lists(st.builds(
    ServiceEntry, st.sampled_from(["a", "b"]), st.sampled_from(["x", "y", "z"]),
    st.lists(st.sampled_from(["h1", "h2", "*.h3"]), max_size=3).map(tuple),
    st.sampled_from([DNS, "NONE", "DYNAMIC_DNS"]),
    addresses=st.lists(st.sampled_from(["240.240.0.1", "240.240.0.2", "9.9.9.9", "10.0.0.0/8"]), max_size=1).map(tuple),
    assigned=st.dictionaries(st.sampled_from(["h1", "h2"]), st.sampled_from(
        [("240.240.0.1", "2001:2::1"), ("240.240.0.2",), ("bad",), ()]), max_size=2),
    created=st.sampled_from([1.0, 2.0])), max_size=6, unique_by=lambda entry: entry.key)


@settings(max_examples=200, deadline=None)
@given(ENTRIES)
def test_no_address_twice_among_entries(entries: list[ServiceEntry]) -> None:
    result = allocate(entries)
    users = {address for entry in entries for address in entry.addresses}
    seen: dict[str, str] = {}
    for key, hosts in result.assigned.items():
        for addresses in hosts.values():
            assert addresses
            for address in addresses:
                assert address not in users and seen.setdefault(address, key) == key
    settled = [replace(entry, assigned=result.assigned.get(entry.key, {})) for entry in entries]
    again = allocate(settled)
    assert again.assigned == result.assigned and again.warnings == ()


# --- from the names: values of istiod's Test_legacyAutoAllocateIP -----------------------------------------------------


def addresses(*keys: tuple[str, str]) -> list[tuple[str, str]]:
    found = hashed_addresses(HashedService(namespace, host, DNS) for namespace, host in keys)
    return [found[key] for key in keys]


def test_istiods_own_values() -> None:
    assert addresses(("", "foo.com")) == [("240.240.227.81", "2001:2::f0f0:e351")]
    assert addresses(("a", "a.example.com")) == [("240.240.134.206", "2001:2::f0f0:86ce")]
    assert addresses(("a", "a.example.com"), ("b", "a.example.com")) == [
        ("240.240.134.206", "2001:2::f0f0:86ce"), ("240.240.41.100", "2001:2::f0f0:2964")]
    # the same slot; istiod's IPv6 address of the first is 2001:2::f0f0:19b, as that of 240.240.1.155
    assert addresses(("", "a17061.example.com"), ("", "a44155.example.com")) == [
        ("240.240.25.11", "2001:2::f0f0:190b"), ("240.240.31.17", "2001:2::f0f0:1f11")]


STABLE = {"a": "109.8", "c": "234.51", "e": "85.60", "g": "23.172", "i": "15.2", "k": "160.161", "l": "42.96",
          "n": "121.61", "o": "122.71"}


def test_others_change_nothing() -> None:
    services = [HashedService("", f"{name}.com", DNS) for name in "abcdefghijklmnopqr"]
    fewer = [one for one in services if one.host[0] in STABLE]
    for given_ in (services, services[::-1], fewer, [*services, services[8]]):
        found = hashed_addresses(given_)
        assert {name: found["", f"{name}.com"][0] for name in STABLE} == {
            name: f"240.240.{end}" for name, end in STABLE.items()}


def test_a_full_table() -> None:
    """As many as there are; the last one's address is istiod's. No host beyond gets any."""
    found = hashed_addresses(HashedService("", f"foo{n}.com", "STATIC") for n in range(SLOTS + 3))
    assert len(found) == SLOTS and ("", f"foo{SLOTS}.com") not in found
    assert found["", f"foo{SLOTS - 1}.com"][0] == "240.240.10.222"
    assert len({v4 for v4, _ in found.values()}) == len({v6 for _, v6 in found.values()}) == SLOTS
    assert not any(v4.endswith((".0", ".255")) for v4, _ in found.values())
    assert all(v4.startswith("240.240.") and v6.startswith("2001:2::f0f0:") for v4, v6 in found.values())
    for v4, v6 in list(found.values())[::997]:
        assert int(ipaddress.IPv6Address(v6)) & 0xFFFF == int(ipaddress.IPv4Address(v4)) & 0xFFFF


def test_which_services_get_addresses() -> None:
    assert hashed_addresses([HashedService("", "foo.com", "NONE"), HashedService("", "foo.com", DNS, "1.1.1.1"),
                             HashedService("", "*.foo.com", DNS)]) == {}


@pytest.mark.parametrize(("data", "value"), [(b"", 0x811C9DC5), (b"a", 0xE40C292C), (b"foobar", 0xBF9CF968)])
def test_fnv(data: bytes, value: int) -> None:
    """Values of the FNV specification's appendix."""
    assert fnv1a_32(data) == value
