"""config.listener.v3: listeners, their filter chains and what selects a chain."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterable

from proxy.config import model
from proxy.config.access_log import access_log
from proxy.config.connection_limit import connection_limit
from proxy.config.core import address, cidr_range
from proxy.config.extensions import Registry
from proxy.config.http_connection_manager import http_connection_manager
from proxy.config.listener_filters import listener_filter
from proxy.config.model import FilterChain, FilterChainMatch, Listener, ListenerFilter
from proxy.config.reader import Reader, Skip, ignore
from proxy.config.tcp_proxy import tcp_proxy

_SOURCE_TYPES = {"ANY": model.ANY_SOURCE, "SAME_IP_OR_LOOPBACK": model.SAME_IP_OR_LOOPBACK, "EXTERNAL": model.EXTERNAL}
_MAX_COMBINATIONS = 10_000
"""Combinations of criteria of one chain that are compared for duplicates."""

NetworkFilter = model.HttpConnectionManager | model.TcpProxy | model.ConnectionLimit
CONNECTION_LIMIT = "envoy.filters.network.connection_limit"

NETWORK_FILTERS: Registry[NetworkFilter] = Registry(
    "network filter",
    ("envoy.config.listener.v3.Filter.typed_config",),
    {
        "envoy.extensions.filters.network.connection_limit.v3.ConnectionLimit": connection_limit,
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager": http_connection_manager,
        "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy": tcp_proxy,
    },
)

TRANSPORT_SOCKETS: Registry[bool] = Registry(
    "transport socket",
    ("envoy.config.core.v3.TransportSocket.typed_config",),
    {"envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer": ignore},
)


def transport_socket(reader: Reader) -> bool:
    """core.v3.TransportSocket: plain TCP only."""
    if not reader.has("typed_config"):
        name = reader.string("name")
        if name not in ("", "envoy.transport_sockets.raw_buffer"):
            reader.error("name", f"{name} is not supported yet; supported transport sockets: {TRANSPORT_SOCKETS.known}")
        return True
    return reader.extension("typed_config", TRANSPORT_SOCKETS)


def filter_chain_match(reader: Reader) -> FilterChainMatch:
    """config.listener.v3.FilterChainMatch."""
    port = reader.limit("destination_port")
    names = reader.strings("server_names")
    for index, name in enumerate(names):
        if "*" in name.removeprefix("*."):
            reader.error(f"server_names[{index}]", f'{name}: partial wildcards are not supported in "server_names"')
    transport = reader.string("transport_protocol")
    if transport not in ("", "raw_buffer", "tls"):
        reader.error("transport_protocol", f"{transport} is not supported yet; supported: raw_buffer")
    return FilterChainMatch(
        destination_port=port,
        prefix_ranges=reader.each("prefix_ranges", cidr_range),
        server_names=tuple(name.lower() for name in names),
        transport_protocol=transport,
        application_protocols=reader.strings("application_protocols"),
        direct_source_prefix_ranges=reader.each("direct_source_prefix_ranges", cidr_range),
        source_type=_SOURCE_TYPES[reader.enum("source_type")],
        source_prefix_ranges=reader.each("source_prefix_ranges", cidr_range),
        source_ports=reader.numbers("source_ports"),
    )


def _network_filter(reader: Reader) -> tuple[str, NetworkFilter]:
    name = reader.string("name")
    if reader.has("config_discovery"):
        reader.take("config_discovery")
        reader.error("config_discovery", "extension discovery (ECDS) is not supported yet; give typed_config")
        raise Skip
    return name, reader.extension("typed_config", NETWORK_FILTERS)


def filter_chain(reader: Reader) -> FilterChain:
    """config.listener.v3.FilterChain: connection limits, and a terminal filter at the end."""
    match = reader.sub("filter_chain_match", filter_chain_match)
    reader.sub("transport_socket", transport_socket)
    count = len(reader.message.filters)  # type: ignore[attr-defined]
    if count == 0:
        reader.error("filters", f"a filter chain without network filters is not supported yet; supported network "
                                f"filters: {NETWORK_FILTERS.known}")
    filters = reader.each("filters", _network_filter)
    name = reader.string("name")
    limits = []
    for index, (label, found) in enumerate(filters[:-1]):
        if isinstance(found, model.ConnectionLimit):
            limits.append(found)
        else:
            reader.error(f"filters[{index}]", f"Error: terminal filter named {label} of type {label} must be the last "
                                              "filter in a network filter chain.")
    if not filters:
        raise Skip
    label, terminal = filters[-1]
    if isinstance(terminal, model.ConnectionLimit):
        if len(filters) == count:
            reader.error(f"filters[{count - 1}]", f"Error: non-terminal filter named {label} of type "
                                                  f"{CONNECTION_LIMIT} is the last filter in a network filter chain.")
        raise Skip
    return FilterChain(name, match or FilterChainMatch(), terminal, tuple(limits))


def _listener_filters(reader: Reader, use_original_dst: bool) -> tuple[ListenerFilter, ...]:
    filters = reader.each("listener_filters", listener_filter)
    if use_original_dst and not any(f.type == model.ORIGINAL_DST_FILTER for f in filters):
        # Envoy adds the filter, too.
        filters += (ListenerFilter(model.ORIGINAL_DST_FILTER),)
    return filters


def _additional_address(reader: Reader) -> model.SocketAddress:
    return reader.need("address", address)


def _bind_to_port(reader: Reader) -> bool:
    deprecated = reader.sub("deprecated_v1", lambda old: old.boolean("bind_to_port", True))
    return reader.boolean("bind_to_port", True) and deprecated is not False


def listener(reader: Reader) -> Listener:
    """config.listener.v3.Listener."""
    name = reader.string("name") or str(uuid.uuid4())
    if not reader.has("address"):
        reader.error("address", f"error adding listener named {name!r}: address is necessary")
    main = reader.sub("address", address)
    extra = reader.each("additional_addresses", _additional_address)
    use_original_dst = reader.boolean("use_original_dst")
    if not reader.has("filter_chains") and not reader.has("default_filter_chain"):
        reader.error("filter_chains", f"error adding listener {name!r}: no filter chains specified")
    result = Listener(
        name=name,
        addresses=(main or model.SocketAddress("", 0), *extra),
        filter_chains=reader.each("filter_chains", filter_chain),
        default_filter_chain=reader.sub("default_filter_chain", filter_chain),
        listener_filters=_listener_filters(reader, use_original_dst),
        listener_filters_timeout=reader.seconds("listener_filters_timeout", 15.0),
        continue_on_listener_filters_timeout=reader.boolean("continue_on_listener_filters_timeout"),
        bind_to_port=_bind_to_port(reader),
        use_original_dst=use_original_dst,
        traffic_direction=reader.enum("traffic_direction"),
        access_logs=reader.each("access_log", access_log),
        per_connection_buffer_limit_bytes=reader.integer("per_connection_buffer_limit_bytes", 1024 * 1024),
        stat_prefix=reader.string("stat_prefix"),
        tcp_backlog_size=reader.limit("tcp_backlog_size"),
        modify_only_drain=reader.enum("drain_type") == "MODIFY_ONLY",
        max_connections_to_accept_per_socket_event=reader.integer("max_connections_to_accept_per_socket_event"),
        ignore_global_conn_limit=reader.boolean("ignore_global_conn_limit"),
        bypass_overload_manager=reader.boolean("bypass_overload_manager"),
    )
    _check_chains(reader, result)
    return result


def _criteria(match: FilterChainMatch) -> Iterable[tuple[object, ...]]:
    """Every combination of single criteria that a match stands for."""
    return itertools.islice(itertools.product(
        (match.destination_port,), match.prefix_ranges or (None,), match.server_names or ("",),
        (match.transport_protocol,), match.application_protocols or ("",),
        match.direct_source_prefix_ranges or (None,), (match.source_type,), match.source_prefix_ranges or (None,),
        match.source_ports or (0,),
    ), _MAX_COMBINATIONS)


def _check_chains(reader: Reader, result: Listener) -> None:
    seen: dict[tuple[object, ...], str] = {}
    for chain in result.filter_chains:
        for criteria in _criteria(chain.match):
            if criteria in seen:
                reader.error("filter_chains", (
                    f"error adding listener {result.addresses[0].text!r}: filter chain {chain.name!r} has the same "
                    f"matching rules defined as {seen[criteria]!r}"))
                break
        else:
            seen.update(dict.fromkeys(_criteria(chain.match), chain.name))


def check_listeners(reader: Reader, field: str, listeners: tuple[Listener, ...]) -> None:
    """Note errors about names and addresses that several listeners have."""
    names: set[str] = set()
    addresses: set[model.SocketAddress] = set()
    for one in listeners:
        if one.name in names:
            reader.error(field, f"error adding listener: duplicate name {one.name!r}")
        names.add(one.name)
        own = {bound for bound in one.addresses if bound.port}
        if own & addresses:
            shown = ",".join(bound.text for bound in one.addresses)
            reader.error(field, f"error adding listener: {one.name!r} has duplicate address {shown!r} as existing "
                                "listener, to check if the listener has duplicated addresses with other listeners or "
                                "'enable_reuse_port' is set to 'false' for the listener")
        addresses |= own
