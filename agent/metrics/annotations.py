"""ISTIO_PROMETHEUS_ANNOTATIONS: where the application has its metrics."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from agent.errors import ConfigError

VARIABLE = "ISTIO_PROMETHEUS_ANNOTATIONS"
MAX_TARGETS = 32
_MAX_DOCUMENT = 256 * 1024
_PORT = "80"
_PATH = "/metrics"
# Ports of this container: a page that includes itself, or the proxy's page twice, or a port that speaks no HTTP.
_OWN_PORTS = (15000, 15001, 15004, 15006, 15008, 15020, 15021, 15053, 15090)
_TARGET = re.compile(r"[!-~]*")


@dataclass(frozen=True, slots=True)
class Target:
    port: int
    path: str  # begins with a slash; may have a query


def parse_targets(text: str | None, status_port: int) -> tuple[Target, ...]:
    """The application's metric pages; none without the variable, or with scrape "false".

    Raises ConfigError naming the field, for a port of this container too: the page would include itself.
    """
    if text is None or not text.strip():
        return ()
    if len(text) > _MAX_DOCUMENT:
        raise ConfigError(f"{VARIABLE} has more than {_MAX_DOCUMENT} characters")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{VARIABLE} is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{VARIABLE}: expected an object")
    fields = {str(name).lower(): value for name, value in document.items()}
    if _string(fields, "scrape", VARIABLE) == "false":
        return ()
    entries = fields.get("targets")
    if entries is not None and not isinstance(entries, list):
        raise ConfigError(f"{VARIABLE}.targets: expected a list")
    if entries and len(entries) > MAX_TARGETS:
        raise ConfigError(f"{VARIABLE}.targets: expected at most {MAX_TARGETS}, not {len(entries)}")
    reserved = {*_OWN_PORTS, status_port}
    if not entries:
        return (_target(fields, VARIABLE, reserved),)
    targets = []
    for index, entry in enumerate(entries):
        where = f"{VARIABLE}.targets[{index}]"
        if not isinstance(entry, dict):
            raise ConfigError(f"{where}: expected an object")
        targets.append(_target({str(name).lower(): value for name, value in entry.items()}, where, reserved))
    return tuple(dict.fromkeys(targets))


def _target(fields: Mapping[str, Any], where: str, reserved: Iterable[int]) -> Target:
    text = _string(fields, "port", where) or _PORT
    port = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
    if not 1 <= port <= 65535:
        raise ConfigError(f"{where}.port: expected a port from 1 to 65535, not {text[:80]!r}")
    if port in reserved:
        raise ConfigError(f"{where}.port: {port} is a port of the proxy itself; name the application's port")
    path = _string(fields, "path", where) or _PATH
    if not _TARGET.fullmatch(path):
        raise ConfigError(f"{where}.path: expected printable ASCII without blanks, not {path[:80]!r}")
    path = path.partition("#")[0]
    return Target(port, path if path.startswith("/") else f"/{path}")


def _string(fields: Mapping[str, Any], name: str, where: str) -> str:
    """A string; a number or a boolean is taken as it would be written, since YAML likes to make those of strings."""
    value = fields.get(name)
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if not isinstance(value, str):
        raise ConfigError(f"{where}.{name}: expected a string")
    return value
