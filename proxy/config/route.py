"""config.route.v3: route configurations, virtual hosts, routes and what they match."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from proxy.config import model
from proxy.config.core import header_mutations, runtime_fractional_percent
from proxy.config.http_filters import per_route_settings
from proxy.config.matchers import header_matcher, query_parameter_matcher, regex
from proxy.config.model import DirectResponse, RedirectAction, Route, RouteAction, RouteConfiguration, RouteMatch
from proxy.config.reader import Reader, Skip, ignore
from proxy.config.retry import retry_policy
from proxy.config.route_action import MAX_DIRECT_RESPONSE_BYTES, direct_response, redirect_action, route_action

_PATHS = {"prefix": model.PREFIX, "path": model.PATH, "path_separated_prefix": model.PATH_SEPARATED_PREFIX}


def route_match(reader: Reader) -> RouteMatch:
    """config.route.v3.RouteMatch."""
    kind = reader.chosen("path_specifier")
    value, pattern = b"", None
    if kind in _PATHS:
        number, value = _PATHS[kind], reader.octets(kind)
    elif kind == "safe_regex":
        number, pattern = model.SAFE_REGEX, reader.need(kind, regex)
    else:
        if kind is not None:
            reader.take(kind)
            reader.error(kind, f"is not supported yet; supported: {', '.join(_PATHS)}, safe_regex")
        raise Skip
    return RouteMatch(
        kind=number,
        value=value,
        regex=pattern,
        case_sensitive=reader.boolean("case_sensitive", True),
        headers=reader.each("headers", header_matcher),
        query_parameters=reader.each("query_parameters", query_parameter_matcher),
        grpc=reader.sub("grpc", ignore) is not None,
        runtime_fraction=reader.sub("runtime_fraction", runtime_fractional_percent),
    )


def _decorator(reader: Reader) -> tuple[bytes, bool]:
    """config.route.v3.Decorator: the operation's name, and whether it is sent on."""
    return reader.octets("operation"), reader.boolean("propagate", True)


def _action(max_body: int, reader: Reader) -> RouteAction | RedirectAction | DirectResponse:
    kind = reader.chosen("action")
    if kind == "route":
        return reader.need("route", route_action)
    if kind == "redirect":
        return reader.need("redirect", redirect_action)
    if kind == "direct_response":
        return reader.need("direct_response", partial(direct_response, max_body))
    if kind is not None:
        reader.take(kind)
        reader.error(kind, "is not supported yet; supported: route, redirect, direct_response")
    raise Skip


def route(max_body: int, reader: Reader) -> Route:
    """config.route.v3.Route."""
    match = reader.sub("match", route_match)
    per_route_settings(reader)
    operation, propagate = reader.sub("decorator", _decorator) or (b"", True)
    mutations = header_mutations(reader)
    action = _action(max_body, reader)
    if match is None:
        raise Skip
    return Route(reader.string("name"), match, action, mutations, operation, propagate)


def virtual_host(max_body: int, reader: Reader) -> model.VirtualHost:
    """config.route.v3.VirtualHost. Its retry policy goes to the routes that have none."""
    retries = reader.sub("retry_policy", retry_policy)
    per_route_settings(reader)
    routes = reader.each("routes", partial(route, max_body))
    if retries is not None:
        routes = tuple(
            replace(one, action=replace(one.action, retry_policy=retries))
            if isinstance(one.action, RouteAction) and one.action.retry_policy is None else one
            for one in routes
        )
    return model.VirtualHost(
        name=reader.string("name"),
        domains=tuple(domain.lower().encode() for domain in reader.strings("domains")),
        routes=routes,
        mutations=header_mutations(reader),
        include_request_attempt_count=reader.boolean("include_request_attempt_count"),
        include_attempt_count_in_response=reader.boolean("include_attempt_count_in_response"),
        require_tls=reader.enum("require_tls"),
    )


def route_configuration(reader: Reader) -> RouteConfiguration:
    """config.route.v3.RouteConfiguration inside a connection manager.

    Its references to clusters are checked unless ``validate_clusters`` is false.
    """
    scope = reader.scope
    known = scope.clusters
    if not reader.boolean("validate_clusters", True):
        scope.clusters = None
    max_body = reader.integer("max_direct_response_body_size_bytes", MAX_DIRECT_RESPONSE_BYTES)
    try:
        hosts = reader.each("virtual_hosts", partial(virtual_host, max_body))
    finally:
        scope.clusters = known
    per_route_settings(reader)
    name = reader.string("name")
    _check_domains(reader, name, hosts)
    return RouteConfiguration(
        name=name,
        virtual_hosts=hosts,
        mutations=header_mutations(reader),
        most_specific_header_mutations_wins=reader.boolean("most_specific_header_mutations_wins"),
        ignore_port_in_host_matching=reader.boolean("ignore_port_in_host_matching"),
    )


def _check_domains(reader: Reader, name: str, hosts: tuple[model.VirtualHost, ...]) -> None:
    seen: set[bytes] = set()
    for host in hosts:
        for domain in host.domains:
            if domain in seen:
                reader.error("virtual_hosts", (
                    f"Only a single wildcard domain is permitted in route {name}" if domain == b"*" else
                    f"Only unique values for domains are permitted. Duplicate entry of domain {domain.decode()} "
                    f"in route {name}"))
            seen.add(domain)
