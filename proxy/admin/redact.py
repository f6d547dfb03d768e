"""Secrets taken out of messages before they are shown (fields marked ``udpa.annotations.sensitive``)."""

from __future__ import annotations

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.any_pb2 import Any
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from udpa.annotations import sensitive_pb2

REDACTED = "[redacted]"
MAX_DEPTH = 100
"""Messages inside messages; protobuf's own parsers refuse deeper ones."""


def redact(message: Message, sensitive: bool = False, depth: int = 0) -> None:
    """Blot out, in place: sensitive strings and bytes read ``[redacted]``, other sensitive values are removed.

    Messages packed in an Any are unpacked for it and packed again.
    """
    if depth > MAX_DEPTH:
        raise ValueError(f"message nested deeper than {MAX_DEPTH}")
    if isinstance(message, Any):
        _redact_any(message, sensitive, depth)
        return
    for field, value in message.ListFields():
        hidden = sensitive or bool(field.GetOptions().Extensions[sensitive_pb2.sensitive])
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            _redact_map(message, field, hidden, depth)
        elif field.message_type is not None:
            for item in value if field.is_repeated else (value,):
                redact(item, hidden, depth + 1)
        elif hidden:
            _blot(message, field, value)


def _redact_any(packed: Any, sensitive: bool, depth: int) -> None:
    try:
        kind = message_factory.GetMessageClass(descriptor_pool.Default().FindMessageTypeByName(packed.TypeName()))
        inner = kind.FromString(packed.value)
    except (KeyError, DecodeError):
        packed.Clear()  # nobody can tell what is in it, nor print it
        return
    before = inner.SerializeToString(deterministic=True)
    redact(inner, sensitive, depth + 1)
    if inner.SerializeToString(deterministic=True) != before:
        packed.value = inner.SerializeToString()


def _redact_map(message: Message, field: FieldDescriptor, sensitive: bool, depth: int) -> None:
    values = getattr(message, field.name)
    assert field.message_type is not None
    kind = field.message_type.fields_by_name["value"]
    for key in list(values):
        if kind.message_type is not None:
            redact(values[key], sensitive, depth + 1)
        elif sensitive and kind.type == FieldDescriptor.TYPE_STRING:
            values[key] = REDACTED
        elif sensitive:
            del values[key]


def _blot(message: Message, field: FieldDescriptor, value: object) -> None:
    text = {FieldDescriptor.TYPE_STRING: REDACTED, FieldDescriptor.TYPE_BYTES: REDACTED.encode()}.get(field.type)
    if text is None:
        message.ClearField(field.name)
    elif field.is_repeated:
        values = getattr(message, field.name)
        values[:] = [text] * len(values)
    else:
        setattr(message, field.name, text)
