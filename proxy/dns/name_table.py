"""The name table as istiod sends it (NDS): which host has which addresses. Read and checked, not yet what names mean.

A file has it as JSON of ``istio.networking.nds.v1.NameTable`` (istiod's /debug/ndsz). Whoever has the same content in
another form builds Hosts with `host` and a NameTable with `name_table`.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from proxy.config.document import parse_json
from proxy.config.errors import ConfigError, ConfigErrors

MAX_TEXT = 64 * 1024 * 1024
"""Bytes of a document; 100,000 services with ten addresses each are 30 MB."""
MAX_HOSTS = 100_000
MAX_ADDRESSES = 4096
"""Addresses of one host and family: no reply has room for more (65,535 bytes, 16 a record)."""
MAX_ALT_HOSTS = 64
MAX_ERRORS = 20
"""What is told of one document; the rest is counted."""

KUBERNETES = "Kubernetes"
"""The registry of which hosts get short names (istio: provider.Kubernetes)."""

_TEXTS = ("registry", "shortname", "namespace")
_JSON_NAMES = {"altHosts": "alt_hosts"}
_V4_IN_V6 = bytes(10) + b"\xff\xff"


@dataclass(frozen=True, slots=True)
class Host:
    """One host. ``v4`` and ``v6`` are packed addresses, 4 or 16 bytes each, in the order in which they were given."""

    name: str
    v4: bytes
    v6: bytes
    registry: str = ""
    shortname: str = ""
    namespace: str = ""
    alt_hosts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NameTable:
    """All hosts that have an address, by name. ``warnings`` tell what was left out, each with the host's name."""

    hosts: tuple[Host, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(slots=True)
class Notes:
    """Texts for the log: the first MAX_ERRORS and how many more there were."""

    texts: list[str] = field(default_factory=list)
    more: int = 0

    def add(self, text: str) -> None:
        """Note one."""
        if len(self.texts) < MAX_ERRORS:
            self.texts.append(text)
        else:
            self.more += 1

    def all(self) -> tuple[str, ...]:
        """What was noted."""
        return (*self.texts, f"and {self.more} more") if self.more else tuple(self.texts)


def parse_name_table(text: str | bytes) -> NameTable:
    """The table of a JSON text. Raises ConfigErrors with paths such as ``table["a.example"].ips[2]``."""
    if len(text) > MAX_TEXT:
        raise ConfigErrors([ConfigError("", f"{len(text)} bytes, at most {MAX_TEXT} expected")])
    if isinstance(text, bytes):
        try:
            text = text.decode()
        except UnicodeDecodeError as error:
            raise ConfigErrors([ConfigError("", f"byte {error.start} is not UTF-8")]) from None
    return read_name_table(parse_json(text))


def read_name_table(document: Any) -> NameTable:
    """The table of a JSON value. Raises ConfigErrors; what has the right form but no meaning becomes a warning."""
    errors: list[ConfigError] = []
    notes = Notes()
    hosts = []
    if not isinstance(document, dict):
        raise ConfigErrors([ConfigError("", f"an object with the field table expected, not {_kind(document)}")])
    errors += [ConfigError(_shown(name), "no such field; a name table has the field table")
               for name in document if name != "table"]
    table = document.get("table")
    if table is None:
        table = {}
    elif not isinstance(table, dict):
        errors.append(ConfigError("table", f"an object of hosts expected, not {_kind(table)}"))
        table = {}
    elif len(table) > MAX_HOSTS:
        errors.append(ConfigError("table", f"{len(table)} hosts, at most {MAX_HOSTS} expected"))
        table = {}
    for name, info in table.items():
        fields = _read_info(f'table["{_shown(name)}"]', info, errors)
        if fields is not None and (one := host(name, notes=notes, **fields)) is not None:
            hosts.append(one)
        if len(errors) > MAX_ERRORS:
            errors[MAX_ERRORS:] = [ConfigError("", "more errors follow")]
            break
    if errors:
        raise ConfigErrors(errors)
    return name_table(hosts, notes)


def name_table(hosts: Iterable[Host], notes: Notes) -> NameTable:
    """A table; the hosts' order is of no importance (a protobuf map has none)."""
    return NameTable(tuple(sorted(hosts, key=lambda one: one.name)), notes.all())


def host(name: str, ips: Sequence[str], registry: str, shortname: str, namespace: str, alt_hosts: Sequence[str],
         notes: Notes) -> Host | None:
    """One host from NameInfo's fields; None if no address is left, then upstream servers are asked for it.

    As the original does (``ParseIPsSplitToV4V6``), what is no address (a CIDR, say) is skipped.
    """
    v4: dict[bytes, None] = {}
    v6: dict[bytes, None] = {}
    bad = ""
    for ip in ips:
        packed = pack_address(ip)
        if packed is None:
            bad = bad or ip
        elif len(packed) == 4:
            v4[packed] = None
        else:
            v6[packed] = None
    if bad:
        rest = "skipped" if v4 or v6 else "the host has no other address and is left out"
        notes.add(f"host {name[:300]!r}: {bad[:100]!r} is no IP address: {rest}")
    if not v4 and not v6:
        return None
    if max(len(v4), len(v6)) > MAX_ADDRESSES:
        notes.add(f"host {name[:300]!r}: {max(len(v4), len(v6))} addresses, the first {MAX_ADDRESSES} are used")
    if len(alt_hosts) > MAX_ALT_HOSTS:
        notes.add(f"host {name[:300]!r}: {len(alt_hosts)} alt_hosts, the first {MAX_ALT_HOSTS} are used")
    return Host(name, b"".join(v4)[:4 * MAX_ADDRESSES], b"".join(v6)[:16 * MAX_ADDRESSES], registry, shortname,
                namespace, tuple(alt_hosts[:MAX_ALT_HOSTS]))


def pack_address(text: str) -> bytes | None:
    """4 or 16 bytes, None if it is no address. An IPv4 address in IPv6 form (::ffff:1.2.3.4) is an IPv4 address."""
    try:
        return socket.inet_pton(socket.AF_INET, text)
    except (OSError, ValueError):
        pass
    try:
        packed = socket.inet_pton(socket.AF_INET6, text)
    except (OSError, ValueError):
        return None
    return packed[12:] if packed.startswith(_V4_IN_V6) else packed


def _read_info(path: str, info: Any, errors: list[ConfigError]) -> dict[str, Any] | None:
    """The fields of one NameInfo, defaults included; None after errors."""
    before = len(errors)

    def wrong(where: str, expected: str, value: Any) -> None:
        errors.append(ConfigError(path + where, f"{expected} expected, not {_kind(value)}"))

    if info is None:
        info = {}
    elif not isinstance(info, dict):
        wrong("", "an object", info)
        return None
    fields: dict[str, Any] = {"ips": (), "registry": "", "shortname": "", "namespace": "", "alt_hosts": ()}
    for given, value in info.items():
        known = _JSON_NAMES.get(given, given)
        if known not in fields:
            errors.append(ConfigError(f"{path}.{_shown(given)}", f"no such field; {', '.join(fields)} are known"))
        elif value is None:
            continue  # null is "not set" in protobuf's JSON
        elif known in _TEXTS:
            if not isinstance(value, str):
                wrong(f".{given}", "a string", value)
            fields[known] = value
        elif not isinstance(value, list):
            wrong(f".{given}", "a list of strings", value)
        else:
            for index, one in enumerate(value):
                if not isinstance(one, str):
                    wrong(f".{given}[{index}]", "a string", one)
                    break
            fields[known] = value
    return fields if len(errors) == before else None


def _shown(name: str) -> str:
    """A name of the document as it may stand in a log: bounded, on one line."""
    return repr(name[:300])[1:-1]


_KINDS = {dict: "an object", list: "a list", str: "a string", bool: "true or false", int: "a number",
          float: "a number", type(None): "null"}


def _kind(value: Any) -> str:
    return _KINDS.get(type(value), type(value).__name__)
