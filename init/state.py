"""What `iptables-save` shows: our part of it, told from foreign rules, and the lines that remove or restore it.

Only chains that bear one of our names, rules elsewhere that jump to them, and the few rules that the recipe puts
straight into built-in chains are ours; everything else is foreign and never touched. Rules are compared by meaning
(`rules.canonical`), not by text: iptables-save prints options in another order, adds `-m tcp`, masks addresses.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from init.backends.base import Holding
from init.iptables_text import Commands, line, read_rule
from init.rules import CHAINS, REDIRECT, Rule, canonical

# iptables-nft-save about tables that the nft program made or changed.
_UNREADABLE = re.compile(r"# Table `(\w+)' is incompatible")
_PARTLY_READABLE = re.compile(r"# Table `(\w+)' contains incompatible")

# Rules of the recipe in built-in chains that jump to no chain of ours: table, chain, conditions, target. They are
# recognised beside chains of ours only; nobody else combines these.
_NAMELESS = frozenset(
    (
        ("mangle", "PREROUTING", ("protocol", "mark"), "save-mark"),
        ("mangle", "OUTPUT", ("out-interface", "protocol", "mark"), "return"),
        ("mangle", "OUTPUT", ("destination", "out-interface", "protocol", "uid"), "mark"),
        ("mangle", "OUTPUT", ("destination", "out-interface", "protocol", "gid"), "mark"),
        ("mangle", "OUTPUT", ("protocol", "connmark"), "restore-mark"),
    )
)


@dataclass(frozen=True, slots=True)
class Saved:
    """One rule of the kernel: what iptables-save prints after `-A CHAIN`, and what that means."""

    text: str
    rule: Rule


@dataclass(frozen=True, slots=True)
class Hook:
    """One of our rules in a chain that is not ours; `position` counts from 1."""

    chain: str
    position: int
    saved: Saved


@dataclass(frozen=True, slots=True)
class Ours:
    """Our part of one table."""

    chains: Mapping[str, tuple[Saved, ...]]
    hooks: tuple[Hook, ...]


RuleSet = Mapping[str, Ours]  # table -> our part of it; tables without one are absent


@dataclass(frozen=True, slots=True)
class Dump:
    """All tables of one family: chain -> rules, and the policies of built-in chains.

    `unreadable` tables exist but iptables cannot show them; of `partly_readable` ones it shows only some chains.
    """

    chains: Mapping[str, Mapping[str, tuple[Saved, ...]]]
    policies: Mapping[str, Mapping[str, str]]
    unreadable: frozenset[str]
    partly_readable: frozenset[str]

    def ours(self, planned: Collection[Rule] = ()) -> RuleSet:
        """Our part of it. `planned` are the rules that this run wants, where it has any."""
        found = {}
        expected = {canonical(rule) for rule in planned}
        for table, chains in self.chains.items():
            own = {chain: rules for chain, rules in chains.items() if chain in CHAINS}
            nameless = _nameless(table, chains, expected) if own else set()
            hooks = tuple(
                Hook(chain, position, saved)
                for chain, rules in chains.items()
                if chain not in CHAINS
                for position, saved in enumerate(rules, 1)
                if _jumps_to_ours(saved.rule) or canonical(saved.rule) in nameless
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


EMPTY = Dump({}, {}, frozenset(), frozenset())


def parse_save(text: str) -> Dump:
    """Read the output of iptables-save."""
    chains: dict[str, dict[str, list[Saved]]] = {}
    policies: dict[str, dict[str, str]] = {}
    table = ""  # lines before the first table say nothing
    for printed in text.splitlines():
        if printed.startswith("*"):
            table = printed[1:].strip()
            chains[table], policies[table] = {}, {}
        elif table and printed.startswith(":"):
            chain, _, policy = printed[1:].partition(" ")
            chains[table].setdefault(chain, [])
            if not policy.startswith("-"):
                policies[table][chain] = policy.partition(" ")[0]
        elif table and printed.startswith("-A "):
            chain, _, rule = printed[3:].partition(" ")
            saved = Saved(rule.strip(), read_rule(table, chain, rule.strip()))
            chains[table].setdefault(chain, []).append(saved)
    return Dump(
        {t: {c: tuple(r) for c, r in cs.items()} for t, cs in chains.items()},
        policies,
        frozenset(_UNREADABLE.findall(text)),
        frozenset(_PARTLY_READABLE.findall(text)),
    )


def _jumps_to_ours(rule: Rule) -> bool:
    target = rule.target
    if target.kind == "other":  # a goto, say
        return any(word in CHAINS for word in target.value.split()[1:2])
    return target.kind == "jump" and target.value in CHAINS


def _nameless(table: str, chains: Mapping[str, Sequence[Saved]], expected: Collection[Rule]) -> set[Rule]:
    """The canonical rules of built-in chains that are ours though they jump to no chain of ours."""
    built_in = {canonical(saved.rule) for chain, rules in chains.items() if chain not in CHAINS for saved in rules}
    by_shape = {rule for rule in built_in if _shape(rule) in _NAMELESS}
    # An excluded interface is exempt in both directions, a virtual one is also redirected; what is neither of these
    # is ours only if this very run wants it.
    incoming = _exempt(built_in, "PREROUTING", "in-interface")
    outgoing = _exempt(built_in, "OUTPUT", "out-interface")
    virtual = {
        rule.match("in-interface")
        for rule in built_in
        if rule.chain == "PREROUTING" and rule.target.value == REDIRECT and rule.target.kind == "jump"
    }
    exempt = {rule for interface, rule in incoming.items() if interface in outgoing or interface in virtual}
    exempt |= {rule for interface, rule in outgoing.items() if interface in incoming}
    wanted = {rule for rule in (*incoming.values(), *outgoing.values()) if rule in expected}
    return by_shape | exempt | wanted


def _shape(rule: Rule) -> tuple[str, str, tuple[str, ...], str]:
    return rule.table, rule.chain, tuple(match.kind for match in rule.matches), rule.target.kind


def _exempt(rules: Collection[Rule], chain: str, kind: str) -> dict[str, Rule]:
    """Interface -> the rule of `chain` that does nothing but return its packets."""
    return {
        rule.matches[0].value: rule
        for rule in rules
        if rule.chain == chain and rule.target.kind == "return" and [m.kind for m in rule.matches] == [kind]
        if not rule.matches[0].negated
    }


def held(rules: RuleSet) -> Holding:
    """A rule set of the kernel as apply compares it."""
    found: list[Rule] = []
    chains: list[tuple[str, str]] = []
    for table in sorted(rules):
        ours = rules[table]
        found += [hook.saved.rule for hook in sorted(ours.hooks, key=lambda hook: (hook.chain, hook.position))]
        for chain in sorted(ours.chains):
            chains.append((table, chain))
            found += [saved.rule for saved in ours.chains[chain]]
    return Holding(tuple(found), tuple(chains), listing(found, chains), rules)


def expected(rules: Sequence[Rule]) -> Holding:
    """What the kernel holds once `rules` of one family are installed."""
    order: dict[tuple[str, str], list[Rule]] = {}
    for rule in rules:
        chain = order.setdefault((rule.table, rule.chain), [])
        chain.insert(len(chain) if rule.position is None else rule.position - 1, rule)
        if rule.target.kind == "jump":
            order.setdefault((rule.table, rule.target.value), [])
    chains = sorted(key for key in order if key[1] in CHAINS)
    hooks = sorted(key for key in order if key[1] not in CHAINS)
    found = [
        rule
        for key in sorted([*hooks, *chains], key=lambda key: (key[0], key in chains, key[1]))
        for rule in order[key]
    ]
    return Holding(tuple(found), tuple(chains), listing(found, chains))


def listing(rules: Sequence[Rule], chains: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """One line for each chain and rule in canonical spelling: equal listings mean equal effect."""
    lines = [f"{table}: -N {chain}" for table, chain in chains]
    return tuple(sorted(lines) + [line(rule) for rule in rules])


def removal(rules: RuleSet) -> Commands:
    """The lines that remove `rules`: hooks, then the contents of the chains, then the chains."""
    return {
        table: [
            *(f"-D {hook.chain} {hook.saved.text}" for hook in ours.hooks),
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
            *(f"-A {chain} {saved.text}" for chain, rules_of in ours.chains.items() for saved in rules_of),
            *(f"-I {hook.chain} {hook.position} {hook.saved.text}" for hook in ours.hooks),
        ]
        for table, ours in rules.items()
    }
