"""The listener filters (config.listener.v3.ListenerFilter), by the type of their configuration."""

from __future__ import annotations

from collections.abc import Callable

from proxy.config.extensions import Registry
from proxy.config.model import HTTP_INSPECTOR_FILTER, ORIGINAL_DST_FILTER, ListenerFilter
from proxy.config.reader import Reader, Skip, ignore

PortPredicate = Callable[[int], bool]

_TYPES = {
    "envoy.extensions.filters.listener.original_dst.v3.OriginalDst": ORIGINAL_DST_FILTER,
    "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector": HTTP_INSPECTOR_FILTER,
}

LISTENER_FILTERS: Registry[bool] = Registry(
    "listener filter",
    ("envoy.config.listener.v3.ListenerFilter.typed_config",),
    dict.fromkeys(_TYPES, ignore),
)


def _port_range(reader: Reader) -> PortPredicate:
    """type.v3.Int32Range over the destination port; the end does not belong to it."""
    start, end = reader.integer("start"), reader.integer("end")
    return lambda port: start <= port < end


def _match_set(reader: Reader) -> tuple[PortPredicate, ...]:
    return reader.each("rules", _predicate)


def _predicate(reader: Reader) -> PortPredicate:
    """config.listener.v3.ListenerFilterChainMatchPredicate over the local (destination) port."""
    kind = reader.chosen("rule")
    if kind == "any_match":
        reader.boolean("any_match")
        return lambda port: True
    if kind == "destination_port_range":
        return reader.need(kind, _port_range)
    if kind == "not_match":
        inner = reader.need(kind, _predicate)
        return lambda port: not inner(port)
    if kind == "or_match":
        some = reader.need(kind, _match_set)
        return lambda port: any(rule(port) for rule in some)
    if kind == "and_match":
        every = reader.need(kind, _match_set)
        return lambda port: all(rule(port) for rule in every)
    raise Skip


def listener_filter(reader: Reader) -> ListenerFilter:
    """config.listener.v3.ListenerFilter."""
    disabled = reader.sub("filter_disabled", _predicate)
    if reader.has("config_discovery"):
        reader.take("config_discovery")
        reader.error("config_discovery", "extension discovery (ECDS) is not supported yet; give typed_config")
        raise Skip
    type_name, _ = reader.typed_extension("typed_config", LISTENER_FILTERS)
    return ListenerFilter(_TYPES[type_name], disabled)
