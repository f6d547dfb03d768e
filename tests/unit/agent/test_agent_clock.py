"""A clock that is set in the middle of things must not change how long anything lasts."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
WALL = re.compile(r"\btime\.(time|time_ns|gmtime|localtime)\(|\bdatetime\b|CLOCK_REALTIME")
# Where the time of day is what is wanted: log lines, the Date header, names of certificates.
TELLS_THE_TIME = {"agent/log.py", "agent/status/http_server.py"}


def test_durations_are_measured_on_the_monotonic_clock() -> None:
    found = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "agent").rglob("*.py")
        if WALL.search(path.read_text(encoding="utf-8"))
    }
    assert found == TELLS_THE_TIME
