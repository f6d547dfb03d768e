"""All that nft shows, foreign tables too, in the form that `walk` follows.

nft's base chains have a hook and a priority, and any number of tables may have one at the same place; `walk` knows
the tables of iptables, each with one chain at a hook. A base chain stands for the iptables table of its priority; where
several meet, the built-in chain jumps to each of them in turn.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from init.nft_names import PREFIX, is_of_iptables
from init.nft_text import CHAIN_OF, ListedChain, ListedTable, read_rule
from init.packet import Ruleset
from init.rules import VERSIONS, Rule, Target, Version

_FAMILIES: Mapping[str, Sequence[Version]] = {"inet": VERSIONS, "ip": (4,), "ip6": (6,)}
_BASE = re.compile(r"type (\w+) hook (\w+) (?:device \S+ )?priority (-?\d+);(?: policy (\w+);)?")
# Where a base chain of type filter or route stands: the first table whose priority is not below its own.
_PLACES = ((-200, "raw"), (-101, "mangle"), (49, "filter"))
_LAST_PLACE = "security"
_TABLES_OF_HOOK: Mapping[str, frozenset[str]] = {
    "prerouting": frozenset(("raw", "mangle", "nat")),
    "output": frozenset(("raw", "mangle", "nat", "filter", "security")),
    "input": frozenset(("mangle", "filter", "security")),
    "forward": frozenset(("mangle", "filter", "security")),
    "postrouting": frozenset(("mangle",)),
}
_SOURCES_ONLY = frozenset(("input", "postrouting"))  # hooks at which NAT changes nobody's destination


class _Place(NamedTuple):
    table: str
    chain: str


@dataclass(frozen=True, slots=True)
class _Base:
    """A base chain; `order` sorts those of one place as the kernel asks them."""

    listed: ListedTable
    chain: ListedChain
    place: _Place
    order: tuple[int, int]
    policy: str


def rulesets(listed: Sequence[ListedTable]) -> Mapping[Version, Ruleset]:
    """The rules that packets of each family meet; families without any are absent."""
    found = {}
    for version in VERSIONS:
        ruleset = _ruleset([table for table in listed if _is_for(table, version)], version)
        if ruleset.tables or ruleset.unreadable:
            found[version] = ruleset
    return found


def _is_for(table: ListedTable, version: Version) -> bool:
    return version in _FAMILIES.get(table.family, ()) and not is_of_iptables(table.family, table.name)


def _ruleset(listed: Sequence[ListedTable], version: Version) -> Ruleset:
    tables: dict[str, dict[str, tuple[Rule, ...]]] = {}
    policies: dict[str, dict[str, str]] = {}
    unreadable: list[str] = []
    places: dict[_Place, list[_Base]] = {}
    for base in _bases(listed, unreadable):
        places.setdefault(base.place, []).append(base)
        chains = tables.setdefault(base.place.table, {})
        for chain in base.listed.chains:
            if not chain.head:
                chains[_name(base.listed, chain)] = _rules(base.listed, chain, base.place.table, version)
    for (table, hook), bases in places.items():
        bases.sort(key=lambda base: base.order)
        if len(bases) == 1:
            tables[table][hook] = _rules(bases[0].listed, bases[0].chain, table, version)
            policies.setdefault(table, {})[hook] = bases[0].policy
            continue
        jumps = []
        for base in bases:
            name = f"{base.listed.family} {base.listed.name} {base.chain.name}"
            jumps.append(Rule(table, hook, (), Target("jump", name)))
            tables[table][name] = _as_called(_rules(base.listed, base.chain, table, version), base, name)
        tables[table][hook] = tuple(jumps)
        unreadable += _hidden_accepts(tables[table], bases[:-1])
    return Ruleset(tables, policies, tuple(unreadable))


def _bases(listed: Sequence[ListedTable], unreadable: list[str]) -> Iterator[_Base]:
    """The base chains that decide where packets go; `unreadable` gets those where iptables has no table."""
    for number, table in enumerate(listed):
        if any(thing.startswith("flags") and "dormant" in thing for thing in table.rest):
            continue
        for chain in table.chains:
            head = _BASE.match(chain.head)
            if head is None:
                if chain.head:
                    unreadable.append(_described(table, chain))
                continue
            kind, hook, priority, policy = head.groups()
            where = "nat" if kind == "nat" else _table_of(int(priority))
            if kind == "nat" and hook in _SOURCES_ONLY:
                continue
            if where in _TABLES_OF_HOOK.get(hook, ()):
                # Of equal priority, the chain that came last is asked first.
                order = (int(priority), -number)
                yield _Base(table, chain, _Place(where, hook.upper()), order, (policy or "accept").upper())
            elif chain.rules or policy == "drop":
                unreadable.append(_described(table, chain))


def _described(table: ListedTable, chain: ListedChain) -> str:
    return f"chain {chain.name} of {table.family} {table.name} ({chain.head.rstrip(';')})"


def _table_of(priority: int) -> str:
    return next((table for limit, table in _PLACES if priority <= limit), _LAST_PLACE)


def _name(table: ListedTable, chain: ListedChain) -> str:
    """Our names for chains of ours; others bear their table's, which makes them unique."""
    if table.family == "inet" and table.name.startswith(PREFIX):
        return CHAIN_OF.get(chain.name, chain.name)
    return f"{table.family} {table.name} {chain.name}"


def _rules(table: ListedTable, chain: ListedChain, place: str, version: Version) -> tuple[Rule, ...]:
    names = {other.name: _name(table, other) for other in table.chains}
    rules = (read_rule(place, _name(table, chain), text, names) for text in chain.rules)
    return tuple(rule for rule in rules if rule.version in (None, version))


def _as_called(rules: Sequence[Rule], base: _Base, name: str) -> tuple[Rule, ...]:
    """A base chain as a chain that is jumped to: acceptance ends it alone, and its policy is its last rule."""
    end = Target("drop") if base.policy == "DROP" else Target("return")
    own = {"accept": Target("return"), "return": end}
    called = [replace(rule, chain=name, target=own.get(rule.target.kind, rule.target)) for rule in rules]
    return (*called, *([Rule(base.place.table, name, (), end)] if end.kind == "drop" else []))


def _hidden_accepts(chains: Mapping[str, Sequence[Rule]], bases: Sequence[_Base]) -> Iterator[str]:
    """Acceptance further down ends the base chain alone too, which a jump cannot say."""
    for base in bases:
        table = base.listed
        for chain in table.chains:
            rules = () if chain.head else chains.get(_name(table, chain), ())
            if any(rule.target.kind in ("accept", "tproxy") for rule in rules):
                yield f"what other tables do after the accept in chain {chain.name} of {table.family} {table.name}"
