"""Reading of one message by its compiler, which notices what was not read.

A compiler asks a ``Reader`` for the fields that it understands. When it is done, every field that is set in the message
and was not asked for is an error that names its path, unless proxy.config.harmless says why it may be left alone: so
nothing of a configuration is silently ignored.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from google.protobuf import json_format
from google.protobuf.message import DecodeError, Message

from proxy.config import harmless
from proxy.config.errors import ConfigError
from proxy.config.extensions import Registry
from proxy.config.messages import TYPED_STRUCTS, find_descriptor, new_message, type_name
from proxy.config.rules import one_of_required, plan_of, violations

T = TypeVar("T")

MAX_DURATION_S = 9223372035
"""Envoy keeps durations as nanoseconds in 64 bits."""

_UNSET = object()


class Skip(Exception):
    """This message gives no object; the errors that say why have been noted."""


@dataclass(slots=True)
class Scope:
    """What all readers of one configuration share."""

    errors: list[ConfigError] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    runtime: Mapping[str, object] = field(default_factory=dict)
    """layered_runtime, flattened."""
    runtime_asked: set[str] = field(default_factory=set)
    """Keys that compilers looked up."""
    runtime_live: set[str] = field(default_factory=set)
    """Keys that are looked at again whenever they change."""
    runtime_unknown: dict[str, str] = field(default_factory=dict)
    """Keys whose meaning is not known, with their paths."""
    runtime_limits: dict[str, str] = field(default_factory=dict)
    """Keys that limit a listener's connections, with their paths."""
    clusters: frozenset[str] | None = None
    """Names of the static clusters; None: references to clusters are not checked."""
    check_references: bool = True
    """False when parts of the configuration had to be left out."""
    seen: set[str] | None = None
    """When given, collects ``message type`` names that were read (tests)."""

    def error(self, path: str, message: str) -> None:
        """Note an error."""
        self.errors.append(ConfigError(path, message))

    def warn(self, path: str, message: str) -> None:
        """Note a warning."""
        self.warnings.append(f"{path}: {message}")

    def runtime_value(self, key: str) -> object | None:
        """The value of a key, None when no layer sets it."""
        self.runtime_asked.add(key)
        return self.runtime.get(key)

    def runtime_number(self, key: str, default: float) -> float:
        """Envoy's Runtime::Snapshot::getInteger and getDouble for a key that the static layers may set."""
        value = self.runtime_value(key)
        with contextlib.suppress(ValueError):
            if isinstance(value, int | float | str):
                return float(value)
        return default

    def runtime_flag(self, key: str, default: bool) -> bool:
        """Envoy's runtimeFeatureEnabled for a key that the static layers may set."""
        value = self.runtime_value(key)
        if isinstance(value, str):
            return {"true": True, "false": False}.get(value.lower(), default)
        return bool(value) if isinstance(value, int | float) else default


class Reader:
    """One message while its compiler reads it. Every method takes the name of a field and marks it as read."""

    __slots__ = ("_fields", "message", "path", "plan", "scope")

    def __init__(self, message: Message, path: str, scope: Scope) -> None:
        self.message = message
        self.path = path
        self.scope = scope
        self.plan = plan = plan_of(message.DESCRIPTOR)
        self._fields: dict[str, Any] = {descriptor.name: value for descriptor, value in message.ListFields()}
        fields = self._fields
        if scope.seen is not None:
            scope.seen.add(plan.full_name)
        for name, check in plan.checks.items():
            if name in fields and (problem := check(fields[name])) is not None:
                self.error(name, problem)
        for name, problem in plan.missing:
            if name not in fields:
                self.error(name, problem)
        for oneof, members in plan.oneofs:
            if not any(member in fields for member in members):
                self.error("", one_of_required(oneof, members))

    # --- errors ---------------------------------------------------------------------------------------------------

    def at(self, name: str) -> str:
        """The path of a field; of this message itself for an empty name."""
        return f"{self.path}.{name}" if self.path and name else self.path or name

    def error(self, name: str, message: str) -> None:
        """Note that something is wrong with a field (empty: with this message)."""
        self.scope.error(self.at(name), message)

    def warn(self, name: str, message: str) -> None:
        """Note a warning about a field."""
        self.scope.warn(self.at(name), message)

    # --- fields ---------------------------------------------------------------------------------------------------

    def has(self, name: str) -> bool:
        """Whether the field is set and nobody has read it yet. Does not mark it as read."""
        if name in self._fields:
            return True
        self._check_name(name)
        return False

    def _check_name(self, name: str) -> None:
        if name not in self.plan.names:
            raise LookupError(f"{self.plan.full_name} has no field {name}")

    def take(self, name: str) -> Any:
        """The raw value of a field, None when it is not set."""
        value = self._fields.pop(name, None)
        if value is None:
            self._check_name(name)
        return value

    def string(self, name: str, default: str = "") -> str:
        """A string or StringValue."""
        value = self.take(name)
        if value is None:
            return default
        text: str = value if isinstance(value, str) else value.value
        return text

    def octets(self, name: str, default: bytes = b"") -> bytes:
        """A string as the bytes that go over the wire."""
        return self.string(name).encode() or default

    def strings(self, name: str) -> tuple[str, ...]:
        """A repeated string."""
        return tuple(self.take(name) or ())

    def numbers(self, name: str) -> tuple[int, ...]:
        """A repeated integer."""
        return tuple(self.take(name) or ())

    def boolean(self, name: str, default: bool = False) -> bool:
        """A bool or BoolValue; an unset one is ``default``."""
        value = self.take(name)
        if value is None:
            return default
        result: bool = value if isinstance(value, bool) else value.value
        return result

    def integer(self, name: str, default: int = 0) -> int:
        """An integer or a wrapped one; an unset one is ``default``."""
        value = self.take(name)
        if value is None:
            return default
        result: int = value if isinstance(value, int) else value.value
        return result

    def limit(self, name: str) -> int | None:
        """A wrapped integer, None when it is not set."""
        return self.integer(name) if self.has(name) else None

    def seconds(self, name: str, default: float = 0.0) -> float:
        """A Duration in seconds; like Envoy, parts of a millisecond are cut off."""
        value = self.take(name)
        if value is None:
            return default
        if value.seconds < 0 or value.nanos < 0:
            self.error(name, "Invalid duration: Expected positive duration")
        elif value.seconds > MAX_DURATION_S:
            self.error(name, f"Invalid duration: Duration out-of-range: more than {MAX_DURATION_S}s")
        result: float = value.seconds + (value.nanos // 1_000_000) / 1000
        return result

    def optional_seconds(self, name: str) -> float | None:
        """A Duration in seconds, None when it is not set."""
        return self.seconds(name) if self.has(name) else None

    def enum(self, name: str) -> str:
        """The name of an enum's value; of its first value when the field is not set."""
        number = self.take(name)
        enum_type = self.message.DESCRIPTOR.fields_by_name[name].enum_type
        assert enum_type is not None
        value = enum_type.values_by_number.get(0 if number is None else number)
        if value is None:
            known = ", ".join(v.name for v in enum_type.values)
            self.error(name, f"{number} is not one of {known}")
            return enum_type.values[0].name
        return value.name

    def supported_enum(self, name: str, *supported: str) -> str:
        """As ``enum``, but values other than ``supported`` (the first of them is returned instead) are an error."""
        value = self.enum(name)
        if value in supported:
            return value
        self.error(name, f"{value} is not supported yet; supported: {', '.join(supported)}")
        return supported[0]

    def struct(self, name: str) -> dict[str, Any]:
        """A google.protobuf.Struct as a dict."""
        value = self.take(name)
        return json_format.MessageToDict(value) if value is not None else {}

    def chosen(self, oneof: str) -> str | None:
        """Which field of a oneof is set."""
        name: str | None = self.message.WhichOneof(oneof)
        return name

    # --- messages below -------------------------------------------------------------------------------------------

    def sub(self, name: str, compiler: Callable[[Reader], T]) -> T | None:
        """What ``compiler`` makes of a message; None when it is not set or gave nothing."""
        value = self.take(name)
        return None if value is None else compile_message(value, self.at(name), self.scope, compiler)

    def need(self, name: str, compiler: Callable[[Reader], T]) -> T:
        """As ``sub`` for a field without which this message gives nothing: raises Skip."""
        if not self.has(name):
            if not any(e.path == self.at(name) for e in self.scope.errors):
                self.error(name, "value is required")
            raise Skip
        result = self.sub(name, compiler)
        if result is None:
            raise Skip
        return result

    def each(self, name: str, compiler: Callable[[Reader], T]) -> tuple[T, ...]:
        """What ``compiler`` makes of the items of a repeated message; items that gave nothing are left out."""
        results = []
        for index, value in enumerate(self.take(name) or ()):
            result = compile_message(value, f"{self.at(name)}[{index}]", self.scope, compiler)
            if result is not None:
                results.append(result)
        return tuple(results)

    def extension(self, name: str, registry: Registry[T]) -> T:
        """The extension in an Any, by its type URL. Raises Skip after noting what is wrong."""
        return self.typed_extension(name, registry)[1]

    def typed_extension(self, name: str, registry: Registry[T]) -> tuple[str, T]:
        """As ``extension``, with the name of the message type."""
        packed = self.take(name)
        if packed is None or not packed.type_url:
            self.error(name, f"a type URL (@type) is required; supported {registry.plural}: {registry.known}")
            raise Skip
        result = self._open(packed, self.at(name), registry)
        if result is None:
            raise Skip
        return result

    def extensions(self, name: str, registry: Registry[T]) -> dict[str, T]:
        """The extensions in a map of Any, by their keys; what gave nothing is left out."""
        results = {}
        for key, packed in (self.take(name) or {}).items():
            result = self._open(packed, f"{self.at(name)}[{key}]", registry)
            if result is not None:
                results[key] = result[1]
        return results

    def _open(self, packed: Any, path: str, registry: Registry[T]) -> tuple[str, T] | None:
        scope = self.scope
        wanted = type_name(packed.type_url)
        descriptor = find_descriptor(wanted)
        try:
            if wanted in TYPED_STRUCTS and descriptor is not None:
                typed: Any = new_message(descriptor)
                typed.ParseFromString(packed.value)
                wanted = type_name(typed.type_url)
                path += ".value"
                descriptor = find_descriptor(wanted)
                if descriptor is not None:
                    message = new_message(descriptor)
                    json_format.ParseDict(json_format.MessageToDict(typed.value), message)
            elif descriptor is not None:
                message = new_message(descriptor)
                message.ParseFromString(packed.value)
        except (DecodeError, json_format.ParseError) as error:
            scope.error(path, f"is not a {wanted}: {error}")
            return None
        compiler = registry.find(wanted)
        if compiler is None or descriptor is None:
            scope.error(path, registry.unsupported(wanted))
            return None
        result = compile_message(message, path, scope, compiler)
        return None if result is None else (wanted, result)

    # --- the end --------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Note an error for every field that is set, was not read and is not harmless."""
        for name, value in self._fields.items():
            if harmless.is_harmless(self.plan.full_name, name, value):
                for path, problem in self._violations(name, value):
                    self.scope.error(path, problem)
            else:
                self.error(name, harmless.why_not(self.plan.full_name, name))
        self._fields = {}

    def _violations(self, name: str, value: Any) -> Iterable[tuple[str, str]]:
        descriptor = self.message.DESCRIPTOR.fields_by_name[name]
        if descriptor.message_type is None or descriptor.message_type.GetOptions().map_entry:
            return
        if not descriptor.is_repeated:
            yield from violations(value, self.at(name))
            return
        for index, item in enumerate(value):
            yield from violations(item, f"{self.at(name)}[{index}]")


def compile_message(message: Message, path: str, scope: Scope, compiler: Callable[[Reader], T]) -> T | None:
    """Run a compiler over a message and see that it read everything; None when it raised Skip."""
    reader = Reader(message, path, scope)
    try:
        result = compiler(reader)
    except Skip:
        return None
    reader.finish()
    return result


def ignore(reader: Reader) -> bool:
    """The compiler of a message whose fields have no effect, each of them for a reason in proxy.config.harmless."""
    return True
