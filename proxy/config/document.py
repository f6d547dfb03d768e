"""Text of a configuration file -> plain Python values."""

from __future__ import annotations

import json
from typing import Any

from proxy.config.errors import ConfigError, ConfigErrors


def _fail(message: str) -> ConfigErrors:
    return ConfigErrors([ConfigError("", message)])


def parse_json(text: str) -> Any:
    """The value of a JSON text. Raises ConfigErrors for bad syntax, duplicate keys, NaN and Infinity."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise _fail(f"JSON: duplicate key {twice!r}")
        return result

    def refuse(constant: str) -> Any:
        raise _fail(f"JSON: {constant} is not a JSON value")

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise _fail(f"JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise _fail("JSON: nested too deep") from None


def parse_yaml(text: str) -> Any:
    """As proxy.config.yaml_document, which takes long to import and is not needed for JSON."""
    from proxy.config import yaml_document

    return yaml_document.parse_yaml(text)


def as_object(value: Any, what: str) -> dict[str, Any]:
    """``value`` if it is a mapping; an empty document is an empty one. Raises ConfigErrors that name ``what``."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _fail(f"{what}: the document must be a mapping of field names, not {type(value).__name__}")
    return value
