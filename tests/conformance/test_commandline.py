"""How the two programs start, refuse to start, and check a configuration."""

from __future__ import annotations

import re
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conformance.conftest import KINDS, Pool
from tests.conformance.dsl import Config
from tests.conformance.ports import free_port
from tests.conformance.proxies import COMMANDS, REPOSITORY, START_PATIENCE
from tests.conformance.snippets import BASIC, A, bootstrap, http

pytestmark = pytest.mark.conformance


@dataclass(frozen=True)
class Start:
    """A start that ends by itself: exit status and stdout agree, and both say `text` on stderr."""

    name: str
    config: Config | None = None
    args: tuple[str, ...] = ()
    text: str = ""


STARTS = [
    Start("validate", BASIC, ("--mode", "validate")),
    Start("validate-bad", Config("static_resources: {listeners: 5}"), ("--mode", "validate")),
    Start("port-taken", BASIC, text=r"cannot bind '127\.0\.0\.1:\d+': Address already in use"),
    Start("no-configuration"),
    Start("file-missing", args=("-c", "/nonexistent/envoy.yaml"), text="/nonexistent/envoy.yaml"),
    Start("unknown-field", Config("static_resources: {lisseners: []}"), text="lisseners"),
    Start("unknown-field-allowed", Config("static_resources: {lisseners: []}"),
          ("--mode", "validate", "--allow-unknown-static-fields")),
    Start("no-yaml", Config("static_resources: [unclosed")),
    Start("unknown-cluster", bootstrap(http(routes="- {match: {prefix: /}, route: {cluster: nowhere}}"), A),
          text="route: unknown cluster 'nowhere'"),
    Start("bad-mode", BASIC, ("--mode", "nonsense"), "unknown mode 'nonsense'"),
    Start("bad-level", BASIC, ("-l", "nonsense"), "invalid log level specified 'nonsense'"),
]  # fmt: skip


def start(kind: str, case: Start, folder: Path, taken: int) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a program that is expected to end."""
    args = ["--concurrency", "1", "--disable-hot-restart", *case.args]
    if case.config is not None:
        path = folder / f"{kind}.yaml"
        text = case.config.text.replace("$(log)", str(folder / "access.log")).replace("$(main)", str(taken))
        path.write_text(re.sub(r"\$\([\w:]+\)", lambda _: str(free_port()), text))
        args = ["-c", str(path), *args]
    done = subprocess.run(
        [*COMMANDS[kind], *args], cwd=REPOSITORY, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=START_PATIENCE, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout.replace(str(folder / f"{kind}.yaml"), "<file>"), done.stderr


@pytest.mark.parametrize("start_case", STARTS, ids=lambda case: case.name)
def test_start(start_case: Start, pool: Pool, tmp_path: Path) -> None:
    """Both end in the same way."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        taken = sock.getsockname()[1]
        ends = {role: start(kind, start_case, tmp_path, taken) for role, kind in KINDS.items()}
    for role, (_, _, stderr) in ends.items():
        assert re.search(start_case.text, stderr), (role, stderr)
    assert "Traceback" not in ends["subject"][2]
    assert ends["subject"][:2] == ends["oracle"][:2], ends["subject"][2]
