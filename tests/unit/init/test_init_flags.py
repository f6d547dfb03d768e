"""The command line is read as pflag reads it."""

import pytest

from init.errors import UsageError
from init.flags import FLAGS, VARIABLES, resolve, usage


def text(name: str, argv: list[str], environ: dict[str, str] | None = None) -> str:
    return resolve(argv, environ or {})[name].text


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], "15001"),
        (["-p", "1"], "1"),
        (["-p1"], "1"),
        (["-p=1"], "1"),
        (["--envoy-port", "1"], "1"),
        (["--envoy-port=1"], "1"),
        (["--envoy-port="], ""),
        (["-p", ""], ""),
        (["-p", "-n"], "-n"),
        (["-p", "--"], "--"),
        (["-p", "1", "--envoy-port=2"], "2"),
        (["init", "-p", "1", "word"], "1"),
        (["--", "-p", "1"], "15001"),
        (["-", "-p", "1"], "1"),
        (["-np1"], "1"),
        (["-np", "1"], "1"),
        (["-p="], "="),
    ],
)
def test_a_value(argv: list[str], expected: str) -> None:
    assert text("envoy-port", argv) == expected


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], "false"),
        (["-n"], "true"),
        (["--dry-run"], "true"),
        (["--dry-run", "false"], "true"),
        (["--dry-run=false"], "false"),
        (["-n=false"], "false"),
        (["--dry-run=maybe"], "maybe"),
    ],
)
def test_a_boolean(argv: list[str], expected: str) -> None:
    assert text("dry-run", argv) == expected


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--nope"], "unknown flag: --nope"),
        (["--nope=1"], "unknown flag: --nope"),
        (["--envoy-por=1"], "unknown flag: --envoy-por"),
        (["-y"], "unknown shorthand flag: 'y' in -y"),
        (["-ny"], "unknown shorthand flag: 'y' in -ny"),
        (["-p"], "flag needs an argument: 'p' in -p"),
        (["--envoy-port"], "flag needs an argument: --envoy-port"),
        (["---p"], "bad flag syntax: '---p'"),
        (["--=1"], "bad flag syntax: '--=1'"),
        (["--a\nb"], "unknown flag: '--a\\nb'"),
    ],
)
def test_what_cannot_be_split_is_refused(argv: list[str], message: str) -> None:
    with pytest.raises(UsageError) as error:
        resolve(argv, {})
    assert str(error.value) == message
    assert error.value.exit_code == 255


def test_precedence_is_default_own_variable_alias_command_line() -> None:
    own, alias = {"REDIRECT_DNS": "1"}, {"ISTIO_META_DNS_CAPTURE": "0"}
    assert text("redirect-dns", [], own) == "1"
    assert text("redirect-dns", [], own | alias) == "0"
    assert text("redirect-dns", ["--redirect-dns"], own | alias) == "true"


def test_an_empty_variable_is_set() -> None:
    assert text("inbound-tunnel-port", [], {"INBOUND_TUNNEL_PORT": ""}) == ""


def test_the_envoy_port_has_no_variable() -> None:
    assert text("envoy-port", [], {"ENVOY_PORT": "1"}) == "15001"


def test_origins_name_the_speaker() -> None:
    values = resolve(["-b", "1"], {"ISTIO_LOCAL_EXCLUDE_PORTS": "2", "ENVOY_USER": "x"})
    assert values["istio-inbound-ports"].origin == "--istio-inbound-ports (-b)"
    assert values["istio-local-exclude-ports"].origin == "ISTIO_LOCAL_EXCLUDE_PORTS"
    assert values["ENVOY_USER"].origin == "ENVOY_USER"
    assert [v.from_flag for v in (values["istio-inbound-ports"], values["ENVOY_USER"])] == [True, False]


def test_a_repeatable_flag_keeps_all_its_values() -> None:
    values = resolve(["--log_target=stdout", "--log_target", "/x"], {})
    assert values["log_target"].all == ("stdout", "/x")


def test_every_flag_and_variable_is_in_the_help() -> None:
    text = usage("istio-iptables")
    for flag in FLAGS:
        assert f"--{flag.name}" in text
        assert all(f"${variable}" in text for variable in flag.variables)
    assert all(variable in text for variable in VARIABLES)
    assert "istio-iptables explain --help" in text
    assert "explain" not in usage("istio-clean-iptables")
