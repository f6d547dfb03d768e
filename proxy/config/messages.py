"""Message types by type URL. A generated module is imported when a configuration first names one of its types."""

from __future__ import annotations

import importlib
import pkgutil
import re
from functools import cache

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

_TYPE_NAME = re.compile(r"((?:envoy|xds|udpa|google|io)(?:\.[a-z][a-z0-9_]*)+)((?:\.[A-Z]\w*)+)")

ANY = "google.protobuf.Any"
STRUCT = "google.protobuf.Struct"
TYPED_STRUCTS = frozenset(("udpa.type.v1.TypedStruct", "xds.type.v3.TypedStruct"))


def type_name(type_url: str) -> str:
    """``type.googleapis.com/a.b.C`` -> ``a.b.C``."""
    return type_url.rpartition("/")[2]


@cache
def find_descriptor(name: str) -> Descriptor | None:
    """The descriptor of a message by its full name; None when no installed module defines it."""
    pool = descriptor_pool.Default()
    try:
        return pool.FindMessageTypeByName(name)
    except KeyError:
        pass
    match = _TYPE_NAME.fullmatch(name)
    if match is None:
        return None
    _import_package(match[1])
    try:
        return pool.FindMessageTypeByName(name)
    except KeyError:
        return None


@cache
def _import_package(package: str) -> None:
    """Import every ``*_pb2`` module of a protobuf package (they are few: a package is one version of one extension)."""
    try:
        found = importlib.import_module(package)
    except ImportError:
        return
    for module in pkgutil.iter_modules(found.__path__):
        if module.name.endswith("_pb2"):
            importlib.import_module(f"{package}.{module.name}")


def new_message(descriptor: Descriptor) -> Message:
    """An empty message of that type."""
    return message_factory.GetMessageClass(descriptor)()
