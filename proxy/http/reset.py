"""Why an upstream attempt failed, and what the client and the log get to see of it (facts: Envoy's local replies)."""

from __future__ import annotations

from typing import NamedTuple

PREFIX = b"upstream connect error or disconnect/reset before headers. "


class Reset(NamedTuple):
    """A stream reset reason with the status and the response flag of its local reply."""

    text: bytes
    status: int
    flag: bytes

    @property
    def details(self) -> bytes:
        """The reason inside the braces of the response code details."""
        return self.text.replace(b" ", b"_")


CONNECTION_FAILURE = Reset(b"remote connection failure", 503, b"UF")
CONNECTION_TIMEOUT = Reset(b"connection timeout", 503, b"UF")
CONNECTION_TERMINATION = Reset(b"connection termination", 503, b"UC")
PROTOCOL_ERROR = Reset(b"protocol error", 502, b"UPE")
OVERFLOW = Reset(b"overflow", 503, b"UO")
