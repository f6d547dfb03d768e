"""The nftables backend with the real nft: what it writes reads back as intended, all of it or nothing."""

from __future__ import annotations

import ipaddress
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from init.backends import nft_store
from init.backends.base import Holding
from init.backends.nft_store import NftStore
from init.backends.nftables import NftablesBackend
from init.errors import KernelError, SettingsError
from init.flags import resolve
from init.nft_names import TABLES, table_name
from init.nft_text import intended, normal
from init.packet import Ruleset
from init.recipe import make_plan
from init.rules import Plan
from init.settings import Machine, load

from .netns import Namespace, require, require_python, shared

pytestmark = pytest.mark.netns
if shutil.which("nft") is None:
    pytest.skip("no nft in PATH", allow_module_level=True)

GROUPS = {"mail": 8, "daemon": 1}
DUAL = ("10.10.0.41", "fd00:10::41")
FOREIGN = """\
table inet foreign {
	chain output {
		type filter hook output priority 0; policy accept;
		tcp dport 9 counter drop
	}
}
table ip istio-proxy-nat {
	chain istio-output {
		ip daddr 10.0.0.1 accept
	}
}
"""


def plan(
    *argv: str,
    addresses: Sequence[str] = ("10.10.0.41",),
    servers: Sequence[str] = ("10.96.0.10", "fd00:10::a"),
    environ: dict[str, str] | None = None,
) -> Plan:
    """The rules for flags on a machine with these addresses and name servers."""
    machine = Machine(
        uid_of=lambda name: None,
        gid_of=GROUPS.get,
        addresses=lambda: [ipaddress.ip_address(address) for address in addresses],
        resolv_conf=lambda: "".join(f"nameserver {server}\n" for server in servers),
    )
    return make_plan(load(resolve(argv, environ or {}), machine))


BIG = plan(*"-m TPROXY -b * -d 22 -i * --redirect-dns --drop-invalid --dual-stack".split(), addresses=DUAL)
SMALL = plan("-b", "8080", "-i", "10.0.0.0/8")


@pytest.fixture(scope="module")
def namespace() -> Iterator[Namespace]:
    """All tests of this file are in one; each begins without tables."""
    require()
    with Namespace() as made, made.entered():
        yield made


@pytest.fixture
def store(namespace: Namespace) -> NftStore:
    nft("flush ruleset")
    return NftStore()


def nft(script: str) -> None:
    subprocess.run(["nft", "-f", "-"], input=script, text=True, check=True, capture_output=True)


def kernel() -> str:
    """Everything that nf_tables holds here."""
    return subprocess.run(["nft", "-s", "list", "ruleset"], text=True, check=True, capture_output=True).stdout


def check_round_trip(store: NftStore, wanted: Plan) -> None:
    """Install `wanted` in place of what is there; the kernel then holds it, as lines and as rules."""
    store.replace(store.holding(), wanted)
    held, expected = store.holding(), store.wanted(wanted)
    assert held.lines == expected.lines
    assert [normal(rule) for rule in held.rules] == [normal(rule) for rule in expected.rules]
    assert held.chains == expected.chains
    assert sorted(map(repr, map(normal, held.rules))) == sorted(repr(normal(rule)) for rule in intended(wanted))


def test_recorded_cases_read_back_equal(store: NftStore) -> None:
    cases = json.loads(shared("istio/iptables/cases.json").read_text())
    assert len(cases) == 39
    seen = 0
    for case in cases:
        addresses = [address.partition("/")[0] for address in case["addresses"]]
        servers = [line.split()[1] for line in case["resolv_conf"].splitlines()]
        try:
            wanted = plan(*case["args"], addresses=addresses, servers=servers, environ=case["env"])
        except SettingsError:
            assert case["name"].startswith("bad-")
            continue
        check_round_trip(store, wanted)
        seen += 1
    assert seen == 35


PORT = st.integers(1, 65535).map(str)
RANGE = st.tuples(st.integers(1, 65535), st.integers(1, 65535)).map(lambda ends: f"{min(ends)}:{max(ends)}")
NUMBER = st.integers(0, 4294967294).map(str)
INTERFACE = st.one_of(
    st.from_regex(r"[a-zA-Z][a-zA-Z0-9_.-]{0,14}", fullmatch=True),
    st.sampled_from(
        "lo eth0 ip ip6 mark meta tcp rt0 icmpv6 gc-interval accept counter iifname set inet vlan dup".split()
    ),
)
CIDR = st.one_of(
    st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)).map(lambda c: f"{ipaddress.IPv4Address(c[0])}/{c[1]}"),
    st.tuples(st.integers(0, 2**128 - 1), st.integers(0, 128)).map(lambda c: f"{ipaddress.IPv6Address(c[0])}/{c[1]}"),
)
SERVER = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(str)


def lists(of: st.SearchStrategy[str], least: int = 0) -> st.SearchStrategy[str]:
    return st.lists(of, min_size=least, max_size=3).map(",".join)


FLAGS: dict[str, st.SearchStrategy[str]] = {
    "-p": PORT,
    "-z": PORT,
    "-e": PORT,
    "-u": lists(NUMBER, 1),
    "-g": lists(NUMBER, 1),
    "-m": st.sampled_from(["REDIRECT", "TPROXY"]),
    "-b": st.just("*") | lists(PORT | RANGE),
    "-d": lists(PORT | RANGE),
    "-c": lists(INTERFACE),
    "-k": lists(INTERFACE),
    "-i": st.just("*") | lists(CIDR),
    "-x": lists(CIDR),
    "-q": lists(PORT | RANGE),
    "-o": lists(PORT | RANGE),
    "-t": st.integers(1, 2**32 - 1).map(str),
}
SWITCHES = ("--redirect-dns", "--capture-all-dns", "--drop-invalid", "--dual-stack")
ENVIRON: dict[str, st.SearchStrategy[str]] = {
    "ISTIO_OUTBOUND_OWNER_GROUPS": lists(NUMBER, 1),
    "ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE": lists(NUMBER),
    "ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR": st.integers(8, 32).map(lambda bits: f"127.3.2.1/{bits}"),
}


@st.composite
def plans(draw: st.DrawFn) -> Plan | None:
    """What random flags ask for, or None where they are refused."""
    chosen = draw(st.fixed_dictionaries({}, optional=FLAGS))
    switches = draw(st.sets(st.sampled_from(SWITCHES)))
    try:
        return plan(
            *(word for flag in chosen.items() for word in flag),
            *switches,
            addresses=draw(st.sampled_from((DUAL, DUAL[:1], DUAL[1:]))),
            servers=draw(st.lists(SERVER, max_size=3)),
            environ=draw(st.fixed_dictionaries({}, optional=ENVIRON)),
        )
    except SettingsError:
        return None


@hypothesis_settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(wanted=plans())
def test_whatever_is_accepted_loads_and_reads_back_equal(store: NftStore, wanted: Plan | None) -> None:
    if wanted is not None:
        check_round_trip(store, wanted)


def test_no_process_is_started_where_nothing_is(store: NftStore, monkeypatch: pytest.MonkeyPatch) -> None:
    nft(FOREIGN)
    monkeypatch.setattr(nft_store, "run", lambda *_: pytest.fail("a process was started"))
    assert store.holding() == Holding()
    assert not NftablesBackend().traces()


def test_one_process_to_read_and_one_to_write(store: NftStore, monkeypatch: pytest.MonkeyPatch) -> None:
    real = nft_store.run  # type: ignore[attr-defined]
    commands = []

    def run(command: Sequence[str], text: str | None = None) -> str:
        commands.append(command[1:])
        return str(real(command, text))

    monkeypatch.setattr(nft_store, "run", run)
    store.replace(Holding(), BIG)
    assert store.holding().lines == store.wanted(BIG).lines
    assert commands == [["-f", "-"], ["-n", "-s", "list", "ruleset", "inet"]]


def test_replacing_removes_tables_that_are_not_needed(store: NftStore) -> None:
    nft(FOREIGN)
    foreign = kernel()
    store.replace(Holding(), BIG)
    store.replace(store.holding(), SMALL)
    assert store.holding().lines == store.wanted(SMALL).lines
    assert "istio-proxy-mangle" not in kernel() and "istio-proxy-raw" not in kernel()
    store.replace(store.holding(), None)
    assert store.holding() == Holding()
    assert kernel() == foreign


def test_installing_over_tables_that_were_not_seen(store: NftStore) -> None:
    """Whoever made them in between: nothing of them stays in the tables that are written."""
    nft("table inet istio-proxy-nat { chain output { type nat hook output priority -100; tcp dport 1 accept; }; }")
    store.replace(Holding(), SMALL)
    assert store.holding().lines == store.wanted(SMALL).lines


def test_what_others_put_into_our_tables_is_a_difference_and_goes_with_them(store: NftStore) -> None:
    for strange in (
        "add rule inet istio-proxy-nat istio-output ct direction original counter accept",
        "insert rule inet istio-proxy-nat output counter accept",
        "add chain inet istio-proxy-nat mine",
        "add chain inet istio-proxy-nat input { type nat hook input priority 100; }",
        "add chain inet istio-proxy-nat output { policy drop; }",
        "add set inet istio-proxy-nat ports { type inet_service; elements = { 80, 443 }; }",
        "add table inet istio-proxy-raw",
        "add table inet istio-proxy-nat { flags dormant; }",
    ):
        store.replace(store.holding(), SMALL)
        clean = kernel()
        nft(strange)
        changed = store.holding()
        assert changed.lines != store.wanted(SMALL).lines, strange
        with_strange = kernel()
        store.replace(changed, SMALL)
        assert kernel() == clean, strange
        store.put_back(changed, store.wanted(SMALL))
        assert kernel() == with_strange, strange


def test_rules_that_miss_or_stand_elsewhere_are_a_difference(store: NftStore) -> None:
    store.replace(Holding(), SMALL)
    nft("flush chain inet istio-proxy-nat istio-redirect")
    assert store.holding().lines != store.wanted(SMALL).lines
    store.replace(store.holding(), SMALL)
    nft("insert rule inet istio-proxy-nat istio-output ip daddr 127.0.0.1 counter return")
    assert store.holding().lines != store.wanted(SMALL).lines


@pytest.mark.parametrize("before", [None, SMALL], ids=["nothing", "small"])
def test_put_back(store: NftStore, before: Plan | None) -> None:
    nft(FOREIGN)
    if before:
        store.replace(Holding(), before)
    present, text = store.holding(), kernel()
    store.replace(present, BIG)
    store.put_back(present, store.wanted(BIG))
    assert sorted(kernel().splitlines()) == sorted(text.splitlines())
    assert store.holding().lines == present.lines
    store.replace(present, None)
    store.put_back(present, Holding())
    assert store.holding().lines == present.lines


def test_a_transaction_that_fails_changes_nothing(store: NftStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.replace(Holding(), SMALL)
    present, text = store.holding(), kernel()
    broken = store.script(BIG, present) + "add rule inet istio-proxy-raw output jump nowhere\n"
    monkeypatch.setattr(NftStore, "script", lambda *_: broken)
    with pytest.raises(KernelError) as failure:
        store.replace(present, BIG)
    assert kernel() == text
    assert "jump nowhere" in str(failure.value) and "\n" not in str(failure.value) and "^" not in str(failure.value)
    store.put_back(present, store.wanted(BIG))
    assert kernel() == text


def test_put_back_where_nothing_can_be_read(store: NftStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.replace(Holding(), SMALL)
    present = store.holding()
    store.replace(present, BIG)

    def fail(self: NftStore, plan: Plan | None = None) -> Holding:
        raise KernelError("no")

    with monkeypatch.context() as patch:
        patch.setattr(NftStore, "holding", fail)
        store.put_back(present, store.wanted(BIG))
    assert store.holding().lines == present.lines


def test_stale_tables_are_a_trace_without_any_rule(store: NftStore) -> None:
    nft("add table inet istio-proxy-raw")
    assert NftablesBackend().traces()
    held = store.holding()
    assert held and not held.rules
    store.replace(held, None)
    assert kernel() == ""


def test_script_says_what_will_be_removed(store: NftStore) -> None:
    assert "delete" not in store.script(SMALL, Holding())
    store.replace(Holding(), BIG)
    script = store.script(SMALL, store.holding())
    assert [line.split()[-1] for line in script.splitlines() if line.startswith("delete")] == [
        table_name(table) for table in TABLES
    ]
    assert script.endswith(store.script(SMALL, Holding()))
    assert store.script(None, Holding()) == ""


def test_errors_say_what_to_do(store: NftStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fake(*lines: str) -> None:
        (tmp_path / "nft").write_text("\n".join(["#!/bin/sh", *lines, ""]))
        (tmp_path / "nft").chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    said = "/dev/stdin:3:1-9: Error: Could not process rule:"
    chain = "add chain inet t output { type nat hook output priority -100 ; }"
    old = 'test "$1" = --version && echo "nftables v0.9.8 (E.D.S.)" && exit 0'
    new = 'test "$1" = --version && echo "nftables v1.0.6 (E.D.S.)" && exit 0'
    for lines, expected in (
        ((new, f"echo '{said} No such file or directory' >&2", f"echo '{chain}' >&2", "exit 1"), "nft_chain_nat"),
        (
            (new, "echo 'netlink: Error: cache initialization failed: Protocol not supported' >&2; exit 1"),
            "no nf_tables",
        ),
        ((new, f"echo '{said} No space left on device' >&2; exit 1"), "memory"),
        ((new, "echo 'Operation not permitted (you must be root)' >&2; exit 1"), "run as root"),
        ((old, "echo 'syntax error, unexpected redirect' >&2; exit 1"), "nft 0.9.8, and 1.0.1 or newer"),
    ):
        fake(*lines)
        with pytest.raises(KernelError, match=expected) as failure:
            store.replace(Holding(), SMALL)
        assert len(str(failure.value).splitlines()) == 1


def test_without_nft(store: NftStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.replace(Holding(), SMALL)
    monkeypatch.setattr(nft_store, "find", lambda program: None)
    for use in (store.holding, lambda: NftablesBackend().stores(SMALL), lambda: store.replace(Holding(), SMALL)):
        with pytest.raises(KernelError, match="install the package nftables"):
            use()


def test_without_privilege(namespace: Namespace) -> None:
    require_python(65534)
    program = """
from init.backends.base import Holding
from init.backends.nft_store import NftStore
from init.errors import KernelError
from init.recipe import make_plan
from init.rules import Plan, Rule, Target
try:
    NftStore().replace(Holding(), Plan((Rule("nat", "OUTPUT", (), Target("return")),), False))
except KernelError as error:
    print(error)
"""
    done = namespace.python("-c", program, uid=65534)
    assert "run as root with the capabilities" in done.stdout, (done.stdout, done.stderr)
    assert len(done.stdout.splitlines()) == 1


def test_rules_in_kernel(store: NftStore) -> None:
    assert NftablesBackend().rules_in_kernel() == {}
    store.replace(Holding(), BIG)
    found = NftablesBackend().rules_in_kernel()
    for version in BIG.versions:
        expected = Ruleset.of(rule for rule in intended(BIG) if rule.version in (None, version))
        assert {
            (table, chain): sorted(repr(normal(rule)) for rule in rules)
            for table, chains in found[version].tables.items()
            for chain, rules in chains.items()
        } == {
            (table, chain): sorted(repr(normal(rule)) for rule in rules)
            for table, chains in expected.tables.items()
            for chain, rules in chains.items()
        }
        assert not found[version].unreadable
        assert {policy for chains in found[version].policies.values() for policy in chains.values()} == {"ACCEPT"}


def test_rules_in_kernel_of_others(store: NftStore) -> None:
    nft(
        """
        table ip nat { chain OUTPUT { type nat hook output priority -100; tcp dport 1 counter accept; }; }
        table ip6 six { chain input { type filter hook input priority 0; policy drop; tcp dport 2 accept; }; }
        table inet two {
            chain istio-output { tcp dport 3 accept; }
            chain out { type nat hook output priority -110; tcp dport 4 accept; jump istio-output; }
            chain pre { type filter hook prerouting priority 0; tcp dport 5 drop; }
        }
        """
    )
    store.replace(Holding(), SMALL)
    found = NftablesBackend().rules_in_kernel()
    assert found[4].policies.get("filter") is None and found[6].policies["filter"] == {"INPUT": "DROP"}
    for version in (4, 6):
        nat = found[version].tables["nat"]
        assert [rule.target.value for rule in nat["OUTPUT"]] == ["inet two out", "inet istio-proxy-nat output"]
        assert [rule.target.kind for rule in nat["inet two out"]] == ["return", "jump"]
        assert nat["inet two out"][1].target.value == "inet two istio-output"
        assert nat["inet two istio-output"] != nat["ISTIO_OUTPUT"]
        assert nat["inet istio-proxy-nat output"][0].target.value == "ISTIO_OUTPUT"
        assert [what.split(" (")[0] for what in found[version].unreadable] == [
            "chain pre of inet two",
            "what other tables do after the accept in chain istio-output of inet two",
        ]
    assert not any(rule.match("destination-port") == "1" for rule in found[4].tables["nat"]["OUTPUT"])
