"""Which formats the page and its sources speak: the Accept header, filtered and passed on (RFC 9110 12.5.1)."""

import re
from dataclasses import dataclass

TEXT_004 = "text/plain;version=0.0.4"
OPENMETRICS_001 = "application/openmetrics-text;version=0.0.1"

TEXT = "text/plain"
OPENMETRICS = "application/openmetrics-text"

_MAX_LENGTH = 4096
_MAX_TYPES = 9  # so that each gets a weight of its own of one digit
_ELEMENT = re.compile(r"\s*([\w!#$&^.+*-]+/[\w!#$&^.+*-]+)\s*((?:;\s*[\w-]+=(?:[\w.+-]*|\"[\w.+ -]*\")\s*)*)")
_PARAMETER = re.compile(r";\s*([\w-]+)=(?:\"([^\"]*)\"|([\w.+-]*))")


@dataclass(frozen=True, slots=True)
class Accepts:
    """What to ask the sources for, as Accept headers, and whether the client takes OpenMetrics."""

    proxy: str
    application: str
    openmetrics: bool


def negotiate(accept: str) -> Accepts:
    """Protobuf and what nobody offers is left out; nothing left, or an Accept that cannot be read, means text 0.0.4."""
    ranges = _ranges(accept) if len(accept) <= _MAX_LENGTH else []
    for_proxy: list[str] = []
    for_application: list[str] = []
    for media_type, parameters in ranges:
        if media_type in (TEXT, "text/*", "*/*"):
            entry = TEXT + parameters if media_type == TEXT else TEXT_004
            for_proxy.append(entry)
            for_application.append(entry)
        elif media_type == OPENMETRICS:
            for_application.append(OPENMETRICS + parameters)
        elif media_type == "application/*":
            for_application.append(OPENMETRICS_001)
    return Accepts(
        _weighted(for_proxy), _weighted(for_application), any(each.startswith(OPENMETRICS) for each in for_application)
    )


def _ranges(accept: str) -> list[tuple[str, str]]:
    """Media ranges with their parameters as `;name=value...`, the most wanted first; refused ones are left out."""
    found: list[tuple[float, str, str]] = []
    for element in accept.split(","):
        if not element.strip():
            continue
        match = _ELEMENT.fullmatch(element)
        if match is None:
            return []
        weight, kept = 1.0, ""
        for name, quoted, token in _PARAMETER.findall(match[2]):
            if name.lower() == "q":
                try:
                    weight = float(token)
                except ValueError:
                    return []
            else:
                kept += f";{name.lower()}={quoted or token}" if " " not in quoted else f';{name.lower()}="{quoted}"'
        found.append((weight, match[1].lower(), kept))
    found.sort(key=lambda each: -each[0])
    return [(media_type, parameters) for weight, media_type, parameters in found if 0 < weight <= 1]


def _weighted(types: list[str]) -> str:
    distinct = list(dict.fromkeys(types))[:_MAX_TYPES]
    if not distinct:
        return TEXT_004
    return ",".join(f"{each};q=0.{len(distinct) - index}" for index, each in enumerate(distinct))
