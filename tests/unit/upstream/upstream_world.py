"""Clusters of one worker on a loop that is run by hand, with a resolver that is told its answers."""

from __future__ import annotations

import socket
from typing import Any, cast

from proxy.config import model
from proxy.config.model import SocketAddress
from proxy.http.client_connection import ClientConnection
from proxy.http.stream import Stream
from proxy.upstream.cluster import Cluster, Host, LbContext
from proxy.upstream.dial import DialFailure
from tests.unit.http.http_world import Peer, World

NOBODY = LbContext(None)


class User:
    """A request that wants a connection; notes what it gets."""

    def __init__(self) -> None:
        self.connection: ClientConnection | None = None
        self.failure: DialFailure | None = None

    def pool_ready(self, connection: ClientConnection) -> None:
        assert self.connection is None and self.failure is None
        self.connection = connection

    def pool_failed(self, failure: DialFailure) -> None:
        assert self.connection is None and self.failure is None
        self.failure = failure

    def use(self) -> ClientConnection:
        """Send a request on the connection."""
        assert self.connection is not None
        self.connection.start(cast(Stream, FakeStream()), b"GET / HTTP/1.1\r\n\r\n", False)
        return self.connection


class FakeStream:
    """Enough of a stream for a ClientConnection."""

    plan = None
    is_tunnel = interim = False

    def __init__(self) -> None:
        self.upstream: object = None
        self.events: list[Any] = []
        self.conn = self
        self.manager = self
        self.out: list[bytes] = []
        self.response_plans: dict[bytes, Any] = {}

    def flush(self) -> None:
        pass

    def upstream_headers(self, status: int, headers: object, end_stream: bool) -> None:
        self.events.append(status)

    def upstream_data(self, data: bytes) -> None:
        self.events.append(data)

    def upstream_end(self, trailers: object) -> None:
        self.events.append("end")

    def upstream_reset(self, reason: Any, reused: bool) -> None:
        self.events.append(reason.text)


EMPTY = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"


def world_with(*clusters: model.Cluster) -> World:
    return World(None, *clusters)


def the_cluster(world: World, name: str = "up") -> Cluster:
    found = world.context.clusters.get(name)
    assert found is not None
    return found


def peer_of(world: World, connection: ClientConnection | None) -> Peer:
    (found,) = [u for u in world.upstreams if u.transport.protocol is connection]
    return found


def answer(world: World, user: User) -> None:
    """Use the connection and let the upstream answer: it is free again."""
    user.use()
    peer_of(world, user.connection).send(EMPTY)


def endpoints(*weights: int) -> tuple[model.Endpoint, ...]:
    return tuple(model.Endpoint(SocketAddress(f"10.0.0.{n}", 80), weight=w) for n, w in enumerate(weights, 1))


def picks(cluster: Cluster, count: int) -> list[int]:
    """The chosen hosts as numbers from 1."""
    chosen = [cluster.choose(NOBODY) for _ in range(count)]
    return [int(cast(Host, host).address.host.rpartition(".")[2]) for host in chosen]


class Resolver:
    """Answers by (name, family): addresses, or the error number of a failure."""

    def __init__(self) -> None:
        self.answers: dict[tuple[str, int], list[str] | int] = {}
        self.asked: list[tuple[str, int]] = []

    def __call__(self, host: str, port: int, family: int) -> list[Any]:
        self.asked.append((host, family))
        found = self.answers.get((host, family), socket.EAI_NONAME)
        if isinstance(found, int):
            raise socket.gaierror(found, "told to fail")
        return [(family, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]
