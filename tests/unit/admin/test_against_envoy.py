"""The same question to real Envoy and to us, with one configuration: status, type and text must agree."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from envoys import Envoy, Reply, address, bootstrap, running
from fakes import FakeServer, Running, serving

from proxy.admin.commands import COMMANDS, help_text
from proxy.config import model

CONFIG = bootstrap("/dev/null")
CONFIG["static_resources"]["listeners"][0]["additional_addresses"] = [{"address": address("::1", 0)}]


@pytest.fixture(scope="module")
def envoy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Envoy]:
    with running(CONFIG, tmp_path_factory.mktemp("envoy")) as one:
        yield one


@pytest.fixture(scope="module")
def ours(envoy: Envoy) -> Iterator[Running]:
    fake = FakeServer(CONFIG)
    # Ports were chosen by the kernel.
    texts = [line.split("::", 1) for line in envoy.get("/listeners").text.splitlines()]
    where: dict[str, list[model.SocketAddress]] = {}
    for name, text in texts:
        host, _, port = text.rpartition(":")
        where.setdefault(name, []).append(model.SocketAddress(host.strip("[]"), int(port)))
    for listener in fake.loaded.bootstrap.listeners:
        object.__setattr__(listener, "addresses", tuple(where[listener.name]))
    with serving(fake) as one:
        yield one


def plain(reply: Reply) -> tuple[int, str, str]:
    """What must agree to the letter."""
    return reply.status, reply.headers["content-type"], reply.text


SAME = [
    ("GET", "/ready"), ("HEAD", "/ready"), ("POST", "/ready"), ("PUT", "/ready"), ("GET", "//ready"),
    ("GET", "/./re%61dy?x#y"),
    ("GET", "/listeners"), ("GET", "/listeners?format=json"), ("GET", "/listeners?format=bogus"),
    ("GET", "/certs"), ("GET", "/hot_restart_version"), ("GET", "/init_dump"), ("GET", "/init_dump?mask=listener"),
    ("POST", "/logging"), ("POST", "/logging?level="), ("POST", "/logging?paths="), ("POST", "/logging?level=bogus"),
    ("POST", "/logging?bogus=debug"), ("POST", "/logging?upstream=bogus"), ("POST", "/logging?paths=upstream"),
    ("POST", "/logging?paths=bogus:debug"), ("POST", "/logging?paths=upstream:info,config:bogus"),
    ("POST", "/logging?group=upstream:info"), ("POST", "/logging?upstream=info&config=info"),
    ("POST", "/reset_counters"), ("POST", "/reopen_logs"), ("POST", "/drain_listeners?graceful&skip_exit&inboundonly"),
    ("POST", "/healthcheck/ok"),
    *((method, path) for method in ("GET", "DELETE") for path in (
        "/logging", "/reset_counters", "/reopen_logs", "/drain_listeners", "/healthcheck/fail", "/healthcheck/ok",
        "/quitquitquit")),
    ("GET", "/stats?filter=%28"), ("GET", "/stats/prometheus?filter=["), ("GET", "/stats?type=bogus"),
    ("GET", "/stats?format=bogus"), ("GET", "/stats?histogram_buckets=bogus"), ("GET", "/stats?filter=nothing"),
    ("GET", "/stats/prometheus?histogram_buckets=disjoint"), ("GET", "/stats/prometheus?histogram_buckets=detailed"),
    ("GET", "/stats?filter=^server.live$"), ("GET", "/stats?filter=server.li+ve"),
    ("GET", "/stats?filter=^server.li%2be"),
    ("GET", "/stats?filter=^server.live$&format=json"), ("GET", "/stats?filter=nothing&format=json"),
    ("GET", "/stats/prometheus?filter=^server.(live|concurrency|state|days_until)"),
    ("GET", "/stats?filter=^server.(live|concurrency|state|days_until)&format=prometheus"),
    ("GET", "/stats?usedonly&filter=^(cluster_manager.(active|cluster_added)|listener_manager.(listener_(added|"
            "create_success|stopped)|workers_started|total_listeners_active)|runtime.num)"),
    ("GET", "/stats?type=Counters&filter=^server.live$"), ("GET", "/stats?type=TextReadouts"),
    ("GET", "/config_dump?resource=bogus"), ("GET", "/config_dump?mask=bogus"),
    ("GET", "/config_dump?mask=bootstrap.admin,static_clusters"), ("GET", "/config_dump?resource=bootstrap"),
    ("GET", "/config_dump?resource=dynamic_listeners"), ("GET", "/config_dump?resource=dynamic_active_secrets"),
    ("GET", "/config_dump?resource=static_endpoint_configs"),
    ("GET", "/config_dump?resource=static_clusters&name_regex=loc"),
    ("GET", "/config_dump?resource=static_clusters&name_regex=("),
    ("GET", "/config_dump?mask=static_listeners.listener"),
]


@pytest.mark.parametrize(("method", "path"), SAME)
def test_same_answer(envoy: Envoy, ours: Running, method: str, path: str) -> None:
    theirs, mine = envoy.request(method, path), ours.request(method, path)
    assert plain(mine) == plain(theirs)
    assert {k: v for k, v in mine.headers.items() if k not in ("date", "connection")} == {
        k: v for k, v in theirs.headers.items() if k != "date"}


def without_times(document: Any) -> Any:
    """A dump without what differs between two processes."""
    if isinstance(document, dict):
        return {key: without_times(value) for key, value in document.items()
                if key not in ("last_updated", "user_agent_name", "user_agent_build_version", "extensions")}
    if isinstance(document, list):
        return [without_times(item) for item in document]
    return document


def by_name(document: Any) -> Any:
    """Envoy lists clusters in no particular order."""
    if isinstance(document, dict):
        return {key: by_name(value) for key, value in document.items()}
    if isinstance(document, list):
        return sorted((by_name(item) for item in document), key=lambda item: json.dumps(item, sort_keys=True))
    return document


@pytest.mark.parametrize("path", [
    "/clusters?format=json", "/clusters?format=json&filter=^out", "/runtime",
    "/config_dump", "/config_dump?include_eds", "/config_dump?name_regex=plain", "/config_dump?name_regex=plain|web",
    "/config_dump?resource=", "/config_dump?mask=bootstrap.node.id",
    "/config_dump?mask=bootstrap.admin,bootstrap.node.id",
    "/config_dump?resource=static_listeners", "/config_dump?resource=static_clusters",
    "/config_dump?resource=static_route_configs", "/config_dump?resource=static_route_configs&name_regex=route-agent",
    "/config_dump?resource=static_endpoint_configs&include_eds",
    "/config_dump?include_eds&mask=static_endpoint_configs",
    "/config_dump?resource=static_listeners&mask=listener.name,listener.address.socket_address.port_value",
    "/config_dump?resource=static_clusters&mask=cluster.name,cluster.load_assignment.cluster_name",
    "/config_dump?resource=static_clusters&mask=last_updated", "/config_dump?mask=version_info",
    "/config_dump?resource=static_listeners&mask=listener.filter_chains",
])
def test_same_document(envoy: Envoy, ours: Running, path: str) -> None:
    theirs, mine = envoy.get(path), ours.get(path)
    assert (mine.status, mine.headers["content-type"]) == (theirs.status, theirs.headers["content-type"])
    assert by_name(without_times(json.loads(mine.text))) == by_name(without_times(json.loads(theirs.text)))


def test_documents_look_alike(envoy: Envoy, ours: Running) -> None:
    path = "/config_dump?resource=static_listeners&mask=listener.name"
    assert ours.get(path).text == envoy.get(path).text


def test_a_mask_that_does_not_fit_an_entry(envoy: Envoy, ours: Running) -> None:
    for mask in ("bogus", "listener.bogus", "listener.filter_chains.name"):
        path = f"/config_dump?resource=static_listeners&mask={mask}"
        theirs, mine = envoy.get(path), ours.get(path)
        assert (mine.status, mine.headers["content-type"]) == (theirs.status, theirs.headers["content-type"])
        # Envoy prints the mask in a form that is meant to change.
        assert theirs.text.startswith("FieldMask ") and theirs.text.endswith(" could not be successfully used.")
        assert mine.text == f"FieldMask {mask} could not be successfully used."


@pytest.mark.parametrize("path", [
    "/clusters", "/clusters?filter=lain$", "/clusters?format=bogus", "/clusters?filter=nothing"])
def test_clusters_as_text(envoy: Envoy, ours: Running, path: str) -> None:
    theirs, mine = envoy.get(path), ours.get(path)

    def groups(text: str) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for line in text.splitlines():
            found.setdefault(line.split("::")[0], []).append(line)
        return found

    assert (mine.status, mine.headers["content-type"]) == (theirs.status, theirs.headers["content-type"])
    assert groups(mine.text) == groups(theirs.text)


def test_a_bad_cluster_filter(envoy: Envoy, ours: Running) -> None:
    theirs, mine = envoy.get("/clusters?filter=("), ours.get("/clusters?filter=(")
    assert mine.status == theirs.status == 400
    assert theirs.text == "Invalid re2 regex"
    assert mine.text == "Invalid re2 regex: missing ): ("


def commands_of(text: str) -> dict[str, set[str]]:
    """``path`` or ``path (POST)`` -> names of its parameters, of a help text."""
    commands: dict[str, set[str]] = {}
    for line in text.splitlines()[1:]:
        if match := re.fullmatch(r"  (/\S*(?: \(POST\))?): .+", line):
            commands[match[1]] = current = set()
        else:
            match = re.fullmatch(r"      (\w+): .+", line)
            assert match, line
            current.add(match[1])
    return commands


def test_help_lists_what_envoy_has(envoy: Envoy, ours: Running) -> None:
    theirs, mine = envoy.get("/help"), ours.get("/help")
    assert theirs.text.splitlines()[0] == mine.text.splitlines()[0]
    known, have = commands_of(theirs.text), commands_of(mine.text)
    assert list(have) == sorted(have)
    assert mine.text.count("(not in Envoy)") == 3
    assert have.pop("/connections") and have.pop("/dns") and have.pop("/limits")
    assert set(have) <= set(known)
    for path, parameters in have.items():
        # Envoy takes these as well without listing them.
        assert parameters - {"type", "format"} <= known[path], path


def test_an_unknown_path_gets_the_help(envoy: Envoy, ours: Running) -> None:
    theirs, mine = envoy.get("/nope"), ours.get("/nope")
    assert mine.status == theirs.status == 404
    assert mine.text.splitlines()[0] == theirs.text.splitlines()[0] == "invalid path. admin commands are:"
    assert mine.text.partition("\n")[2] == ours.get("/help").text.partition("\n")[2]
    assert set(commands_of(help_text(COMMANDS))) <= set(commands_of(mine.text))


def test_server_info(envoy: Envoy, ours: Running) -> None:
    theirs, mine = envoy.json("/server_info"), json.loads(ours.get("/server_info").text)
    assert list(mine) == list(theirs)
    # Envoy does not tell the value that --file-flush-min-size-kb has by default.
    different = {"config_path", "admin_address_path", "file_flush_min_size"}
    options, known = mine["command_line_options"], theirs["command_line_options"]
    assert {k: v for k, v in options.items() if k not in different} == {
        k: v for k, v in known.items() if k not in different}
    assert re.fullmatch(r"[0-9a-f]{40}/1\.40\.0/Clean/RELEASE/.+", mine["version"])
    assert re.fullmatch(r"\d+s", mine["uptime_current_epoch"])
    node, known = mine["node"], theirs["node"]
    assert {key: node[key] for key in ("id", "cluster", "user_agent_name")} == {
        key: known[key] for key in ("id", "cluster", "user_agent_name")}
    build, known = node["user_agent_build_version"], known["user_agent_build_version"]
    assert set(build["metadata"]) == set(known["metadata"])
    assert build["version"] == {key: value for key, value in known["version"].items() if value}
    assert mine["hot_restart_version"] == theirs["hot_restart_version"]


def test_memory(envoy: Envoy, ours: Running) -> None:
    theirs, mine = envoy.json("/memory"), json.loads(ours.get("/memory").text)
    assert list(mine) == list(theirs)
    assert all(value.isdigit() for value in mine.values())
    assert 5_000_000 < int(mine["total_physical_bytes"]) < 5_000_000_000
    assert int(mine["allocated"]) <= int(mine["heap_size"])


def test_contention(envoy: Envoy, ours: Running) -> None:
    theirs, mine = envoy.get("/contention"), ours.get("/contention")
    assert (mine.status, mine.headers["content-type"]) == (theirs.status, theirs.headers["content-type"])
    assert "--enable-mutex-tracing" in mine.text and "--enable-mutex-tracing" in theirs.text


def test_failed_health_checks(envoy: Envoy, ours: Running) -> None:
    for method, path in (("POST", "/healthcheck/fail"), ("GET", "/ready"), ("POST", "/healthcheck/ok"),
                         ("GET", "/ready")):
        assert plain(ours.request(method, path)) == plain(envoy.request(method, path))


def test_names_of_our_statistics_are_envoys(envoy: Envoy, ours: Running) -> None:
    theirs = {line.rpartition(": ")[0] for line in envoy.get("/stats").text.splitlines() if not line.endswith(")")}
    mine = {line.split(": ")[0] for line in ours.get("/stats").text.splitlines()}
    assert {name for name in mine - theirs if "_ms" not in name and not name.endswith("_time")} == {
        "server.worker_restarts"}
