"""One capability for a proxy that is not root: CAP_NET_BIND_SERVICE, for a DNS server on port 53.

Kept over the change of uid (PR_SET_KEEPCAPS) and over exec (ambient set, capabilities(7)); all others are dropped.
"""

import contextlib
import ctypes
from collections.abc import Callable, Iterator

_CAP_NET_BIND_SERVICE = 10
_VERSION_3 = 0x20080522
_PR_SET_KEEPCAPS = 8
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 47, 2


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Sets(ctypes.Structure):
    """One half (32 capabilities) of struct __user_cap_data_struct."""

    _fields_ = [("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32)]


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """A process forked meanwhile keeps its permitted capabilities when it changes its uid."""
    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
    try:
        yield
    finally:
        prctl(_PR_SET_KEEPCAPS, 0, 0, 0, 0)


def net_bind_service() -> Callable[[], None]:
    """What the child does between the change of uid and exec. Everything is made here: after the fork nothing may
    allocate. Where the kernel refuses (a container without it), the port may be free for all
    (net.ipv4.ip_unprivileged_port_start), else the proxy tells that it cannot bind.
    """
    libc = ctypes.CDLL(None)
    header = ctypes.byref(_Header(_VERSION_3, 0))
    only = 1 << _CAP_NET_BIND_SERVICE
    sets = ctypes.byref((_Sets * 2)(_Sets(only, only, only), _Sets(0, 0, 0)))
    capset, prctl = libc.capset, libc.prctl

    def take() -> None:
        if capset(header, sets) == 0:
            prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _CAP_NET_BIND_SERVICE, 0, 0)

    return take
