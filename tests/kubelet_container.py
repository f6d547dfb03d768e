"""One container of a pod under the kubelet of the tests: its runs, its probes and hooks, its end."""

from __future__ import annotations

import asyncio
import http.client
import os
import signal
import socket
import time
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.kubelet_manifest import Spec

if TYPE_CHECKING:
    from tests.kubelet import Kubelet

PATIENCE = 30.0  # for whatever must happen; nothing takes a tenth of it on an idle machine
RESTART_S = 0.05
MINIMUM_GRACE_S = 2.0  # what is left of the grace period after hooks and waiting is never less
ROOT = os.geteuid() == 0


class Container:
    """One container of the pod, over all its restarts."""

    def __init__(self, pod: Kubelet, spec: Spec, is_init: bool) -> None:
        self.pod, self.spec, self.name = pod, spec, str(spec["name"])
        self.is_sidecar = is_init and spec.get("restartPolicy") == "Always"
        self.policy = pod.manifest.restart_policy(spec, is_init)
        self.folder = pod.folder / self.name
        self.pid = 0  # of its first process; 0 = not running
        self.started = self.ready = self.hooked = self.over = False
        self.restarts = 0
        self.exits: list[int] = []  # of every run: exit status, negative for a signal
        self.reason = ""  # why kubelet ended the last run
        self._process: asyncio.subprocess.Process | None = None
        self._killing: asyncio.Task[None] | None = None
        self._make_folder()

    @property
    def out(self) -> str:
        return (self.folder / "stdout").read_text(errors="replace")

    @property
    def err(self) -> str:
        return (self.folder / "stderr").read_text(errors="replace")

    @property
    def uid(self) -> int:
        return self.pod.manifest.user(self.spec, os.geteuid()) if ROOT else os.geteuid()

    async def live(self) -> None:
        """Run it, again and again as its restart policy says. `over` is set when it will not run any more."""
        try:
            while True:
                await self._run_once()
                code = self.exits[-1]
                again = self.policy == "Always" or (self.policy == "OnFailure" and code != 0)
                if not again or self.pod.deleting or (self.is_sidecar and self.pod.finished):
                    return
                self.restarts += 1
                await asyncio.sleep(RESTART_S)
        finally:
            self.over = True
            self.pod.note(self, "over")

    async def _run_once(self) -> None:
        self.started = self.ready = self.hooked = False
        self.reason = ""
        command, env = self.pod.manifest.command(self.spec), self.pod.manifest.env(self.spec)
        with open(self.folder / "stdout", "ab") as out, open(self.folder / "stderr", "ab") as err:
            process = self._process = await asyncio.create_subprocess_exec(
                *self._wrapped(command, own_processes=True), cwd=self.folder, env=env,
                stdin=asyncio.subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True,
            )  # fmt: skip
        self.pid = process.pid
        watching: list[asyncio.Task[None]] = []
        try:
            if ROOT:
                self.pid = await self.pod.until(f"process 1 of {self.name}", lambda: _first_child(process))
            self.pod.note(self, "started")
            watching.append(self.pod.spawn(self._hook_and_probe(), f"{self.name}:probes"))
            code = await process.wait()
            # What `unshare` (util-linux 2.38) makes of a process 1 that was killed by SIGKILL.
            killed = ROOT and code == 1 and self.err.endswith("unshare: sigprocmask unblock failed: Invalid argument\n")
            self.exits.append(-signal.SIGKILL if killed else code)
        finally:
            self.started = self.ready = False
            await self._kill(process)
            self.pid = 0
            for task in watching:
                task.cancel()
            await asyncio.gather(*watching, return_exceptions=True)
            if self._killing is not None:
                self._killing.cancel()
                self._killing = None
        self.pod.note(self, f"exited {self.exits[-1]}")

    async def _kill(self, process: asyncio.subprocess.Process) -> None:
        """The test is over and the container is not. Its process 1 first: a change of uid has cleared what `unshare`
        asked the kernel for, so the end of that one is not the end of its child.
        """
        if process.returncode is not None:
            return
        self.pid = _first_child(process) if ROOT else process.pid
        self._signal(signal.SIGKILL)
        if not self.pid:
            process.kill()
        await process.wait()

    async def _hook_and_probe(self) -> None:
        hook = self.spec.get("lifecycle", {}).get("postStart")
        if hook is not None and not await self.handle(hook):
            self.kill_soon("postStart failed")
            return
        self.hooked = True
        self.pod.note(self, "postStart done" if hook is not None else "no postStart")
        if (startup := self.spec.get("startupProbe")) is not None:
            await self._probe(startup, until_first=True)
        self.started = True
        self.pod.note(self, "is started")
        probes = []
        if (readiness := self.spec.get("readinessProbe")) is not None:
            probes.append(self._probe(readiness, sets_ready=True))
        else:
            self.ready = True
        if (liveness := self.spec.get("livenessProbe")) is not None:
            probes.append(self._probe(liveness))
        await asyncio.gather(*probes)

    async def _probe(self, probe: Spec, until_first: bool = False, sets_ready: bool = False) -> None:
        period = probe.get("periodSeconds", 10)
        await asyncio.sleep(probe.get("initialDelaySeconds", 0))
        good = bad = 0
        while True:
            begun = time.monotonic()
            passed = await self.handle(probe, probe.get("timeoutSeconds", 1))
            good, bad = (good + 1, 0) if passed else (0, bad + 1)
            if good >= probe.get("successThreshold", 1):
                if until_first:
                    return
                if sets_ready and not self.ready:
                    self.ready = True
                    self.pod.note(self, "ready")
            elif bad >= probe.get("failureThreshold", 3):
                if not sets_ready:
                    self.kill_soon("startup probe failed" if until_first else "liveness probe failed")
                    return
                if self.ready:
                    self.ready = False
                    self.pod.note(self, "not ready")
            await asyncio.sleep(max(0.0, period - (time.monotonic() - begun)))

    def kill_soon(self, reason: str) -> None:
        """End this run as kubelet does after a failed probe: with preStop and grace period."""
        if self._killing is None:
            self.reason = reason
            self.pod.note(self, reason)
            self._killing = self.pod.spawn(self.stop(self.pod.manifest.grace), f"{self.name}:kill")

    async def stop(self, grace: float, turn: Coroutine[Any, Any, None] | None = None) -> None:
        """preStop hook, then (its `turn` has come) SIGTERM, then SIGKILL: what kubelet does with one container."""
        process, begun = self._process, time.monotonic()
        hook = self.spec.get("lifecycle", {}).get("preStop")
        if hook is not None and process is not None and process.returncode is None and grace > 0:
            self.pod.note(self, "preStop")
            await self.handle(hook, grace)
        if turn is not None:
            try:
                async with asyncio.timeout(max(0.0, grace - (time.monotonic() - begun))):
                    await turn
            except TimeoutError:
                pass
        if process is None or process.returncode is not None or self.over:
            return
        self._signal(signal.SIGTERM)
        self.pod.note(self, "SIGTERM")
        left = max(grace - (time.monotonic() - begun), min(grace, MINIMUM_GRACE_S))
        try:
            async with asyncio.timeout(left):
                await process.wait()
        except TimeoutError:
            self.pod.note(self, "SIGKILL")
            self._signal(signal.SIGKILL)
            await process.wait()

    def _signal(self, number: int) -> None:
        if self.pid:
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                pass

    async def handle(self, handler: Spec, limit: float = PATIENCE) -> bool:
        """One probe or hook: exec, httpGet, tcpSocket or sleep. Whether it succeeded within the time."""
        try:
            async with asyncio.timeout(limit):
                if "exec" in handler:
                    return await self.execute(handler["exec"]["command"]) == 0
                if "sleep" in handler:
                    await asyncio.sleep(handler["sleep"]["seconds"])
                    return True
                if "httpGet" in handler:
                    return await asyncio.to_thread(self._http_get, handler["httpGet"], limit)
                if "tcpSocket" in handler:
                    return await asyncio.to_thread(self._connect, handler["tcpSocket"], limit)
        except TimeoutError:
            return False
        raise ValueError(f"{self.name}: no such handler here: {sorted(handler)}")

    async def execute(self, command: Sequence[str]) -> int:
        """Run a command in the container (its environment, network, folder and user); its exit status."""
        env = self.pod.manifest.env(self.spec)
        with open(self.folder / "exec", "ab") as log:
            process = await asyncio.create_subprocess_exec(
                *self._wrapped(command), cwd=self.folder, env=env, stdin=asyncio.subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        try:
            return await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    def _http_get(self, action: Spec, limit: float) -> bool:
        with self.pod.prober():
            connection = http.client.HTTPConnection(self._host(action), int(action["port"]), timeout=limit)
            try:
                headers = {each["name"]: each["value"] for each in action.get("httpHeaders", ())}
                connection.request("GET", action.get("path", "/"), headers=headers)
                return 200 <= connection.getresponse().status < 400
            except (OSError, http.client.HTTPException):
                return False
            finally:
                connection.close()

    def _connect(self, action: Spec, limit: float) -> bool:
        with self.pod.prober():
            try:
                socket.create_connection((self._host(action), int(action["port"])), limit).close()
            except OSError:
                return False
            return True

    def _host(self, action: Spec) -> str:
        return str(action.get("host") or self.pod.ip)

    def _wrapped(self, command: Sequence[str], own_processes: bool = False) -> list[str]:
        inside = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"] if own_processes and ROOT else []
        if ROOT:
            inside += ["setpriv", f"--reuid={self.uid}", f"--regid={self.uid}", "--clear-groups"]
        outside = ["ip", "netns", "exec", self.pod.network.name] if self.pod.network is not None else []
        return [*outside, *inside, *map(str, command)]

    def _make_folder(self) -> None:
        self.folder.mkdir(parents=True)
        for name in ("stdout", "stderr", "exec"):
            (self.folder / name).touch()
        for mount in self.spec.get("volumeMounts", ()):
            volume = self.pod.manifest.volume(mount["name"])
            if volume is not None:
                path = self.folder / mount["mountPath"].lstrip("/")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.symlink_to(volume)
        if ROOT:
            for path in (self.folder, *self.folder.rglob("*")):
                os.chown(path, self.uid, self.uid)


def _first_child(process: asyncio.subprocess.Process) -> int:
    """The process that `unshare` forked; its own pid once it has ended."""
    if process.returncode is not None:
        return process.pid
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    except OSError:
        return process.pid
    return int(children[0]) if children else 0
