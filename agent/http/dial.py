"""TCP (and TLS) connections to this pod, as asyncio streams."""

import asyncio
import errno
import os
import socket
import ssl
from collections.abc import Sequence

from agent.http.exchange import READ_SIZE, HttpError

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

LOCALHOST = ("127.0.0.1", "::1")  # no resolver in between; both, since an application may know one of them only
# Traffic capture lets connections from these addresses through to the application (Istio: UpstreamLocalAddress).
_PROBE_SOURCES = {socket.AF_INET: "127.0.0.6", socket.AF_INET6: "::6"}


async def dial(
    hosts: Sequence[str], port: int, *, as_probe: bool = False, tls: "ssl.SSLContext | None" = None
) -> Streams:
    """Connect to the first of `hosts`, address literals, that accepts. `as_probe`: from 127.0.0.6 or ::6.

    No time limit of its own. Raises HttpError with the failure of the first host.
    """
    first_error = "no address to ask"
    for host in hosts:
        try:
            return await _dial(host, port, as_probe, tls)
        except OSError as error:
            if host == hosts[0]:
                first_error = f"cannot connect to {_shown(host)}:{port}: {reason(error)}"
    raise HttpError(first_error)


async def _dial(host: str, port: int, as_probe: bool, tls: "ssl.SSLContext | None") -> Streams:
    if not as_probe:
        return await asyncio.open_connection(host, port, limit=READ_SIZE, ssl=tls)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        source = (_PROBE_SOURCES[family], 0)
        return await asyncio.open_connection(host, port, limit=READ_SIZE, ssl=tls, family=family, local_addr=source)
    except OSError as error:
        # Nobody gave ::6 to the loopback interface, so nothing is captured that it would have to pass; or the target
        # is not of this machine (EINVAL), as for the health of a workload elsewhere.
        if error.errno not in (errno.EADDRNOTAVAIL, errno.EINVAL):
            raise
    return await asyncio.open_connection(host, port, limit=READ_SIZE, ssl=tls, family=family)


def unverified_tls(protocols: Sequence[str]) -> ssl.SSLContext:
    """A client context that takes any certificate, as kubelet does for probes. `protocols`: ALPN, best first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(list(protocols))
    return context


def reason(error: OSError) -> str:
    """What went wrong, without the address that asyncio repeats."""
    if isinstance(error, ssl.SSLError):
        return f"TLS: {error.reason or error}"
    return os.strerror(error.errno) if error.errno else str(error) or "failed"


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host
