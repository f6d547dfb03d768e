"""%START_TIME(...)%: conversions as Envoy 1.40 printed them for the same moment."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from proxy.access_log.times import MillisecondMemo, TimeFormatError, compile_time_format

MOMENT = 1795236821.9484  # 2026-11-21 04:53:41 UTC
FRACTION = "9484"


@pytest.fixture
def zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "IST-5:30")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(("text", "expected"), [
    ("%Y/%b/%e %H:%M:%S %Z", "2026/Nov/21 04:53:41 UTC"),
    ("%s.%3f", "1795236821.948"),
    ("%f", FRACTION + "00000"),
    ("%1f %2f %6f %9f", f"9 94 {FRACTION}00 {FRACTION}00000"),
    ("%E3S", "41.948"),
    ("%E0S", "41"),
    ("%E1S", "41.9"),
    ("%E*S", "41." + FRACTION),
    ("%E3f %E*f", f"948 {FRACTION}"),
    ("%z %Ez %E*z", "+0000 +00:00 +00:00:00"),
    ("%E4Y", "2026"),
    ("%F %T|%D|%k|%l|%j|%a|%A|%p|%y", "2026-11-21 04:53:41|11/21/26| 4| 4|325|Sat|Saturday|AM|26"),
    ("%c", "Sat Nov 21 04:53:41 2026"),
    ("%%", "%"),
    ("a)b", "a)b"),
    ("%3f %s%%%s%%%3f", "948 1795236821%1795236821%948"),
    ("", ""),
])
def test_conversion(text: str, expected: str) -> None:
    assert compile_time_format(text, local=False)(MOMENT).decode() == expected


@pytest.mark.parametrize("text", ["%Q", "%", "x%", "%0f", "%10f", "%E", "%E3", "%E*x"])
def test_unknown_conversion(text: str) -> None:
    with pytest.raises(TimeFormatError):
        compile_time_format(text, local=False)


@pytest.mark.usefixtures("zone")
def test_local_time() -> None:
    assert compile_time_format("%H:%M %z %Ez %Z", local=True)(MOMENT) == b"10:23 +0530 +05:30 IST"
    assert MillisecondMemo(local=True)[MOMENT * 1000 // 1] == b"2026-11-21T10:23:41.948+0530"


def test_memo_is_bounded_and_right() -> None:
    memo = MillisecondMemo(local=False)
    for millisecond in range(5000):
        assert memo[float(millisecond)] == b"1970-01-01T00:00:%02d.%03dZ" % divmod(millisecond, 1000)
    assert len(memo) <= 1024
