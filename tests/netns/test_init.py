"""`istio-iptables` against the real kernel: the state it makes, keeps, replaces, refuses and removes."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from .netns import REPOSITORY, Namespace, require, require_python, shared

pytestmark = pytest.mark.netns

ADDRESS = "10.10.0.41/24"
FULL = (
    "-p",
    "15001",
    "-z",
    "15006",
    "-u",
    "1337",
    "-m",
    "REDIRECT",
    "-i",
    "*",
    "-x",
    "",
    "-b",
    "*",
    "-d",
    "15090,15021",
)
CASES_FILE = REPOSITORY.parent / "shared/istio/iptables/cases.json"
# What the real program accepts, or refuses later, and this one refuses (docs/differences-from-istio.md).
REFUSED = ("bad-mode", "bad-port", "bad-uid", "bad-cidr")
BACKENDS = ("iptables-nft", "iptables-legacy", "libiptc", "nftables")
IPTABLES = BACKENDS[:3]


def recorded() -> list[dict[str, Any]]:
    """Runs of the real program, without those that are refused here."""
    if not CASES_FILE.exists():
        return []
    return [case for case in json.loads(CASES_FILE.read_text()) if case["name"] not in REFUSED]


def test_the_recorded_cases_are_there() -> None:
    shared("istio/iptables/cases.json")
    assert len(recorded()) == 35


@pytest.fixture(scope="module", autouse=True)
def _required() -> None:
    require()


@pytest.fixture(scope="module")
def untouched() -> Iterator[Namespace]:
    """For tests at whose end nothing may have changed."""
    with Namespace() as namespace:
        namespace.interface("eth0", [ADDRESS])
        yield namespace


@pytest.fixture
def pod() -> Iterator[Namespace]:
    with Namespace() as namespace:
        namespace.interface("eth0", [ADDRESS])
        yield namespace


def install(pod: Namespace, *arguments: str, env: Mapping[str, str] | None = None, uid: int = 0) -> tuple[int, str]:
    """Exit code and log of one run."""
    done = pod.python("-m", "init", *arguments, env=env, uid=uid)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


def clean(pod: Namespace, *arguments: str) -> tuple[int, str]:
    program = "import sys; from init.cli import clean_main; sys.exit(clean_main())"
    done = pod.python("-c", program, *arguments)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


def saved(pod: Namespace, binary: str = "iptables-nft") -> list[str]:
    """What `<binary>-save` prints, without comments and counters."""
    done = pod.run([f"{binary}-save"])
    assert done.returncode == 0, done.stderr
    return [re.sub(r" \[\d+:\d+\]$", "", line) for line in done.stdout.splitlines() if not line.startswith("#")]


def restore(pod: Namespace, text: str, binary: str = "iptables-nft") -> None:
    done = pod.run([f"{binary}-restore", "--noflush"], stdin=text)
    assert done.returncode == 0, done.stderr


def tables(pod: Namespace, binary: str) -> dict[str, list[str]]:
    """Table -> lines of it; legacy binaries print tables in another order than nft ones."""
    return by_table(saved(pod, binary))


def by_table(lines: Sequence[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in lines:
        if line.startswith("*"):
            table = line[1:]
        found.setdefault(table, []).append(line)
    return found


def programs(backend: str) -> tuple[str, str]:
    """The save programs of both families that show what the backend wrote."""
    kind = "nft" if backend == "iptables-nft" else "legacy"
    return f"iptables-{kind}", f"ip6tables-{kind}"


def network(pod: Namespace) -> dict[str, list[str]]:
    """Policy rules with a mark, local routes of the tables that the cases use, addresses of lo."""
    found = {}
    for family in ("-4", "-6"):
        found[f"rules {family}"] = [line for line in pod.ip(family, "rule").splitlines() if "fwmark" in line]
        for table in ("133", "134"):
            shown = pod.run(["ip", family, "route", "show", "table", table]).stdout
            found[f"routes {family} {table}"] = [line.strip() for line in shown.splitlines()]
    found["lo"] = [
        line.split()[1] for line in pod.ip("-6", "address", "show", "dev", "lo").splitlines() if "inet6" in line
    ]
    return found


def nothing_left(pod: Namespace, untouched: Mapping[str, list[str]]) -> None:
    """Neither rules of ours nor tables, routes, policy rules or addresses (a legacy table cannot be unmade)."""
    assert pod.run(["nft", "list", "ruleset"]).stdout == ""
    for binary in ("iptables-legacy", "ip6tables-legacy"):
        assert not any("ISTIO" in line or line.startswith("-A") for line in saved(pod, binary))
    assert network(pod) == untouched


@pytest.mark.parametrize("backend", BACKENDS)
def test_kernel_state_is_that_of_the_real_program(backend: str) -> None:
    """Each recorded case, one after the other in one namespace: install, again, clean."""
    for case in recorded():
        with Namespace() as pod:
            pod.interface("eth0", case["addresses"])
            pod.resolv_conf(case["resolv_conf"])
            untouched = network(pod)
            arguments = (*case["args"], "--backend", backend, "--log_output_level=default:info")
            code, log = install(pod, *arguments, env=case["env"])
            assert code == case["exit"] == 0, (case["name"], log)

            if backend in IPTABLES:
                state = tables(pod, programs(backend)[0]), tables(pod, programs(backend)[1])
                assert state == (by_table(case["iptables-save"]), by_table(case["ip6tables-save"])), case["name"]
            ruleset = pod.run(["nft", "-s", "list", "ruleset"]).stdout
            there = network(pod)
            assert there["rules -4"] == case["ip-rule"], case["name"]
            assert there["routes -4 133"] == [route.strip() for route in case["ip-route-133"]], case["name"]
            dual = "ip6tables-save" in case and any("ISTIO" in line for line in case["ip6tables-save"])
            assert ("::6/128" in there["lo"]) is dual
            assert len(there["rules -6"]) == len(there["rules -4"]) * dual

            code, log = install(pod, *arguments, env=case["env"])
            assert (code, "nothing to do" in log) == (0, True), (case["name"], log)
            assert pod.run(["nft", "-s", "list", "ruleset"]).stdout == ruleset
            assert network(pod) == there

            code, log = clean(pod)
            assert code == 0, log
            for chain in {line.split()[0][1:] for line in case["iptables-save"] if line.startswith(":ISTIO_")}:
                assert f"chain {chain} with" in log or backend == "nftables", log
            nothing_left(pod, untouched)


def test_a_second_cleanup_finds_nothing(pod: Namespace) -> None:
    assert install(pod, *FULL)[0] == 0
    assert clean(pod)[0] == 0
    code, log = clean(pod)
    assert (code, "nothing to remove" in log) == (0, True), log


def test_dry_run_text_is_what_is_applied_and_needs_no_privilege(pod: Namespace) -> None:
    require_python(1000)
    done = pod.python("-m", "init", *FULL, "--dry-run", uid=1000)
    assert done.returncode == 0, done.stderr
    assert pod.run(["nft", "list", "ruleset"]).stdout == ""
    restore(pod, done.stdout)
    by_hand = saved(pod)
    assert clean(pod)[0] == 0
    assert install(pod, *FULL)[0] == 0
    assert saved(pod) == by_hand


def test_cleanup_dry_run_prints_what_cleanup_restores(pod: Namespace) -> None:
    assert install(pod, *FULL)[0] == 0
    before = saved(pod)
    done = pod.python("-m", "init", "--cleanup-only", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert saved(pod) == before
    restore(pod, done.stdout)
    assert not any("ISTIO" in line for line in saved(pod))


FOREIGN = """*nat
:DOCKER - [0:0]
-A PREROUTING -p tcp --dport 4000 -j DOCKER
-A OUTPUT -p udp --dport 99 -m comment --comment "keep \\"ISTIO_OUTPUT\\" -j ISTIO_OUTPUT" -j ACCEPT
-A DOCKER -j RETURN
COMMIT
*filter
:ISTIO_LOOKALIKE - [0:0]
-A FORWARD -p tcp --dport 4001 -j DROP
-A ISTIO_LOOKALIKE -j RETURN
COMMIT
"""


@pytest.mark.parametrize("kind", ["nft", "legacy"])
def test_foreign_rules_stay_as_they_are(pod: Namespace, kind: str) -> None:
    binary = f"iptables-{kind}"
    restore(pod, FOREIGN, binary)
    before = saved(pod, binary)
    # legacy is chosen by itself: it holds rules
    assert install(pod, *FULL)[0] == 0
    assert [line for line in saved(pod, binary) if line in before] == before
    assert "-A PREROUTING -p tcp -j ISTIO_INBOUND" in saved(pod, binary)
    restore(pod, "*nat\n-A OUTPUT -p tcp --dport 4002 -j ACCEPT\nCOMMIT\n", binary)
    code, log = install(pod, *FULL)
    assert (code, "nothing to do" in log) == (0, True), log
    assert install(pod, "-i", "10.0.0.0/8", "--reconcile")[0] == 0
    assert clean(pod)[0] == 0
    left = saved(pod, binary)
    assert [line for line in left if line not in before] == ["-A OUTPUT -p tcp -m tcp --dport 4002 -j ACCEPT"]
    assert [line for line in left if line in before] == before


def test_other_flags_are_refused_with_a_diff_and_replaced_under_reconcile(pod: Namespace) -> None:
    assert install(pod, *FULL)[0] == 0
    before = saved(pod)
    other = ("-u", "1337", "-i", "10.0.0.0/8", "-b", "8080")
    code, log = install(pod, *other)
    assert code == 1
    assert "+nat: -A ISTIO_OUTPUT -d 10.0.0.0/8 -j ISTIO_REDIRECT" in log
    assert "-nat: -A ISTIO_INBOUND -p tcp --dport 15090 -j RETURN" in log
    assert "istio-clean-iptables" in log and "--reconcile" in log
    assert saved(pod) == before

    code, log = install(pod, *other, "--reconcile")
    assert code == 0, log
    replaced = saved(pod)
    assert clean(pod)[0] == 0
    assert install(pod, *other)[0] == 0
    assert saved(pod) == replaced


def test_a_changed_order_is_a_difference(pod: Namespace) -> None:
    assert install(pod, *FULL)[0] == 0
    good = saved(pod)
    restore(pod, "*nat\n-D ISTIO_OUTPUT -j ISTIO_REDIRECT\n-I ISTIO_OUTPUT 1 -j ISTIO_REDIRECT\nCOMMIT\n")
    assert install(pod, *FULL)[0] == 1
    assert install(pod, *FULL, "--reconcile")[0] == 0
    assert saved(pod) == good


def test_force_apply_writes_the_same_rules_again(pod: Namespace) -> None:
    assert install(pod, *FULL)[0] == 0
    before = saved(pod)
    code, log = install(pod, *FULL, "--force-apply")
    assert (code, "installed" in log) == (0, True), log
    assert saved(pod) == before


@pytest.mark.parametrize(
    ("arguments", "flag", "value"),
    [
        (("-i", "10.0.0.0/33"), "--istio-service-cidr (-i)", "10.0.0.0/33"),
        (("-i", "10.0.0.0/8,*"), "--istio-service-cidr (-i)", "*"),
        (("-x", "*"), "--istio-service-exclude-cidr (-x)", "*"),
        (("-b", "80,http"), "--istio-inbound-ports (-b)", "http"),
        (("-b", "65536"), "--istio-inbound-ports (-b)", "65536"),
        (("-b", "80\nCOMMIT\n*filter\n-A INPUT -j DROP"), "--istio-inbound-ports (-b)", "COMMIT"),
        (("-q", "80 -j ACCEPT"), "--istio-outbound-ports (-q)", "-j ACCEPT"),
        (("-p", "0"), "--envoy-port (-p)", "0"),
        (("-p", "15001", "-z", "15001"), "--inbound-capture-port (-z)", "15001"),
        (("-u", "proxy"), "--proxy-uid (-u)", "proxy"),
        (("-u", "4294967295"), "--proxy-uid (-u)", "4294967295"),
        (("-m", "FOO"), "--istio-inbound-interception-mode (-m)", "FOO"),
        (("-m", "TPROXY", "-t", "0x539"), "--istio-inbound-tproxy-mark (-t)", "0x539"),
        (("-c", "eth0 -j ACCEPT"), "--istio-exclude-interfaces (-c)", "-j ACCEPT"),
        (("--backend", "pf"), "--backend", "pf"),
        (("--no-such-flag",), "--no-such-flag", "unknown"),
        (("--dual-stack=maybe",), "--dual-stack", "maybe"),
    ],
)
def test_a_bad_flag_changes_nothing(untouched: Namespace, arguments: Sequence[str], flag: str, value: str) -> None:
    code, log = install(untouched, *arguments)
    # 255 is for what is no command line at all; a refused value is an error of configuration
    assert code == (255 if arguments[0] in ("--no-such-flag", "--dual-stack=maybe") else 1)
    assert flag in log and value in log
    assert untouched.run(["nft", "list", "ruleset"]).stdout == ""


def test_a_bad_variable_changes_nothing(pod: Namespace) -> None:
    assert install(pod, *FULL)[0] == 0
    before = saved(pod)
    code, log = install(pod, "--reconcile", env={"ISTIO_INBOUND_PORTS": "80,http"})
    assert code == 1
    assert "ISTIO_INBOUND_PORTS: 'http'" in log
    assert saved(pod) == before


def test_without_an_address_nothing_is_done() -> None:
    with Namespace() as pod:
        code, log = install(pod, *FULL)
        assert (code, "no valid local IP address found" in log) == (1, True)
        assert clean(pod)[0] == 0  # cleaning needs none


def wrapper(folder: Path, name: str, script: str) -> dict[str, str]:
    """A PATH in which `name` is a script; $real is the binary behind it."""
    path = folder / name
    path.write_text(f"#!/bin/sh\nreal=/usr/sbin/{name}\n{script}\n")
    path.chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


def pass_through(folder: Path, name: str) -> None:
    wrapper(folder, name, 'exec "$real" "$@"')


@pytest.mark.parametrize("earlier", [(), ("-u", "5000", "-b", "8080")])
def test_a_failure_after_the_commit_is_rolled_back(pod: Namespace, tmp_path: Path, earlier: Sequence[str]) -> None:
    if earlier:
        restore(pod, FOREIGN)
        assert install(pod, *earlier)[0] == 0
        restore(pod, "*nat\n-A OUTPUT -p tcp --dport 4003 -j ACCEPT\nCOMMIT\n")
    before = saved(pod)
    pass_through(tmp_path, "iptables-nft-save")
    failed = tmp_path / "failed"
    script = f'"$real" "$@" || exit $?; [ -e {failed} ] && exit 0; touch {failed}; echo broken >&2; exit 9'
    path = wrapper(tmp_path, "iptables-nft-restore", script)
    code, log = install(pod, *FULL, "--reconcile", env=path)
    assert code == 1
    assert "iptables-nft-restore failed with status 9: broken" in log
    assert failed.exists()
    assert saved(pod) == before


def test_rules_that_did_not_arrive_are_an_error_and_rolled_back(pod: Namespace, tmp_path: Path) -> None:
    pass_through(tmp_path, "iptables-nft-save")
    path = wrapper(tmp_path, "iptables-nft-restore", 'grep -v "uid-owner 1337" | "$real" "$@"')
    code, log = install(pod, *FULL, env=path)
    assert code == 1
    assert "+nat: -A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN" in log
    assert pod.run(["nft", "list", "ruleset"]).stdout == ""


def test_few_processes_are_started(pod: Namespace, tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    path: dict[str, str] = {}
    for family in ("iptables", "ip6tables"):
        for kind in ("nft", "legacy"):
            for form in ("save", "restore"):
                name = f"{family}-{kind}-{form}"
                path = wrapper(tmp_path, name, f'echo {name} >> {calls}; exec "$real" "$@"')
    assert install(pod, *FULL, env=path)[0] == 0
    assert len(calls.read_text().split()) <= 4
    calls.write_text("")
    assert install(pod, *FULL, env=path)[0] == 0
    assert calls.read_text().split() == ["iptables-nft-save"]
    assert clean(pod)[0] == 0
    pod.ip("-6", "address", "add", "fd00:10::41/64", "dev", "eth0", "nodad")
    dual = (*FULL, "-m", "TPROXY", "--dual-stack", "--redirect-dns", "--capture-all-dns")
    restore(pod, FOREIGN, "iptables-legacy")  # which are looked into, and used, too
    calls.write_text("")
    assert install(pod, *dual, env=path)[0] == 0
    assert len(calls.read_text().split()) <= 8


HOLD = """
import fcntl, sys
file = open("/proc/self/ns/net")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_concurrent_runs_wait_for_each_other(pod: Namespace) -> None:
    holder = pod.start([sys.executable, "-c", HOLD])
    assert holder.stdout is not None and holder.stdin is not None
    assert holder.stdout.readline() == "held\n"
    runs = [pod.start([sys.executable, "-m", "init", *FULL]) for _ in range(3)]
    for run in runs:
        assert run.stderr is not None
        assert "waiting for another run" in run.stderr.readline()
    assert pod.run(["nft", "list", "ruleset"]).stdout == ""
    holder.stdin.close()
    logs = []
    for run in runs:
        assert run.stderr is not None
        logs.append(run.stderr.read())
        assert run.wait(30) == 0
    assert sorted("nothing to do" in log for log in logs) == [False, True, True]


@pytest.mark.parametrize(
    "drop", [("--reuid=1000", "--regid=1000", "--clear-groups"), ("--bounding-set=-net_admin", "--inh-caps=-net_admin")]
)
def test_without_the_capability_one_line_says_what_to_do(pod: Namespace, drop: Sequence[str]) -> None:
    done = pod.run(["setpriv", *drop, sys.executable, "-m", "init", *FULL])
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "NET_ADMIN" in done.stderr and "run as root" in done.stderr


def test_without_binaries_one_line_says_what_to_do(pod: Namespace, tmp_path: Path) -> None:
    # In a mount namespace of its own every folder with iptables in it is empty.
    hide = 'for d in /usr/sbin /sbin /usr/local/sbin; do mount -t tmpfs none $d; done; PATH=$1; shift; exec "$@"'
    command = [sys.executable, "-m", "init"]
    hidden = ["unshare", "-m", "sh", "-c", hide, "sh", str(tmp_path), *command]
    done = pod.run([*hidden, *FULL])
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "no iptables found in PATH: install the package iptables" in done.stderr
    done = pod.run([*hidden, "--cleanup-only"])
    assert (done.returncode, "nothing to remove" in done.stderr) == (0, True), done.stderr
    # With rules there, cleaning needs what can read them.
    assert install(pod, *FULL)[0] == 0
    done = pod.run([*hidden, "--cleanup-only"])
    assert (done.returncode, "no iptables-nft found in PATH" in done.stderr) == (1, True), done.stderr
    assert clean(pod)[0] == 0


def test_a_read_only_file_system_stops_only_legacy_and_says_why(pod: Namespace) -> None:
    command = [
        "unshare",
        "-m",
        "sh",
        "-c",
        'mount -t tmpfs -o ro none /run; exec "$@"',
        "sh",
        sys.executable,
        "-m",
        "init",
    ]
    assert pod.run([*command, *FULL]).returncode == 0
    assert clean(pod)[0] == 0
    done = pod.run([*command, *FULL, "--force-iptables-binary", "legacy"])
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "make /run writable" in done.stderr


def test_a_namespace_of_another_user_is_refused(pod: Namespace) -> None:
    if pod.run(["unshare", "-Ur", "true"]).returncode != 0:
        pytest.skip("no user namespaces here (a chroot, or a container that forbids them)")
    done = pod.run(["unshare", "-Ur", sys.executable, "-m", "init", *FULL])
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "not permitted" in done.stderr and "run as root with the capability NET_ADMIN" in done.stderr


def test_a_table_that_iptables_cannot_show_is_refused(pod: Namespace) -> None:
    native = """table ip nat {
 set s { type inet_service; flags interval; elements = { 80, 443 }; }
 chain PREROUTING { type nat hook prerouting priority -100; tcp dport @s redirect to :9; }
}
"""
    assert pod.run(["nft", "-f", "-"], stdin=native).returncode == 0
    before = pod.run(["nft", "list", "ruleset"]).stdout
    code, log = install(pod, *FULL)
    assert (code, "nft delete table ip nat" in log) == (1, True), log
    assert clean(pod)[0] == 0  # no chain in it bears a name of ours
    assert pod.run(["nft", "list", "ruleset"]).stdout == before


def test_rules_in_both_kinds_are_refused_and_cleaned(pod: Namespace) -> None:
    assert install(pod, *FULL, "--force-iptables-binary", "legacy")[0] == 0
    restore(pod, pod.python("-m", "init", *FULL, "-n").stdout)
    code, log = install(pod, *FULL)
    assert code == 1
    assert "iptables-nft and iptables-legacy" in log and "istio-clean-iptables" in log
    assert clean(pod)[0] == 0
    assert not any("ISTIO" in line for kind in ("nft", "legacy") for line in saved(pod, f"iptables-{kind}"))


def test_the_kind_that_holds_the_rules_is_used_again(pod: Namespace) -> None:
    assert install(pod, *FULL)[0] == 0
    restore(pod, FOREIGN, "iptables-legacy")  # on its own it would now select legacy
    code, log = install(pod, *FULL)
    assert (code, "nothing to do: iptables-nft" in log) == (0, True), log
    code, log = install(pod, *FULL, "--force-iptables-binary", "legacy")
    assert (code, "nothing to do: iptables-nft" in log) == (0, True), log  # they must not be there twice
    code, log = install(pod, *FULL, "--force-iptables-binary", "legacy", "--reconcile")
    assert code == 0, log
    assert not any("ISTIO" in line for line in saved(pod))
    assert "-A OUTPUT -j ISTIO_OUTPUT" in saved(pod, "iptables-legacy")


def test_ipv6_rules_of_an_earlier_run_are_cleaned_too(pod: Namespace) -> None:
    text = pod.python("-m", "init", *FULL, "-n").stdout
    text = text.replace("127.0.0.6/32", "::6/128").replace("127.0.0.1/32", "::1/128")
    for kind in ("nft", "legacy"):
        restore(pod, text, f"ip6tables-{kind}")
    code, log = clean(pod)
    assert (code, "removed from ip6tables-nft" in log, "removed from ip6tables-legacy" in log) == (0, True, True)
    assert not any("ISTIO" in line for kind in ("nft", "legacy") for line in saved(pod, f"ip6tables-{kind}"))
