"""Requests and responses of the admin interface."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

TEXT = "text/plain; charset=UTF-8"
PLAIN = "text/plain"
JSON = "application/json"
HTML = "text/html; charset=UTF-8"
FORM = "application/x-www-form-urlencoded"
MAX_PARAMETERS = 100

_ENCODED_UNRESERVED = re.compile(r"%(?:2[DdEe]|3\d|4[1-9A-Fa-f]|5[0-9AaFf]|6[1-9A-Fa-f]|7[0-9AaEe])")


@dataclass(frozen=True, slots=True)
class Request:
    """A request whose path is normalised and whose parameters are decoded, those of a posted form included."""

    method: str
    path: str
    parameters: tuple[tuple[str, str], ...] = ()

    def get(self, name: str) -> str | None:
        """The first value of a parameter; ``""`` when it has none, None when it is absent."""
        for key, value in self.parameters:
            if key == name:
                return value
        return None

    def has(self, name: str) -> bool:
        """Whether a parameter is there, with a value or without (``?graceful``)."""
        return self.get(name) is not None


@dataclass(frozen=True, slots=True)
class Response:
    """Status, whole body and its type."""

    status: int
    body: str
    content_type: str = TEXT


def ok() -> Response:
    """What a command that did its work answers."""
    return Response(200, "OK\n")


def bad_request(text: str) -> Response:
    """400 with a text that says what was expected."""
    return Response(400, text)


def as_json(document: Any) -> Response:
    """A document as Envoy prints messages: indented by one space."""
    return Response(200, json.dumps(document, indent=1, ensure_ascii=False) + "\n", JSON)


def parse(method: str, target: str, form: str = "") -> Request:
    """Make a request of a request target (origin form) and the body of a posted form, which counts without a query."""
    path, _, query = target.partition("#")[0].partition("?")
    return Request(method, normalise(path), tuple(parameters(query) or parameters(form))[:MAX_PARAMETERS])


def parameters(query: str) -> list[tuple[str, str]]:
    """``a=1&b`` as pairs, percent-decoded; ``+`` stays what it is, as in Envoy (it is common in regexes)."""
    pairs = []
    for part in query.split("&", MAX_PARAMETERS):
        if part:
            name, _, value = part.partition("=")
            pairs.append((unquote(name), unquote(value)))
    return pairs


def normalise(path: str) -> str:
    """Decode unreserved characters, merge slashes, resolve ``.`` and ``..`` (RFC 3986 section 6.2.2)."""
    path = _ENCODED_UNRESERVED.sub(lambda match: unquote(match[0]), path)
    segments: list[str] = []
    for segment in path.split("/"):
        if segment == "..":
            del segments[-1:]
        elif segment not in ("", "."):
            segments.append(segment)
    slash = "/" if segments and path.endswith(("/", "/.", "/..")) else ""
    return "/" + "/".join(segments) + slash
