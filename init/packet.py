"""A packet, the rules that it meets, and where it goes: the words of `walk`.

Rules are plain values here, so it does not matter whether `recipe` made them or a backend read them from the kernel.
"""

import ipaddress
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from init.rules import CHAINS, Rule, Version

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Verdict = Literal["redirected", "tproxied", "delivered", "leaves", "dropped"]


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet as its sender makes it.

    `interface` is the one that it came in by if it is inbound, else the one that its route names where it is not for
    this pod itself. `uid` and `gid` are those of the process that made the socket; `--gid-owner` does not look at
    supplementary groups. `state` is what conntrack calls it: NEW, ESTABLISHED, RELATED, INVALID or UNTRACKED.
    """

    inbound: bool
    protocol: Literal["tcp", "udp"]
    source: IPAddress
    destination: IPAddress
    destination_port: int
    source_port: int = 40000
    interface: str = "eth0"
    uid: int | None = None
    gid: int | None = None
    mark: int = 0
    connection_mark: int = 0
    state: str = "NEW"

    @property
    def version(self) -> Version:
        """Its address family."""
        return 4 if self.destination.version == 4 else 6


@dataclass(frozen=True, slots=True)
class Host:
    """The network namespace: its addresses, and the packet marks that policy routing keeps inside it."""

    addresses: Collection[IPAddress]
    local_marks: Collection[int] = ()

    def owns(self, address: IPAddress) -> bool:
        """Whether packets to an address are for this namespace."""
        return address.is_loopback or address in self.addresses

    def keeps(self, address: IPAddress, mark: int) -> bool:
        """Whether routing ends here, by address or by mark."""
        return self.owns(address) or mark in self.local_marks


@dataclass(frozen=True, slots=True)
class Ruleset:
    """What one kind of store (iptables-nft, iptables-legacy, nftables) holds in the kernel for one family.

    `tables`: table -> chain -> rules in their order, in the names of iptables; nft's base chains stand under the table
    and hook of the same priority. A built-in chain without an entry in `policies` accepts. `unreadable` names what the
    kernel holds besides but the store cannot show as rules.
    """

    tables: Mapping[str, Mapping[str, tuple[Rule, ...]]] = field(default_factory=dict)
    policies: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    unreadable: Collection[str] = ()

    @classmethod
    def of(cls, rules: Iterable[Rule]) -> "Ruleset":
        """What stands in the kernel once `rules` of one family are installed into empty tables."""
        tables: dict[str, dict[str, list[Rule]]] = {}
        for rule in rules:
            table = tables.setdefault(rule.table, {})
            chain = table.setdefault(rule.chain, [])
            chain.insert(len(chain) if rule.position is None else rule.position - 1, rule)
            if rule.target.kind == "jump":
                table.setdefault(rule.target.value, [])
        return cls({t: {chain: tuple(held) for chain, held in chains.items()} for t, chains in tables.items()})

    @property
    def holds_ours(self) -> bool:
        """Whether any chain of capture is there."""
        return any(chain in CHAINS for chains in self.tables.values() for chain in chains)

    @property
    def decides(self) -> bool:
        """Whether there is anything that can treat one packet unlike another."""
        return any(any(chains.values()) for chains in self.tables.values()) or any(
            policy != "ACCEPT" for policies in self.policies.values() for policy in policies.values()
        )


@dataclass(frozen=True, slots=True)
class Place:
    """A rule in the kernel, `number` counting from 1; the policy of a chain or its end has no rule and the number 0."""

    store: str
    table: str
    chain: str
    number: int = 0
    rule: Rule | None = None

    def __str__(self) -> str:
        return f"{self.table} {self.chain} {f'rule {self.number}' if self.number else 'policy'}"


@dataclass(frozen=True, slots=True)
class Step:
    """One rule that matched, or one chain in which none did. `depth` counts the jumps that led there."""

    place: Place
    effect: str
    depth: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """Where the packet goes.

    `redirected` and `tproxied`: to the listener on `port`; `delivered`: to what listens at `address` and `port`;
    `leaves`: out of this namespace towards them. `decided_by` is the rule that says so: what translated or dropped the
    packet, else what exempted it from translation; None if no rule did. `zone` is its conntrack zone, `0` by default.
    `uncertain` has one sentence for each rule that might match and cannot be judged; none of them was taken to.
    """

    verdict: Verdict
    address: IPAddress
    port: int
    mark: int
    zone: str
    decided_by: Place | None
    steps: tuple[Step, ...]
    uncertain: tuple[str, ...]

    @property
    def effect(self) -> tuple[Verdict, IPAddress, int, int, str]:
        """All that a packet's sender and receiver can tell."""
        return self.verdict, self.address, self.port, self.mark, self.zone

    @property
    def captured(self) -> bool:
        """Whether the proxy gets it because of a rule of capture."""
        by_ours = self.decided_by is not None and self.decided_by.chain in CHAINS
        return by_ours and self.verdict in ("redirected", "tproxied")
