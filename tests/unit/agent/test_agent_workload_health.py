"""The health of workloads that no kubelet watches: thresholds, actions, reports."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from agent.status.workload_health import Threshold, WorkloadHealth, parse_probe
from tests.unit.agent.status_tools import App, response, running


@pytest.mark.parametrize(
    ("success", "failure", "results", "changes"),
    [
        (1, 1, "1101", "1.01"),
        (2, 1, "110", ".10"),
        (1, 3, "10010001", "1.....01"),
        (1, 2, "00", ".0"),
        (3, 3, "110111", ".....1"),
    ],
)
def test_threshold(success: int, failure: int, results: str, changes: str) -> None:
    threshold = Threshold(success, failure)
    assert "".join(each if threshold.add(each == "1") else "." for each in results) == changes


class Always:
    """A readiness."""

    def __init__(self, ready: bool) -> None:
        self.ready = ready

    async def check(self) -> bool:
        return self.ready


def check(document: dict[str, Any], ready: bool = True) -> str:
    async def run() -> str:
        return await WorkloadHealth(parse_probe(document), Always(ready), lambda *_: None).check()  # type: ignore[arg-type]

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ({"exec": {"command": ["true"]}}, ""),
        ({"exec": {"command": ["false"]}}, "false exited with 1"),
        ({"exec": {"command": ["/no/such"]}}, "cannot run /no/such: No such file or directory"),
        ({"tcpSocket": {"port": 1}}, "cannot connect to 127.0.0.1:1: Connection refused"),
        ({"grpc": {"port": 1}}, "Connection refused"),
        ({"httpGet": {"port": 1, "host": "127.0.0.1"}}, "Connection refused"),
    ],
)
def test_workload_health(document: dict[str, Any], reason: str) -> None:
    found = check(document)
    assert reason in found and bool(found) == bool(reason)
    assert check(document, ready=False) == "the proxy is not ready"


def test_a_command_that_hangs_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = tmp_path / "pid"
    document = {"exec": {"command": ["sh", "-c", f"echo $$ > {pid}; exec sleep 1000"]}}
    assert check(document) == "no answer within 1s"
    assert not Path(f"/proc/{pid.read_text().strip()}").exists()


def test_workload_health_by_http() -> None:
    async def run() -> tuple[list[tuple[bool, str]], App]:
        reports: list[tuple[bool, str]] = []
        changed = asyncio.Event()

        def report(healthy: bool, message: str) -> None:
            reports.append((healthy, message))
            changed.set()

        async with running(App(response(399))) as app:
            document = {"httpGet": {"port": app.port, "httpHeaders": [{"name": "Host", "value": "h"}], "path": "/x"}}
            health = WorkloadHealth(parse_probe(document), Always(True), report, instance_ip="127.0.0.1")  # type: ignore[arg-type]
            health.start()
            async with asyncio.timeout(60):
                await changed.wait()
            await health.close()
            return reports, app

    reports, app = asyncio.run(run())
    assert reports == [(True, "")]
    assert app.heads[0].startswith("GET /x HTTP/1.1\r\nhost: h\r\nuser-agent: istio-probe/1.0\r\n")
    assert app.peers == ["127.0.0.6"]
