"""Whether the proxy is ready: what `/healthz/ready` on the status port answers from."""

import asyncio
import time
from collections.abc import Collection

from agent import log
from agent.admin import Admin, AdminError

_CONFIG_TIMEOUT_S = 1.0
_LIVE_TIMEOUT_S = 3.0
_REPEAT_S = 30.0  # an unchanged reason is logged again after this time

_STATE = "server.state"
_WORKERS = "listener_manager.workers_started"
_STATES = ("LIVE", "DRAINING", "PRE_INITIALIZING", "INITIALIZING")
_LIVE = 0

# Resource type -> statistics that tell of its updates.
_UPDATES = {"cds": "cluster_manager.cds", "lds": "listener_manager.lds"}

_log = log.scope()


class NotReady(Exception):
    """The proxy is not ready; the text says why."""


class Readiness:
    """The checks in their order; each passes once and for all, as in the real program: a proxy that has taken its
    configuration and started its workers stays ready although its control plane goes away. From `shut_down` on the
    answer is no.
    """

    def __init__(self, admin: Admin, awaits: Collection[str], started_at: float) -> None:
        """`awaits`: which of cds and lds must have had an update. `started_at`: the agent's start, time.monotonic."""
        self._admin = admin
        self._awaits = tuple(awaits)
        self._started_at = started_at
        self._config_seen = not self._awaits
        self._live = False
        self._shutting_down = False
        self._checking: asyncio.Task[str] | None = None
        self._logged = ("", 0.0)

    @property
    def was_ready(self) -> bool:
        return self._config_seen and self._live

    def shut_down(self) -> None:
        self._shutting_down = True

    async def check(self) -> bool:
        """Whether the proxy is ready now. Failures are logged with their reason, the first success too."""
        if self._shutting_down:
            return False
        if self.was_ready:
            return True
        # One check at a time however many ask, so that a flood of probes is not passed on to the admin port.
        if self._checking is None:
            loop = asyncio.get_running_loop()
            self._checking = loop.create_task(self._check(), name="readiness")
            self._checking.add_done_callback(self._checked)
        why = await asyncio.shield(self._checking)
        return not why and not self._shutting_down

    async def close(self) -> None:
        """Stop a check that is under way."""
        if self._checking is not None:
            self._checking.cancel()
            await asyncio.wait({self._checking})

    def _checked(self, task: "asyncio.Task[str]") -> None:
        self._checking = None
        if task.cancelled():
            return
        why, now = task.result(), time.monotonic()
        if not why:
            _log.info(f"The proxy is ready ({now - self._started_at:.2f}s after the agent's start)")
        elif why != self._logged[0] or now - self._logged[1] >= _REPEAT_S:
            self._logged = (why, now)
            _log.warn(f"The proxy is not ready: {why}")

    async def _check(self) -> str:
        try:
            if not self._config_seen:
                await self._check_config()
                self._config_seen = True
            if not self._live:
                await self._check_live()
                self._live = True
        except (NotReady, AdminError) as error:
            return str(error)
        return ""

    async def _check_config(self) -> None:
        names = [_UPDATES[kind] for kind in self._awaits]
        pattern = rf"^({'|'.join(name.replace('.', '[.]') for name in names)})[.]update_(success|rejected)$"
        stats = await self._admin.stats(pattern, _CONFIG_TIMEOUT_S)
        missing = [kind for kind in self._awaits if not stats.get(f"{_UPDATES[kind]}.update_success")]
        if not missing:
            return
        states = []
        for kind in self._awaits:
            rejected = stats.get(f"{_UPDATES[kind]}.update_rejected", 0)
            state = "received" if kind not in missing else f"rejected {rejected} times" if rejected else "not received"
            states.append(f"{kind} updates: {state}")
        raise NotReady(f"configuration of the control plane: {', '.join(states)}")

    async def _check_live(self) -> None:
        pattern = rf"^({_STATE}|{_WORKERS})$".replace(".", "[.]")
        stats = await self._admin.stats(pattern, _LIVE_TIMEOUT_S)
        if _STATE not in stats or _WORKERS not in stats:
            # The file's stats_config leaves them out: `/ready` tells the same state without them.
            if not await self._admin.is_live(_LIVE_TIMEOUT_S):
                raise NotReady("its admin port does not answer /ready with 200")
        elif stats[_STATE] != _LIVE:
            number = stats[_STATE]
            raise NotReady(f"server state is {_STATES[number] if number < len(_STATES) else number}")
        elif stats[_WORKERS] != 1:
            raise NotReady("its workers have not started")
