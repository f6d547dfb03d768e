"""The ordered recipe: Settings -> rules as plain values, for each address family.

This is the only place that knows which rules exist. A rule names no syntax: `render` turns it into iptables text, and
another backend may turn it into its own. The order of emission is Istio's (`tools/istio-iptables`, capture) and it is
what decides: rules are tried first to last.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from init.settings import ALL, Cidr, Settings

MatchKind = Literal["out-interface", "source", "destination", "protocol", "destination-port", "uid", "gid"]
TargetKind = Literal["return", "jump", "redirect"]

INBOUND = "ISTIO_INBOUND"
REDIRECT = "ISTIO_REDIRECT"
IN_REDIRECT = "ISTIO_IN_REDIRECT"
OUTPUT = "ISTIO_OUTPUT"

# Every chain that this program or Istio's creates in a pod: what comparison and cleanup take for ours.
CHAINS = frozenset(
    (INBOUND, REDIRECT, IN_REDIRECT, OUTPUT, "ISTIO_OUTPUT_DNS", "ISTIO_DIVERT", "ISTIO_TPROXY", "ISTIO_DROP")
)


@dataclass(frozen=True, slots=True)
class Match:
    """One condition of a rule; all must hold. `negated` means that it must not."""

    kind: MatchKind
    value: str
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Target:
    """What happens to a packet that matches: `value` is the chain of a jump or the port of a redirect."""

    kind: TargetKind
    value: str = ""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule, appended to `chain` of `table`."""

    table: str
    chain: str
    matches: tuple[Match, ...]
    target: Target


@dataclass(frozen=True, slots=True)
class Family:
    """An address family: `program` is the prefix of its binaries, `passthrough` Envoy's bind address inbound."""

    version: int
    program: str
    passthrough: str


IPV4 = Family(4, "iptables", "127.0.0.6/32")
IPV6 = Family(6, "ip6tables", "::6/128")


@dataclass(frozen=True, slots=True)
class Plan:
    """The rules of one family, in order of emission."""

    family: Family
    rules: tuple[Rule, ...]


RETURN = Target("return")
TCP = Match("protocol", "tcp")
UDP = Match("protocol", "udp")
LOOPBACK_OUT = Match("out-interface", "lo")


def make_plan(settings: Settings) -> Plan:
    """The rules that `settings` ask for."""
    return Plan(IPV4, tuple(_recipe(settings, IPV4, settings.loopback_cidr)))


def _recipe(settings: Settings, family: Family, loopback: str) -> Iterator[Rule]:
    tunnel = str(settings.inbound_tunnel_port)
    yield _nat(INBOUND, TCP, _dport(tunnel), target=RETURN)
    yield _nat(REDIRECT, TCP, target=Target("redirect", str(settings.proxy_port)))
    yield _nat(IN_REDIRECT, TCP, target=Target("redirect", str(settings.inbound_capture_port)))
    yield from _inbound(settings)
    yield _nat("OUTPUT", target=_jump(OUTPUT))
    for port in settings.outbound_ports_exclude:
        yield _nat(OUTPUT, TCP, _dport(port), target=RETURN)
        yield _nat(OUTPUT, UDP, _dport(port), target=RETURN)
    # What the proxy itself sends through lo to an application of its pod: passthrough from 127.0.0.6.
    yield _nat(OUTPUT, LOOPBACK_OUT, Match("source", family.passthrough), target=RETURN)
    for uid in settings.proxy_uids:
        yield from _owner(settings, loopback, "uid", uid)
    for gid in settings.proxy_gids:
        yield from _owner(settings, loopback, "gid", gid)
    yield _nat(OUTPUT, Match("destination", loopback), target=RETURN)
    yield from _outbound(settings, family)


def _inbound(settings: Settings) -> Iterator[Rule]:
    if not settings.inbound_ports:
        return
    yield _nat("PREROUTING", TCP, target=_jump(INBOUND))
    if settings.inbound_ports == ALL:
        for port in settings.inbound_ports_exclude:
            yield _nat(INBOUND, TCP, _dport(port), target=RETURN)
        yield _nat(INBOUND, TCP, target=_jump(IN_REDIRECT))
    else:
        for port in settings.inbound_ports:
            yield _nat(INBOUND, TCP, _dport(port), target=_jump(IN_REDIRECT))


def _owner(settings: Settings, loopback: str, kind: Literal["uid", "gid"], owner: int) -> Iterator[Rule]:
    """The three rules of one identity of the proxy: its self-calls, everybody else's on lo, everything else of its."""
    proxy = Match(kind, str(owner))
    # The proxy calling its own pod by its address is inbound traffic; by the tunnel port it is already HBONE.
    yield _nat(
        OUTPUT,
        LOOPBACK_OUT,
        Match("destination", loopback, negated=True),
        TCP,
        Match("destination-port", str(settings.inbound_tunnel_port), negated=True),
        proxy,
        target=_jump(IN_REDIRECT),
    )
    # An application calling its own pod stays uncaptured, unless a captured range is itself a loopback address.
    if not any(cidr.is_loopback for cidr in settings.outbound_ranges or ()):
        yield _nat(OUTPUT, LOOPBACK_OUT, Match(kind, str(owner), negated=True), target=RETURN)
    yield _nat(OUTPUT, proxy, target=RETURN)


def _outbound(settings: Settings, family: Family) -> Iterator[Rule]:
    for cidr in _of(family, settings.outbound_ranges_exclude):
        yield _nat(OUTPUT, Match("destination", cidr.text), target=RETURN)
    for port in settings.outbound_ports:
        yield _nat(OUTPUT, TCP, _dport(port), target=_jump(REDIRECT))
    if settings.outbound_ranges is None:
        yield _nat(OUTPUT, target=_jump(REDIRECT))
        return
    for cidr in _of(family, settings.outbound_ranges):
        yield _nat(OUTPUT, Match("destination", cidr.text), target=_jump(REDIRECT))


def _of(family: Family, cidrs: tuple[Cidr, ...]) -> Iterator[Cidr]:
    return (cidr for cidr in cidrs if cidr.address.version == family.version)


def _nat(chain: str, *matches: Match, target: Target) -> Rule:
    return Rule("nat", chain, matches, target)


def _dport(port: str) -> Match:
    return Match("destination-port", port)


def _jump(chain: str) -> Target:
    return Target("jump", chain)
