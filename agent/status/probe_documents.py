"""Kubernetes probes as data: httpGet, tcpSocket, grpc and exec, and ISTIO_KUBE_APP_PROBERS, which is full of them.

Field names are matched whatever their case, as Go's JSON decoder does (the injector writes `gRPC` and `grpc`). Unknown
fields are passed over: the injector copies whole Kubernetes probes.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agent.errors import ConfigError

VARIABLE = "ISTIO_KUBE_APP_PROBERS"
_MAX_DOCUMENT = 1024 * 1024
_MAX_PROBES = 1000
_MAX_TIMEOUT_S = 24 * 3600

_PATH = re.compile(r"/app-(?:health|lifecycle)/[^/]+/(?:livez|readyz|startupz|prestopz|poststartz)")
_PATH_FORM = (
    "/app-health/<container>/<x> or /app-lifecycle/<container>/<x> with x one of livez, readyz, startupz, prestopz, "
    "poststartz"
)
_TARGET = re.compile(r"[!-~]*")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\t -~\x80-\xff]*")


@dataclass(frozen=True, slots=True)
class HttpGet:
    port: int
    path: str  # begins with a slash; may have a query
    tls: bool
    host: str = ""
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class TcpSocket:
    port: int
    host: str = ""


@dataclass(frozen=True, slots=True)
class Grpc:
    port: int
    service: str


@dataclass(frozen=True, slots=True)
class Exec:
    command: tuple[str, ...]


Action = HttpGet | TcpSocket | Grpc | Exec


@dataclass(frozen=True, slots=True)
class AppProbe:
    """One entry of ISTIO_KUBE_APP_PROBERS."""

    action: HttpGet | TcpSocket | Grpc
    timeout_s: float  # 0 = no limit


def parse_app_probers(text: str) -> dict[str, AppProbe]:
    """Path on the status port -> probe. Raises ConfigError naming the entry and what was expected."""
    if not text.strip():
        return {}
    if len(text) > _MAX_DOCUMENT:
        raise ConfigError(f"{VARIABLE} has more than {_MAX_DOCUMENT} characters")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{VARIABLE} is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{VARIABLE}: expected an object that maps paths to probes, not {_shown(document)}")
    if len(document) > _MAX_PROBES:
        raise ConfigError(f"{VARIABLE} has more than {_MAX_PROBES} probes")
    return {path: _app_probe(path, entry) for path, entry in document.items()}


def _app_probe(path: str, entry: object) -> AppProbe:
    where = f"{VARIABLE}: {path[:200]!r}"
    if not _PATH.fullmatch(path):
        raise ConfigError(f"{where}: expected a path of the form {_PATH_FORM}")
    fields = object_fields(entry, where)
    action = parse_action(fields, where, ("httpGet", "tcpSocket", "grpc"))
    assert not isinstance(action, Exec)
    timeout_s = number(fields, "timeoutSeconds", where, 0, 0, _MAX_TIMEOUT_S)
    return AppProbe(action, timeout_s)


def parse_action(fields: Mapping[str, Any], where: str, allowed: tuple[str, ...]) -> Action:
    """The one action among `fields` (names in lower case). Raises ConfigError."""
    present = [name for name in allowed if fields.get(name.lower()) is not None]
    if len(present) != 1:
        found = f"found {' and '.join(present)}" if present else "found none"
        raise ConfigError(f"{where}: expected exactly one of {', '.join(allowed)}; {found}")
    name = present[0]
    where = f"{where}.{name}"
    action = object_fields(fields[name.lower()], where)
    if name == "exec":
        return Exec(_command(action.get("command"), f"{where}.command"))
    port = number(action, "port", where, None, 1, 65535)
    if name == "grpc":
        return Grpc(port, string(action, "service", where))
    host = string(action, "host", where)
    if name == "tcpSocket":
        return TcpSocket(port, host)
    scheme = string(action, "scheme", where).upper() or "HTTP"
    if scheme not in ("HTTP", "HTTPS"):
        raise ConfigError(f"{where}.scheme: expected HTTP or HTTPS, not {_shown(scheme)}")
    path = string(action, "path", where)
    if not _TARGET.fullmatch(path):
        raise ConfigError(f"{where}.path: expected printable ASCII without blanks, not {_shown(path)}")
    path = path.partition("#")[0]
    path = path if path.startswith("/") else f"/{path}"
    return HttpGet(port, path, scheme == "HTTPS", host, _headers(action.get("httpheaders"), f"{where}.httpHeaders"))


def object_fields(value: object, where: str) -> dict[str, Any]:
    """The fields of a JSON object by lower-case name. Raises ConfigError."""
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: expected an object, not {_shown(value)}")
    return {str(name).lower(): field for name, field in value.items()}


def number(fields: Mapping[str, Any], name: str, where: str, default: int | None, low: int, high: int) -> int:
    """A whole number between `low` and `high`. Raises ConfigError; also when it is absent and has no default."""
    value = fields.get(name.lower())
    if value is None and default is not None:
        return default
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ConfigError(f"{where}.{name}: expected a number from {low} to {high}, not {_shown(value)}")
    return value


def string(fields: Mapping[str, Any], name: str, where: str) -> str:
    """A string, "" when absent or null. Raises ConfigError."""
    value = fields.get(name.lower())
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ConfigError(f"{where}.{name}: expected a string, not {_shown(value)}")
    return value


def _headers(value: object, where: str) -> tuple[tuple[str, str], ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > 100:
        raise ConfigError(f"{where}: expected a list of at most 100 headers, not {_shown(value)}")
    headers = []
    for index, entry in enumerate(value):
        fields = object_fields(entry, f"{where}[{index}]")
        name, content = (string(fields, key, f"{where}[{index}]") for key in ("name", "value"))
        if not _HEADER_NAME.fullmatch(name):
            raise ConfigError(f"{where}[{index}].name: expected a header name, not {_shown(name)}")
        if not _HEADER_VALUE.fullmatch(content):
            raise ConfigError(f"{where}[{index}].value: expected a header value, not {_shown(content)}")
        headers.append((name, content.strip()))
    return tuple(headers)


def _command(value: object, where: str) -> tuple[str, ...]:
    words = tuple(value) if isinstance(value, list) else ()
    if not words or not all(isinstance(word, str) and "\0" not in word for word in words):
        raise ConfigError(f"{where}: expected a list of strings, not {_shown(value)}")
    return words


def _shown(value: object) -> str:
    text = "nothing" if value is None else json.dumps(value, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."
