"""The tables of native nftables: names that are asked for before anything of nft is used."""

PREFIX = "istio-proxy-"
TABLES = ("nat", "mangle", "raw")  # in the order of the script


def table_name(table: str) -> str:
    """`istio-proxy-nat` for `nat`."""
    return PREFIX + table


def is_of_iptables(family: str, table: str) -> bool:
    """Whether iptables-nft shows a table, or says that it cannot show it."""
    return family in ("ip", "ip6") and table in ("filter", "mangle", "nat", "raw", "security")
