"""Differential against llhttp (httptools): never do both accept a message and see different bodies."""

from __future__ import annotations

import random

import httptools
import pytest

from tests.unit.http.http_samples import REQUESTS, RESPONSES, Client, Server

ALPHABET = [b"\r", b"\n", b"\r\n", b" ", b"\t", b"\0", b"\x0b", b"\x0c", b"\x7f", b"\x80", b"\xff", b":", b";", b",",
            b"0",
            b"5", b"a", b"F", b"g", b"-", b"+", b"_", b"x", b"chunked", b"Content-Length: 5\r\n",
            b"content-length:1\r\n",
            b"Transfer-Encoding: chunked\r\n", b"transfer-encoding:\tchunked\r\n", b"Connection: close\r\n",
            b"0\r\n\r\n"]
MUTANTS = 40
"""Of each sample."""


def mutants(wire: bytes, rng: random.Random) -> list[bytes]:
    made = [wire]
    for _ in range(MUTANTS):
        mutant = wire
        for _ in range(rng.randint(1, 3)):
            at = rng.randint(0, len(mutant))
            kind = rng.randrange(4)
            if kind == 0:
                mutant = mutant[:at] + rng.choice(ALPHABET) + mutant[at:]
            elif kind == 1:
                mutant = mutant[:at] + mutant[at + rng.randint(1, 4):]
            elif kind == 2:
                mutant = mutant[:at] + rng.choice(ALPHABET) + mutant[at + 1:]
            else:
                end = rng.randint(at, min(len(mutant), at + 30))
                mutant = mutant[:end] + mutant[at:end] + mutant[end:]
        made.append(mutant)
    return made


class Sink:
    """Bodies of complete messages."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self._body = b""
        self.parser: httptools.HttpResponseParser | None = None

    def on_message_begin(self) -> None:
        self._body = b""

    def on_body(self, data: bytes) -> None:
        self._body += data

    def on_message_complete(self) -> None:
        if self.parser is None or self.parser.get_status_code() >= 200:
            self.bodies.append(self._body)


def by_llhttp(wire: bytes, client: bool) -> list[bytes]:
    sink = Sink()
    parser: httptools.HttpResponseParser | httptools.HttpRequestParser
    if client:
        sink.parser = parser = httptools.HttpResponseParser(sink)
    else:
        parser = httptools.HttpRequestParser(sink)
    try:
        parser.feed_data(wire)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade):
        pass
    return sink.bodies


def by_us(wire: bytes, client: bool) -> list[bytes]:
    codec = Client() if client else Server()
    codec.feed(wire)
    bodies: list[bytes] = []
    body = b""
    for event in codec.events.list:
        kind = event[0]
        if kind in ("request", "response"):
            body = b""
            if (event[6] == "none") if kind == "request" else event[3]:
                if event[1] == b"CONNECT" or (kind == "request" and b"upgrade" in event[7]):
                    break
                bodies.append(b"")
        elif kind == "data":
            body += event[1]
        elif kind == "end":
            bodies.append(body)
    return bodies


@pytest.mark.parametrize("sample", [s for s in REQUESTS if len(s.wire) < 1000 and not s.kind], ids=str)
def test_requests(sample: object) -> None:
    rng = random.Random(str(sample))
    for wire in mutants(sample.wire, rng):  # type: ignore[attr-defined]
        pairs = zip(by_us(wire, False), by_llhttp(wire, False), strict=False)
        assert all(ours == theirs for ours, theirs in pairs), wire


@pytest.mark.parametrize("sample", [s for s in RESPONSES if len(s.wire) < 1000 and not s.kind], ids=str)
def test_responses(sample: object) -> None:
    rng = random.Random(str(sample))
    for wire in mutants(sample.wire, rng):  # type: ignore[attr-defined]
        pairs = zip(by_us(wire, True), by_llhttp(wire, True), strict=False)
        assert all(ours == theirs for ours, theirs in pairs), wire
