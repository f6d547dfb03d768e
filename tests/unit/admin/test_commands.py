"""Handlers and what they are made of, without sockets."""

from __future__ import annotations

import asyncio
import html.parser
import json
from typing import Any

import pytest
from envoy.config.bootstrap.v3.bootstrap_pb2 import Bootstrap
from envoy.extensions.transport_sockets.tls.v3.tls_pb2 import DownstreamTlsContext
from fakes import FakeServer

from proxy.admin import config_dump, control, home, info, limits, messages, patterns, redact, runtime, stats
from proxy.admin.commands import COMMANDS, help_text
from proxy.admin.console import Console
from proxy.admin.status import address_document
from proxy.config.model import SocketAddress, StatsTag


def ask(server: FakeServer, handler: Any, target: str, method: str = "GET") -> messages.Response:
    """The answer of one handler."""
    response: messages.Response = asyncio.run(handler(Console(server), messages.parse(method, target)))
    return response


# --- requests ---


@pytest.mark.parametrize(("path", "normal"), [
    ("/stats", "/stats"), ("//stats", "/stats"), ("/./stats", "/stats"), ("/x/../stats", "/stats"),
    ("/st%61ts", "/stats"), ("/stats/", "/stats/"), ("/a%2fb", "/a%2fb"), ("/", "/"), ("/..", "/"), ("/../..//", "/"),
    ("/stats/.", "/stats/"), ("/%2e%2E/ready", "/ready"),
])
def test_paths_are_normalised(path: str, normal: str) -> None:
    assert messages.normalise(path) == normal


def test_parameters() -> None:
    request = messages.parse("GET", "/a?x=1&x=2&graceful&y=%26%3d+z&&=q#frag?no", "form=1")
    assert request.path == "/a"
    assert request.get("x") == "1"
    assert request.has("graceful") and request.get("graceful") == ""
    assert request.get("y") == "&=+z"
    assert request.get("form") is None and request.get("no") is None
    assert messages.parse("POST", "/a", "form=1").get("form") == "1"
    assert len(messages.parse("GET", "/?" + "a&" * 10_000).parameters) <= messages.MAX_PARAMETERS


# --- regular expressions from outside ---


def test_patterns_are_found_anywhere_or_match_whole() -> None:
    assert patterns.search("b+")("abbc") and not patterns.search("^b")("abbc")
    assert patterns.full_match("ab+c|x")("abbc") and not patterns.full_match("b")("abbc")


@pytest.mark.parametrize(("pattern", "reason"), [
    ("(", r"^missing \): \($"), (r"(a)\1", "invalid escape"), ("a" * 2000, "^pattern of 2000 characters, at most 1024"),
    ("((a{1,30}){1,30}){1,30}", "^invalid repetition size"), (".{500}.{500}", "^pattern too large: program size"),
])
def test_patterns_that_are_refused(pattern: str, reason: str) -> None:
    with pytest.raises(patterns.PatternError, match=reason):
        patterns.search(pattern)


def test_a_pattern_that_backtracks_without_end_does_not_hold_up_anything() -> None:
    assert not patterns.search("(a|aa|a*)*b")("a" * 100_000)


# --- statistics ---


def test_statistics_of_workers_main_and_admin_together() -> None:
    server = FakeServer()
    server.workers.counters = {"cluster.a.upstream_cx_total": 3}
    server.workers.gauges = {"listener.x.downstream_cx_active": 2}
    server.workers.levels = {"cluster.a.membership_total": 1}
    server.workers.shared = {"cluster.a.membership_change": 1}
    text = ask(server, stats.handle_stats, "/stats").body
    lines = dict(line.split(": ", 1) for line in text.splitlines())
    for name, value in (("cluster.a.upstream_cx_total", "3"), ("cluster.a.membership_total", "1"),
                        ("cluster.a.membership_change", "1"), ("server.total_connections", "2"),
                        ("server.live", "1"), ("server.concurrency", "2"), ("listener_manager.workers_started", "1")):
        assert lines[name] == value
    assert int(lines["server.memory_physical_size"]) > 5_000_000
    server.state = "DRAINING"
    assert "server.live: 0\n" in ask(server, stats.handle_stats, "/stats").body


def test_reset_counters_keeps_what_was_used() -> None:
    server = FakeServer({"node": {"id": "n"}, "static_resources": {"listeners": [
        {"name": "l", "address": {"socket_address": {"address": "1.2.3.4", "port_value": 1}}}]}})
    server.workers.counters = {"a.total": 3, "b.total": 0}
    server.workers.shared = {"c.change": 2}
    console = Console(server)

    async def play() -> tuple[str, str]:
        await control.handle_reset_counters(console, messages.parse("POST", "/"))
        first = await stats.handle_stats(console, messages.parse("GET", "/stats?usedonly&type=Counters"))
        server.workers.counters["b.total"] += 1
        server.workers.shared["c.change"] += 1
        second = await stats.handle_stats(console, messages.parse("GET", "/stats?usedonly&type=Counters"))
        return first.body, second.body

    before, after = asyncio.run(play())
    own = ("listener_manager.listener_added: 0\nlistener_manager.listener_create_success: 0\n"
           "runtime.load_success: 0\nruntime.override_dir_not_exists: 0\n")
    assert before == "a.total: 0\nc.change: 0\n" + own
    assert after == "a.total: 0\nb.total: 1\nc.change: 1\n" + own


def test_only_unknown_fields_count_as_such() -> None:
    server = FakeServer()
    server.loaded.warnings = ["a.b: unknown field of x.Y, ignored", "layered_runtime: this runtime key is not known"]
    assert "server.static_unknown_fields: 1\n" in ask(server, stats.handle_stats, "/stats").body


def test_stats_matcher_applies_to_every_output() -> None:
    server = FakeServer(included=lambda name: name.startswith("server.live"))
    server.workers.counters = {"other.total": 1}
    for path, body in (("/stats", "server.live: 1\n"),
                       ("/stats?format=json", '{"stats":[{"name":"server.live","value":1}]}'),
                       ("/stats?format=prometheus", "# TYPE envoy_server_live gauge\nenvoy_server_live{} 1\n")):
        assert ask(server, stats.handle_stats, path).body == body


def test_stats_matcher_does_not_hide_what_pilot_agent_counts() -> None:
    server = FakeServer(included=lambda name: name.startswith("server.live"))
    server.workers.counters = {"dns.requests_total": 7, "cluster.a.total": 1}
    assert ask(server, stats.handle_stats, "/stats").body == "dns.requests_total: 7\nserver.live: 1\n"
    assert "istio_agent_dns_requests_total{} 7\n" in ask(server, stats.handle_prometheus, "/stats/prometheus").body


def test_statistics_as_a_page() -> None:
    server = FakeServer()
    server.workers.counters = {"cluster.<b>&.total": 1}
    page = ask(server, stats.handle_stats, "/stats?format=html&filter=cluster")
    assert page.content_type == messages.HTML
    assert "cluster.&lt;b&gt;&amp;.total: 1\n" in page.body and "http-equiv" not in page.body
    assert 'http-equiv="refresh"' in ask(server, stats.handle_stats, "/stats?format=active-html").body


# --- the others ---


LAYERS = {"layered_runtime": {"layers": [
    {"name": "one", "static_layer": {"a": {"b": 3.0, "c": True}, "d": "x"}},
    {"name": "two", "static_layer": {"a.b": "4"}}, {"name": "admin", "admin_layer": {}}]}}


def test_runtime_layers() -> None:
    document = json.loads(ask(FakeServer(LAYERS), runtime.handle_runtime, "/runtime").body)
    assert document == {"layers": ["one", "two", "admin"], "entries": {
        "a.b": {"layer_values": ["3", "4", ""], "final_value": "4"},
        "a.c": {"layer_values": ["true", "", ""], "final_value": "true"},
        "d": {"layer_values": ["x", "", ""], "final_value": "x"}}}


@pytest.mark.parametrize(("query", "status", "said"), [
    ("", 400, runtime.USAGE),
    ("a.b=5&x=1&x=2", 200, "OK\n"),
    ("tracing.client_enabled=1", 400, "tracing.client_enabled: is looked up when the configuration is loaded; "
                                      "changing it at run time is not supported yet\n"),
    ("circuit_breakers.a.default.max_requests=1", 400,
     "circuit_breakers.a.default.max_requests: circuit breakers from the runtime are not supported yet; "
     "set circuit_breakers\n"),
    ("x=1&overload.global_downstream_max_connections=1OO", 400,
     "overload.global_downstream_max_connections: '1OO': a number of connections is expected\n"),
    ("envoy.resource_limits.listener.main.connection_limit=-1", 400,
     "envoy.resource_limits.listener.main.connection_limit: '-1': a number of connections is expected\n"),
    ("x=" + "y" * 5000, 400, "x: at most 4096 characters are expected in a key or a value\n"),
    ("&".join(f"k{n}=1" for n in range(100)), 400, "at most 99 keys can be changed at once\n"),
])
def test_overrides(query: str, status: int, said: str) -> None:
    server = FakeServer(LAYERS)
    before = server.runtime.layers.values()
    assert ask(server, runtime.handle_runtime_modify, f"/runtime_modify?{query}") == messages.Response(status, said)
    after = server.runtime.layers.values()
    assert after == ({**before, "a.b": "5", "x": "1"} if status == 200 else before)


def test_an_override_that_a_worker_has_not_confirmed() -> None:
    server = FakeServer(LAYERS)
    server.late = [1]
    answer = ask(server, runtime.handle_runtime_modify, "/runtime_modify?a=1")
    assert (answer.status, answer.body) == (503, "written, but not yet in force: no answer from worker 1\n")


def test_a_limit_of_no_listener_is_warned_about(capfd: pytest.CaptureFixture[str]) -> None:
    server = FakeServer({**LAYERS, "static_resources": {"listeners": [
        {"name": "main", "address": {"socket_address": {"address": "1.2.3.4", "port_value": 1}}}]}})
    for name in ("main", "mian"):
        key = f"envoy.resource_limits.listener.{name}.connection_limit"
        assert ask(server, runtime.handle_runtime_modify, f"/runtime_modify?{key}=1").body == "OK\n"
    (line,) = capfd.readouterr().err.splitlines()
    assert line.endswith("] envoy.resource_limits.listener.mian.connection_limit: there is no listener 'mian'; "
                         "this runtime key has no effect")


def test_limits() -> None:
    server = FakeServer({
        "static_resources": {"listeners": [
            {"name": "main", "address": {"socket_address": {"address": "1.2.3.4", "port_value": 1}}}]},
        "layered_runtime": {"layers": [{"name": "admin", "admin_layer": {}}]}})
    assert ask(server, limits.handle_limits, "/limits").body == "no limits\n"
    for change in ("overload.global_downstream_max_connections=7",
                   "envoy.resource_limits.listener.main.connection_limit=5",
                   "envoy.resource_limits.listener.main.connection_limit="):
        ask(server, runtime.handle_runtime_modify, f"/runtime_modify?{change}")
    pool = server.runtime.pools.pool("global")
    pool.attach(1, True)
    assert [pool.take() for _ in range(9)].count(True) == 7
    pool.release()
    server.holders = limits.merge([{"global": [("10.0.0.1", 2), ("10.0.0.2", 1)]}, {"global": [("10.0.0.2", 3)]}])
    assert ask(server, limits.handle_limits, "/limits").body == (
        "global: limit 7 by overload.global_downstream_max_connections, in use 6, highest 7, refused 2\n"
        "  10.0.0.2 4\n  10.0.0.1 2\n"
        "listener main: no limit any more, in use 0, highest 0, refused 0\n")
    rows = json.loads(ask(server, limits.handle_limits, "/limits?format=json").body)["limits"]
    assert rows[0] == {
        "kind": "global", "name": "", "source": "overload.global_downstream_max_connections", "limit": 7, "in_use": 6,
        "highest": 7, "refused": 2,
        "clients": [{"address": "10.0.0.2", "connections": 4}, {"address": "10.0.0.1", "connections": 2}]}
    assert ask(server, limits.handle_limits, "/limits?format=xml").status == 400


def test_what_the_start_waits_for() -> None:
    server = FakeServer()
    server.workers_started, server.state = False, "INITIALIZING"
    assert json.loads(ask(server, info.handle_init_dump, "/init_dump").body) == {
        "unready_targets_dumps": [{"name": "init manager Server", "target_names": ["workers"]}]}
    assert ask(server, info.handle_ready, "/ready") == messages.Response(503, "INITIALIZING\n")


def test_contention_with_tracing() -> None:
    server = FakeServer()
    object.__setattr__(server.options, "enable_mutex_tracing", True)
    assert set(json.loads(ask(server, info.handle_contention, "/contention").body).values()) == {"0"}


@pytest.mark.parametrize(("query", "wanted"), [
    ("", []), ("level=", []), ("paths=&level=", []), ("level=off", [(None, "off")]),
    ("router=trace", [("router", "trace")]),
    ("paths=router:debug,main:info", [("router", "debug"), ("main", "info")]),
])
def test_wanted_log_levels(query: str, wanted: list[Any]) -> None:
    assert control.wanted_levels(tuple(messages.parameters(query))) == wanted


def test_no_level_changes_when_one_is_wrong() -> None:
    server = FakeServer()
    reply = ask(server, control.handle_logging, "/logging?paths=router:debug,nope:info", "POST")
    assert reply.status == 400 and reply.body.startswith("error: unknown logger name\n\nusage: ")
    assert server.said == []


class Checker(html.parser.HTMLParser):
    """Counts what a page has, and that tags close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.fields: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in ("a", "form"):
            self.links.append(values.get("href") or values.get("action") or "")
        if tag in ("input", "select"):
            self.fields.append((self.links[-1], values.get("name") or ""))
        if tag not in ("br", "input", "link", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_home_page_has_every_command() -> None:
    checker = Checker()
    checker.feed(home.page(COMMANDS, "LIVE", 'a "<node>"'))
    assert checker.open == []
    assert ["/" + link for link in checker.links] == [command.path for command in COMMANDS]
    assert checker.fields == [(command.path[1:], parameter.name) for command in COMMANDS
                              for parameter in command.parameters]
    assert "&lt;node&gt;" in home.page((), "LIVE", "<node>")


def test_help_marks_what_needs_post() -> None:
    text = help_text(COMMANDS, "invalid path. ")
    assert text.startswith("invalid path. admin commands are:\n")
    assert "  /quitquitquit (POST): " in text and "  /ready: " in text
    assert "      format: the form of the answer; One of (text, json)\n" in text


# --- dumps ---

SECRET = {
    "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
    "common_tls_context": {"tls_certificates": [{
        "certificate_chain": {"inline_string": "public"}, "private_key": {"inline_string": "key material"},
        "password": {"inline_bytes": "c2VjcmV0"}}]},
}


def test_secrets_are_not_shown() -> None:
    assert DownstreamTlsContext.DESCRIPTOR
    server = FakeServer({"static_resources": {"clusters": [
        {"name": "c", "transport_socket": {"name": "tls", "typed_config": SECRET}}]}})
    before = server.loaded.message.SerializeToString()
    for path in ("/config_dump", "/config_dump?resource=static_clusters"):
        body = ask(server, config_dump.handle_config_dump, path).body
        assert "key material" not in body and "c2VjcmV0" not in body
        assert redact.REDACTED in body and "public" in body
    assert server.loaded.message.SerializeToString() == before


def test_a_message_of_an_unknown_type_does_not_spoil_the_dump() -> None:
    server = FakeServer({"static_resources": {"clusters": [{"name": "c", "transport_socket": {"name": "x"}}]}})
    packed = server.loaded.message.static_resources.clusters[0].transport_socket.typed_config
    packed.type_url, packed.value = "type.googleapis.com/no.such.Type", b"\x0a\x01x"
    reply = ask(server, config_dump.handle_config_dump, "/config_dump")
    assert reply.status == 200 and '"name": "c"' in reply.body


def test_an_empty_configuration_has_every_part() -> None:
    reply = ask(FakeServer({"node": {}}), config_dump.handle_config_dump, "/config_dump?include_eds")
    document = json.loads(reply.body)
    assert [config["@type"].rpartition(".")[2] for config in document["configs"]] == [
        "BootstrapConfigDump", "ClustersConfigDump", "EndpointsConfigDump", "ListenersConfigDump",
        "ScopedRoutesConfigDump", "RoutesConfigDump", "SecretsConfigDump"]


def test_dumps_do_not_change_the_configuration() -> None:
    bootstrap = Bootstrap()
    bootstrap.node.id = "n"
    dumps = list(config_dump.config_dumps(bootstrap, 0.0, lambda _name: True, True))
    config_dump.document(dumps)
    assert bootstrap.node.user_agent_name == ""


def test_addresses_as_messages() -> None:
    assert address_document(SocketAddress("::1", 80).text) == {
        "socket_address": {"address": "::1", "port_value": 80}}


def test_bad_stats_tags_are_found_at_once() -> None:
    with pytest.raises(ValueError, match="stats tag 'x'"):
        Console(FakeServer(tags=(StatsTag("x", "("),)))
