"""Where a redirect leads, and whether that is still the same host."""

from dataclasses import dataclass, replace
from urllib.parse import urljoin, urlsplit

from agent.http.exchange import HttpError, Response

MAX_REDIRECTS = 10
_STATUSES = (301, 302, 303, 307, 308)
_MAX_LOCATION = 8192


@dataclass(frozen=True, slots=True)
class Place:
    """What one GET asks for. `host` is the Host header, `name` the host that its URL has."""

    tls: bool
    name: str
    port: int
    target: str
    host: str


class LeavesHost(Exception):
    """The redirect leads to another host."""


def follow(response: Response, place: Place) -> Place | None:
    """The next place, None when `response` is no redirect. Raises LeavesHost, and HttpError for a bad Location."""
    location = response.header(b"location")
    if response.status not in _STATUSES or not location:
        return None
    if len(location) > _MAX_LOCATION or not location.isascii() or not location.isprintable() or " " in location:
        raise HttpError("bad response: Location is not a URL")
    try:
        parts = urlsplit(location)
        if not parts.scheme and not parts.netloc:
            path = urlsplit(urljoin(f"http://x{place.target}", location))
            return replace(place, target=_target(path.path, path.query))
        port, name = parts.port, parts.hostname or ""
    except ValueError:
        raise HttpError("bad response: Location is not a URL") from None
    scheme = parts.scheme or ("https" if place.tls else "http")
    if name.lower() != place.name.lower() or scheme not in ("http", "https"):
        raise LeavesHost
    tls = scheme == "https"
    return Place(tls, place.name, port or (443 if tls else 80), _target(parts.path, parts.query), parts.netloc)


def _target(path: str, query: str) -> str:
    return (path if path.startswith("/") else f"/{path}") + (f"?{query}" if query else "")
