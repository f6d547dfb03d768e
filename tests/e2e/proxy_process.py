"""A proxy as its operator sees it: real processes, their log, their admin interface, their access log."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 20.0
"""Seconds after which a test gives up waiting; nothing here takes a tenth of it on an idle machine."""

CONFIG = """\
admin: {address: {socket_address: {address: 127.0.0.1, port_value: ADMIN}}}
stats_flush_interval: 0.2s
static_resources:
  listeners:
  - name: main
    traffic_direction: INBOUND
    address: {socket_address: {address: 127.0.0.1, port_value: MAIN}}
    filter_chains:
    - filters:
      - name: http
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: in
          access_log:
          - name: file
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
              path: LOG
              log_format: {text_format_source: {inline_string: "%REQ(:PATH)% %RESPONSE_CODE%\\n"}}
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {prefix: /}
                direct_response: {status: 200, body: {inline_string: "hello"}}
          http_filters:
          - name: router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
"""


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def wait_for(what: str, condition: Callable[[], object]) -> None:
    """Poll until the condition holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {PATIENCE:.0f} s for {what}")
        time.sleep(0.005)


def parent_and_state(pid: int) -> tuple[int, str] | None:
    """(parent's pid, state) of a process; None when it is gone."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return None
    return int(parent), state


def alive(pid: int) -> bool:
    """Runs, sleeps or is stopped; a zombie does not count."""
    found = parent_and_state(pid)
    return found is not None and found[1] not in "ZX"


class ProxyProcess:
    """One ``python -m proxy`` (two workers). ``close`` fails when a process or a traceback is left over."""

    def __init__(self, folder: Path, config: str = CONFIG) -> None:
        self.folder = folder
        self.port, self.admin_port = free_port(), free_port()
        self.access_log = folder / "access.log"
        self.config = folder / "proxy.yaml"
        self.config.write_text(config.replace("ADMIN", str(self.admin_port)).replace("MAIN", str(self.port))
                               .replace("LOG", str(self.access_log)))
        self._stderr = folder / "stderr"
        self._seen: set[int] = set()
        self.process: subprocess.Popen[str] | None = None

    def start(self, *arguments: str, wait: bool = True, workers: int = 2, descriptors: int = 0,
              within: Path | None = None) -> None:
        """Start it, and wait until it is live.

        ``descriptors``: `ulimit -n`, 0 leaves it. ``within``: the cgroup.procs of the control group to start it in.
        """
        with self._stderr.open("a") as stderr:
            command = [sys.executable, "-W", "error", "-m", "proxy", "-c", str(self.config)]
            if descriptors:
                command = ["sh", "-c", f'ulimit -n {descriptors}; exec "$@"', "sh", *command]
            if within is not None:
                command = ["sh", "-c", f'echo $$ > {within}; exec "$@"', "sh", *command]
            self.process = subprocess.Popen(
                [*command, "--concurrency", str(workers), *arguments],
                cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr, stdin=subprocess.DEVNULL, text=True)
        if wait:
            wait_for("the proxy to be live", self._live)
            self.workers()

    def _live(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"the proxy ended with {self.process.returncode}: {self.log}"
        try:
            return self.admin("/ready") == (200, "LIVE\n")
        except OSError:
            return False

    @property
    def pid(self) -> int:
        """Main's."""
        assert self.process is not None
        return self.process.pid

    @property
    def log(self) -> str:
        """What it wrote to stderr."""
        return self._stderr.read_text()

    def workers(self) -> list[int]:
        """Pids of the workers that live."""
        pids = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
        found = sorted(pid for pid in pids if (status := parent_and_state(pid)) is not None
                       and status[0] == self.pid and alive(pid))
        self._seen.update(found)
        return found

    def admin(self, path: str, method: str = "GET") -> tuple[int, str]:
        """Status and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.admin_port, timeout=PATIENCE)
        with contextlib.closing(connection):
            connection.request(method, path)
            response = connection.getresponse()
            return response.status, response.read().decode()

    def stat(self, name: str) -> int:
        """One counter or gauge."""
        _, body = self.admin("/stats")
        for line in body.splitlines():
            if line.startswith(name + ": "):
                return int(line.rpartition(" ")[2])
        raise AssertionError(f"no statistic {name} in:\n{body}")

    def get(self, path: str = "/") -> int:
        """One request on a connection of its own; the status."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        with contextlib.closing(connection):
            connection.request("GET", path, headers={"connection": "close"})
            response = connection.getresponse()
            response.read()
            return response.status

    def ended(self) -> int:
        """Wait for its end; the exit code."""
        assert self.process is not None
        return self.process.wait(PATIENCE)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal to main and wait for its end; the exit code."""
        os.kill(self.pid, number)
        return self.ended()

    def close(self) -> None:
        """End it if it still runs, whatever it takes, and judge what it left."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.workers()
            for pid in self._seen:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise
        assert self.process.stdout is not None
        self.process.stdout.close()
        left = [pid for pid in self._seen if alive(pid)]
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        assert not left, f"workers {left} outlived main"
        assert "Traceback" not in self.log, self.log
        assert "Warning:" not in self.log, self.log


@contextlib.contextmanager
def listening(port: int) -> Iterator[socket.socket]:
    """Somebody else's listener on a port."""
    with socket.create_server(("127.0.0.1", port)) as sock:
        yield sock
