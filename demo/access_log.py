"""Istio's default access-log line, taken apart."""

from __future__ import annotations

import re
from dataclasses import dataclass

_FIELD = re.compile(r'"([^"]*)"|\[([^\]]*)\]|(\S+)')
_FIELDS = 22


@dataclass(frozen=True)
class Line:
    """The fields that the demo looks at, named as the format's operators, and the line itself."""

    text: str
    request: str
    response_code: str
    response_flags: str
    response_code_details: str
    authority: str
    upstream_host: str
    upstream_cluster: str

    def __str__(self) -> str:
        return self.text


def parse(text: str) -> list[Line]:
    """The access-log lines in an output; lines of another shape (the agent's, the proxy's own) are left out."""
    found = []
    for line in text.splitlines():
        fields = [quoted or bracketed or bare for quoted, bracketed, bare in _FIELD.findall(line)]
        if line.startswith("[") and len(fields) == _FIELDS:
            found.append(Line(line, *(fields[at] for at in (1, 2, 3, 4, 14, 15, 16))))
    return found
