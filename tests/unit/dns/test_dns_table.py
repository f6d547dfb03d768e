"""What names mean: aliases, search domains, wildcards, reverse names, and the way to a worker."""

from __future__ import annotations

import ipaddress
import marshal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from dns_tables import SEARCH, external, kubernetes, table_of, text
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.config.errors import ConfigErrors
from proxy.dns import table as module
from proxy.dns.message import name_to_wire
from proxy.dns.name_table import Host, NameTable, read_name_table
from proxy.dns.table import MAX_SEARCH, Table, address_of_reverse, compile_table, is_below

# As in the facts of the original, with more than one search domain.
WORLD = table_of(
    kubernetes("web", "ns1", "10.0.0.1", alt_hosts=["web.ns1.svc.clusterset.local"]),
    kubernetes("other", "ns2", "10.0.0.2"),
    kubernetes("far", "ns1", "10.0.0.3", domain="svc.remote.example"),
    kubernetes("near-miss", "ns1", "10.0.0.4", domain="xsvc.cluster.local"),
    kubernetes("shadowed", "ns1", "10.0.0.5"),
    external("shadowed", "10.9.9.9"),
    kubernetes("web-0.web", "ns1", "10.0.0.6"),
    external("www.google.com", "1.1.1.1", "2001:db8::1"),
    external("db.prod", "10.1.0.1"),
    external("bare", "10.1.0.2"),
    external("*.wildcard", "10.2.0.1"),
    external("*.b.wildcard", "10.2.0.2"),
    external("exact.b.wildcard", "10.2.0.3"),
    external("*.ns1.svc.cluster.local", "10.2.0.4"),
)

# name -> the host that answers; "=> target" where it is a CNAME; None: upstream servers are asked
CASES: list[tuple[str, str | None]] = [
    # 7.3: the aliases of a service of this cluster
    ("web.ns1.svc.cluster.local", "web.ns1.svc.cluster.local"),
    ("web.ns1.svc", "web.ns1.svc.cluster.local"),
    ("web.ns1", "web.ns1.svc.cluster.local"),
    ("web", "web.ns1.svc.cluster.local"),
    ("web.ns1.svc.clusterset.local", "web.ns1.svc.cluster.local"),
    ("web.ns1.svc.cluster", None),
    ("other.ns2", "other.ns2.svc.cluster.local"),
    ("other.ns2.svc", "other.ns2.svc.cluster.local"),
    ("other", None),  # short names exist in the own namespace only
    ("web-0.web", "web-0.web.ns1.svc.cluster.local"),
    ("web-0.web.ns1", "web-0.web.ns1.svc.cluster.local"),
    # services of another cluster: the full name only
    ("far.ns1.svc.remote.example", "far.ns1.svc.remote.example"),
    ("far.ns1", None),
    ("far", None),
    ("near-miss.ns1.xsvc.cluster.local", "near-miss.ns1.xsvc.cluster.local"),
    ("near-miss.ns1", None),
    # the first search domain, as in the original
    ("www.google.com.ns1.svc.cluster.local", "www.google.com => www.google.com"),
    ("web.ns1.ns1.svc.cluster.local", "web.ns1.svc.cluster.local => web.ns1"),
    ("web.ns1.svc.ns1.svc.cluster.local", "web.ns1.svc.cluster.local => web.ns1.svc"),
    ("other.ns2.svc.cluster.local.ns1.svc.cluster.local",
     "other.ns2.svc.cluster.local => other.ns2.svc.cluster.local"),
    ("www.google.com.ns1.svc.cluster.local.ns1.svc.cluster.local", "*.ns1.svc.cluster.local"),
    # the others (trap 44)
    ("www.google.com.svc.cluster.local", "www.google.com => www.google.com"),
    ("www.google.com.cluster.local", "www.google.com => www.google.com"),
    ("www.google.com.corp.example", "www.google.com => www.google.com"),
    ("web.ns1.cluster.local", "web.ns1.svc.cluster.local => web.ns1"),
    ("web.ns1.svc.svc.cluster.local", "web.ns1.svc.cluster.local => web.ns1.svc"),
    ("web.ns1.svc.cluster.local.svc.cluster.local", None),
    ("web.svc.cluster.local", None),  # no label alone behind another domain than the first
    ("web.cluster.local", None),
    ("web.corp.example", None),
    ("web.ns1.corp.example", None),  # may be a machine
    ("db.prod.corp.example", "db.prod => db.prod"),
    ("bare.corp.example", None),
    # names of the cluster belong to it (trap 42)
    ("shadowed.ns1.svc.cluster.local", "shadowed.ns1.svc.cluster.local"),
    ("shadowed", "shadowed"),
    ("db.prod.svc.cluster.local", None),
    ("db.prod.ns1.svc.cluster.local", "db.prod => db.prod"),
    # wildcards: the longest, several labels, not the domain itself
    ("foo.wildcard", "*.wildcard"),
    ("a.b.c.wildcard", "*.wildcard"),
    ("wildcard", None),
    ("a.b.wildcard", "*.b.wildcard"),
    ("x.a.b.wildcard", "*.b.wildcard"),
    ("b.wildcard", "*.wildcard"),
    ("exact.b.wildcard", "exact.b.wildcard"),
    ("below.exact.b.wildcard", "*.b.wildcard"),
    ("*.wildcard", "*.wildcard"),
    # a wildcard's name with a search domain is a CNAME of the name asked for (trap 43)
    ("foo.wildcard.cluster.local", "*.wildcard => foo.wildcard"),
    ("a.b.wildcard.corp.example", "*.b.wildcard => a.b.wildcard"),
    ("exact.b.wildcard.corp.example", "exact.b.wildcard => exact.b.wildcard"),
    ("foo.wildcard.ns1.svc.cluster.local", "*.wildcard => foo.wildcard"),
    ("wildcard.ns1.svc.cluster.local", "*.ns1.svc.cluster.local"),
    ("unknown.ns1.svc.cluster.local", "*.ns1.svc.cluster.local"),
    ("foo.wildcard.svc.cluster.local", None),  # a service "foo" of a namespace "wildcard"
    # nothing of these
    ("svc.cluster.local", None),
    ("corp.example", None),
    ("example.com", None),
    (".", None),
]


def meaning(table: Table, name: str) -> str | None:
    """As in CASES."""
    found = table.find(name_to_wire(name).lower())
    if found is None:
        return None
    record = found.record
    return record.host if record.cname is None else f"{record.host} => {text(record.cname)[:-1]}"


@pytest.mark.parametrize(("name", "expected"), CASES, ids=[name for name, _ in CASES])
def test_names(name: str, expected: str | None) -> None:
    assert meaning(WORLD, name) == expected
    assert meaning(WORLD, name.upper()) == expected


def test_a_worker_has_the_same_table() -> None:
    copy = Table.from_wire(marshal.loads(marshal.dumps(WORLD.to_wire())))
    assert len(copy) == len(WORLD) and list(copy.hosts()) == list(WORLD.hosts())
    assert repr(copy) == repr(WORLD) == f"<Table 14 hosts, {len(WORLD)} names, 10 addresses>"
    for name, expected in CASES:
        assert meaning(copy, name) == expected


def test_the_rule_is_told() -> None:
    rules = {name: found.record.rule for name in ("web", "web.ns1", "web.ns1.svc", "web.ns1.svc.cluster.local",
             "web.ns1.svc.clusterset.local", "web.ns1.cluster.local") if (found := WORLD.find(name_to_wire(name)))}
    assert list(rules.values()) == ["short name", "short name and namespace", "short name, namespace and svc", "host",
                                    "alt_hosts", "short name and namespace, search domain cluster.local."]
    found = WORLD.find(name_to_wire("x.y.wildcard.corp.example"))
    assert found is not None and found.wildcard and text(found.key) == "*.wildcard."
    assert repr(found.record) == ("<Record *.wildcard (host, search domain corp.example.) -> x.y.wildcard. A=1 AAAA=0>")


# --- several hosts, one name ------------------------------------------------------------------------------------------


def test_a_hosts_own_name_beats_aliases_in_any_order() -> None:
    """mongo-0.mongo is a pod's short name, a service of another namespace, or just a host."""
    pod = kubernetes("mongo-0.mongo", "ns1", "10.0.0.1")
    service = kubernetes("mongo-0", "mongo", "10.0.0.2")
    host = external("mongo-0.mongo", "10.0.0.3")
    for entries in ([pod, service, host], [host, service, pod]):
        assert meaning(table_of(*entries), "mongo-0.mongo") == "mongo-0.mongo"
    # the pod's name is what the first search domain finds
    for entries in ([pod, service], [service, pod]):
        assert meaning(table_of(*entries), "mongo-0.mongo") == "mongo-0.mongo.ns1.svc.cluster.local"


def test_an_alt_host_beats_nobody() -> None:
    table = table_of(kubernetes("a", "ns1", "10.0.0.1", alt_hosts=["z", "z.ns1", "free"]),
                     kubernetes("z", "ns1", "10.0.0.2"))
    assert meaning(table, "z") == meaning(table, "z.ns1") == "z.ns1.svc.cluster.local"
    assert meaning(table, "free") == "a.ns1.svc.cluster.local"


def test_hosts_that_differ_in_case_are_told() -> None:
    table = table_of(external("A.example", "1.1.1.1"), external("a.example", "2.2.2.2"))
    assert meaning(table, "a.example") == "A.example"
    assert table.warnings == ("host 'a.example': the same name as host 'A.example', which is used",)


def test_short_of_another_namespaces_search_domain_is_that_namespaces_service() -> None:
    """A pod's dnsConfig may put another namespace first: web.ns2... is not the own namespace's web."""
    table = table_of(kubernetes("web", "ns1", "10.0.0.1"), search=("ns2.svc.cluster.local", "ns1.svc.cluster.local"))
    assert meaning(table, "web.ns2.svc.cluster.local") is None
    assert meaning(table, "web.ns1.ns2.svc.cluster.local") == "web.ns1.svc.cluster.local => web.ns1"
    both = table_of(kubernetes("web", "ns1", "10.0.0.1"), kubernetes("web", "ns2", "10.0.0.2"),
                    search=("ns2.svc.cluster.local",))
    assert meaning(both, "web.ns2.svc.cluster.local") == "web.ns2.svc.cluster.local"


def test_a_machine_outside_of_the_cluster_has_its_own_search_domain() -> None:
    """The first one is used as the original does, whatever it is."""
    table = table_of(kubernetes("web", "ns1", "10.0.0.1"), external("bare", "10.0.0.2"), search=("corp.example",))
    assert meaning(table, "web.corp.example") == "web.ns1.svc.cluster.local => web"
    assert meaning(table, "bare.corp.example") == "bare => bare"


def test_a_wildcard_does_not_take_an_exact_name_behind_a_search_domain() -> None:
    """db.prod.corp.example could only be a CNAME of db.prod, which is another host's than *.prod."""
    table = table_of(kubernetes("db", "prod", "10.0.0.1"), external("*.prod", "10.0.0.2"))
    assert meaning(table, "db.prod") == "db.prod.svc.cluster.local"
    assert meaning(table, "db.prod.corp.example") is None
    assert meaning(table, "x.prod.corp.example") == "*.prod => x.prod"
    chained = table_of(external("foo", "10.0.0.1"), external("*.x", "10.0.0.2"), search=("x", "corp.example"))
    assert meaning(chained, "foo.x") == "foo => foo"
    assert meaning(chained, "foo.x.corp.example") is None


# --- odd domains, hosts, search lists ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("domain", "namespace", "short"), [
    ("ns1.svc.cluster.local", "ns1", "web.ns1.svc"),
    ("svc.cluster.local", "ns1", "web.ns1.svc"),  # no namespace in front
    ("ns1.Svc.Cluster.Local.", "ns1", "web.ns1.svc"),
    ("", "ns1", None),
    ("ns1", "ns1", None),
])
def test_domains(domain: str, namespace: str, short: str | None) -> None:
    table = table_of(kubernetes("web", "ns1", "10.0.0.1"), domain=domain, namespace=namespace)
    assert meaning(table, "web.ns1.svc.cluster.local") == "web.ns1.svc.cluster.local"
    for name in ("web", "web.ns1", "web.ns1.svc"):
        assert (meaning(table, name) is None) == (short is None)
    assert meaning(table, "web.ns1.cluster") is None


def test_hosts_that_are_no_names_are_left_out_and_told() -> None:
    long = "l" * 64
    table = table_of(external("good.example", "1.1.1.1"), external("a..b", "1.1.1.1"), external(long, "1.1.1.1"),
                     external("*", "1.1.1.1"), external("", "1.1.1.1"), external("\ud800", "1.1.1.1"),
                     external("new\nline.example", "1.1.1.1"),
                     external("dot.example.", "1.1.1.2"), kubernetes("", "ns1", "1.1.1.3"))
    assert list(table.hosts()) == ["dot.example.", "good.example"]
    assert meaning(table, "dot.example") == "dot.example."
    assert len(table.warnings) == 7 and all(warning.startswith("host left out: ") for warning in table.warnings)
    assert any(long in warning for warning in table.warnings) and all(map(str.isprintable, table.warnings))
    assert "host left out: name '*': it would be every name" in table.warnings


def test_aliases_that_are_no_names_are_left_out() -> None:
    table = table_of(kubernetes("web", "ns1", "10.0.0.1", alt_hosts=["a..b", "*", "", "ok"]),
                     {"h.ns1.svc.cluster.local": {"ips": ["10.0.0.2"], "registry": "Kubernetes", "shortname": "x" * 70,
                                                  "namespace": "ns1"}},
                     {"i.ns1.svc.cluster.local": {"ips": ["10.0.0.3"], "registry": "Kubernetes"}})
    assert sorted(map(text, table.names)) == sorted([
        "web.ns1.svc.cluster.local.", "web.ns1.svc.", "web.ns1.", "web.", "ok.", "h.ns1.svc.cluster.local.",
        "i.ns1.svc.cluster.local."])


def test_aliases_longer_than_a_name_are_left_out() -> None:
    label = "l" * 63
    short = ".".join([label] * 3)
    for rest in (40, 56, 57, 58, 59, 60):
        table = table_of({"h.ns1.svc.cluster.local": {
            "ips": ["10.0.0.1"], "registry": "Kubernetes", "shortname": short, "namespace": "n" * rest}})
        aliases = {text(key) for key in table.names} - {"h.ns1.svc.cluster.local."}
        assert all(len(key) <= 255 for key in table.names)
        assert len(aliases) == (2 if rest <= 57 else 0)


def test_search_lists() -> None:
    table = table_of(external("a.example", "1.1.1.1"), search=("One.Example.", ".", "", "bad..one", "one.example"))
    assert meaning(table, "a.example.one.example") == "a.example => a.example"
    assert len(table.warnings) == 1 and "bad..one" in table.warnings[0]
    root = table_of(external("bare", "1.1.1.1"), search=(".", "one.example"))
    assert meaning(root, "bare.one.example") == "bare => bare", "the root is not the first search domain"
    many = table_of(external("a.example", "1.1.1.1"), search=tuple(f"d{n}.example" for n in range(MAX_SEARCH + 3)))
    assert meaning(many, f"a.example.d{MAX_SEARCH - 1}.example") is not None
    assert meaning(many, f"a.example.d{MAX_SEARCH}.example") is None
    assert many.warnings == (f"{MAX_SEARCH + 3} search domains, the first {MAX_SEARCH} are used",)


def test_a_domain_that_only_looks_like_a_search_domain() -> None:
    """The bytes of a search domain inside a label are no search domain."""
    table = table_of(external("a.example", "1.1.1.1"), external("*.example", "1.1.1.1"), search=("corp.test",))
    inside = b"\x01a\x07example\x0bx" + name_to_wire("corp.test")[:-1] + b"\0"
    assert inside.endswith(name_to_wire("corp.test")) and table.find(inside) is None


# --- reverse names ----------------------------------------------------------------------------------------------------

POINTERS = table_of(
    kubernetes("mongo", "ns1", "10.1.0.1", "10.1.0.2", "fd00::1"),
    kubernetes("mongo-0.mongo", "ns1", "10.1.0.1"),
    kubernetes("public", "ns1", "8.8.8.8"),
    external("alias.example", "10.1.0.2"),
    external("a.first.example", "10.2.0.1"),
    external("b.second.example", "10.2.0.1"),
    external("auto.example", "240.240.0.1", "2001:2::1"),
    external("internet.example", "1.1.1.1", "2606:4700::1111"),
    external("*.wild.example", "10.3.0.1"),
    external("odd.example", "127.0.0.1", "169.254.1.1", "255.255.255.255", "::1", "fe80::1", "ff02::1", "0.0.0.0"),
    kubernetes("odd", "ns1", "127.0.0.2", "::"),
    external("Upper.example", "192.168.1.1", "100.64.0.1", "172.31.255.255", "198.19.0.1"),
)


@pytest.mark.parametrize(("address", "host"), [
    ("10.1.0.1", "mongo-0.mongo.ns1.svc.cluster.local"),  # the fewest addresses
    ("10.1.0.2", "mongo.ns1.svc.cluster.local"),  # a service of the cluster before others
    ("fd00::1", "mongo.ns1.svc.cluster.local"),
    ("8.8.8.8", "public.ns1.svc.cluster.local"),
    ("10.2.0.1", "a.first.example"),  # the first by name
    ("240.240.0.1", "auto.example"), ("2001:2::1", "auto.example"),
    ("1.1.1.1", None), ("2606:4700::1111", None),  # somebody's on the Internet
    ("10.3.0.1", None),  # a wildcard is no name
    ("127.0.0.1", None), ("127.0.0.2", None), ("::1", None), ("::", None), ("fe80::1", None), ("ff02::1", None),
    ("169.254.1.1", None), ("255.255.255.255", None), ("0.0.0.0", None),
    ("192.168.1.1", "Upper.example"), ("100.64.0.1", "Upper.example"), ("172.31.255.255", "Upper.example"),
    ("198.19.0.1", "Upper.example"), ("10.1.0.3", None),
])
def test_pointers(address: str, host: str | None) -> None:
    name = name_to_wire(ipaddress.ip_address(address).reverse_pointer)
    assert POINTERS.pointer(name) == host
    assert POINTERS.find(name) is None


@given(st.ip_addresses())
def test_reverse_names_of_all_addresses(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    name = name_to_wire(address.reverse_pointer)
    assert address_of_reverse(name) == address.packed


@pytest.mark.parametrize("name", [
    "in-addr.arpa", "1.10.in-addr.arpa", "1.0.0.10.x.in-addr.arpa", "01.0.0.10.in-addr.arpa", "256.0.0.10.in-addr.arpa",
    "a.0.0.10.in-addr.arpa", "ip6.arpa", "1.0.ip6.arpa", ".".join("g" * 32) + ".ip6.arpa",
    ".".join("1" * 33) + ".ip6.arpa", "11." + ".".join("1" * 30) + ".ip6.arpa", "1.0.0.10.in-addr.arpa.example",
])
def test_names_that_are_no_addresses(name: str) -> None:
    assert address_of_reverse(name_to_wire(name)) is None


# --- size -------------------------------------------------------------------------------------------------------------


def many(count: int) -> NameTable:
    """Services of fifty namespaces."""
    return NameTable(tuple(Host(
        f"svc{n}.ns{n % 50}.svc.cluster.local", bytes((10, n >> 16 & 255, n >> 8 & 255, n & 255)), b"", "Kubernetes",
        f"svc{n}", f"ns{n % 50}") for n in range(count)))


def calls(what: Callable[[], object]) -> int:
    """How many calls of Python functions (generators' steps included) something takes."""
    count = 0

    def trace(frame: FrameType, event: str, arg: Any) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(trace)
    try:
        what()
    finally:
        sys.setprofile(None)
    return count


def test_work_grows_with_the_hosts_and_a_worker_has_none() -> None:
    small, large = many(500), many(5000)
    one, ten = (calls(lambda given=given: compile_table(given, "ns1.svc.cluster.local", "ns1", SEARCH))
                for given in (small, large))
    assert ten < 10.5 * one
    wire = marshal.dumps(compile_table(large, "ns1.svc.cluster.local", "ns1", SEARCH).to_wire())
    assert calls(lambda: Table.from_wire(marshal.loads(wire))) < 100
    assert len(wire) < 170 * 5000


def test_a_search_takes_no_longer_in_a_large_table() -> None:
    tables = [compile_table(many(count), "ns1.svc.cluster.local", "ns1", SEARCH) for count in (10, 5000)]
    for name in ("svc1.ns1.svc.cluster.local", "www.example.com.ns1.svc.cluster.local", "a." * 120 + "cluster.local"):
        few, lots = (calls(lambda table=table, name=name: table.find(name_to_wire(name))) for table in tables)
        assert few == lots


def test_a_table_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = len(marshal.dumps(compile_table(many(300), "ns1.svc.cluster.local", "ns1", SEARCH).to_wire()))
    monkeypatch.setattr(module, "MAX_BYTES", wire // 2)
    with pytest.raises(ConfigErrors, match=f"table: .* names take [0-9]+ bytes, at most {wire // 2}"):
        compile_table(many(300), "ns1.svc.cluster.local", "ns1", SEARCH)


# --- any table --------------------------------------------------------------------------------------------------------

LABEL = st.sampled_from(["a", "b", "web", "svc", "ns1", "ns2", "cluster", "local", "example", "*", "l" * 63])
NAME = st.lists(LABEL, min_size=1, max_size=6).map(".".join).filter(lambda name: len(name) < 200)
INFO = st.fixed_dictionaries({"ips": st.lists(st.sampled_from(["10.0.0.1", "10.0.0.2", "fd00::1", "x"]), max_size=3)},
                             optional={"registry": st.sampled_from(["Kubernetes", "External"]), "shortname": LABEL,
                                       "namespace": LABEL, "alt_hosts": st.lists(NAME, max_size=2)})
TABLE = st.dictionaries(NAME, INFO, max_size=8)


@settings(max_examples=200, deadline=None)
@given(TABLE, st.lists(NAME, max_size=4), NAME, NAME)
def test_any_table(document: dict[str, Any], search: list[str], domain: str, asked: str) -> None:
    names = read_name_table({"table": document})
    table = compile_table(names, domain, domain.partition(".")[0], search)
    for host in names.hosts:
        found = table.find(name_to_wire(host.name).lower())
        if host.name != "*":
            assert found is not None and found.record.cname is None and found.record.host.lower() == host.name.lower()
    for name in (asked, *(f"{name}.{behind}" for name in [asked, *document] for behind in search)):
        try:
            key = name_to_wire(name).lower()
        except ValueError:
            continue
        found = table.find(key)
        if found is None or found.record.cname is None:
            continue
        target = table.find(found.record.cname)
        assert target is not None and target.record.cname is None, "a CNAME's target has addresses of its own"
        assert (target.record.v4, target.record.v6) == (found.record.v4, found.record.v6)
        assert any(key == found.record.cname[:-1] + name_to_wire(one).lower() for one in search)
        assert not is_below(found.record.cname, key)
