"""The constraints that Envoy's API declares on its fields (protoc-gen-validate), read from the descriptors.

Envoy checks them with generated C++; Python's messages carry them as field options only. What is read here is compiled
once per message type into a ``Plan``, which the reader of every message of that type uses.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from validate import validate_pb2

Check = Callable[[Any], str | None]
"""Gets the value of a field (the number inside a wrapper); says what is wrong with it."""

_RULES = validate_pb2.rules
_REQUIRED = validate_pb2.required

# The regular expressions of protoc-gen-validate for well_known_regex.
_HEADER_STRICT = {
    "HTTP_HEADER_NAME": re.compile(r":?[0-9a-zA-Z!#$%&'*+\-.^_|~`]+"),
    "HTTP_HEADER_VALUE": re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*"),
}
_HEADER_LOOSE = re.compile(r"[^\x00\n\r]*")

WRAPPERS = frozenset(
    f"google.protobuf.{kind}Value"
    for kind in ("Bool", "Bytes", "Double", "Float", "Int32", "Int64", "String", "UInt32", "UInt64")
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is known of a message type before any message is read."""

    full_name: str
    names: frozenset[str]
    """All fields."""
    checks: dict[str, Check]
    """Checks of fields that are set."""
    missing: tuple[tuple[str, str], ...]
    """(field, error) for fields that must not be left out or empty."""
    oneofs: tuple[tuple[str, tuple[str, ...]], ...]
    """(oneof, its fields) where one of them has to be set."""


@cache
def plan_of(descriptor: Descriptor) -> Plan:
    """The plan of a message type."""
    checks: dict[str, Check] = {}
    missing: list[tuple[str, str]] = []
    for field in descriptor.fields:
        rules = _rules_of(field)
        if rules is None:
            continue
        check = _check_of(field, rules)
        if check is not None:
            checks[field.name] = check
        if (problem := _when_missing(field, rules, check)) is not None:
            missing.append((field.name, problem))
    oneofs = tuple(
        (oneof.name, tuple(field.name for field in oneof.fields))
        for oneof in descriptor.oneofs
        if oneof.GetOptions().Extensions[_REQUIRED]
    )
    names = frozenset(field.name for field in descriptor.fields)
    return Plan(descriptor.full_name, names, checks, tuple(missing), oneofs)


def violations(message: Message, path: str) -> Iterable[tuple[str, str]]:
    """(path, error) for every constraint that a message breaks, with all messages below it except those in an Any."""
    plan = plan_of(message.DESCRIPTOR)
    fields = {field.name: (field, value) for field, value in message.ListFields()}
    for name, (field, value) in fields.items():
        at = f"{path}.{name}" if path else name
        check = plan.checks.get(name)
        if check is not None and (problem := check(value)) is not None:
            yield at, problem
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        if field.is_repeated:
            for index, item in enumerate(value):
                yield from violations(item, f"{at}[{index}]")
        else:
            yield from violations(value, at)
    for name, problem in plan.missing:
        if name not in fields:
            yield f"{path}.{name}" if path else name, problem
    for oneof, members in plan.oneofs:
        if not any(member in fields for member in members):
            yield path, one_of_required(oneof, members)


def one_of_required(oneof: str, members: Iterable[str]) -> str:
    """The error for a oneof that has to be set."""
    return f"field: {oneof!r}, reason: is required; one of: {', '.join(members)}"


def _rules_of(field: FieldDescriptor) -> Any:
    options = field.GetOptions()
    return options.Extensions[_RULES] if options.HasExtension(_RULES) else None


def _when_missing(field: FieldDescriptor, rules: Any, check: Check | None) -> str | None:
    if rules.message.required or rules.duration.required or rules.any.required:
        # PGV asks for members of a oneof only when that member is the chosen one.
        return "value is required" if field.containing_oneof is None else None
    if check is None or field.has_presence or field.containing_oneof is not None:
        return None
    return check([]) if field.is_repeated else check(field.default_value)


def _check_of(field: FieldDescriptor, rules: Any) -> Check | None:
    kind = rules.WhichOneof("type")
    if kind is None:
        return None
    checks = list(_checks(kind, getattr(rules, kind), field))
    if not checks:
        return None
    if field.message_type is not None and field.message_type.full_name in WRAPPERS and not field.is_repeated:
        return lambda wrapper: _first(checks, wrapper.value)
    return lambda value: _first(checks, value)


def _first(checks: list[Check], value: Any) -> str | None:
    for check in checks:
        if (problem := check(value)) is not None:
            return problem
    return None


def _checks(kind: str, rules: Any, field: FieldDescriptor) -> Iterable[Check]:
    if kind in ("message", "any"):
        return ()
    if kind == "string":
        return _string_checks(rules)
    if kind == "bytes":
        return _length_checks(rules, "bytes")
    if kind == "repeated":
        return _repeated_checks(rules, field)
    if kind == "map":
        return _map_checks(rules)
    if kind == "enum":
        return _enum_checks(rules, field)
    if kind == "bool":
        return (lambda value: None if value == rules.const else f"value must equal {str(rules.const).lower()}",)
    if kind == "duration":
        return _duration_checks(rules)
    return _range_checks(rules, float)


def _string_checks(rules: Any) -> Iterable[Check]:
    checks: list[Check] = list(_length_checks(rules, "characters"))
    if rules.well_known_regex:
        name = validate_pb2.KnownRegex.Name(rules.well_known_regex)
        pattern = _HEADER_STRICT[name] if not rules.HasField("strict") or rules.strict else _HEADER_LOOSE
        shown = pattern.pattern
        checks.append(lambda v: None if pattern.fullmatch(v) else f"value does not match regex pattern {shown!r}")
    if rules.pattern:
        own = re.compile(rules.pattern)
        checks.append(lambda v: None if own.search(v) else f"value does not match regex pattern {own.pattern!r}")
    if rules.prefix:
        checks.append(lambda v: None if v.startswith(rules.prefix) else f"value does not have prefix {rules.prefix!r}")
    if rules.suffix:
        checks.append(lambda v: None if v.endswith(rules.suffix) else f"value does not have suffix {rules.suffix!r}")
    if allowed := list(getattr(rules, "in")):
        checks.append(lambda v: None if v in allowed else f"{v!r} is not one of {', '.join(allowed)}")
    if rules.ignore_empty:
        return (lambda v: _first(checks, v) if v else None,)
    return checks


def _length_checks(rules: Any, unit: str) -> Iterable[Check]:
    if rules.HasField("min_len"):
        yield lambda v: None if len(v) >= rules.min_len else f"value length must be at least {rules.min_len} {unit}"
    if rules.HasField("max_len"):
        yield lambda v: None if len(v) <= rules.max_len else f"value length must be at most {rules.max_len} {unit}"
    if unit == "characters" and rules.HasField("max_bytes"):
        most = rules.max_bytes
        yield lambda v: None if len(v.encode()) <= most else f"value length must be at most {most} bytes"


def _repeated_checks(rules: Any, field: FieldDescriptor) -> Iterable[Check]:
    if rules.HasField("min_items"):
        least = rules.min_items
        yield lambda v: None if len(v) >= least else f"value must contain at least {least} item(s)"
    if rules.HasField("max_items"):
        most = rules.max_items
        yield lambda v: None if len(v) <= most else f"value must contain no more than {most} item(s)"
    if rules.unique:
        yield lambda v: None if len(set(v)) == len(v) else "repeated value must contain unique items"
    kind = rules.items.WhichOneof("type")
    if kind is not None:
        checks = list(_checks(kind, getattr(rules.items, kind), field))

        def each(values: Any) -> str | None:
            for index, value in enumerate(values):
                if (problem := _first(checks, value)) is not None:
                    return f"item {index}: {problem}"
            return None

        yield each


def _map_checks(rules: Any) -> Iterable[Check]:
    if rules.HasField("min_pairs"):
        yield lambda v: None if len(v) >= rules.min_pairs else f"value must contain at least {rules.min_pairs} pair(s)"
    if rules.keys.string.min_len:
        least = rules.keys.string.min_len
        yield lambda v: None if all(len(k) >= least for k in v) else f"keys must have at least {least} characters"


def _enum_checks(rules: Any, field: FieldDescriptor) -> Iterable[Check]:
    enum = field.enum_type
    assert enum is not None
    known = ", ".join(value.name for value in enum.values)
    if rules.defined_only:
        numbers = frozenset(value.number for value in enum.values)
        yield lambda v: None if v in numbers else f"{v} is not one of {known}"
    if rules.not_in:
        banned = frozenset(rules.not_in)
        yield lambda v: f"{enum.values_by_number[v].name} is not allowed" if v in banned else None


def _duration_checks(rules: Any) -> Iterable[Check]:
    def nanoseconds(duration: Any) -> int:
        return int(duration.seconds) * 1_000_000_000 + int(duration.nanos)

    return _range_checks(rules, nanoseconds, lambda limit: f"{limit / 1_000_000_000:g}s")


def _range_checks(rules: Any, number: Callable[[Any], Any], show: Callable[[Any], str] = "{:g}".format
                  ) -> Iterable[Check]:
    bounds = {name: number(getattr(rules, name)) for name in ("gt", "gte", "lt", "lte") if rules.HasField(name)}
    if "gt" in bounds:
        yield lambda v: None if number(v) > bounds["gt"] else f"value must be greater than {show(bounds['gt'])}"
    if "gte" in bounds:
        yield lambda v: (None if number(v) >= bounds["gte"]
                         else f"value must be greater than or equal to {show(bounds['gte'])}")
    if "lt" in bounds:
        yield lambda v: None if number(v) < bounds["lt"] else f"value must be less than {show(bounds['lt'])}"
    if "lte" in bounds:
        yield lambda v: (None if number(v) <= bounds["lte"]
                         else f"value must be less than or equal to {show(bounds['lte'])}")
