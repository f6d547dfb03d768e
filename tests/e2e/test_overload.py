"""The overload manager of real processes: all workers act, those that replace one, too, and the operator gets in."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.proxy_process import CONFIG, PATIENCE, ProxyProcess, wait_for

_MONITORS = "type.googleapis.com/envoy.extensions.resource_monitors"
OVERLOAD = f"""\
overload_manager:
  refresh_interval: 0.02s
  resource_monitors:
  - name: heap
    typed_config: {{"@type": {_MONITORS}.fixed_heap.v3.FixedHeapConfig, max_heap_size_bytes: 1073741824}}
  - name: injected
    typed_config: {{"@type": {_MONITORS}.injected_resource.v3.InjectedResourceConfig, filename: PRESSURE}}
  actions:
  - name: envoy.overload_actions.stop_accepting_requests
    triggers: [{{name: injected, threshold: {{value: 0.5}}}}]
  - name: envoy.overload_actions.reject_incoming_connections
    triggers: [{{name: injected, threshold: {{value: 0.9}}}}]
"""
REJECTS = "overload.envoy.overload_actions.reject_incoming_connections.active"
STOPS = "overload.envoy.overload_actions.stop_accepting_requests.active"


@pytest.fixture
def pressure(tmp_path: Path) -> Path:
    return tmp_path / "pressure"


@pytest.fixture
def proxy(tmp_path: Path, pressure: Path) -> Iterator[ProxyProcess]:
    proxy = ProxyProcess(tmp_path, CONFIG + OVERLOAD.replace("PRESSURE", str(pressure)))
    yield proxy
    proxy.close()


def press(path: Path, value: float) -> None:
    """At once: a file that is written in place is empty for a moment."""
    path.with_suffix(".new").write_text(str(value))
    path.with_suffix(".new").rename(path)


def answers(proxy: ProxyProcess) -> set[int]:
    """The statuses of so many requests that every worker got some."""
    return {proxy.get() for _ in range(30)}


def test_all_workers_act(proxy: ProxyProcess, pressure: Path) -> None:
    proxy.start()  # without the file
    wait_for("it to be missed", lambda: proxy.stat("overload.injected.failed_updates") > 0)
    assert "Failed to update resource injected: " in proxy.log
    assert answers(proxy) == {200}
    # Memory of three processes; a bound that Python fits in many times.
    assert 0 < proxy.stat("overload.heap.pressure") < 30

    press(pressure, 0.5)
    wait_for("overload", lambda: proxy.stat(STOPS) == 1)
    wait_for("the workers to hear of it", lambda: answers(proxy) == {503})
    before = proxy.workers()
    os.kill(before[0], signal.SIGKILL)
    wait_for("the replacement", lambda: "is back" in proxy.log)
    assert answers(proxy) == {503}

    press(pressure, 1)
    wait_for("more of it", lambda: proxy.stat(REJECTS) == 1)
    for _ in range(10):
        with socket.create_connection(("127.0.0.1", proxy.port), PATIENCE) as client:
            assert client.recv(1) == b""
    assert proxy.admin("/ready") == (200, "LIVE\n")

    press(pressure, 0.1)
    wait_for("its end", lambda: proxy.stat(STOPS) == proxy.stat(REJECTS) == 0)
    wait_for("the workers to hear of it", lambda: answers(proxy) == {200})
    assert proxy.log.count("Failed to update resource") == 1
    wait_for("the histogram", lambda: "overload.refresh_interval_delay: P0(" in proxy.admin("/stats")[1])
