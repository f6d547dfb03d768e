"""iptables: a store for each family, on whatever reads and writes in the words of iptables-save and -restore."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from init.backends.base import Holding
from init.errors import KernelError
from init.iptables_text import document, installation
from init.netlink import nftables, remove_blank_table
from init.packet import Ruleset
from init.rules import CHAINS, TABLES, VERSIONS, Plan, Version
from init.state import EMPTY, Dump, RuleSet, expected, held, parse_save, removal, restoration

PROGRAMS: Mapping[Version, str] = {4: "iptables", 6: "ip6tables"}
_LEGACY_TABLES: Mapping[Version, str] = {4: "/proc/net/ip_tables_names", 6: "/proc/net/ip6_tables_names"}
_NFT_FAMILY: Mapping[Version, str] = {4: "ip", 6: "ip6"}
# Makes the table of a family that holds no rule, as the probe of Istio's program does; nothing else stays of it.
_MAKE_TABLE = document({"nat": ("-N ISTIO_PROBE", "-X ISTIO_PROBE")})


class Tool(Protocol):
    """Reads and writes one family's tables. Both raise KernelError."""

    @property
    def name(self) -> str:
        """`iptables-nft`, `ip6tables-legacy`, `libiptc (IPv4)`."""

    def save(self) -> str:
        """The tables that exist, as iptables-save prints them."""

    def restore(self, text: str) -> None:
        """Apply restore text on top of what is there, each table in one step or not at all."""


@dataclass(slots=True)
class IptablesStore:
    """One family's tables. What was read is remembered until this store is written."""

    tool: Tool
    version: Version
    legacy: bool
    _dump: Dump | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The tool's."""
        return self.tool.name

    def dump(self) -> Dump:
        """Everything that is in the kernel. Without a process where there is no table at all."""
        if self._dump is None:
            self._dump = parse_save(self.tool.save()) if self._exists() else EMPTY
        return self._dump

    def _exists(self) -> bool:
        return has_legacy_tables(self.version) if self.legacy else bool(_nft_tables(self.version))

    def unreadable(self) -> Sequence[str]:
        """Tables that exist but hold what only the nft program can show."""
        return sorted(self.dump().unreadable & frozenset(TABLES))

    def holding(self, plan: Plan | None = None) -> Holding:
        """Our part of it."""
        return held(self.dump().ours(plan.of(self.version) if plan else ()))

    def wanted(self, plan: Plan) -> Holding:
        """The plan's rules of this family."""
        return expected(plan.of(self.version))

    def script(self, plan: Plan | None, present: Holding) -> str:
        """One restore text: a table is committed as a whole, so removal and installation are one step."""
        return document(removal(_own(present)), installation(plan.of(self.version)) if plan else {})

    def replace(self, present: Holding, plan: Plan | None) -> None:
        """Restore `script`; tables of nft that hold nothing any more are removed."""
        self._restore(self.script(plan, present))
        if plan is None:
            self._remove_blank(_own(present))

    def put_back(self, before: Holding, expected: Holding) -> None:
        """Restore what stood before where it differs from what is there."""
        self._dump = None
        try:
            now = held(self.dump().ours(expected.rules))
        except KernelError:
            now = expected
        if now.lines != before.lines:
            self._restore(document(removal(_own(now)), restoration(_own(before))))
        if not before:
            self._remove_blank(_own(now))

    def make_table(self) -> None:
        """Let the nat table of this family exist, empty, if it does not."""
        self._restore(_MAKE_TABLE)

    def remove_blank_tables(self) -> list[str]:
        """The names of tables that decided nothing and are gone now; a legacy table cannot be removed."""
        if self.legacy:
            return []
        return [table for table in TABLES if remove_blank_table(self.version, table)]

    def _remove_blank(self, rules: RuleSet) -> None:
        if not self.legacy:
            for table in rules:
                remove_blank_table(self.version, table)

    def _restore(self, text: str) -> None:
        self._dump = None
        if text:
            self.tool.restore(text)


def _own(holding: Holding) -> RuleSet:
    """The rule set of a holding that was read from the kernel; one that was computed has none."""
    return holding.own if isinstance(holding.own, dict) else {}


@dataclass(frozen=True, slots=True)
class IptablesBackend:
    """Stores of one kind; `tool` gives the tool of a family or raises KernelError where it is not installed."""

    kind: str
    legacy: bool
    tool: Callable[[Version], Tool]
    _stores: dict[Version, IptablesStore] = field(default_factory=dict)

    def store(self, version: Version) -> IptablesStore:
        """The store of a family; always the same object."""
        if version not in self._stores:
            self._stores[version] = IptablesStore(self.tool(version), version, self.legacy)
        return self._stores[version]

    def stores(self, plan: Plan) -> Sequence[IptablesStore]:
        """One for each family of the plan. Raises KernelError where a table is one that iptables cannot show."""
        stores = [self.store(version) for version in plan.versions]
        for store in stores:
            for table in store.unreadable():
                raise KernelError(
                    f"the table {table} of this network namespace holds what only the nft program can show, so rules "
                    f"in it cannot be checked: remove it with `nft delete table {_NFT_FAMILY[store.version]} {table}` "
                    "if it is not needed"
                )
        return stores

    def traces(self) -> Sequence[IptablesStore]:
        """Families with a chain of ours; with any legacy table, whose chains only a process can list."""
        return [self.store(version) for version in VERSIONS if self._has_trace(version)]

    def _has_trace(self, version: Version) -> bool:
        if self.legacy:
            return has_legacy_tables(version)
        return any(chains & CHAINS for chains in _nft_tables(version).values())

    def rules_in_kernel(self) -> Mapping[Version, Ruleset]:
        """The tables that exist, foreign ones too. Raises KernelError."""
        there = [v for v in VERSIONS if (has_legacy_tables(v) if self.legacy else _nft_tables(v))]
        return {version: _ruleset(self.store(version).dump()) for version in there}

    def in_use(self) -> bool:
        """Whether there is any rule, chain or policy, foreign ones too."""
        return any(self.store(version).dump().in_use() for version in VERSIONS if has_legacy_tables(version))


def _ruleset(dump: Dump) -> Ruleset:
    tables = {
        table: {chain: tuple(saved.rule for saved in rules) for chain, rules in chains.items()}
        for table, chains in dump.chains.items()
    }
    hidden = [f"the table {table}" for table in dump.unreadable]
    hidden += [f"a part of the table {table}" for table in dump.partly_readable]
    return Ruleset(tables, dump.policies, hidden)


def has_legacy_tables(version: Version) -> bool:
    """Whether any legacy table exists in this network namespace, asked without starting a process."""
    try:
        with open(_LEGACY_TABLES[version], encoding="ascii") as file:
            return bool(file.read(4096).strip())
    except PermissionError:
        return True
    except OSError:
        return False  # the module is not loaded


def _nft_tables(version: Version) -> Mapping[str, frozenset[str]]:
    """Table -> chains that nf_tables has for a family."""
    return nftables.chains_of(_NFT_FAMILY[version])
