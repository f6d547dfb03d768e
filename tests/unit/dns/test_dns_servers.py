"""What is known about each server, in which order they are asked, and when one is asked only to learn about it."""

from __future__ import annotations

import socket

import pytest

from proxy.config.model import SocketAddress
from proxy.dns.servers import (
    DOWN_AFTER,
    FIRST_TRY,
    MAX_TRY,
    MIN_TRY,
    PROBE_BAD,
    PROBE_BAD_MAX,
    PROBE_IDLE,
    REFUSES_AFTER,
    Server,
    Servers,
)

ADDRESSES = [SocketAddress(f"10.0.0.{i}", 53) for i in (1, 2, 3)]


def three() -> tuple[Servers, Server, Server, Server]:
    servers = Servers()
    servers.update(ADDRESSES)
    one, two, three = servers.all
    return servers, one, two, three


def test_round_trip_time_is_smoothed_as_rfc_6298_says() -> None:
    server = Server(ADDRESSES[0])
    server.answered(0.1, 1.0)
    assert (server.srtt, server.rttvar) == (0.1, 0.05)
    server.answered(0.2, 1.0)
    assert server.srtt == pytest.approx(0.1 + 0.1 / 8)
    assert server.rttvar == pytest.approx(0.05 + (0.1 - 0.05) / 4)
    before = server.srtt
    server.answered(None, 1.0)
    assert server.srtt == before
    server.answered(0.0, 1.0)
    assert server.srtt > 0


@pytest.mark.parametrize(("seconds", "wait"), [(None, FIRST_TRY), (0.001, MIN_TRY), (0.2, 0.6), (1.5, MAX_TRY)])
def test_how_long_to_wait(seconds: float | None, wait: float) -> None:
    server = Server(ADDRESSES[0])
    if seconds:
        server.answered(seconds, 1.0)
    assert server.wait == pytest.approx(wait)


def test_the_fastest_first_and_unknown_ones_after_those_that_answer() -> None:
    servers, one, two, three_ = three()
    assert servers.order() == [one, two, three_]
    three_.answered(0.02, 1.0)
    assert servers.order() == [three_, one, two]
    two.unanswered(0.5, 1.0)
    assert servers.order() == [three_, one, two]
    one.answered(0.02, 1.0)
    two.answered(0.01, 1.0)
    three_.answered(0.03, 1.0)
    assert servers.order() == [two, one, three_]
    two.unanswered(2.0, 3.0)
    assert servers.order() == [one, three_, two]
    one.refusals = REFUSES_AFTER
    assert servers.order() == [three_, two, one]
    for _ in range(DOWN_AFTER):
        three_.unanswered(2.0, 3.0)
    assert servers.order() == [two, one, three_]
    assert [server.state for server in servers.all] == ["refusing", "up", "down"]


def test_down_is_who_does_not_answer_several_in_sequence(capfd: pytest.CaptureFixture[str]) -> None:
    server = Server(ADDRESSES[0])
    for _ in range(DOWN_AFTER - 1):
        server.unanswered(1.0, 2.0)
    server.answered(0.01, 2.5)
    for _ in range(DOWN_AFTER - 1):
        server.unanswered(3.0, 4.0)
    assert not server.down
    server.unanswered(3.0, 4.0)
    assert server.down
    server.unanswered(3.0, 4.0)
    server.answered(0.01, 5.0)
    server.answered(0.01, 5.0)
    assert not server.down
    told = [line.rpartition("] ")[2] for line in capfd.readouterr().err.splitlines()]
    assert told == ["DNS server 10.0.0.1:53 does not answer", "DNS server 10.0.0.1:53 answers again"]


def test_a_slow_name_does_not_make_a_server_bad() -> None:
    """It answered others while that one waited."""
    server = Server(ADDRESSES[0])
    server.answered(0.01, 1.5)
    for _ in range(10):
        server.unanswered(1.0, 3.0)
    assert server.failures == 0
    assert server.failed == 10


def test_all_down() -> None:
    servers, *each = three()
    assert not servers.all_down()
    for server in each:
        assert not servers.all_down()
        for _ in range(DOWN_AFTER):
            server.unanswered(1.0, 2.0)
    assert servers.all_down()
    assert not Servers().all_down()


def test_servers_that_stay_keep_what_is_known() -> None:
    servers, one, two, three_ = three()
    two.answered(0.01, 1.0)
    other = SocketAddress("10.0.0.9", 53)
    assert servers.update([other, ADDRESSES[1], ADDRESSES[1]])
    assert servers.all[1] is two
    assert [server.address for server in servers.all] == [other, ADDRESSES[1]]
    assert not servers.update([other, ADDRESSES[1]])
    assert servers.update([ADDRESSES[1], other])
    assert servers.update([])


def test_those_that_are_not_asked_are_probed_now_and_then() -> None:
    servers, one, two, three_ = three()
    for server, rtt in ((one, 0.01), (two, 0.02), (three_, 0.03)):
        server.answered(rtt, 100.0)
    assert servers.to_probe(one, 100.0 + PROBE_IDLE - 0.1) is None
    now = 100.0 + PROBE_IDLE
    assert servers.to_probe(one, now) is two
    assert servers.to_probe(one, now) is three_
    assert servers.to_probe(one, now) is None
    two.answered(0.02, now + 0.02)
    assert servers.to_probe(one, now + PROBE_IDLE) is three_


def test_unknown_ones_are_probed_at_once() -> None:
    servers, one, two, three_ = three()
    assert [servers.to_probe(one, 5.0) for _ in range(3)] == [two, three_, None]


def test_a_bad_server_is_probed_sooner_and_then_less_and_less_often() -> None:
    servers, one, two, _ = three()
    servers.update(ADDRESSES[:2])
    one.answered(0.01, 0.0)
    two.answered(0.02, 0.0)
    two.unanswered(1.0, 2.0)
    now, waits = 2.0, []
    for _ in range(7):
        before = now
        while servers.to_probe(one, now) is None:
            now += 0.125
        waits.append(now - before)
        two.unanswered(now, now)
    assert waits == [PROBE_BAD, 1, 2, 4, 8, PROBE_BAD_MAX, PROBE_BAD_MAX]
    two.answered(0.01, now)
    assert servers.to_probe(one, now + PROBE_IDLE - 0.1) is None


def test_addresses() -> None:
    assert Server(ADDRESSES[0]).destination() == ("10.0.0.1", 53)
    assert Server(SocketAddress("2001:db8::1", 53)).destination() == ("2001:db8::1", 53, 0, 0)
    name = socket.if_indextoname(1)
    assert Server(SocketAddress(f"fe80::1%{name}", 53)).destination()[3] == 1
    with pytest.raises(OSError):
        Server(SocketAddress("fe80::1%nosuchif", 53)).destination()


def test_description() -> None:
    server = Server(SocketAddress("2001:db8::1", 53))
    assert repr(server) == "<Server [2001:db8::1]:53 unknown srtt=0.0ms>"
    server.answered(0.0125, 1.0)
    assert server.describe() == {
        "address": "[2001:db8::1]:53", "state": "up", "rtt_ms": 12.5, "rtt_variance_ms": 6.25,
        "unanswered_in_sequence": 0, "refusals_in_sequence": 0, "asked": 0, "replies": 1, "failures": 0, "pending": 0}
