"""Patterns that are text with ``.*`` in places are matched without RE2, and as RE2 would."""

from __future__ import annotations

import re2
from hypothesis import given
from hypothesis import strategies as st

from proxy.config.regex import SafeRegex

OPTIONS = re2.Options()
OPTIONS.encoding = re2.Options.Encoding.LATIN1
PATTERNS = st.lists(st.sampled_from(["a", "b", "\\.", ".*", "/"]), max_size=8).map("".join)
VALUES = st.text("ab./\n", max_size=12).map(str.encode)


@given(PATTERNS, VALUES)
def test_as_re2(pattern: str, value: bytes) -> None:
    regex = SafeRegex(pattern)
    expected = re2.compile(pattern.encode(), OPTIONS).fullmatch(value) is not None
    assert (regex.fullmatch(value) is not None) is expected
    assert regex._compiled is None, "RE2 was loaded for a plain pattern"
