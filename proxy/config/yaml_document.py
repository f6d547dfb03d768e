"""YAML -> plain Python values, by Envoy's reading.

Scalars follow Envoy (yaml-cpp), which differs from PyYAML's YAML 1.1: ``y``, ``n``, ``on`` and ``off`` are booleans,
``0x10`` and ``010`` are integers, but dates, ``1:30``, ``1_000`` and floating-point numbers stay strings (the
conversion to messages accepts numbers as strings). Merge keys (``<<``) are not known; a key with the tag ``!ignore`` is
dropped, so that anchors can be defined somewhere.
"""

from __future__ import annotations

import re
from typing import Any

import yaml
from yaml.nodes import Node, ScalarNode, SequenceNode

from proxy.config.errors import ConfigError, ConfigErrors

MAX_DEPTH = 100
"""Nesting of one document; json_format's own limit for messages."""
MAX_NODES = 5_000_000
"""Values of one document after its aliases were expanded: a few lines of YAML aliases can stand for billions."""

_TRUE = frozenset(form for word in ("y", "yes", "true", "on") for form in (word, word.upper(), word.capitalize()))
_FALSE = frozenset(form for word in ("n", "no", "false", "off") for form in (word, word.upper(), word.capitalize()))
_NULL = frozenset(("", "~", "null", "Null", "NULL"))
_INTEGER = re.compile(r"[-+]?(?:0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)")
_BASE: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_BASE):  # type: ignore[misc]
    """Bounds the nesting while nodes are composed: the C loader recurses without a limit, down to a crash."""

    depth = 0

    def descend_resolver(self, parent: Any, index: Any) -> None:
        # Called before each node; resolvers by path, which it is meant for, are not used.
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _fail(f"YAML: nested more than {MAX_DEPTH} deep")

    def ascend_resolver(self) -> None:
        self.depth -= 1


def _fail(message: str) -> ConfigErrors:
    return ConfigErrors([ConfigError("", message)])


def parse_yaml(text: str) -> Any:
    """The value of a YAML text with one document. Raises ConfigErrors for bad syntax, duplicate keys and recursion."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        where = f" at {_place(error.problem_mark)}" if error.problem_mark else ""
        raise _fail(f"YAML: {error.problem or error.context}{where}") from None
    except yaml.YAMLError as error:
        raise _fail(f"YAML: {error}") from None
    finally:
        loader.dispose()
    return None if node is None else _Values().of(node, 0)


def _place(mark: Any) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}"


class _Values:
    """Turns composed YAML nodes into values and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def of(self, node: Node, depth: int) -> Any:
        self.count += 1
        if depth > MAX_DEPTH:
            raise _fail(f"YAML: nested more than {MAX_DEPTH} deep at {_place(node.start_mark)}")
        if self.count > MAX_NODES:
            raise _fail(f"YAML: more than {MAX_NODES} values once aliases are expanded")
        if isinstance(node, ScalarNode):
            return _scalar(node)
        if isinstance(node, SequenceNode):
            return [self.of(item, depth + 1) for item in node.value]
        return self.mapping(node, depth)

    def mapping(self, node: Any, depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, ScalarNode):
                raise _fail(f"YAML: a key must be a scalar at {_place(key.start_mark)}")
            if key.tag == "!ignore":
                continue
            if key.value in result:
                raise _fail(f"YAML: duplicate key {key.value!r} at {_place(key.start_mark)}")
            result[key.value] = self.of(value, depth + 1)
        return result


def _scalar(node: ScalarNode) -> Any:
    text: str = node.value
    if node.style:  # quoted, literal or folded
        return text
    if text in _NULL:
        return None
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    if _INTEGER.fullmatch(text):
        sign = -1 if text[0] == "-" else 1
        digits = text.lstrip("+-")
        if digits[:2] in ("0x", "0X"):
            return sign * int(digits, 16)
        return sign * int(digits, 8 if digits[0] == "0" else 10)
    return text
