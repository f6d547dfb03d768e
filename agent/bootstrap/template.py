"""Bootstrap templates of the operator: a JSON file in which `${path}` stands for a value.

`path` is dotted and starts at `bootstrap` (what would be written without a template) or `config` (ProxyConfig).
`"${bootstrap.node}"` as a whole string becomes that value, whatever its type; within a longer string a text or number
is put in. In a list, `"${...bootstrap.static_resources.clusters}"` stands for all elements of a list. `$$` is a `$`.

Go templates, which the real program takes here, are refused: nothing of ours evaluates them.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from agent.documents import DocumentError, read_text
from agent.errors import ConfigError, reason

Json = Any

# The template of the real image. Where no such file exists, its name stands for the built-in bootstrap.
STANDARD = ("/var/lib/istio/envoy/envoy_bootstrap_tmpl.json", "./var/lib/istio/envoy/envoy_bootstrap_tmpl.json")
_REFERENCE = re.compile(r"\$\$|\$\{(?P<spread>\.\.\.)?(?P<path>[A-Za-z0-9_.@-]+)\}|\$\{")
_GO = re.compile(r"\{\{-?\s*(\.[A-Za-z_]|\$|(if|else|end|range|with|define|template|block|toJSON)\b)")  # Lua has {{ too
_MAX_DEPTH = 100


def apply(path: str, values: Mapping[str, Json]) -> dict[str, Json]:
    """The template with its references resolved.

    Raises ConfigError naming the file and the reference, FileNotFoundError when there is no such file.
    """
    try:
        text = read_text(path)
    except FileNotFoundError:
        raise
    except (OSError, DocumentError) as error:
        raise ConfigError(f"bootstrap template {path!r} cannot be used: {reason(error)}") from None
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        _refuse_go(path, text)
        raise ConfigError(f"bootstrap template {path!r} is not JSON: {error}") from None
    _refuse_go(path, text)  # a simple one may be JSON, with its expressions in strings
    if not isinstance(document, dict):
        raise ConfigError(f"bootstrap template {path!r}: expected a JSON object")
    try:
        made = _fill(document, values, 0)
    except ValueError as error:
        raise ConfigError(f"bootstrap template {path!r}: {error}") from None
    assert isinstance(made, dict)
    return made


def _refuse_go(path: str, text: str) -> None:
    found = _GO.search(text)
    if found:
        shown = text[found.start() : found.start() + 32]
        raise ConfigError(
            f"bootstrap template {path!r} is a Go template ({shown!r}), which is not supported: write it as JSON with "
            "${path} references, or set ProxyConfig customConfigFile to a finished configuration"
        ) from None


def _fill(value: Json, values: Mapping[str, Json], depth: int) -> Json:
    if depth > _MAX_DEPTH:
        raise ValueError("nested too deeply")
    if isinstance(value, dict):
        return {name: _fill(each, values, depth + 1) for name, each in value.items()}
    if isinstance(value, list):
        filled: list[Json] = []
        for each in value:
            match = _REFERENCE.fullmatch(each) if isinstance(each, str) else None
            if match and match["spread"]:
                items = _look_up(match["path"], values)
                if not isinstance(items, list):
                    raise ValueError(f"{match[0]}: not a list")
                filled += items
            else:
                filled.append(_fill(each, values, depth + 1))
        return filled
    return _fill_text(value, values) if isinstance(value, str) else value


def _fill_text(text: str, values: Mapping[str, Json]) -> Json:
    whole = _REFERENCE.fullmatch(text)
    if whole and whole["path"] and not whole["spread"]:
        return _look_up(whole["path"], values)

    def put_in(match: "re.Match[str]") -> str:
        if match[0] == "$$":
            return "$"
        if match["path"] is None or match["spread"]:
            raise ValueError(f"{text[:128]!r}: expected ${{path}}, or ${{...path}} as an element of a list")
        value = _look_up(match["path"], values)
        if isinstance(value, dict | list):
            raise ValueError(f"{match[0]} is no text: it can only be a string of its own")
        return value if isinstance(value, str) else json.dumps(value)

    return _REFERENCE.sub(put_in, text)


def _look_up(path: str, values: Mapping[str, Json]) -> Json:
    at: Json = values
    for part in path.split("."):
        if isinstance(at, Mapping) and part in at:
            at = at[part]
        elif isinstance(at, list) and part.isdigit() and int(part) < len(at):
            at = at[int(part)]
        else:
            raise ValueError(f"${{{path}}}: there is no {part[:64]!r}")
    return at
