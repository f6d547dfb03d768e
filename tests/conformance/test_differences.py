"""Every deliberate difference that a case claims is documented, and the other way round."""

from __future__ import annotations

import re

import pytest

from tests.conformance import cases
from tests.conformance.proxies import REPOSITORY

pytestmark = pytest.mark.conformance
DOCUMENT = (REPOSITORY / "docs" / "differences-from-envoy.md").read_text()
ANCHORS = re.findall(r'<a id="([^"]+)"></a>', DOCUMENT)
CLAIMED = {case.differs.anchor for case in cases.ALL if case.differs}


def test_claimed_differences_are_documented() -> None:
    """The anchor of each `differs` exists, once."""
    assert not CLAIMED - set(ANCHORS)
    assert len(ANCHORS) == len(set(ANCHORS))


def test_entries_say_their_anchor() -> None:
    """An entry repeats its anchor in readable text, so that it can be searched for."""
    assert [anchor for anchor in ANCHORS if f"(`{anchor}`)" not in DOCUMENT] == []
