"""Forwarding with a clock turned by hand: who is asked and when, what clients get, what is remembered."""

from __future__ import annotations

from typing import Any

import dns.flags
import dns.message
import pytest

from proxy.dns.forwarder import MAX_WAITERS
from tests.unit.dns.dns_upstream_world import SOA, World, query_of

ANSWER = "foo.example. 60 IN A 10.1.1.1 10.1.1.2"
BOTH = ["10.1.1.1", "10.1.1.2"]


def test_a_name_is_asked_once_and_then_known() -> None:
    world = World()
    first = world.ask("Foo.Example.")
    sent = world.take()
    assert not first.answered
    assert sent.query.question[0].to_text() == "foo.example. IN A"
    assert dns.flags.to_text(sent.query.flags) == "RD AD"
    assert (sent.query.edns, sent.query.payload, sent.query.ednsflags) == (0, 1232, 0)
    sent.answer(ANSWER, after=0.012)
    assert sorted(first.addresses) == BOTH
    assert first.ttls == [60]
    assert first.why == "upstream 10.0.0.1:53 in 12.0 ms"
    assert first.message.question[0].name.to_text() == "Foo.Example."
    world.loop.advance(10.5)
    second = world.ask("fOO.eXAMPLE.")
    assert second.ttls == [50]
    assert second.why == "cache hit, 50 s left"
    world.loop.advance(50)
    assert not world.ask().answered
    world.take().answer(ANSWER)
    world.settled()
    assert (world.stats.cache_hits, world.stats.cache_misses, world.stats.upstream_requests_total) == (1, 2, 2)
    assert world.stats.upstream_request_duration == {12: 1, 0: 1}
    assert world.stats.cache_entries == 1


def test_only_the_first_answer_is_authoritative() -> None:
    world = World()
    first = world.ask()
    world.take().answer(ANSWER, aa=True)
    assert first.message.flags & dns.flags.AA
    assert not world.ask().message.flags & dns.flags.AA


def test_those_who_ask_the_same_wait_for_one_reply() -> None:
    world = World()
    asked = [world.ask(name, client=("10.9.0.1", 4000 + i), number=i, edns=edns, tcp=tcp)
             for i, (name, edns, tcp) in enumerate([("foo.example.", None, False), ("FOO.example.", 4096, False),
                                                    ("foo.EXAMPLE.", None, True)])]
    world.take().answer(f"foo.example. 60 IN A {' '.join(f'10.1.1.{i}' for i in range(100))}")
    assert [len(one.message.answer[0]) for one in asked] == [30, 100, 100]
    assert [bool(one.message.flags & dns.flags.TC) for one in asked] == [True, False, False]
    world.settled()
    assert world.stats.upstream_requests_total == 1


@pytest.mark.parametrize("more", [{"kind": "AAAA"}, {"do": True}, {"cd": True}, {"rd": False}, {"name": "a.example."}])
def test_those_who_ask_something_else_do_not(more: dict[str, Any]) -> None:
    world = World()
    world.ask()
    world.ask(**more)
    assert len(world.open) == 2


def test_how_many_may_wait_is_bounded() -> None:
    world = World()
    asked = [world.ask(number=i) for i in range(MAX_WAITERS + 1)]
    assert asked[-1].rcode == "SERVFAIL"
    assert asked[-1].why == "queue full: SERVFAIL"
    assert world.stats.queue_full_total == 1
    world.take().answer(ANSWER)
    assert all(sorted(one.addresses) == BOTH for one in asked[:-1])
    world.settled()


def test_dnssec_is_asked_for_by_those_who_want_it() -> None:
    world = World()
    asked = world.ask(do=True, cd=True)
    sent = world.take()
    assert sent.query.ednsflags == dns.flags.DO
    assert sent.query.flags & dns.flags.CD
    sent.answer(ANSWER)
    assert asked.message.ednsflags == dns.flags.DO
    assert asked.message.flags & dns.flags.CD


def test_without_recursion_nothing_is_remembered() -> None:
    world = World()
    asked = world.ask(rd=False)
    sent = world.take()
    assert not sent.query.flags & dns.flags.RD
    sent.answer(authority=("example. 300 IN NS ns.example.",))
    assert asked.message.authority
    assert not world.ask().answered
    world.take().answer(ANSWER)
    # But who asks so gets what is known.
    assert sorted(world.ask(rd=False).addresses) == BOTH


def test_negative_answers_are_known_for_as_long_as_soa_says() -> None:
    world = World()
    first = world.ask("none.example.")
    world.take().answer(authority=(SOA,), rcode="NXDOMAIN")
    assert first.rcode == "NXDOMAIN"
    world.loop.advance(59)
    second = world.ask("none.example.")
    assert second.rcode == "NXDOMAIN"
    assert second.message.authority[0].ttl == 1
    world.loop.advance(1)
    assert not world.ask("none.example.").answered
    world.take().answer(rcode="NXDOMAIN")
    assert not world.ask("none.example.").answered


def test_the_cache_can_be_off() -> None:
    world = World(cache_size=0)
    for _ in range(2):
        asked = world.ask()
        world.take().answer(ANSWER)
        assert asked.answered
    assert (world.stats.cache_hits, world.stats.cache_misses, world.stats.cache_entries) == (0, 0, 0)
    for _ in range(2):
        asked = world.ask()
        world.take().answer(rcode="SERVFAIL")
        assert asked.rcode == "SERVFAIL"
    world.settled()


# --- which server -----------------------------------------------------------------------------------------------------


def known(world: World, **rtt: float) -> None:
    """Let the servers be known: s1=0.01."""
    for name, seconds in rtt.items():
        world.forwarder.servers.all[int(name[1:]) - 1].answered(seconds, world.loop.time())


def test_the_fastest_is_asked_and_the_others_only_besides() -> None:
    world = World(3)
    known(world, s1=0.03, s2=0.01, s3=0.02)
    for number in range(5):
        world.ask(f"n{number}.example.")
        world.take("10.0.0.2").answer(after=0.01)
    world.loop.advance(10)
    world.ask("next.example.")
    assert world.servers_asked == ["10.0.0.2", "10.0.0.1"]
    world.take("10.0.0.1").answer(after=0.001)
    assert len(world.open) == 1
    world.take("10.0.0.2").answer(after=0.001)
    world.settled()


def test_a_probe_is_no_clients_affair() -> None:
    """Its answer is not used, its silence is not waited for."""
    world = World(2)
    known(world, s1=0.01, s2=0.02)
    world.loop.advance(10)
    asked = world.ask()
    world.take("10.0.0.2").answer("foo.example. 60 IN A 6.6.6.6", after=0.001)
    assert not asked.answered
    world.take("10.0.0.1").answer(ANSWER, after=0.001)
    assert sorted(asked.addresses) == BOTH
    world.loop.advance(10)
    world.ask("bar.example.")
    world.take("10.0.0.1").answer()
    world.loop.advance(3)
    assert world.forwarder.servers.all[1].failures == 1
    world.settled()


def test_silence_moves_on_to_the_next_and_late_replies_are_welcome() -> None:
    world = World(2)
    known(world, s1=0.01, s2=0.02)
    asked = world.ask()
    late = world.take("10.0.0.1")
    world.loop.advance(0.39)
    assert world.servers_asked == ["10.0.0.1"]
    world.loop.advance(0.02)
    assert world.servers_asked == ["10.0.0.1", "10.0.0.2"]
    assert world.stats.upstream_timeouts_total == 1
    late.answer(ANSWER, after=0.1)
    assert sorted(asked.addresses) == BOTH
    assert asked.why.startswith("upstream 10.0.0.1:53 in 51")
    assert world.forwarder.servers.all[0].failures == 0
    world.settled()


def test_no_try_takes_more_than_two_seconds_and_all_no_more_than_the_timeout() -> None:
    for servers in (1, 2, 3):
        world = World(servers)
        asked = world.ask()
        times: list[float] = []
        while not asked.answered:
            before = len(world.open)
            world.loop.advance(0.01)
            if len(world.open) > before:
                times.append(world.loop.clock)
        assert 5 <= world.loop.clock < 5.02
        assert asked.rcode == "SERVFAIL"
        assert "did not answer in time" in asked.why
        gaps = [b - a for a, b in zip([0.0, *times], times, strict=False)]
        assert max(gaps) <= 2.02
        assert min(gaps) >= 0.3
        assert 2 <= len(times) <= 5
        world.settled()
        assert world.stats.upstream_failures_total == 1


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("timeout", [0.1, 1.0, 30.0])
def test_the_timeout_bounds_the_whole(timeout: float, parallel: bool) -> None:
    world = World(3, forward_timeout=timeout, parallel=parallel)
    asked = world.ask()
    world.loop.advance(timeout - 0.01)
    assert not asked.answered
    world.loop.advance(0.02)
    assert asked.rcode == "SERVFAIL"
    assert world.stats.upstream_requests_total == 1
    assert world.stats.upstream_request_duration.popitem()[0] / 1000 == pytest.approx(timeout, abs=0.02)
    assert sum(server.asked for server in world.forwarder.servers.all) <= 3 * 3
    world.settled()


def test_a_closed_port_is_a_failure_at_once() -> None:
    world = World(2)
    asked = world.ask()
    world.take("10.0.0.1").refuse()
    world.take("10.0.0.2").refuse("No route to host")
    assert asked.rcode == "SERVFAIL"
    assert asked.why == "all upstreams failed: SERVFAIL (10.0.0.2:53: No route to host)"
    world.settled()


def test_a_network_that_is_not_there() -> None:
    world = World(2)
    world.exchange.error = lambda attempt: OSError(101, "Network is unreachable")
    asked = world.ask()
    assert asked.rcode == "SERVFAIL"
    assert asked.why == "all upstreams failed: SERVFAIL (10.0.0.2:53: Network is unreachable)"
    assert [server.failures for server in world.forwarder.servers.all] == [1, 1]
    world.settled()


def test_too_many_files_are_not_the_servers_fault() -> None:
    world = World(2)
    world.exchange.error = lambda attempt: OSError(24, "Too many open files")
    assert world.ask().rcode == "SERVFAIL"
    assert [server.failures for server in world.forwarder.servers.all] == [0, 0]
    world.settled()


@pytest.mark.parametrize("rcode", ["SERVFAIL", "REFUSED", "NOTAUTH"])
def test_the_next_server_may_know_better(rcode: str) -> None:
    world = World(2)
    asked = world.ask()
    world.take("10.0.0.1").answer(rcode=rcode)
    assert not asked.answered
    world.take("10.0.0.2").answer(ANSWER)
    assert sorted(asked.addresses) == BOTH
    world.settled()


@pytest.mark.parametrize("rcode", ["SERVFAIL", "REFUSED", "NOTAUTH"])
def test_what_all_servers_say_is_passed_on(rcode: str) -> None:
    world = World(2)
    asked = world.ask(edns=4096)
    world.take("10.0.0.1").answer(rcode=rcode)
    world.take("10.0.0.2").answer(rcode=rcode)
    assert asked.rcode == rcode
    assert asked.why == f"all upstreams failed: {rcode} of 10.0.0.1:53"
    # For a moment it is not asked again.
    again = world.ask()
    assert again.rcode == rcode
    assert again.why == f"failed a moment ago: {rcode}"
    world.loop.advance(1)
    assert not world.ask().answered
    world.take("10.0.0.1" if rcode != "REFUSED" else None)


@pytest.mark.parametrize("parallel", [False, True])
def test_a_server_that_failed_is_not_waited_for_though_it_was_asked_twice(parallel: bool) -> None:
    world = World(1, parallel=parallel)
    asked = world.ask()
    world.loop.advance(2.1)
    assert len(world.open) >= 2
    world.open[-1].answer(rcode="SERVFAIL")
    assert asked.rcode == "SERVFAIL"
    world.settled()


def test_nxdomain_is_an_answer() -> None:
    world = World(2)
    asked = world.ask()
    world.take("10.0.0.1").answer(rcode="NXDOMAIN")
    assert asked.rcode == "NXDOMAIN"
    world.settled()


def test_a_server_that_refuses_us_comes_last() -> None:
    world = World(2)
    known(world, s1=0.01, s2=0.02)
    for number in range(5):
        world.ask(f"n{number}.example.")
        if number < 3:
            world.take("10.0.0.1").answer(rcode="REFUSED")
        world.take("10.0.0.2").answer()
    assert world.stats.upstream_requests_total == 5
    assert [server.asked for server in world.forwarder.servers.all] == [3, 5]
    # A probe finds out that it has changed its mind.
    world.loop.advance(10)
    world.ask("a.example.")
    world.take("10.0.0.1").answer(after=0.01)
    world.take("10.0.0.2").answer()
    world.ask("b.example.")
    world.take("10.0.0.1")


def test_in_parallel_the_first_good_reply_wins() -> None:
    world = World(3, parallel=True)
    asked = world.ask()
    assert world.servers_asked == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
    world.take("10.0.0.2").answer(rcode="SERVFAIL")
    world.take("10.0.0.1").refuse()
    assert not asked.answered
    world.take("10.0.0.3").answer(ANSWER)
    assert sorted(asked.addresses) == BOTH
    world.settled()
    asked = world.ask("bar.example.")
    world.take("10.0.0.2").answer(rcode="NXDOMAIN")
    assert asked.rcode == "NXDOMAIN"
    world.settled()


def test_in_parallel_all_may_fail() -> None:
    world = World(3, parallel=True)
    asked = world.ask()
    for host in ("10.0.0.3", "10.0.0.1", "10.0.0.2"):
        world.take(host).answer(rcode="SERVFAIL")
    assert asked.why == "all upstreams failed: SERVFAIL of 10.0.0.3:53"
    world.settled()


def test_in_parallel_what_is_lost_is_sent_again() -> None:
    world = World(2, parallel=True)
    asked = world.ask()
    world.take("10.0.0.1").answer(rcode="SERVFAIL")
    world.loop.advance(2.01)
    assert world.servers_asked == ["10.0.0.2", "10.0.0.2"]
    world.open[1].answer(ANSWER)
    assert asked.answered
    world.settled()


@pytest.mark.parametrize("parallel", [False, True])
def test_without_servers(parallel: bool) -> None:
    world = World(0, parallel=parallel)
    asked = world.ask()
    assert asked.rcode == "SERVFAIL"
    assert asked.why == "no servers in resolv.conf: SERVFAIL"
    world.settled()


def test_other_servers() -> None:
    world = World(2)
    known(world, s1=0.02, s2=0.01)
    world.ask()
    world.take().answer(ANSWER)
    flying = world.ask("bar.example.")
    world.set_servers("10.0.0.7", "10.0.0.2")
    world.take("10.0.0.2").answer("bar.example. 60 IN A 10.1.1.3")
    assert flying.addresses == ["10.1.1.3"]
    # Others may know other names, so nothing that was said before is used.
    for name in ("foo.example.", "bar.example."):
        assert not world.ask(name).answered
    # The one that stays is still known to be fast, the new one is found to be faster.
    assert world.servers_asked == ["10.0.0.2", "10.0.0.7", "10.0.0.2"]
    world.take("10.0.0.7").answer(after=0.005)
    while world.open:
        world.open[0].answer(ANSWER, after=0.005)
    world.ask("baz.example.")
    assert world.servers_asked == ["10.0.0.7"]
    world.set_servers("10.0.0.7", "10.0.0.2")
    assert world.ask().answered


def test_our_own_address_is_no_server(capfd: pytest.CaptureFixture[str]) -> None:
    from proxy.config.model import SocketAddress
    from proxy.dns.settings import Listen
    world = World(0, listen=(Listen(SocketAddress("127.0.0.1", 53)),))
    world.set_servers("127.0.0.1", "10.0.0.1")
    assert [server.address.host for server in world.forwarder.servers.all] == ["10.0.0.1"]
    assert "127.0.0.1:53 is ourselves and is not asked" in capfd.readouterr().err


def test_our_own_query_that_comes_back(capfd: pytest.CaptureFixture[str]) -> None:
    """Capture that does not leave us out: it would go round and round."""
    world = World()
    world.ask()
    world.exchange.own.add(("10.9.0.1", 999))
    for _ in range(3):
        again = world.ask(client=("10.9.0.1", 999))
        assert again.rcode == "REFUSED"
    assert capfd.readouterr().err.count("came back to this proxy") == 1


def test_the_end() -> None:
    world = World(2)
    known(world, s1=0.02, s2=0.01)
    world.loop.advance(10)
    asked = [world.ask(), world.ask("bar.example.")]
    world.forwarder.close()
    assert [one.replies for one in asked] == [[None], [None]]
    assert not world.open
    assert not [timer for timer in world.loop.timers if not timer.cancelled]


def test_a_client_that_crashes_does_not_keep_others_from_their_answer(capfd: pytest.CaptureFixture[str]) -> None:
    world = World()

    def crash(reply: bytes | None, why: str) -> None:
        raise RuntimeError("defect")
    world.forwarder.ask(query_of("foo.example."), crash)
    asked = world.ask()
    world.take().answer(ANSWER)
    assert asked.answered
    assert "RuntimeError: defect" in capfd.readouterr().err
    world.settled()


def test_explanation() -> None:
    world = World(1)
    world.ask(do=True)
    world.take().answer(ANSWER, after=0.25)
    world.loop.advance(10)
    world.ask("bar.example.")
    found = world.forwarder.explain(b"\x03foo\x07example\x00", 1)
    assert found["active"] == found["waiting"] == 1
    assert found["queued"] == 0
    assert [server["state"] for server in found["servers"]] == ["up"]
    assert found["cache"]["entries"] == 1
    assert found["cache"]["found"] == [
        {"dnssec_ok": True, "checking_disabled": False, "rcode": "NOERROR", "negative": False, "answers": 2,
         "authority": 0, "additional": 0, "age_s": 10.0, "left_s": 50.0, "stale": False}]
