"""config.bootstrap.v3.Bootstrap: the whole configuration."""

from __future__ import annotations

from functools import partial

from proxy.config import model
from proxy.config.access_log import DEFAULT_FORMAT, access_log
from proxy.config.cluster import bind_config, check_clusters, cluster, dns_resolver
from proxy.config.core import address
from proxy.config.extensions import Registry
from proxy.config.listener import check_listeners, listener
from proxy.config.model import AccessLog, Admin, Bootstrap, Node, SocketAddress, StatsConfig
from proxy.config.overload import overload_manager
from proxy.config.reader import Reader, ignore
from proxy.config.runtime import layered_runtime, warn_unknown
from proxy.config.stats_config import stats_config


def _node(reader: Reader) -> Node:
    """core.v3.Node; what only xDS servers see is left out."""
    return Node(reader.string("id"), reader.string("cluster"))


def _admin(reader: Reader) -> Admin:
    """bootstrap.v3.Admin."""
    logs = reader.each("access_log", access_log)
    if path := reader.string("access_log_path"):
        logs += (AccessLog(path, DEFAULT_FORMAT),)
    return Admin(reader.sub("address", address), logs)


# --- extensions -----------------------------------------------------------------------------------------------------

BOOTSTRAP_EXTENSIONS: Registry[bool] = Registry(
    "bootstrap extension",
    (),
    {"envoy.extensions.bootstrap.internal_listener.v3.InternalListener": ignore},
)
REGEX_ENGINES: Registry[bool] = Registry(
    "regex engine",
    (),
    {"envoy.extensions.regex_engines.v3.GoogleRE2": ignore},
)


def _extension(registry: Registry[bool], reader: Reader) -> bool:
    """core.v3.TypedExtensionConfig (or anything else with a typed_config and a name that is only a label)."""
    return reader.extension("typed_config", registry)


# --- resources ------------------------------------------------------------------------------------------------------


def _clusters(sources: tuple[SocketAddress, ...], reader: Reader) -> tuple[model.Cluster, ...]:
    if reader.scope.check_references:
        names = (message.name for message in reader.message.clusters)  # type: ignore[attr-defined]
        reader.scope.clusters = frozenset(names)
    clusters = reader.each("clusters", partial(cluster, sources))
    check_clusters(reader, "clusters", clusters)
    return clusters


def _static_resources(sources: tuple[SocketAddress, ...], reader: Reader
                      ) -> tuple[tuple[model.Listener, ...], tuple[model.Cluster, ...]]:
    clusters = _clusters(sources, reader)
    listeners = reader.each("listeners", listener)
    check_listeners(reader, "listeners", listeners)
    return listeners, clusters


def bootstrap(reader: Reader) -> Bootstrap:
    """Compile a bootstrap. The runtime comes first: other compilers look keys up in it."""
    scope = reader.scope
    layers = reader.sub("layered_runtime", layered_runtime) or ()
    runtime = {key: value for layer in layers for key, value in layer.values}
    scope.runtime = runtime
    sources = reader.sub("cluster_manager", lambda manager: manager.sub("upstream_bind_config", bind_config)) or ()
    reader.sub("dynamic_resources", ignore)
    reader.each("bootstrap_extensions", partial(_extension, BOOTSTRAP_EXTENSIONS))
    reader.sub("default_regex_engine", partial(_extension, REGEX_ENGINES))
    reader.sub("typed_dns_resolver_config", dns_resolver)
    listeners, clusters = reader.sub("static_resources", partial(_static_resources, sources)) or ((), ())
    result = Bootstrap(
        node=reader.sub("node", _node) or Node(),
        admin=reader.sub("admin", _admin) or Admin(),
        listeners=listeners,
        clusters=clusters,
        stats=reader.sub("stats_config", stats_config) or StatsConfig(),
        stats_flush_interval=reader.seconds("stats_flush_interval", 5.0),
        runtime=tuple(runtime.items()),
        runtime_layers=layers,
        runtime_fixed=frozenset(scope.runtime_asked),
        overload=reader.sub("overload_manager", overload_manager),
    )
    warn_unknown(scope, {one.name for one in listeners})
    return result
