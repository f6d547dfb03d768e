"""Starting, asking and stopping the two proxies; scripted upstreams and free ports belong to a running proxy."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from tests.conformance.conversation import Conversation
from tests.conformance.dsl import Config, msg
from tests.conformance.ports import free_port
from tests.conformance.wire import Ended, Stuck, Wire

REPOSITORY = Path(__file__).resolve().parents[2]
ENVOY = Path(sys.executable).parent / "envoy"
COMMANDS = {"envoy": [str(ENVOY)], "proxy": [sys.executable, "-m", "proxy"]}
FLAGS = ("--concurrency", "1", "--disable-hot-restart", "--file-flush-min-size-kb", "0", "-l", "warning")
START_PATIENCE = 30.0
STOP_PATIENCE = 10.0
COMPLAINT = re.compile(
    r"Traceback|Exception|never awaited|never retrieved|ResourceWarning|[Uu]nhandled|Assertion|Segmentation"
)
_PLACEHOLDER = re.compile(r"\$\(([a-z0-9_:/]+)\)")
_OPEN = {
    "downstream": r"^(listener|http|tcp)\..*downstream_(pre_)?cx_active$",
    "upstream": r"^cluster\..*upstream_(cx|rq)_active$",
}


class NotStarted(Exception):
    """The proxy did not become ready; the text says why."""


class Gone(Exception):
    """The proxy does not answer on its admin interface as it should."""


def _middle_cut(text: str) -> str:
    return text if len(text) < 6000 else f"{text[:3000]}\n...\n{text[-3000:]}"


class Upstream:
    """A listening socket whose connections are handed to the conversation that is under way."""

    def __init__(self, name: str, proxy: Proxy) -> None:
        self.group, _, self.member = name.partition("/")
        self._proxy = proxy
        self._sock = socket.create_server(("127.0.0.1", free_port()), backlog=128)
        self.port: int = self._sock.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, source = self._sock.accept()
            except OSError:
                return
            conversation = self._proxy.conversation
            if conversation is None:
                sock.close()
            else:
                conversation.accepted(self.group, self.member, sock, source)

    def close(self) -> None:
        """Stop accepting."""
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._sock.close()
        self._thread.join(STOP_PATIENCE)


class Proxy:
    """A running proxy. Raises NotStarted from its constructor."""

    def __init__(self, kind: str, config: Config, folder: Path) -> None:
        self.kind = kind
        self.ports: dict[str, int] = {}
        self.names: dict[int, str] = {}
        self.conversation: Conversation | None = None
        self._folder = folder
        self._upstreams: list[Upstream] = []
        self._held: list[socket.socket] = []
        self._admin: Wire | None = None
        self._complaints_read = 0
        folder.mkdir(parents=True)
        self._log = folder / "access.log"
        self._stderr = folder / "stderr"
        text = _PLACEHOLDER.sub(lambda match: str(self._placeholder(match[1])), config.text)
        (folder / "config.yaml").write_text(text)
        with self._stderr.open("wb") as stderr, (folder / "stdout").open("wb") as stdout:
            self.process = subprocess.Popen(
                [*COMMANDS[kind], "-c", str(folder / "config.yaml"), *FLAGS, *config.flags],
                cwd=REPOSITORY,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
        try:
            self.wait_until(self._live, START_PATIENCE)
        except (Stuck, NotStarted) as error:
            self._kill()
            why = f"{error}\n{_middle_cut(self.stderr())}"
            raise NotStarted(f"{kind} did not start, status {self.process.returncode} {why}") from None

    def _placeholder(self, name: str) -> int | str:
        if name == "log":
            return str(self._log)
        if name.startswith("pressure:"):
            return str(self._write_pressure(name[9:], 0.0))
        if name in self.ports:
            return self.ports[name]
        if name.startswith("up:"):
            self._upstreams.append(Upstream(name[3:], self))
            port = self._upstreams[-1].port
        elif name in ("refused", "full"):
            port = self._hold(name)
        else:
            port = free_port()
        self.ports[name] = port
        self.names[port] = name
        return port

    def _write_pressure(self, resource: str, value: float) -> Path:
        """Moved into place: Envoy notices nothing else."""
        path = self._folder / f"pressure-{resource}"
        new = path.with_suffix(".new")
        new.write_text(str(value))
        return new.rename(path)

    def press(self, resource: str, value: float, patience: float) -> None:
        """Set an injected resource and wait until the overload manager has seen it. Raises Stuck."""
        self._write_pressure(resource, value)
        name = f"overload.{resource}.pressure"
        self.wait_until(lambda: self.statistics([name])[name] == int(value * 100), patience)
        # Main has told the workers by now; one more answer, for which ours asks them, comes after they have heard.
        self.statistics([name])

    def _hold(self, name: str) -> int:
        sock = socket.socket()
        sock.bind(("127.0.0.1", free_port()))
        self._held.append(sock)
        if name == "full":
            sock.listen(0)  # a queue of one: the next connect is neither accepted nor refused
            filler = socket.create_connection(sock.getsockname())
            self._held.append(filler)
        return int(sock.getsockname()[1])

    # --- asking ---

    def admin(self, method: str, path: str) -> tuple[int, str]:
        """Status and body of an admin call, over one kept connection. Raises Gone."""
        head, body = self.admin_raw(method, path)
        return int(head.split(b" ", 2)[1]), body.decode()

    def admin_raw(self, method: str, path: str) -> tuple[bytes, bytes]:
        """Head and decoded body of an admin call. Raises Gone."""
        try:
            if self._admin is None or self._admin.ended:
                self._admin = Wire(socket.create_connection(("127.0.0.1", self.ports["admin"]), 5), 5)
            self._admin.sock.sendall(msg(f"{method} {path} HTTP/1.1", "Host: admin", "Content-Length: 0"))
            return self._admin.read_message(is_response=True, head_only=method == "HEAD")
        except (OSError, Stuck, Ended) as error:
            if self._admin is not None:
                self._admin.close()
                self._admin = None
            raise Gone(f"{method} {path}: {error!r}") from None

    def _live(self) -> bool:
        if self.process.poll() is not None:
            raise NotStarted
        try:
            return self.admin("GET", "/ready")[0] == 200
        except Gone:
            return False

    def statistics(self, names: Iterable[str]) -> dict[str, int]:
        """Values of counters and gauges; one that does not exist yet is 0."""
        wanted = {name: _PLACEHOLDER.sub(lambda match: str(self.ports[match[1]]), name) for name in names}
        if not wanted:
            return {}
        pattern = "^(" + "|".join(re.escape(name) for name in sorted(set(wanted.values()))) + ")$"
        values = self._stats(pattern)
        return {name: values.get(real, 0) for name, real in wanted.items()}

    def open_connections(self, side: str) -> list[str]:
        """Gauges of open connections that are not zero, as `name: value`."""
        values = self._stats(_OPEN[side])
        return [f"{name}: {value}" for name, value in values.items() if value and ".admin." not in name]

    def _stats(self, pattern: str) -> dict[str, int]:
        quoted = "".join(c if c.isalnum() or c in "._|-" else f"%{ord(c):02X}" for c in pattern)
        status, body = self.admin("GET", f"/stats?filter={quoted}")
        if status != 200:
            raise Gone(f"/stats: {status} {body}")
        pairs = (line.rsplit(": ", 1) for line in body.splitlines())
        return {name: int(value) for name, value in pairs if value.isdigit()}

    def wait_until(self, condition: Callable[[], bool], patience: float) -> None:
        """Wait until `condition()` holds. Raises Stuck after `patience` seconds."""
        deadline = time.monotonic() + patience
        while not condition():
            if time.monotonic() > deadline:
                raise Stuck
            time.sleep(0.003)

    # --- what it wrote ---

    def log_size(self) -> int:
        """Bytes in the access log."""
        return self._log.stat().st_size if self._log.exists() else 0

    def log_lines(self, start: int) -> list[str]:
        """Complete access-log lines from this offset on."""
        if not self._log.exists():
            return []
        with self._log.open("rb") as log:
            log.seek(start)
            return log.read().decode("latin-1").split("\n")[:-1]

    def stderr(self) -> str:
        """Everything written to stderr."""
        return self._stderr.read_text(errors="replace")

    def new_complaints(self) -> str:
        """Tracebacks and the like since the last call: the whole new text if it has any, else nothing."""
        text = self.stderr()
        new, self._complaints_read = text[self._complaints_read :], len(text)
        return new if COMPLAINT.search(new) else ""

    # --- stopping ---

    def stop(self) -> str:
        """SIGTERM, as an orchestrator sends it. Returns what went wrong, or nothing."""
        if self.process.poll() is not None:
            self._release()
            return f"{self.kind} had ended by itself: {self.process.returncode}\n{self.stderr()[-3000:]}"
        self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(STOP_PATIENCE)
        except subprocess.TimeoutExpired:
            self._kill()
            return f"{self.kind} was still there {STOP_PATIENCE} s after SIGTERM\n{self.stderr()[-3000:]}"
        self._release()
        complaints = self.new_complaints()
        return f"{self.kind} ended with status {status}\n{complaints}" if status or complaints else ""

    def _kill(self) -> None:
        try:
            os.killpg(self.process.pid, signal.SIGKILL)  # its own session: nothing but what we started
        except ProcessLookupError:
            pass
        self.process.wait()
        self._release()

    def _release(self) -> None:
        if self._admin is not None:
            self._admin.close()
        for upstream in self._upstreams:
            upstream.close()
        for sock in self._held:
            sock.close()
