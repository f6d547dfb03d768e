"""Replies too large for a datagram, clients over TCP, servers that do not know EDNS, replies that are bad or forged."""

from __future__ import annotations

import dns.flags
import pytest

from proxy.dns.servers import WITHOUT_EDNS
from tests.unit.dns.dns_upstream_world import World, response

ANSWER = "foo.example. 60 IN A 10.1.1.1"
LARGE = f"foo.example. 60 IN A {' '.join(f'10.1.{i // 250}.{i % 250}' for i in range(300))}"


def test_a_truncated_reply_is_fetched_over_tcp() -> None:
    world = World(2)
    asked = world.ask()
    world.take("10.0.0.1").answer(ANSWER, tc=True)
    sent = world.take()
    assert (sent.server, sent.attempt.tcp) == ("10.0.0.1", True)
    sent.answer(LARGE, after=0.004)
    assert asked.message.flags & dns.flags.TC
    assert len(asked.message.answer[0]) == 30
    assert asked.why == "upstream 10.0.0.1:53 in 4.0 ms over TCP"
    assert world.stats.upstream_tcp_retries_total == 1
    # The client comes again over TCP, as TC told it, and gets all from the cache.
    assert len(world.ask(tcp=True).message.answer[0]) == 300
    world.settled()


@pytest.mark.parametrize("how", ["refused", "silent", "cannot be tried", "SERVFAIL", "bad"])
def test_when_there_is_no_answer_over_tcp_the_client_may_try(how: str) -> None:
    world = World(2)
    asked, other = world.ask(), world.ask(tcp=True, client=("10.9.0.1", 2), rd=False)
    if how == "cannot be tried":
        world.exchange.error = lambda attempt: OSError(111, "Connection refused") if attempt.tcp else None
    udp = next(one for one in world.open if not one.attempt.tcp)
    udp.answer(ANSWER, tc=True)
    if how != "cannot be tried":
        tcp = next(one for one in world.open if one.attempt.tcp and one.query.flags & dns.flags.RD)
        if how == "refused":
            tcp.refuse()
        elif how == "SERVFAIL":
            tcp.answer(rcode="SERVFAIL")
        elif how == "bad":
            tcp.raw(response(tcp.query, (ANSWER,))[:-20])
        else:
            world.loop.advance(1.99)
            assert not asked.answered
            world.loop.advance(0.02)
    assert asked.message.flags & dns.flags.TC
    assert asked.addresses == ["10.1.1.1"]
    assert asked.why.startswith("truncated, and no answer over TCP")
    assert not other.answered
    # Not kept, and no failure: it may be asked again at once.
    assert not world.ask().answered


def test_a_client_over_tcp_never_gets_a_truncated_answer() -> None:
    world = World()
    asked = world.ask(tcp=True)
    world.take().refuse()
    assert not world.take().attempt.tcp
    world.take().answer(ANSWER, tc=True)
    assert world.take().attempt.tcp
    world.take().refuse()
    assert asked.rcode == "SERVFAIL"
    assert not asked.message.flags & dns.flags.TC
    world.settled()


def test_a_reply_cut_within_a_record_counts_as_truncated() -> None:
    world = World()
    asked = world.ask()
    sent = world.take()
    sent.raw(response(sent.query, (LARGE,), tc=True)[:512])
    assert world.take().attempt.tcp
    world.take().answer(LARGE)
    assert len(asked.message.answer[0]) == 30
    world.settled()


def test_two_tries_with_truncated_replies_make_one_connection() -> None:
    world = World()
    asked = world.ask()
    world.loop.advance(1.1)
    first, second = world.open
    first.answer(tc=True)
    second.answer(tc=True)
    assert world.take().attempt.tcp
    world.take().answer(LARGE)
    assert asked.answered
    assert world.stats.upstream_tcp_retries_total == 1
    world.settled()


def test_another_servers_silence_does_not_end_the_wait_for_tcp() -> None:
    """Nor does it make it endless."""
    world = World(2, parallel=True)
    asked = world.ask()
    world.take("10.0.0.1").answer(ANSWER, tc=True)
    world.take("10.0.0.2").answer(rcode="FORMERR")
    world.loop.advance(1.99)
    assert [one.attempt.tcp for one in world.open] == [True, False]
    assert not asked.answered
    world.loop.advance(0.02)
    assert asked.message.flags & dns.flags.TC
    world.settled()


def test_clients_over_tcp_are_asked_for_over_tcp() -> None:
    """As pilot-agent does it. Servers without TCP are asked over UDP in the next round."""
    world = World(2)
    asked = world.ask(tcp=True)
    assert world.take().attempt.tcp
    world.take().refuse()
    assert world.take().attempt.tcp
    world.take("10.0.0.2").refuse()
    assert not world.take("10.0.0.1").attempt.tcp
    world.take().answer(LARGE)
    assert len(asked.message.answer[0]) == 300
    # That says nothing about the servers over UDP.
    assert [server.failures for server in world.forwarder.servers.all] == [0, 0]
    world.settled()


@pytest.mark.parametrize("rcode", ["FORMERR", "NOTIMP", "BADVERS"])
def test_servers_without_edns_are_asked_without(rcode: str) -> None:
    world = World()
    asked = world.ask(edns=4096)
    world.take().answer(rcode=rcode, edns=rcode == "BADVERS")
    sent = world.take()
    assert sent.query.edns == -1
    sent.answer(ANSWER, edns=False)
    assert asked.addresses == ["10.1.1.1"]
    world.ask("bar.example.")
    assert world.take().query.edns == -1
    world.take().answer(edns=False)
    world.loop.advance(WITHOUT_EDNS)
    world.ask("baz.example.")
    assert world.take().query.edns == 0


def test_an_old_server_refuses_without_a_question() -> None:
    world = World()
    asked = world.ask()
    sent = world.take()
    sent.raw(sent.packet[:2] + b"\x81\x01" + bytes(8))
    assert world.take().query.edns == -1
    world.take().answer(ANSWER, edns=False)
    assert asked.answered
    world.settled()


def test_a_query_that_a_server_does_not_like_at_all() -> None:
    """FORMERR with and without EDNS: that is about the name, not about EDNS."""
    world = World(2)
    asked = world.ask()
    world.take("10.0.0.1").answer(rcode="FORMERR")
    world.take("10.0.0.1").answer(rcode="FORMERR")
    world.take("10.0.0.2").answer(rcode="FORMERR")
    world.take("10.0.0.2").answer(rcode="FORMERR")
    assert asked.rcode == "FORMERR"
    world.ask("bar.example.")
    assert world.take().query.edns == 0


def test_codes_above_15_are_not_passed_on() -> None:
    world = World()
    asked = world.ask()
    world.take().answer(rcode="BADCOOKIE")
    assert asked.rcode == "SERVFAIL"
    world.settled()


def test_replies_that_do_not_match_are_counted_and_change_nothing() -> None:
    world = World(2)
    asked = world.ask()
    sent = world.take()
    good = response(sent.query, ("foo.example. 60 IN A 6.6.6.6",))
    question = len(b"\3foo\7example\0") + 4
    forged = [
        b"", good[:11],
        bytes([good[0] ^ 1]) + good[1:], good[:1] + bytes([good[1] ^ 1]) + good[2:],
        good[:2] + bytes([good[2] & 0x7F]) + good[3:],
        *[good[:at] + bytes([good[at] ^ 1]) + good[at + 1:] for at in range(12, 12 + question)],
        good[:12] + b"\3Foo" + good[16:],
        good[:4] + b"\0\0" + good[6:], good[:4] + b"\0\2" + good[6:],
        good[:2] + b"\x81\x83" + bytes(8), good[:2] + b"\x81\x80" + bytes(8),
    ]
    for message in forged:
        sent.raw(message)
    assert not asked.answered
    assert world.servers_asked == ["10.0.0.1"]
    assert world.stats.upstream_mismatched_total == len(forged)
    sent.answer(ANSWER)
    assert asked.addresses == ["10.1.1.1"]
    world.settled()


def test_a_bad_reply_is_as_good_as_none() -> None:
    world = World(2)
    asked = world.ask()
    sent = world.take()
    sent.raw(response(sent.query, (ANSWER,))[:-13])
    assert not asked.answered
    sent = world.take("10.0.0.2")
    sent.raw(response(sent.query, (ANSWER,)) [:29] + b"\xc0\xff" + bytes(20))
    assert asked.rcode == "SERVFAIL"
    assert "bad reply of 10.0.0.2:53: " in asked.why
    assert world.stats.upstream_mismatched_total == 2
    world.settled()
