"""The command-line rules of pflag, as the facts about the real program give them."""

import pytest

from agent.durations import format_seconds, parse_go_duration, parse_proto_duration
from agent.errors import UsageError
from agent.flags import Flag, describe, parse
from agent.options import (
    PROXY_FLAGS,
    REQUEST_FLAGS,
    VERSION_FLAGS,
    WAIT_FLAGS,
    RequestOptions,
    proxy_options,
    request_options,
    version_options,
    wait_options,
)

FLAGS = (
    Flag("name", "n", "a string"),
    Flag("count", 7, "an integer"),
    Flag("short", False, "a switch", short="s"),
    Flag("output", "", "a string with a letter", short="o"),
    Flag("target", ("stdout",), "repeatable"),
)


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        ([], "name", "n"),
        (["--name", "x"], "name", "x"),
        (["--name=x=y"], "name", "x=y"),
        (["--name", "--count"], "name", "--count"),  # a value may look like a flag
        (["--name="], "name", ""),
        (["--count", "-3"], "count", -3),
        (["--count=0x10"], "count", 16),
        (["--count", "1", "--count", "2"], "count", 2),
        (["--short"], "short", True),
        (["-s"], "short", True),
        (["--short=F"], "short", False),
        (["-s=t"], "short", True),
        (["-so", "json"], "output", "json"),
        (["-ojson"], "output", "json"),
        (["-o=json"], "output", "json"),
        (["-o", "json"], "output", "json"),
        ([], "target", ("stdout",)),
        (["--target", "a", "--target=b"], "target", ("a", "b")),
    ],
)
def test_known_flags(arguments: list[str], name: str, value: object) -> None:
    parsed = parse(FLAGS, arguments, tolerate_unknown=False)
    assert parsed.values[name] == value
    assert (name in parsed.given) == bool(arguments)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--nope"], "unknown flag: --nope"),
        (["-x"], "unknown flag: -x"),
        (["--name"], "flag needs an argument: --name"),
        (["-o"], "flag needs an argument: -o"),
        (["--count", "12x"], 'invalid argument "12x" for "--count" flag: expected an integer'),
        (["--count", "9223372036854775808"], "expected an integer"),
        (["--count", "1" * 5000], "expected an integer"),
        (["--count", " 1"], "expected an integer"),
        (["--short=maybe"], "expected true or false"),
        (["--=x"], "bad flag syntax"),
        (["---name"], "bad flag syntax"),
    ],
)
def test_refused(arguments: list[str], text: str) -> None:
    with pytest.raises(UsageError) as error:
        parse(FLAGS, arguments, tolerate_unknown=False)
    assert text in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "unknown", "positionals"),
    [
        (["--x", "45s", "sidecar"], ["--x"], ["sidecar"]),  # the token goes with the flag
        (["--x=45s", "sidecar"], ["--x"], ["sidecar"]),
        (["--x", "sidecar"], ["--x"], []),  # an unknown switch eats the positional
        (["--x", "--count", "1", "a"], ["--x"], ["a"]),
        (["--x", "-", "a"], ["--x"], ["-", "a"]),
        (["--x", "", "a"], ["--x"], ["a"]),
        (["--x"], ["--x"], []),
        (["-x", "v", "a"], ["-x"], ["a"]),
        (["-x=v", "a"], ["-x"], ["a"]),
        (["a", "--", "--x", "b"], [], ["a", "--x", "b"]),
    ],
)
def test_tolerated(arguments: list[str], unknown: list[str], positionals: list[str]) -> None:
    parsed = parse(FLAGS, arguments, tolerate_unknown=True)
    assert (parsed.unknown, parsed.positionals) == (unknown, positionals)


def test_help_names_every_flag_with_its_default() -> None:
    text = describe(FLAGS)
    assert all(f"--{flag.name}" in text for flag in FLAGS)
    assert "-o, --output string" in text
    assert "an integer (default 7)" in text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5s", 5), ("1m30s", 90), ("250ms", 0.25), ("0", 0), ("-1.5h", -5400), (".5s", 0.5), ("1us", 1e-6), ("+2s", 2)],
)
def test_go_duration(text: str, seconds: float) -> None:
    assert parse_go_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5", "s", "5 s", "5mins", "1s2", "-", "9" * 20 + "h", "1s" * 40])
def test_not_a_go_duration(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_go_duration(text)


@pytest.mark.parametrize(("text", "seconds"), [("5s", 5), ("0s", 0), ("1.5s", 1.5), ("-3s", -3)])
def test_proto_duration(text: str, seconds: float) -> None:
    assert parse_proto_duration(text) == seconds
    assert format_seconds(seconds) == text


@pytest.mark.parametrize("text", ["", "5", "1m", "5 mins", "1e3s", ".5s", "1.s", "9999999999999s"])
def test_not_a_proto_duration(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_proto_duration(text)


def test_flags_of_old_pods_become_fields_of_proxy_config() -> None:
    """Those that an injector of Istio 1.6 wrote; the real program drops them."""
    arguments = [
        "router", "extra", "--drainDuration", "1m", "--parentShutdownDuration", "1m0s", "--discoveryAddress", "i:15012",
        "--zipkinAddress", "z:9411", "--proxyAdminPort", "15100", "--controlPlaneAuthPolicy", "NONE",
        "--dnsRefreshRate", "300s", "--statusPort=15022", "--trust-domain=example.org", "--controlPlaneBootstrap=false",
    ]  # fmt: skip
    options = proxy_options(parse(PROXY_FLAGS, arguments, tolerate_unknown=True))
    assert options.node_type == "router"
    assert options.config_flags == {
        "drainDuration": "60s",
        "discoveryAddress": "i:15012",
        "zipkinAddress": "z:9411",
        "proxyAdminPort": 15100,
        "controlPlaneAuthPolicy": "NONE",
        "statusPort": 15022,
    }
    assert (options.trust_domain, options.dns_refresh_rate_s) == ("example.org", 300)
    assert options.unknown == ()


def test_proxy_defaults_to_sidecar() -> None:
    assert proxy_options(parse(PROXY_FLAGS, [], tolerate_unknown=True)).node_type == "sidecar"


def test_a_concurrency_of_0_is_not_an_absent_flag() -> None:
    assert proxy_options(parse(PROXY_FLAGS, ["--concurrency", "0"], tolerate_unknown=True)).concurrency == 0
    assert proxy_options(parse(PROXY_FLAGS, [], tolerate_unknown=True)).concurrency is None


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["gateway"], 'invalid proxy type "gateway": expected one of sidecar, router'),
        (["ztunnel"], "not supported yet"),
        (["--concurrency", "-1"], "--concurrency: -1"),
        (["--drainDuration", "soon"], "--drainDuration: 'soon' is not a duration"),
        (["--parentShutdownDuration", "soon"], "--parentShutdownDuration: 'soon' is not a duration"),
        (["--dnsRefreshRate=0s"], "--dnsRefreshRate: '0s': expected a duration of more than 0s"),
        (["--stsPort=70000"], "--stsPort: 70000 is out of range: expected 0 to 65535"),
    ],
)
def test_proxy_options_refused(arguments: list[str], text: str) -> None:
    with pytest.raises(UsageError) as error:
        proxy_options(parse(PROXY_FLAGS, arguments, tolerate_unknown=True))
    assert text in str(error.value)


def test_wait_options() -> None:
    options = wait_options(parse(WAIT_FLAGS, ["--timeoutSeconds=2", "--periodMillis", "20"], tolerate_unknown=False))
    assert (options.timeout_s, options.request_timeout_s, options.period_s) == (2, 0.5, 0.02)
    assert options.url == "http://localhost:15021/healthz/ready"


@pytest.mark.parametrize("name", ["timeoutSeconds", "requestTimeoutMillis", "periodMillis"])
@pytest.mark.parametrize("value", ["-1", "2147483648"])
def test_wait_options_out_of_range(name: str, value: str) -> None:
    with pytest.raises(UsageError, match=f"--{name}: {value} is out of range"):
        wait_options(parse(WAIT_FLAGS, [f"--{name}={value}"], tolerate_unknown=False))


def test_version_output_format() -> None:
    with pytest.raises(UsageError, match='--output must be "json" or "yaml", not "xml"'):
        version_options(parse(VERSION_FLAGS, ["-o", "xml"], tolerate_unknown=False))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["GET", "stats"], RequestOptions(15000, "GET", "/stats", "")),
        (["get", "/stats?filter=a"], RequestOptions(15000, "GET", "/stats?filter=a", "")),
        (["POST", "drain", "--debug-port=15020"], RequestOptions(15020, "POST", "/drain", "")),
        (["--debug-port", "15021", "POST", "x", "body"], RequestOptions(15021, "POST", "/x", "body")),
    ],
)
def test_request_options(arguments: list[str], expected: RequestOptions) -> None:
    assert request_options(parse(REQUEST_FLAGS, arguments, tolerate_unknown=False)) == expected


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["GET"], "request needs METHOD PATH [BODY], not 1 arguments"),
        (["GET", "a", "b", "c"], "not 4 arguments"),
        (["GET", "stats", "--debug-port=80"], "--debug-port: 80: expected one of 15000, 15004, 15020, 15021"),
        (["G ET", "stats"], "METHOD: 'G ET' is not an HTTP method"),
        (["GET", "a b"], "PATH: '/a b' is not a path"),
        (["GET", "a\r\nhost: x"], "is not a path"),
        (["GET", "ä"], "is not a path"),
    ],
)
def test_request_options_refused(arguments: list[str], text: str) -> None:
    with pytest.raises(UsageError) as error:
        request_options(parse(REQUEST_FLAGS, arguments, tolerate_unknown=False))
    assert text in str(error.value)
