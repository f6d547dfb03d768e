"""An accepted connection on its way from the listener to its network filter, and what filters ask it later."""

from __future__ import annotations

import socket
from socket import SocketType
from typing import TYPE_CHECKING

from proxy.config.model import SocketAddress

if TYPE_CHECKING:
    from proxy.config.model import FilterChain
    from proxy.limits.worker import Charged
    from proxy.listener.listener import ActiveListener
    from proxy.stream_info import StreamInfo


class Connection:
    """Addresses and what the listener filters found out (Envoy: ConnectionSocket and ConnectionInfoProvider)."""

    __slots__ = ("accepted_at", "application_protocol", "charged", "direct_local", "filter_chain", "id", "info",
                 "listener", "local", "remote", "restored", "server_name", "sock", "transport_protocol")

    def __init__(self, sock: SocketType, remote: SocketAddress, local: SocketAddress, listener: ActiveListener,
                 connection_id: int, now: float, charged: Charged = ()) -> None:
        self.sock = sock
        self.remote: SocketAddress = remote
        """The peer's address."""
        self.direct_local = local
        """The address of the socket itself."""
        self.local: SocketAddress = local
        """The original destination where one was restored, else ``direct_local``."""
        self.restored = False
        """``local`` was restored from the kernel: ORIGINAL_DST clusters may use it."""
        self.listener = listener
        """The listener that owns the connection; changes once at a hand-off."""
        self.charged = charged
        """The limits that it counts for."""
        self.id = connection_id
        self.accepted_at = now
        """Loop time, seconds."""
        self.transport_protocol: str = "raw_buffer"
        self.application_protocol: str = ""
        self.server_name: str = ""
        self.filter_chain: FilterChain | None = None
        self.info: StreamInfo | None = None
        """What the listener's access log shows, where the network filter gathers it for the whole connection."""

    def send_last(self, data: bytes) -> int:
        """Send what the connection ends with, and FIN in the same packet; how many bytes the kernel has taken.

        FIN goes out only if it has taken all. A packet of its own for FIN costs as much as one with a response.
        """
        if self.transport_protocol != "raw_buffer":
            return 0  # the socket does not carry these bytes as they are
        try:
            sent = self.sock.send(data, socket.MSG_MORE)
            if sent == len(data):
                self.sock.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            return 0
        except OSError:
            return len(data)  # the connection is gone, and the transport about to find out
        return sent

    def closed(self, now: float) -> None:
        """To be called exactly once by the network filter when the socket is gone."""
        self.listener.connection_closed(self, now)

    def drain_close(self) -> bool:
        """Whether a response that is being encoded now should close its connection (Envoy: DrainDecision)."""
        return self.listener.drain_close()
