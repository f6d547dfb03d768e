"""ISTIO_KUBE_APP_PROBERS and readinessProbe: what is accepted, and what the errors say."""

import json
from typing import Any

import pytest

from agent.errors import ConfigError
from agent.status.probe_documents import AppProbe, Exec, Grpc, HttpGet, TcpSocket, parse_app_probers
from agent.status.workload_health import WorkloadProbe, parse_probe

PATH = "/app-health/app/livez"


def test_every_action() -> None:
    text = json.dumps(
        {
            "/app-health/a/livez": {
                "httpGet": {"path": "/ok?x=1#y", "port": 8080, "scheme": "HTTPS"},
                "timeoutSeconds": 3,
            },
            "/app-health/a/readyz": {
                "httpGet": {"port": 8080.0, "path": "ok", "httpHeaders": [{"name": "h", "value": "v"}]}
            },
            "/app-health/a/startupz": {"tcpSocket": {"port": 5432}, "timeoutSeconds": 1},
            "/app-health/b/livez": {"gRPC": {"port": 50051, "service": None}},
            "/app-health/b/readyz": {"grpc": {"port": 50051, "service": "s"}, "httpGet": None, "periodSeconds": 3},
            "/app-lifecycle/b/prestopz": {"HTTPGET": {"Port": 1}},
            "/app-lifecycle/b/poststartz": {"tcpSocket": {"port": 65535}},
        }
    )
    assert parse_app_probers(text) == {
        "/app-health/a/livez": AppProbe(HttpGet(8080, "/ok?x=1", True), 3),
        "/app-health/a/readyz": AppProbe(HttpGet(8080, "/ok", False, "", (("h", "v"),)), 0),
        "/app-health/a/startupz": AppProbe(TcpSocket(5432), 1),
        "/app-health/b/livez": AppProbe(Grpc(50051, ""), 0),
        "/app-health/b/readyz": AppProbe(Grpc(50051, "s"), 0),
        "/app-lifecycle/b/prestopz": AppProbe(HttpGet(1, "/", False), 0),
        "/app-lifecycle/b/poststartz": AppProbe(TcpSocket(65535), 0),
    }
    assert parse_app_probers("") == parse_app_probers(" \n") == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "ISTIO_KUBE_APP_PROBERS is not JSON"),
        ("[" * 100_000, "ISTIO_KUBE_APP_PROBERS is not JSON"),
        (" " * 2_000_000 + "{}", "more than 1048576 characters"),
        ("[]", r"expected an object that maps paths to probes, not \[\]"),
        (
            '{"/healthz": {"tcpSocket": {"port": 1}}}',
            "'/healthz': expected a path of the form /app-health/<container>/<x>",
        ),
        ('{"/app-health/a/b/livez": {"tcpSocket": {"port": 1}}}', "expected a path of the form"),
        ('{"/app-health/a/livezz": {"tcpSocket": {"port": 1}}}', "expected a path of the form"),
        ('{"/app-health//livez": {"tcpSocket": {"port": 1}}}', "expected a path of the form"),
    ],
)
def test_bad_documents(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_app_probers(text)


def test_too_many_probes() -> None:
    document = {f"/app-health/{index}/livez": {"tcpSocket": {"port": 1}} for index in range(1001)}
    with pytest.raises(ConfigError, match="more than 1000 probes"):
        parse_app_probers(json.dumps(document))


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        (None, "expected an object, not nothing"),
        ({}, "expected exactly one of httpGet, tcpSocket, grpc; found none"),
        ({"exec": {"command": ["true"]}}, "found none"),
        ({"httpGet": {"port": 1}, "tcpSocket": {"port": 1}}, "found httpGet and tcpSocket"),
        ({"httpGet": {"port": "http"}}, r"httpGet\.port: expected a number from 1 to 65535, not \"http\""),
        ({"httpGet": {"port": "8080"}}, r"httpGet\.port: expected a number"),
        ({"tcpSocket": {}}, r"tcpSocket\.port: expected a number from 1 to 65535, not nothing"),
        ({"tcpSocket": {"port": 0}}, r"tcpSocket\.port: expected"),
        ({"tcpSocket": {"port": 65536}}, r"tcpSocket\.port: expected"),
        ({"tcpSocket": {"port": True}}, r"tcpSocket\.port: expected"),
        ({"tcpSocket": 80}, "tcpSocket: expected an object, not 80"),
        ({"grpc": {"port": 1, "service": 3}}, r"grpc\.service: expected a string, not 3"),
        ({"httpGet": {"port": 1, "scheme": "ftp"}}, r"httpGet\.scheme: expected HTTP or HTTPS, not \"FTP\""),
        ({"httpGet": {"port": 1, "path": "/a b"}}, r"httpGet\.path: expected printable ASCII"),
        ({"httpGet": {"port": 1, "path": "/\r\nx: y"}}, r"httpGet\.path: expected printable ASCII"),
        ({"httpGet": {"port": 1, "httpHeaders": {}}}, r"httpHeaders: expected a list"),
        ({"httpGet": {"port": 1, "httpHeaders": [{"name": "a b"}]}}, r"httpHeaders\[0\]\.name: expected a header name"),
        ({"httpGet": {"port": 1, "httpHeaders": [{"name": "a", "value": "\n"}]}}, r"httpHeaders\[0\]\.value: expected"),
        ({"tcpSocket": {"port": 1}, "timeoutSeconds": -1}, "timeoutSeconds: expected a number from 0 to"),
        ({"tcpSocket": {"port": 1}, "timeoutSeconds": "1s"}, "timeoutSeconds: expected a number from 0 to"),
    ],
)
def test_bad_probes(probe: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        parse_app_probers(json.dumps({PATH: probe}))
    assert str(error.value).startswith(f"ISTIO_KUBE_APP_PROBERS: {PATH!r}")


def test_workload_probe_defaults() -> None:
    assert parse_probe({"tcpSocket": {"port": 1}, "periodSeconds": 0}) == WorkloadProbe(TcpSocket(1), 0, 1, 10, 1, 1)
    document = {
        "exec": {"command": ["test", "-f", "/x"]},
        "initialDelaySeconds": 1,
        "timeoutSeconds": 2,
        "periodSeconds": 3,
        "successThreshold": 4,
        "failureThreshold": 5,
    }
    assert parse_probe(document) == WorkloadProbe(Exec(("test", "-f", "/x")), 1, 2, 3, 4, 5)
    get = parse_probe({"httpGet": {"port": 80, "host": "10.0.0.1", "scheme": "http"}}).action
    assert get == HttpGet(80, "/", False, "10.0.0.1")


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({}, "readinessProbe: expected exactly one of httpGet, tcpSocket, exec, grpc; found none"),
        ({"exec": {"command": "true"}}, r"readinessProbe\.exec\.command: expected a list of strings, not \"true\""),
        ({"exec": {"command": []}}, r"readinessProbe\.exec\.command: expected a list of strings"),
        ({"tcpSocket": {"port": 1}, "periodSeconds": -1}, r"readinessProbe\.periodSeconds: expected a number from 1"),
    ],
)
def test_bad_workload_probes(document: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_probe(document)
