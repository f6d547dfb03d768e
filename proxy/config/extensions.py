"""Registries of extensions: one for each kind, from the type in a typed_config's ``@type`` to its compiler."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from proxy.config.reader import Reader

T_co = TypeVar("T_co", covariant=True)

LATER = (
    ("tls", "TLS comes later"),
    ("quic", "HTTP/3 is not planned"),
    ("http2", "HTTP/2 comes later"),
    ("grpc", "gRPC comes later"),
)
"""Words in the names of types that tell what a refused extension belongs to."""

REGISTRIES: dict[str, Registry[object]] = {}
"""By the full name of the field that holds the extension."""


class Registry(Generic[T_co]):
    """The extensions of one kind. ``fields`` are the full names of the Any fields that hold them."""

    def __init__(self, kind: str, fields: tuple[str, ...], compilers: Mapping[str, Callable[[Reader], T_co]]) -> None:
        self.kind = kind
        self.plural = kind if kind.endswith("route") else f"{kind}s"
        self._compilers = compilers
        for name in fields:
            REGISTRIES[name] = self

    @property
    def known(self) -> str:
        """The supported types, for error texts."""
        return ", ".join(sorted(self._compilers)) or "none"

    def find(self, name: str) -> Callable[[Reader], T_co] | None:
        """The compiler for a message type."""
        return self._compilers.get(name)

    def unsupported(self, name: str) -> str:
        """The error for a type without compiler."""
        why = next((f" ({text})" for word, text in LATER if word in name.lower()), "")
        return f"{name} is not supported yet{why}; supported {self.plural}: {self.known}"
