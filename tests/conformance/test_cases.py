"""Every case, against Envoy and against ours."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.conformance import cases
from tests.conformance.conftest import SUBJECT, Pool
from tests.conformance.conversation import Conversation
from tests.conformance.dsl import Case
from tests.conformance.normalise import lines
from tests.conformance.proxies import Gone, NotStarted

PATIENCE = float(os.environ.get("CONFORMANCE_PATIENCE", "5"))
"""Seconds that one step may take before it counts as never happening."""


def observe(pool: Pool, role: str, case: Case) -> list[str]:
    """The case run against one proxy, as comparable lines; complaints on its stderr included."""
    proxy = pool.get(role, case.config)
    conversation = Conversation(case, proxy, PATIENCE)
    try:
        conversation.run()
    except Gone as error:
        conversation.seen.stuck.append(str(error))
    told = lines(conversation.seen, case, proxy)
    complaints = proxy.new_complaints() if KEEPS_QUIET[role] else ""
    ended = proxy.process.poll() is not None
    if ended:
        told += ["--- the proxy has ended", str(proxy.process.returncode), proxy.stderr()[-3000:]]
    if complaints:
        told += ["--- complaints on stderr", *complaints[:6000].splitlines()]
    if ended or conversation.seen.stuck:
        pool.discard(role, case.config)
    return told


pytestmark = pytest.mark.conformance
KEEPS_QUIET = {"oracle": False, "subject": SUBJECT == "proxy"}


@pytest.mark.parametrize("case", cases.ALL, ids=lambda case: case.name)
def test_case(case: Case, pool: Pool) -> None:
    """Client, upstreams, access log and statistics saw the same, or what the listed difference says."""
    if case.refused and SUBJECT != "envoy":
        with pytest.raises(NotStarted, match=re.escape(case.refused)):
            pool.get("subject", case.config)
        pool.done(case.config)
        return
    try:
        with ThreadPoolExecutor(2) as threads:
            theirs = threads.submit(observe, pool, "oracle", case)
            ours = threads.submit(observe, pool, "subject", case)
            expected, got = theirs.result(), ours.result()
    except NotStarted as error:
        got, expected = [str(error)], []
    finally:
        pool.done(case.config)
    if not expected:
        pytest.fail("\n".join(got), pytrace=False)
    if "--- stuck" in expected:
        pytest.fail("the case is wrong, Envoy does not complete it:\n" + "\n".join(expected), pytrace=False)
    if case.differs and SUBJECT != "envoy":
        instead = observe(pool, "oracle", dataclasses.replace(case, **case.differs.like))
        assert instead != expected, f"no difference any more: remove {case.differs.anchor} from this case"
        expected = instead
    if got != expected:
        diff = difflib.unified_diff(expected, got, "Envoy", "ours", n=30, lineterm="")
        pytest.fail("\n".join(diff), pytrace=False)
    if os.environ.get("CONFORMANCE_SHOW"):
        print("\n".join(["", f"===== {case.name}", *expected]))
