"""config.endpoint.v3: the static endpoints of a cluster."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from proxy.config.core import address
from proxy.config.model import Endpoint
from proxy.config.reader import Reader, Skip, ignore

_NAMED = "endpoint names are not supported yet; give endpoint"


def _locality(reader: Reader) -> tuple[str, str, str]:
    """core.v3.Locality as region, zone, sub-zone."""
    return reader.string("region"), reader.string("zone"), reader.string("sub_zone")


def _host(names_allowed: bool, reader: Reader) -> Endpoint:
    """endpoint.v3.Endpoint."""
    if not reader.has("address"):
        reader.error("address", "Address must be set. Consider setting resolver_name or setting cluster type to "
                                "'STRICT_DNS' or 'LOGICAL_DNS'")
        raise Skip
    found = reader.need("address", partial(address, name_allowed=names_allowed))
    return Endpoint(found, hostname=reader.string("hostname"))


def _lb_endpoint(names_allowed: bool, reader: Reader) -> Endpoint:
    """endpoint.v3.LbEndpoint."""
    status = reader.enum("health_status")
    if status not in ("UNKNOWN", "HEALTHY"):
        reader.error("health_status", f"{status} is not supported yet; supported: UNKNOWN, HEALTHY")
    if reader.chosen("host_identifier") == "endpoint_name":
        reader.take("endpoint_name")
        reader.error("endpoint_name", _NAMED)
        raise Skip
    weight = reader.integer("load_balancing_weight", 1)
    return replace(reader.need("endpoint", partial(_host, names_allowed)), weight=weight)


def _locality_endpoints(names_allowed: bool, reader: Reader) -> tuple[Endpoint, ...]:
    """endpoint.v3.LocalityLbEndpoints of the highest priority."""
    if priority := reader.integer("priority"):
        reader.error("priority", f"{priority} is not supported yet; supported: 0")
    region, zone, sub_zone = reader.sub("locality", _locality) or ("", "", "")
    hosts = reader.each("lb_endpoints", partial(_lb_endpoint, names_allowed))
    return tuple(replace(host, region=region, zone=zone, sub_zone=sub_zone) for host in hosts)


def load_assignment(names_allowed: bool, reader: Reader) -> tuple[Endpoint, ...]:
    """endpoint.v3.ClusterLoadAssignment; the addresses may be DNS names where ``names_allowed``."""
    reader.sub("policy", ignore)
    localities = reader.each("endpoints", partial(_locality_endpoints, names_allowed))
    return tuple(host for hosts in localities for host in hosts)
