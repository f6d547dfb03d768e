"""Header mutations of routes: request_headers_to_add and its kin, with Envoy's append actions and order of levels."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from proxy.access_log.format import compile_format
from proxy.config import model
from proxy.http.h1 import SINGLE

if TYPE_CHECKING:
    from proxy.http.headers import Headers
    from proxy.stream_info import StreamInfo

Addition = tuple[bytes, Callable[["StreamInfo"], bytes], int, bool]


def _compile(additions: Iterable[model.HeaderToAdd]) -> tuple[Addition, ...]:
    return tuple((a.name, compile_format(a.value, missing=b""), a.action, a.keep_empty_value) for a in additions)


def _apply(headers: Headers, stream: StreamInfo, additions: tuple[Addition, ...], removals: tuple[bytes, ...]) -> None:
    """One level. As in Envoy, what overwrites is set first, at the end of the list; then comes what is appended."""
    for name in removals:
        headers.remove(name)
    appended: list[tuple[bytes, bytes]] = []
    for name, value_of, action, keep_empty in additions:
        value = value_of(stream)
        if not value and not keep_empty:
            continue
        if action == model.APPEND_IF_EXISTS_OR_ADD or (action == model.ADD_IF_ABSENT and name not in headers):
            appended.append((name, value))
        elif action == model.OVERWRITE_IF_EXISTS_OR_ADD or (action == model.OVERWRITE_IF_EXISTS and name in headers):
            if name not in SINGLE:
                headers.remove(name)
            headers.set(name, value)
    for name, value in appended:
        headers.add(name, value)


class Mutator:
    """The mutations of all levels of a route, in the order in which they apply."""

    __slots__ = ("_request", "_response")

    def __init__(self, levels: Iterable[model.HeaderMutations]) -> None:
        levels = [m for m in levels if m != model.HeaderMutations()]
        self._request = [(_compile(m.request_add), m.request_remove) for m in levels]
        self._response = [(_compile(m.response_add), m.response_remove) for m in levels]

    @classmethod
    def of(cls, levels: Iterable[model.HeaderMutations], most_specific_last: bool,
           cluster: model.HeaderMutations | None = None) -> Mutator | None:
        """The mutator of levels given most specific first; None when there is nothing to do.

        Envoy applies the most specific level first, so the least specific has the last word, unless
        most_specific_header_mutations_wins. A weighted cluster's come before all others either way.
        """
        ordered = list(levels)
        if most_specific_last:
            ordered.reverse()
        if cluster is not None:
            ordered.insert(0, cluster)
        mutator = cls(ordered)
        return mutator if mutator._request else None

    def request(self, headers: Headers, stream: StreamInfo) -> None:
        """Change request headers."""
        for additions, removals in self._request:
            _apply(headers, stream, additions, removals)

    def response(self, headers: Headers, stream: StreamInfo) -> None:
        """Change response headers."""
        for additions, removals in self._response:
            _apply(headers, stream, additions, removals)
