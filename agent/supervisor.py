"""The life of the agent: status server, proxy, signals, drain, end. The order is facts of the real program."""

import asyncio
import signal
from dataclasses import dataclass

from agent import log
from agent.admin import Admin
from agent.child import Child, wait_first
from agent.child_command import ChildCommand, shown
from agent.drain import drain
from agent.durations import format_seconds
from agent.errors import ProxyDied
from agent.status.readiness import Readiness
from agent.status.server import StatusServer

_log = log.scope()


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything the supervisor needs, worked out before anything starts. Times are seconds."""

    command: ChildCommand
    run_as: int | None  # uid and gid of the proxy; None = ours
    status_port: int  # 0 = no status server
    admin_hosts: tuple[str, ...]
    admin_port: int
    awaits: tuple[str, ...]  # which of cds and lds readiness waits for
    inbound_only_drain: bool
    termination_drain_s: float
    started_at: float  # time.monotonic


class Supervisor:
    """Runs one proxy to its end.

    Requests to end come from signals and from `/quitquitquit`. The first signal begins the drain, the second cuts it
    short, the third kills the proxy. (The real program ignores every signal but the first.)
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._admin = Admin(plan.admin_hosts, plan.admin_port)
        self._readiness = Readiness(self._admin, plan.awaits, plan.started_at)
        self._status = StatusServer(self._readiness, self._quit)
        self._signals = 0
        self._end = asyncio.Event()  # the proxy is to end
        self._skip_drain = asyncio.Event()  # at once
        self._kill = asyncio.Event()  # without being asked

    async def run(self) -> None:
        """Returns after an orderly end. Raises AgentError: the status port is taken, the proxy cannot start or died."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        try:
            # First of all, so that probes are answered from the beginning.
            if self._plan.status_port:
                await self._status.start(self._plan.status_port)
            if not self._end.is_set():
                await self._run_proxy(loop)
        finally:
            await self._readiness.close()
            await self._status.close()

    async def _run_proxy(self, loop: asyncio.AbstractEventLoop) -> None:
        command = self._plan.command
        _log.info(f"Proxy command: {shown((*command.program, *command.arguments))}")
        child = Child.start(command, loop, self._plan.run_as)
        try:
            await wait_first(None, child.exited, self._end)
            self._readiness.shut_down()
            if not child.exited.done() and not self._skip_drain.is_set():
                await drain(
                    child,
                    self._admin,
                    inbound_only=self._plan.inbound_only_drain,
                    duration_s=self._plan.termination_drain_s,
                    hurry=self._skip_drain,
                )
            if child.exited.done():
                self._judge(child)
            else:
                _log.info(f"The proxy {await child.end(self._kill)}, as asked")
        finally:
            child.kill()

    def _judge(self, child: Child) -> None:
        """The proxy ended before it was told to. Raises ProxyDied unless that was an orderly end of a working proxy
        (somebody used `/quitquitquit` of its admin port): then the agent's end is an orderly one too.
        """
        status = child.exited.result()
        if status.orderly and (self._readiness.was_ready or self._end.is_set()):
            _log.info(f"The proxy {status} by itself")
            return
        when = "" if self._readiness.was_ready else " before it was ready"
        when = " during the drain" if self._end.is_set() else when
        # Nobody in the pod sends it without a word, but the kernel does.
        hint = " (out of memory?)" if status.signal == signal.SIGKILL else ""
        raise ProxyDied(f"the proxy {status}{hint}{when}")

    def _on_signal(self, number: int) -> None:
        self._signals += 1
        name = signal.Signals(number).name
        self._readiness.shut_down()
        if self._signals == 1 and self._end.is_set():
            _log.info(f"received {name}: the proxy is being ended already")
        elif self._signals == 1:
            _log.info(f"received {name}: draining for {format_seconds(self._plan.termination_drain_s)}")
            self._end.set()
        elif self._signals == 2:
            _log.info(f"received {name} again: the drain ends here")
            self._skip_drain.set()
        else:
            _log.info(f"received {name} once more: the proxy is killed")
            self._kill.set()

    def _quit(self) -> None:
        self._readiness.shut_down()
        self._skip_drain.set()
        self._end.set()
