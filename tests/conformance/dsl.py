"""The vocabulary of a conformance case: a configuration, a client's steps, the upstreams' turns, what is compared.

Client and upstream speak the same small language: a step is an `Op`, `bytes` are a shorthand. See README.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

CRLF = b"\r\n"


@dataclass(frozen=True, slots=True)
class Config:
    """A configuration file with `$(placeholders)`, and the flags that the proxies get beside `-c`.

    `$(name)` is a free port of listener `name`; `$(up:a)` the port of scripted upstream `a` (`$(up:a/0)`, `$(up:a/1)`:
    members of one group that shares one script); `$(refused)` a port that refuses connections, `$(full)` one whose
    accept queue is full, so that a connect stays unanswered; `$(admin)`; `$(log)` the access log's path.
    """

    text: str
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Op:
    """One thing that a peer does or waits for; `peer` names the client connection that does it."""

    kind: str
    data: Any = None
    peer: str = "c"


Step = Op | bytes | list[Any] | tuple[Any, ...]
"""An operation; `bytes` = send them, then read one whole response; a sequence = its items one after another."""

Turn = bytes | tuple[Op, ...]
"""What an upstream does next: `bytes` = read one whole request, then send them; a tuple = exactly these operations."""


# --- operations -------------------------------------------------------------------------------------------------------


def connect(listener: str = "main") -> Op:
    """Open (or open anew) the client connection. Without it the first step connects to `main`."""
    return Op("connect", listener)


def send(*parts: bytes) -> Op:
    """Write these bytes."""
    return Op("send", b"".join(parts))


def dribble(data: bytes) -> Op:
    """Write these bytes one by one, each in a segment of its own."""
    return Op("dribble", data)


def response(*, head_only: bool = False) -> Op:
    """Read one response, interim ones included; `head_only` when it answers HEAD or CONNECT."""
    return Op("response", head_only)


def request() -> Op:
    """Read one whole request (upstream)."""
    return Op("request")


def head() -> Op:
    """Read up to and including an empty line."""
    return Op("until", CRLF + CRLF)


def until(mark: bytes) -> Op:
    """Read up to and including `mark`."""
    return Op("until", mark)


def recv(size: int) -> Op:
    """Read exactly `size` bytes."""
    return Op("recv", size)


def end(*, either: bool = False) -> Op:
    """Read to the end of the stream; FIN and RST are told apart unless `either` (where the kernel decides)."""
    return Op("end", either)


def shut() -> Op:
    """Half-close: send FIN, keep reading."""
    return Op("shut")


def close() -> Op:
    """Close both directions."""
    return Op("close")


def reset() -> Op:
    """Close with RST."""
    return Op("reset")


def accept() -> Op:
    """First in an upstream's turn: the turn starts when a connection is accepted, not when its first bytes come."""
    return Op("accept")


def signal(name: str) -> Op:
    """Let everyone who waits for `name` go on."""
    return Op("signal", name)


def wait(name: str) -> Op:
    """Wait for `signal(name)`."""
    return Op("wait", name)


def stat(name: str, value: int) -> Op:
    """Wait until the statistic has grown by `value` since the case began."""
    return Op("stat", (name, value))


def admin(method: str, path: str) -> Op:
    """Call the admin interface; status and body become part of what is compared."""
    return Op("admin", (method, path))


def pressure(resource: str, value: float) -> Op:
    """Have the overload manager see this pressure (0 to 1) on `resource`, an injected resource whose file is
    $(pressure:resource), and wait until it has."""
    return Op("pressure", (resource, value))


def on(peer: str, *steps: Step) -> list[Op]:
    """The same steps, done by another client connection."""
    return [dataclasses.replace(op, peer=peer) for op in flatten(steps)]


def bad(data: bytes) -> list[Op]:
    """Send what must be refused; read the response and the end of the connection."""
    return [send(data), response(), end()]


def flatten(steps: Iterable[Step]) -> list[Op]:
    """All steps as operations, shorthands spelled out."""
    ops: list[Op] = []
    for step in steps:
        if isinstance(step, Op):
            ops.append(step)
        elif isinstance(step, bytes):
            ops += [send(step), response(head_only=step.startswith(b"HEAD "))]
        else:
            ops += flatten(step)
    return ops


# --- messages ---------------------------------------------------------------------------------------------------------


def msg(*lines: str | bytes, body: bytes = b"") -> bytes:
    """Start line and header lines joined with CRLF, an empty line, the body. Nothing is added."""
    return CRLF.join(line if isinstance(line, bytes) else line.encode("latin-1") for line in lines) + CRLF + CRLF + body


def get(path: str = "/", *headers: str, host: str = "x.com", method: str = "GET") -> bytes:
    """A request without body."""
    return msg(f"{method} {path} HTTP/1.1", f"Host: {host}", *headers)


def post(path: str = "/", body: bytes = b"", *headers: str, host: str = "x.com", method: str = "POST") -> bytes:
    """A request with a body of known length."""
    return msg(f"{method} {path} HTTP/1.1", f"Host: {host}", *headers, f"Content-Length: {len(body)}", body=body)


def chunks(*parts: bytes, trailers: bytes = b"") -> bytes:
    """A chunked body."""
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n" + trailers + CRLF


def reply(status: int | str = 200, body: bytes = b"ok", *headers: str) -> bytes:
    """An upstream's response with a body of known length."""
    line = f"HTTP/1.1 {status}" + (" X" if isinstance(status, int) else "")
    return msg(line, *headers, f"content-length: {len(body)}", body=body)


OK = msg("HTTP/1.1 200 OK", "content-length: 2", body=b"ok")
"""What an upstream answers when its script is exhausted."""


# --- cases ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Differs:
    """A deliberate difference: `anchor` names its entry in docs/differences-from-envoy.md, `like` replaces fields of
    the case, and we must do with the case what Envoy does with the replaced one."""

    anchor: str
    like: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Case:
    """One conversation, compared between the two proxies.

    `up` maps an upstream (or group) to its turns, used in the order in which requests arrive; a plain sequence is
    meant for upstream `a`. `log` is the number of access-log lines to wait for. `stats` are the statistics whose
    growth is compared; placeholders work in them. `loose` holds pairs of a pattern and its replacement, for what this
    case makes volatile. `rejoin` compares chunked bodies by content, where the proxy's reads decide their framing.
    `refused` is part of the error with which we refuse the configuration as not supported yet: the case waits for it.
    """

    name: str
    config: Config
    client: Sequence[Step]
    up: Mapping[str, Iterable[Turn]] | Sequence[Turn] = ()
    log: int = 1
    stats: tuple[str, ...] = ()
    loose: tuple[tuple[str, str], ...] = ()
    rejoin: bool = False
    differs: Differs | None = None
    refused: str = ""

    def ops(self) -> list[Op]:
        """The client's steps, spelled out."""
        return flatten(self.client)

    def scripts(self) -> dict[str, list[Turn]]:
        """The turns of each upstream."""
        if isinstance(self.up, Mapping):
            return {name: list(turns) for name, turns in self.up.items()}
        return {"a": list(self.up)}
