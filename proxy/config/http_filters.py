"""The HTTP filters, by the type of their configuration. A new filter is one line here.

A compiler makes of the configuration the object that proxy.http.filters gets as ``HttpFilterConfig.config``.
"""

from __future__ import annotations

from dataclasses import dataclass

from proxy.config.extensions import Registry
from proxy.config.model import HttpFilterConfig
from proxy.config.reader import Reader

ROUTER = "envoy.extensions.filters.http.router.v3.Router"


@dataclass(frozen=True, slots=True)
class RouterConfig:
    """extensions.filters.http.router.v3.Router."""

    suppress_envoy_headers: bool = False


def _router(reader: Reader) -> RouterConfig:
    return RouterConfig(suppress_envoy_headers=reader.boolean("suppress_envoy_headers"))


_COMPILERS = {
    ROUTER: _router,
}


HTTP_FILTERS: Registry[object] = Registry(
    "HTTP filter",
    ("envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter.typed_config",),
    _COMPILERS,
)
_ROUTES = "envoy.config.route.v3"
PER_ROUTE: Registry[object] = Registry(
    "HTTP filter settings for a route",
    (f"{_ROUTES}.Route.TypedPerFilterConfigEntry.value", f"{_ROUTES}.VirtualHost.TypedPerFilterConfigEntry.value",
     f"{_ROUTES}.RouteConfiguration.TypedPerFilterConfigEntry.value",
     f"{_ROUTES}.WeightedCluster.ClusterWeight.TypedPerFilterConfigEntry.value"),
    {},
)
"""typed_per_filter_config: what a route changes for a filter. The router has nothing of that kind."""
TERMINAL = frozenset((ROUTER,))
"""Types of filters that end a chain."""


def per_route_settings(reader: Reader) -> dict[str, object]:
    """typed_per_filter_config of a route, virtual host, route configuration or weighted cluster, by filter name."""
    return reader.extensions("typed_per_filter_config", PER_ROUTE)


def http_filter(reader: Reader) -> HttpFilterConfig:
    """HttpFilter: one entry of http_filters."""
    name = reader.string("name")
    type_name, config = reader.typed_extension("typed_config", HTTP_FILTERS)
    return HttpFilterConfig(name, type_name, config)


def check_chain(reader: Reader, field: str, chain: tuple[HttpFilterConfig, ...]) -> None:
    """Note errors about a chain whose last filter is not its only terminal one."""
    for position, entry in enumerate(chain):
        terminal, last = entry.type_url in TERMINAL, position == len(chain) - 1
        if terminal and not last:
            reader.error(field, f"Error: terminal filter named {entry.name} of type {entry.name} must be the last "
                                "filter in a http filter chain.")
        elif last and not terminal:
            reader.error(field, f"Error: non-terminal filter named {entry.name} of type {entry.name} is the last "
                                "filter in a http filter chain.")
