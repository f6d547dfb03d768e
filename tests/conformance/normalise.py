"""Makes what was seen comparable: volatile values become names, the rest stays byte for byte."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable

from tests.conformance.conversation import Seen
from tests.conformance.dsl import Case
from tests.conformance.proxies import Proxy
from tests.conformance.wire import Wire

_UUID = re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b")
_ADDRESS = re.compile(r"\b(\d+\.\d+\.\d+\.\d+):(\d{1,5})\b")
_UPSTREAM = re.compile(r'("[\d.]+:)(\d+)(" \S+ [\d.]+:)(\d+) ')
"""In the access log: upstream host, cluster, upstream local address."""
_DATE = re.compile(
    r"(?m)^(date: )(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d (?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) 20\d\d "
    r"\d\d:\d\d:\d\d GMT\r$"
)
_SERVICE_TIME = re.compile(r"(?m)^(x-envoy-upstream-service-time: )\d+\r$")
_REMAINING = re.compile(r"(?m)^(x-envoy-expected-rq-timeout-ms: )(\d+)\r$")
_FORWARDED_PORT = re.compile(r"(?m)^(x-forwarded-port: )(\d+)\r$")
_LOG_TIMES = re.compile(
    r'^\[20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z\] ("\S+ .+ \S+" \d+ \S+ \S+ \S+ "[^"]*" \d+ \d+) \d+ (-|\d+) '
)
_LONG = 2000


def lines(seen: Seen, case: Case, proxy: Proxy) -> list[str]:
    """Everything seen, as lines of text in which equal behaviour gives equal text."""
    names = _Names(seen, case, proxy)
    told: list[str] = []
    for group, accepted in names.by_group():
        told += [f"--- upstream {group}"]
        for number, connection in enumerate(accepted, 1):
            told += [f"connection {number} to {names.member(connection.member, group)} from {connection.source[0]}"]
            told += _transcript(connection.wire, names, case)
    for peer, wire in seen.clients.items():
        told += [f"--- client {peer}", *_transcript(wire, names, case)]
    for title, rest in (
        ("admin", seen.admin),
        ("log", [_log_line(line, names) for line in seen.log]),
        ("statistics", [f"{name}: {growth:+d}" for name, growth in seen.stats.items()]),
        ("unused turns", [f"{name}: {count}" for name, count in seen.unused.items()]),
        ("stuck", seen.stuck),
    ):
        if rest:
            told += [f"--- {title}", *rest]
    return [_loosen(line, case) for line in told]


class _Names:
    """Ports and ids of one run, each with a name that means the same in every run."""

    def __init__(self, seen: Seen, case: Case, proxy: Proxy) -> None:
        self._seen = seen
        self._ports: dict[int, str] = dict(proxy.names)
        self._connections: dict[tuple[int, int], str] = {}
        self._members: dict[str, dict[str, str]] = {}
        self._uuids: dict[str, str] = {}
        self._given = {_mask(found) for op in case.ops() if op.kind == "send" for found in _uuids_in(op.data)}
        self._ports |= {port: f"client {peer}" for port, peer in seen.client_ports.items()}
        counts: dict[str, int] = {}
        for connection in seen.accepted:
            group = connection.group
            counts[group] = counts.get(group, 0) + 1
            upstream = proxy.ports[f"up:{group}/{connection.member}" if connection.member else f"up:{group}"]
            self._connections[upstream, connection.source[1]] = f"{group}'s connection {counts[group]}"
            members = self._members.setdefault(group, {})
            members.setdefault(connection.member, f"{group}:{len(members) + 1}" if connection.member else group)
        for port, name in proxy.names.items():
            if name.startswith("up:"):
                group, _, member = name[3:].partition("/")
                self._ports[port] = self._members.get(group, {}).get(member, group)

    def by_group(self) -> list[tuple[str, list]]:  # type: ignore[type-arg]
        """Accepted connections of each group, in the order in which they were accepted."""
        groups = sorted({connection.group for connection in self._seen.accepted})
        return [(group, [c for c in self._seen.accepted if c.group == group]) for group in groups]

    def member(self, member: str, group: str) -> str:
        """Name of a group's member, by the order of first use."""
        return self._members[group][member]

    def replace(self, text: str) -> str:
        """Addresses and request ids by name. An id that the client gave stays, whatever its version digit became."""
        text = _ADDRESS.sub(self._address, text)
        return _UUID.sub(self._uuid, text)

    def replace_in_log(self, line: str) -> str:
        """The same, and the proxy's own port of an upstream connection, known by both its ends."""
        return self.replace(_UPSTREAM.sub(self._connection, line))

    def port(self, number: str) -> str:
        """The name of a port, or the number if it is no port of this run."""
        return self._ports.get(int(number), number)

    def _address(self, match: re.Match[str]) -> str:
        ip, port = match[1], int(match[2])
        if port in self._ports:
            return f"{ip}:<{self._ports[port]}>"
        return match[0] if port < 10000 else f"{ip}:<port>"

    def _connection(self, match: re.Match[str]) -> str:
        name = self._connections.get((int(match[2]), int(match[4])), "no connection that was used")
        return f"{match[1]}{match[2]}{match[3]}<{name}> "

    def _uuid(self, match: re.Match[str]) -> str:
        text = match[0]
        if _mask(text) in self._given:
            return text
        name = self._uuids.setdefault(text, f"uuid {len(self._uuids) + 1}")
        return f"<{name}, version {text[14]}, variant {'ok' if text[19] in '89ab' else text[19]}>"


def _uuids_in(data: bytes) -> list[str]:
    return _UUID.findall(data.decode("latin-1"))


def _mask(uuid: str) -> str:
    return uuid[:14] + "x" + uuid[15:]


def _transcript(wire: Wire, names: _Names, case: Case) -> list[str]:
    told: list[str] = []
    for part in wire.seen:
        if isinstance(part, str):
            told.append(f"[{part}]")
            continue
        text = part.decode("latin-1")
        if case.rejoin:
            text = _rejoin(text)
        text = _DATE.sub(r"\1<date>" + "\r", text)
        text = _SERVICE_TIME.sub(r"\1<ms>" + "\r", text)
        text = _REMAINING.sub(_round_up, text)
        text = _FORWARDED_PORT.sub(lambda match: f"{match[1]}<{names.port(match[2])}>\r", text)
        text = names.replace(text)
        told += [_shorten(line) for line in re.split(r"(?<=\n)", text) if line]
    return told


def _round_up(match: re.Match[str]) -> str:
    """The remaining time shrinks from try to try: compared to the next whole second (below one: tenth)."""
    value = int(match[2])
    step = 1000 if value > 1000 else 100
    return f"{match[1]}{-(-value // step) * step}\r"


def _shorten(line: str) -> str:
    if len(line) <= _LONG:
        return repr(line)[1:-1]
    return f"{line[:60]!r}... {len(line)} characters, sha256 {hashlib.sha256(line.encode('latin-1')).hexdigest()}"


_CHUNKED_HEAD = re.compile(r"(?i)transfer-encoding: chunked\r\n(?:[^\r\n]+\r\n)*\r\n")


def _rejoin(text: str) -> str:
    """Chunked bodies with all their chunks in one."""
    match = _CHUNKED_HEAD.search(text)
    if match is None:
        return text
    body, at = "", match.end()
    while size_line := re.compile(r"([0-9a-fA-F]+)\r\n").match(text, at):
        size = int(size_line[1], 16)
        at = size_line.end()
        if size == 0:
            return f"{text[: match.end()]}<{len(body)} in chunks>\r\n{body}\r\n<last chunk>\r\n" + _rejoin(text[at:])
        body, at = body + text[at : at + size], at + size + 2
    return f"{text[: match.end()]}<{len(body)} in chunks>\r\n{body}\r\n<unfinished>\r\n{text[at:]}"


def _log_line(line: str, names: _Names) -> str:
    line = _LOG_TIMES.sub(lambda match: f"[<t>] {match[1]} <ms> {'-' if match[2] == '-' else '<ms>'} ", line)
    return names.replace_in_log(line)


def _loosen(line: str, case: Case) -> str:
    substitute: Callable[[str, tuple[str, str]], str] = lambda text, pair: re.sub(pair[0], pair[1], text)  # noqa: E731
    for pair in case.loose:
        line = substitute(line, pair)
    return line
