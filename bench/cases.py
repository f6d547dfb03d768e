"""What is measured, and the targets: data only."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal

from bench.config import BODY_1K, BODY_1M, PATH_1K, PATH_1M


class Kind(Enum):
    THROUGHPUT = "wrk at full speed"
    LATENCY = "constant rate, half of Envoy's peak"
    MEMORY = "memory of main and two workers"
    CONNECTIONS = "memory of idle connections to one worker"


@dataclass(frozen=True, slots=True)
class Case:
    """`listener` names the port of the proxy that the load goes to; `unit` is how its rate is printed."""

    name: str
    what: str
    kind: Kind = Kind.THROUGHPUT
    listener: Literal["http", "tcp"] = "http"
    path: str = PATH_1K
    body_bytes: int = BODY_1K
    access_log: bool = True
    new_connection: bool = False
    unit: Literal["req/s", "MB/s"] = "req/s"


CASES: tuple[Case, ...] = (
    Case("http1-keepalive", "HTTP/1.1 keep-alive, 32 connections, 1 KB, access log off", access_log=False),
    Case("http1-keepalive-log", "the same with the access log written to a file"),
    Case("http1-new-connection", "a new connection for each request, 1 KB", new_connection=True),
    Case("http1-1mb", "HTTP/1.1 keep-alive, bodies of 1 MB", path=PATH_1M, body_bytes=BODY_1M, unit="MB/s"),
    Case("tcp-small", "TCP pass-through, 1 KB messages on 32 connections", listener="tcp"),
    Case("tcp-1mb", "TCP pass-through, 1 MB messages", listener="tcp", path=PATH_1M, body_bytes=BODY_1M, unit="MB/s"),
    Case("latency", "latency at half of Envoy's peak, constant rate, 32 connections, 1 KB", kind=Kind.LATENCY),
    Case("memory", "PSS of main and two workers, idle and under load", kind=Kind.MEMORY),
    Case("connections", "bytes for each of 15,000 idle connections to one worker: nothing sent, and one request served",
         kind=Kind.CONNECTIONS, access_log=False),
)

Metric = Literal["rate", "p50", "p99", "idle", "load", "new", "used"]


@dataclass(frozen=True, slots=True)
class Target:
    """`bound` is compared with the ratio to Envoy, or, when `absolute`, with our own value in `unit`."""

    case: str
    metric: Metric
    at_least: bool
    bound: float
    absolute: bool = False
    unit: str = "MB"

    def met(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound

    def text(self) -> str:
        sign = ">=" if self.at_least else "<="
        return f"{sign} {self.bound:,g} {self.unit}" if self.absolute else f"{sign} {self.bound:.1f}x"


TARGETS: tuple[Target, ...] = (
    Target("http1-keepalive", "rate", at_least=True, bound=1.5),
    Target("http1-keepalive-log", "rate", at_least=True, bound=1.5),
    Target("http1-new-connection", "rate", at_least=True, bound=1.5),
    Target("http1-1mb", "rate", at_least=True, bound=1.0),
    Target("tcp-small", "rate", at_least=True, bound=1.0),
    Target("tcp-1mb", "rate", at_least=True, bound=1.2),
    Target("latency", "p99", at_least=False, bound=1.0),
    Target("memory", "idle", at_least=False, bound=45.0, absolute=True),
    Target("memory", "load", at_least=False, bound=1.0),
    Target("connections", "new", at_least=False, bound=4096, absolute=True, unit="B"),
    Target("connections", "used", at_least=False, bound=4096, absolute=True, unit="B"),
)


def targets_of(case: str, metric: Metric) -> list[Target]:
    return [target for target in TARGETS if (target.case, target.metric) == (case, metric)]


def select(names: str | None) -> list[Case]:
    """Cases by their comma-separated names, in table order; all for None. Raises ValueError for an unknown name."""
    if names is None:
        return list(CASES)
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    known = {case.name for case in CASES}
    unknown = [name for name in wanted if name not in known]
    if unknown or not wanted:
        raise ValueError(f"no case named {', '.join(unknown) or '(empty)'}; known: {', '.join(c.name for c in CASES)}")
    return [case for case in CASES if case.name in wanted]
