"""YAML and JSON documents that configure a pod, read with bounds.

The difference from a plain YAML loader: duplicate keys are refused, and dates stay the strings that they were.
"""

import json
import os
import re
import stat
from collections.abc import Hashable
from typing import Any, NoReturn

MAX_BYTES = 16 * 1024 * 1024  # no configuration of one sidecar comes near; keeps a wrong path from filling memory

_SHORT = 80
MAX_DEPTH = 100  # protobuf's own limit

# The group: a lone surrogate as JSON escapes it, which no reader of UTF-8 takes. What comes before is no such thing.
_SURROGATE = re.compile(r"\\\\|\\ud[89ab][0-9a-f]{2}\\ud[c-f][0-9a-f]{2}|(\\ud[89a-f][0-9a-f]{2})")


class DocumentError(ValueError):
    """The text is not one readable YAML or JSON document."""


def read_text(path: str, limit: int = MAX_BYTES) -> str:
    """The file as text.

    Raises OSError as `open` does, DocumentError when it is no regular file, too large or not UTF-8.
    """
    try:
        # Non-blocking, so that a FIFO in place of a file is an error and not a hang.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except ValueError:
        raise DocumentError("no file can have such a name") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DocumentError("not a regular file")
    with open(descriptor, "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise DocumentError(f"larger than {limit} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise DocumentError(f"not UTF-8 text (byte {error.start})") from None


def parse(text: str) -> Any:
    """The document as plain dicts, lists and scalars; None when it is empty. Raises DocumentError."""
    if not text.strip():
        return None  # not worth PyYAML's import
    try:
        # JSON is YAML too, but what injectors write is JSON and its own parser is fifty times faster.
        if text.lstrip()[:1] == "{":
            try:
                return json.loads(text, object_pairs_hook=_unique, parse_constant=no_constant)
            except json.JSONDecodeError:
                pass  # perhaps YAML in flow style
            except DocumentError:
                raise
            except ValueError:
                raise DocumentError("a number with too many digits") from None
        return _parse_yaml(text)
    except RecursionError:
        raise DocumentError("nested too deeply") from None


def parse_mapping(text: str) -> dict[str, Any]:
    """Like `parse` for a document that must be a mapping with string keys; an empty document is an empty one."""
    document = parse(text)
    if document is None:
        return {}
    if not isinstance(document, dict) or not all(isinstance(key, str) for key in document):
        raise DocumentError(f"expected a mapping of field names to values, not {describe(document)}")
    return document


def describe(value: Any) -> str:
    """A short rendering of a value for an error message."""
    try:
        return to_json(value, _SHORT)
    except DocumentError:
        return (
            f"{to_json(value[: _SHORT // 2], 6 * _SHORT)}..." if isinstance(value, str) else f"a {type(value).__name__}"
        )


def to_json(document: Any, limit: int) -> str:
    """Compact JSON in ASCII; what is no character (a stray byte of an environment variable) becomes U+FFFD.

    Raises DocumentError beyond `limit` characters (aliases can make a small YAML file huge).
    """
    parts: list[str] = []
    size = 0
    try:
        for part in json.JSONEncoder(separators=(",", ":"), allow_nan=False).iterencode(document):
            if "\\ud" in part:
                part = _SURROGATE.sub(lambda match: "\\ufffd" if match[1] else match[0], part)
            size += len(part)
            if size > limit:
                raise DocumentError(f"larger than {limit} characters as JSON")
            parts.append(part)
    except RecursionError:
        raise DocumentError("nested too deeply") from None
    except (TypeError, ValueError) as error:
        raise DocumentError(f"cannot be written as JSON: {error}") from None
    return "".join(parts)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        names = [name for name, _ in pairs]
        raise DocumentError(f"duplicate key {max(names, key=names.count)!r}")
    return mapping


def no_constant(name: str) -> NoReturn:
    """For `json.loads(parse_constant=...)`: NaN and Infinity are refused. Raises DocumentError."""
    raise DocumentError(f"{name} is not a JSON value")


def _parse_yaml(text: str) -> Any:
    import yaml

    global _loader
    if _loader is None:
        _loader = _make_loader()
    try:
        return yaml.load(text, Loader=_loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise DocumentError(f"{error.problem or error.context or 'malformed YAML'}{where}") from None
    except DocumentError:
        raise
    except yaml.YAMLError as error:
        raise DocumentError(f"malformed YAML: {str(error).splitlines()[0]}") from None
    except UnicodeEncodeError:
        raise DocumentError("not UTF-8 text") from None
    except (ValueError, TypeError, AttributeError, LookupError):
        # PyYAML's constructors trust a tag that stands there in so many words (`!!bool x`), and a number's digits.
        raise DocumentError(
            "malformed YAML: a value that does not fit its tag, or a number with too many digits"
        ) from None


_loader: Any = None


def _make_loader() -> Any:
    """A safe loader (the C one where PyYAML has it) without timestamps and with unique keys.

    Made on first use, because importing PyYAML costs more than everything else on the way to a JSON PROXY_CONFIG.
    """
    import yaml

    base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    class Loader(base):  # type: ignore[misc]
        # Both loaders call these two around every node. The C loader recurses without any limit of its own: a file of
        # 100,000 brackets would otherwise end the process with a segmentation fault.
        depth = 0

        def descend_resolver(self, parent: Any, index: Any) -> None:
            self.depth += 1
            if self.depth > MAX_DEPTH:
                raise DocumentError(f"nested too deeply (more than {MAX_DEPTH} levels)")

        def ascend_resolver(self) -> None:
            self.depth -= 1

    def mapping(loader: Any, node: Any) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge" and isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        "while reading a mapping", node.start_mark, f"duplicate key {key.value!r}", key.start_mark
                    )
                seen.add(key.value)
        loader.flatten_mapping(node)
        made: dict[Hashable, Any] = loader.construct_mapping(node, deep=True)
        return made

    Loader.add_constructor("tag:yaml.org,2002:map", mapping)
    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in base.yaml_implicit_resolvers.items()
    }
    return Loader
