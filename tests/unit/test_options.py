"""The command line: what real agents pass, Envoy's texts for bad values, and that no option is dropped silently."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest

from proxy import options as module
from proxy.options import FLAGS, Exit, OptionError, Options, parse, usage
from proxy.version import BUILD


@pytest.mark.parametrize(("argv", "field", "value"), [
    (["-c", "f.yaml"], "config_path", "f.yaml"),
    (["--config-path", "f.yaml"], "config_path", "f.yaml"),
    (["--config-yaml", "{}"], "config_yaml", "{}"),
    (["--config-yaml", "-l"], "config_yaml", "-l"),
    (["--mode", "validate"], "mode", "validate"),
    (["--concurrency", "3"], "concurrency", 3),
    (["--concurrency", "0"], "concurrency", 1),
    (["-l", "warn"], "log_level", "warn"),
    (["--log-level", "trace"], "log_level", "trace"),
    (["--component-log-level", "misc:error,upstream:debug"], "component_log_level", "misc:error,upstream:debug"),
    (["--log-format", "%v"], "log_format", "%v"),
    (["--log-format-escaped"], "log_format_escaped", True),
    (["--log-stacktrace-single-entry"], "log_stacktrace_single_entry", True),
    (["--log-path", "/x"], "log_path", "/x"),
    (["--allow-unknown-static-fields"], "allow_unknown_static_fields", True),
    (["--allow-unknown-fields"], "allow_unknown_static_fields", True),
    (["--reject-unknown-dynamic-fields"], "reject_unknown_dynamic_fields", True),
    (["--ignore-unknown-dynamic-fields"], "ignore_unknown_dynamic_fields", True),
    (["--skip-deprecated-logs"], "skip_deprecated_logs", True),
    (["--service-cluster", "c"], "service_cluster", "c"),
    (["--service-node", "n"], "service_node", "n"),
    (["--service-zone", "z"], "service_zone", "z"),
    (["--local-address-ip-version", "v6"], "local_address_ip_version", "v6"),
    (["--stats-tag", "a:b", "--stats-tag", "c:d:e"], "stats_tag", ("a:b", "c:d:e")),
    (["--admin-address-path", "/x"], "admin_address_path", "/x"),
    (["--file-flush-interval-msec", "1500"], "file_flush_interval", 1.5),
    (["--file-flush-min-size-kb", "1"], "file_flush_min_size_kb", 1),
    (["--drain-time-s", "45"], "drain_time", 45.0),
    (["--drain-strategy", "immediate"], "drain_strategy", "immediate"),
    (["--parent-shutdown-time-s", "60"], "parent_shutdown_time", 60.0),
    (["--disable-hot-restart"], "disable_hot_restart", True),
    (["--restart-epoch", "0"], "restart_epoch", 0),
    (["--base-id", "4294967295"], "base_id", 4294967295),
    (["--base-id-path", "/x"], "base_id_path", "/x"),
    (["--use-dynamic-base-id"], "use_dynamic_base_id", True),
    (["--skip-hot-restart-on-no-parent"], "skip_hot_restart_on_no_parent", True),
    (["--skip-hot-restart-parent-stats"], "skip_hot_restart_parent_stats", True),
    (["--socket-path", "/x"], "socket_path", "/x"),
    (["--socket-mode", "600"], "socket_mode", 0o600),
    (["--enable-mutex-tracing"], "enable_mutex_tracing", True),
    (["--enable-core-dump"], "enable_core_dump", True),
    (["--cpuset-threads"], "concurrency", len(os.sched_getaffinity(0))),
    (["--cpuset-threads", "--concurrency", "7"], "concurrency", 7),
    (["-l", "off", "--", "--no-such-option"], "log_level", "off"),
    (["-l", "off", "--ignore_rest", "x"], "log_level", "off"),
])
def test_value(argv: list[str], field: str, value: Any) -> None:
    assert getattr(parse(argv), field) == value
    if field != "concurrency":
        assert getattr(Options(), field) != value or argv in (["--restart-epoch", "0"],)


def test_defaults_are_envoys() -> None:
    assert parse([]) == Options()
    defaults = {"drain_time": 600.0, "parent_shutdown_time": 900.0, "drain_strategy": "gradual", "log_level": "info",
                "file_flush_interval": 10.0, "file_flush_min_size_kb": 64, "local_address_ip_version": "v4",
                "mode": "serve", "socket_path": "@envoy_domain_socket",
                "log_format": "[%Y-%m-%d %T.%e][%t][%l][%n] [%g:%#] %v"}
    assert {name: getattr(Options(), name) for name in defaults} == defaults
    assert Options().concurrency == os.cpu_count()


def test_every_option_of_real_agents(shared: Path) -> None:
    cases = json.loads((shared / "istio/bootstrap/cases.json").read_text())
    assert len(cases) >= 19
    for case in cases:
        options = parse(case["proxy_args"])
        assert options.config_path.endswith("envoy-rev.json")
        assert options.allow_unknown_static_fields and options.disable_hot_restart
        assert options.drain_strategy == "immediate"
        assert options.file_flush_interval == 1.0
        if "--concurrency" in case["proxy_args"]:
            assert options.concurrency == int(case["proxy_args"][case["proxy_args"].index("--concurrency") + 1])


@pytest.mark.parametrize(("argv", "text"), [
    (["--mode", "x"], "error: unknown mode 'x'"),
    (["-l", "x"], "error: invalid log level specified 'x'"),
    (["--component-log-level", "foo:debug"], "error: invalid component specified 'foo'"),
    (["--component-log-level", "upstream:foo"], "error: invalid log level specified 'foo'"),
    (["--component-log-level", "upstream"], "error: component log level not correctly specified 'upstream'"),
    (["--component-log-level", "a:b:c"], "error: component log level not correctly specified 'a:b:c'"),
    (["--log-format", "%v %Q"], "error: unknown flag '%Q' in log format '%v %Q'"),
    (["--drain-strategy", "x"], "error: unknown drain-strategy 'x'"),
    (["--local-address-ip-version", "v5"], "error: unknown IP address version 'v5'"),
    (["--stats-tag", "foo"], "error: misformatted stats-tag 'foo'"),
    (["--stats-tag", "a-b:c"], "error: misformatted stats-tag 'a-b:c' contains invalid char in 'a-b'"),
    (["--stats-tag", "a:b.c"], "error: misformatted stats-tag 'a:b.c' contains invalid char in 'b.c'"),
    (["--restart-epoch", "1"], "error: --restart-epoch 1: hot restart is not supported yet, expected 0"),
    (["--socket-mode", "999"], "error: invalid socket-mode '999'"),
    (["--file-flush-interval-msec", "0"], "error: --file-flush-interval-msec '0': expected at least 1"),
    (["--concurrency", "1025"], "error: --concurrency '1025': expected at most 1024 workers"),
    (["--enable-fine-grain-logging"], "error: --enable-fine-grain-logging is not supported: "),
    (["--disable-extensions", "a,b"], "error: --disable-extensions is not supported: "),
    (["--concurrency", "x"], "PARSE ERROR: Argument: (--concurrency)\n"
                             "             Couldn't read argument value from string 'x'\n"),
    (["--concurrency", "-1"], "Couldn't read argument value from string '-1'"),
    (["--drain-time-s", "4294967296"], "Couldn't read argument value from string '4294967296'"),
    (["--drain-time-s", "1.5"], "Couldn't read argument value from string '1.5'"),
    (["--drain-time-s", "٣"], "Couldn't read argument value from string"),
    (["--bogus"], "PARSE ERROR: Argument: --bogus\n             Couldn't find match for argument\n"),
    (["extra"], "PARSE ERROR: Argument: extra\n             Couldn't find match for argument\n"),
    (["--log-level=off"], "PARSE ERROR: Argument: --log-level=off\n             Couldn't find match for argument\n"),
    (["-ldebug"], "PARSE ERROR: Argument: -ldebug\n             Couldn't find match for argument\n"),
    (["-c"], "PARSE ERROR: Argument: -c (--config-path)\n             Missing a value for this argument!\n"),
    (["-c", "a", "--config-path", "b"], "PARSE ERROR: Argument: -c (--config-path)\n"
                                        "             Argument already set!\n"),
    (["--disable-hot-restart", "--disable-hot-restart"], "Argument already set!"),
])
def test_refused(argv: list[str], text: str) -> None:
    with pytest.raises(OptionError) as raised:
        parse(argv)
    assert str(raised.value).startswith(text) or (not text.startswith(("error", "PARSE")) and text in str(raised.value))


@pytest.mark.parametrize(("argv", "text", "to_stderr"), [
    (["--version"], f"\nenvoy  version: {BUILD}\n\n", False),
    (["--hot-restart-version"], "disabled", True),
])
def test_information(argv: list[str], text: str, to_stderr: bool) -> None:
    with pytest.raises(Exit) as raised:
        parse([*argv, "--bogus"], "envoy")
    assert (raised.value.text, raised.value.to_stderr) == (text, to_stderr)


@pytest.mark.parametrize("argument", ["-h", "--help"])
def test_help_tells_the_fate_of_every_option(argument: str) -> None:
    with pytest.raises(Exit) as raised:
        parse([argument])
    lines = raised.value.text.splitlines()
    without_effect, refused = lines.index("Accepted without effect:"), lines.index("Not supported:")
    for flag in FLAGS:
        at = next(n for n, line in enumerate(lines) if f"--{flag.name} " in f"{line} " and line.startswith("  -"))
        assert (at > without_effect) == bool(flag.no_effect or flag.unsupported)
        assert (at > refused) == bool(flag.unsupported)
    text = " ".join(usage("x").split())
    for flag in FLAGS:
        assert flag.help in text and flag.no_effect in text and flag.unsupported in text


def test_every_field_has_an_option_and_every_honoured_option_a_reader() -> None:
    """An option whose field nobody reads would be parsed and dropped: then it belongs under "without effect"."""
    fields = {field.name for field in dataclasses.fields(Options)}
    assert {flag.target for flag in FLAGS} == fields
    package = Path(module.__file__).parent
    sources = [path.read_text() for path in package.rglob("*.py") if path.name != "options.py"]
    for flag in FLAGS:
        if not flag.no_effect and not flag.unsupported and flag.target not in ("cpuset_threads", "restart_epoch"):
            assert any(f"options.{flag.target}" in source for source in sources), f"nobody reads {flag.target}"
