"""Memos of ready replies: bounds, turns, and how the one for answers of the cache forgets."""

from __future__ import annotations

import ctypes
from typing import Any, cast

import pytest
from dns_service_world import FakeLoop

from proxy.dns import memo as module
from proxy.dns.memo import FadingMemo, Memo


def memos() -> list[Memo]:
    return [Memo(), FadingMemo(cast(Any, FakeLoop()))]


def question(n: int) -> bytes:
    return b"question %d" % n


@pytest.mark.parametrize("kind", [0, 1])
def test_bounds(monkeypatch: pytest.MonkeyPatch, kind: int) -> None:
    memo = memos()[kind]
    monkeypatch.setattr(module, "MAX_QUERIES", 5)
    for n in range(23):
        memo.keep(question(n), [b"idreply"])
        assert len(memo) == n % 5 + 1 and question(n) in memo
    monkeypatch.undo()
    memo = memos()[kind]
    monkeypatch.setattr(module, "MAX_BYTES", 1000)
    for n in range(100):
        memo.keep(question(n), [bytes(100)])
        assert memo.bytes <= 1000 and question(n) in memo
        assert memo.bytes == sum(len(key) + 100 for key in memo)
    memo.clear()
    assert not memo and memo.bytes == 0


@pytest.mark.parametrize("kind", [0, 1])
def test_the_same_query_twice_counts_once(kind: int) -> None:
    """As two clients' in one batch, neither of which is known yet."""
    memo = memos()[kind]
    for _ in range(3):
        memo.keep(question(1), [b"idreply"])
    assert memo.bytes == len(question(1)) + len(b"idreply")
    if isinstance(memo, FadingMemo):
        assert sum(map(len, memo._steps)) == 1


def test_turns_and_what_the_kernel_gets() -> None:
    memo = Memo()
    memo.keep(b"one", [b"id-a"])
    memo.keep(b"three", [b"id-a", b"id-bb", b"id-ccc"])
    assert [memo[b"one"]()[2] for _ in range(3)] == [b"-a"] * 3
    taken = [memo[b"three"]() for _ in range(6)]
    assert [rest for _, _, rest in taken] == [b"-a", b"-bb", b"-ccc"] * 2
    assert all(ctypes.string_at(where, size) == rest for where, size, rest in taken)


def test_forgetting_is_spread() -> None:
    loop = FakeLoop()
    memo = FadingMemo(cast(Any, loop))
    count = 8 * module.STEPS
    for n in range(count):
        memo.keep(question(n), [b"idreply"])
    assert [delay for delay, _ in loop.timers] == [module.FRESH / module.STEPS], "one timer"
    left = []
    while loop.timers:
        loop.run_timers()
        left.append(len(memo))
    steps = [before - after for before, after in zip([count, *left], left, strict=False)]
    assert sum(steps) == count and len(steps) <= module.STEPS
    assert max(steps) == count // (module.STEPS // 2), "an eighth at a time"
    assert steps[:module.STEPS // 2 - 1] == [0] * (module.STEPS // 2 - 1), "half the time at least"
    assert memo.bytes == 0
    memo.keep(question(1), [b"idreply"])
    assert loop.timers
    memo.clear()
    assert not loop.timers and not memo
