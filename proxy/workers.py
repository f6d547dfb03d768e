"""Main's view of its workers: forking them, talking to them, replacing the ones that die."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

from proxy import log, worker
from proxy.config.model import Bootstrap
from proxy.ipc import Channel, ChannelClosed, RemoteError
from proxy.limits.pools import Pools
from proxy.options import Options
from proxy.stats.groups import Snapshot
from proxy.stats.merge import merge

START_LIMIT = 30.0
"""Seconds for a worker to bind and to start (the first DNS answers included)."""
ANSWER_LIMIT = 2.0
"""Seconds that a scrape waits for a worker."""
QUIT_LIMIT = 2.0
"""Seconds that a worker has to cut its connections and write its logs."""
AUDIT_INTERVAL = 0.002
"""Seconds between two attempts to find what a worker held that was killed in the middle of counting."""
YOUNG = 5.0
"""A worker that dies sooner (seconds after its fork) may be dying of its configuration."""
MAX_YOUNG_DEATHS = 5
"""So many in a row in one place, and main gives up."""
FORK_AGAIN = 1.0
"""Seconds until another attempt when a worker cannot be forked."""
BACKOFF = 0.1
"""Seconds before the second attempt in a row; doubles. The first is made at once."""

_log = log.get("main")


class StartError(Exception):
    """A worker cannot start; the text is for the operator."""


class WorkerProcess:
    """One worker, from its fork to its end. ``last`` is what it last told about its statistics."""

    def __init__(self, index: int, pid: int, now: float, loop: asyncio.AbstractEventLoop) -> None:
        self.index = index
        self.pid = pid
        self.forked_at = now
        self.channel = Channel(loop, _no_requests, lambda: None)
        self.last = Snapshot()
        self.exited: asyncio.Future[int] = loop.create_future()
        """Wait status, as of os.waitpid."""
        self.flush: asyncio.Future[Any] | None = None
        """A histogram flush that it has not answered yet."""


def _no_requests(name: str, value: Any) -> Any:
    raise ValueError(f"main answers no requests, got '{name}'")


class Workers:
    """All workers. ``replay`` gives the requests that bring a new worker to the state of its siblings."""

    def __init__(self, loop: asyncio.AbstractEventLoop, bootstrap: Bootstrap, options: Options, pools: Pools,
                 replay: Callable[[], Iterator[tuple[str, Any]]], give_up: Callable[[str], None]) -> None:
        self._loop = loop
        self._bootstrap = bootstrap
        self._options = options
        self._pools = pools
        self._replay = replay
        self._give_up = give_up
        self._running: dict[int, WorkerProcess] = {}
        self._by_pid: dict[int, WorkerProcess] = {}
        self._young_deaths = [0] * options.concurrency
        self._tasks: set[asyncio.Task[None]] = set()
        self._replacing = False
        self.restarts = 0
        self._gone = Snapshot()
        """Counters of workers that are no more."""

    # --- life -----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Fork all; when every one has bound its listeners, all start to accept. Raises StartError.

        Only from then on are workers that die replaced.
        """
        workers = [await self._fork(index) for index in range(self._options.concurrency)]
        # Each step is a barrier: nobody accepts before all have bound.
        for step in self._steps():
            asked = [(w, name, w.channel.request(name, value)) for name, value in step() for w in workers]
            if asked:
                await asyncio.wait([answer for _, _, answer in asked], timeout=START_LIMIT)
            for w, name, answer in asked:
                self._require(w, name, answer)
        self._replacing = True

    def _steps(self) -> tuple[Callable[[], list[tuple[str, Any]]], ...]:
        """The requests that start a worker, step by step. Those of one step are sent together, so that no newer state
        can be sent between them and then be overwritten."""
        return lambda: [("bind", None)], lambda: list(self._replay()), lambda: [("start", None)]

    @staticmethod
    def _require(w: WorkerProcess, request: str, answer: asyncio.Future[Any]) -> None:
        if not answer.done():
            answer.cancel()
            raise StartError(f"worker {w.index} did not answer '{request}' within {START_LIMIT:.0f} s")
        error = answer.exception()
        if isinstance(error, RemoteError):
            raise StartError(str(error))
        if error is not None:
            how = _how(w.exited.result()) if w.exited.done() else "closed its channel"
            raise StartError(f"worker {w.index} {how} while it was starting")

    def reap(self) -> None:
        """Collect children that have ended (on SIGCHLD)."""
        for pid, w in list(self._by_pid.items()):
            try:
                ended, status = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                ended, status = pid, 0
            if ended:
                self._ended(w, status)

    async def stop(self) -> None:
        """End all workers; one that does not end in time is killed."""
        self._replacing = False
        for task in list(self._tasks):
            task.cancel()
        workers = list(self._by_pid.values())
        for w in workers:
            if w.channel.connected:
                w.channel.request("quit")
            else:
                os.kill(w.pid, signal.SIGKILL)
        if workers:
            _, late = await asyncio.wait([w.exited for w in workers], timeout=QUIT_LIMIT)
            for w in workers:
                if w.exited in late:
                    _log.warning("worker %d (pid %d) does not end: killing it", w.index, w.pid)
                    os.kill(w.pid, signal.SIGKILL)
            if late:
                await asyncio.wait(late)

    async def _fork(self, index: int) -> WorkerProcess:
        ours, theirs = socket.socketpair()
        # Collected once more, then frozen: pages of objects that the collector never touches stay shared.
        gc.collect()
        gc.freeze()
        main_pid = os.getpid()
        # Between fork and the child's own handlers a signal would be written to main's wake-up socket.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            pid = os.fork()
            if pid == 0:
                worker.run(theirs, self._bootstrap, self._options, self._pools, index, main_pid)
            w = self._running[index] = self._by_pid[pid] = WorkerProcess(index, pid, self._loop.time(), self._loop)
        except OSError:
            ours.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            theirs.close()
        ours.setblocking(False)
        await self._loop.create_unix_connection(lambda: w.channel, sock=ours)
        _log.debug("worker %d has pid %d", index, pid)
        return w

    def _ended(self, w: WorkerProcess, status: int) -> None:
        del self._by_pid[w.pid]
        self._pools.reap(w.index)
        if self._pools.lost:
            self._audit()
        if self._running.get(w.index) is w:
            del self._running[w.index]
        self._gone = merge([self._gone, _counters(w.last)])
        w.channel.close()
        w.exited.set_result(status)
        if not self._replacing:
            return  # start-up has failed, or the end is wanted
        lived = self._loop.time() - w.forked_at
        _log.error("worker %d (pid %d) %s after %.1f s", w.index, w.pid, _how(status), lived)
        deaths = self._young_deaths[w.index] = self._young_deaths[w.index] + 1 if lived < YOUNG else 0
        if deaths >= MAX_YOUNG_DEATHS:
            self._give_up(f"worker {w.index} died {deaths} times within {YOUNG:.0f} s of its start")
            return
        task = self._loop.create_task(self._replace(w.index, BACKOFF * 2 ** (deaths - 2) if deaths > 1 else 0.0))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _audit(self) -> None:
        """Look for tokens until a quiet moment comes: operations take microseconds."""
        for pool in self._pools.lost:
            pool.audit()
        if self._pools.lost:
            self._loop.call_later(AUDIT_INTERVAL, self._audit)

    async def _replace(self, index: int, delay: float) -> None:
        if delay:
            await asyncio.sleep(delay)
        self.restarts += 1
        while (w := await self._try_fork(index)) is None:
            await asyncio.sleep(FORK_AGAIN)
        try:
            for step in self._steps():
                async with asyncio.timeout(START_LIMIT):
                    for answer in [w.channel.request(name, value) for name, value in step()]:
                        await answer
        except (RemoteError, ChannelClosed, TimeoutError) as error:
            # Its end is noticed like any other; by then it counts as one more early death.
            if not isinstance(error, ChannelClosed):
                _log.error("worker %d cannot be replaced: %s", index, str(error) or "it does not answer")
                if w.pid in self._by_pid:
                    os.kill(w.pid, signal.SIGKILL)
        else:
            _log.info("worker %d is back (pid %d)", index, w.pid)

    async def _try_fork(self, index: int) -> WorkerProcess | None:
        """None: there are no descriptors, processes or memory for it now, as the log says."""
        try:
            return await self._fork(index)
        except OSError as error:
            _log.error("worker %d cannot be forked: %s", index, error.strerror)
            return None

    @property
    def pids(self) -> list[int]:
        """Of the workers that have not ended."""
        return list(self._by_pid)

    # --- talk -----------------------------------------------------------------------------------------------------

    async def ask(self, name: str, value: Any = None) -> list[tuple[WorkerProcess, Any]]:
        """Every worker's answer. Who does not answer in time, or cannot, is left out with a line in the log."""
        asked = [(w, w.channel.request(name, value)) for w in self._running.values()]
        if asked:
            await asyncio.wait([answer for _, answer in asked], timeout=ANSWER_LIMIT)
        answers = []
        for w, answer in asked:
            if not answer.done():
                answer.cancel()
                _log.error("worker %d (pid %d) did not answer '%s' within %.0f s", w.index, w.pid, name, ANSWER_LIMIT)
            elif (error := answer.exception()) is None:
                answers.append((w, answer.result()))
            elif not isinstance(error, ChannelClosed):
                _log.error("worker %d (pid %d) refused '%s': %s", w.index, w.pid, name, error)
        return answers

    async def tell(self, name: str, value: Any) -> list[int]:
        """As ``ask``; the workers that are there and have not confirmed. A new one hears of it by ``replay``."""
        asked = list(self._running.values())
        confirmed = {w.pid for w, _ in await self.ask(name, value)}
        return [w.index for w in asked if w.channel.connected and w.pid not in confirmed]

    async def snapshot(self) -> Snapshot:
        """All statistics. For a worker that does not answer what it told last stands, so that no counter goes down."""
        for w, wire in await self.ask("snapshot", False):
            w.last = Snapshot.from_wire(wire)
        return merge([self._gone, *(w.last for w in self._running.values())])

    async def flush(self) -> list[dict[str, dict[int, int]]]:
        """What each worker recorded in its histograms since it was last asked.

        An answer that comes late is not lost: it counts for the interval in which it comes.
        """
        recorded: list[dict[str, dict[int, int]]] = []
        for w in self._running.values():
            if w.flush is None:
                w.flush = w.channel.request("snapshot", True)
        waiting = [w.flush for w in self._running.values() if w.flush is not None]
        if waiting:
            await asyncio.wait(waiting, timeout=ANSWER_LIMIT)
        for w in self._running.values():
            if w.flush is not None and w.flush.done():
                if w.flush.exception() is None:
                    w.last = Snapshot.from_wire(w.flush.result())
                    recorded.append(w.last.histograms)
                w.flush = None
        return recorded


def _counters(snapshot: Snapshot) -> Snapshot:
    """What outlives a worker: counters, and that a gauge or histogram of that name exists."""
    kept = Snapshot()
    kept.counters = snapshot.counters
    kept.gauges = dict.fromkeys(snapshot.gauges, 0)
    return kept


def _how(status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"was killed by {signal.Signals(os.WTERMSIG(status)).name}"
    return f"ended with code {os.waitstatus_to_exitcode(status)}"
