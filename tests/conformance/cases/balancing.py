"""Load balancing and connection pools: which endpoint and which connection a request takes."""

from __future__ import annotations

from tests.conformance.dsl import OK, Case, Op, get, on, request, response, send, signal, wait
from tests.conformance.snippets import bootstrap, chain, cluster, http, listener, tcp

CONFIG = bootstrap(
    http(routes="""
- {match: {prefix: /round}, route: {cluster: round}}
- {match: {prefix: /random}, route: {cluster: random}}
- {match: {prefix: /least}, route: {cluster: least}}
- {match: {prefix: /dns}, route: {cluster: dns}}
- {match: {prefix: /pool}, route: {cluster: pool}}
"""),
    listener("raw", chain(tcp("round"))),
    cluster("round", "up:round/0", "up:round/1", "up:round/2"),
    cluster("random", "up:random", extra="lb_policy: RANDOM"),
    cluster("least", "up:least", extra="lb_policy: LEAST_REQUEST\nleast_request_lb_config: {choice_count: 2}"),
    cluster("dns", "up:dns", kind="STRICT_DNS", address="localhost",
            extra="dns_lookup_family: V4_ONLY\ndns_refresh_rate: 60s"),
    cluster("pool", "up:pool", extra="upstream_connection_options: {tcp_keepalive: {keepalive_time: 60}}"),
)  # fmt: skip


def held(name: str) -> tuple[Op, ...]:
    """A turn that answers when `name-go` is signalled."""
    return (request(), signal(f"{name}-here"), wait(f"{name}-go"), send(OK))


STATS = ("cluster.{}.upstream_cx_total", "cluster.{}.upstream_rq_total", "cluster.{}.membership_total",
         "cluster.{}.upstream_rq_200")  # fmt: skip


def of(name: str) -> tuple[str, ...]:
    """Statistics of a cluster."""
    return tuple(stat.format(name) for stat in STATS)


CASES = [
    Case("round-robin", CONFIG, [get(f"/round/{n}") for n in range(7)], {"round": []}, log=7, stats=of("round")),
    Case("random-of-one", CONFIG, [get("/random/1"), get("/random/2")], {"random": []}, log=2, stats=of("random")),
    Case("least-request-of-one", CONFIG, [get("/least/1"), get("/least/2")], {"least": []}, log=2, stats=of("least")),
    Case("strict-dns", CONFIG, [get("/dns/1"), get("/dns/2")], {"dns": []}, log=2, stats=of("dns")),
    Case("pool-takes-the-last-released", CONFIG,
         [on("a", send(get("/pool/1"))), wait("a-here"), on("b", send(get("/pool/2"))), wait("b-here"), signal("a-go"),
          on("a", response()), signal("b-go"), on("b", response()), get("/pool/3"), get("/pool/4")],
         {"pool": [held("a"), held("b")]}, log=4, stats=of("pool")),
    Case("pool-grows-with-demand", CONFIG,
         [on("a", send(get("/pool/1"))), wait("a-here"), on("b", send(get("/pool/2"))), wait("b-here"),
          on("c", send(get("/pool/3"))), wait("c-here"), signal("c-go"), on("c", response()), signal("b-go"),
          on("b", response()), signal("a-go"), on("a", response())],
         {"pool": [held("a"), held("b"), held("c")]}, log=3, stats=of("pool")),
]  # fmt: skip
