"""What is known of one request, or of one TCP connection: the input of access logs and of header formatters.

The HTTP stream and the TCP proxy session derive from it, so that nothing is copied when a line is written.
Envoy's name: StreamInfo.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from proxy.http.headers import Headers


class StreamInfo:
    """Fields are ``None`` (or empty) while unknown. Times are the loop's monotonic seconds, except ``start_time``."""

    # What every request sets is a slot; the rest are defaults on the class, overridden where something happens.
    __slots__ = (
        "__dict__",
        "authority",
        "bytes_sent",
        "connection_id",
        "details",
        "downstream_local_address",
        "downstream_remote_address",
        "end",
        "attempt_count",
        "first_upstream_rx",
        "first_upstream_tx",
        "last_downstream_rx",
        "last_downstream_tx",
        "last_upstream_rx",
        "last_upstream_tx",
        "method",
        "path",
        "protocol",
        "request_headers",
        "response_code",
        "response_headers",
        "route_name",
        "start",
        "start_time",
        "upstream_cluster",
        "upstream_cluster_raw",
        "upstream_host",
        "upstream_local_address",
    )

    start_time: float
    """Wall clock (time.time()) at the first byte of the request or at accept."""
    start: float
    last_downstream_rx: float | None
    """Whole request received."""
    first_upstream_tx: float | None
    last_upstream_tx: float | None
    first_upstream_rx: float | None
    last_upstream_rx: float | None
    last_downstream_tx: float | None
    end: float
    """When the stream ended: DURATION is ``end - start``."""

    method: bytes | None
    path: bytes | None
    """Path and query as they are now (rewritten or not)."""
    authority: bytes | None
    scheme: bytes = b"http"
    protocol: bytes | None
    """``HTTP/1.1``, ...; None for TCP."""
    request_headers: Headers | None
    response_headers: Headers | None
    response_trailers: Headers | None = None
    response_code: int
    """0 when no response was sent."""
    flags: bytes = b""
    """Response flags, comma-joined in the order in which they were set; empty: none."""
    details: bytes | None
    """RESPONSE_CODE_DETAILS, whitespace not yet replaced."""
    termination_details: bytes | None = None
    upstream_transport_failure_reason: bytes | None = None
    local_reply_body: bytes = b""
    bytes_received: int = 0
    bytes_sent: int
    attempt_count: int

    route_name: bytes | None
    virtual_host_name: bytes | None = None
    filter_chain_name: bytes | None = None
    upstream_host: bytes | None
    """``ip:port`` of the host attempted last."""
    upstream_cluster: bytes | None
    """With alt_stat_name applied."""
    upstream_cluster_raw: bytes | None
    upstream_local_address: bytes | None
    connection_id: int
    downstream_local_address: bytes
    """``ip:port``; the original destination where one was restored."""
    downstream_direct_local_address: bytes
    downstream_remote_address: bytes
    downstream_direct_remote_address: bytes
    requested_server_name: bytes | None = None

    def add_flag(self, flag: bytes) -> None:
        """Note a response flag (``UF``, ``URX``, ...) once, keeping the order."""
        flags = self.flags
        if not flags:
            self.flags = flag
        elif flag not in flags.split(b","):
            self.flags = flags + b"," + flag
