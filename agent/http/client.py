"""The HTTP client of the supervisor: one request to a port of this pod, every wait bounded."""

import asyncio
from collections.abc import Sequence
from typing import Protocol

from agent.http.dial import Streams, dial, reason
from agent.http.exchange import READ_SIZE, Budget, Exchange, Headers, HttpError, Response

MAX_BODY = 4 * 1024 * 1024


class AnyExchange(Protocol):
    """An HTTP/1.1 or HTTP/2 exchange."""

    @property
    def request(self) -> bytes: ...
    def receive(self, data: bytes) -> Response | None: ...
    def output(self) -> bytes: ...


async def request(
    method: str,
    hosts: Sequence[str],
    port: int,
    target: str,
    *,
    timeout_s: float,
    max_body: int = MAX_BODY,
    host: str = "",
    headers: Headers = (),
    budget: Budget | None = None,
) -> Response:
    """Send one request to the first of `hosts` that accepts, with an empty body.

    `host` is the Host header, `localhost:<port>` unless given; `headers` see Exchange.
    Raises HttpError for every failure: refused, silent for `timeout_s` in all, malformed, too large.
    """
    exchange = Exchange(method, target, host or f"localhost:{port}", max_body=max_body, headers=headers, budget=budget)
    try:
        async with asyncio.timeout(timeout_s):
            return await converse(exchange, await dial(hosts, port))
    except TimeoutError:
        raise HttpError(f"no answer within {timeout_s:g}s") from None


async def converse(exchange: AnyExchange, streams: Streams, *, close: bool = True) -> Response:
    """Play `exchange` on a connection. With `close` it ends with the exchange; after a failure it always does.

    No time limit of its own. Raises HttpError.
    """
    reader, writer = streams
    keep = False
    try:
        writer.write(exchange.request)
        while True:
            response = exchange.receive(await reader.read(READ_SIZE))
            await asyncio.sleep(0)  # what has arrived already is read without a turn for others
            output = exchange.output()
            if output:
                writer.write(output)
            if response is not None:
                if close:
                    writer.close()
                keep = True
                return response
    except OSError as error:
        raise HttpError(f"connection lost: {reason(error)}") from None
    finally:
        if not keep:
            writer.transport.abort()  # failed or cancelled: nothing that a polite close could still bring
