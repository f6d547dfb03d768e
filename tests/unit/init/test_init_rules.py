"""Plan, text and comparison: against golden texts and against what the real program left in the kernel."""

import ipaddress
import json
import os
from pathlib import Path
from typing import Any

import pytest

from init.flags import resolve
from init.plan import make_plan
from init.render import document, installation
from init.settings import load
from init.state import Dump, RuleSet, listing, normalised, parse_save, removal, restoration, wanted

CASES_FILE = Path(__file__).resolve().parents[4] / "shared/istio/iptables/cases.json"
SUPPORTED = (
    "defaults seed-asm seed-mirror-15020 injected-sidecar no-inbound inbound-ports outbound-cidrs outbound-none "
    "exclude-cidr outbound-ports exclude-outbound-ports exclude-cidr-and-ports uid-gid custom-ports env-inbound-ports "
    "v6-address-single-stack-default"
).split()


def rules(*argv: str, environ: dict[str, str] | None = None) -> Any:
    addresses = [ipaddress.ip_address("10.10.0.41")]
    return make_plan(load(resolve(argv, environ or {}), lambda name: None, lambda: addresses)).rules


def text(*argv: str) -> str:
    return document(installation(rules(*argv)))


HEAD = """* nat
-N ISTIO_INBOUND
-N ISTIO_REDIRECT
-N ISTIO_IN_REDIRECT
-N ISTIO_OUTPUT
-A ISTIO_INBOUND -p tcp --dport 15008 -j RETURN
-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001
-A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports 15006
"""
OUT = "-A OUTPUT -j ISTIO_OUTPUT\n"
PASSTHROUGH = "-A ISTIO_OUTPUT -o lo -s 127.0.0.6/32 -j RETURN\n"
LOOPBACK = "-A ISTIO_OUTPUT -d 127.0.0.1/32 -j RETURN\n"
END = "COMMIT\n"


def owner(kind: str, number: int, *, own_calls_captured: bool = False) -> str:
    first = (
        f"-A ISTIO_OUTPUT -o lo ! -d 127.0.0.1/32 -p tcp ! --dport 15008 -m owner --{kind}-owner {number} "
        "-j ISTIO_IN_REDIRECT\n"
    )
    second = f"-A ISTIO_OUTPUT -o lo -m owner ! --{kind}-owner {number} -j RETURN\n"
    return f"{first}{'' if own_calls_captured else second}-A ISTIO_OUTPUT -m owner --{kind}-owner {number} -j RETURN\n"


OWNERS = owner("uid", 1337) + owner("gid", 1337)
INBOUND = "-A PREROUTING -p tcp -j ISTIO_INBOUND\n"


@pytest.mark.parametrize(
    ("argv", "golden"),
    [
        ((), HEAD + OUT + PASSTHROUGH + OWNERS + LOOPBACK + END),
        (
            ("-b", "*"),
            HEAD
            + INBOUND
            + "-A ISTIO_INBOUND -p tcp -j ISTIO_IN_REDIRECT\n"
            + OUT
            + PASSTHROUGH
            + OWNERS
            + LOOPBACK
            + END,
        ),
        (
            ("-b", "*", "-d", "15090,15021"),
            HEAD
            + INBOUND
            + "-A ISTIO_INBOUND -p tcp --dport 15090 -j RETURN\n"
            + "-A ISTIO_INBOUND -p tcp --dport 15021 -j RETURN\n"
            + "-A ISTIO_INBOUND -p tcp -j ISTIO_IN_REDIRECT\n"
            + OUT
            + PASSTHROUGH
            + OWNERS
            + LOOPBACK
            + END,
        ),
        (
            ("-b", "32000,31000", "-d", "15090"),
            HEAD
            + INBOUND
            + "-A ISTIO_INBOUND -p tcp --dport 32000 -j ISTIO_IN_REDIRECT\n"
            + "-A ISTIO_INBOUND -p tcp --dport 31000 -j ISTIO_IN_REDIRECT\n"
            + OUT
            + PASSTHROUGH
            + OWNERS
            + LOOPBACK
            + END,
        ),
        (
            ("-i", "10.1.2.3/8", "-x", "10.9.0.0/16,fd00::/8"),
            HEAD
            + OUT
            + PASSTHROUGH
            + OWNERS
            + LOOPBACK
            + "-A ISTIO_OUTPUT -d 10.9.0.0/16 -j RETURN\n"
            + "-A ISTIO_OUTPUT -d 10.1.2.3/8 -j ISTIO_REDIRECT\n"
            + END,
        ),
        (
            ("-i", "*", "-q", "32000", "-o", "80"),
            HEAD
            + OUT
            + "-A ISTIO_OUTPUT -p tcp --dport 80 -j RETURN\n"
            + "-A ISTIO_OUTPUT -p udp --dport 80 -j RETURN\n"
            + PASSTHROUGH
            + OWNERS
            + LOOPBACK
            + "-A ISTIO_OUTPUT -p tcp --dport 32000 -j ISTIO_REDIRECT\n"
            + "-A ISTIO_OUTPUT -j ISTIO_REDIRECT\n"
            + END,
        ),
        (
            ("-i", "127.1.2.3/32", "-u", "3,4", "-g", "1"),
            HEAD
            + OUT
            + PASSTHROUGH
            + owner("uid", 3, own_calls_captured=True)
            + owner("uid", 4, own_calls_captured=True)
            + owner("gid", 1, own_calls_captured=True)
            + LOOPBACK
            + "-A ISTIO_OUTPUT -d 127.1.2.3/32 -j ISTIO_REDIRECT\n"
            + END,
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_golden_text(argv: tuple[str, ...], golden: str) -> None:
    assert text(*argv) == golden


@pytest.mark.parametrize("loopback", ["::1/128", "127.5.5.5/4"])
def test_a_loopback_address_of_either_family_counts_as_written(loopback: str) -> None:
    assert "! --uid-owner" not in text("-i", f"10.0.0.0/8,{loopback}")


def cases() -> list[dict[str, Any]]:
    if not CASES_FILE.exists():
        if os.environ.get("CI") == "true":
            pytest.fail(f"{CASES_FILE} is absent")
        pytest.skip(f"{CASES_FILE} is absent")
    return [case for case in json.loads(CASES_FILE.read_text()) if case["name"] in SUPPORTED]


@pytest.mark.parametrize("name", SUPPORTED)
def test_the_plan_is_what_the_real_program_left_in_the_kernel(name: str) -> None:
    (case,) = [case for case in cases() if case["name"] == name]
    dump = parse_save("\n".join(case["iptables-save"]))
    assert listing(wanted(rules(*case["args"], environ=case["env"]))) == listing(dump.ours())
    assert parse_save("\n".join(case["ip6tables-save"])).ours() == {}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("-p tcp --dport 80 -j RETURN", "-p tcp -m tcp --dport 80 -j RETURN"),
        ("-o lo -s 127.0.0.6/32 -j RETURN", "-s 127.0.0.6/32 -o lo -j RETURN"),
        ("-d 10.1.2.3/8 -j X", "-d 10.0.0.0/8 -j X"),
        ("-d 0.0.0.0/0 -j X", "-j X"),
        ("-o lo ! -d 127.0.0.1/32 -p tcp ! --dport 1 -m owner --uid-owner 1 -j X",)
        + ("! -d 127.0.0.1/32 -o lo -p tcp -m tcp ! --dport 1 -m owner --uid-owner 1 -j X",),
    ],
)
def test_the_same_rule_in_other_words(one: str, other: str) -> None:
    assert normalised(one) == normalised(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("-m owner --uid-owner 1 -j X", "-m owner ! --uid-owner 1 -j X"),
        ("-m owner --uid-owner 1 -j X", "-m owner --gid-owner 1 -j X"),
        ("-p tcp --dport 80 -j X", "-p tcp ! --dport 80 -j X"),
        ("-s 10.0.0.0/8 -j X", "-d 10.0.0.0/8 -j X"),
        ("-j X", "-m socket -j X"),
        ("-j X", "! -d 0.0.0.0/0 -j X"),
        ("-j X", "-m comment --comment x -j X"),
        ("-j X", "-g X"),
        ("-j REDIRECT --to-ports 1", "-j REDIRECT --to-ports 1 --random"),
    ],
)
def test_rules_that_differ(one: str, other: str) -> None:
    assert normalised(one) != normalised(other)


SAVED = """# Generated by iptables-nft-save
# Table `mangle' is incompatible, use 'nft' tool.
# Table `filter' contains incompatible base-chains, use 'nft' tool to list them.
*nat
:PREROUTING ACCEPT [1:60]
:OUTPUT ACCEPT [0:0]
:DOCKER - [0:0]
:ISTIO_OUTPUT - [0:0]
:ISTIO_OTHER - [0:0]
-A PREROUTING -j DOCKER
-A OUTPUT -m comment --comment "-j ISTIO_X" -j ACCEPT
-A OUTPUT -j ISTIO_OUTPUT
-A DOCKER -g ISTIO_OUTPUT
-A ISTIO_OUTPUT -p tcp
-A ISTIO_OTHER -j RETURN
COMMIT
"""


def test_reading_a_dump() -> None:
    dump = parse_save(SAVED)
    ours = dump.ours()["nat"]
    assert ours.chains == {"ISTIO_OUTPUT": ("-p tcp",)}
    assert [(hook.chain, hook.position) for hook in ours.hooks] == [("OUTPUT", 2), ("DOCKER", 1)]
    assert (dump.unreadable, dump.partly_readable) == ({"mangle"}, {"filter"})
    assert dump.in_use()


def test_removal_and_restoration_are_opposites() -> None:
    ours = parse_save(SAVED).ours()
    assert document(removal(ours)) == (
        "* nat\n-D OUTPUT -j ISTIO_OUTPUT\n-D DOCKER -g ISTIO_OUTPUT\n-F ISTIO_OUTPUT\n-X ISTIO_OUTPUT\nCOMMIT\n"
    )
    assert document(restoration(ours)) == (
        "* nat\n-N ISTIO_OUTPUT\n-A ISTIO_OUTPUT -p tcp\n-I OUTPUT 2 -j ISTIO_OUTPUT\n"
        "-I DOCKER 1 -g ISTIO_OUTPUT\nCOMMIT\n"
    )


def test_nothing_to_say_is_no_text() -> None:
    empty: RuleSet = {}
    assert document(removal(empty), restoration(empty)) == ""


@pytest.mark.parametrize("garbage", ["", "-A OUTPUT -j X", ":X", "*nat\n:\n-A \n-A X", "\x00", "*\n-A X Y"])
def test_strange_dumps_are_read_without_a_crash(garbage: str) -> None:
    assert parse_save(garbage).ours() == {}


@pytest.mark.parametrize(
    ("save", "in_use"),
    [
        ("", False),
        ("*nat\n:OUTPUT ACCEPT [9:9]\nCOMMIT", False),
        ("*nat\n:OUTPUT DROP [0:0]\nCOMMIT", True),
        ("*nat\n:OUTPUT ACCEPT [0:0]\n:X - [0:0]\nCOMMIT", True),
        ("*nat\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT -j ACCEPT\nCOMMIT", True),
    ],
)
def test_tables_in_use(save: str, in_use: bool) -> None:
    dump: Dump = parse_save(save)
    assert dump.in_use() is in_use
