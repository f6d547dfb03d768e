"""The location of a redirect (Envoy: Utility::newUri and RouteEntryImplBase::newUri)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.config import model
from proxy.http.rewrite import substitute_path

if TYPE_CHECKING:
    from proxy.http.route_table import CompiledRoute
    from proxy.http.stream import Stream


def split_port(authority: bytes) -> tuple[bytes, bytes]:
    """(host, port) of an authority; the port is empty when there is none."""
    host, colon, port = authority.rpartition(b":")
    if colon and port.isdigit() and not host.endswith(b":"):
        return host, port
    return authority, b""


def location(stream: Stream, route: CompiledRoute, action: model.RedirectAction) -> bytes:
    """The absolute URL that the client is sent to."""
    scheme = stream.scheme
    if stream.request_headers is not None:
        scheme = stream.request_headers.get(b"x-forwarded-proto") or scheme
    old_scheme = scheme
    if action.scheme_redirect:
        scheme = action.scheme_redirect
    elif action.https_redirect:
        scheme = b"https"
    authority = stream.authority or b""
    host, port = split_port(authority)
    if action.port_redirect:
        port = b"%d" % action.port_redirect
    elif (old_scheme, scheme, port) in ((b"http", b"https", b"80"), (b"https", b"http", b"443")):
        port = b""
    if action.host_redirect:
        host = action.host_redirect
        if not action.port_redirect:
            port = b""
    path, mark, query = (stream.path or b"").partition(b"?")
    tail = b"" if action.strip_query else mark + query
    if action.path_redirect:
        path = action.path_redirect
        if b"?" in path:
            tail = b""
    elif action.prefix_rewrite:
        path = action.prefix_rewrite + path[len(route.config.match.value):]
    elif action.regex_rewrite is not None:
        path = substitute_path(action.regex_rewrite, path)
    return scheme + b"://" + host + (b":" + port if port else b"") + path + tail


def https_location(stream: Stream) -> bytes:
    """Where require_tls sends a request: the same URL by https, port and all."""
    return b"https://" + (stream.authority or b"") + (stream.path or b"")
