"""Commands from the outside: exit status, what is printed where, and how little `wait` imports."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from agent import cli
from agent.options import PROXY_FLAGS

ROOT = Path(cli.__file__).parents[1]


def run(*arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error", **variables}
    command = [sys.executable, "-m", "agent", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["nonsense"], 'unknown command "nonsense" for "pilot-agent": expected one of proxy, wait'),
        (["request", "GET", "stats"], 'command "request" is not available yet'),
        (["completion", "bash"], 'command "completion" is not available yet'),
        (["wait", "--bogus"], "unknown flag: --bogus"),
        (["version", "--bogus"], "unknown flag: --bogus"),
        (["version", "-o", "xml"], '--output must be "json" or "yaml"'),
        (
            ["wait", "--url", "https://localhost/"],
            "--url: 'https://localhost/': expected a URL that begins with http://",
        ),
        (["wait", "--url", "http://"], "expected http://host[:port]/path"),
        (["wait", "--url", "http://h:99999/"], "--url: 'http://h:99999/': Port out of range"),
        (["wait", "--log_output_level", "loud"], "--log_output_level: unknown level 'loud'"),
        (["wait", "--log_output_level", "nowhere:info"], "--log_output_level: unknown scope 'nowhere'"),
        (["wait", "--log_target", "/nonexistent/log"], "--log_target: cannot write '/nonexistent/log'"),
        (["help", "nonsense"], 'unknown help topic "nonsense"'),
    ],
)
def test_errors_are_255_and_named(arguments: list[str], text: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 255
    out, err = capfd.readouterr()
    assert err.startswith("Error: ")
    assert text in err
    assert f"\terror\t{err.removeprefix('Error: ')}" in out  # and in the log, as the real program does


@pytest.mark.parametrize(
    ("arguments", "index"),
    [
        (["proxy", "sidecar"], 0),
        (["--log_as_json", "wait"], 1),
        (["--log_target", "stderr", "wait"], 2),
        (["--log_target=stderr", "wait"], 1),
        (["--unknown", "proxy", "wait"], 2),  # takes the next token with it, as cobra has it
        (["-h", "wait"], 1),
        (["--", "wait"], None),
        ([], None),
    ],
)
def test_find_command(arguments: list[str], index: int | None) -> None:
    assert cli.find_command(arguments) == index


def test_version_text_and_short() -> None:
    version = cli_version()
    assert version != "unknown"
    assert run("version").stdout.startswith(f"client version: version={version}, ")
    assert run("version", "--short").stdout == f"{version}\n"


def cli_version() -> str:
    result = run("version", "-s")
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout.strip()


@pytest.mark.parametrize(("output", "load"), [("json", json.loads), ("yaml", yaml.safe_load)])
def test_version_documents(output: str, load: "type[json.loads]") -> None:
    document = load(run("version", "-o", output).stdout)
    assert list(document) == ["clientVersion"]
    assert list(document["clientVersion"]) == ["version", "revision", "golang_version", "status", "tag"]


def test_help() -> None:
    overview = run("--help")
    assert overview.returncode == 0
    assert run().stdout == overview.stdout == run("help").stdout
    for name in ("proxy", "wait", "version", "istio-iptables"):
        assert f"  {name} " in overview.stdout
    proxy = run("proxy", "--help")
    assert proxy.returncode == 0
    assert proxy.stdout == run("help", "proxy").stdout
    assert all(f"--{flag.name}" in proxy.stdout for flag in PROXY_FLAGS)


@pytest.mark.parametrize("name", ["istio-iptables", "istio-clean-iptables"])
def test_capture_programs_are_passed_on(name: str) -> None:
    result = run(name, "--no-such-flag-of-ours")
    assert result.returncode == 255
    assert "no-such-flag-of-ours" in result.stderr
    assert "Error: unknown command" not in result.stderr
    assert run(name, "--help").returncode == 0


def test_closed_stdout_is_no_traceback() -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "agent", "version"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, env=environment, stdout=write, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(write)
    assert "Traceback" not in result.stderr


def test_wait_starts_without_event_loop_yaml_and_the_rest() -> None:
    """Kubelet runs it before each application container. (Its modules are the reason why it takes 70 ms, not 200.)"""
    code = (
        "import sys; from agent.cli import main\n"
        "status = main(['wait', '--timeoutSeconds', '0'])\n"
        "heavy = {'asyncio', 'yaml', 'ssl', 'logging', 'argparse', 'subprocess', 'http.client', 'agent.supervisor'}\n"
        "print(status, sorted(heavy & sys.modules.keys()))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert result.stdout.splitlines()[-1] == "255 []"
