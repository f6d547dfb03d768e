"""`/config_dump` (admin.v3.ConfigDump): the configuration as it was given, made from its messages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from envoy.admin.v3 import config_dump_pb2, config_dump_shared_pb2
from envoy.config.bootstrap.v3.bootstrap_pb2 import Bootstrap
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.core.v3.health_check_pb2 import HEALTHY
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.config.route.v3.route_pb2 import RouteConfiguration
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)
from google.protobuf import any_pb2
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from proxy.admin import patterns
from proxy.admin.console import Console
from proxy.admin.info import described
from proxy.admin.messages import PLAIN, Request, Response, as_json
from proxy.admin.redact import redact

OVERPROVISIONING_FACTOR = 140
Matches = Callable[[str], bool]


class Refused(Exception):
    """A request that cannot be answered: ``status`` and text."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


async def handle_config_dump(console: Console, request: Request) -> Response:
    """The whole configuration, one list of it (``resource``), or parts of either (``mask``)."""
    server = console.server
    try:
        matches = _name_matcher(request.get("name_regex"))
        dumps = list(config_dumps(server.loaded.message, server.started_at, matches, request.has("include_eds")))
        messages = choose(dumps, request.get("resource") or "", request.get("mask") or "")
    except Refused as refused:
        return Response(refused.status, str(refused), PLAIN)
    return as_json(document(messages))


def _name_matcher(pattern: str | None) -> Matches:
    if not pattern:
        return lambda _name: True
    try:
        return patterns.full_match(pattern)
    except patterns.PatternError as error:
        raise Refused(400, f"INVALID_ARGUMENT: Error while parsing name_regex from {pattern}: {error}") from None


def document(messages: list[Message]) -> dict[str, Any]:
    """``{"configs": [...]}`` with each message's type; without messages empty, as Envoy prints it."""
    configs = []
    for message in messages:
        redact(message)
        configs.append({"@type": f"type.googleapis.com/{message.DESCRIPTOR.full_name}",
                        **MessageToDict(message, preserving_proto_field_name=True)})
    return {"configs": configs} if configs else {}


# --- the dumps ----------------------------------------------------------------------------------------------------


def config_dumps(bootstrap: Bootstrap, loaded_at: float, matches: Matches, include_eds: bool) -> Iterator[Message]:
    """The parts of a dump in Envoy's order. ``matches`` picks resources by name; ``loaded_at`` is in Unix seconds."""
    updated = Timestamp()
    updated.FromMilliseconds(int(loaded_at * 1000))
    static = bootstrap.static_resources
    clusters = [cluster for cluster in static.clusters if matches(cluster.name)]
    whole = config_dump_pb2.BootstrapConfigDump(bootstrap=bootstrap, last_updated=updated)
    whole.bootstrap.node.CopyFrom(described(bootstrap.node))
    yield whole
    yield config_dump_shared_pb2.ClustersConfigDump(static_clusters=[
        config_dump_shared_pb2.ClustersConfigDump.StaticCluster(cluster=_pack(cluster), last_updated=updated)
        for cluster in clusters])
    if include_eds:
        yield config_dump_shared_pb2.EndpointsConfigDump(static_endpoint_configs=[
            config_dump_shared_pb2.EndpointsConfigDump.StaticEndpointConfig(endpoint_config=_pack(_endpoints(cluster)))
            for cluster in clusters])
    yield config_dump_shared_pb2.ListenersConfigDump(static_listeners=[
        config_dump_shared_pb2.ListenersConfigDump.StaticListener(listener=_pack(listener), last_updated=updated)
        for listener in static.listeners if matches(listener.name)])
    yield config_dump_shared_pb2.ScopedRoutesConfigDump()
    yield config_dump_shared_pb2.RoutesConfigDump(static_route_configs=[
        config_dump_shared_pb2.RoutesConfigDump.StaticRouteConfig(route_config=_pack(routes), last_updated=updated)
        for listener in static.listeners for routes in _routes(listener) if matches(routes.name)])
    yield config_dump_pb2.SecretsConfigDump()


def _pack(message: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


def _routes(listener: Listener) -> Iterator[RouteConfiguration]:
    chains = list(listener.filter_chains)
    if listener.HasField("default_filter_chain"):
        chains.append(listener.default_filter_chain)
    for chain in chains:
        for network_filter in chain.filters:
            manager = HttpConnectionManager()
            if network_filter.typed_config.Unpack(manager) and manager.HasField("route_config"):
                yield manager.route_config


def _endpoints(cluster: Cluster) -> ClusterLoadAssignment:
    """Endpoints as Envoy tells them: every default that has a value is filled in."""
    assignment = ClusterLoadAssignment(cluster_name=cluster.name)
    for group in cluster.load_assignment.endpoints:
        shown = assignment.endpoints.add()
        shown.locality.CopyFrom(group.locality)
        shown.priority = group.priority
        shown.load_balancing_weight.value = group.load_balancing_weight.value
        for endpoint in group.lb_endpoints:
            one = shown.lb_endpoints.add()
            one.CopyFrom(endpoint)
            one.endpoint.health_check_config.SetInParent()
            one.health_status = endpoint.health_status or HEALTHY
            one.load_balancing_weight.value = endpoint.load_balancing_weight.value or 1
    assignment.policy.overprovisioning_factor.value = OVERPROVISIONING_FACTOR
    return assignment


# --- resource and mask --------------------------------------------------------------------------------------------


def choose(dumps: list[Message], resource: str, mask: str) -> list[Message]:
    """What ``resource`` (a repeated field of one of the dumps) and ``mask`` (a FieldMask) leave. Raises Refused."""
    if not resource:
        return _masked_dumps(dumps, mask) if mask else dumps
    for dump in dumps:
        field = dump.DESCRIPTOR.fields_by_name.get(resource)
        if field is None:
            continue
        if not field.is_repeated:
            raise Refused(400, f"{resource} is not a repeated field. Use ?mask={resource} to get only this field")
        entries: list[Message] = list(getattr(dump, resource))
        return [_masked_entry(entry, mask) for entry in entries] if mask else entries
    raise Refused(404, f"{resource} not found in config dump")


def _masked_dumps(dumps: list[Message], mask: str) -> list[Message]:
    wanted = _field_mask(mask)
    found = [_trimmed(dump, wanted) for dump in dumps if _applies(wanted, dump)]
    if not found:
        raise Refused(400, f"FieldMask {mask} could not be successfully applied to any configs.")
    return found


def _masked_entry(entry: Message, mask: str) -> Message:
    """A resource stands in its entry as an Any: a path goes on inside of it."""
    trimmed = type(entry)()
    for path in _field_mask(mask).paths:
        name, _, inside = path.partition(".")
        field = entry.DESCRIPTOR.fields_by_name.get(name)
        if field is None:
            raise _unusable(mask)
        value = getattr(entry, name)
        if inside and isinstance(value, any_pb2.Any):
            if not entry.HasField(name):
                continue
            merged = getattr(trimmed, name)
            merged.CopyFrom(_merged(merged, value, inside, mask))
        else:
            single = FieldMask(paths=[path])
            if not _applies(single, entry):
                raise _unusable(mask)
            single.MergeMessage(entry, trimmed)
    return trimmed


_CLASSES: dict[str, type[Message]] = {kind.DESCRIPTOR.full_name: kind for kind in (
    Cluster, ClusterLoadAssignment, Listener, RouteConfiguration)}


def _merged(so_far: any_pb2.Any, packed: any_pb2.Any, path: str, mask: str) -> any_pb2.Any:
    """``so_far`` with one more path of the message in ``packed``."""
    kind = _CLASSES[packed.TypeName()]
    wanted = FieldMask(paths=[path])
    result = kind.FromString(so_far.value)
    if not _applies(wanted, result):
        raise _unusable(mask)
    wanted.MergeMessage(kind.FromString(packed.value), result)
    return _pack(result)


def _field_mask(text: str) -> FieldMask:
    return FieldMask(paths=[path for path in text.split(",") if path])


def _applies(mask: FieldMask, message: Message) -> bool:
    return mask.IsValidForDescriptor(message.DESCRIPTOR)  # type: ignore[arg-type]  # upb's class is not in the stubs


def _trimmed(message: Message, mask: FieldMask) -> Message:
    result = type(message)()
    mask.MergeMessage(message, result)
    return result


def _unusable(mask: str) -> Refused:
    return Refused(400, f"FieldMask {mask} could not be successfully used.")
