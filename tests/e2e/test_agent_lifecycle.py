"""`pilot-agent proxy sidecar` with a real proxy under it: start, readiness, drain, every kind of end.

The same cases run with real Envoy and with our own proxy; after each one nothing may be left of either.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.agent_pod import PATIENCE, ROOT, AgentPod, binary_of, eventually, fetch, keep_alive_head

pytestmark = pytest.mark.e2e

MakePod = Callable[..., AgentPod]


@pytest.fixture(params=["envoy", "pysidecar"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make_pod(kind: str, tmp_path: Path) -> Iterator[MakePod]:
    with contextlib.ExitStack() as stack:

        def make(**fields: Any) -> AgentPod:
            pod = AgentPod(tmp_path, {"concurrency": 2, **binary_of(kind, tmp_path), **fields})
            stack.callback(pod.close)
            return pod

        yield make


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ready_then_drained_then_over(make_pod: MakePod, number: signal.Signals) -> None:
    pod = make_pod()
    pod.start()
    pod.ready()
    assert fetch(pod.status, "/healthz/ready")[0] == 200
    assert fetch(pod.inbound, "/")[0] == 200
    assert b"connection: close" not in keep_alive_head(pod.inbound)
    pod.signal(number)
    assert pod.ended() == 0
    for line in (f"received {number.name}: draining for 0.5s", "inbound listeners are draining", "as asked"):
        assert line in pod.out


def test_while_it_drains(make_pod: MakePod) -> None:
    """Not ready any more; inbound clients are asked to leave, outbound ones are not; a second SIGTERM ends the wait."""
    pod = make_pod(terminationDrainDuration="3600s")
    pod.start()
    pod.ready()
    pod.signal(signal.SIGTERM)
    pod.logged("inbound listeners are draining; the proxy ends in 3600s")
    assert fetch(pod.status, "/healthz/ready")[0] == 503
    assert fetch(pod.probe, "/healthz/ready")[0] == 503
    assert b"connection: close" in keep_alive_head(pod.inbound)
    assert b"connection: close" not in keep_alive_head(pod.outbound)
    pod.signal(signal.SIGTERM)
    assert pod.ended() == 0
    assert "received SIGTERM again: the drain ends here" in pod.out


def test_requests_during_the_drain_are_answered(make_pod: MakePod) -> None:
    pod = make_pod(terminationDrainDuration="2s")
    pod.start()
    pod.ready()
    pod.signal(signal.SIGTERM)
    pod.logged("inbound listeners are draining")
    for _ in range(50):
        assert b"connection: close" in keep_alive_head(pod.inbound)
    assert pod.ended() == 0


def test_proxy_killed(make_pod: MakePod) -> None:
    pod = make_pod()
    pod.start()
    pod.ready()
    os.kill(pod.child(), signal.SIGKILL)
    assert pod.ended() == 255
    assert "Error: the proxy was killed by SIGKILL (9); likely cause: " in pod.err


def test_proxy_killed_during_the_drain(make_pod: MakePod) -> None:
    pod = make_pod(terminationDrainDuration="3600s")
    pod.start()
    pod.ready()
    pod.signal(signal.SIGTERM)
    pod.logged("inbound listeners are draining")
    os.kill(pod.child(), signal.SIGSEGV)
    assert pod.ended() == 255
    assert "Error: the proxy was killed by SIGSEGV (11) during the drain" in pod.err


def test_agent_killed(make_pod: MakePod) -> None:
    """Not even SIGKILL of the agent leaves a proxy or a worker of one (`close` looks)."""
    pod = make_pod()
    pod.start()
    pod.ready()
    assert pod.children()
    pod.signal(signal.SIGKILL)
    assert pod.ended() == -signal.SIGKILL


def test_proxy_refuses_its_configuration(make_pod: MakePod) -> None:
    pod = make_pod()
    pod.config.write_text(json.dumps({**pod.bootstrap(), "static_resources": {"clusters": [{"type": "NO_SUCH_TYPE"}]}}))
    pod.start()
    assert pod.ended() == 255
    assert "NO_SUCH_TYPE" in pod.err  # the proxy's own words
    assert "Error: the proxy exited with status 1 before it was ready" in pod.err


def test_proxy_cannot_bind(make_pod: MakePod) -> None:
    pod = make_pod()
    with socket.create_server(("127.0.0.1", pod.inbound)):
        pod.start()
        assert pod.ended() == 255
    assert f"127.0.0.1:{pod.inbound}" in pod.err
    assert "Error: the proxy exited with status 1 before it was ready" in pod.err


def test_status_port_in_use(make_pod: MakePod) -> None:
    pod = make_pod()
    with socket.create_server(("0.0.0.0", pod.status)):
        pod.start()
        assert pod.ended() == 255
    assert f"the status server cannot listen on port {pod.status} (statusPort): Address already in use" in pod.err
    assert "Proxy command" not in pod.out


def test_quitquitquit(make_pod: MakePod) -> None:
    pod = make_pod(terminationDrainDuration="3600s")
    pod.start()
    pod.ready()
    assert fetch(pod.status, "/quitquitquit")[0] == 405
    assert fetch(pod.status, "/quitquitquit", "POST")[::2] == (200, "OK")
    assert pod.ended() == 0
    assert "are draining" not in pod.out


def test_operator_quits_the_proxy(make_pod: MakePod) -> None:
    """An orderly end of a working proxy is an orderly end of the agent: how a Job gets rid of its sidecar."""
    pod = make_pod()
    pod.start()
    pod.ready()
    assert fetch(pod.admin, "/quitquitquit", "POST")[0] == 200
    assert pod.ended() == 0
    assert "The proxy exited with status 0 by itself" in pod.out


def test_wait_command(make_pod: MakePod) -> None:
    pod = make_pod()
    url = f"http://localhost:{pod.probe}/healthz/ready"
    command = [sys.executable, "-m", "agent", "wait", "--url", url, "--periodMillis=20"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([*command, f"--timeoutSeconds={PATIENCE:.0f}"], env=environment) as waiting:
        pod.start()
        assert waiting.wait(PATIENCE) == 0
    assert fetch(pod.probe, "/healthz/ready")[0] == 200
    pod.signal(signal.SIGTERM)
    assert pod.ended() == 0
    assert subprocess.run([*command, "--timeoutSeconds=0"], env=environment, timeout=PATIENCE).returncode == 255


def test_logs_and_levels_reach_the_proxy(make_pod: MakePod) -> None:
    pod = make_pod()
    pod.start("--proxyLogLevel=info", "--log_as_json", "--log_output_level=default:warn", "--unheardOf=x")
    pod.ready()
    pod.signal(signal.SIGTERM)
    assert pod.ended() == 0
    assert "[info]" in pod.err  # the proxy's lines go to its stderr, which is ours
    records = [json.loads(line) for line in pod.out.splitlines()]
    assert records[0]["msg"] == "unknown flag --unheardOf is ignored"
    assert {record["level"] for record in records} <= {"warn", "error"}


@pytest.mark.parametrize("kind", ["envoy"])  # xDS, which our own proxy does not have yet
def test_updates_of_a_control_plane_are_waited_for(make_pod: MakePod, tmp_path: Path) -> None:
    """With dynamic_resources the first CDS and LDS updates count; here they come from files."""
    pod = make_pod()
    bootstrap = pod.bootstrap()
    dynamic = {}
    for name in ("cds", "lds"):
        (tmp_path / f"{name}.json").write_text('{"version_info": "1", "resources": []}')
        dynamic[f"{name}_config"] = {"path_config_source": {"path": str(tmp_path / f"{name}.json")}}
    bootstrap.update(dynamic_resources=dynamic, node={"id": "a", "cluster": "b"})
    pod.config.write_text(json.dumps(bootstrap))
    pod.start()
    pod.ready()
    pod.signal(signal.SIGTERM)
    assert pod.ended() == 0


@pytest.mark.parametrize("kind", ["envoy"])
def test_without_updates_of_a_control_plane_it_is_not_ready(make_pod: MakePod) -> None:
    pod = make_pod()
    bootstrap = pod.bootstrap()
    source = {"ads": {}, "resource_api_version": "V3"}
    ads = {
        "api_type": "GRPC",
        "transport_api_version": "V3",
        "grpc_services": [{"envoy_grpc": {"cluster_name": "agent"}}],
    }
    bootstrap.update(
        dynamic_resources={"cds_config": source, "lds_config": source, "ads_config": ads},
        node={"id": "a", "cluster": "b"},
    )
    pod.config.write_text(json.dumps(bootstrap))
    pod.start()
    eventually("an answer", lambda: fetch(pod.status, "/healthz/ready")[0] == 503)
    reason = "config not received from XDS server"
    eventually("a reason", lambda: fetch(pod.status, "/healthz/ready")[0] == 503 and reason in pod.out)
    pod.signal(signal.SIGTERM)
    assert pod.ended() == 0
