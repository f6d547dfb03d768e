"""The DNS server of one worker: its sockets, service and forwarder. Life: construct, ``bind``, ``start``, ``close``."""

from __future__ import annotations

import errno
import marshal
from typing import TYPE_CHECKING, Any

from proxy.config.model import SocketAddress
from proxy.dns.forwarder import Forwarder
from proxy.dns.service import DnsService, log
from proxy.dns.settings import DnsSettings
from proxy.dns.stats import PREFIX, DnsStats
from proxy.dns.table import Table
from proxy.dns.tcp import TcpConnection, TcpListener
from proxy.dns.udp import UdpListener
from proxy.listener.accept import BindError

if TYPE_CHECKING:
    from proxy.context import Context

_NO_SUCH_ADDRESS = frozenset((errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT))


class DnsServer:
    """Answers on every address of the settings."""

    def __init__(self, context: Context, settings: DnsSettings) -> None:
        self._settings = settings
        self._context = context
        stats = context.registry.group(DnsStats, PREFIX)
        self.service = DnsService(context.loop, Forwarder(context.loop, settings, stats), stats)
        self._sockets: list[UdpListener | TcpListener] = []
        self._connections: dict[TcpConnection, None] = {}

    @property
    def addresses(self) -> list[tuple[str, SocketAddress]]:
        """("udp" or "tcp", address) of every socket."""
        return [("udp" if isinstance(one, UdpListener) else "tcp", one.address) for one in self._sockets]

    def bind(self) -> None:
        """Bind every address, over UDP and TCP. Raises BindError."""
        context = self._context
        for listen in self._settings.listen:
            udp = UdpListener(context.loop, listen.address, self.service)
            tcp = TcpListener(context.loop, context.deadlines, listen.address, self.service, self._connections)
            try:
                udp.bind()
                tcp.bind()
            except BindError as error:
                udp.close()
                cause = error.__cause__
                if listen.required or not isinstance(cause, OSError) or cause.errno not in _NO_SUCH_ADDRESS:
                    raise
                log.info("no DNS on %s: %s", listen.address.text, cause.strerror)
                continue
            self._sockets += (udp, tcp)
        if not self._sockets:
            texts = ", ".join(listen.address.text for listen in self._settings.listen)
            raise BindError(f"cannot bind any of {texts} for DNS: this host has no loopback address")

    def start(self) -> None:
        """Answer. Raises BindError."""
        for one in self._sockets:
            one.start()

    def close(self) -> None:
        """Close every socket and connection."""
        for one in self._sockets:
            one.close()
        self.service.close()

    # --- what main asks -------------------------------------------------------------------------------------------

    def set_table(self, compiled: bytes) -> None:
        """``compiled``: Table.to_wire, marshalled."""
        self.service.set_table(Table.from_wire(marshal.loads(compiled)))

    def set_servers(self, servers: list[tuple[str, int]]) -> None:
        """Hosts and ports."""
        self.service.set_servers([SocketAddress(*server) for server in servers])

    def explain(self, question: tuple[bytes, int]) -> dict[str, Any]:
        """``question``: wire form of a name, type."""
        return self.service.explain(*question)
