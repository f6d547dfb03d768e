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
    """Rewrite path and authority; the originals go into x-envoy-original-path and -host."""
    headers: Headers = stream.request_headers  # type: ignore[assignment]
    old_path: bytes = stream.path  # type: ignore[assignment]
    if action.prefix_rewrite or action.regex_rewrite is not None:
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
    host = None
    if stream.weighted is not None and stream.weighted.host_rewrite_literal:
        host = stream.weighted.host_rewrite_literal
    elif action.host_rewrite_literal:
        host = action.host_rewrite_literal
    elif action.host_rewrite_header:
        host = headers.get(action.host_rewrite_header)
    elif action.auto_host_rewrite and stream.host is not None:
        host = stream.host.hostname
    if host and host != stream.authority:
        if not suppress:
            headers.set(b"x-envoy-original-host", stream.authority or b"")
        if action.append_x_forwarded_host:
            headers.add(b"x-forwarded-host", stream.authority or b"")
        stream.authority = host
