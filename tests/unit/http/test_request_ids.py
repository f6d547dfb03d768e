"""Request ids: valid, unique, and marked with the tracing decision."""

from __future__ import annotations

import uuid

import pytest

from proxy.http.request_id import (
    CLIENT_FORCED,
    NOT_TRACEABLE,
    SAMPLING,
    SERVICE_FORCED,
    RequestIds,
    is_uuid,
    percent_enabled,
    sampling_value,
    trace_reason,
    with_trace_reason,
)


def test_ids_are_random_uuids() -> None:
    source = RequestIds()
    made = [source.make() for _ in range(5 * RequestIds.BATCH)]
    assert len(set(made)) == len(made)
    for one in made:
        parsed = uuid.UUID(one.decode())
        assert (parsed.version, parsed.variant, str(parsed).encode()) == (4, uuid.RFC_4122, one)
    for position in (0, 9, 16, 19, 20, 35):
        assert len({one[position] for one in made}) == (4 if position == 19 else 16)


def test_two_sources_differ() -> None:
    assert RequestIds().make() != RequestIds().make()


@pytest.mark.parametrize("reason", [NOT_TRACEABLE, SAMPLING, SERVICE_FORCED, CLIENT_FORCED])
def test_trace_reason(reason: bytes) -> None:
    one = RequestIds().make()
    marked = with_trace_reason(one, reason)
    assert trace_reason(marked) == reason
    assert is_uuid(marked) and marked[:14] + marked[15:] == one[:14] + one[15:]


def test_sampling_value() -> None:
    assert sampling_value(b"12345678-" + b"x" * 27) == 0x12345678 % 10000
    assert sampling_value(b"nonsense-" + b"x" * 27) is None


@pytest.mark.parametrize("percent", [0.0, 0.01, 1.0, 37.5, 99.99, 100.0])
def test_percentages(percent: float) -> None:
    assert sum(percent_enabled(percent, value) for value in range(10000)) == round(percent * 100)
    drawn = sum(percent_enabled(percent, None) for _ in range(4000)) / 40
    assert abs(drawn - percent) < 5
    if percent in (0.0, 100.0):
        assert drawn == percent
