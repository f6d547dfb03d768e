"""What DNS counts: ``dns.<name>``, on the Prometheus page ``istio_agent_dns_<name>`` as pilot-agent has it."""

from __future__ import annotations

from proxy.stats.groups import Counter, Gauge, Histogram, Level, StatGroup

__all__ = ["PREFIX", "DnsStats", "NameTableStats"]

PREFIX = "dns"


class DnsStats(StatGroup):
    """``dns``. requests_total, upstream_requests_total, upstream_failures_total and upstream_request_duration are
    pilot-agent's; the others exist only here."""

    requests_total: Counter
    """Queries of clients, well-formed or not."""
    requests_udp: Counter
    requests_tcp: Counter
    answers_local: Counter
    """Answered from the name table."""
    malformed_total: Counter
    """Messages that were no question: refused or dropped."""
    dropped_total: Counter
    """Queries over UDP that got no answer, because too many others waited for theirs."""
    truncated_total: Counter
    """Replies that did not fit and went out with TC."""
    send_failed_total: Counter
    """Replies that the kernel did not take."""
    cache_hits: Counter
    cache_misses: Counter
    cache_stale: Counter
    """Answers of which the TTL was over, given because no server answered."""
    cache_entries: Gauge
    cache_bytes: Gauge
    upstream_requests_total: Counter
    """Questions for the servers, each once, however many of them were asked and how often."""
    upstream_failures_total: Counter
    """Queries that no server answered: the client got SERVFAIL or a stale answer."""
    upstream_timeouts_total: Counter
    upstream_tcp_retries_total: Counter
    upstream_mismatched_total: Counter
    """Replies that did not match what was asked (forged, late, damaged): dropped."""
    upstream_active: Gauge
    """Queries under way."""
    upstream_request_duration: Histogram
    """Milliseconds from the question to the answer, or to giving up."""
    queue_full_total: Counter
    """Queries refused because too many were under way, of this client or of all."""
    tcp_connections_total: Counter
    tcp_connections_active: Gauge
    tcp_connections_cut_total: Counter
    """Closed while they waited for answers, because there were too many."""
    tcp_idle_timeouts_total: Counter
    name_table_names: Level
    """Names that are answered here."""
    name_table_loaded: Level
    """1 once there is a table; until then every query goes to the servers."""
    __slots__ = tuple(__annotations__)


class NameTableStats(StatGroup):
    """``dns``, counted by main, which reads the table."""

    name_table_updates_total: Counter
    name_table_rejected_total: Counter
    """Tables that could not be used; the one before stays."""
    __slots__ = tuple(__annotations__)
