"""Which statistics the proxy keeps, how their names become tags, and where they are sent."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from agent.bootstrap.facts import TYPES, Facts
from agent.durations import format_seconds, parse_go_duration

Json = Any

# Readiness asks for these.
_PREFIXES = ("cluster_manager", "listener_manager", "server", "cluster.xds-grpc", "wasm")
_SUFFIXES = ("rbac.allowed", "rbac.denied", "shadow_allowed", "shadow_denied")
_CONNECTIONS = "downstream_cx_active"  # what EXIT_ON_ZERO_ACTIVE_CONNECTIONS counts
_REGEXPS = (r"vhost\..*\.route\..*",)  # statistics of routes with a stat_prefix
_POD_IP = "{pod_ip}"
_DEFAULT_FLUSH_S = 5.0
_FLUSH = "sidecar.istio.io/statsFlushInterval"
_EVICTION = "sidecar.istio.io/statsEvictionInterval"
_BUCKETS = "sidecar.istio.io/statsHistogramBuckets"
_TAGS = "sidecar.istio.io/extraStatTags"

# (field of proxyStatsMatcher, annotation, what is always included)
_INCLUSIONS = {
    "prefix": ("inclusionPrefixes", "sidecar.istio.io/statsInclusionPrefixes", _PREFIXES),
    "suffix": ("inclusionSuffixes", "sidecar.istio.io/statsInclusionSuffixes", _SUFFIXES),
    "regex": ("inclusionRegexps", "sidecar.istio.io/statsInclusionRegexps", _REGEXPS),
}

_TAGS_BEFORE: Sequence[tuple[str, str]] = (
    ("cluster_name", r"^cluster(\.(.+);)"),
    ("http_conn_manager_prefix", r"^http\.(((?:[_.[:digit:]\w]*|[_\[\]aAbBcCdDeEfF[:digit:]\w\:]*));\.)"),
    ("thread_name", r"^server(\.(.+))\.watchdog"),
    ("tcp_prefix", r"^tcp\.((.*?)\.)\w+?$"),
    ("response_code", r"_rq(_(\d{3}))$"),
    ("response_code_class", r"_rq(_(\dxx))$"),
    (
        "http_conn_manager_listener_prefix",
        r"^listener(?=\.).*?\.http\.(((?:[_.[:digit:]]*|[_\[\]aAbBcCdDeEfF[:digit:]]*))\.)",
    ),
    ("listener_address", r"^listener\.(((?:[_.[:digit:]]*|[_\[\]aAbBcCdDeEfF[:digit:]]*))\.)"),
    ("mongo_prefix", r"^mongo\.(.+?)\.(collection|cmd|cx_|op_|delays_|decoding_)(.*?)$"),
)
_TAGS_AFTER: Sequence[tuple[str, str]] = (
    ("cache", r"(cache\.(.+?)\.)"),
    ("component", r"(component\.(.+?)\.)"),
    ("tag", r"(tag\.(.+?);\.)"),
    ("wasm_filter", r"(wasm_filter\.(.+?)\.)"),
    ("authz_enforce_result", r"rbac(\.(allowed|denied))"),
    ("authz_dry_run_action", r"(\.istio_dry_run_(allow|deny)_)"),
    ("authz_dry_run_result", r"(\.shadow_(allowed|denied))"),
)


def stats_config(facts: Facts) -> dict[str, Json]:
    tags = [*_TAGS_BEFORE, *((tag, rf"({tag}=\.=(.*?);\.;)") for tag in _extra_tags(facts)), *_TAGS_AFTER]
    config: dict[str, Json] = {
        "use_all_default_tags": False,
        "stats_tags": [{"tag_name": name, "regex": regex} for name, regex in tags],
        "stats_matcher": {"inclusion_list": {"patterns": _patterns(facts)}},
    }
    buckets = _histogram_buckets(facts)
    if buckets:
        config["histogram_bucket_settings"] = buckets
    return config


def _extra_tags(facts: Facts) -> list[str]:
    named = [*facts.proxy_config.get("extraStatTags", ()), *facts.settings.annotations.get(_TAGS, "").split(",")]
    return list(dict.fromkeys(tag for tag in named if tag))


def _patterns(facts: Facts) -> list[dict[str, Json]]:
    patterns: list[dict[str, Json]] = [{"prefix": "reporter="}]
    if facts.metadata_discovery:
        patterns.append({"prefix": "workload_discovery"})
    patterns += ({"prefix": text} for text in inclusions(facts, "prefix"))
    patterns += ({"suffix": text} for text in inclusions(facts, "suffix"))
    patterns += ({"safe_regex": {"regex": text}} for text in inclusions(facts, "regex"))
    return [*patterns, {"prefix": "component"}, {"prefix": "istio"}]


def inclusions(facts: Facts, kind: str) -> list[str]:
    """What is asked for, then what is always included. An annotation replaces proxyStatsMatcher, it does not add."""
    field, annotation, always = _INCLUSIONS[kind]
    annotated = facts.settings.annotations.get(annotation, "")
    matcher: Mapping[str, Sequence[str]] = facts.proxy_config.get("proxyStatsMatcher", {})
    asked = annotated.split(",") if annotated else matcher.get(field, ())
    extra = (_CONNECTIONS,) if kind == "suffix" and facts.settings.drain.exit_on_zero else ()
    found: list[str] = []
    for pattern in (*asked, *always, *extra):
        # At a sidecar, http.{pod_ip}_ are the inbound listeners.
        ips = facts.settings.addresses if _POD_IP in pattern else ("",)
        found += (pattern.replace(_POD_IP, ip) for ip in ips)
    return found


def _histogram_buckets(facts: Facts) -> list[dict[str, Json]]:
    text = facts.settings.annotations.get(_BUCKETS)
    if text is None:
        return []
    try:
        document = json.loads(text)
        return [
            {"match": {"prefix": prefix}, "buckets": [_number(bound) for bound in bounds]}
            for prefix, bounds in sorted(document.items())
        ]
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        facts.warnings.append(f"annotation {_BUCKETS} is ignored: expected {{prefix: [bounds]}}: {error}")
        return []


def _number(value: Json) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{str(value)[:64]!r} is not a number")
    return value


def intervals(facts: Facts) -> dict[str, Json]:
    """stats_flush_interval and stats_eviction_interval, where annotations set them."""
    flush = _interval(facts, _FLUSH)
    eviction = _interval(facts, _EVICTION)
    made: dict[str, Json] = {}
    if flush is not None:
        made["stats_flush_interval"] = format_seconds(flush)
    if eviction is not None:
        ratio = eviction / (_DEFAULT_FLUSH_S if flush is None else flush)
        if abs(ratio - round(ratio)) > 1e-9:
            facts.warnings.append(f"annotation {_EVICTION} is ignored: expected a multiple of the flush interval")
        else:
            made["stats_eviction_interval"] = format_seconds(eviction)
    return made


def _interval(facts: Facts, annotation: str) -> float | None:
    text = facts.settings.annotations.get(annotation)
    if text is None:
        return None
    try:
        seconds = parse_go_duration(text)
        if seconds <= 0:
            raise ValueError("expected a duration of more than 0s")
        return seconds
    except ValueError as error:
        facts.warnings.append(f"annotation {annotation} is ignored: {error}")
        return None


def sinks(facts: Facts) -> list[dict[str, Json]]:
    made: list[dict[str, Json]] = []
    if facts.proxy_config.get("envoyMetricsService", {}).get("address"):
        made.append(
            {
                "name": "envoy.stat_sinks.metrics_service",
                "typed_config": {
                    "@type": f"{TYPES}envoy.config.metrics.v3.MetricsServiceConfig",
                    "transport_api_version": "V3",
                    "grpc_service": {"envoy_grpc": {"cluster_name": "envoy_metrics_service"}},
                },
            }
        )
    statsd = facts.settings.config.statsd_udp_address
    if statsd:
        address = facts.address(statsd, "ProxyConfig statsdUdpAddress")
        made.append(
            {
                "name": "envoy.stat_sinks.statsd",
                "typed_config": {
                    "@type": f"{TYPES}envoy.config.metrics.v3.StatsdSink",
                    "address": {"socket_address": address},
                },
            }
        )
    return made
