"""Commands from the outside: exit status, what is printed where, and how little `wait` imports."""

import importlib.metadata
import json
import os
import resource
import shutil
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
        (["nonsense"], 'unknown command "nonsense" for "pilot-agent": expected one of proxy, wait, request, version'),
        (["request", "GET"], "request needs METHOD PATH [BODY], not 1 arguments"),
        (
            ["request", "GET", "stats", "--debug-port=80"],
            "--debug-port: 80: expected one of 15000, 15004, 15020, 15021",
        ),
        (["request", "GET", "stats", "--bogus"], "unknown flag: --bogus"),
        (["completion"], "completion: '': expected one of bash, zsh, fish"),
        (["completion", "powershell"], "completion: 'powershell': expected one of bash, zsh, fish"),
        (["wait", "--vklog=many"], 'invalid argument "many" for "--vklog" flag'),
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
        (
            ["wait", "--log_target", "/nonexistent/log"],
            "--log_target: cannot write '/nonexistent/log': No such file or directory",
        ),
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
    assert version == importlib.metadata.version("pysidecar"), "read without that module, for its import is slow"
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
    for name in ("proxy", "wait", "request", "version", "completion", "istio-iptables", "istio-clean-iptables", "help"):
        assert f"  {name} " in overview.stdout
    proxy = run("proxy", "--help")
    assert proxy.returncode == 0
    assert proxy.stdout == run("help", "proxy").stdout
    assert all(f"--{flag.name}" in proxy.stdout for flag in PROXY_FLAGS)
    assert "profiling paths on the status port (default true)\n" in proxy.stdout


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
    assert (result.returncode, result.stderr) == (255, "")


@pytest.mark.parametrize("arguments", [["version"], ["help"], ["proxy", "--explain-config"], ["completion", "fish"]])
def test_output_that_cannot_be_written(arguments: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        result = subprocess.run(
            [sys.executable, "-m", "agent", *arguments], env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=60,
        )  # fmt: skip
    assert result.returncode == 255
    assert result.stderr == "Error: cannot write to standard output: No space left on device\n"


def test_without_standard_descriptors() -> None:
    """They are opened first: else the next socket would be the standard output of `request`."""
    code = (
        "import os, sys\nfrom agent.cli import main\nos.closerange(0, 3)\nstatus = main(['version'])\n"
        "targets = {os.readlink(f'/proc/self/fd/{n}') for n in range(3)}\n"
        "sys.exit(0 if (status, targets) == (0, {'/dev/null'}) and os.get_inheritable(1) else 1)"
    )
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT)}, timeout=60).returncode == 0


def test_output_is_utf_8_whatever_the_locale_says() -> None:
    config = json.dumps({"meshId": "\u00fc"})
    command = [sys.executable, "-m", "agent", "proxy", "--explain-config", "--domain", b"\xff"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PROXY_CONFIG": config, "PYTHONIOENCODING": "ascii"}
    result = subprocess.run(command, env=environment, capture_output=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, b"")
    assert 'ProxyConfig meshId\t"\u00fc"\tPROXY_CONFIG\n'.encode() in result.stdout
    assert b'--domain\t"\\udcff"\tflag\n' in result.stdout


@pytest.mark.parametrize(
    ("arguments", "status"),
    [(["wait", "--timeoutSeconds", "0"], 255), (["request", "GET", "stats", "--debug-port=15004"], 255)],
)
def test_short_commands_start_without_event_loop_yaml_and_the_rest(arguments: list[str], status: int) -> None:
    """Kubelet and istioctl run them often. (Their modules are the reason why they take 60 ms, not 200.)"""
    code = (
        "import sys; from agent.cli import main\n"
        f"status = main({arguments!r})\n"
        "heavy = {'asyncio', 'yaml', 'ssl', 'logging', 'argparse', 'subprocess', 'http.client', 'agent.supervisor',\n"
        "         'agent.settings', 'agent.proxy_config', 'agent.completion', 'init'}\n"
        "print(status, sorted(heavy & sys.modules.keys()))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert result.stdout.splitlines()[-1] == f"{status} []"


def test_explain_config_starts_nothing(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PROXY_CONFIG": '{"binaryPath": "/no/such/program"}'}
    command = [sys.executable, "-m", "agent", "proxy", "sidecar", "--explain-config", "--no-such-flag=1"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0] == "SETTING\tVALUE\tSOURCE"
    assert 'ProxyConfig binaryPath\t"/no/such/program"\tPROXY_CONFIG' in lines
    assert lines[-1] == "warning: unknown flag --no-such-flag is ignored"
    assert os.listdir(tmp_path) == []


def test_a_wrong_configuration_is_explained_by_its_warnings(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PROXY_CONFIG": '{"statusport": 1, "statusPort": 0}'}
    command = [sys.executable, "-m", "agent", "proxy"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert result.returncode == 255
    assert result.stderr.startswith("Error: PROXY_CONFIG: statusPort: 0: expected an integer from 1 to 65535")
    assert "\twarn\tPROXY_CONFIG: unknown ProxyConfig field 'statusport' is ignored" in result.stdout


def test_what_the_log_says_first(tmp_path: Path) -> None:
    """Flags, version, role, effective ProxyConfig, as in the real program; no secrets. The proxy inherits the limit."""
    program = tmp_path / "proxy"
    program.write_text("#!/bin/sh\nulimit -n; echo $GRPC_SSL_CIPHER_SUITES; exit 3\n")
    program.chmod(0o755)
    annotations = tmp_path / "etc/istio/pod/annotations"
    annotations.parent.mkdir(parents=True)
    annotations.write_text('status.sidecar.istio.io/port="0"\n')  # no port that a neighbour may have
    config = {
        "configPath": str(tmp_path), "binaryPath": str(program), "drainDuration": "7s",
        "tracing": {"lightstep": {"address": "l:1", "accessToken": "hidden"}},
    }  # fmt: skip
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    command = [sys.executable, "-m", "agent", "proxy", "--domain=x.y", "--log_output_level=info,model:debug"]
    environment = {
        "PYTHONPATH": str(ROOT), "PROXY_CONFIG": json.dumps(config), "COMPLIANCE_POLICY": "fips-140-2",
        "INSTANCE_IP": "10.0.0.1",
    }  # fmt: skip
    result = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60, cwd=tmp_path,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 64), hard)),
    )  # fmt: skip
    assert result.returncode == 255
    lines = [line.split("\t", 1)[1] for line in result.stdout.splitlines() if "\t" in line]
    assert 'info\tFLAG: --domain="x.y"' in lines
    assert 'info\tFLAG: --profiling="true"' in lines
    first = [line.split(":")[0].split(" ips=")[0] for line in lines if "FLAG" not in line]
    assert first[0].startswith("info\tVersion ")
    assert first[1:5] == [
        "info\tProxy role", "info\tEffective config", "info\tSet max file descriptors (ulimit -n) to",
        "warn\tlogging flags",
    ]  # fmt: skip
    shown = json.loads(next(line for line in lines if "Effective config" in line).partition(": ")[2])
    assert (shown["drainDuration"], shown["tracing"]["lightstep"]["accessToken"]) == ("7s", "...")
    assert "hidden" not in result.stdout + result.stderr
    assert f"\n{hard}\nECDHE-ECDSA-AES128-GCM-SHA256:" in result.stdout, "written by the proxy"
    assert sorted(os.listdir(tmp_path)) == ["etc", "proxy"]


COMPLETIONS = {
    "bash": """source "$1"
        t() { COMP_WORDS=("$@"); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); __pilot_agent; echo "${COMPREPLY[*]}"; }
        t pilot-agent compl; t pilot-agent completion ""; t pilot-agent wait --p
        t pilot-agent proxy --proxyLogLevel c""",
    "fish": """source $argv[1]
        complete -C "pilot-agent compl"; complete -C "pilot-agent completion " | sort -r
        complete -C "pilot-agent wait --p"; complete -C "pilot-agent proxy --proxyLogLevel c" """,
}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str, tmp_path: Path) -> None:
    made = run("completion", shell)
    assert (made.returncode, made.stderr) == (0, "")
    bare = run("completion", shell, "--no-descriptions").stdout
    for name in ("proxy", "istio-clean-iptables", "--timeoutSeconds", "--explain-config"):
        assert name in made.stdout.replace(" -l ", " --")
        assert name in bare.replace(" -l ", " --")
    assert ("wait until the proxy is ready" in made.stdout) == (shell != "bash")
    assert "wait until the proxy is ready" not in bare
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")
    script = tmp_path / "completion"
    script.write_text(made.stdout)
    if shell == "zsh":  # its completion needs a terminal; that the script is one is what can be said without
        assert subprocess.run([program, "-n", str(script)], capture_output=True, timeout=60).stderr == b""
        return
    command = [program, "-c", COMPLETIONS[shell], *(["x"] if shell == "bash" else []), str(script)]
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    words = [
        word.split("\t")[0]
        for line in result.stdout.splitlines()
        for word in line.split(" ")[: 3 if "\t" not in line else 1]
    ]
    assert result.stderr == ""
    assert sorted(words) == sorted(["completion", "bash", "zsh", "fish", "--periodMillis", "critical"])
