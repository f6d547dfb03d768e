"""Which downstream connections hold the proxy's exit: a count for each listener, and who is behind it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

INBOUND, OUTBOUND, ALL = "inbound", "outbound", "all"
COUNTS = (INBOUND, OUTBOUND, ALL)

# The poll is a connection to the admin port itself, so a true answer has this statistic, with 1 or more. An answer
# without it comes from a proxy that keeps no such statistics, or is none: it says nothing about connections.
WITNESS = "listener.admin.downstream_cx_active"
PATTERN = r"^listener[.].*[.]downstream_cx_active$"

_STATISTIC = re.compile(r"listener\.(.+)\.downstream_cx_active")
# Istio's static listeners listen on every address or on loopback. (A service may have port 15021 too, on its own.)
_OWN_LISTENER = re.compile(r"(?:0\.0\.0\.0|127\.0\.0\.1|\[__\]|\[__1\])_(\d+)")
_OTHERS = re.compile(r"admin(?:\.main_thread)?|envoy_internal_.*|.*\.worker_\d+|.*\.main_thread")
_MAX_SHOWN = 10


class NoCount(Exception):
    """The proxy's answer says nothing about its connections."""


@dataclass(frozen=True, slots=True)
class Holder:
    """One connection that is open. Times are seconds."""

    listener: str
    direction: str  # INBOUND, OUTBOUND or UNSPECIFIED
    peer: str
    local: str
    age_s: float
    requests: int
    active: int  # requests under way; 1 for a connection without requests

    def __str__(self) -> str:
        requests = f"{self.requests} requests, {self.active} under way" if self.requests else "no request yet"
        return f"{self.direction.lower()} {self.peer} -> {self.local} ({self.age_s:.1f}s, {requests})"


def active(statistics: Mapping[str, int], own_ports: frozenset[int]) -> dict[str, int]:
    """Open connections by listener, as statistics name it; the listeners for probes and metrics are left out.

    `own_ports` are theirs. Raises NoCount for an answer that cannot be one.
    """
    if statistics.get(WITNESS, 0) < 1:
        raise NoCount(f"the statistics of the proxy have no {WITNESS}: its stats_config has to let it pass")
    found: dict[str, int] = {}
    for name, value in statistics.items():
        match = _STATISTIC.fullmatch(name)
        if match is None or value <= 0 or _OTHERS.fullmatch(match[1]):
            continue
        own = _OWN_LISTENER.fullmatch(match[1])
        if own is None or int(own[1]) not in own_ports:
            found[match[1]] = value
    return found


def statistics_name(address: str, port: int, prefix: str = "") -> str:
    """How statistics call a listener."""
    host = f"[{address}]" if ":" in address else address
    return (prefix or f"{host}:{port}").replace(":", "_")


def wanted(counts: Mapping[str, int], which: str, directions: Mapping[str, str]) -> dict[str, int]:
    """Those of `which` (a value of COUNTS). A listener of unknown direction counts in any case."""
    if which == ALL:
        return dict(counts)
    known = {INBOUND, OUTBOUND}
    return {
        name: count
        for name, count in counts.items()
        if (direction := directions.get(name, "").lower()) == which or direction not in known
    }


def holds(holder: Holder, which: str) -> bool:
    """Whether a connection counts."""
    return which == ALL or holder.direction.lower() in (which, "unspecified")


def described(counts: Mapping[str, int], holders: tuple[Holder, ...]) -> str:
    """One line: how many, and who; listeners with counts where the proxy cannot name the peers."""
    total = sum(counts.values())
    shown = [str(holder) for holder in holders[:_MAX_SHOWN]] or [f"{n} on {name}" for name, n in sorted(counts.items())]
    if holders and total > len(shown):
        shown.append(f"and {total - len(shown)} more")
    return f"{total} connection{'' if total == 1 else 's'}: {', '.join(shown)}"
