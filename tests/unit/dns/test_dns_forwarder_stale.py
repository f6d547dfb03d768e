"""Old answers while no server answers (RFC 8767), and only then."""

from __future__ import annotations

import pytest

from proxy.dns.flight import Flight
from tests.unit.dns.dns_upstream_world import SOA, World

ANSWER = "foo.example. 60 IN A 10.1.1.1"


def expired(servers: int = 1, after: float = 61.0, **settings: float) -> World:
    """A world where foo.example was known until a second ago."""
    world = World(servers, **settings)
    world.ask()
    world.take("10.0.0.1").answer(ANSWER)
    world.loop.advance(after)
    return world


def down(world: World) -> None:
    for server in world.forwarder.servers.all:
        for _ in range(3):
            server.unanswered(world.loop.time(), world.loop.time())


def test_after_a_while_without_a_reply() -> None:
    world = expired()
    asked = world.ask()
    world.loop.advance(1.79)
    assert not asked.answered
    world.loop.advance(0.02)
    assert asked.addresses == ["10.1.1.1"]
    assert asked.ttls == [30]
    assert asked.why == "stale for 3 s"
    # The search goes on; whoever asks meanwhile does not wait again.
    again = world.ask()
    assert again.addresses == ["10.1.1.1"]
    assert len(world.forwarder._flights) == 1
    world.open[0].answer("foo.example. 60 IN A 10.1.1.2")
    assert world.ask().addresses == ["10.1.1.2"]
    assert world.stats.cache_stale == 2
    world.settled()


def test_soon_when_all_servers_are_known_to_be_down() -> None:
    """And at once for whoever asks then."""
    world = expired(2)
    down(world)
    asked = world.ask()
    world.loop.advance(0.39)
    assert not asked.answered
    world.loop.advance(0.02)
    assert asked.addresses == ["10.1.1.1"]
    assert asked.why == "stale for 1 s"
    # One flight is under way, to notice when they are back.
    assert world.ask().addresses == ["10.1.1.1"]
    assert len(world.forwarder._flights) == 1
    world.loop.advance(7)
    world.settled()
    assert world.ask().addresses == ["10.1.1.1"]
    assert world.ask().addresses == ["10.1.1.1"]
    assert len(world.forwarder._flights) == 1
    next(one for one in world.open if isinstance(one.attempt.owner, Flight)).answer("foo.example. 60 IN A 10.1.1.2")
    assert world.ask().addresses == ["10.1.1.2"]
    assert not world.forwarder.servers.all_down()
    for one in list(world.open):
        one.answer()
    world.settled()


def test_names_that_nobody_answers_do_not_make_other_answers_old() -> None:
    """A server of which only such names were asked looks as if it were down."""
    world = expired()
    down(world)
    asked = world.ask()
    world.take().answer("foo.example. 60 IN A 10.1.1.2", after=0.2)
    assert asked.addresses == ["10.1.1.2"]
    assert world.stats.cache_stale == 0
    world.settled()


@pytest.mark.parametrize("rcode", ["SERVFAIL", "REFUSED"])
def test_when_all_servers_fail(rcode: str) -> None:
    world = expired(2)
    asked = world.ask()
    world.take("10.0.0.1").answer(rcode=rcode)
    world.take("10.0.0.2").refuse()
    assert asked.addresses == ["10.1.1.1"]
    assert world.ask().addresses == ["10.1.1.1"]
    world.settled()
    assert world.stats.upstream_failures_total == 1


def test_nothing_is_stale_for_longer_than_allowed() -> None:
    world = expired(after=88.0)
    down(world)
    asked = world.ask()
    world.loop.advance(0.5)
    assert asked.why == "stale for 28 s"
    world.loop.advance(1.4)
    assert world.ask().why == "stale for 30 s"
    world.loop.advance(0.2)
    late = world.ask()
    assert not late.answered
    world.loop.advance(6)
    assert late.rcode == "SERVFAIL"
    world.settled()


@pytest.mark.parametrize("down_first", [False, True])
def test_it_can_be_off(down_first: bool) -> None:
    world = expired(serve_stale=0.0)
    if down_first:
        down(world)
    asked = world.ask()
    world.loop.advance(4.9)
    assert not asked.answered
    world.loop.advance(0.2)
    assert asked.rcode == "SERVFAIL"
    assert world.stats.cache_stale == 0
    world.settled()


def test_new_answers_go_before_old_ones() -> None:
    """Also if they say that there is no such name any more."""
    world = expired()
    asked = world.ask()
    world.take().answer(rcode="NXDOMAIN", authority=(SOA,))
    assert asked.rcode == "NXDOMAIN"
    assert world.ask().rcode == "NXDOMAIN"
    world.settled()


def test_without_an_old_answer_servers_that_are_down_are_asked_all_the_same() -> None:
    world = World(2)
    down(world)
    asked = world.ask()
    assert len(world.open) == 1
    world.open[0].answer(ANSWER)
    assert asked.addresses == ["10.1.1.1"]
    assert world.forwarder.servers.all[0].state == "up"
    world.settled()


def test_an_old_answer_fits_the_client_too() -> None:
    world = expired()
    asked = world.ask("FOO.example.", edns=1232, number=99)
    world.take().refuse()
    assert asked.message.question[0].name.to_text() == "FOO.example."
    assert asked.ttls == [30]
