"""Our tables of nftables, read and written by the program nft; written in one transaction."""

import re
from collections.abc import Mapping, Sequence

from init.backends.base import Holding
from init.backends.process import find, hint, run
from init.errors import KernelError
from init.netlink import nftables
from init.nft_names import TABLES, table_name
from init.nft_text import (
    CHAIN_OF,
    CHAIN_ORDER,
    ListedTable,
    by_chain,
    chain_line,
    document,
    intended,
    line,
    read_listing,
    read_rule,
    removal,
    script,
    table_line,
)
from init.rules import Plan, Rule

OLDEST = (1, 0, 1)  # the first that does all that the rules need, as in Istio
_FAMILY = "inet"
_ACCEPTS = " policy accept;"  # what a base chain does that says nothing else
_NAMES = {table_name(table): table for table in TABLES}

# What a message of nft means for the operator, beside those of every program.
_HINTS = (
    (
        "type nat hook",
        "this kernel has no NAT for the family inet: it needs Linux 5.2 and the module nft_chain_nat, or \
use --backend iptables-nft",
    ),
    ("Protocol not supported", "this kernel has no nf_tables: load the module, or use --backend iptables-legacy"),
    ("redirect to", "load the kernel module nft_redir"),
    ("tproxy", "load the kernel module nft_tproxy, or use the interception mode REDIRECT"),
    ("ct zone", "load the kernel module nft_ct; its zones need CONFIG_NF_CONNTRACK_ZONES"),
    ("Operation not supported", "load the kernel modules nf_tables, nft_ct, nft_redir and nft_chain_nat"),
    ("No buffer space available", "the transaction is too large for the socket buffer: raise net.core.wmem_max"),
)


class NftStore:
    """The tables istio-proxy-nat, -mangle and -raw of the family inet, and all that is in them."""

    @property
    def name(self) -> str:
        """`nft`."""
        return "nft"

    def unreadable(self) -> Sequence[str]:
        """None: what is not understood shows as it stands."""
        return ()

    def holding(self, plan: Plan | None = None) -> Holding:
        """What is in our tables. Without a process where there is none of them."""
        if _NAMES.keys().isdisjoint(nftables.chains_of(_FAMILY)):
            return Holding()
        # A list of several tables at once fails in nft 1.0.6.
        listed = read_listing(nft(["-n", "-s", "list", "ruleset", _FAMILY]))
        return _held({_NAMES[table.name]: table for table in listed if table.name in _NAMES})

    def wanted(self, plan: Plan) -> Holding:
        """The plan's rules of both families."""
        rules: list[Rule] = []
        chains: list[tuple[str, str]] = []
        lines: list[str] = []
        for table, order in by_chain(intended(plan)).items():
            lines += [table_line(table), *(chain_line(table, chain) for chain in order)]
            for chain, found in order.items():
                chains.append((table, chain))
                rules += found
                lines += map(line, found)
        return Holding(tuple(rules), tuple(chains), _shown(lines))

    def script(self, plan: Plan | None, present: Holding) -> str:
        """One transaction. Tables that are there are removed first: a flush leaves chains and sets."""
        if plan is None:
            return document(removal(TABLES) if present else ())
        return document(removal(_tables(present))) + script(plan)

    def replace(self, present: Holding, plan: Plan | None) -> None:
        """Run `script`."""
        _change(self.script(plan, present))

    def put_back(self, before: Holding, expected: Holding) -> None:
        """Run what nft showed of the tables before, unless that is what is there."""
        try:
            now = self.holding()
        except KernelError:
            now = expected
        if now.lines != before.lines:
            _change(document([*removal(TABLES), *_tables(before).values()]))


def program() -> str:
    """The path of nft. Raises KernelError where it is not installed."""
    found = find("nft")
    if found is None:
        raise KernelError("nft not found in PATH: install the package nftables, or use another --backend")
    return found


def _held(tables: Mapping[str, ListedTable]) -> Holding:
    """The listed tables of ours as apply compares them."""
    rules: list[Rule] = []
    chains: list[tuple[str, str]] = []
    lines: list[str] = []
    for table in TABLES:
        if table not in tables:
            continue
        named = {CHAIN_OF.get(chain.name, chain.name): chain for chain in tables[table].chains}
        order = sorted(named, key=lambda name: (CHAIN_ORDER.index(name) if name in CHAIN_ORDER else 99, name))
        lines += [table_line(table), *(f"{table_line(table)}: {thing}" for thing in tables[table].rest)]
        lines += (_chain_line(table, name, named[name].head) for name in order)
        for name in order:
            chains.append((table, name))
            for text in named[name].rules:
                rule = read_rule(table, name, text)
                rules.append(rule)
                lines.append(line(rule) if _is_understood(rule) else f"add rule inet {table_name(table)} {name} {text}")
    return Holding(tuple(rules), tuple(chains), _shown(lines), {name: table.text for name, table in tables.items()})


def _shown(lines: Sequence[str]) -> tuple[str, ...]:
    """Lines of a script as what there is, for comparison and differences."""
    return tuple(line.removeprefix("add ") for line in lines)


def _chain_line(table: str, chain: str, head: str) -> str:
    """`chain_line` for a chain whose head, if it is a base chain, nft prints as `head`."""
    plain = chain_line(table, chain).partition(" {")[0]
    return f"{plain} {{ {head.removesuffix(_ACCEPTS).replace(';', ' ;')} }}" if head else plain


def _is_understood(rule: Rule) -> bool:
    return rule.target.kind != "other" and all(match.kind != "other" for match in rule.matches)


def _tables(holding: Holding) -> Mapping[str, str]:
    """Table -> its text, of a holding that was read from the kernel; one that was computed has none."""
    return holding.own if isinstance(holding.own, dict) else {}


def _change(text: str) -> None:
    """Run a transaction: all of it happens or nothing. Raises KernelError."""
    if text:
        nft(["-f", "-"], text)


def nft(arguments: Sequence[str], text: str | None = None) -> str:
    """Run nft. Raises KernelError with one line that says what to do."""
    try:
        return run([program(), *arguments], text)
    except KernelError as error:
        raise _explained(str(error)) from error


def _explained(said: str) -> KernelError:
    """The first error of nft, without the marks under the place that it means, and what to do about it."""
    message = re.split(r" \^", said)[0]
    advice = hint(message) or next((f": {advice}" for sign, advice in _HINTS if sign in message), "")
    if "failed with status" in said and not hint(message) and (old := _too_old()):
        advice = f": this is nft {old}, and {'.'.join(map(str, OLDEST))} or newer is needed"
    return KernelError(message if message.endswith(advice) else message + advice)


def _too_old() -> str:
    """The version of nft if it is one that cannot do this, or the empty string."""
    try:
        found = re.search(r"v(\d+(?:\.\d+)*)", run([program(), "--version"]))
    except KernelError:
        return ""
    return found[1] if found and tuple(map(int, found[1].split("."))) < OLDEST else ""
