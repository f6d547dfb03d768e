"""A blocking GET for `pilot-agent wait`, which starts too often and too briefly to pay for an event loop."""

import socket
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

from agent.http.exchange import READ_SIZE, Exchange, HttpError

_MAX_BODY = 64 * 1024 * 1024  # read to its end as the real program does, but not for ever; nothing of it is kept
_MAX_URL = 8192


@dataclass(frozen=True, slots=True)
class Target:
    """A parsed http:// URL."""

    host: str
    port: int
    host_header: str
    path: str


def parse_url(url: str) -> Target:
    """Raises ValueError with what was expected."""
    if len(url) > _MAX_URL or not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError("expected a URL of printable ASCII characters")
    parts = urlsplit(url)
    if parts.scheme != "http":
        raise ValueError("expected a URL that begins with http://")
    port = parts.port  # raises ValueError beyond 65535
    if not parts.hostname or port == 0 or parts.username is not None:
        raise ValueError("expected http://host[:port]/path")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(parts.hostname, port or 80, parts.netloc, path)


def get(target: Target, deadline: float) -> int:
    """Status of one GET whose body has been read, redirects not followed; `deadline` on time.monotonic's clock.

    Raises HttpError for every failure.
    """
    exchange = Exchange("GET", target.path, target.host_header, max_body=_MAX_BODY, keep_body=False)
    connection = _connect(target, deadline)
    try:
        connection.settimeout(_left(deadline))
        connection.sendall(exchange.request)
        while True:
            connection.settimeout(_left(deadline))
            response = exchange.receive(connection.recv(READ_SIZE))
            if response is not None:
                return response.status
    except TimeoutError:
        raise HttpError("no complete response in time") from None
    except OSError as error:
        raise HttpError(f"connection lost: {error.strerror or error}") from None
    finally:
        connection.close()


def _connect(target: Target, deadline: float) -> socket.socket:
    failure = ""  # of the first address, the one that usually counts
    for family, address in _addresses(target, deadline):
        left = _left(deadline)
        connection = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            connection.settimeout(left)
            connection.connect((address, target.port))
            return connection
        except OSError as error:
            connection.close()
            reason = "timed out" if isinstance(error, TimeoutError) else error.strerror or str(error)
            failure = failure or f"connect to {address} port {target.port}: {reason}"
    raise HttpError(failure or "no address")


def _addresses(target: Target, deadline: float) -> list[tuple[int, str]]:
    if target.host == "localhost":
        # Both families without asking a resolver: a name server that is not up yet must not hold a pod's start.
        return [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, target.host)
            return [(family, target.host)]
        except OSError:
            pass
    return _resolve(target, deadline)


def _resolve(target: Target, deadline: float) -> list[tuple[int, str]]:
    """getaddrinfo has no time limit of its own, so it runs in a thread that may be left behind."""
    import threading

    found: list[tuple[int, str]] = []
    failure: list[str] = []

    def ask() -> None:
        try:
            answers = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
            found.extend((family, str(address[0])) for family, _, _, _, address in answers[:16])
        except (OSError, UnicodeError) as error:
            failure.append(getattr(error, "strerror", None) or str(error))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_left(deadline))
    if found:
        return found
    raise HttpError(f"resolve {target.host}: {failure[0] if failure else 'no answer in time'}")


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise HttpError("no complete response in time")
    return left
