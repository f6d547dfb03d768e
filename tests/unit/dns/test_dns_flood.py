"""More queries than the servers can take: bounded, and fair among clients."""

from __future__ import annotations

import dns.flags
import pytest

from proxy.dns.forwarder import (
    FEW,
    MAX_ACTIVE,
    MAX_ACTIVE_OF_CLIENT,
    MAX_QUEUED,
    MAX_WAITERS,
    MAX_WAITING,
    FlightKey,
)
from tests.unit.dns.dns_upstream_world import Asked, World

FLOODER = ("10.9.0.66", 666)


def flood(world: World, count: int, client: tuple[str, int] = FLOODER, prefix: str = "x") -> list[Asked]:
    return [world.ask(f"{prefix}{number}.example.", client=client) for number in range(count)]


def test_one_client_has_half_of_the_places() -> None:
    world = World()
    flood(world, MAX_ACTIVE)
    assert len(world.open) == MAX_ACTIVE_OF_CLIENT
    asked = world.ask("mine.example.")
    assert world.open[-1].query.question[0].name.to_text() == "mine.example."
    world.open[-1].answer("mine.example. 60 IN A 10.1.1.1")
    assert asked.addresses == ["10.1.1.1"]


def test_a_flood_loses_its_own_oldest() -> None:
    world = World()
    asked = flood(world, MAX_ACTIVE_OF_CLIENT + MAX_QUEUED)
    assert not any(one.answered for one in asked)
    assert len(world.forwarder._queue) == MAX_QUEUED
    others = [world.ask(f"o{number}.example.", client=("10.9.0.1", 1000 + number)) for number in range(500)]
    more = flood(world, 100, prefix="y")
    lost = [one for one in asked if one.answered]
    # 244 of the others wait, because as many places as that are free; those behind took places of the flood.
    free = MAX_ACTIVE - MAX_ACTIVE_OF_CLIENT
    assert len(lost) == 100 + 500 - free
    assert lost == asked[MAX_ACTIVE_OF_CLIENT:MAX_ACTIVE_OF_CLIENT + len(lost)]
    assert {(one.rcode, one.why) for one in lost} == {("SERVFAIL", "queue full: SERVFAIL")}
    assert not any(one.answered for one in others + more)
    assert world.stats.queue_full_total == len(lost)
    assert len(world.forwarder._queue) == MAX_QUEUED


def test_turns_go_round() -> None:
    """With all places taken a client with one query waits for as many replies as there are clients, not queries."""
    world = World()
    flood(world, MAX_ACTIVE_OF_CLIENT + 500)
    flood(world, MAX_ACTIVE_OF_CLIENT + 500, ("10.9.0.67", 667), "z")
    asked = world.ask("mine.example.")
    assert len(world.open) == MAX_ACTIVE
    for _ in range(3):
        world.open[0].answer()
    (mine,) = [one for one in world.open if one.query.question[0].name.to_text() == "mine.example."]
    mine.answer("mine.example. 60 IN A 10.1.1.1")
    assert asked.addresses == ["10.1.1.1"]
    while world.open:
        world.open[0].answer()
    world.settled()


def test_what_waits_too_long_is_given_up() -> None:
    world = World()
    asked = flood(world, MAX_ACTIVE_OF_CLIENT + 300)
    world.loop.advance(4.9)
    assert not any(one.answered for one in asked)
    world.loop.advance(0.2)
    assert all(one.answered for one in asked)
    assert {one.rcode for one in asked} == {"SERVFAIL"}
    assert {one.why for one in asked[-300:]} == {"queue full: SERVFAIL"}
    world.settled()


def test_others_that_wait_for_a_floods_name_go_on_waiting() -> None:
    world = World()
    flood(world, MAX_ACTIVE_OF_CLIENT)
    first = world.ask("shared.example.", client=FLOODER)
    mine = world.ask("shared.example.")
    flood(world, MAX_QUEUED, prefix="y")
    assert first.rcode == "SERVFAIL"
    assert not mine.answered
    world.open[0].answer()
    while not mine.answered:
        next(one for one in world.open if "shared" in str(one.query.question[0].name)).answer()
    assert mine.rcode == "NOERROR"
    while world.open:
        world.open[0].answer()
    world.settled()


def test_all_who_wait_are_bounded_and_a_client_with_few_still_finds_a_place() -> None:
    world = World()
    names = MAX_WAITING // MAX_WAITERS
    for number in range(names):
        for _ in range(MAX_WAITERS):
            world.ask(f"n{number}.example.", client=FLOODER)
    assert world.stats.queue_full_total == 0
    for name in ("one.more.example.", "n0.example."):
        assert world.ask(name, client=FLOODER).why == "queue full: SERVFAIL"
    mine = [world.ask(name, client=("10.9.0.1", number)) for number in range(MAX_WAITERS // FEW)
            for name in ["one.more.example."] + ["n0.example."] * (FEW - 1)]
    assert not any(one.answered for one in mine)
    # Those are a flood as well, sooner or later.
    for number in range(MAX_WAITING):
        world.ask("n1.example." if number % 2 else f"x{number}.example.", client=("10.9.1.1", number))
        assert world.forwarder._waiting <= 2 * MAX_WAITING
        assert max(len(flight.waiters) for flight in [world.forwarder._flights[key] for key in some(world)]) <= \
            2 * MAX_WAITERS
    while world.open:
        world.open[0].answer()
    assert {one.rcode for one in mine} == {"NOERROR"}
    world.settled()


def some(world: World) -> list[FlightKey]:
    return list(world.forwarder._flights)[:4]


@pytest.mark.parametrize("stale", [False, True])
def test_a_flood_without_a_network(stale: bool) -> None:
    """Each ends as it begins; no recursion, nothing is left over."""
    world = World()
    if stale:
        world.ask("x0.example.")
        world.take().answer("x0.example. 1 IN A 10.1.1.1")
        world.loop.advance(2)
    flood(world, MAX_ACTIVE_OF_CLIENT + MAX_QUEUED, prefix="w")
    world.exchange.error = lambda attempt: OSError(101, "Network is unreachable")
    while world.open:
        world.open[0].refuse()
    world.settled()
    assert all(one.answered for one in flood(world, 100))


def test_a_flood_of_one_name_in_all_cases_is_one_query() -> None:
    world = World()
    asked = [world.ask("".join(letter.upper() if number >> at & 1 else letter for at, letter in enumerate("abcdefg")) +
                       ".example.", client=("10.9.0.1", number)) for number in range(128)]
    world.take().answer("abcdefg.example. 60 IN A 10.1.1.1")
    for one in asked:
        assert one.addresses == ["10.1.1.1"]
        assert not one.message.flags & dns.flags.TC
    world.settled()
