"""What every part of one worker shares: loop, clusters, statistics, logs, timeouts, drain state."""

from __future__ import annotations

import itertools
from asyncio import AbstractEventLoop, Task
from collections.abc import Coroutine, Mapping
from typing import TYPE_CHECKING, Any

from proxy.deadlines import Deadlines
from proxy.overload.worker import OverloadState
from proxy.stats.groups import Registry

if TYPE_CHECKING:
    from proxy.access_log.file import LogFiles
    from proxy.config.model import Bootstrap
    from proxy.limits.worker import WorkerLimits
    from proxy.options import Options
    from proxy.upstream.manager import ClusterManager


class Context:
    """One a worker, made before listeners and clusters; ``clusters`` is set as soon as they exist."""

    __slots__ = ("_tasks", "bootstrap", "clusters", "connection_ids", "deadlines", "health_failed", "limits",
                 "log_files", "loop", "options", "overload", "registry", "runtime", "worker")

    clusters: ClusterManager

    def __init__(self, loop: AbstractEventLoop, bootstrap: Bootstrap, options: Options, log_files: LogFiles,
                 worker: int = 0) -> None:
        self.loop = loop
        self.bootstrap = bootstrap
        self.options = options
        self.log_files = log_files
        self.worker = worker
        self.registry = Registry()
        self.deadlines = Deadlines(loop)
        self.overload: OverloadState | None = None
        """None without an overload manager."""
        if bootstrap.overload is not None:
            self.overload = OverloadState(bootstrap.overload, self.registry)
        self.runtime: Mapping[str, object] = dict(bootstrap.runtime)
        """Values of the runtime; replaced as a whole when they change."""
        self.limits: WorkerLimits | None = None
        """Connection limits; None where nothing can be limited (tests)."""
        self.connection_ids = itertools.count(worker, max(1, options.concurrency))
        """Unique over all workers."""
        self.health_failed = False
        """/healthcheck/fail is in force: every response closes its connection."""
        self._tasks: set[Task[Any]] = set()

    def spawn(self, coro: Coroutine[Any, Any, Any], name: str) -> Task[Any]:
        """Start a named task and keep it referenced until it ends (the only way to start one in a worker)."""
        task = self.loop.create_task(coro, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._reap)
        return task

    def _reap(self, task: Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.loop.call_exception_handler({"message": f"task {task.get_name()} failed", "exception": error,
                                              "task": task})

    def close(self) -> None:
        """Cancel what still runs."""
        for task in list(self._tasks):
            task.cancel()
        self.deadlines.close()
