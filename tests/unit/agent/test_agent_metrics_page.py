"""The merged page over real sockets: sources that are down, slow, huge or broken, formats, limits, own metrics."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
from typing import Any

import pytest

from agent.errors import ConfigError
from agent.metrics import page as page_module
from agent.metrics.annotations import Target, parse_targets
from agent.metrics.exposition import Format
from agent.metrics.negotiate import negotiate
from agent.metrics.own import OwnMetrics
from agent.metrics.page import Ask, Busy, MetricsPage, Page, source_timeout_s
from tests.unit.agent.status_tools import Handler, Sources, hangs, promtool, says

PROXY = "# TYPE envoy_x counter\nenvoy_x 1\n"
APP = "# HELP app_total Text.\n# TYPE app_total counter\napp_total 2\n"
OPEN_APP = '# TYPE app counter\napp_total 2 # {t="1"} 1\n# EOF\n'
OPEN_TYPE = "application/openmetrics-text; version=1.0.0; charset=utf-8"
PROMETHEUS_ACCEPT = (
    "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.1"
)


def scrape(
    proxy: Handler | None, *apps: Handler | None, ask: Ask | None = None, path: str = "/metrics", times: int = 1
) -> tuple[Page, list[list[str]]]:
    async def run() -> tuple[Page, list[list[str]]]:
        async with Sources(proxy, *apps) as sources, asyncio.timeout(60):
            targets = [Target(port, path) for port in sources.ports[1:]]
            page = MetricsPage(OwnMetrics(), proxy_port=sources.ports[0], targets=targets)
            for _ in range(times):
                made = await page.page(ask or Ask())
            return made, sources.heads

    return asyncio.run(run())


def value(page: Page, name: str) -> float | None:
    found = re.search(rf"^{re.escape(name)} (\S+)$", page.body.decode(), re.MULTILINE)
    return float(found[1]) if found else None


def failures(page: Page, kind: str) -> float | None:
    return value(page, f'istio_agent_scrape_failures_total{{type="{kind}"}}')


def test_own_proxy_application_in_this_order() -> None:
    page, _ = scrape(says(PROXY), says(APP), times=2)
    text = page.body.decode()
    assert text.index("istio_agent_scrapes_total") < text.index("envoy_x") < text.index("app_total")
    assert page.content_type == "text/plain; version=0.0.4; charset=utf-8"
    assert value(page, "istio_agent_scrapes_total") == 2
    assert (value(page, "envoy_x"), value(page, "app_total")) == (1, 2)
    assert (failures(page, "envoy"), failures(page, "application")) == (None, None)
    code, said = promtool(text)
    assert code != 1, said


def test_own_metrics() -> None:
    own = OwnMetrics()
    own.count("xds_proxy_requests", "Requests.")
    own.count("csr_total", "CSRs.", 2, request_type="csr")
    own.set("wasm_cache_entries", "Entries.", 7)
    own.watch("startup_duration_seconds", "Time.", lambda: None)
    text = own.page().decode()
    assert "# TYPE istio_agent_xds_proxy_requests counter\nistio_agent_xds_proxy_requests 1.0\n" in text
    assert "# TYPE istio_agent_csr_total counter\n" in text
    assert 'istio_agent_csr_total{request_type="csr"} 2.0\n' in text
    assert "istio_agent_wasm_cache_entries 7.0\n" in text
    assert "startup_duration" not in text
    own.watch("startup_duration_seconds", "Time.", lambda: 0.5)
    text = own.page().decode()
    assert "istio_agent_startup_duration_seconds 0.5\n" in text
    assert "istio_agent_process_resident_memory_bytes " in text
    assert all(line.split()[2 if line.startswith("#") else 0].startswith("istio_agent_") for line in text.splitlines())
    assert promtool(text)[0] in (0, 3), promtool(text)


@pytest.mark.parametrize(
    ("app", "reason"),
    [
        (None, "cannot connect to 127.0.0.1:"),
        (says("", 404), "status 404"),
        (says("", 204), "status 204"),
        (says("<html>", 200), "bad metrics: line 1: not a sample: '<html>'"),
        (says(b'a{b="\xff"} 1\n'), "bad metrics: not UTF-8 at byte 5"),
        (says("a 1\n", 200, f"content-type: {OPEN_TYPE}"), "bad metrics: it does not end with # EOF"),
        (says(b"xyz", 200, "content-encoding: gzip"), "bad compressed body"),
        (says("", 302, "location: /metrics"), "stopped after 5 redirects"),
        (says("", 302, "location: http://elsewhere/"), "redirected to another host"),
        (says("", 302, "location: http://localhost:1/"), "redirected to another port"),
    ],
)
def test_a_source_that_fails_never_breaks_the_page(
    app: Handler | None, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    page, _ = scrape(says(PROXY), app, says(APP), times=2)
    assert (value(page, "envoy_x"), value(page, "app_total")) == (1, 2)
    assert promtool(page.body.decode())[0] != 1
    assert failures(page, "application") == 2
    out = capfd.readouterr().out
    assert len([line for line in out.splitlines() if "scraping http://localhost:" in line]) == 1
    assert reason in out


def test_a_source_that_hangs_leaves_time_for_the_others(capfd: pytest.CaptureFixture[str]) -> None:
    page, _ = scrape(says(PROXY), hangs, says(APP), ask=Ask(timeout="1"))
    assert (value(page, "envoy_x"), value(page, "app_total")) == (1, 2)
    assert failures(page, "application") == 1
    assert "no answer within 0.9s" in capfd.readouterr().out


def test_a_proxy_that_is_down() -> None:
    page, _ = scrape(None, says(APP))
    assert value(page, "app_total") == 2
    assert failures(page, "envoy") == 1


def test_what_is_asked_for() -> None:
    ask = Ask("usedonly&filter=x", PROMETHEUS_ACCEPT, "Prometheus/2.42", "10")
    _, heads = scrape(says(PROXY), says(APP), ask=ask, path="/app?full=1")
    proxy, app = (head[0].split("\r\n") for head in heads)
    assert proxy[0] == "GET /stats/prometheus?usedonly&filter=x HTTP/1.1"
    assert app[0] == "GET /app?full=1 HTTP/1.1"
    assert "accept: text/plain;version=0.0.4;q=0.1" in proxy
    assert (
        "accept: application/openmetrics-text;version=1.0.0;q=0.3,application/openmetrics-text;version=0.0.1;q=0.2,"
        "text/plain;version=0.0.4;q=0.1"
    ) in app
    for head in (proxy, app):
        assert "user-agent: Prometheus/2.42" in head
        assert "x-prometheus-scrape-timeout-seconds: 10" in head
        assert any(line.startswith("host: localhost:") for line in head)


@pytest.mark.parametrize(
    ("header", "expected"),
    [("10", 9), ("0.5", 0.45), ("", 9), ("x", 9), ("-1", 9), ("0", 9), ("inf", 9), ("nan", 9), ("1e9", 270)],
)
def test_timeout(header: str, expected: float) -> None:
    assert source_timeout_s(header) == pytest.approx(expected)


def test_a_query_that_is_no_query() -> None:
    page, heads = scrape(says(PROXY), says(APP), ask=Ask("a b\r\nx: y"))
    assert not heads[0] and failures(page, "envoy") == 1
    assert value(page, "app_total") == 2


def test_a_redirect_within_the_port_is_followed() -> None:
    async def play(head: str, writer: asyncio.StreamWriter) -> None:
        step = says(APP) if head.startswith("GET /metrics/ ") else says("", 307, "location: /metrics/")
        await step(head, writer)

    page, heads = scrape(says(PROXY), play)
    assert value(page, "app_total") == 2 and len(heads[1]) == 2


def test_a_compressed_source() -> None:
    page, _ = scrape(says(PROXY), says(gzip.compress(APP.encode()), 200, "content-encoding: gzip"))
    assert value(page, "app_total") == 2


open_app = says(OPEN_APP, 200, f"content-type: {OPEN_TYPE}")
old_app = says(OPEN_APP, 200, "content-type: application/openmetrics-text; version=0.0.1")


@pytest.mark.parametrize(
    ("apps", "accept", "format"),
    [
        ([open_app], PROMETHEUS_ACCEPT, Format.OPENMETRICS),
        ([old_app], PROMETHEUS_ACCEPT, Format.OPENMETRICS_001),
        ([open_app], "text/plain", Format.TEXT),  # an application that does not listen
        ([open_app], "", Format.TEXT),
        ([open_app, says("b 1\n")], PROMETHEUS_ACCEPT, Format.TEXT),
        ([open_app, None], PROMETHEUS_ACCEPT, Format.OPENMETRICS),
        ([None], PROMETHEUS_ACCEPT, Format.TEXT),
        ([], PROMETHEUS_ACCEPT, Format.TEXT),
    ],
)
def test_the_format_of_the_page(apps: list[Handler | None], accept: str, format: Format) -> None:
    page, _ = scrape(says(PROXY), *apps, ask=Ask(accept=accept))
    text = page.body.decode()
    assert page.content_type == format.value
    assert text.endswith("# EOF\n") is format.is_open and text.count("# EOF") == int(format.is_open)
    assert ("# {t=" in text) is format.is_open
    if open_app in apps:
        assert "app_total 2" in text
    if not format.is_open:
        assert promtool(text)[0] != 1


TEXT = "text/plain;version=0.0.4;q=0.1"


@pytest.mark.parametrize(
    ("accept", "proxy", "application", "openmetrics"),
    [
        ("", TEXT.replace(";q=0.1", ""), TEXT.replace(";q=0.1", ""), False),
        ("*/*", TEXT, TEXT, False),
        ("text/*", TEXT, TEXT, False),
        ("application/*", TEXT.replace(";q=0.1", ""), "application/openmetrics-text;version=0.0.1;q=0.1", True),
        ("application/json", TEXT.replace(";q=0.1", ""), TEXT.replace(";q=0.1", ""), False),
        (
            "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.9,"
            'TEXT/plain ; version="0.0.4" ;q=0.5',
            TEXT,
            TEXT,
            False,
        ),
        ("text/plain;q=0", TEXT.replace(";q=0.1", ""), TEXT.replace(";q=0.1", ""), False),
        ("text/plain;q=x", TEXT.replace(";q=0.1", ""), TEXT.replace(";q=0.1", ""), False),
        ("text plain", TEXT.replace(";q=0.1", ""), TEXT.replace(";q=0.1", ""), False),
        ("text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4", "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.1",
         "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.1", False),
        ("text/plain;version=0.0.4;q=0.2,application/openmetrics-text;version=1.0.0;q=0.9", TEXT,
         "application/openmetrics-text;version=1.0.0;q=0.2,text/plain;version=0.0.4;q=0.1", True),
        ("x/y," * 10_000, TEXT.replace(";q=0.1", ""), TEXT.replace(";q=0.1", ""), False),
    ],
)  # fmt: skip
def test_negotiation(accept: str, proxy: str, application: str, openmetrics: bool) -> None:
    found = negotiate(accept)
    assert (found.proxy, found.application, found.openmetrics) == (proxy, application, openmetrics)


def test_bodies_are_bounded(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(page_module, "MAX_BODY", 1000)
    monkeypatch.setattr(page_module, "MAX_ALL_BODIES", 2500)
    big = says("# HELP x " + "x" * 1000 + "\n")
    bomb = says(gzip.compress(b"# " + b"x" * 100_000), 200, "content-encoding: gzip")
    page, _ = scrape(says(PROXY), big, bomb, says(APP))
    assert value(page, "app_total") == 2 and failures(page, "application") == 2
    out = capfd.readouterr().out
    assert "response body is larger than 1000 bytes" in out
    assert "compressed body is larger than 1000 bytes" in out
    page, _ = scrape(says(PROXY), *[says(f"# HELP x{index} " + "x" * 900 + "\n") for index in range(4)])
    assert failures(page, "application") and value(page, "envoy_x") is not None
    assert "all responses together are too large" in capfd.readouterr().out


def test_lines_are_bounded(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """A line and a family cost many times their bytes in memory. One that is too large leaves room for the next."""
    monkeypatch.setattr(page_module, "MAX_ALL_LINES", 100)
    many = says("".join(f"m{number} 1\n" for number in range(101)))
    long = says('a{b="' + "x" * 70_000 + '"} 1\n')
    page, _ = scrape(says(PROXY), many, long, says(APP))
    assert value(page, "app_total") == 2 and value(page, "envoy_x") == 1 and failures(page, "application") == 2
    out = capfd.readouterr().out
    assert "bad metrics: with it the page would have more than 100 lines" in out
    assert "bad metrics: line 1: longer than 65536 bytes" in out
    page, _ = scrape(says(PROXY), says("b 1\n" * 90), says("c 1\n" * 90))
    assert failures(page, "application") == 1


def test_pages_are_made_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "MAX_WAITING", 3)

    async def run() -> list[object]:
        release = asyncio.Event()
        running = most = 0

        async def slow(head: str, writer: asyncio.StreamWriter) -> None:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await release.wait()
            running -= 1
            await says(PROXY)(head, writer)

        async with Sources(slow) as sources, asyncio.timeout(60):
            page = MetricsPage(OwnMetrics(), proxy_port=sources.ports[0], targets=())
            loop = asyncio.get_running_loop()
            pages = [loop.create_task(page.page(Ask())) for _ in range(4)]
            await asyncio.wait(pages, return_when=asyncio.FIRST_COMPLETED)
            release.set()
            made = await asyncio.gather(*pages, return_exceptions=True)
            return [most <= 2, *[isinstance(each, Page) for each in made], isinstance(made[3], Busy)]

    assert asyncio.run(run()) == [True, True, True, True, False, True]


def test_a_page_whose_turn_does_not_come_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A source that hangs holds the pages of others up only for as long as their scrapers wait."""
    monkeypatch.setattr(page_module, "MAX_AT_ONCE", 1)

    async def run() -> None:
        async with Sources(hangs) as sources, asyncio.timeout(60):
            page = MetricsPage(OwnMetrics(), proxy_port=sources.ports[0], targets=())
            first = asyncio.get_running_loop().create_task(page.page(Ask(timeout="300")))
            while not sources.heads[0]:
                await asyncio.sleep(0)
            with pytest.raises(Busy, match="take too long"):
                await page.page(Ask(timeout="0.05"))
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            assert (await page.page(Ask(timeout="0.05"))).body  # the turn is free again

    asyncio.run(run())


def test_series_in_two_sources_are_counted(capfd: pytest.CaptureFixture[str]) -> None:
    page, _ = scrape(says("# TYPE x gauge\nx 1\n"), says("# TYPE x gauge\nx 2\n"), times=2)
    assert value(page, "x") == 1
    assert value(page, 'istio_agent_scrape_dropped_series_total{type="application"}') == 1
    assert capfd.readouterr().out.count("left out: x has the same series in two sources") == 1


@pytest.mark.parametrize(
    ("document", "targets"),
    [
        (None, []),
        ({"scrape": "false", "port": "15020"}, []),
        ({"scrape": "true", "path": "", "port": ""}, [(80, "/metrics")]),
        ({"scrape": "true", "path": "stats", "port": "9090"}, [(9090, "/stats")]),
        ({"Scrape": "yes", "Port": 9090}, [(9090, "/metrics")]),
        ({"port": "00080"}, [(80, "/metrics")]),
        ({"targets": [{"port": "1"}, {"port": "2", "path": "/x?y"}, {"port": "1"}]}, [(1, "/metrics"), (2, "/x?y")]),
        ({"targets": [], "port": "1"}, [(1, "/metrics")]),
    ],
)
def test_targets(document: dict[str, Any] | None, targets: list[tuple[int, str]]) -> None:
    text = None if document is None else json.dumps(document)
    assert [(each.port, each.path) for each in parse_targets(text, 15020)] == targets


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "ISTIO_PROMETHEUS_ANNOTATIONS is not JSON"),
        ("[" * 100_000, "ISTIO_PROMETHEUS_ANNOTATIONS is not JSON"),
        ("[]", "expected an object"),
        ('{"port": "http"}', r"ISTIO_PROMETHEUS_ANNOTATIONS\.port: expected a port from 1 to 65535, not 'http'"),
        ('{"port": "0"}', "expected a port from 1 to 65535, not '0'"),
        ('{"port": "65536"}', "expected a port"),
        ('{"port": "-1"}', "expected a port"),
        ('{"port": "15020"}', "15020 is a port of the proxy itself"),
        ('{"port": "015090"}', "15090 is a port of the proxy itself"),
        ('{"port": "12345"}', "12345 is a port of the proxy itself"),  # the status port of this test
        ('{"port": "1", "path": "/a b"}', r"\.path: expected printable ASCII"),
        ('{"port": []}', r"\.port: expected a string"),
        ('{"targets": {}}', r"\.targets: expected a list"),
        ('{"targets": ["80"]}', r"\.targets\[0\]: expected an object"),
        ('{"targets": [{"port": "1"}, {"port": "15001"}]}', r"\.targets\[1\]\.port: 15001 is a port"),
        (json.dumps({"targets": [{"port": "1"}] * 33}), "at most 32, not 33"),
    ],
)
def test_bad_annotations(document: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_targets(document, 12345)
