"""What apply and cleanup ask of a way to the kernel's rules."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from init.packet import Ruleset
from init.rules import Plan, Rule, Version


@dataclass(frozen=True, slots=True)
class Holding:
    """What one store holds of ours.

    `rules` are in the kernel's order; `chains` are (table, chain) pairs, also of chains without rules. `own` is the
    store's private form of the same, with which it can remove it and put it back. Holdings are compared by `lines`.
    """

    rules: tuple[Rule, ...] = ()
    chains: tuple[tuple[str, str], ...] = ()
    lines: tuple[str, ...] = ()
    own: object = field(default=None, compare=False, repr=False)

    def __bool__(self) -> bool:
        return bool(self.lines)

    def summary(self) -> str:
        """`31 rules and 4 chains in nat`."""
        tables = ", ".join(sorted({rule.table for rule in self.rules} | {table for table, _ in self.chains}))
        return f"{len(self.rules)} rules and {len(self.chains)} chains in {tables}"


class Store(Protocol):
    """A place whose rules change together: the tables of one family, or nft's tables of both.

    Every method raises KernelError when the kernel or a program refuses.
    """

    @property
    def name(self) -> str:
        """How messages call it: `iptables-nft`, `ip6tables-legacy`, `nft`."""

    def holding(self, plan: Plan | None = None) -> Holding:
        """What it holds of ours now. `plan` helps to tell rules of ours that bear no name from foreign ones."""

    def unreadable(self) -> Sequence[str]:
        """Tables that it has but cannot show, so that rules of ours may hide in them."""

    def wanted(self, plan: Plan) -> Holding:
        """What it holds once `plan` is installed."""

    def script(self, plan: Plan | None, present: Holding) -> str:
        """The text that replaces `present` by `plan` (None: by nothing), each table in one step; for --dry-run too."""

    def replace(self, present: Holding, plan: Plan | None) -> None:
        """Do that. Either all of a table changes or nothing of it."""

    def put_back(self, before: Holding, expected: Holding) -> None:
        """Make it hold what it held `before`. `expected` is taken for what is there if that cannot be read."""


class Backend(Protocol):
    """One kind of store."""

    @property
    def kind(self) -> str:
        """One of `settings.BACKENDS`."""

    def stores(self, plan: Plan) -> Sequence[Store]:
        """The stores that get the rules of `plan`, IPv4 first. Raises KernelError when it cannot be used here."""

    def traces(self) -> Sequence[Store]:
        """The stores that may hold rules of ours, found without starting a process and without loading anything."""

    def rules_in_kernel(self) -> Mapping[Version, Ruleset]:
        """All that packets of a family meet, foreign rules too, for `explain`; families without a table are absent.
        Raises KernelError."""
