"""Plays kubelet for one pod, from its manifest: what starts when, what is asked how often, what is told to end how.

Container order, init containers, native sidecars (an init container with restartPolicy Always), postStart and preStop
hooks, startup, readiness and liveness probes, restarts, deletion with its grace period. A container is a process here:
in a process namespace of its own as root (so that it is process 1 and its end is the end of all it started), in the
network namespace that is given, in a folder that stands for its file system, with the volumes of the manifest in it.

What differs from the real one: times may be fractions, a restart waits RESTART_S and not seconds to minutes, image
names lead to programs by the table `images`, and a path counts as one of the container only if it is relative.
"""

from __future__ import annotations

import asyncio
import http.client
import math
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.netns.netns import Namespace

Spec = Mapping[str, Any]
PATIENCE = 30.0  # for whatever must happen; nothing takes a tenth of it on an idle machine
RESTART_S = 0.05
MINIMUM_GRACE_S = 2.0  # what is left of the grace period after hooks and waiting is never less
ROOT = os.geteuid() == 0


@dataclass(frozen=True)
class Image:
    """What an image brings: entrypoint and environment."""

    entrypoint: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)


class Container:
    """One container of the pod, over all its restarts."""

    def __init__(self, pod: Kubelet, spec: Spec, is_init: bool) -> None:
        self.pod, self.spec, self.name = pod, spec, str(spec["name"])
        self.is_sidecar = is_init and spec.get("restartPolicy") == "Always"
        self.policy = "Always" if self.is_sidecar else pod.manifest["spec"].get("restartPolicy", "Always")
        if is_init and not self.is_sidecar and self.policy == "Always":
            self.policy = "OnFailure"
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
        contexts = (self.spec.get("securityContext"), self.pod.manifest["spec"].get("securityContext"))
        found = [context["runAsUser"] for context in contexts if context and "runAsUser" in context]
        return int(found[0]) if found and ROOT else os.geteuid()

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
        with open(self.folder / "stdout", "ab") as out, open(self.folder / "stderr", "ab") as err:
            process = self._process = await asyncio.create_subprocess_exec(
                *self._wrapped(self.command(), own_processes=True), cwd=self.folder, env=self.env(),
                stdin=asyncio.subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True,
            )  # fmt: skip
        self.pid = process.pid
        if ROOT:
            self.pid = await self.pod.until(f"process 1 of {self.name}", lambda: _first_child(process))
        self.pod.note(self, "started")
        watching = [self.pod.spawn(self._hook_and_probe(), f"{self.name}:probes")]
        try:
            code = await process.wait()
            # What `unshare` (util-linux 2.38) makes of a process 1 that was killed by SIGKILL.
            killed = ROOT and code == 1 and self.err.endswith("unshare: sigprocmask unblock failed: Invalid argument\n")
            self.exits.append(-signal.SIGKILL if killed else code)
        finally:
            self.started = self.ready = False
            self.pid = 0
            for task in watching:
                task.cancel()
            await asyncio.gather(*watching, return_exceptions=True)
            if self._killing is not None:
                self._killing.cancel()
                self._killing = None
            if process.returncode is None:
                process.kill()
                await process.wait()
        self.pod.note(self, f"exited {self.exits[-1]}")

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
            self._killing = self.pod.spawn(self.stop(self.pod.grace), f"{self.name}:kill")

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
        with open(self.folder / "exec", "ab") as log:
            process = await asyncio.create_subprocess_exec(
                *self._wrapped(command), cwd=self.folder, env=self.env(), stdin=asyncio.subprocess.DEVNULL,
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

    def command(self) -> list[str]:
        """Command and arguments, with $(VAR) replaced."""
        image = self.pod.image(self.spec)
        words = [*(self.spec.get("command") or image.entrypoint), *self.spec.get("args", ())]
        env = self.env()
        return [re.sub(r"\$\((\w+)\)", lambda match: env.get(match[1], match[0]), str(word)) for word in words]

    def env(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        values = {**kept, "HOME": "/tmp", **self.pod.image(self.spec).env}
        for entry in self.spec.get("env", ()):
            values[entry["name"]] = str(entry.get("value", "")) if "valueFrom" not in entry else self._from(entry)
        return values

    def _from(self, entry: Spec) -> str:
        source = entry["valueFrom"]
        if "fieldRef" in source:
            return self.pod.field(source["fieldRef"]["fieldPath"])
        resource = source["resourceFieldRef"]["resource"]
        kind, _, name = resource.partition(".")
        quantity = str(self.spec.get("resources", {}).get(kind, {}).get(name, os.cpu_count() if name == "cpu" else 0))
        number = float(quantity.removesuffix("m")) / 1000 if quantity.endswith("m") else quantity
        return str(math.ceil(float(number))) if name == "cpu" else str(number)

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
            volume = self.pod.volume(mount["name"])
            if volume is not None:
                path = self.folder / mount["mountPath"].lstrip("/")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.symlink_to(volume)
        if ROOT:
            for path in (self.folder, *self.folder.rglob("*")):
                os.chown(path, self.uid, self.uid)


class Kubelet:
    """One pod. Use as `async with Kubelet(...) as pod`; the end of the block removes whatever still runs."""

    def __init__(self, manifest: Spec, images: Mapping[str, Image], folder: Path, *, network: Namespace | None = None,
                 node: Namespace | None = None, ip: str = "127.0.0.1") -> None:  # fmt: skip
        """`network` is the pod's, `node` the one that probes come from (default: the pod's own)."""
        self.manifest, self.folder, self.network, self.ip = manifest, folder, network, ip
        self._images, self._node = images, node or network
        self.grace = float(manifest["spec"].get("terminationGracePeriodSeconds", 30))
        self.phase = "Pending"
        self.deleting = self.finished = False
        self.events: list[str] = []  # "container: what", in order
        self._tasks: set[asyncio.Task[Any]] = set()
        self._changed = asyncio.Event()
        spec = manifest["spec"]
        self.inits = [Container(self, each, True) for each in spec.get("initContainers", ())]
        self.mains = [Container(self, each, False) for each in spec["containers"]]
        self._by_name = {each.name: each for each in (*self.inits, *self.mains)}

    def __getitem__(self, name: str) -> Container:
        return self._by_name[name]

    async def __aenter__(self) -> Kubelet:
        self._life = self.spawn(self._live(), "pod")
        return self

    async def __aexit__(self, *_: object) -> None:
        self.deleting = True
        for task in list(self._tasks):
            task.cancel()
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    @property
    def ready(self) -> bool:
        """The pod's Ready condition. It is an endpoint of its services while this holds and it is not deleted."""
        sidecars = [each for each in self.inits if each.is_sidecar]
        return bool(self.mains) and all(each.ready for each in (*self.mains, *sidecars))

    @property
    def in_service(self) -> bool:
        return self.ready and not self.deleting

    async def until(self, what: str, condition: Callable[[], Any]) -> Any:
        """The first true value of the condition, which is looked at with every event and every 10 ms."""
        deadline = time.monotonic() + PATIENCE
        while not (value := condition()):
            if time.monotonic() > deadline:
                raise AssertionError(f"never happened: {what}; {self}")
            if self._life.done() and not self._life.cancelled():
                self._life.result()
            self._changed.clear()
            try:
                async with asyncio.timeout(0.01):
                    await self._changed.wait()
            except TimeoutError:
                pass
        return value

    def __str__(self) -> str:
        logs = "".join(f"\n--- {each.name}\n{each.out}{each.err}" for each in self._by_name.values())
        return f"{self.phase}: {'; '.join(self.events)}{logs}"

    async def is_ready(self) -> None:
        await self.until("the pod is ready", lambda: self.ready)

    async def is_over(self) -> str:
        """Wait for the end of the pod; its phase."""
        await self.until("the end of the pod", lambda: self.phase in ("Succeeded", "Failed"))
        return self.phase

    async def delete(self, grace: float | None = None) -> None:
        """Delete the pod and wait until every container has ended."""
        self.deleting = True
        self.note(None, "deleted")
        grace = self.grace if grace is None else grace
        await self._stop_all([*self.inits, *self.mains], grace)
        await self.is_over()

    async def _live(self) -> None:
        for each in self.inits:
            self.spawn(each.live(), each.name)
            if each.is_sidecar:
                await self.until(f"start of {each.name}", lambda each=each: each.started or self.deleting)
            else:
                await self.until(f"end of {each.name}", lambda each=each: each.over or self.deleting)
                if each.exits and each.exits[-1] != 0:
                    await self._end("Failed")
                    return
        for each in self.mains:
            if self.deleting:
                each.over = True
                continue
            self.spawn(each.live(), each.name)
            # The next one waits for the hook, not for readiness; a hook that fails does not hold it.
            await self._hooked(each)
        self.phase = "Running"
        self.note(None, "running")
        await self._all_over(self.mains)
        good = all(each.exits and each.exits[-1] == 0 for each in self.mains)
        await self._end("Succeeded" if good else "Failed")

    async def _hooked(self, each: Container) -> None:
        while not (each.hooked or each.reason or each.over or self.deleting):
            await asyncio.sleep(0.002)

    async def _all_over(self, containers: Sequence[Container]) -> None:
        while not all(each.over for each in containers):
            await asyncio.sleep(0.002)

    async def _end(self, phase: str) -> None:
        """The containers proper have ended, so the native sidecars do."""
        self.finished = True
        if not self.deleting:
            await self._stop_all([each for each in self.inits if each.is_sidecar], self.grace)
        await self._all_over([each for each in self.inits if each.exits or each.pid])
        self.phase = phase
        self.note(None, phase)

    async def _stop_all(self, containers: Sequence[Container], grace: float) -> None:
        """All at once; but SIGTERM reaches native sidecars in reverse order, after the containers proper have ended."""

        def turn_of(each: Container) -> Coroutine[Any, Any, None] | None:
            if not each.is_sidecar:
                return None
            later = self.inits[self.inits.index(each) + 1 :]
            return self._all_over([*self.mains, *(other for other in later if other.is_sidecar)])

        await asyncio.gather(*(each.stop(grace, turn_of(each)) for each in containers))

    def note(self, container: Container | None, what: str) -> None:
        self.events.append(f"{container.name if container else 'pod'}: {what}")
        self._changed.set()

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        return task

    def image(self, spec: Spec) -> Image:
        return self._images[spec["image"]]

    @contextmanager
    def prober(self) -> Iterator[None]:
        with self._node.entered() if self._node is not None else nullcontext():
            yield

    def field(self, path: str) -> str:
        """The downward API."""
        metadata, spec = self.manifest["metadata"], self.manifest["spec"]
        if match := re.fullmatch(r"metadata\.(labels|annotations)\['(.+)'\]", path):
            return str(metadata.get(match[1], {}).get(match[2], ""))
        if path in ("metadata.labels", "metadata.annotations"):
            pairs = metadata.get(path.partition(".")[2], {})
            return "".join(f'{key}="{_quoted(str(value))}"\n' for key, value in pairs.items())
        known = {
            "metadata.name": metadata.get("name", "pod"),
            "metadata.namespace": metadata.get("namespace", "default"),
            "metadata.uid": metadata.get("uid", "00000000-0000-0000-0000-000000000000"),
            "spec.serviceAccountName": spec.get("serviceAccountName", "default"),
            "spec.nodeName": spec.get("nodeName", "node"),
            "status.podIP": self.ip,
            "status.hostIP": "127.0.0.1",
        }
        return str(known[path])

    def volume(self, name: str) -> Path | None:
        """The folder of an emptyDir or downwardAPI volume; None for kinds that have no place here."""
        volume = next(each for each in self.manifest["spec"].get("volumes", ()) if each["name"] == name)
        folder = self.folder / "volumes" / name
        if not folder.exists():
            folder.mkdir(parents=True)
            folder.chmod(0o777)
        if "downwardAPI" in volume:
            for item in volume["downwardAPI"].get("items", ()):
                if "fieldRef" in item:
                    (folder / item["path"]).write_text(self.field(item["fieldRef"]["fieldPath"]))
            return folder
        return folder if "emptyDir" in volume else None


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _first_child(process: asyncio.subprocess.Process) -> int:
    """The process that `unshare` forked; its own pid once it has ended."""
    if process.returncode is not None:
        return process.pid
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    except OSError:
        return process.pid
    return int(children[0]) if children else 0
