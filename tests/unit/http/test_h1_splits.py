"""Both codecs on wire samples: fed whole, byte by byte and cut at every point, they report the same."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from proxy.http.h1 import FIELD_MEMO
from tests.unit.http.http_samples import REQUESTS, RESPONSES, Client, Event, Sample, Server

SAMPLES = [*((Server, s) for s in REQUESTS), *((Client, s) for s in RESPONSES)]
IDS = [f"{codec.__name__.lower()}: {sample}" for codec, sample in SAMPLES]
LONG = 400
"""Samples longer than this are cut at every 7th point only."""


def events(codec: type[Server] | type[Client], sample: Sample, pieces: Iterable[bytes]) -> list[Event]:
    one = codec(**sample.kind)
    for piece in pieces:
        one.feed(piece)
    return one.events.list


@pytest.mark.parametrize(("codec", "sample"), SAMPLES, ids=IDS)
def test_whole(codec: type[Server] | type[Client], sample: Sample) -> None:
    FIELD_MEMO.clear()
    assert events(codec, sample, [sample.wire]) == sample.events
    # Once more, with the fields known.
    assert events(codec, sample, [sample.wire]) == sample.events


@pytest.mark.parametrize(("codec", "sample"), SAMPLES, ids=IDS)
def test_split(codec: type[Server] | type[Client], sample: Sample) -> None:
    wire = sample.wire
    assert events(codec, sample, [wire[i:i + 1] for i in range(len(wire))]) == sample.events
    for at in range(1, len(wire), 1 if len(wire) <= LONG else 7):
        assert events(codec, sample, [wire[:at], wire[at:]]) == sample.events, (wire[:at], wire[at:])


@pytest.mark.parametrize("sample", [s for s in REQUESTS if len(s.wire) < 90], ids=str)
def test_three_pieces(sample: Sample) -> None:
    wire = sample.wire
    for a in range(1, len(wire), 3):
        for b in range(a + 1, len(wire), 2):
            assert events(Server, sample, [wire[:a], wire[a:b], wire[b:]]) == sample.events


@pytest.mark.parametrize("sample", REQUESTS, ids=str)
def test_answered_later(sample: Sample) -> None:
    """What follows a request waits until that has been answered, and then means the same."""
    for pieces in ([sample.wire], [sample.wire[i:i + 5] for i in range(0, len(sample.wire), 5)]):
        codec = Server(**sample.kind, answer=False)
        seen = 0
        for piece in pieces:
            codec.feed(piece)
        while len(codec.events.list) > seen and codec._state == codec.HELD:
            heads = [e for e in codec.events.list[seen:] if e[0] == "request"]
            assert len(heads) == 1
            seen = len(codec.events.list)
            codec.next_message()
        assert codec.events.list == sample.events
