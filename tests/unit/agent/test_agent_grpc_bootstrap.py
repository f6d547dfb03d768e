"""GRPC_XDS_BOOTSTRAP: the file for applications that speak xDS themselves."""

import asyncio
import json
import stat
from pathlib import Path
from typing import Any

import pytest
from agent_loading import load

from agent import launch
from agent.admin import Admin
from agent.bootstrap.facts import Sockets
from agent.errors import ConfigError
from agent.launch import Launched
from agent.status.readiness import Readiness

POD = {"POD_NAME": "echo-1", "POD_NAMESPACE": "demo", "INSTANCE_IP": "10.0.0.1"}
ONE = ("10.0.0.1",)


def plan(*given: Any, **variables: Any) -> Launched:
    return launch.plan(load(*given, **{"interfaces": ONE, **POD, **variables}), Sockets(credential=True))


def written(file: Path, *given: Any, **variables: Any) -> Any:
    launched = plan(*given, GRPC_XDS_BOOTSTRAP=str(file), DISABLE_ENVOY="true", **variables)
    assert (launched.command, launched.made_files, launched.grpc_bootstrap) == (None, (), str(file))
    launched.write()
    return json.loads(file.read_text())


def test_the_file(tmp_path: Path) -> None:
    file = tmp_path / "new/grpc-bootstrap.json"
    made = written(file, {}, ISTIO_META_CLUSTER_ID="c1", ISTIO_META_OWN="x", ISTIO_META_GENERATOR="api",
                   ISTIO_META_NETWORK="", labels={"topology.istio.io/locality": "r/z/s"})  # fmt: skip
    assert stat.S_IMODE(file.stat().st_mode) == 0o644, "the application may run as another user"
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    metadata = made["node"].pop("metadata")
    assert made == {
        "xds_servers": [
            {
                "server_uri": "unix:///etc/istio/proxy/XDS",
                "channel_creds": [{"type": "insecure"}],
                "server_features": ["xds_v3"],
            }
        ],
        "node": {
            "id": "sidecar~10.0.0.1~echo-1.demo~demo.svc.cluster.local",
            "locality": {"region": "r", "zone": "z", "sub_zone": "s"},
        },
        "server_listener_resource_name_template": "xds.istio.io/grpc/lds/inbound/%s",
    }
    assert (metadata["GENERATOR"], metadata["CLUSTER_ID"], metadata["INSTANCE_IPS"]) == ("grpc", "c1", "10.0.0.1")
    assert metadata["PROXY_CONFIG"]["discoveryAddress"] == "istiod.istio-system.svc:15012"
    # Only what istiod knows by name, and nothing that is unset.
    assert not {"OWN", "credential", "NETWORK"} & metadata.keys()


def test_an_absolute_configuration_directory(tmp_path: Path) -> None:
    made = written(tmp_path / "g", {"configPath": "/etc/istio/../istio/proxy"})
    assert made["xds_servers"][0]["server_uri"] == "unix:////etc/istio/proxy/XDS"


def test_output_certs_are_a_certificate_provider(tmp_path: Path) -> None:
    made = written(tmp_path / "g", {}, OUTPUT_CERTS="/etc/istio-output-certs/")
    assert made["certificate_providers"] == {
        "default": {
            "plugin_name": "file_watcher",
            "config": {
                "certificate_file": "/etc/istio-output-certs/cert-chain.pem",
                "private_key_file": "/etc/istio-output-certs/key.pem",
                "ca_certificate_file": "/etc/istio-output-certs/root-cert.pem",
                "refresh_interval": "900s",
            },
        }
    }


def test_where_the_default_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a pod the directory is a volume. Elsewhere no directory is made for a file that nobody asked for."""
    monkeypatch.chdir(tmp_path)
    custom = tmp_path / "c.json"
    custom.write_text("{}")
    default = "./etc/istio/proxy/grpc-bootstrap.json"
    assert plan({"customConfigFile": str(custom)}).grpc_bootstrap == ""
    assert plan({"configPath": str(tmp_path / "own")}).grpc_bootstrap == ""
    assert plan({}, DISABLE_ENVOY="true").grpc_bootstrap == ""
    assert plan({"configPath": str(tmp_path / "etc/istio/proxy")}).grpc_bootstrap == default, "the same directory"
    launched = plan({})
    assert launched.grpc_bootstrap == default
    launched.write()
    assert sorted(path.name for path in Path("etc/istio/proxy").iterdir()) == ["envoy-rev.json", "grpc-bootstrap.json"]
    assert launched.made_files == ("./etc/istio/proxy/envoy-rev.json",), "the other one stays, as in the real program"
    assert plan({"customConfigFile": str(custom)}).grpc_bootstrap == default
    assert plan({}, GRPC_XDS_BOOTSTRAP="").grpc_bootstrap == ""


@pytest.mark.parametrize("name", ["file/grpc.json", "a\0b"])
def test_a_place_that_cannot_be_written(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="GRPC_XDS_BOOTSTRAP: cannot write '.*' as uid"):
        written(tmp_path / name, {})


def test_a_name_without_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert written(Path("grpc.json"), {})["node"]


def test_metadata_that_istiod_could_not_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="DNS_CAPTURE"):
        written(tmp_path / "g", {}, ISTIO_META_DNS_CAPTURE="maybe")
    with pytest.raises(ConfigError, match="GRPC_XDS_BOOTSTRAP: cannot be written: .*JSON"):
        written(
            tmp_path / "g",
            {},
            annotations={},
            ISTIO_METAJSON_X='{"NAME": "x", "APP_CONTAINERS": "' + "x" * 2**24 + '"}',
        )


def test_warnings_are_said_once(tmp_path: Path) -> None:
    launched = plan(
        {"configPath": str(tmp_path)}, GRPC_XDS_BOOTSTRAP=str(tmp_path / "g"), ISTIO_METAJSON_LABELS="nonsense"
    )
    assert len(launched.warnings) == len(set(launched.warnings)) == 1


def _why_not_ready(path: Path) -> str:
    readiness = Readiness(Admin(("127.0.0.1",), 1), (), 0.0, grpc_bootstrap=str(path), proxyless=True)
    return asyncio.run(readiness._check())


def test_readiness_waits_for_certificates_that_the_file_names(tmp_path: Path) -> None:
    written(tmp_path / "g", {}, OUTPUT_CERTS=str(tmp_path / "certs"))
    assert "certificate provider default: " in _why_not_ready(tmp_path / "g")
    (tmp_path / "certs").mkdir()
    for name in ("cert-chain.pem", "key.pem", "root-cert.pem"):
        (tmp_path / "certs" / name).write_text("")
    assert _why_not_ready(tmp_path / "g") == ""
