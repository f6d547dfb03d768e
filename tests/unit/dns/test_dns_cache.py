"""The cache of servers' answers: TTLs, bounds, what is evicted, failures, stale entries."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from proxy.dns.cache import FAILURE_TTL, FAILURES, LEAST_BYTES, Cache, Key, key_of
from proxy.dns.reply import Reply
from tests.unit.dns.dns_upstream_world import query_of


def key(number: int) -> Key:
    return b"\x03%03d\0" % number, 1, 1, 0


def reply(ttl: int = 60, size: int = 0) -> Reply:
    return Reply(0, 0, bytes(size), ttl=ttl)


def test_an_entry_lives_as_long_as_its_ttl() -> None:
    cache = Cache(10, 3600, 0)
    assert cache.put(key(1), reply(5), 100.0)
    entry = cache.get(key(1), 104.9)
    assert entry is not None
    assert (entry.stored, entry.expires) == (100.0, 105.0)
    assert cache.get(key(1), 105.0) is None
    assert cache.get(key(2), 100.0) is None
    assert cache.get_stale(key(1), 105.0) is None
    assert len(cache) == cache.bytes == 0


def test_ttl_has_an_upper_bound() -> None:
    cache = Cache(10, 30, 0)
    cache.put(key(1), reply(86400), 0.0)
    assert cache.get(key(1), 29.9) is not None
    assert cache.get(key(1), 30.0) is None


def test_what_is_not_kept() -> None:
    cache = Cache(10, 3600, 30)
    assert not cache.put(key(1), reply(0), 0.0)
    assert not Cache(0, 3600, 30).put(key(1), reply(), 0.0)
    assert not Cache(10, 0, 30).put(key(1), reply(), 0.0)
    assert len(cache) == 0


def test_an_answer_that_may_not_be_kept_ends_the_one_before() -> None:
    cache = Cache(10, 3600, 30)
    cache.put(key(1), reply(60), 0.0)
    cache.put(key(1), reply(0), 1.0)
    assert cache.get_stale(key(1), 1.0) is None
    assert cache.bytes == 0


def test_stale_entries() -> None:
    cache = Cache(10, 3600, 30)
    cache.put(key(1), reply(10), 0.0)
    assert cache.get(key(1), 10.0) is None
    assert cache.get_stale(key(1), 39.9) is not None
    assert cache.get_stale(key(1), 40.0) is None
    assert len(cache) == 0


def test_failures_are_repeated_for_a_moment_and_leave_old_answers() -> None:
    cache = Cache(10, 3600, 30)
    cache.put(key(1), reply(10), 0.0)
    failure = Reply(0, 2)
    cache.put_failure(key(1), failure, 20.0)
    assert cache.get_failure(key(1), 20.9) is failure
    assert cache.get_stale(key(1), 20.9) is not None
    assert cache.get_failure(key(1), 20.0 + FAILURE_TTL) is None
    cache.put_failure(key(1), failure, 22.0)
    cache.put(key(1), reply(10), 22.1)
    assert cache.get_failure(key(1), 22.2) is None
    for number in range(FAILURES + 10):
        cache.put_failure((b"%d" % number, 1, 1, 0), failure, 30.0)
    assert cache.get_failure((b"9", 1, 1, 0), 30.0) is None
    assert cache.get_failure((b"10", 1, 1, 0), 30.0) is failure
    off = Cache(0, 3600, 30)
    off.put_failure(key(1), failure, 0.0)
    assert off.get_failure(key(1), 0.0) is None


def test_bounded_in_entries() -> None:
    cache = Cache(100, 3600, 0)
    for number in range(1000):
        cache.put(key(number), reply(), 0.0)
        assert len(cache) <= 100
    assert cache.get(key(999), 0.0) is not None


def test_bounded_in_bytes() -> None:
    cache = Cache(100, 3600, 0)
    for number in range(100):
        cache.put(key(number), reply(size=20_000), 0.0)
        assert cache.bytes <= cache.limit_bytes == LEAST_BYTES
    assert len(cache) == LEAST_BYTES // reply(size=20_000).size
    assert Cache(10_000, 3600, 0).limit_bytes == 20_480_000


def test_what_is_in_use_survives_names_that_are_asked_once() -> None:
    cache = Cache(100, 3600, 0)
    hot = [key(number) for number in range(20)]
    for one in hot:
        cache.put(one, reply(), 0.0)
    for number in range(100, 900):
        cache.put(key(number), reply(), 0.0)
        for one in hot:
            assert cache.get(one, 1.0) is not None


def test_all_in_use() -> None:
    """Then one of them has to go, and soon."""
    cache = Cache(100, 3600, 0)
    for number in range(200):
        cache.put(key(number), reply(), 0.0)
        for other in range(number + 1):
            cache.get(key(other), 0.0)
        assert len(cache) == min(number + 1, 100)
    assert cache.get(key(199), 0.0) is not None


@given(st.integers(0, 1 << 32))
def test_bytes_are_those_of_the_entries(seed: int) -> None:
    dice = random.Random(seed)
    cache = Cache(8, 100, 10)
    now = 0.0
    for _ in range(100):
        now += dice.random() * 10
        one = key(dice.randrange(12))
        match dice.randrange(4):
            case 0 | 1:
                cache.put(one, reply(dice.randrange(60), dice.randrange(5000)), now)
            case 2:
                cache.get_stale(one, now)
            case 3:
                found = cache.get(one, now)
                assert found is None or found.stored <= now < found.expires <= found.stored + 100
        assert cache.bytes == sum(entry.reply.size for entry in cache._entries.values()) <= cache.limit_bytes
        assert len(cache) <= 8
    cache.clear()
    assert len(cache) == cache.bytes == 0


def test_what_makes_a_difference() -> None:
    base = key_of(query_of("foo.example."))
    same = [query_of("FOO.Example.", number=9), query_of("foo.example.", edns=4096), query_of("foo.example.", tcp=True),
            query_of("foo.example.", ad=True, client=("10.9.0.2", 1))]
    assert {key_of(query) for query in same} == {base}
    others = [query_of("bar.example."), query_of("foo.example.", "AAAA"), query_of("foo.example.", do=True),
              query_of("foo.example.", cd=True), query_of("foo.example.", do=True, cd=True)]
    assert len({base, *map(key_of, others)}) == 6
    # 0x41, the type HTTPS, is an "A" and TYPE97 an "a".
    assert key_of(query_of("foo.example.", "HTTPS")) != key_of(query_of("foo.example.", "TYPE97"))
