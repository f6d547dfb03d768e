"""Policy rules, routes and `::6`: what is made, found and removed is judged by ip(8), which also makes the opposite."""

from __future__ import annotations

import errno
import ipaddress
import sys
from collections.abc import Iterator, Sequence

import pytest

from init import routing
from init.errors import KernelError
from init.netlink import addresses, nftables, routes, rules
from init.routing import Address, Create, LocalRoute, Object, PolicyRule, Remove, found, missing, wanted
from init.rules import VERSIONS

from .netns import Namespace, require

pytestmark = pytest.mark.netns

MARK, TABLE = 1337, 133
FAMILY = {4: "-4", 6: "-6"}
BOTH = wanted(ipv6=True, active=True, mark=MARK, table=TABLE)


@pytest.fixture(scope="module", autouse=True)
def _required() -> None:
    require()


@pytest.fixture
def pod() -> Iterator[Namespace]:
    with Namespace() as namespace:
        yield namespace


def add_rule(pod: Namespace, version: int, *words: str) -> None:
    pod.ip(FAMILY[version], "rule", "add", *words)


def add_route(pod: Namespace, version: int, table: int, *words: str) -> None:
    pod.ip(FAMILY[version], "route", "add", *(words or ("local", "default", "dev", "lo")), "table", str(table))


def state(pod: Namespace) -> dict[str, list[str]]:
    """All that ip prints of it."""
    shown = {"lo": pod.ip("-6", "-o", "address", "show", "dev", "lo")}
    for family in FAMILY.values():
        shown[f"rules {family}"] = pod.ip(family, "rule")
        shown[f"routes {family}"] = pod.ip(family, "route", "show", "table", "all")
    return {what: [" ".join(line.split()) for line in text.splitlines()] for what, text in shown.items()}


def create(objects: Sequence[Object]) -> list[Create]:
    steps = [Create(item) for item in objects]
    for step in steps:
        step.do()
    return steps


def remove(objects: Sequence[Object]) -> list[Remove]:
    steps = [Remove(item) for item in objects]
    for step in steps:
        step.do()
    return steps


def undo(steps: Sequence[Create | Remove]) -> None:
    for step in reversed(steps):
        step.undo()


def test_the_same_as_ip_makes(pod: Namespace) -> None:
    with Namespace() as other:
        for version in VERSIONS:
            add_rule(other, version, "fwmark", str(MARK), "lookup", str(TABLE))
            add_route(other, version, TABLE)
        other.ip("address", "add", "::6/128", "dev", "lo")
        expected = state(other)
    assert "32765: from all fwmark 0x539 lookup 133" in expected["rules -4"]

    before = state(pod)
    with pod.entered():
        assert missing(BOTH) == BOTH
        steps = create(missing(BOTH))
        assert state(pod) == expected
        assert missing(BOTH) == ()
        again = create(BOTH)
        assert state(pod) == expected  # `ip rule add` would make a second one
        undo(again)
        assert state(pod) == expected  # this run made nothing
        assert set(found({MARK}, {TABLE})) == set(BOTH)
        undo(steps)
        assert state(pod) == before
        undo(steps)
        assert state(pod) == before


def test_one_family_and_other_numbers(pod: Namespace) -> None:
    before = state(pod)
    with pod.entered():
        objects = wanted(ipv6=False, active=True, mark=0xFFFFFFFF, table=70000)
        create(objects)
        now = state(pod)
        assert "32765: from all fwmark 0xffffffff lookup 70000" in now["rules -4"]
        assert "local default dev lo table 70000 scope host" in now["routes -4"]
        assert {what: now[what] for what in now if "-4" not in what} == {w: before[w] for w in before if "-4" not in w}
        assert found({MARK}, {TABLE}) == ()
        assert found({0xFFFFFFFF}, {TABLE}) == tuple(reversed(objects))
        assert found({MARK}, {70000}) == tuple(reversed(objects))
        remove(found({MARK}, {70000}))
        assert state(pod) == before


def test_duplicates_of_earlier_runs_are_found_removed_and_put_back(pod: Namespace) -> None:
    before = state(pod)
    for version in VERSIONS:
        for _ in range(3):
            add_rule(pod, version, "fwmark", "0x539", "lookup", "133")
        add_rule(pod, version, "fwmark", "0x539", "lookup", "133", "priority", "7")
        add_rule(pod, version, "fwmark", "0x539/0xffffffff", "lookup", "133", "priority", "40000")
        add_rule(pod, version, "fwmark", "4242", "lookup", "133")  # a run with another -t
        add_rule(pod, version, "fwmark", "0x539", "lookup", "77")  # one with another -r
        for table in (133, 77):
            add_route(pod, version, table)
    add_route(pod, 6, 133, "local", "default", "dev", "lo", "metric", "5")
    pod.ip("address", "add", "::6/128", "dev", "lo")
    dirty = state(pod)
    with pod.entered():
        assert missing(BOTH) == ()
        there = found({MARK}, {TABLE})
        kinds = [type(item).__name__ for item in there]
        assert kinds == ["PolicyRule"] * 14 + ["LocalRoute"] * 5 + ["Address"]
        assert there.count(PolicyRule(4, MARK, TABLE)) == there.count(PolicyRule(6, MARK, TABLE)) == 5
        steps = remove(there)
        assert state(pod) == before
        assert found({MARK}, {TABLE}) == ()
        remove(there)  # what is gone is no error
        assert state(pod) == before
        undo(steps)
        assert state(pod) == dirty


FOREIGN_RULES = (
    ("fwmark", "0x539/0xff", "lookup", "133"),
    ("from", "10.9.0.0/16", "fwmark", "0x539", "lookup", "133"),
    ("to", "10.9.0.0/16", "fwmark", "0x539", "lookup", "133"),
    ("iif", "lo", "fwmark", "0x539", "lookup", "133"),
    ("oif", "lo", "fwmark", "0x539", "lookup", "133"),
    ("tos", "0x10", "fwmark", "0x539", "lookup", "133"),
    ("uidrange", "5-6", "fwmark", "0x539", "lookup", "133"),
    ("ipproto", "tcp", "fwmark", "0x539", "lookup", "133"),
    ("dport", "80", "fwmark", "0x539", "lookup", "133"),
    ("not", "fwmark", "0x539", "lookup", "133"),
    ("fwmark", "0x539", "lookup", "133", "suppress_prefixlength", "0"),
    ("fwmark", "0x539", "blackhole"),
    ("fwmark", "0x539", "goto", "32767"),
    ("fwmark", "0x539", "lookup", "main"),
    ("lookup", "133"),
    ("fwmark", "0x200/0xf00", "lookup", "2004"),
    ("fwmark", "4242", "lookup", "2004"),
)


def foreign(pod: Namespace) -> None:
    """Rules that look like ours but are not, and another transparent proxy's table."""
    for version in VERSIONS:
        for words in FOREIGN_RULES:
            add_rule(
                pod, version, *(word.replace("10.9.0.0/16", "fd09::/16") if version == 6 else word for word in words)
            )
        add_route(pod, version, 2004)


def test_foreign_rules_and_routes_stay(pod: Namespace) -> None:
    foreign(pod)
    before = state(pod)
    with pod.entered():
        assert found({MARK}, {TABLE}) == ()
        assert missing(BOTH) == BOTH
        create(BOTH)
        # The route is what the foreign rules lead to as well: only the policy rules and the address can go.
        expected = [PolicyRule(4, MARK, TABLE), PolicyRule(6, MARK, TABLE), Address("::6/128")]
        assert list(found({MARK}, {TABLE})) == expected
        remove(found({MARK}, {TABLE}))
        after = state(pod)
        assert [line for line in after["routes -4"] if line not in before["routes -4"]] == [
            "local default dev lo table 133 scope host"
        ]
        assert {**after, "routes -4": before["routes -4"], "routes -6": before["routes -6"]} == before
        for version in VERSIONS:
            routes.delete_local_default(version, TABLE)
        assert state(pod) == before


def test_a_table_with_other_routes_stays(pod: Namespace) -> None:
    add_route(pod, 4, TABLE, "unreachable", "10.1.0.0/16")
    add_route(pod, 6, TABLE, "local", "fd01::/16", "dev", "lo")
    before = state(pod)
    with pod.entered():
        assert found({MARK}, {TABLE}) == ()
        create(BOTH)
        there = found({MARK}, {TABLE})
        assert there == (PolicyRule(4, MARK, TABLE), PolicyRule(6, MARK, TABLE), Address("::6/128"))
        remove(there)
        for version in VERSIONS:
            routes.delete_local_default(version, TABLE)
        assert state(pod) == before


def test_half_of_a_run_is_found(pod: Namespace) -> None:
    """Istio's makes the rule before the route, this program the other way round, and either can be killed."""
    before = state(pod)
    with pod.entered():
        add_rule(pod, 4, "fwmark", str(MARK), "lookup", str(TABLE))
        add_route(pod, 6, TABLE)
        add_rule(pod, 4, "fwmark", str(MARK), "lookup", "99")  # without a route only one of the two numbers is known
        add_rule(pod, 4, "fwmark", "99", "lookup", str(TABLE))
        there = found({MARK}, {TABLE})
        assert there == (PolicyRule(4, MARK, TABLE), LocalRoute(6, TABLE))
        assert missing(BOTH) == tuple(item for item in BOTH if item not in there)
        remove(there)
        pod.ip("rule", "del", "fwmark", str(MARK), "lookup", "99")
        pod.ip("rule", "del", "fwmark", "99", "lookup", str(TABLE))
        assert state(pod) == before


def test_a_rule_that_the_kernel_cannot_tell_from_a_foreign_one(pod: Namespace) -> None:
    add_rule(pod, 4, "from", "10.9.0.0/16", "fwmark", "0x539", "lookup", "133", "priority", "9")
    add_route(pod, 4, TABLE)
    with pod.entered():
        rules.add(4, MARK, TABLE, 9)  # ip cannot: the kernel says that it exists
        before = state(pod)
        (item,) = found({MARK}, {TABLE})
        step = Remove(item)
        with pytest.raises(
            KernelError, match="cannot remove IPv4 policy rule `9: from all fwmark 0x539 lookup 133`: anot"
        ):
            step.do()
        assert state(pod) == before
        step.undo()
        assert state(pod) == before


def test_a_foreign_rule_of_the_same_priority_stays(pod: Namespace) -> None:
    add_rule(pod, 4, "fwmark", "0x539", "lookup", "133", "priority", "9")
    add_route(pod, 4, TABLE)
    narrow = "9: from 10.9.0.0/16 fwmark 0x539 lookup 133"
    add_rule(pod, 4, "from", "10.9.0.0/16", "fwmark", "0x539", "lookup", "133", "priority", "9")
    before = state(pod)
    with pod.entered():
        steps = remove(found({MARK}, {TABLE}))
        assert [line for line in state(pod)["rules -4"] if line.startswith("9:")] == [narrow]
        undo(steps)
        assert {what: sorted(lines) for what, lines in state(pod).items()} == {w: sorted(before[w]) for w in before}


def test_somebody_else_is_faster(pod: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    is_present = routing._is_present
    with pod.entered():
        for item in (Address("::6/128"), LocalRoute(4, TABLE), LocalRoute(6, TABLE)):
            create([item])
            there = state(pod)
            answers = iter([False, True])
            monkeypatch.setattr(routing, "_is_present", lambda _, answers=answers: next(answers))
            late = create([item])
            monkeypatch.setattr(routing, "_is_present", is_present)
            undo(late)
            assert state(pod) == there  # it was not this run's
            gone = Remove(item)
            undo_only = Remove(item)
            gone.do()
            create([item])
            gone.undo()  # it is there again already
            undo_only.undo()
            assert state(pod) == there


@pytest.mark.parametrize("version", VERSIONS)
def test_a_table_in_use_is_refused(pod: Namespace, version: int) -> None:
    add_route(pod, version, TABLE, "unreachable", "default", *(("metric", "1024") if version == 6 else ()))
    before = state(pod)
    with pod.entered():
        step = Create(next(item for item in BOTH if item == LocalRoute(version, TABLE)))  # type: ignore[arg-type]
        with pytest.raises(KernelError) as caught:
            step.do()
        step.undo()
    assert str(caught.value) == (
        f"cannot add IPv{version} route `local default dev lo table 133`: File exists: the table has another default "
        "route: choose another one with -r"
    )
    assert state(pod) == before


def test_what_is_switched_off_is_named(pod: Namespace) -> None:
    pod.ip("link", "set", "lo", "down")
    with pod.entered(), pytest.raises(KernelError, match="add IPv6 route .*: set lo up: `ip link set lo up`"):
        create([LocalRoute(6, TABLE)])
    pod.ip("link", "set", "lo", "up")
    done = pod.run(["sysctl", "-q", "-w", "net.ipv6.conf.lo.disable_ipv6=1"])
    assert done.returncode == 0, done.stderr
    before = state(pod)
    with pod.entered():
        for item in (Address("::6/128"), LocalRoute(6, TABLE)):
            step = Create(item)
            with pytest.raises(KernelError, match=f"cannot add {item.text}: .*IPv6 is switched off: set sysctl net"):
                step.do()
            step.undo()  # without a second error
        assert found({MARK}, {TABLE}) == ()
    assert state(pod) == before


PROGRAM = f"""
from init.errors import KernelError
from init.routing import Create, found, missing, wanted
objects = wanted(ipv6=True, active=True, mark={MARK}, table={TABLE})
assert missing(objects) == objects and found({{{MARK}}}, {{{TABLE}}}) == ()
for item in objects:
    try:
        Create(item).do()
    except KernelError as error:
        print(error)
"""


def test_without_the_capability_reading_works_and_changing_says_what_to_do(pod: Namespace) -> None:
    done = pod.run(["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", sys.executable, "-c", PROGRAM])
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert len(lines) == len(BOTH) == 5
    for item, line in zip(BOTH, lines, strict=True):
        assert line.startswith(f"cannot add {item.text}: Operation not permitted")
        assert line.endswith("run as root with the capability NET_ADMIN in this network namespace")


def test_requests_for_what_is_or_is_not_there(pod: Namespace) -> None:
    """The errors that races are told by."""
    six = ipaddress.ip_interface("::6/128")
    with pod.entered():
        for version in VERSIONS:
            rules.add(version, MARK, TABLE, 9)
            routes.add_local_default(version, TABLE)
            for code, change in (
                (errno.EEXIST, lambda v=version: routes.add_local_default(v, TABLE)),
                (errno.ENOENT, lambda v=version: rules.delete(v, MARK, TABLE, 8)),
                (errno.ESRCH, lambda v=version: routes.delete_local_default(v, TABLE + 1)),
            ):
                with pytest.raises(OSError) as caught:
                    change()
                assert caught.value.errno == code
        with pytest.raises(OSError) as caught:
            addresses.delete_from_lo(six)
        assert caught.value.errno == errno.EADDRNOTAVAIL
        addresses.add_to_lo(six)
        assert addresses.on_lo() == [six, ipaddress.ip_interface("::1/128")]
        with pytest.raises(OSError) as caught:
            addresses.add_to_lo(six)
        assert caught.value.errno == errno.EEXIST
        assert [str(address) for address in addresses.local_addresses()] == ["127.0.0.1", "::6", "::1"]


def test_tables_and_chains_as_nft_makes_them(pod: Namespace) -> None:
    with pod.entered():
        assert nftables.chains_of("ip") == nftables.chains_of("ip6") == nftables.chains_of("inet") == {}
    script = """
add table ip nat
add chain ip nat ISTIO_OUTPUT
add rule ip nat ISTIO_OUTPUT counter
add chain ip nat OUTPUT { type nat hook output priority -100 ; }
add table ip raw
add table ip6 nat
add chain ip6 nat PREROUTING { type nat hook prerouting priority -100 ; }
add table inet istio-proxy-nat
add chain inet istio-proxy-nat istio-output
add table bridge other
"""
    assert pod.run(["nft", "-f", "-"], stdin=script).returncode == 0
    with pod.entered():
        assert nftables.chains_of("ip") == {"nat": {"ISTIO_OUTPUT", "OUTPUT"}, "raw": frozenset()}
        assert nftables.chains_of("ip6") == {"nat": {"PREROUTING"}}
        assert nftables.chains_of("inet") == {"istio-proxy-nat": {"istio-output"}}
        assert not nftables.remove_blank_table(4, "nat")
        assert not nftables.remove_blank_table(4, "mangle")
        assert nftables.remove_blank_table(4, "raw")
        assert nftables.remove_blank_table(6, "nat")
        assert nftables.chains_of("ip") == {"nat": {"ISTIO_OUTPUT", "OUTPUT"}}
        assert nftables.chains_of("ip6") == {}
    assert "table ip6" not in pod.run(["nft", "list", "ruleset"]).stdout


def test_many_chains_come_in_several_datagrams(pod: Namespace) -> None:
    names = {f"chain-with-a-rather-long-name-{number}" for number in range(2000)}
    script = "add table ip many\n" + "".join(f"add chain ip many {name}\n" for name in sorted(names))
    assert pod.run(["nft", "-f", "-"], stdin=script).returncode == 0
    with pod.entered():
        assert nftables.chains_of("ip") == {"many": names}
