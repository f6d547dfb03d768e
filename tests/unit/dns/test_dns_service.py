"""The service: who answers, what is remembered for how long, what is counted, what the log and /dns say."""

from __future__ import annotations

import ctypes
from typing import Any

import dns.message
import dns.rcode
import pytest
from dns_service_world import CLIENT, TABLE, World, debug_log, packet, reply_to
from dns_tables import kubernetes, table_of
from hypothesis import given
from hypothesis import strategies as st

from proxy.dns import memo
from proxy.dns import service as module
from proxy.dns.message import MX, A, name_to_wire
from proxy.dns.service import LATER


def counts(world: World) -> dict[str, int]:
    """The counters that are not 0."""
    return {name: value for name in world.stats.KINDS if isinstance(value := getattr(world.stats, name), int) and value
            and not name.startswith("name_table")}


def test_names_of_the_table_are_answered_and_remembered() -> None:
    world = World()
    for number in (7, 0xFFFF, 0):
        assert world.addresses(packet("web.ns1", number=number)) == ["10.0.0.1"]
    assert len(world.service.memo) == 1
    assert counts(world) == {"requests_total": 3, "requests_udp": 3, "answers_local": 3}
    assert not world.forwarder.asked


def test_addresses_rotate_with_and_without_the_memo() -> None:
    world = World()
    first = [world.addresses(packet("three.ns1"))[0] for _ in range(7)]
    assert sorted(first[1:4]) == ["10.0.1.1", "10.0.1.2", "10.0.1.3"] and first[1:4] == first[4:7]
    over_tcp = [world.addresses(packet("three.ns1"), tcp=True) for _ in range(4)]
    assert len({tuple(one) for one in over_tcp}) == 3 and all(len(one) == 3 for one in over_tcp)
    assert len(world.service.memo) == 1, "nothing is remembered over TCP"


def test_a_client_that_asks_for_both_families_gets_every_rotation() -> None:
    """Answers that do not rotate leave the turn alone: AAAA between two A queries would otherwise halve it."""
    world = World(table_of(kubernetes("two", "ns1", "10.0.1.1", "10.0.1.2")))
    first = []
    for _ in range(4):
        first.append(world.addresses(packet("two.ns1"), tcp=True)[0])
        assert world.addresses(packet("two.ns1", "AAAA"), tcp=True) == []
    assert first == ["10.0.1.1", "10.0.1.2"] * 2


def test_every_spelling_keeps_its_case() -> None:
    """0x20: the memo is by bytes, so nobody gets another client's spelling."""
    world = World()
    for name in ("WEB.ns1", "web.NS1", "WEB.ns1"):
        reply = world.ask(packet(name))
        assert reply is not None
        message = dns.message.from_wire(reply)
        assert str(message.question[0].name) == str(message.answer[0].name) == name + "."
    assert len(world.service.memo) == 2


def test_a_new_table_empties_the_memos() -> None:
    world = World()
    world.forwarder.known[name_to_wire("x.example")] = reply_to
    assert world.addresses(packet("web.ns1")) == ["10.0.0.1"]
    assert world.addresses(packet("x.example")) == ["9.9.9.9"]
    assert world.service.memo and world.service.fresh
    world.service.set_table(table_of(kubernetes("web", "ns1", "10.9.9.9")))
    assert not world.service.memo and not world.service.fresh
    assert world.addresses(packet("web.ns1")) == ["10.9.9.9"]
    assert world.stats.name_table_loaded == 1 and world.stats.name_table_names == 4


def test_before_a_table_the_servers_are_asked() -> None:
    """Trap 40: the original says SERVFAIL."""
    world = World(table=None)
    assert world.stats.name_table_loaded == 0
    assert world.ask(packet("web.ns1")) is LATER
    query, done = world.forwarder.asked.pop()
    done(reply_to(query), "upstream 10.0.0.10:53 in 3 ms")
    assert world.later == [reply_to(query)]


def test_cached_answers_live_for_a_second_in_the_memo() -> None:
    world = World()
    world.forwarder.known[name_to_wire("x.example")] = reply_to
    for _ in range(3):
        assert world.addresses(packet("x.example")) == ["9.9.9.9"]
    assert world.stats.cache_hits == 3 and len(world.service.fresh) == 1
    assert [delay for delay, _ in world.loop.timers] == [memo.FRESH / memo.STEPS]
    for _ in range(memo.STEPS // 2):
        assert world.service.fresh
        world.loop.run_timers()
    for _ in range(memo.STEPS // 2):
        world.loop.run_timers()
    assert not world.service.fresh and not world.loop.timers
    del world.forwarder.known[name_to_wire("x.example")]
    assert world.ask(packet("x.example")) is LATER
    assert counts(world) == {"requests_total": 4, "requests_udp": 4, "cache_hits": 3}


def test_other_servers_empty_the_memo_of_the_cache() -> None:
    world = World()
    world.forwarder.known[name_to_wire("x.example")] = reply_to
    world.addresses(packet("x.example"))
    world.service.set_servers([])
    assert not world.service.fresh


def test_an_answer_may_come_before_ask_returns() -> None:
    world = World()
    world.forwarder.at_once = True
    assert world.ask(packet("x.example")) is LATER
    assert len(world.later) == 1


def test_nxdomain_of_servers_is_corrected_for_names_of_the_table() -> None:
    """The servers do not know hosts of ServiceEntries; the host exists, so another type of it is no NXDOMAIN."""
    world = World()
    world.forwarder.known[name_to_wire("x.example")] = lambda query: reply_to(query, rcode=dns.rcode.NXDOMAIN)
    assert world.ask(packet("www.google.com", "MX")) is LATER
    query, done = world.forwarder.asked.pop()
    done(reply_to(query, rcode=dns.rcode.NXDOMAIN), "upstream")
    assert world.later[0] is not None
    assert dns.message.from_wire(world.later[0]).rcode() == dns.rcode.NOERROR
    unknown = world.ask(packet("x.example"))
    assert unknown and dns.message.from_wire(unknown).rcode() == dns.rcode.NXDOMAIN


def test_other_classes_are_not_the_tables() -> None:
    world = World()
    assert world.ask(packet("web.ns1", rdclass="CH")) is LATER


def test_a_dropped_query_gets_nothing() -> None:
    world = World()
    assert world.ask(packet("x.example")) is LATER
    world.forwarder.asked.pop()[1](None, "queue full")
    assert world.later == [None]


def test_truncated_replies_are_counted_and_not_remembered() -> None:
    many = [f"10.1.{n // 250}.{n % 250}" for n in range(300)]
    world = World(table_of(kubernetes("many", "ns1", *many)))
    for _ in range(2):
        reply = world.ask(packet("many.ns1"))
        assert reply is not None and len(reply) <= 512 and dns.message.from_wire(reply).flags & dns.flags.TC
    assert world.stats.truncated_total == 2 and not world.service.memo
    assert len(world.addresses(packet("many.ns1"), tcp=True)) == 300


def test_what_is_not_remembered() -> None:
    """Long queries, and replies to queries over TCP."""
    world = World()
    padding = dns.edns.GenericOption(12, bytes(module.MAX_REMEMBERED))
    world.addresses(packet("web.ns1", use_edns=0, options=[padding]))
    world.addresses(packet("web.ns1"), tcp=True)
    assert not world.service.memo


def test_what_the_memo_hands_to_the_kernel_is_the_reply() -> None:
    world = World()
    wire = packet("three.ns1")
    world.addresses(wire)
    take = world.service.memo[wire[2:]]
    replies = {take() for _ in range(6)}
    assert len(replies) == 3
    for where, size, reply in replies:
        assert ctypes.string_at(where, size) == reply


def test_malformed_messages_are_counted() -> None:
    world = World()
    assert world.ask(b"short") is None
    assert world.ask(bytes(12)) is not None
    assert counts(world) == {"requests_total": 2, "requests_udp": 2, "malformed_total": 2}


@given(st.binary(max_size=100), st.booleans())
def test_any_message_is_answered_or_dropped(message: bytes, tcp: bool) -> None:
    world = World()
    reply = world.ask(message, tcp)
    assert not reply or (reply[:2] == message[:2] and reply[2] & 0x80)


def test_log_at_debug_has_a_line_a_query_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.addresses(packet("web.ns1"))
    with debug_log(monkeypatch) as lines:
        world.addresses(packet("web.ns1"))  # remembered, but each query gets its line
        world.addresses(packet("Web.ns1"), tcp=True)
        world.forwarder.known[name_to_wire("x.example")] = lambda query: reply_to(query, rcode=dns.rcode.NXDOMAIN)
        world.ask(packet("x.example"))
        world.forwarder.known[name_to_wire("www.google.com")] = world.forwarder.known[name_to_wire("x.example")]
        world.ask(packet("www.google.com", "MX"))
        world.ask(packet("y.example", "AAAA"))
        world.forwarder.asked.pop()[1](None, "queue full")
        world.ask(b"x")
        world.ask(bytes(12))
        world.ask(b"\0\0\x80" + bytes(9))
        found = list(lines)
    host = "name table: host web.ns1.svc.cluster.local (short name and namespace)"
    assert found == [
        f"127.0.0.1:40000 web.ns1. IN A: NOERROR, 1 answer ({host})",
        f"127.0.0.1:40000 Web.ns1. IN A: NOERROR, 1 answer ({host})",
        "127.0.0.1:40000 x.example. IN A: NXDOMAIN (cache hit, 12 s left)",
        "127.0.0.1:40000 www.google.com. IN MX: NOERROR, 0 answers (cache hit, 12 s left: NXDOMAIN for a name of the "
        "table)",
        "127.0.0.1:40000 y.example. IN AAAA: no reply (queue full)",
        "message of 1 bytes from 127.0.0.1:40000 is dropped: expected a query, got no whole header",
        "message of 12 bytes from 127.0.0.1:40000 is no question that is answered here: FORMERR",
        "message of 12 bytes from 127.0.0.1:40000 is dropped: expected a query, got a reply",
    ]


def test_explain() -> None:
    world = World()
    found: dict[str, Any] = world.service.explain(name_to_wire("web.ns1"), A)
    assert found["source"] == "table" and found["table"] == {"loaded": True, "names": len(TABLE)}
    assert found["reason"] == "name table: host web.ns1.svc.cluster.local (short name and namespace)"
    assert dns.message.from_wire(found["reply"]).answer[0][0].address == "10.0.0.1"
    found = world.service.explain(name_to_wire("X.example"), A)
    assert (found["source"], found["reason"], found["reply"]) == ("upstream", "not in the name table", b"")
    assert found["upstream"] == {"key": name_to_wire("x.example"), "type": A}
    found = world.service.explain(name_to_wire("www.google.com"), MX)
    assert found["source"] == "upstream"
    assert found["reason"] == ("name table: host www.google.com (host) has addresses only; MX records are with the "
                               "servers")
    found = World(table=None).service.explain(name_to_wire("web.ns1"), A)
    assert (found["reason"], found["table"]) == ("no name table yet", {"loaded": False, "names": 0})
    assert counts(world) == {} and CLIENT


def test_close() -> None:
    world = World()
    world.forwarder.known[name_to_wire("x.example")] = reply_to
    world.addresses(packet("x.example"))
    world.service.close()
    assert world.forwarder.closed and not world.loop.timers and not world.service.fresh
