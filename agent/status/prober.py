"""Carries out one probe action: HTTP, TCP or gRPC, without a time limit of its own."""

import ssl

from agent.http.client import converse
from agent.http.dial import LOCALHOST, Streams, dial, unverified_tls
from agent.http.exchange import Exchange, Headers, HttpError, Response
from agent.http.redirect import MAX_REDIRECTS, LeavesHost, Place, follow
from agent.status import grpc_health

MAX_BODY = 10 * 1024  # of a response; kubelet reads no more of it either


def probe_hosts(name: str) -> tuple[str, ...]:
    """The addresses to connect to for a host name of a probe: an address, or this host for `localhost` and ""."""
    return LOCALHOST if name in ("", "localhost") else (name,)


class Prober:
    """Connects from 127.0.0.6 or ::6, which traffic capture lets through to the application."""

    def __init__(self, *, keepalive: bool = False, http2: bool = True) -> None:
        """`keepalive`: keep one HTTP/1.1 connection per probe open. `http2`: offer h2 where TLS is spoken."""
        self._keepalive = keepalive
        self._protocols = ("h2", "http/1.1") if http2 else ("http/1.1",)
        self._tls: ssl.SSLContext | None = None
        self._idle: dict[tuple[str, bool, int], Streams] = {}  # at most one for each probe

    def close(self) -> None:
        for _, writer in self._idle.values():
            writer.close()
        self._idle.clear()

    async def get(self, key: str, place: Place, headers: Headers) -> Response:
        """GET as a probe does: redirects are followed while they stay on the host; one that leaves it is the response.

        At most MAX_BODY bytes of the body. `key` names the probe whose connection may be kept. Raises HttpError.
        """
        for _ in range(MAX_REDIRECTS):
            response = await self._get(key, place, headers)
            try:
                following = follow(response, place)
            except LeavesHost:
                return response
            if following is None:
                return response
            place = following
        raise HttpError(f"stopped after {MAX_REDIRECTS} redirects")

    async def connect(self, host: str, port: int) -> None:
        """The TCP probe. Raises HttpError."""
        _, writer = await dial(probe_hosts(host), port, as_probe=True)
        writer.close()

    async def grpc(self, host: str, port: int, service: str, user_agent: str) -> str:
        """Ask for the health of `service`. Returns why it is not SERVING, "" when it is. Raises HttpError."""
        from agent.http.h2_exchange import Http2Exchange  # few pods have such probes

        exchange = Http2Exchange(
            "POST",
            grpc_health.PATH,
            f"{literal(host or 'localhost')}:{port}",
            scheme="http",
            max_body=grpc_health.MAX_RESPONSE,
            headers=(*grpc_health.HEADERS, *((("user-agent", user_agent),) if user_agent else ())),
            body=grpc_health.check_request(service),
            trailers=True,
        )
        return grpc_health.complaint(await converse(exchange, await dial(probe_hosts(host), port, as_probe=True)))

    async def _get(self, key: str, place: Place, headers: Headers) -> Response:
        slot = (key, place.tls, place.port)
        idle = self._idle.pop(slot, None)
        if idle is not None and not idle[0].at_eof() and not idle[1].is_closing():
            try:
                return await self._http1(slot, idle, place, headers)
            except HttpError:
                pass  # the application may have closed it in this moment; a GET may be repeated
        elif idle is not None:
            idle[1].close()
        streams = await dial(probe_hosts(place.name), place.port, as_probe=True, tls=self._context(place.tls))
        session = streams[1].get_extra_info("ssl_object")
        if session is not None and session.selected_alpn_protocol() == "h2":
            from agent.http.h2_exchange import Http2Exchange

            try:
                exchange = Http2Exchange(
                    "GET", place.target, place.host, scheme="https", max_body=MAX_BODY, headers=headers, truncate=True
                )
            except HttpError:
                streams[1].transport.abort()
                raise
            return await converse(exchange, streams)
        return await self._http1(slot, streams, place, headers)

    async def _http1(self, slot: tuple[str, bool, int], streams: Streams, place: Place, headers: Headers) -> Response:
        try:
            exchange = Exchange(
                "GET",
                place.target,
                place.host,
                max_body=MAX_BODY,
                headers=headers,
                keep_alive=self._keepalive,
                truncate=True,
            )
        except HttpError:
            streams[1].transport.abort()
            raise
        response = await converse(exchange, streams, close=False)
        if self._keepalive and exchange.reusable and slot not in self._idle:
            self._idle[slot] = streams
        else:
            streams[1].close()
        return response

    def _context(self, tls: bool) -> ssl.SSLContext | None:
        if tls and self._tls is None:
            self._tls = unverified_tls(self._protocols)
        return self._tls if tls else None


def literal(host: str) -> str:
    """`host` as it stands in a URL."""
    return f"[{host}]" if ":" in host else host
