"""The HTTP client of the supervisor: one request to a port of this pod, every wait bounded."""

import asyncio
from collections.abc import Sequence

from agent.http.exchange import READ_SIZE, Exchange, HttpError, Response

MAX_BODY = 4 * 1024 * 1024


async def request(
    method: str, hosts: Sequence[str], port: int, target: str, *, timeout_s: float, max_body: int = MAX_BODY
) -> Response:
    """Send one request to the first of `hosts` that accepts, with an empty body.

    Raises HttpError for every failure: refused, silent for `timeout_s` in all, malformed, too large.
    """
    try:
        async with asyncio.timeout(timeout_s):
            return await _request(method, hosts, port, target, max_body)
    except TimeoutError:
        raise HttpError(f"no answer within {timeout_s:g}s") from None


async def _request(method: str, hosts: Sequence[str], port: int, target: str, max_body: int) -> Response:
    exchange = Exchange(method, target, f"localhost:{port}", max_body=max_body)
    reader, writer = await _connect(hosts, port)
    try:
        writer.write(exchange.request)
        while True:
            response = exchange.receive(await reader.read(READ_SIZE))
            if response is not None:
                writer.close()
                return response
    except OSError as error:
        raise HttpError(f"connection lost: {error.strerror or error}") from None
    finally:
        if not writer.is_closing():
            writer.transport.abort()  # failed or cancelled: nothing that a polite close could still bring


async def _connect(hosts: Sequence[str], port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    first_error = "no address to ask"
    for host in hosts:
        try:
            return await asyncio.open_connection(host, port, limit=READ_SIZE)
        except OSError as error:
            if host == hosts[0]:
                first_error = f"cannot connect to {host}:{port}: {_reason(error)}"
    raise HttpError(first_error)


def _reason(error: OSError) -> str:
    import os

    return os.strerror(error.errno) if error.errno else str(error)
