"""Checks a parsed document against the message types, so that everything wrong with it is found at once.

json_format stops at the first error, and takes some values for others (``[]`` for a message, ``true`` for an enum).
What is wrong is reported with its path and left out, so that the rest can still be parsed, compiled and checked.
"""

from __future__ import annotations

import base64
import binascii
import difflib
import math
import re
from collections.abc import Callable
from functools import cache
from typing import Any

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from proxy.config.errors import ConfigError
from proxy.config.extensions import REGISTRIES
from proxy.config.messages import ANY, TYPED_STRUCTS, find_descriptor, new_message, type_name
from proxy.config.rules import WRAPPERS

MAX_DEPTH = 100
"""json_format's own limit."""

_DURATION = re.compile(r"-?\d{1,12}(?:\.\d{1,9})?s", re.ASCII)
_DECIMAL = re.compile(r"[-+]?\d{1,20}(?:\.\d{1,20})?(?:[eE][-+]?\d{1,2})?", re.ASCII)
_MAX_DURATION_S = 315_576_000_000
_RANGES = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}


PARSE_ERRORS = (json_format.ParseError, ValueError, TypeError, AttributeError, KeyError)
"""What json_format raises for documents that do not fit."""


class Invalid(Exception):
    """A value that does not fit its field; the text says why."""


def import_types(document: Any) -> None:
    """Import the modules of all types that a document names, which json_format does not do."""
    todo = [document]
    while todo:
        value = todo.pop()
        if isinstance(value, dict):
            todo.extend(value.values())
            for key in ("@type", "type_url", "typeUrl"):
                name = value.get(key)
                if isinstance(name, str):
                    find_descriptor(type_name(name))
        elif isinstance(value, list):
            todo.extend(value)


class Checker:
    """Walks one document. ``errors`` has what is wrong, ``warnings`` unknown names that may pass."""

    def __init__(self, allow_unknown_fields: bool = False) -> None:
        self.allow_unknown_fields = allow_unknown_fields
        self.errors: list[ConfigError] = []
        self.warnings: list[str] = []
        self._depth = 0

    def message(self, value: Any, descriptor: Descriptor, path: str) -> dict[str, Any]:
        """The document of a message without what is wrong in it. Raises Invalid when it is no message at all."""
        if not isinstance(value, dict):
            raise Invalid(f"{_shown(value)} is not a mapping of the fields of {descriptor.full_name}")
        if self._depth >= MAX_DEPTH:
            raise Invalid(f"nested more than {MAX_DEPTH} deep")
        self._depth += 1
        try:
            return self._fields(value, descriptor, path)
        finally:
            self._depth -= 1

    def _fields(self, value: dict[str, Any], descriptor: Descriptor, path: str) -> dict[str, Any]:
        fields = _fields_by_name(descriptor)
        result: dict[str, Any] = {}
        oneofs: dict[str, str] = {}
        for name, inner in value.items():
            field = fields.get(name)
            if field is None:
                self._unknown(name, descriptor, path)
                continue
            at = f"{path}.{field.name}" if path else field.name
            if field.name in result:
                self.errors.append(ConfigError(at, "is given twice, as snake_case and as camelCase"))
                continue
            oneof = field.containing_oneof
            if inner is not None and oneof is not None and len(oneof.fields) > 1:
                other = oneofs.setdefault(oneof.name, field.name)
                if other != field.name:
                    self.errors.append(ConfigError(at, f"cannot be set together with {other}: only one of "
                                                       f"{', '.join(f.name for f in oneof.fields)} may be set"))
                    continue
            try:
                result[field.name] = None if inner is None else self._field(inner, field, at)
            except Invalid as error:
                self.errors.append(ConfigError(at, str(error)))
        return result

    def _unknown(self, name: str, descriptor: Descriptor, path: str) -> None:
        at = f"{path}.{name}" if path else name
        if self.allow_unknown_fields:
            self.warnings.append(f"{at}: unknown field of {descriptor.full_name}, ignored")
            return
        close = difflib.get_close_matches(name, [f.name for f in descriptor.fields], 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        self.errors.append(ConfigError(at, f"no such field in {descriptor.full_name}{hint}"))

    def _field(self, value: Any, field: FieldDescriptor, path: str) -> Any:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            return self._map(value, field.message_type, path)
        if not field.is_repeated:
            return self._single(value, field, path)
        if not isinstance(value, list):
            raise Invalid(f"{_shown(value)} is not a list")
        kept = []
        for index, item in enumerate(value):
            try:
                if item is None:
                    raise Invalid("null is not allowed in a list")
                kept.append(self._single(item, field, f"{path}[{index}]"))
            except Invalid as error:
                self.errors.append(ConfigError(f"{path}[{index}]", str(error)))
        return kept

    def _map(self, value: Any, entry: Descriptor, path: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise Invalid(f"{_shown(value)} is not a mapping")
        field = entry.fields_by_name["value"]
        result = {}
        for key, inner in value.items():
            at = f"{path}[{key}]"
            try:
                result[key] = self._single(inner, field, at)
            except Invalid as error:
                self.errors.append(ConfigError(at, str(error)))
        return result

    def _single(self, value: Any, field: FieldDescriptor, path: str) -> Any:
        descriptor = field.message_type
        if descriptor is None:
            return _scalar(value, field)
        name = descriptor.full_name
        if name == ANY:
            return self._any(value, field, path)
        if name in WRAPPERS:
            return _scalar(value, descriptor.fields_by_name["value"])
        if name == "google.protobuf.Duration":
            return _duration(value)
        if name.startswith("google.protobuf."):
            _try(lambda: json_format.ParseDict(value, new_message(descriptor)))
            return value
        return self.message(value, descriptor, path)

    def _any(self, value: Any, field: FieldDescriptor, path: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise Invalid(f"{_shown(value)} is not a mapping with @type")
        if not value:
            return value
        url = value.get("@type")
        if not isinstance(url, str) or not type_name(url):
            raise Invalid(f"@type is missing{_known(field)}")
        descriptor = find_descriptor(type_name(url))
        if descriptor is None:
            raise Invalid(f"could not find @type {url!r}{_known(field)}")
        rest = {key: inner for key, inner in value.items() if key != "@type"}
        if descriptor.full_name in TYPED_STRUCTS:
            return {"@type": url, **self._typed_struct(rest, descriptor, path)}
        if descriptor.full_name.startswith("google.protobuf."):
            _try(lambda: json_format.ParseDict(value, _any_message()))
            return value
        return {"@type": url, **self.message(rest, descriptor, path)}

    def _typed_struct(self, value: dict[str, Any], descriptor: Descriptor, path: str) -> dict[str, Any]:
        """A TypedStruct whose value fits the type that it names."""
        result = self.message(value, descriptor, path)
        inner = find_descriptor(type_name(str(result.get("type_url", ""))))
        if inner is None:
            raise Invalid(f"could not find type_url {result.get('type_url')!r}")
        if isinstance(result.get("value"), dict):
            result["value"] = self.message(result["value"], inner, f"{path}.value")
        return result


@cache
def _fields_by_name(descriptor: Descriptor) -> dict[str, FieldDescriptor]:
    fields: dict[str, Any] = {field.json_name: field for field in descriptor.fields}
    fields.update((field.name, field) for field in descriptor.fields)
    return fields


def _known(field: FieldDescriptor) -> str:
    registry = REGISTRIES.get(field.full_name)
    return "" if registry is None else f"; supported {registry.plural}: {registry.known}"


def _any_message() -> Message:
    descriptor = find_descriptor(ANY)
    assert descriptor is not None
    return new_message(descriptor)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _try(parse: Callable[[], object]) -> None:
    try:
        parse()
    except KeyError as error:  # json_format looks for the "value" of a packed Duration or Struct
        raise Invalid(f"{error} is missing") from None
    except PARSE_ERRORS as error:
        raise Invalid(str(error)) from None


# --- scalars --------------------------------------------------------------------------------------------------------


def _scalar(value: Any, field: FieldDescriptor) -> Any:
    kind = field.cpp_type
    if kind in _RANGES:
        return _integer(value, *_RANGES[kind])
    if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return _number(value)
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        if not isinstance(value, bool):
            raise Invalid(f"{_shown(value)} is not true or false")
        return value
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        assert field.enum_type is not None
        return _enum(value, field.enum_type)
    if not isinstance(value, str):
        raise Invalid(f"{_shown(value)} is not a string")
    if field.type == FieldDescriptor.TYPE_BYTES:
        return _base64(value)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Invalid(f"{_shown(value)} is not valid Unicode") from None
    return value


def _integer(value: Any, low: int, high: int) -> Any:
    number: int | None = None
    if isinstance(value, float) and value.is_integer():
        number = int(value)
    elif isinstance(value, int) and not isinstance(value, bool):
        number = value
    elif isinstance(value, str) and re.fullmatch(r"[-+]?\d{1,20}", value, re.ASCII):
        number = int(value)
    elif isinstance(value, str) and _DECIMAL.fullmatch(value) and float(value).is_integer():
        number = int(float(value))  # YAML's 1000.0 and 1e3 come as strings
    if number is None:
        raise Invalid(f"{_shown(value)} is not an integer")
    if not low <= number <= high:
        raise Invalid(f"{number} is out of range: {low} to {high}")
    return number


def _number(value: Any) -> Any:
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError
        if value not in ("NaN", "Infinity", "-Infinity") and not math.isfinite(float(value)):
            raise ValueError
    except (ValueError, OverflowError):
        raise Invalid(f"{_shown(value)} is not a number") from None
    return value


def _enum(value: Any, enum: EnumDescriptor) -> Any:
    known = ", ".join(v.name for v in enum.values)
    if isinstance(value, int) and not isinstance(value, bool):
        if value not in enum.values_by_number:
            raise Invalid(f"{value} is not one of {known}")
        return value
    if not isinstance(value, str) or value not in enum.values_by_name:
        raise Invalid(f"{_shown(value)} is not one of {known}")
    return value


def _duration(value: Any) -> Any:
    if not isinstance(value, str) or not _DURATION.fullmatch(value):
        raise Invalid(f"{_shown(value)} is not a duration such as '5s' or '0.25s'")
    if abs(float(value[:-1])) > _MAX_DURATION_S:
        raise Invalid(f"{value} is out of range")
    return value


def _base64(value: str) -> str:
    try:
        base64.b64decode(value.replace("-", "+").replace("_", "/") + "=" * (-len(value) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise Invalid(f"{_shown(value)} is not base64") from None
    return value
