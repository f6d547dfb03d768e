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
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from tests.kubelet_container import PATIENCE, Container
from tests.kubelet_manifest import Image, Manifest, Spec
from tests.netns.netns import Namespace

__all__ = ["Container", "Image", "Kubelet"]


class Kubelet:
    """One pod. Use as `async with Kubelet(...) as pod`; the end of the block removes whatever still runs."""

    def __init__(self, manifest: Spec, images: Mapping[str, Image], folder: Path, *, network: Namespace | None = None,
                 node: Namespace | None = None, ips: Sequence[str] = ("127.0.0.1",)) -> None:  # fmt: skip
        """`network` is the pod's, `node` the one that probes come from (default: the pod's own). `ips` of the pod."""
        self.manifest = Manifest(manifest, images, folder, ips)
        self.folder, self.network, self.ip = folder, network, ips[0]
        self._node = node or network
        self.phase = "Pending"
        self.deleting = self.finished = False
        self.events: list[str] = []  # "container: what", in order
        self._tasks: set[asyncio.Task[Any]] = set()
        self._changed = asyncio.Event()
        spec = self.manifest.spec
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
        grace = self.manifest.grace if grace is None else grace
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
            await self._stop_all([each for each in self.inits if each.is_sidecar], self.manifest.grace)
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

    @contextmanager
    def prober(self) -> Iterator[None]:
        with self._node.entered() if self._node is not None else nullcontext():
            yield
