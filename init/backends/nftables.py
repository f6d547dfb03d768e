"""Native nftables: one store for both families. What reads and writes it is loaded when there is something to do."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from init.netlink import nftables
from init.nft_names import TABLES, is_of_iptables, table_name
from init.packet import Ruleset
from init.rules import Plan, Version

if TYPE_CHECKING:
    from init.backends.nft_store import NftStore

_FAMILIES = ("inet", "ip", "ip6")


class NftablesBackend:
    """`--native-nftables`."""

    @property
    def kind(self) -> str:
        """`nftables`."""
        return "nftables"

    @cached_property
    def store(self) -> "NftStore":
        """The one store."""
        from init.backends.nft_store import NftStore

        return NftStore()

    def stores(self, plan: Plan) -> Sequence["NftStore"]:
        """The store. Raises KernelError where nft is not installed."""
        from init.backends.nft_store import program

        program()
        return (self.store,)

    def traces(self) -> Sequence["NftStore"]:
        """The store if one of its tables exists, asked without starting a process. Raises KernelError."""
        tables = nftables.chains_of("inet")
        return (self.store,) if any(table_name(table) in tables for table in TABLES) else ()

    def rules_in_kernel(self) -> Mapping[Version, Ruleset]:
        """All tables that iptables does not show; without a process where there is none. Raises KernelError."""
        if all(is_of_iptables(family, table) for family in _FAMILIES for table in nftables.chains_of(family)):
            return {}
        from init.backends.nft_rulesets import rulesets
        from init.backends.nft_store import nft
        from init.nft_text import read_listing

        return rulesets(read_listing(nft(["-n", "-s", "list", "ruleset"])))
