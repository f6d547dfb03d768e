"""Path and host rewrites of a route (Envoy: RouteEntryImplBase::finalizeRequestHeaders)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from proxy.config import model

if TYPE_CHECKING:
    from proxy.http.headers import Headers
    from proxy.http.route_table import CompiledRoute
    from proxy.http.stream import Stream


def substitute_path(rewrite: tuple[object, object], path: bytes) -> bytes:
    """regex_rewrite: every match in the path (without query) is replaced."""
    pattern: Any = rewrite[0]
    result: bytes = pattern.sub(rewrite[1], path)
    return result


def rewrite_request(stream: Stream, route: CompiledRoute, action: model.RouteAction, *, suppress: bool) -> None:
    """Rewrite authority and path; the originals go into x-envoy-original-host and -path.

    In this order, but auto_host_rewrite comes last: Envoy knows the upstream host only then.
    """
    headers: Headers = stream.request_headers  # type: ignore[assignment]
    if stream.weighted is not None and stream.weighted.host_rewrite_literal:
        _rewrite_host(stream, stream.weighted.host_rewrite_literal, action, suppress)
    elif action.host_rewrite_literal:
        _rewrite_host(stream, action.host_rewrite_literal, action, suppress)
    elif action.host_rewrite_header:
        _rewrite_host(stream, headers.get(action.host_rewrite_header), action, suppress)
    if action.prefix_rewrite or action.regex_rewrite is not None:
        _rewrite_path(stream, route, action, suppress)
    if action.auto_host_rewrite and stream.host is not None and not (
            stream.weighted is not None and stream.weighted.host_rewrite_literal):
        _rewrite_host(stream, stream.host.hostname, action, suppress)


def _rewrite_path(stream: Stream, route: CompiledRoute, action: model.RouteAction, suppress: bool) -> None:
    headers: Headers = stream.request_headers  # type: ignore[assignment]
    old_path: bytes = stream.path  # type: ignore[assignment]
    path, mark, query = old_path.partition(b"?")
    if action.prefix_rewrite:
        match = route.config.match
        matched = path if match.kind == model.SAFE_REGEX else match.value
        path = action.prefix_rewrite + path[len(matched):]
    elif action.regex_rewrite is not None:
        path = substitute_path(action.regex_rewrite, path)
    stream.path = path + mark + query
    if not suppress:
        headers.set(b"x-envoy-original-path", old_path)


def _rewrite_host(stream: Stream, host: bytes | None, action: model.RouteAction, suppress: bool) -> None:
    headers: Headers = stream.request_headers  # type: ignore[assignment]
    if host and host != stream.authority:
        if not suppress:
            headers.set(b"x-envoy-original-host", stream.authority or b"")
        if action.append_x_forwarded_host:
            headers.add(b"x-forwarded-host", stream.authority or b"")
        stream.authority = host
