"""The vocabulary of capture: rules as plain values that name no program's syntax.

`recipe` makes them, `iptables_text` and `nft_text` write and read them, `state` compares them, `explain` walks them.
Chains bear the names of iptables (`PREROUTING`, `ISTIO_OUTPUT`); the nft form of a name is `nft_text`'s business.
"""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

Version = Literal[4, 6]
VERSIONS: tuple[Version, ...] = (4, 6)

MatchKind = Literal[
    "in-interface",
    "out-interface",
    "source",
    "destination",
    "protocol",
    "source-port",
    "destination-port",
    "destination-ports",
    "uid",
    "gid",
    "ct-state",
    "mark",
    "connmark",
    "other",  # read from the kernel and not understood: `value` is its text
]
TargetKind = Literal[
    "return",
    "accept",
    "drop",
    "jump",
    "redirect",
    "mark",
    "tproxy",
    "save-mark",
    "restore-mark",
    "zone",
    "none",  # a rule that only counts
    "other",  # read from the kernel and not understood: `value` is its text
]

INBOUND = "ISTIO_INBOUND"
REDIRECT = "ISTIO_REDIRECT"
IN_REDIRECT = "ISTIO_IN_REDIRECT"
OUTPUT = "ISTIO_OUTPUT"
OUTPUT_DNS = "ISTIO_OUTPUT_DNS"
DIVERT = "ISTIO_DIVERT"
TPROXY = "ISTIO_TPROXY"
DROP = "ISTIO_DROP"

# Every chain that this program or Istio's creates in a pod: what comparison and cleanup take for ours.
CHAINS = frozenset((INBOUND, REDIRECT, IN_REDIRECT, OUTPUT, OUTPUT_DNS, DIVERT, TPROXY, DROP))
TABLES = ("mangle", "nat", "raw")  # the tables that hold rules of ours
PASSTHROUGH: Mapping[Version, str] = {4: "127.0.0.6/32", 6: "::6/128"}  # Envoy's bind address towards the application
SELF_CALL_MARK = 1338  # TPROXY: the proxy calling its own pod; does not follow the configurable mark


@dataclass(frozen=True, slots=True)
class Match:
    """One condition of a rule; all must hold. `negated` means that it must not.

    `value`: an interface, `address/bits`, `tcp` or `udp`, a port or `first:last`, ports joined by commas, a decimal
    uid, gid or mark, conntrack states joined by commas.
    """

    kind: MatchKind
    value: str
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Target:
    """What happens to a packet that matches.

    `value`: the chain of a jump, the port of a redirect or tproxy, the number of a mark or zone. `mark` is tproxy's.
    """

    kind: TargetKind
    value: str = ""
    mark: str = ""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of `chain` in `table`.

    `position` counts from 1 and means "insert there"; None means "append". `version` is the address family that the
    rule belongs to, or None when it stands in both, with the same words.
    """

    table: str
    chain: str
    matches: tuple[Match, ...]
    target: Target
    position: int | None = None
    version: Version | None = None

    def match(self, kind: MatchKind) -> str | None:
        """The value of its first positive condition of that kind."""
        return next((match.value for match in self.matches if match.kind == kind and not match.negated), None)


@dataclass(frozen=True, slots=True)
class Plan:
    """All rules in order of emission. IPv4 is always captured; `ipv6` says whether IPv6 is too."""

    rules: tuple[Rule, ...]
    ipv6: bool

    @property
    def versions(self) -> tuple[Version, ...]:
        """The address families that get rules."""
        return VERSIONS if self.ipv6 else (4,)

    def of(self, version: Version) -> tuple[Rule, ...]:
        """The rules of one family."""
        return tuple(rule for rule in self.rules if rule.version in (None, version))


# Order in which the conditions of a canonical rule are listed: that of iptables-save.
_ORDER: tuple[MatchKind, ...] = (
    "source",
    "destination",
    "in-interface",
    "out-interface",
    "protocol",
    "source-port",
    "destination-port",
    "destination-ports",
    "ct-state",
    "mark",
    "connmark",
    "uid",
    "gid",
    "other",
)


def canonical(rule: Rule) -> Rule:
    """The same rule in one spelling: rules of equal canonical form treat every packet alike.

    Addresses are masked, states sorted, conditions that hold for every packet left out, positions forgotten.
    """
    matches = (_canonical_match(match) for match in rule.matches)
    kept = {match: None for match in matches if not _is_always_true(match)}  # in order, each once
    ordered = sorted(kept, key=_rank)
    return replace(rule, matches=tuple(ordered), position=None)


def _rank(match: Match) -> tuple[int, bool, str]:
    rank = _ORDER.index(match.kind)
    # Words that are not understood keep their order: `-m comment` stands before `--comment`.
    return (rank, False, "") if match.kind == "other" else (rank, match.negated, match.value)


def _canonical_match(match: Match) -> Match:
    if match.kind in ("source", "destination"):
        try:
            return replace(match, value=str(ipaddress.ip_network(match.value, strict=False)))
        except ValueError:
            return match
    if match.kind == "ct-state":
        return replace(match, value=",".join(sorted(match.value.split(","))))
    return match


def _is_always_true(match: Match) -> bool:
    return match.kind in ("source", "destination") and match.value.endswith("/0") and not match.negated
