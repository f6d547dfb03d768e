"""Network namespaces for tests: uniquely named, wired with veth pairs, always removed.

A namespace is removed by `close` (or the end of a `with` block) together with every process in it; what a killed test
run left behind is removed by the next one.
"""

from __future__ import annotations

import atexit
import ctypes
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO

import pytest

PREFIX = "pysc"
DEADLINE = 10.0  # seconds for anything that must happen at once
REPOSITORY = Path(__file__).resolve().parents[2]

_CLONE_NEWNET = 0x40000000
_NAMESPACES = Path("/run/netns")
_CONFIGURATION = Path("/etc/netns")  # of `ip netns exec`: files that lie over those of /etc
_numbers = itertools.count(1)
_open: set[Namespace] = set()


def require() -> None:
    """Skip the calling test where namespaces cannot be made; fail there when CI=true."""
    if os.geteuid() != 0:
        _unavailable("network namespaces need root")
    for program in ("ip", "setpriv"):
        if not any(os.access(f"{folder}/{program}", os.X_OK) for folder in os.environ["PATH"].split(":")):
            _unavailable(f"no {program} in PATH")
    try:
        Namespace().close()
    except subprocess.CalledProcessError as error:
        _unavailable(f"cannot make a network namespace: {error.stderr}")


def require_python(uid: int) -> None:
    """Skip the calling test where `uid` cannot run this interpreter on this repository; fail there when CI=true."""
    command = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", sys.executable, "-c", "import init"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=DEADLINE)
    if done.returncode != 0:
        _unavailable(f"uid {uid} cannot use {sys.executable} in {REPOSITORY}: {done.stderr}")


def shared(path: str) -> Path:
    """A recorded file beside the repository. Skips the calling test where it is absent; fails when CI=true."""
    found = REPOSITORY.parent / "shared" / path
    if not found.exists():
        _unavailable(f"{found} is absent")
    return found


def _unavailable(reason: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


class Namespace:
    """One network namespace with `lo` up."""

    def __init__(self) -> None:
        if not _open:
            _sweep()
        self.name = f"{PREFIX}-{os.getpid()}-{next(_numbers)}"
        self._processes: list[subprocess.Popen[str]] = []
        _tool(["ip", "netns", "add", self.name])
        _open.add(self)
        self.ip("link", "set", "lo", "up")

    def __enter__(self) -> Namespace:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill what still runs inside and remove the namespace."""
        if self not in _open:
            return
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait(DEADLINE)
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    _close(stream)
        for pid in _tool(["ip", "netns", "pids", self.name]).split():
            _kill(int(pid))
        _tool(["ip", "netns", "del", self.name])
        shutil.rmtree(_CONFIGURATION / self.name, ignore_errors=True)
        _open.discard(self)

    def resolv_conf(self, text: str) -> None:
        """What /etc/resolv.conf says to every command that is run inside from now on."""
        folder = _CONFIGURATION / self.name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "resolv.conf").write_text(text)

    def ip(self, *arguments: str) -> str:
        """`ip` inside; returns its output."""
        return _tool(["ip", "-n", self.name, *arguments])

    def interface(self, name: str, addresses: Sequence[str]) -> None:
        """An interface with nothing behind it: both ends of its veth pair are inside."""
        self.ip("link", "add", name, "type", "veth", "peer", "name", f"{name}-peer")
        self.ip("link", "set", f"{name}-peer", "up")
        self._configure(name, addresses)

    def connect(self, other: Namespace, name: str, addresses: Sequence[str], other_addresses: Sequence[str]) -> None:
        """Join both with a veth pair, its end called `name` in each."""
        self.ip("link", "add", name, "type", "veth", "peer", "name", name, "netns", other.name)
        self._configure(name, addresses)
        other._configure(name, other_addresses)

    def _configure(self, name: str, addresses: Sequence[str]) -> None:
        for address in addresses:
            # No duplicate address detection: an IPv6 address would be unusable for seconds.
            self.ip("address", "add", address, "dev", name, *(("nodad",) if ":" in address else ()))
        self.ip("link", "set", name, "up")

    def command(self, arguments: Sequence[str], uid: int = 0, gid: int | None = None) -> list[str]:
        """The command line that runs `arguments` inside as `uid` and `gid` (default: the same number)."""
        gid = uid if gid is None else gid
        user = ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups"] if (uid, gid) != (0, 0) else []
        return ["ip", "netns", "exec", self.name, *user, *arguments]

    def run(
        self,
        arguments: Sequence[str],
        uid: int = 0,
        gid: int | None = None,
        env: Mapping[str, str] | None = None,
        stdin: str = "",
        timeout: float = 60.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run inside to the end, from the top of the repository. `env` is added to the environment."""
        return subprocess.run(
            self.command(arguments, uid, gid),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=REPOSITORY,
            env={**os.environ, **(env or {})},
            check=False,
        )

    def start(
        self,
        arguments: Sequence[str],
        uid: int = 0,
        gid: int | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[str]:
        """Start inside, all three streams piped; ended by `close` at the latest."""
        process = subprocess.Popen(
            self.command(arguments, uid, gid),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            env={**os.environ, **(env or {})},
        )
        self._processes.append(process)
        return process

    def python(
        self, *arguments: str, uid: int = 0, gid: int | None = None, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run this interpreter inside."""
        return self.run([sys.executable, *arguments], uid=uid, gid=gid, env=env)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """The calling thread inside: sockets made in the block belong to this namespace for good."""
        with open("/proc/thread-self/ns/net") as outside, open(_NAMESPACES / self.name) as inside:
            _setns(inside.fileno())
            try:
                yield
            finally:
                _setns(outside.fileno())


def _close(stream: IO[str]) -> None:
    try:
        stream.close()
    except BrokenPipeError:
        pass  # unwritten input of a process that has ended


def _setns(fd: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(fd, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def _tool(command: Sequence[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=DEADLINE).stdout


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    deadline = time.monotonic() + DEADLINE
    while _is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.005)


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def _sweep() -> None:
    """Remove the namespaces of test runs that were killed."""
    for path in _NAMESPACES.glob(f"{PREFIX}-*-*") if _NAMESPACES.is_dir() else ():
        owner = path.name.split("-")[1]
        if not owner.isdigit() or Path(f"/proc/{owner}").exists():
            continue
        for pid in _tool(["ip", "netns", "pids", path.name]).split():
            _kill(int(pid))
        subprocess.run(["ip", "netns", "del", path.name], check=False, capture_output=True)  # another run may be first
        shutil.rmtree(_CONFIGURATION / path.name, ignore_errors=True)


@atexit.register
def _close_all() -> None:
    for namespace in list(_open):
        namespace.close()
