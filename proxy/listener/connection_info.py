"""StreamInfo of a whole connection: what tcp_proxy and a listener's own access log write."""

from __future__ import annotations

from time import time
from typing import TYPE_CHECKING

from proxy.stream_info import StreamInfo

if TYPE_CHECKING:
    from proxy.listener.connection import Connection


class ConnectionInfo(StreamInfo):
    """Starts with what is known when a connection leaves the listener filters."""

    __slots__ = ()

    def __init__(self, connection: Connection, now: float) -> None:
        self.start_time = time() - (now - connection.accepted_at)
        self.start = connection.accepted_at
        self.end = now
        self.method = self.path = self.authority = self.protocol = self.request_headers = None
        self.response_headers = self.response_trailers = self.details = self.termination_details = None
        self.upstream_transport_failure_reason = self.route_name = self.virtual_host_name = None
        self.upstream_host = self.upstream_cluster = self.upstream_cluster_raw = self.upstream_local_address = None
        self.last_downstream_rx = self.first_upstream_tx = self.last_upstream_tx = self.first_upstream_rx = None
        self.last_upstream_rx = self.last_downstream_tx = None
        self.scheme = self.flags = self.local_reply_body = b""
        self.response_code = self.bytes_received = self.bytes_sent = self.attempt_count = 0
        self.requested_server_name = connection.server_name.encode() or None
        chain = connection.filter_chain
        self.filter_chain_name = chain.name.encode() or None if chain is not None else None
        self.connection_id = connection.id
        local = self.downstream_local_address = connection.local.text.encode()
        self.downstream_direct_local_address = connection.direct_local.text.encode() if connection.restored else local
        self.downstream_remote_address = self.downstream_direct_remote_address = connection.remote.text.encode()
