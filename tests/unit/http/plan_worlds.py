"""Scripts that run with plans (proxy/http/plan.py) and without, to see whether anybody can tell the difference."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from proxy.access_log.operators import NONE, OPERATORS
from proxy.config import model
from proxy.http.headers import Headers
from proxy.http.plan import PlanMemo, RequestPlan, ResponsePlan
from proxy.http.server_connection import CLOSING
from proxy.stream_info import StreamInfo
from tests.unit.http.http_world import ISTIO_FORMAT, Peer, World, manager

ROUNDS = 4
VOLATILE = {"EMIT_TIME", "EMIT_TIME_LOCAL", "UNIQUE_ID"}
"""Operators that differ from call to call."""
LOG = ISTIO_FORMAT.rstrip("\n") + "".join(
    f" {name}=%{name}%" for name, operator in OPERATORS.items() if operator.argument == NONE and name not in VOLATILE
) + " %COMMON_DURATION(DS_RX_BEG:US_TX_BEG)% %COMMON_DURATION(DS_RX_END:DS_TX_END)%\n"

Script = Callable[[World], None]


def attributes(info: StreamInfo) -> dict[str, Any]:
    """Everything that a log or a filter may see of a stream."""
    found: dict[str, Any] = {}
    for name in StreamInfo.__annotations__:
        value = getattr(info, name)
        if isinstance(value, Headers):
            assert all(value.index[f[0]] is not None for f in value.fields)
            assert {id(f) for f in value.index.values()} <= {id(f) for f in value.fields}
            value = sorted(value.fields)
        found[name] = value
    return found


@dataclass
class Outcome:
    transcript: dict[tuple[int, str], bytes]
    log: list[bytes]
    stats: dict[str, Any]
    streams: list[dict[str, Any]] = field(default_factory=list)
    ends: list[tuple[str, bool]] = field(default_factory=list)


class Runs:
    """How often plans ran, and how often they declined."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.requests = self.responses = 0
        run_request, run_response = RequestPlan.run, ResponsePlan.run

        def request(plan: RequestPlan, *args: Any) -> bool:
            done = run_request(plan, *args)
            self.requests += done
            return done

        def response(plan: ResponsePlan, *args: Any) -> bool:
            done = run_response(plan, *args)
            self.responses += done
            return done

        monkeypatch.setattr(RequestPlan, "run", request)
        monkeypatch.setattr(ResponsePlan, "run", response)


Compare = Callable[..., tuple[Runs, Outcome]]


@pytest.fixture
def compare(world_of: Callable[..., World], monkeypatch: pytest.MonkeyPatch) -> Compare:
    """Run a script with and without plans; returns what the plans did, and the outcome."""
    def once(script: Script, config: model.HttpConnectionManager, clusters: tuple[model.Cluster, ...]) -> Outcome:
        random.seed(7)
        world = world_of(config, *clusters)
        streams: list[dict[str, Any]] = []
        world.log_files.infos.append(lambda info: streams.append(attributes(info)))
        script(world)
        world.advance(10)
        assert world.loop.errors == []
        return Outcome(world.transcript, world.log, world.stats(), streams,
                       [(p.name, p.closed) for p in world.upstreams])

    def both(script: Script, config: model.HttpConnectionManager | None = None,
             *clusters: model.Cluster) -> tuple[Runs, Outcome]:
        config = config or manager(log=LOG)
        with monkeypatch.context() as patch:
            patch.setattr("os.urandom", random.Random(1).randbytes)  # the same request ids
            patch.setattr(PlanMemo, "worth", lambda self, head: False)
            plain_runs = Runs(patch)
            plain = once(script, config, clusters)
            assert plain_runs.requests == plain_runs.responses == 0
        with monkeypatch.context() as patch:
            patch.setattr("os.urandom", random.Random(1).randbytes)
            runs = Runs(patch)
            planned = once(script, config, clusters)
        assert planned.transcript == plain.transcript
        assert planned.log == plain.log
        assert planned.stats == plain.stats
        assert planned.streams == plain.streams
        assert planned.ends == plain.ends
        return runs, planned
    return both


DATED = b"date: Tue, 14 Nov 2023 22:13:20 GMT\r\n"
GET = b"GET /x HTTP/1.1\r\nhost: a\r\nuser-agent: t\r\n\r\n"
OK5 = b"HTTP/1.1 200 OK\r\n" + DATED + b"content-length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\n" + DATED + b"transfer-encoding: chunked\r\n\r\n"


def busy(world: World) -> Peer:
    """The upstream connection with a request on it."""
    (found,) = [u for u in world.upstreams if u.transport.protocol.stream is not None]
    return found


def exchange(client: Peer, request: bytes, *answer: bytes, finish: bool = False, after: float = 0.003) -> None:
    client.send(request)
    world = client.world
    world.advance(after)
    if not answer:
        return
    upstream = busy(world)
    upstream.send(*answer)
    if finish:
        upstream.finish()


def repeated(request: bytes, *answer: bytes, finish: bool = False, after: float = 0.003,
             rounds: int = ROUNDS) -> Script:
    def script(world: World) -> None:
        client = world.client()
        for _ in range(rounds):
            if client.closed or client.transport.protocol.drain_state == CLOSING:
                client = world.client()
            exchange(client, request, *answer, finish=finish, after=after)
    return script
