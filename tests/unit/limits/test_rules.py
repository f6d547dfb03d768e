"""Which limits follow from a configuration and its runtime, and how values are read."""

from __future__ import annotations

import asyncio
import copy
import errno
import os
import resource
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from proxy.config import model
from proxy.config.model import RuntimeLayer
from proxy.config.overload_model import DownstreamConnections, OverloadManager
from proxy.limits import tokens
from proxy.limits.pools import (
    GLOBAL,
    SPARE,
    Limit,
    NoDescriptors,
    Pools,
    TooManyLimits,
    WorkerPools,
    most_connections,
)
from proxy.limits.rules import LEGACY_KEY, MONITOR, exempt, limits_of, make_pools
from proxy.limits.tokens import MOST
from proxy.runtime.control import Message, RuntimeControl
from proxy.runtime.values import integer, text

ADDRESS = (model.SocketAddress("127.0.0.1", 1),)


def bootstrap(*listeners: model.Listener, monitored: int | None = None) -> model.Bootstrap:
    overload = None if monitored is None else OverloadManager(((MONITOR, DownstreamConnections(monitored)),))
    return model.Bootstrap(model.Node(), model.Admin(), listeners, (), overload=overload)


def listener(name: str, **settings: bool) -> model.Listener:
    return model.Listener(name, ADDRESS, (), **settings)  # type: ignore[arg-type]


def test_all_kinds() -> None:
    chain = model.FilterChain("", model.FilterChainMatch(), model.TcpProxy("t"),
                              (model.ConnectionLimit("id", "prefix", 4),))
    one = model.Listener("one", ADDRESS, (chain,), default_filter_chain=chain)
    key = "envoy.resource_limits.listener.one.connection_limit"
    assert limits_of(bootstrap(one, listener("two")), {LEGACY_KEY: "3", key: 2.0}) == [
        Limit("global", 3, "global", "", LEGACY_KEY), Limit("listener/one", 2, "listener", "one", key),
        *[Limit("id", 4, "filter", "prefix", "id.max_connections")] * 2]


def test_the_monitor_goes_before_the_runtime_key() -> None:
    assert limits_of(bootstrap(monitored=9), {LEGACY_KEY: 3}) == [Limit("global", 9, "global", "", MONITOR)]


def test_who_is_exempt() -> None:
    assert [exempt(listener("x", **settings)) for settings in (
        {}, {"ignore_global_conn_limit": True}, {"bypass_overload_manager": True})] == [False, True, True]


@pytest.mark.parametrize(("value", "read"), [
    (3, 3), (3.9, 3), ("3", 3), (" 3 ", 3), ("+3", 3), ("03", 3), ("0x1F", 31), ("1e1", 10), ("2.5", 2), (".5", 0),
    ("0", 0), (-1, None), ("-1", None), ("-0", 0), ("", None), ("abc", None), (True, None), ("true", None),
    (float("nan"), None), ("nan", None), ("inf", None), (2.0**70, None), ("9" * 30, None), ("1_0", None), ("٣", None),
    ({"numerator": 1}, None), (None, None)])
def test_integers(value: object, read: int | None) -> None:
    assert integer(value) == read


@pytest.mark.parametrize(("value", "shown"), [
    (True, "true"), (1.5, "1.5"), (2.0, "2"), ("x", "x"),
    ({"numerator": 3.0, "denominator": "MILLION"}, '{"denominator": "MILLION", "numerator": 3.0}')])
def test_how_values_are_shown(value: object, shown: str) -> None:
    assert text(value) == shown


def test_limits_that_cannot_bind_cost_no_tokens() -> None:
    pools = make_pools(bootstrap(monitored=2**31 - 1), 2)
    assert pools.order() == [("global", 0, False)] and pools.pool("global").issued == 0
    pools.put_in_force([pools.limits["global"]._replace(value=most_connections(2) - 1)])
    assert pools.order() == [("global", 0, True)]
    for pool in pools.all:
        pool.close()


@pytest.mark.parametrize(("hard", "most"), [(1000, 3000), (1 << 30, MOST), (resource.RLIM_INFINITY, MOST)])
def test_the_highest_limit_that_could_bind(monkeypatch: pytest.MonkeyPatch, hard: int, most: int) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (100, hard))
    assert most_connections(3) == most


def test_spare_pools_are_no_more_than_could_be_used() -> None:
    layers = (RuntimeLayer("admin", (), True),)
    control = RuntimeControl(replace(bootstrap(listener("a"), listener("b")), runtime_layers=layers), 1)
    assert len(control.pools.all) == 3


def test_too_many_limits_for_the_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    eventfd = os.eventfd

    def scarce(*arguments: int) -> int:
        if len(made) == 7:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        made.append(eventfd(*arguments))
        return made[-1]

    monkeypatch.setattr(os, "eventfd", scarce)
    with pytest.raises(NoDescriptors, match="100 connection limits need two file descriptors each: Too many open"):
        Pools(2, [str(number) for number in range(100)], 0)
    assert not any(os.path.exists(f"/proc/self/fd/{descriptor}") for descriptor in made)


def test_limits_that_the_runtime_adds_are_bounded() -> None:
    pools = Pools(1, ["global"], SPARE)
    more = [Limit(f"listener/{n}", 1, "listener", str(n), f"key {n}") for n in range(SPARE + 1)]
    pools.put_in_force(more[:-1])
    with pytest.raises(TooManyLimits, match=f"key {SPARE}: at most {SPARE} limits can be added"):
        pools.put_in_force([more[-1]])
    assert len(pools.order()) == SPARE
    pools.put_in_force(more[:1])
    assert [limit.value for limit in pools.limits.values()] == [1] + [None] * (SPARE - 1)


class Timer:
    """It is never over."""

    def cancel(self) -> None:
        """Nothing to do."""


def worker(pools: Pools, at: int) -> WorkerPools:
    own = copy.copy(pools)
    own.all = [copy.copy(pool) for pool in pools.all]
    return WorkerPools(own, at, lambda _, callback: Timer())


def test_a_changed_limit_holds_though_workers_hear_of_it_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "ROOM", 0)
    control = RuntimeControl(replace(bootstrap(), runtime_layers=(RuntimeLayer("admin", (), True),)), 2)

    async def change(limit: int, tell: Callable[[str, Message], Awaitable[list[int]]]) -> None:
        assert await control.change({LEGACY_KEY: str(limit)}, tell) == []

    async def nobody(_: str, message: Message) -> list[int]:
        return []

    asyncio.run(change(2**31 - 1, nobody))  # only counted
    workers = [worker(control.pools, at) for at in range(2)]
    one, other = (each.in_use[GLOBAL] for each in workers)
    assert all(other.take() for _ in range(5))

    async def one_after_the_other(_: str, message: Message) -> list[int]:
        workers[0].apply(message[1])
        if not one.held:
            assert one.take() and one.take()
            one.release()
            assert one.spare == 1, "nobody has told it of the others"
        workers[1].apply(message[1])
        return []

    asyncio.run(change(6, one_after_the_other))
    assert not one.take() and not other.take(), "one and five"
    other.release()
    assert one.take() and not other.take()
    for pool in control.pools.all:
        pool.close()
