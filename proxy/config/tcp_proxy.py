"""extensions.filters.network.tcp_proxy.v3.TcpProxy."""

from __future__ import annotations

from proxy.config.access_log import access_log
from proxy.config.model import TcpProxy
from proxy.config.reader import Reader

_CLUSTERS = ("cluster", "weighted_clusters")


def _weight(reader: Reader) -> tuple[str, int]:
    return reader.string("name"), reader.integer("weight")


def tcp_proxy(reader: Reader) -> TcpProxy:
    """Compile a TCP proxy. Its clusters need not exist (flag NC)."""
    kind = reader.chosen("cluster_specifier")
    if kind is not None and kind not in _CLUSTERS:
        reader.take(kind)
        reader.error(kind, f"is not supported yet; supported: {', '.join(_CLUSTERS)}")
    reader.supported_enum("upstream_connect_mode", "IMMEDIATE")
    return TcpProxy(
        stat_prefix=reader.string("stat_prefix"),
        cluster=reader.string("cluster"),
        weighted_clusters=reader.sub("weighted_clusters", lambda w: w.each("clusters", _weight)) or (),
        access_logs=reader.each("access_log", access_log),
        idle_timeout=reader.seconds("idle_timeout", 3600.0),
        max_connect_attempts=reader.integer("max_connect_attempts", 1),
        max_downstream_connection_duration=reader.seconds("max_downstream_connection_duration"),
    )
