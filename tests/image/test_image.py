"""What the image is made of, and that its programs start where the injector lets them do nothing else."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from tests.image.pod import NO_RIGHTS, READ_ONLY
from tests.image.podman import Podman

ROOT = Path(__file__).resolve().parents[2]
MAX_SIZE = 250_000_000
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
BARE = ["--network=none", *NO_RIGHTS, *READ_ONLY]
# Of gcc, clang, tcc, rustc, Go and what belongs to them.
COMPILERS = ["cc", "c++", "c99", "gcc", "g++", "cpp", "cc1", "clang", "tcc", "rustc", "go", "as", "ld", "make", "cmake"]
WRITABLE = [
    "/etc/istio/proxy", "/var/lib/istio/data", "/var/lib/istio/envoy", "/var/run/secrets/workload-spiffe-uds",
    "/var/run/secrets/credential-uds", "/var/run/secrets/workload-spiffe-credentials",
]  # fmt: skip


def shell(podman: Podman, script: str, *arguments: str, rights: list[str] = BARE) -> str:
    """Standard output of a script of the shell in the image."""
    done = podman.run([*rights, "--entrypoint=sh"], "-euc", script, "sh", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def program(podman: Podman, *command: str) -> str:
    done = podman.run([*BARE, f"--entrypoint={command[0]}"], *command[1:])
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_size(podman: Podman) -> None:
    assert 100_000_000 < podman.inspected["Size"] < MAX_SIZE


def test_what_a_manifest_relies_on(podman: Podman) -> None:
    """No `command` is in the injector's containers, only arguments; default paths are relative to /."""
    config = podman.inspected["Config"]
    assert config["Entrypoint"] == ["/usr/local/bin/pilot-agent"]
    assert (config["User"], config["WorkingDir"], config.get("Cmd")) == ("1337:1337", "/", None)
    assert config["Labels"]["org.opencontainers.image.version"] == VERSION


def test_user(podman: Podman) -> None:
    assert shell(podman, "id") == "uid=1337(istio-proxy) gid=1337(istio-proxy) groups=1337(istio-proxy)\n"


def test_no_compiler(podman: Podman) -> None:
    assert shell(podman, 'for name; do command -v "$name" || :; done', *COMPILERS) == ""
    installed = shell(podman, "dpkg-query --show --showformat '${Package}\\n'").split()
    assert [name for name in installed if name.endswith("-dev") or name in ("gcc", "binutils")] == []


def test_nothing_is_left_of_the_build(podman: Podman) -> None:
    """No caches, lists, tests, sources of extensions; neither pip nor what this machine told it; no setuid program."""
    left = (
        "find / -xdev ( -perm /6000 -type f -o -path /var/lib/apt/lists/* -o -name *.deb -o -path */site-packages/pip"
    )
    left += " -o -path */.cache -o -name ca.crt -o -name pip.conf -o -name apt.conf )"
    rights = ["--network=none", "--user=0:0"]
    assert program_as(podman, rights, *left.split()) == ""
    odd = "find /opt/pysidecar ( -name tests -o -name *.pyi -o -name *.pyx -o -name *.c -o -name *.h -o ! -perm -o+r )"
    assert program_as(podman, rights, *odd.split()) == ""
    history = json.loads(podman("history", "--format=json", "--no-trunc", podman.image).stdout)
    assert not [step for step in history if "http://" in json.dumps(step) or "https://" in json.dumps(step)]


def program_as(podman: Podman, rights: list[str], *command: str) -> str:
    done = podman.run([*rights, f"--entrypoint={command[0]}"], *command[1:])
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_project_is_there_whole_and_compiled(podman: Podman) -> None:
    """Every module of the checkout and nothing else; nothing is compiled at each start on a read-only root."""
    listing = shell(podman, "cd /opt/pysidecar/lib/python3.*/site-packages && find proxy agent init -type f").split()
    modules = {name for name in listing if not name.endswith(".pyc")}
    of_checkout = {
        str(path.relative_to(ROOT))
        for package in ("proxy", "agent", "init")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert modules == of_checkout
    compiled = {Path(name) for name in listing if name.endswith(".pyc")}
    sources = {path.parent / "__pycache__" / path.stem for path in map(Path, modules) if path.suffix == ".py"}
    assert {path.with_suffix("").with_suffix("") for path in compiled} == sources


def test_folders_of_the_proxy_are_its_own(podman: Podman) -> None:
    """Where a pod mounts no volumes, a root that may be written to is enough."""
    shell(podman, 'for place; do : > "$place/file"; done', *WRITABLE, rights=["--network=none", *NO_RIGHTS])


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["pilot-agent", "version", "--short"], VERSION),
        (["pilot-agent", "help"], "istio-clean-iptables"),
        (["pilot-agent", "completion", "bash"], "complete"),
        (["pilot-agent", "istio-iptables", "--help"], "--istio-inbound-interception-mode"),
        (["istio-iptables", "--help"], "--istio-inbound-interception-mode"),
        (["istio-clean-iptables", "--help"], "Usage"),
        (["pysidecar-proxy", "--version"], "pysidecar-proxy"),
        (["/usr/local/bin/envoy", "--help"], "--config-path"),
        (["iptables-nft-restore", "--version"], "nf_tables"),
        (["iptables-legacy-restore", "--version"], "legacy"),
        (["nft", "--version"], "nftables"),
    ],
)
def test_program(podman: Podman, command: list[str], expected: str) -> None:
    assert expected in program(podman, *command)


def test_wait_gives_up(podman: Podman) -> None:
    done = podman.run(BARE, "wait", "--timeoutSeconds=1", "--periodMillis=100")
    assert done.returncode == 255, done.stderr
    assert "15021" in done.stderr


def test_its_packages_agree(podman: Podman) -> None:
    """Every module can be imported: nothing that was left out was needed."""
    script = """
import importlib, pkgutil, sys
for name in ("agent", "init", "proxy", "iptc"):
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(package.__path__, f"{name}."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
print("all", len(sys.modules) > 100)
"""
    assert program(podman, "/opt/pysidecar/bin/python", "-c", script) == "all True\n"
