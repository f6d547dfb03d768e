"""The life of the agent: status server, proxy, signals, drain, end. The order is facts of the real program."""

import asyncio
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agent import log
from agent.admin import Admin, AdminError
from agent.child import Child, wait_first
from agent.child_command import ChildCommand, shown
from agent.drain import Drain, DrainSettings
from agent.errors import AgentError
from agent.lifecycle import crash, oom
from agent.lifecycle.zombies import Zombies
from agent.status.options import StatusOptions
from agent.status.readiness import Readiness
from agent.status.server import Hooks, StatusServer

if TYPE_CHECKING:
    from agent.status.workload_health import WorkloadHealth, WorkloadProbe

_QUIT_TIMEOUT_S = 1.0  # for the admin port's answer; the proxy's own end has child.QUIT_GRACE_S

_log = log.scope()


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything the supervisor needs, worked out before anything starts. Times are seconds."""

    command: ChildCommand | None  # None = proxyless (DISABLE_ENVOY): status server and signals only
    run_as: int | None  # uid and gid of the proxy; None = ours
    status: StatusOptions  # port 0 = no status server
    admin_hosts: tuple[str, ...]
    admin_port: int
    awaits: tuple[str, ...]  # which of cds and lds readiness waits for
    awaits_name_table: bool  # readiness waits for the names that the proxy's DNS is to answer
    drain: DrainSettings
    started_at: float  # time.monotonic
    # What must exist when the proxy starts and is removed when it has ended: the bootstrap that was made for it.
    write_bootstrap: Callable[[], None] = field(default=lambda: None)
    made_files: tuple[str, ...] = ()
    grpc_bootstrap: str = ""  # a file that `write_bootstrap` makes too, and that readiness looks at; it stays
    workload_probe: "WorkloadProbe | None" = None  # ProxyConfig readinessProbe: the health of a workload on a VM
    instance_ip: str = ""  # where it is asked


class Supervisor:
    """Runs one proxy to its end.

    Requests to end come from signals and from `/quitquitquit`. The first signal begins the drain, the second cuts it
    short, the third kills the proxy. (The real program ignores every signal but the first.)
    """

    def __init__(self, plan: Plan) -> None:
        """Raises ConfigError for settings of the status server that cannot be."""
        self._plan = plan
        self._admin = Admin(plan.admin_hosts, plan.admin_port)
        self._drain = Drain(self._admin, plan.drain)
        self._readiness = Readiness(
            self._admin,
            plan.awaits,
            plan.started_at,
            awaits_name_table=plan.awaits_name_table,
            grpc_bootstrap=plan.grpc_bootstrap,
            proxyless=plan.command is None,
        )
        self._status = StatusServer(
            plan.status,
            self._readiness,
            Hooks(quit=self._quit, drain=self._drain_now, drain_report=self._drain.report),
        )
        self._child: Child | None = None
        # Process 1 of a container is the one to which orphans fall.
        self._zombies = Zombies(asyncio.get_running_loop(), self._pids) if os.getpid() == 1 else None
        self._workload: WorkloadHealth | None = None
        self._signals = 0
        self._drained = False  # by /drain: the end needs no drain of its own
        self._end = asyncio.Event()  # the proxy is to end
        self._skip_drain = asyncio.Event()  # at once
        self._kill = asyncio.Event()  # without being asked

    async def run(self) -> None:
        """Returns after an orderly end. Raises AgentError: the status port is taken, the proxy cannot start or died."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        loop.add_signal_handler(signal.SIGCHLD, self._orphan_ended)  # until there is a proxy
        self._orphan_ended()  # those of before
        try:
            # First of all, so that probes are answered from the beginning.
            if self._plan.status.port:
                await self._status.start()
            self._watch_workload()
            if not self._end.is_set():
                if self._plan.command is None:
                    self._plan.write_bootstrap()
                    _log.info("DISABLE_ENVOY is set: no proxy is started")
                    await self._end.wait()
                else:
                    await self._run_proxy(loop, self._plan.command)
        finally:
            if self._workload is not None:
                await self._workload.close()
            await self._readiness.close()
            await self._status.close()  # the last port that answers
            if self._zombies is not None:
                self._zombies.close()

    def _pids(self) -> tuple[int, ...]:
        return () if self._child is None else (self._child.pid,)

    def _orphan_ended(self) -> None:
        if self._zombies is not None:
            self._zombies.child_ended()

    def _watch_workload(self) -> None:
        """On a VM nobody but us looks after the application. Until there is xDS the log alone tells of its health."""
        if self._plan.workload_probe is None:
            return
        from agent.status.workload_health import WorkloadHealth

        self._workload = WorkloadHealth(
            self._plan.workload_probe, self._readiness, lambda healthy, reason: None, instance_ip=self._plan.instance_ip
        )
        self._workload.start()

    async def _run_proxy(self, loop: asyncio.AbstractEventLoop, command: ChildCommand) -> None:
        memory = oom.find()
        kills = None if memory is None else memory.oom_kills()
        child: Child | None = None
        try:
            self._plan.write_bootstrap()
            _log.info(f"Proxy command: {shown((*command.program, *command.arguments))}")
            child = self._child = Child.start(command, loop, self._plan.run_as, self._orphan_ended)
            await wait_first(None, child.exited, self._end)
            self._readiness.shut_down()
            if not (child.exited.done() or self._drained or self._skip_drain.is_set()):
                await self._drain.run(child, self._skip_drain)
            if child.exited.done():
                self._judge(child, memory, kills)
            else:
                self._drain.ending()
                _log.info(f"The proxy {await child.end(self._ask_to_quit(), self._kill)}, as asked")
        finally:
            if child is not None:
                child.kill()
                child.close()
            _remove(self._plan.made_files)

    async def _ask_to_quit(self) -> bool:
        """The proxy's own way to end, in which nothing of its logs is lost; whether it took the request."""
        try:
            await self._admin.quit(_QUIT_TIMEOUT_S)
        except AdminError as error:
            _log.debug(f"the proxy is ended by SIGTERM: {error}")
            return False
        return True

    def _judge(self, child: Child, memory: oom.MemoryCgroup | None, kills_before: int | None) -> None:
        """The proxy ended before it was told to. Raises ProxyCrashed unless that was an orderly end of a working proxy
        (somebody used `/quitquitquit` of its admin port): then the agent's end is an orderly one too.
        """
        status = child.exited.result()
        if status.orderly and (self._readiness.was_ready or self._end.is_set()):
            _log.info(f"The proxy {status} by itself")
            return
        when = "" if self._readiness.was_ready else " before it was ready"
        when = " during the drain" if self._end.is_set() else when
        raise crash.ProxyCrashed(crash.describe(status, when, memory, kills_before, child.last_lines()))

    def _on_signal(self, number: int) -> None:
        self._signals += 1
        name = signal.Signals(number).name
        self._readiness.shut_down()
        if self._signals == 1 and self._end.is_set():
            _log.info(f"received {name}: the proxy is being ended already")
        elif self._signals == 1 and self._drained:
            _log.info(f"received {name}: drained already, the proxy ends now")
            self._end.set()
        elif self._signals == 1:
            _log.info(f"received {name}: draining for {self._plan.drain}")
            self._end.set()
        elif self._signals == 2 and not (self._drained or self._skip_drain.is_set()):
            _log.info(f"received {name} again: the drain ends here")
            self._skip_drain.set()
        elif self._signals == 2:
            _log.info(f"received {name} again: the proxy is being ended already")
        else:
            _log.info(f"received {name} once more: the proxy is killed")
            self._kill.set()

    def _quit(self) -> None:
        self._readiness.shut_down()
        self._skip_drain.set()
        self._end.set()

    async def _drain_now(self) -> None:
        """POST /drain: drain, go on accepting, and end at once when the signal comes. A native sidecar's preStop hook.

        Raises AgentError when there is nothing to drain, or the proxy did not take it.
        """
        if self._child is None or self._child.exited.done():
            raise AgentError("there is no proxy to drain")
        # Before the answer: a signal that comes meanwhile finds the drain done, as in the real program.
        self._drained = True
        try:
            await self._drain.begin(skip_exit=True)
        except AdminError as error:
            self._drained = False
            raise AgentError(f"the drain could not be started: {error}") from None
        _log.info(
            "draining as asked by /drain: connections are asked to close, the proxy goes on until it is told to end"
        )


def _remove(paths: tuple[str, ...]) -> None:
    for path in paths:
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            _log.warn(f"{path} cannot be removed: {error.strerror}")
