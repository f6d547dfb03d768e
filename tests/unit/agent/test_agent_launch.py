"""What is started and from which file: templates, overrides, the configuration directory."""

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from agent_loading import load

from agent import child_command, launch
from agent.bootstrap import template
from agent.bootstrap.facts import Sockets
from agent.errors import ConfigError
from agent.launch import Launched

POD = {"POD_NAME": "reviews-1", "POD_NAMESPACE": "books", "INSTANCE_IP": "10.0.0.1"}
NOBODY = Sockets()
GO_TEMPLATE = '{ "node": { "id": "{{ .nodeID }}" {{- if .region }} , "x": 1 {{- end }} } }'


def plan(*given: Any, **variables: Any) -> Launched:
    return launch.plan(load(*given, **{**POD, **variables}), NOBODY)


def written(directory: Path, **variables: str) -> Any:
    plan({"configPath": str(directory)}, **variables).write()
    return json.loads((directory / "envoy-rev.json").read_text())


def test_the_bootstrap_is_written_whole_and_private(tmp_path: Path) -> None:
    directory = tmp_path / "new" / "proxy"
    launched = plan({"configPath": str(directory)})
    assert not directory.exists(), "nothing happens before it is started"
    launched.write()
    file = directory / "envoy-rev.json"
    assert launched.made_files == (str(file),)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert json.loads(file.read_text())["node"]["id"] == "sidecar~10.0.0.1~reviews-1.books~books.svc.cluster.local"
    assert launched.command is not None
    assert launched.command.arguments[:2] == ("-c", str(file))
    assert (launched.awaits, launched.run_as) == (("cds", "lds"), None)
    assert os.listdir(directory) == ["envoy-rev.json"]


def test_files_of_a_former_container_do_not_get_in_the_way(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("kept")
    (tmp_path / "proxy").mkdir()
    (tmp_path / "proxy/envoy-rev.json").symlink_to(outside)
    (tmp_path / f"proxy/.envoy-rev.json.{os.getpid()}").write_text("half")
    assert written(tmp_path / "proxy")["admin"]
    assert outside.read_text() == "kept"
    assert os.listdir(tmp_path / "proxy") == ["envoy-rev.json"]


def test_a_configuration_directory_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"ProxyConfig configPath: cannot write '.*/file/envoy-rev.json' as uid"):
        written(tmp_path / "file")
    (tmp_path / "d/envoy-rev.json").mkdir(parents=True)
    with pytest.raises(ConfigError, match="ProxyConfig configPath: cannot write"):
        written(tmp_path / "d")
    assert os.listdir(tmp_path / "d") == ["envoy-rev.json"]


def test_custom_config_file_is_passed_on_and_never_written_or_removed(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("admin: {address: {socket_address: {port_value: 1}}}")
    launched = plan({"customConfigFile": str(file), "configPath": str(tmp_path / "no")}, ISTIO_BOOTSTRAP="/no/such")
    launched.write()
    assert launched.command is not None
    assert launched.command.arguments[:2] == ("-c", str(file))
    assert (launched.made_files, launched.awaits) == ((), ())
    assert "admin on port 1, but ProxyConfig proxyAdminPort is 15000" in launched.warnings[0]
    assert os.listdir(tmp_path) == ["c.yaml"]


def test_override_goes_along_as_one_argument(tmp_path: Path) -> None:
    (tmp_path / "o.yaml").write_text("stats_flush_interval: 1s\n")
    launched = plan({"configPath": str(tmp_path)}, ISTIO_BOOTSTRAP_OVERRIDE=str(tmp_path / "o.yaml"))
    assert launched.command is not None
    words = launched.command.arguments
    assert words[words.index("--config-yaml") + 1] == '{"stats_flush_interval":"1s"}'


def test_proxyless() -> None:
    launched = plan({"binaryPath": "/no/such/program"}, DISABLE_ENVOY="true")
    assert (launched.command, launched.made_files) == (None, ())
    launched.write()


@pytest.mark.parametrize(
    ("address", "uid", "expected"), [("localhost:53", 0, 1337), (":53", 5, None), ("x:15053", 0, None)]
)
def test_the_proxy_is_never_root_beside_dns(
    monkeypatch: pytest.MonkeyPatch, address: str, uid: int, expected: int | None
) -> None:
    monkeypatch.setattr(launch.os, "geteuid", lambda: uid)
    assert launch.proxy_user(load({}, DNS_PROXY_ADDR=address)) == expected


def test_lightstep_token_is_a_file_of_its_own(tmp_path: Path) -> None:
    given = {"configPath": str(tmp_path), "tracing": {"lightstep": {"address": "l:1", "accessToken": "key"}}}
    launched = plan(given)
    launched.write()
    token = tmp_path / "lightstep_access_token.txt"
    assert (token.read_text(), stat.S_IMODE(token.stat().st_mode)) == ("key", 0o600)
    assert launched.made_files == (str(tmp_path / "envoy-rev.json"), str(token))


def test_our_own_proxy_stands_in_where_the_default_does_not_exist(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(child_command, "DEFAULT_BINARY", str(tmp_path / "envoy"))
    launched = plan({"binaryPath": str(tmp_path / "envoy")})
    assert launched.command is not None
    assert launched.command.program[1:] == ("-m", "proxy")


# --- templates ----------------------------------------------------------------------------------------------------


def test_template(tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    file.write_text(
        json.dumps(
            {
                "node": "${bootstrap.node}",
                "admin": {
                    "address": {"socket_address": {"address": "127.0.0.1", "port_value": "${config.proxyAdminPort}"}}
                },
                "static_resources": {
                    "clusters": ["${...bootstrap.static_resources.clusters}", {"name": "mine-${config.statusPort}-$$"}],
                    "listeners": ["${bootstrap.static_resources.listeners.1}"],
                },
            }
        )
    )
    made = written(tmp_path / "proxy", ISTIO_BOOTSTRAP=str(file))
    assert list(made) == ["node", "admin", "static_resources"]
    assert made["node"]["metadata"]["NAMESPACE"] == "books"
    assert made["admin"]["address"]["socket_address"]["port_value"] == 15000
    names = [cluster["name"] for cluster in made["static_resources"]["clusters"]]
    assert names == ["prometheus_stats", "agent", "sds-grpc", "xds-grpc", "mine-15020-$"]
    assert [listener["name"] for listener in made["static_resources"]["listeners"]] == ["0.0.0.0_15021"]
    # No ADS in the template: readiness has nothing to wait for.
    assert plan({"configPath": str(tmp_path)}, ISTIO_BOOTSTRAP=str(file)).awaits == ()


def test_order_of_templates(tmp_path: Path) -> None:
    for name in ("variable", "flag", "field"):
        (tmp_path / name).write_text(json.dumps({"node": {"id": name}}))
    field = {"configPath": str(tmp_path / "proxy"), "proxyBootstrapTemplatePath": str(tmp_path / "field")}
    flag = f"--templateFile={tmp_path / 'flag'}"

    def made(*arguments: str, **variables: str) -> str:
        facts = load(field, *arguments, **POD, **variables)
        launch.plan(facts, NOBODY).write()
        return str(json.loads((tmp_path / "proxy/envoy-rev.json").read_text())["node"]["id"])

    assert made() == "field"
    assert made(flag) == "flag"
    assert made(flag, ISTIO_BOOTSTRAP=str(tmp_path / "variable")) == "variable"


def test_the_template_of_the_real_image_stands_for_the_built_in_one(tmp_path: Path) -> None:
    for path in template.STANDARD:
        launched = plan({"configPath": str(tmp_path), "proxyBootstrapTemplatePath": path})
        assert launched.awaits == ("cds", "lds")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "ISTIO_BOOTSTRAP: bootstrap template '.*' does not exist"),
        (GO_TEMPLATE, r"is a Go template \('\{\{ .nodeID .*'\), which is not supported: write it as JSON with"),
        ('{"node": {"id": "{{ .nodeID }}"}}', "is a Go template"),  # and JSON
        ('{"node": {{- toJSON .x }} }', "is a Go template"),
        ("node: {}", "is not JSON"),
        ("[1]", "expected a JSON object"),
        ('{"a": "${config.noSuchField}"}', r"\$\{config.noSuchField\}: there is no 'noSuchField'"),
        ('{"a": "${bootstrap.node.id"}', r"expected \$\{path\}"),
        ('{"a": "x${bootstrap.node}"}', "is no text"),
        ('{"a": "${...bootstrap.static_resources.clusters}"}', "as an element of a list"),
        ('{"a": ["${...bootstrap.node}"]}', "not a list"),
        ('{"a": ' * 200 + "1" + "}" * 200, "nested too deeply"),
    ],
)
def test_templates_refused(tmp_path: Path, content: str | None, message: str) -> None:
    file = tmp_path / "t.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=message) as error:
        plan({"configPath": str(tmp_path)}, ISTIO_BOOTSTRAP=str(file))
    assert str(file) in str(error.value)


def test_the_flag_of_a_template_that_does_not_exist_is_named(tmp_path: Path) -> None:
    for source, arguments, given in (
        ("flag --templateFile", ("--templateFile=/nonexistent/t.json",), {}),
        ("PROXY_CONFIG", (), {"proxyBootstrapTemplatePath": "/nonexistent/t.json"}),
    ):
        with pytest.raises(ConfigError, match=rf"proxyBootstrapTemplatePath \({source}\): .*does not exist"):
            plan({"configPath": str(tmp_path), **given}, *arguments)


def test_braces_of_lua_are_no_go_template(tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    file.write_text('{"a": "local x = {{1, 2}, {y}}"}')
    plan({"configPath": str(tmp_path)}, ISTIO_BOOTSTRAP=str(file))


def test_unreadable_template(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="bootstrap template '.*' cannot be used: not a regular file"):
        plan({"configPath": str(tmp_path)}, ISTIO_BOOTSTRAP=str(tmp_path))


@pytest.mark.parametrize(
    ("policy", "environment"),
    [
        ("", {}),
        ("fips-140-3", {}),  # TLS 1.3 is allowed there, and its ciphers are approved
        (
            "fips-140-2",
            {
                "GRPC_SSL_CIPHER_SUITES": "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:"
                "ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384"
            },
        ),
    ],
)
def test_compliance_policy(policy: str, environment: dict[str, str]) -> None:
    settings = load({}, **POD, COMPLIANCE_POLICY=policy)
    assert child_command.environment(settings) == environment
    command = launch.plan(settings, NOBODY).command
    assert command is not None
    assert command.environment == environment
