"""Nothing of a configuration is silently ignored.

Every field of every message that has a compiler is set, in turn, in a configuration that uses all of them. Each must
change the compiled objects, or be refused with an error that names it, or stand in the table of harmless fields.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
from config_cases import EVERYTHING, Options
from envoy.config.bootstrap.v3.bootstrap_pb2 import Bootstrap
from fingerprints import fingerprint
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from proxy.config import harmless
from proxy.config.bootstrap import bootstrap
from proxy.config.load import load_bootstrap
from proxy.config.messages import ANY, find_descriptor, new_message, type_name
from proxy.config.reader import Scope, compile_message
from proxy.config.rules import WRAPPERS, plan_of


@dataclass(frozen=True)
class Place:
    """A message somewhere in the configuration. ``steps`` leads there from the bootstrap: (field, index or key)."""

    descriptor: Descriptor
    steps: tuple[tuple[str, int | str | None], ...]
    path: str


@cache
def base() -> Any:
    return load_bootstrap(Options(config_path=str(EVERYTHING))).message


@cache
def base_fingerprint() -> Any:
    return compiled(base())[0]


def compiled(message: Any) -> tuple[Any, list[str], set[str]]:
    """(fingerprint or None, paths of errors, types of messages that were read)."""
    scope = Scope(seen=set())
    result = compile_message(message, "", scope, bootstrap)
    assert scope.seen is not None
    paths = [error.path for error in scope.errors]
    return (None if paths else fingerprint(result)), paths, scope.seen


def places() -> Iterator[Place]:
    """The first place of every kind (path without indices) in the configuration that a compiler reads."""
    read = compiled(base())[2]
    seen = set()
    for place in walk(base(), (), ""):
        kind = tuple(field for field, _ in place.steps)
        name = place.descriptor.full_name
        if name in read and (name, kind) not in seen:
            seen.add((name, kind))
            yield place


def walk(message: Any, steps: tuple[tuple[str, int | str | None], ...], path: str) -> Iterator[Place]:
    if message.DESCRIPTOR.full_name == ANY:
        inner = unpack(message)
        yield from walk(inner, (*steps, ("", None)), path)
        return
    if message.DESCRIPTOR.full_name.startswith("google.protobuf."):
        return
    yield Place(message.DESCRIPTOR, steps, path)
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        at = f"{path}.{field.name}" if path else field.name
        if field.message_type.GetOptions().map_entry:
            if field.message_type.fields_by_name["value"].message_type is not None:
                for key in value:
                    yield from walk(value[key], (*steps, (field.name, key)), f"{at}[{key}]")
        elif field.is_repeated:
            for index, item in enumerate(value):
                yield from walk(item, (*steps, (field.name, index)), f"{at}[{index}]")
        else:
            yield from walk(value, (*steps, (field.name, None)), at)


def unpack(packed: Any) -> Any:
    descriptor = find_descriptor(type_name(packed.type_url))
    assert descriptor is not None, packed.type_url
    message: Any = new_message(descriptor)
    message.ParseFromString(packed.value)
    return message


def changed(place: Place, change: Callable[[Any], None]) -> Any:
    """A copy of the base configuration in which ``change`` was applied to the message at a place."""
    copy = Bootstrap()
    copy.CopyFrom(base())
    apply(copy, place.steps, change)
    return copy


def apply(message: Any, steps: tuple[tuple[str, int | str | None], ...], change: Callable[[Any], None]) -> None:
    if not steps:
        change(message)
        return
    (field, at), rest = steps[0], steps[1:]
    if not field:
        inner = unpack(message)
        apply(inner, rest, change)
        message.value = inner.SerializeToString()
        return
    below = getattr(message, field)
    apply(below if at is None else below[at], rest, change)


# --- values to set ----------------------------------------------------------------------------------------------------

NUMBERS = (3, 300, 600, 70000, 2)
STRINGS = ("other", "10.9.8.7", ".other/x", "https", "x-other")


def candidates(field: FieldDescriptor) -> list[Any]:
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return [True, False]
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        assert field.enum_type is not None
        return [value.number for value in field.enum_type.values]
    if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return [7.0, 0.5]
    if kind == FieldDescriptor.CPPTYPE_STRING:
        if field.type == FieldDescriptor.TYPE_BYTES:
            return [b"other"]
        return list(STRINGS)
    return list(NUMBERS)


def allowed(place: Place, field: FieldDescriptor, values: list[Any], wrap: Callable[[Any], Any]) -> list[Any]:
    """The values that the API's own constraints permit; all of them if none is (then that error names the field)."""
    check = plan_of(place.descriptor).checks.get(field.name)
    permitted = [value for value in values if check is None or check(wrap(value)) is None] or values
    return permitted if field.enum_type is not None else permitted[:2]


def changes(place: Place, field: FieldDescriptor) -> Iterator[tuple[Any, Callable[[Any], None]]]:
    """(shown value, how to set it)."""
    message_type = field.message_type
    if message_type is not None and message_type.GetOptions().map_entry:
        yield "a key", lambda message: add_key(getattr(message, field.name), message_type)
    elif field.is_repeated:
        if message_type is None:
            for value in allowed(place, field, candidates(field), lambda one: [one]):
                yield value, lambda message, value=value: getattr(message, field.name).append(value)
        else:
            yield "one more", lambda message: add_item(getattr(message, field.name))
    elif message_type is None:
        for value in allowed(place, field, candidates(field), lambda one: one):
            yield value, lambda message, value=value: setattr(message, field.name, value)
    elif message_type.full_name in WRAPPERS:
        inner = message_type.fields_by_name["value"]
        for value in allowed(place, field, candidates(inner), wrapped):
            yield value, lambda message, value=value: set_wrapper(getattr(message, field.name), value)
    elif message_type.full_name == ANY:
        yield "another type", lambda message: set_type(getattr(message, field.name), "envoy.config.core.v3.Locality")
        yield "no type", lambda message: set_type(getattr(message, field.name), "")
    elif message_type.full_name == "google.protobuf.Duration":
        for seconds in (7, 0):
            yield f"{seconds}s", lambda message, seconds=seconds: set_duration(getattr(message, field.name), seconds)
    else:
        yield "presence", lambda message: getattr(message, field.name).SetInParent()


@dataclass
class wrapped:
    value: Any


def set_wrapper(wrapper: Any, value: Any) -> None:
    wrapper.SetInParent()
    wrapper.value = value


def set_duration(duration: Any, seconds: int) -> None:
    duration.SetInParent()
    duration.seconds, duration.nanos = seconds, 0


def set_type(packed: Any, name: str) -> None:
    packed.SetInParent()
    packed.type_url, packed.value = f"type.googleapis.com/{name}" if name else "", b""


def add_key(mapping: Any, entry: Descriptor) -> None:
    if entry.fields_by_name["value"].message_type is None:
        mapping["key"] = "value"
    else:
        mapping["key"].SetInParent()


def add_item(items: Any) -> None:
    if len(items):
        items.add().CopyFrom(items[-1])
    else:
        items.add()


# --- the property -----------------------------------------------------------------------------------------------------


REFERRED_TO = {("envoy.config.cluster.v3.Cluster", "name")}
"""Fields that others refer to: the errors are where the reference is."""


def outcome(place: Place, field: FieldDescriptor, change: Callable[[Any], None]) -> str:
    """honoured, refused, harmless, empty (the message was read and found empty), same, or ignored."""
    message = changed(place, change)
    if message == base():
        return "same"
    result, error_paths, seen = compiled(message)
    if error_paths:
        # The error may be about the message as a whole, or about the other of two fields that contradict each other.
        where = place.path.removesuffix(".google_re2")
        named = [path for path in error_paths if path.startswith(where) or path and where.startswith(path)]
        elsewhere = (place.descriptor.full_name, field.name) in REFERRED_TO
        return "refused" if named or elsewhere else f"refused without naming it: {error_paths}"
    if result != base_fingerprint():
        return "honoured"
    value = None

    def remember(changed_message: Any) -> None:
        nonlocal value
        value = getattr(changed_message, field.name)

    apply(message, place.steps, remember)
    if harmless.is_harmless(place.descriptor.full_name, field.name, value):
        return "harmless"
    if field.message_type is not None and field.message_type.full_name in seen:
        return "empty"
    return "ignored"


PLACES = list(places())


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.path or "bootstrap")
def test_every_field_is_honoured_refused_or_harmless(place: Place) -> None:
    for field in place.descriptor.fields:
        outcomes = {value: outcome(place, field, change) for value, change in changes(place, field)}
        # One value of a field may be its default: that changes nothing and is fine.
        taken = [one for value, one in outcomes.items() if one != "ignored" or field.enum_type is not None and value]
        assert taken, f"{place.path}: {place.descriptor.full_name}.{field.name} is ignored: {outcomes}"
        assert set(taken) <= {"honoured", "refused", "harmless", "empty", "same"}, f"{field.name}: {outcomes}"


def test_the_base_configuration_uses_every_compiler() -> None:
    tested = {place.descriptor.full_name for place in PLACES}
    _, _, seen = compiled(base())
    empty = {
        field.message_type.full_name
        for place in PLACES for field in place.descriptor.fields if field.message_type is not None
        if any(outcome(place, field, change) == "empty" for _, change in changes(place, field))
    }
    assert seen | empty <= tested


def test_the_tables_name_fields_that_exist() -> None:
    base()
    pool = descriptor_pool.Default()
    for table in (harmless.HARMLESS, harmless.WHY_NOT):
        for message_type, fields in table.items():
            assert find_descriptor(message_type) is not None, message_type
            known = set(pool.FindMessageTypeByName(message_type).fields_by_name)
            assert set(fields) <= known, message_type


def test_every_harmless_field_is_one_of_a_compiled_message() -> None:
    tested = {place.descriptor.full_name for place in PLACES}
    assert set(harmless.HARMLESS) <= tested | {"envoy.config.core.v3.Metadata"}
