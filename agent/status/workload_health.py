"""The health of a workload that no kubelet watches (a VM): ProxyConfig `readinessProbe`.

Only a change of the state is reported. The control plane takes such reports as HealthInformation over xDS.
"""

import asyncio
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from agent import log
from agent.http.exchange import HttpError
from agent.http.redirect import Place
from agent.status.probe_documents import Action, Exec, Grpc, HttpGet, number, object_fields, parse_action
from agent.status.prober import Prober, literal
from agent.status.readiness import Readiness

USER_AGENT = "istio-probe/1.0"
_WHERE = "ProxyConfig readinessProbe"
_MAX_S = 24 * 3600
_KILL_S = 5.0

_log = log.scope("healthcheck")


@dataclass(frozen=True, slots=True)
class WorkloadProbe:
    """A ReadinessProbe of ProxyConfig with its defaults filled in."""

    action: Action
    initial_delay_s: int
    timeout_s: int
    period_s: int
    success_threshold: int
    failure_threshold: int


def parse_probe(document: Mapping[str, Any]) -> WorkloadProbe:
    """Raises ConfigError naming the field and what was expected."""
    # In a ProxyConfig 0 and absent are the same.
    fields = {name: value for name, value in object_fields(dict(document), _WHERE).items() if value != 0}

    def whole(name: str, default: int, low: int) -> int:
        return number(fields, name, _WHERE, default, low, _MAX_S)

    return WorkloadProbe(
        parse_action(fields, _WHERE, ("httpGet", "tcpSocket", "exec", "grpc")),
        whole("initialDelaySeconds", 0, 0),
        whole("timeoutSeconds", 1, 1),
        whole("periodSeconds", 10, 1),
        whole("successThreshold", 1, 1),
        whole("failureThreshold", 1, 1),
    )


class Threshold:
    """Turns single results into changes of state: as many in a row as the threshold says."""

    def __init__(self, success: int, failure: int) -> None:
        self._needed = {True: success, False: failure}
        self._state: bool | None = None
        self._last: bool | None = None
        self._row = 0

    def add(self, healthy: bool) -> bool:
        """Whether `healthy` is a new state from this result on."""
        self._row = self._row + 1 if healthy is self._last else 1
        self._last = healthy
        if healthy is self._state or self._row < self._needed[healthy]:
            return False
        self._state = healthy
        return True


class WorkloadHealth:
    """Probes the workload until `close`. The proxy must be ready first: without it the workload is not reachable."""

    def __init__(
        self,
        probe: WorkloadProbe,
        readiness: Readiness,
        report: Callable[[bool, str], None],
        *,
        instance_ip: str = "",
    ) -> None:
        """`report` gets each new state and, for an unhealthy one, the reason."""
        self._probe = probe
        self._readiness = readiness
        self._report = report
        self._host = instance_ip
        self._prober = Prober()
        self._threshold = Threshold(probe.success_threshold, probe.failure_threshold)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run(), name="workload health")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        self._prober.close()

    async def _run(self) -> None:
        await asyncio.sleep(self._probe.initial_delay_s)
        while True:
            complaint = await self.check()
            if self._threshold.add(not complaint):
                _log.info(f"workload is unhealthy: {complaint}" if complaint else "workload is healthy")
                self._report(not complaint, complaint)
            await asyncio.sleep(self._probe.period_s)

    async def check(self) -> str:
        """One probe. Returns what is wrong, "" when nothing is."""
        if not await self._readiness.check():
            return "the proxy is not ready"
        try:
            async with asyncio.timeout(self._probe.timeout_s):
                return await self._act(self._probe.action)
        except TimeoutError:
            return f"no answer within {self._probe.timeout_s}s"
        except HttpError as error:
            return str(error)

    async def _act(self, action: Action) -> str:
        if isinstance(action, Exec):
            return await run_command(action.command)
        if isinstance(action, Grpc):
            return await self._prober.grpc(self._host, action.port, action.service, USER_AGENT)
        host = action.host or self._host
        if not isinstance(action, HttpGet):
            await self._prober.connect(host, action.port)
            return ""
        given = {name.lower(): value for name, value in action.headers}
        headers = [("user-agent", USER_AGENT)] if "user-agent" not in given else []
        headers += [(name, value) for name, value in action.headers if name.lower() != "host"]
        name = host or "localhost"
        host_field = given.get("host") or f"{literal(name)}:{action.port}"
        response = await self._prober.get("", Place(action.tls, name, action.port, action.path, host_field), headers)
        return "" if 200 <= response.status < 400 else f"status {response.status}"


async def run_command(command: tuple[str, ...]) -> str:
    """Run it without input or output. Returns what is wrong, "" for exit code 0. Killed when this is cancelled."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        return f"cannot run {command[0]}: {error.strerror}"
    try:
        code = await process.wait()
    finally:
        if process.returncode is None:
            _kill_group(process.pid)
            async with asyncio.timeout(_KILL_S):
                await process.wait()
    return "" if code == 0 else f"{command[0]} exited with {code}"


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
