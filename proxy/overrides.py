"""What the command line adds to a configuration: the node's identity where it has none, tags for all statistics."""

from __future__ import annotations

from dataclasses import replace

from proxy.config.load import Loaded
from proxy.config.model import StatsTag
from proxy.options import Options


def with_command_line(loaded: Loaded, options: Options) -> Loaded:
    """The configuration with --service-cluster, --service-node, --service-zone and --stats-tag applied.

    The message changes with it: /server_info and /config_dump show what is in force (Envoy: LocalInfoImpl).
    """
    node = loaded.message.node
    node.cluster = node.cluster or options.service_cluster
    node.id = node.id or options.service_node
    if options.service_zone and not node.locality.zone:
        node.locality.zone = options.service_zone
    bootstrap = loaded.bootstrap
    tags = tuple(StatsTag(name, fixed_value=value)
                 for name, _, value in (tag.partition(":") for tag in options.stats_tag))
    return Loaded(
        replace(
            bootstrap,
            node=replace(bootstrap.node, id=node.id, cluster=node.cluster),
            stats=replace(bootstrap.stats, tags=(*bootstrap.stats.tags, *tags)),
        ),
        loaded.message,
        loaded.warnings,
    )
