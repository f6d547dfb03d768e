"""Questions to the kernel, and small changes of it, for which no program is started."""

from init.netlink.addresses import local_addresses
from init.netlink.nftables import remove_blank_table

__all__ = ["local_addresses", "remove_blank_table"]
