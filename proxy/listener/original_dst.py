"""Where a redirected connection wanted to go (extensions.filters.listener.original_dst): conntrack knows."""

from __future__ import annotations

import socket
from socket import SocketType
from struct import Struct

from proxy.config.model import SocketAddress

SO_ORIGINAL_DST = 80
"""linux/netfilter_ipv4.h, and IP6T_SO_ORIGINAL_DST of linux/netfilter_ipv6/ip6_tables.h."""

_SOCKADDR_IN = Struct("!2xH4s8x")
_SOCKADDR_IN6 = Struct("!2xH4x16s4x")


def original_destination(sock: SocketType) -> SocketAddress | None:
    """The destination before REDIRECT or DNAT; None when the kernel knows none (no conntrack entry)."""
    try:
        if sock.family == socket.AF_INET6:
            data = sock.getsockopt(socket.IPPROTO_IPV6, SO_ORIGINAL_DST, _SOCKADDR_IN6.size)
            port, packed = _SOCKADDR_IN6.unpack(data)
            return SocketAddress(socket.inet_ntop(socket.AF_INET6, packed), port)
        data = sock.getsockopt(socket.IPPROTO_IP, SO_ORIGINAL_DST, _SOCKADDR_IN.size)
        port, packed = _SOCKADDR_IN.unpack(data)
        return SocketAddress(socket.inet_ntoa(packed), port)
    except OSError:
        return None
