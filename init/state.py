"""What is in the kernel, read from `iptables-save`, and its comparison with what is wanted.

Only chains that bear one of our names, and rules elsewhere that jump to them, are ours; everything else is foreign and
never touched. Rules are compared by meaning: iptables-save prints options in another order, adds `-m tcp`, masks
addresses.
"""

import ipaddress
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from init.plan import CHAINS, Rule
from init.render import Commands, specification

# Order in which a rule's options are listed; also the options that are understood.
_ORDER = ("-s", "-d", "-i", "-o", "-p", "--sport", "--dport", "--uid-owner", "--gid-owner", "-j", "-g", "--to-ports")
_IMPLIED_MODULES = ("tcp", "udp", "owner")  # say nothing beside their options
# iptables-nft-save about tables that the nft program made or changed.
_UNREADABLE = re.compile(r"# Table `(\w+)' is incompatible")
_PARTLY_READABLE = re.compile(r"# Table `(\w+)' contains incompatible")


@dataclass(frozen=True, slots=True)
class Hook:
    """One of our rules in a chain that is not ours; `position` counts from 1."""

    chain: str
    specification: str
    position: int


@dataclass(frozen=True, slots=True)
class Ours:
    """Our part of one table."""

    chains: Mapping[str, tuple[str, ...]]
    hooks: tuple[Hook, ...]


RuleSet = Mapping[str, Ours]  # table -> our part of it; tables without one are absent


@dataclass(frozen=True, slots=True)
class Dump:
    """All tables of one family and backend: chain -> rules, and the policies of built-in chains.

    `unreadable` tables exist but iptables cannot show them; of `partly_readable` ones it shows only some chains.
    """

    chains: Mapping[str, Mapping[str, tuple[str, ...]]]
    policies: Mapping[str, Mapping[str, str]]
    unreadable: frozenset[str]
    partly_readable: frozenset[str]

    def ours(self) -> RuleSet:
        """Our part of it."""
        found = {}
        for table, chains in self.chains.items():
            own = {chain: rules for chain, rules in chains.items() if chain in CHAINS}
            hooks = tuple(
                Hook(chain, rule, position)
                for chain, rules in chains.items()
                if chain not in CHAINS
                for position, rule in enumerate(rules, 1)
                if _jumps_to_ours(rule)
            )
            if own or hooks:
                found[table] = Ours(own, hooks)
        return found

    def is_blank(self, table: str) -> bool:
        """Whether a table holds nothing but empty built-in chains that accept."""
        if table in self.unreadable | self.partly_readable:
            return False
        chains, policies = self.chains.get(table, {}), self.policies.get(table, {})
        return not any(chains.values()) and all(policies.get(chain) == "ACCEPT" for chain in chains)

    def in_use(self) -> bool:
        """Whether any table holds a rule, a user chain or a policy."""
        return not all(map(self.is_blank, self.chains))


def parse_save(text: str) -> Dump:
    """Read the output of iptables-save."""
    chains: dict[str, dict[str, list[str]]] = {}
    policies: dict[str, dict[str, str]] = {}
    table = ""  # lines before the first table say nothing
    for line in text.splitlines():
        if line.startswith("*"):
            table = line[1:].strip()
            chains[table], policies[table] = {}, {}
        elif table and line.startswith(":"):
            chain, _, policy = line[1:].partition(" ")
            chains[table].setdefault(chain, [])
            if not policy.startswith("-"):
                policies[table][chain] = policy.partition(" ")[0]
        elif table and line.startswith("-A "):
            chain, _, rule = line[3:].partition(" ")
            chains[table].setdefault(chain, []).append(rule.strip())
    return Dump(
        {t: {c: tuple(r) for c, r in cs.items()} for t, cs in chains.items()},
        policies,
        frozenset(_UNREADABLE.findall(text)),
        frozenset(_PARTLY_READABLE.findall(text)),
    )


def _jumps_to_ours(rule: str) -> bool:
    words = rule.split()
    return any(a in ("-j", "-g", "--jump", "--goto") and b in CHAINS for a, b in zip(words, words[1:], strict=False))


def wanted(rules: Sequence[Rule]) -> RuleSet:
    """What the kernel holds once `rules` are installed."""
    tables: dict[str, tuple[dict[str, list[str]], list[Hook]]] = {}
    for rule in rules:
        chains, hooks = tables.setdefault(rule.table, ({}, []))
        if rule.chain in CHAINS:
            chains.setdefault(rule.chain, []).append(specification(rule))
        else:
            hooks.append(Hook(rule.chain, specification(rule), 0))
        if rule.target.kind == "jump":
            chains.setdefault(rule.target.value, [])
    return {
        table: Ours({chain: tuple(rules) for chain, rules in chains.items()}, tuple(hooks))
        for table, (chains, hooks) in tables.items()
    }


def listing(rules: RuleSet) -> list[str]:
    """One line for each chain and rule, normalised: equal listings mean equal effect."""
    return [line for table in sorted(rules) for line in _listing_of(table, rules[table])]


def _listing_of(table: str, ours: Ours) -> Iterator[str]:
    for hook in sorted(ours.hooks, key=lambda hook: hook.chain):  # stable: the order within a chain stays
        yield f"{table}: -A {hook.chain} {normalised(hook.specification)}"
    for chain in sorted(ours.chains):
        yield f"{table}: -N {chain}"
        for rule in ours.chains[chain]:
            yield f"{table}: -A {chain} {normalised(rule)}"


def normalised(rule: str) -> str:
    """A rule's options in one order and one spelling; what is not understood is kept as it is."""
    options: list[tuple[int, str]] = []
    words = rule.split()
    at = 0
    while at < len(words):
        start = at
        at += words[at] == "!"
        option = words[at] if at < len(words) else ""
        at += 1
        values_from = at
        while at < len(words) and words[at] != "!" and not words[at].startswith("-"):
            at += 1
        values = words[values_from:at]
        if option == "-m" and values and values[0] in _IMPLIED_MODULES:
            continue
        if option in ("-s", "-d") and len(values) == 1:
            values = [_masked(values[0])]
            if values[0].endswith("/0") and start == values_from - 1:
                continue  # every address: iptables-save leaves it out
        rank = _ORDER.index(option) if option in _ORDER else -1
        options.append((rank, " ".join((*words[start:values_from], *values))))
    return " ".join(text for _, text in sorted(options, key=lambda option: option[0]))


def _masked(address: str) -> str:
    try:
        return str(ipaddress.ip_network(address, strict=False))
    except ValueError:
        return address


def removal(rules: RuleSet) -> Commands:
    """The lines that remove `rules`: hooks, then the contents of the chains, then the chains."""
    return {
        table: [
            *(f"-D {hook.chain} {hook.specification}" for hook in ours.hooks),
            *(f"-F {chain}" for chain in ours.chains),
            *(f"-X {chain}" for chain in ours.chains),
        ]
        for table, ours in rules.items()
    }


def restoration(rules: RuleSet) -> Commands:
    """The lines that put `rules`, read from the kernel earlier, back to where they stood."""
    return {
        table: [
            *(f"-N {chain}" for chain in ours.chains),
            *(f"-A {chain} {rule}" for chain, specifications in ours.chains.items() for rule in specifications),
            *(f"-I {hook.chain} {hook.position} {hook.specification}" for hook in ours.hooks),
        ]
        for table, ours in rules.items()
    }
