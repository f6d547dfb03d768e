"""The interface of an HTTP filter, and the chain compiled from the filters of one connection manager.

A filter is one object for each connection manager; what it must remember of a request goes into
``stream.per_filter``. A callback that a filter does not override is not in that callback's list, so it costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from proxy.http.headers import Headers
    from proxy.http.stream import Stream


class HttpFilter:
    """Override what the filter needs. Request callbacks run in configured order, response callbacks in reverse."""

    def on_request_headers(self, stream: Stream) -> bool:
        """The request head. True: go on; False: stop here until ``stream.continue_request()`` or a local reply."""
        return True

    def on_request_data(self, stream: Stream, data: bytes) -> bytes:
        """A piece of the request body; returns what goes on."""
        return data

    def on_request_end(self, stream: Stream) -> None:
        """The request body is complete."""

    def on_response_headers(self, stream: Stream, status: int, headers: Headers) -> None:
        """The response head, local replies included; may change ``headers``."""

    def on_response_data(self, stream: Stream, data: bytes) -> bytes:
        """A piece of the response body; returns what goes on."""
        return data

    def on_response_end(self, stream: Stream) -> None:
        """The response is complete."""


def overriding(filters: Iterable[HttpFilter], callback: str) -> tuple[HttpFilter, ...]:
    """The filters that implement a callback."""
    base = getattr(HttpFilter, callback)
    return tuple(f for f in filters if getattr(type(f), callback) is not base)


class FilterChain:
    """Who gets which callback, in order."""

    __slots__ = ("request_data", "request_end", "request_headers", "response_data", "response_end", "response_headers")

    def __init__(self, filters: Iterable[HttpFilter]) -> None:
        forward = tuple(filters)
        backward = forward[::-1]
        self.request_headers = overriding(forward, "on_request_headers")
        self.request_data = overriding(forward, "on_request_data")
        self.request_end = overriding(forward, "on_request_end")
        self.response_headers = overriding(backward, "on_response_headers")
        self.response_data = overriding(backward, "on_response_data")
        self.response_end = overriding(backward, "on_response_end")
