"""What overload does to requests: refusals, timeouts that shrink, requests that hold much memory. No sockets."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from proxy.config import overload_model as model
from proxy.config.overload_model import ScaledTimer
from proxy.overload.streams import StreamResetter, lowest_class, memory_class
from tests.unit.http.http_world import World, manager, route, virtual_host
from tests.unit.http.http_world import world_of as world_of
from tests.unit.overload.overload_samples import configured

GET = b"GET /a HTTP/1.1\r\nhost: h\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
OVERLOADED = b"envoy overloaded"
Worlds = Callable[..., World]


def set_to(world: World, name: str, value: float) -> None:
    assert world.context.overload is not None
    world.turn += 1
    world.context.overload.apply({name: value})
    world.loop.run()


def exchange(world: World, client: object, request: bytes = GET) -> bytes:
    """A request whose upstream answers if it gets it."""
    before = len(world.upstreams)
    client.send(request)  # type: ignore[attr-defined]
    for upstream in world.upstreams:
        if upstream.take():
            upstream.send(OK)
    assert len(world.upstreams) <= before + 1
    return bytes(client.take())  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", [model.STOP_ACCEPTING_REQUESTS, model.DECODE_HEADERS])
def test_requests_are_refused_while_it_lasts(world_of: Worlds, name: str) -> None:
    points = (name,) if name == model.DECODE_HEADERS else ()
    world = world_of(None, overload=configured(*(() if points else (name,)), points=points))
    client = world.client()
    for _ in range(4):  # a plan is made meanwhile
        assert exchange(world, client).startswith(b"HTTP/1.1 200 OK\r\n")
    assert world.manager.request_plans
    set_to(world, name, 1.0)
    for _ in range(3):
        answer = exchange(world, client)
        assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        assert answer.endswith(b"\r\n\r\n" + OVERLOADED)
        assert b"connection: close" not in answer
    set_to(world, name, 0.0)
    assert exchange(world, client).startswith(b"HTTP/1.1 200 OK\r\n")
    assert world.manager.request_plans
    assert world.log[-4:] == [b"503 - overload"] * 3 + [b"200 - via_upstream"]
    assert world.stat("http.h.downstream_rq_overload_close") == 3
    assert world.stat(f"overload.{name}.shed_load_count") == (3 if points else 0)
    assert world.stat("http.h.rq_total") == 5
    world.settled()


def test_some_requests_are_refused(world_of: Worlds, monkeypatch: pytest.MonkeyPatch) -> None:
    draws = iter([0.2, 0.4, 0.6])
    monkeypatch.setattr("proxy.overload.worker.random", lambda: next(draws))
    world = world_of(None, overload=configured(model.STOP_ACCEPTING_REQUESTS))
    set_to(world, model.STOP_ACCEPTING_REQUESTS, 0.5)
    client = world.client()
    assert [exchange(world, client)[9:12] for _ in range(3)] == [b"503", b"503", b"200"]


def test_a_refused_upload_ends_its_connection(world_of: Worlds) -> None:
    world = world_of(manager(append_local_overload=True), overload=configured(model.STOP_ACCEPTING_REQUESTS))
    set_to(world, model.STOP_ACCEPTING_REQUESTS, 1.0)
    client = world.client()
    answer = exchange(world, client, b"POST /a HTTP/1.1\r\nhost: h\r\ncontent-length: 10\r\n\r\nhello")
    assert b"\r\nx-envoy-local-overloaded: true\r\ncontent-length: 16\r\n" in answer
    assert b"\r\nconnection: close\r\n" in answer
    assert world.upstreams == []


def test_keepalive_ends(world_of: Worlds) -> None:
    world = world_of(None, overload=configured(model.DISABLE_KEEPALIVE))
    client = world.client()
    assert b"connection: close" not in exchange(world, client)
    world.listener.draining = True  # what the real listener does then
    world.listener.drain_close = lambda: False  # type: ignore[method-assign]
    set_to(world, model.DISABLE_KEEPALIVE, 1.0)
    assert b"\r\nconnection: close\r\n" in exchange(world, client)
    assert b"\r\nconnection: close\r\n" in exchange(world, client)
    assert world.stat("http.h.downstream_cx_overload_disable_keepalive") == 1
    assert world.stat("http.h.downstream_cx_drain_close") == 1
    world.advance(10.0)
    assert client.closed


def test_dispatch_is_aborted(world_of: Worlds) -> None:
    world = world_of(None, overload=configured(points=(model.ABORT_DISPATCH,)))
    set_to(world, model.ABORT_DISPATCH, 1.0)
    for pieces in ([GET], [GET[:5], GET[5:]]):
        client = world.client()
        for piece in pieces:
            client.send(piece)
        answer = client.take()
        assert answer.startswith(b"HTTP/1.1 500 Internal Server Error\r\n")
        assert answer.endswith(b"connection: close\r\n\r\nInternal Server Error")
    assert world.log == [b"500 DPE overload"] * 2
    assert world.stat(f"overload.{model.ABORT_DISPATCH}.shed_load_count") == 2
    world.advance(1.5)
    assert world.stat("http.h.downstream_cx_delayed_close_timeout") == 2
    world.settled()


def test_no_codec_for_a_new_connection(world_of: Worlds) -> None:
    world = world_of(None, overload=configured(points=(model.CREATING_CODEC,)))
    old, new = world.client(), world.client()
    assert exchange(world, old).startswith(b"HTTP/1.1 200")
    set_to(world, model.CREATING_CODEC, 1.0)
    assert exchange(world, old).startswith(b"HTTP/1.1 200")
    assert exchange(world, new) == b""
    world.advance(1.5)
    assert new.closed
    assert not old.closed
    assert world.log == [b"200 - via_upstream"] * 2
    assert world.stat("http.h.downstream_rq_overload_close") == 1


def test_requests_with_a_route_to_a_cluster(world_of: Worlds) -> None:
    world = world_of(manager(virtual_host(route(prefix=b"/none", cluster_name="none"), route())),
                     overload=configured(points=(model.FILTER_CHECK,)))
    set_to(world, model.FILTER_CHECK, 1.0)
    client = world.client()
    assert exchange(world, client).endswith(OVERLOADED)
    assert exchange(world, client, GET.replace(b"/a", b"/none"))[9:12] == b"503"
    assert world.log == [b"503 - overload", b"503 NC cluster_not_found"]
    assert world.stat("http.h.rq_overload_local_reply") == 1


def test_no_new_upstream_connection(world_of: Worlds) -> None:
    world = world_of(None, overload=configured(points=(model.NEW_CONNECTION,)))
    first, second = world.client(), world.client()
    assert exchange(world, first).startswith(b"HTTP/1.1 200")
    set_to(world, model.NEW_CONNECTION, 1.0)
    assert exchange(world, first).startswith(b"HTTP/1.1 200")  # on the connection that is there
    first.send(GET)  # takes it
    second.send(GET)
    answer = second.take()
    assert b"\r\nx-envoy-overloaded: true\r\n" in answer
    assert world.log[-1] == b"503 UO upstream_reset_before_response_started{overflow}"
    assert world.stat("cluster.up.upstream_rq_cancelled") == 1
    assert world.stat("cluster.up.upstream_rq_pending_active") == 0


TIMERS = (ScaledTimer(model.CONNECTION_IDLE, 10.0, 0.0), ScaledTimer(model.STREAM_IDLE, None, 0.1),
          ScaledTimer(model.CONNECTION_MAX, 30.0, 0.0))


def reduced(world_of: Worlds, **settings: object) -> World:
    return world_of(manager(**settings), overload=configured(model.REDUCE_TIMEOUTS, timers=TIMERS))


def test_idle_connections_end_sooner(world_of: Worlds) -> None:
    world = reduced(world_of, idle_timeout=110.0, stream_idle_timeout=0.0)
    old = world.client()
    world.advance(40.0)
    set_to(world, model.REDUCE_TIMEOUTS, 0.5)  # 60 s, counted from the beginning
    new = world.client()
    world.advance(19.0)
    assert not old.closed
    world.advance(1.1)
    assert old.closed
    assert not new.closed
    set_to(world, model.REDUCE_TIMEOUTS, 0.0)  # 110 s again, 20.1 of which have passed
    world.advance(89.0)
    assert not new.closed
    world.advance(1.0)
    assert new.closed
    assert world.stat("http.h.downstream_cx_idle_timeout") == 2


def test_full_overload_leaves_the_minimum(world_of: Worlds) -> None:
    world = reduced(world_of, idle_timeout=110.0)
    client = world.client()
    world.advance(50.0)
    set_to(world, model.REDUCE_TIMEOUTS, 1.0)
    world.advance(0.1)
    assert client.closed


def test_streams_and_their_routes(world_of: Worlds) -> None:
    world = world_of(manager(virtual_host(route(prefix=b"/own", idle_timeout=40.0, timeout=0.0),
                                          route(timeout=0.0)), stream_idle_timeout=100.0),
                     overload=configured(model.REDUCE_TIMEOUTS, timers=TIMERS))
    usual, own = world.client(), world.client()
    usual.send(GET)
    own.send(GET.replace(b"/a", b"/own"))
    set_to(world, model.REDUCE_TIMEOUTS, 0.5)  # 55 s and 22 s
    world.advance(21.0)
    assert own.take() == b""
    world.advance(1.1)
    assert own.take().startswith(b"HTTP/1.1 504")
    late = world.client()
    late.send(GET.replace(b"/a", b"/own"))
    world.advance(22.1)
    assert late.take().startswith(b"HTTP/1.1 504")
    assert usual.take() == b""
    world.advance(11.0)
    assert usual.take().startswith(b"HTTP/1.1 504")
    assert world.log == [b"504 SI stream_idle_timeout"] * 3


def test_the_longest_life_of_a_connection(world_of: Worlds) -> None:
    world = reduced(world_of, idle_timeout=0.0, max_connection_duration=130.0)
    client = world.client()
    set_to(world, model.REDUCE_TIMEOUTS, 0.5)  # 80 s
    world.advance(79.0)
    assert not client.closed
    world.advance(1.1)
    assert client.closed
    assert world.stat("http.h.downstream_cx_max_duration_reached") == 1


@pytest.mark.parametrize(("size", "power", "expected"), [
    (0, 10, None), (511, 10, None), (512, 10, 0), (1023, 10, 0), (1024, 10, 1), (2048, 10, 2), (1 << 16, 10, 7),
    (1 << 40, 10, 7), (1 << 19, 20, 0),
])
def test_memory_classes(size: int, power: int, expected: int | None) -> None:
    assert memory_class(size, power) == expected


@pytest.mark.parametrize(("scale", "expected"), [(0.01, 7), (0.12, 7), (0.13, 6), (0.5, 3), (0.99, 0), (1.0, 0)])
def test_classes_that_end(scale: float, expected: int) -> None:
    assert lowest_class(scale) == expected


def test_requests_that_hold_most_end_first(world_of: Worlds, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.overload.streams.MOST_AT_ONCE", 1)
    world = world_of(None, overload=configured(model.RESET_STREAMS, account_power=10, refresh_interval=1.0))
    assert world.context.overload is not None
    StreamResetter(world.context.overload, lambda: [world.listener],  # type: ignore[list-item]
                   world.context.registry, world.loop)  # type: ignore[arg-type]
    small, large, huge, idle = (world.client() for _ in range(4))
    for client in (small, large, huge):
        client.send(GET)
    small.transport.unsent = 500
    large.transport.unsent = 1 << 16
    world.upstreams[2].transport.unsent = 1 << 20  # the third request's
    idle.transport.unsent = 1 << 30  # no request, no account
    set_to(world, model.RESET_STREAMS, 0.1)
    assert (huge.closed, large.closed) == (True, False)
    assert world.upstreams[2].transport.closing
    world.advance(1.0)
    assert large.closed
    world.advance(5.0)
    assert not small.closed
    assert not idle.closed
    assert world.log == [b"0 OM -"] * 2
    assert world.stat(f"{model.RESET_STREAMS}.count") == 2
    assert world.stat("http.h.downstream_rq_rx_reset") == 2
    set_to(world, model.RESET_STREAMS, 0.0)
    small.transport.unsent = 1 << 20
    world.advance(5.0)
    assert not small.closed


def test_without_an_overload_manager_nothing_is_asked(world_of: Worlds) -> None:
    world = world_of(None)
    assert world.context.overload is None
    assert world.manager.shedding is None
    world = world_of(None, overload=configured(model.STOP_ACCEPTING_REQUESTS), bypass_overload_manager=True)
    set_to(world, model.STOP_ACCEPTING_REQUESTS, 1.0)
    assert world.manager.shedding is None
    assert exchange(world, world.client()).startswith(b"HTTP/1.1 200")
