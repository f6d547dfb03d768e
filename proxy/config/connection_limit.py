"""extensions.filters.network.connection_limit.v3.ConnectionLimit."""

from __future__ import annotations

from proxy.config.model import ConnectionLimit
from proxy.config.reader import Reader


def _feature_flag(reader: Reader) -> tuple[str, bool]:
    """core.v3.RuntimeFeatureFlag: a runtime key, and the value without it."""
    default = reader.boolean("default_value")
    return reader.string("runtime_key"), default


def connection_limit(reader: Reader) -> ConnectionLimit:
    """Compile a connection limit. Each one counts for itself, also those with the same statistics."""
    key, default = reader.sub("runtime_enabled", _feature_flag) or ("", True)
    if key:
        reader.scope.runtime_live.add(key)
    if not reader.has("max_connections"):
        reader.error("max_connections", "value is required")
    return ConnectionLimit(
        id=reader.path,
        stat_prefix=reader.string("stat_prefix"),
        max_connections=reader.integer("max_connections"),
        delay=reader.seconds("delay"),
        runtime_key=key,
        enabled_by_default=default,
    )
