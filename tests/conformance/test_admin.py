"""The admin interface: the same calls to both proxies after the same traffic, compared exactly or by structure."""

from __future__ import annotations

import difflib
import json
import pprint
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tests.conformance.conftest import SUBJECT, Pool
from tests.conformance.conversation import Conversation
from tests.conformance.dsl import Case, Config, close, connect, end, get, recv, send
from tests.conformance.proxies import Proxy
from tests.conformance.snippets import A, bootstrap, chain, cluster, http, listener, tcp

pytestmark = pytest.mark.conformance

CONFIG = bootstrap(
    http(),
    listener("raw", chain(tcp("b", prefix="raw"))),
    listener("unbound", chain(tcp("b", prefix="unbound")), extra="bind_to_port: false"),
    A,
    cluster("b", "up:b", extra="circuit_breakers: {thresholds: [{max_connections: 7, max_retries: 5}]}"),
    cluster("unused", "up:c", "refused"),
    cluster("empty", extra="alt_stat_name: nothing"),
    flags=("--service-node", "my-node", "--service-cluster", "my-cluster"),
)
TRAFFIC = Case(
    "admin-traffic",
    CONFIG,
    [get("/"), connect("raw"), send(b"ping"), recv(4), close()],
    {"a": [], "b": [(recv(4), send(b"pong"), end())]},
    log=2,
)
OURS = ("listener.127", "http.main.", "tcp.raw.", "cluster.a.", "cluster.b.", "cluster.unused.", "cluster.nothing.")


@dataclass(frozen=True)
class Call:
    """An admin call; `view` is what of the answer must agree."""

    name: str
    method: str
    path: str
    view: Callable[[Proxy, str, str], Any]
    config: Config = CONFIG


def named(proxy: Proxy, text: str) -> str:
    """Ports as names."""
    return re.sub(r"(?<!\d)\d{5}(?!\d)", lambda match: proxy.names.get(int(match[0]), match[0]), text)


def exactly(proxy: Proxy, head: str, body: str) -> Any:
    """Everything but the date, and a header that Envoy sends twice with some errors."""
    head = re.sub(r"(?s)(x-content-type-options: nosniff\r\n)(?=.*\1)", "", head)
    return re.sub(r"(?m)^date: .*GMT", "date: <date>", head), named(proxy, body)


def head_only(proxy: Proxy, head: str, body: str) -> Any:
    """Status and headers."""
    return exactly(proxy, head, "")


def first_line(proxy: Proxy, head: str, body: str) -> Any:
    """Status, headers and the first line of the body."""
    return exactly(proxy, head, body.split("\n")[0])


def shape(proxy: Proxy, head: str, body: str) -> Any:
    """Names and types of a JSON document, in any order."""
    return exactly(proxy, head, "")[0], _shape(json.loads(body))


def _shape(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _shape(value[key]) for key in sorted(value)}
    if isinstance(value, list):
        return sorted({json.dumps(_shape(item), sort_keys=True) for item in value})
    return type(value).__name__


def server_info(proxy: Proxy, head: str, body: str) -> Any:
    """The shape, without the list of what was compiled in."""
    info = json.loads(body)
    info["node"].pop("extensions", None)
    info["node"].pop("user_agent_build_version", None)
    return exactly(proxy, head, "")[0], info["state"], _shape(info)


def kinds(proxy: Proxy, head: str, body: str) -> Any:
    """The message types of a configuration dump and the names of static listeners and clusters."""
    dump = {entry["@type"]: entry for entry in json.loads(body)["configs"]}
    clusters = dump["type.googleapis.com/envoy.admin.v3.ClustersConfigDump"]["static_clusters"]
    listeners = dump["type.googleapis.com/envoy.admin.v3.ListenersConfigDump"]["static_listeners"]
    return (
        exactly(proxy, head, "")[0],
        sorted(dump),
        sorted(entry["cluster"]["name"] for entry in clusters),
        sorted(entry["listener"]["name"] for entry in listeners),
        {key for entry in clusters + listeners for key in entry},
    )


def in_order(proxy: Proxy, head: str, body: str) -> Any:
    """The answer with its lines sorted: clusters are listed in no particular order."""
    return exactly(proxy, head, "")[0], sorted(named(proxy, body).splitlines())


def json_in_order(proxy: Proxy, head: str, body: str) -> Any:
    """A JSON answer whose top list is in no particular order."""
    return exactly(proxy, head, "")[0], {
        key: sorted(named(proxy, json.dumps(item, sort_keys=True)) for item in value)
        for key, value in json.loads(body).items()
    }


SOME = "filter=^(http.main.downstream_rq_(total|2xx|active)|cluster.a.upstream_(rq_200|cx_total)|tcp.raw.*bytes_total)$"
CALLS = [
    Call("ready", "GET", "/ready", exactly),
    Call("listeners", "GET", "/listeners", exactly),
    Call("listeners-json", "GET", "/listeners?format=json", json_in_order),
    Call("clusters", "GET", "/clusters", in_order),
    Call("clusters-filtered", "GET", "/clusters?filter=^b$", in_order),
    Call("clusters-json", "GET", "/clusters?format=json", json_in_order),
    Call("server-info", "GET", "/server_info", server_info),
    Call("config-dump", "GET", "/config_dump", kinds),
    Call("config-dump-listeners", "GET", "/config_dump?resource=static_listeners", head_only),
    Call("config-dump-unknown", "GET", "/config_dump?resource=nonsense", exactly),
    Call("stats-some", "GET", f"/stats?{SOME}", exactly),
    Call("stats-json", "GET", f"/stats?format=json&{SOME}", exactly),
    Call("stats-prometheus", "GET", f"/stats?format=prometheus&{SOME}", exactly),
    Call("stats-prometheus-path", "GET", f"/stats/prometheus?{SOME}", exactly),
    Call("stats-counters", "GET", f"/stats?type=Counters&{SOME}", exactly),
    Call("stats-gauges", "GET", f"/stats?type=Gauges&{SOME}", exactly),
    Call("stats-bad-filter", "GET", "/stats?filter=(", first_line),
    Call("stats-bad-format", "GET", "/stats?format=nonsense", exactly),
    Call("stats-histogram-before-the-flush", "GET", "/stats?filter=^http.main.downstream_rq_time$", head_only),
    Call("unknown-path", "GET", "/nonsense", first_line),
    Call("help", "GET", "/help", first_line),
    Call("home", "GET", "/", head_only),
    Call("get-not-allowed", "GET", "/healthcheck/fail", exactly),
    Call("get-drain-not-allowed", "GET", "/drain_listeners", exactly),
    Call("get-quit-not-allowed", "GET", "/quitquitquit", exactly),
    Call("get-logging-not-allowed", "GET", "/logging", exactly),
    Call("logging", "POST", "/logging", first_line),
    Call("logging-level", "POST", "/logging?level=error", first_line),
    Call("logging-bad-level", "POST", "/logging?level=nonsense", first_line),
    Call("healthcheck-ok", "POST", "/healthcheck/ok", exactly),
    Call("reset-counters", "POST", "/reset_counters", exactly),
    Call("reopen-logs", "POST", "/reopen_logs", exactly),
    Call("put-ready", "PUT", "/ready", first_line),
]  # fmt: skip


@pytest.fixture(scope="module")
def pair(pool: Pool) -> dict[str, Proxy]:
    """Both proxies, after the same traffic."""
    pair = {role: pool.get(role, CONFIG) for role in ("oracle", "subject")}
    for proxy in pair.values():
        seen = Conversation(TRAFFIC, proxy, 5).run()
        assert not seen.stuck, (proxy.kind, seen.stuck)
    return pair


def ask(proxy: Proxy, method: str, path: str) -> tuple[str, str]:
    """Head and body."""
    head, body = proxy.admin_raw(method, path)
    return head.decode(), body.decode()


@pytest.mark.parametrize("case", CALLS, ids=lambda call: call.name)
def test_call(case: Call, pair: dict[str, Proxy]) -> None:
    """The answers agree in what the call's view shows."""
    theirs, ours = (case.view(pair[role], *ask(pair[role], case.method, case.path)) for role in ("oracle", "subject"))
    if ours != theirs:
        expected, got = (pprint.pformat(side, width=110).splitlines() for side in (theirs, ours))
        diff = difflib.unified_diff(expected, got, "Envoy", "ours", n=2, lineterm="")
        pytest.fail("\n".join(diff), pytrace=False)
    assert not pair["subject"].new_complaints() or SUBJECT == "envoy"


def stat_names(proxy: Proxy, query: str = "") -> set[str]:
    """Names of statistics of what the configuration has, ports as names."""
    lines = named(proxy, ask(proxy, "GET", f"/stats?{query}")[1]).splitlines()
    return {name for name in (line.split(": ")[0] for line in lines) if name.startswith(OURS)}


def test_statistics_have_envoys_names(pair: dict[str, Proxy]) -> None:
    """We invent no name."""
    invented = stat_names(pair["subject"]) - stat_names(pair["oracle"])
    assert not invented, sorted(invented)


def test_used_statistics_are_all_there(pair: dict[str, Proxy]) -> None:
    """What Envoy has written after the same traffic, we have written too."""
    query = "usedonly&type=Counters"
    missing = stat_names(pair["oracle"], query) - stat_names(pair["subject"], query)
    assert not missing, sorted(missing)


def test_help_lists_only_envoys_paths(pair: dict[str, Proxy]) -> None:
    """Every path in our help is one of Envoy's, with the same method, or marked as ours alone."""
    paths = {
        role: set(re.findall(r"(?m)^  (/\S*(?: \(POST\))?)", ask(pair[role], "GET", "/help")[1])) for role in pair
    }
    assert paths["subject"] and paths["subject"] - {"/connections:", "/limits:"} <= paths["oracle"]
