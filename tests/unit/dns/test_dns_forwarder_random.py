"""Random walks: whatever servers do and when, every client gets one reply, in time and within its limit."""

from __future__ import annotations

import random

import dns.exception
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.dns import forwarder
from tests.unit.dns.dns_upstream_world import SERVERS, SOA, Asked, Sent, World, response

NAMES = ("foo.example.", "FOO.example.", "bar.example.", "none.example.", "large.example.")


def server_does(dice: random.Random, sent: Sent) -> None:
    """Something that servers do, or should not do."""
    name = sent.query.question[0].name.to_text()
    count = 300 if name.startswith("large") else dice.randrange(4)
    records = [f"{name} {dice.randrange(40)} IN A {' '.join(f'10.1.{i // 250}.{i % 250}' for i in range(count))}"]
    try:
        wire = bytearray(response(
            sent.query, tuple(records) if count else (), (SOA,) if dice.random() < 0.5 else (),
            rcode=dice.choice(["NOERROR"] * 4 + ["NXDOMAIN", "SERVFAIL", "REFUSED", "FORMERR", "BADVERS"]),
            tc=dice.random() < 0.2, edns=dice.random() < 0.5))
    except dns.exception.DNSException:
        return sent.refuse()  # BADVERS needs EDNS
    match dice.randrange(10):
        case 0:
            sent.refuse()
        case 1:
            wire[dice.randrange(2, len(wire))] = dice.randrange(256)
            sent.raw(bytes(wire))
        case 2:
            sent.raw(bytes(wire[:dice.randrange(len(wire))]))
        case _:
            sent.raw(bytes(wire))
    return None


@pytest.mark.parametrize("parallel", [False, True])
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1 << 32), small=st.booleans())
def test_everybody_gets_one_reply(parallel: bool, seed: int, small: bool) -> None:
    dice = random.Random(seed)
    limits = {"MAX_ACTIVE": 3, "MAX_ACTIVE_OF_CLIENT": 2, "MAX_QUEUED": 4, "MAX_WAITERS": 3, "MAX_WAITING": 12,
              "FEW": 2}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in limits.items() if small else ():
            patch.setattr(forwarder, name, value)
        world = World(dice.randrange(4), probes=True, parallel=parallel, cache_size=dice.choice([0, 3, 1000]),
                      serve_stale=dice.choice([0.0, 30.0]))
        walk(world, dice)


def walk(world: World, dice: random.Random) -> None:
    open_ones: list[tuple[float, Asked]] = []
    clock = world.loop
    for _ in range(60):
        match dice.randrange(8):
            case 0 | 1 | 2:
                asked = world.ask(dice.choice(NAMES), tcp=dice.random() < 0.3, edns=dice.choice([None, 512, 4096]),
                                  do=dice.random() < 0.1, rd=dice.random() < 0.9, number=dice.randrange(65536),
                                  client=("10.9.0.1", dice.randrange(4)))
                open_ones.append((clock.time(), asked))
            case 3 | 4 | 5:
                if world.open:
                    server_does(dice, dice.choice(world.open))
            case 6:
                clock.advance(dice.choice([0.01, 0.3, 1.0, 3.0, 20.0]))
            case 7:
                if dice.random() < 0.1:
                    world.set_servers(*dice.sample(SERVERS, dice.randrange(4)))
        for since, asked in open_ones:
            assert asked.answered or clock.time() < since + 5.1
        for _, asked in open_ones:
            if asked.answered:
                check(asked)
        open_ones = [(since, asked) for since, asked in open_ones if not asked.answered]
        assert world.forwarder.cache.bytes >= 0
        assert len(world.forwarder._queue) <= forwarder.MAX_QUEUED
        assert world.forwarder._active <= forwarder.MAX_ACTIVE
    clock.advance(8)  # a probe may begin as late as a flight ends
    assert all(asked.answered for _, asked in open_ones)
    world.settled()
    assert not clock.errors


def check(asked: Asked) -> None:
    """One reply to this query. (Its data may be what a server made up, so dnspython is not asked.)"""
    (reply,) = asked.replies
    query = asked.query
    assert reply is not None
    assert 12 <= len(reply) <= query.limit
    assert int.from_bytes(reply[:2], "big") == query.id
    assert reply[2] & 0x80
    assert reply[12:].startswith(query.question)
    assert (int.from_bytes(reply[10:12], "big") > 0) >= (query.edns is not None)
