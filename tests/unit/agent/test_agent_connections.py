"""Which connections hold the exit: reading the proxy's statistics, and saying who it is."""

import pytest

from agent.lifecycle import connections
from agent.lifecycle.connections import ALL, INBOUND, OUTBOUND, WITNESS, Holder, NoCount

OWN = frozenset((15021, 15090))
STATS = {
    WITNESS: 1,
    "listener.admin.main_thread.downstream_cx_active": 1,
    "listener.0.0.0.0_15006.downstream_cx_active": 2,
    "listener.0.0.0.0_15006.worker_0.downstream_cx_active": 2,
    "listener.0.0.0.0_15021.downstream_cx_active": 1,
    "listener.[__]_15090.downstream_cx_active": 1,
    "listener.127.0.0.1_15090.downstream_cx_active": 1,
    "listener.[__1]_15021.downstream_cx_active": 1,
    "listener.envoy_internal_connect_originate.downstream_cx_active": 7,
    "listener.10.96.0.20_15021.downstream_cx_active": 3,
    "listener.[fd00__9]_8080.downstream_cx_active": 4,
    "listener.0.0.0.0_9080.downstream_cx_active": 0,
    "listener.0.0.0.0_9080.downstream_cx_total": 9,
    "listener.my_prefix.downstream_cx_active": 5,
    "cluster.x.downstream_cx_active": 6,
}


def test_only_downstream_work_counts() -> None:
    """Probes, metrics, admin and shares of single workers do not, on any wildcard or loopback; a service does."""
    assert connections.active(STATS, OWN) == {
        "0.0.0.0_15006": 2, "10.96.0.20_15021": 3, "[fd00__9]_8080": 4, "my_prefix": 5,
    }  # fmt: skip


@pytest.mark.parametrize("stats", [{}, {"listener.0.0.0.0_15006.downstream_cx_active": 1}, {WITNESS: 0}])
def test_an_answer_without_the_witness_is_none(stats: dict[str, int]) -> None:
    with pytest.raises(NoCount, match="have no listener.admin.downstream_cx_active"):
        connections.active(stats, OWN)


def test_nothing_open_is_an_answer() -> None:
    assert connections.active({WITNESS: 1}, OWN) == {}


@pytest.mark.parametrize(
    ("which", "expected"),
    [(ALL, {"in": 1, "out": 2, "any": 3, "new": 4}), (INBOUND, {"in": 1, "any": 3, "new": 4}),
     (OUTBOUND, {"out": 2, "any": 3, "new": 4})],
)  # fmt: skip
def test_a_listener_of_unknown_direction_counts_in_any_case(which: str, expected: dict[str, int]) -> None:
    directions = {"in": "INBOUND", "out": "OUTBOUND", "any": "UNSPECIFIED"}
    assert connections.wanted({"in": 1, "out": 2, "any": 3, "new": 4}, which, directions) == expected


def test_names_of_statistics() -> None:
    assert connections.statistics_name("0.0.0.0", 15006) == "0.0.0.0_15006"
    assert connections.statistics_name("::", 15006) == "[__]_15006"
    assert connections.statistics_name("fd00::9", 80) == "[fd00__9]_80"
    assert connections.statistics_name("0.0.0.0", 80, "a:b") == "a_b"


def test_who_it_is() -> None:
    one = Holder("virtualInbound", "INBOUND", "10.0.0.9:5", "10.0.0.1:80", 12.34, 45, 1)
    two = Holder("raw", "OUTBOUND", "10.0.0.9:6", "10.0.0.1:81", 1.0, 0, 1)
    assert connections.described({"a": 1}, (one,)) == (
        "1 connection: inbound 10.0.0.9:5 -> 10.0.0.1:80 (12.3s, 45 requests, 1 under way)"
    )
    assert connections.described({"a": 30}, (one, two)).endswith("(1.0s, no request yet), and 28 more")
    assert connections.described({"b": 2, "a": 1}, ()) == "3 connections: 1 on a, 2 on b"
    assert connections.described({"a": 99}, (one,) * 99).count("inbound") == 10
    assert [connections.holds(one, which) for which in connections.COUNTS] == [True, False, True]
