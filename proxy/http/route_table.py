"""Virtual host and route selection (Envoy: RouteMatcher). Everything is compiled once per configuration."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from proxy.config import model
from proxy.http.grpc import is_grpc
from proxy.http.mutations import Mutator

if TYPE_CHECKING:
    from proxy.http.headers import Headers
    from proxy.http.stream import Stream
    from proxy.upstream.cluster import Cluster
    from proxy.upstream.manager import ClusterManager

Condition = Callable[["Stream"], bool]
PathMatch = Callable[[bytes], bool]

HOST_MEMO = 1024
"""Authorities remembered with their virtual host; hosts that clients invent start the memo anew."""


def header_condition(matcher: model.HeaderMatcher) -> Callable[[Headers], bool]:
    """config.route.v3.HeaderMatcher over ordinary headers: any value suffices, a missing header never matches."""
    name, test, invert = matcher.name, matcher.matches, matcher.invert
    if test is None:
        wanted = matcher.want_present
        return lambda headers: (name in headers.index) is wanted

    def matches(headers: Headers) -> bool:
        values = headers.get_all(name)
        if not values:
            if not matcher.missing_is_empty:
                return False
            values = [b""]
        return any(test(v) for v in values) is not invert

    return matches


PSEUDO: dict[bytes, Callable[[Stream], bytes | None]] = {
    b":method": lambda s: s.method,
    b":path": lambda s: s.path,
    b":authority": lambda s: s.authority,
    b"host": lambda s: s.authority,
    b":scheme": lambda s: s.scheme,
}


def stream_condition(matcher: model.HeaderMatcher) -> Condition:
    """A header matcher that also knows the pseudo-headers of HTTP/1 requests."""
    read = PSEUDO.get(matcher.name)
    if read is None:
        plain = header_condition(matcher)
        return lambda stream: plain(stream.request_headers)  # type: ignore[arg-type]
    test, invert = matcher.matches, matcher.invert
    if test is None:
        wanted = matcher.want_present
        return lambda stream: (read(stream) is not None) is wanted

    def matches(stream: Stream) -> bool:
        value = read(stream)
        if value is None:
            return False if not matcher.missing_is_empty else test(b"") is not invert
        return test(value) is not invert

    return matches


def query_condition(matcher: model.QueryParameterMatcher) -> Condition:
    """config.route.v3.QueryParameterMatcher: the first occurrence of a parameter decides."""
    name, test, wanted = matcher.name, matcher.matches, matcher.want_present

    def matches(stream: Stream) -> bool:
        query = (stream.path or b"").partition(b"?")[2].partition(b"#")[0]
        for pair in query.split(b"&"):
            key, _, value = pair.partition(b"=")
            if key == name:
                return test(value) if test is not None else wanted
        return test is None and not wanted

    return matches


def _path_match(match: model.RouteMatch) -> PathMatch | None:
    """A predicate over the path without its query; None: every path."""
    value = match.value
    if match.kind == model.PREFIX and value == b"/":
        return None
    if match.kind == model.SAFE_REGEX:
        regex: Any = match.regex
        return lambda path: regex.fullmatch(path) is not None
    if match.case_sensitive:
        if match.kind == model.PREFIX:
            return lambda path: path.startswith(value)
        if match.kind == model.PATH:
            return lambda path: path == value
        return lambda path: path == value or path.startswith(value + b"/")
    folded = value.lower()
    if match.kind == model.PREFIX:
        return lambda path: path.lower().startswith(folded)
    if match.kind == model.PATH:
        return lambda path: path.lower() == folded
    return lambda path: path.lower() == folded or path.lower().startswith(folded + b"/")


class CompiledRoute:
    """A route with everything that its requests need at hand."""

    __slots__ = ("action", "conditions", "config", "mutator", "name", "on_path", "retriable_request",
                 "rewrites", "upgrades", "vhost", "weighted")

    def __init__(self, config: model.Route, vhost: model.VirtualHost, table: model.RouteConfiguration) -> None:
        self.config = config
        self.vhost = vhost
        self.name = config.name.encode() or None
        self.action = config.action
        match = config.match
        self.on_path = _path_match(match)
        conditions = [stream_condition(m) for m in match.headers]
        conditions += [query_condition(m) for m in match.query_parameters]
        if match.grpc:
            conditions.append(lambda stream: is_grpc(stream.request_headers))  # type: ignore[arg-type]
        if match.runtime_fraction is not None:
            share = match.runtime_fraction
            conditions.append(lambda _: random.random() < share)
        self.conditions: Sequence[Condition] = tuple(conditions)
        levels = (config.mutations, vhost.mutations, table.mutations)
        specific_last = table.most_specific_header_mutations_wins
        self.mutator = Mutator.of(levels, specific_last)
        self.weighted: tuple[tuple[int, model.WeightedCluster, Mutator | None], ...] = ()
        self.upgrades: dict[bytes, bool] = {}
        self.retriable_request: tuple[Callable[[Headers], bool], ...] = ()
        self.rewrites = False
        """The action changes path or host."""
        action = config.action
        if isinstance(action, model.RouteAction):
            self.rewrites = bool(action.prefix_rewrite or action.regex_rewrite or action.host_rewrite_literal
                                 or action.host_rewrite_header or action.auto_host_rewrite
                                 or any(c.host_rewrite_literal for c in action.weighted_clusters))
            self.upgrades = dict(action.upgrade_types)
            total = 0
            weighted = []
            for cluster in action.weighted_clusters:
                total += cluster.weight
                weighted.append((total, cluster, Mutator.of(levels, specific_last, cluster.mutations)))
            self.weighted = tuple(weighted)
            if action.retry_policy is not None:
                self.retriable_request = tuple(map(header_condition, action.retry_policy.retriable_request_headers))


    def pick_weighted(self, stream: Stream, clusters: ClusterManager) -> Cluster | None:
        """The cluster that a random number (or the configured header's number) falls on."""
        action: model.RouteAction = self.action  # type: ignore[assignment]
        total = self.weighted[-1][0]
        value = None
        if action.weighted_header_name:
            text = stream.request_headers.get(action.weighted_header_name)  # type: ignore[union-attr]
            if text is not None and text.isdigit() and len(text) <= 20:
                value = int(text) % total
        if value is None:
            value = int(random.random() * total)
        for bound, cluster, mutator in self.weighted:
            if value < bound:
                stream.mutator = mutator
                stream.weighted = cluster
                return clusters.get(cluster.name)
        return None


class CompiledVirtualHost:
    """A virtual host's routes in order."""

    __slots__ = ("config", "only", "routes")

    def __init__(self, config: model.VirtualHost, table: model.RouteConfiguration) -> None:
        self.config = config
        self.routes = tuple(CompiledRoute(r, config, table) for r in config.routes)
        first = self.routes[0] if self.routes else None
        self.only = first if first is not None and first.on_path is None and not first.conditions else None
        """The first route, when it takes every request."""

    def route(self, stream: Stream) -> CompiledRoute | None:
        """The first route that matches."""
        if self.only is not None:
            return self.only
        path: bytes = stream.path  # type: ignore[assignment]
        at = path.find(b"?")
        if at >= 0:
            path = path[:at]
        for route in self.routes:
            if route.on_path is None or route.on_path(path):
                for condition in route.conditions:
                    if not condition(stream):
                        break
                else:
                    return route
        return None


class RouteTable:
    """config.route.v3.RouteConfiguration: exact domain, longest suffix wildcard, longest prefix wildcard, ``*``."""

    def __init__(self, config: model.RouteConfiguration) -> None:
        self._ignore_port = config.ignore_port_in_host_matching
        self._exact: dict[bytes, CompiledVirtualHost] = {}
        self._suffixes: list[tuple[bytes, CompiledVirtualHost]] = []
        self._prefixes: list[tuple[bytes, CompiledVirtualHost]] = []
        self._any: CompiledVirtualHost | None = None
        for vhost in config.virtual_hosts:
            compiled = CompiledVirtualHost(vhost, config)
            for domain in vhost.domains:
                folded = domain.lower()
                if folded == b"*":
                    self._any = compiled
                elif folded.startswith(b"*"):
                    self._suffixes.append((folded[1:], compiled))
                elif folded.endswith(b"*"):
                    self._prefixes.append((folded[:-1], compiled))
                else:
                    self._exact[folded] = compiled
        self._suffixes.sort(key=lambda entry: -len(entry[0]))
        self._prefixes.sort(key=lambda entry: -len(entry[0]))
        self.deterministic = not any(r.match.runtime_fraction is not None
                                     for v in config.virtual_hosts for r in v.routes)
        """The same request always takes the same route."""
        self._memo: dict[bytes, CompiledVirtualHost | None] = {}

    def virtual_host(self, authority: bytes) -> CompiledVirtualHost | None:
        """The virtual host that serves an authority (compared without case)."""
        try:
            return self._memo[authority]
        except KeyError:
            if len(self._memo) >= HOST_MEMO:
                self._memo.clear()
            found = self._memo[authority] = self._find(authority.lower())
            return found

    def _find(self, host: bytes) -> CompiledVirtualHost | None:
        if self._ignore_port:
            name, colon, port = host.rpartition(b":")
            if colon and port.isdigit() and not name.endswith(b":"):
                host = name
        found = self._exact.get(host)
        if found is not None:
            return found
        # A wildcard stands for at least one character.
        for suffix, vhost in self._suffixes:
            if len(host) > len(suffix) and host.endswith(suffix):
                return vhost
        for prefix, vhost in self._prefixes:
            if len(host) > len(prefix) and host.startswith(prefix):
                return vhost
        return self._any

    def route(self, stream: Stream) -> CompiledRoute | None:
        """The route of a request, or None (404)."""
        vhost = self.virtual_host(stream.authority or b"")
        # Only a connect_matcher, which there is none of, takes CONNECT.
        return None if vhost is None or stream.method == b"CONNECT" else vhost.route(stream)
