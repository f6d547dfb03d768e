"""The drain: clients are asked to leave, and get the time to; how long is either fixed or until nobody is connected."""

import asyncio
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from agent import log
from agent.admin import Admin, AdminError
from agent.child import Child, wait_first
from agent.durations import format_seconds
from agent.lifecycle import connections
from agent.lifecycle.connections import ALL, Holder, NoCount

# The real program waits without limit for the answer, so that a hung admin port keeps a pod from ending.
REQUEST_TIMEOUT_S = 5.0
POLL_S = 0.1
POLL_TIMEOUT_S = 2.0
ZEROS = 2  # in a row: workers are counted one after the other, so a connection can slip between two of them
FAILING_S = (
    5.0  # counting fails for so long, and the exit no longer depends on it (the real program: 5 tries, 1 s apart)
)
REPORT_S = 5.0
_REPORT_TIMEOUT_S = 1.0

_log = log.scope()
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class DrainSettings:
    """How long a drain lasts; times are seconds."""

    inbound_only: bool  # drain listeners of direction INBOUND only
    termination_drain_s: float  # the fixed time
    exit_on_zero: bool = False  # EXIT_ON_ZERO_ACTIVE_CONNECTIONS: until nobody is connected, instead of the fixed time
    minimum_s: float = 5.0  # MINIMUM_DRAIN_DURATION: before the first count
    count: str = ALL  # EXIT_ON_ZERO_COUNT, one of connections.COUNTS
    maximum_s: float | None = None  # EXIT_ON_ZERO_MAX_DURATION, from the beginning of the drain
    own_ports: frozenset[int] = frozenset((15021, 15090))  # listeners for probes and metrics, which never count

    def __str__(self) -> str:
        if not self.exit_on_zero:
            return format_seconds(self.termination_drain_s)
        at_most = "" if self.maximum_s is None else f", at most {format_seconds(self.maximum_s)}"
        which = "" if self.count == ALL else f"{self.count} "
        return f"at least {format_seconds(self.minimum_s)}{at_most}, until no {which}connection is open"


class Drain:
    """One drain of one proxy. `report` tells at any time how it stands."""

    def __init__(self, admin: Admin, settings: DrainSettings) -> None:
        self._admin = admin
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._state = "running"
        self._began: float | None = None
        self._ends: float | None = None
        self._counts: dict[str, int] | None = None
        self._holders: tuple[Holder, ...] = ()
        self._trouble = ""
        self._directions: Mapping[str, str] = {}

    async def begin(self, *, skip_exit: bool = False) -> None:
        """Have the proxy drain; with `skip_exit` it never stops accepting. Raises AdminError when it did not answer."""
        began = self._loop.time()
        await self._admin.drain_listeners(
            inbound_only=self._settings.inbound_only, skip_exit=skip_exit, timeout_s=REQUEST_TIMEOUT_S
        )
        if self._state == "running":
            self._state, self._began = "draining", began

    async def run(self, child: Child, hurry: asyncio.Event) -> None:
        """The whole drain; back earlier when the proxy ends by itself or `hurry` is set.

        A proxy that does not answer is logged: its connections still get their time.
        """
        settings = self._settings
        what = "inbound listeners" if settings.inbound_only else "listeners"
        self._state, self._began = "draining", self._loop.time()
        try:
            await _unless(child, hurry, self.begin())
            if child.exited.done() or hurry.is_set():
                return
            _log.info(f"{what} are draining; the proxy ends in {settings}")
        except AdminError as error:
            _log.error(f"the drain could not be started: {error}; the proxy still ends in {settings}")
        if settings.exit_on_zero:
            await self._until_zero(child, hurry)
        else:
            await self._fixed_time(child, hurry, settings.termination_drain_s)

    def ending(self) -> None:
        """The drain is over, the proxy is told to end."""
        self._state, self._ends = "ending", None

    def report(self) -> dict[str, object]:
        """For `GET /debug/drain`."""
        now = self._loop.time()
        settings = self._settings
        return {
            "draining": self._state == "draining",
            "state": self._state,
            "mode": "until-zero" if settings.exit_on_zero else "fixed",
            "since_seconds": None if self._began is None else round(now - self._began, 3),
            "ends_in_seconds": None if self._ends is None else round(max(0.0, self._ends - now), 3),
            "counted": settings.count if settings.exit_on_zero else None,
            "connections": None if self._counts is None else sum(self._counts.values()),
            "listeners": self._counts or {},
            "holders": [
                {
                    "listener": holder.listener,
                    "direction": holder.direction,
                    "peer": holder.peer,
                    "local": holder.local,
                    "age_seconds": holder.age_s,
                    "requests": holder.requests,
                    "active_requests": holder.active,
                }
                for holder in self._holders
            ],
            "error": self._trouble,
        }

    # --- the fixed time -----------------------------------------------------------------------------------------------

    async def _fixed_time(self, child: Child, hurry: asyncio.Event, duration_s: float) -> None:
        """Wait; who is connected is looked up meanwhile for `report`, and at the end for the log."""
        ends = self._ends = self._loop.time() + duration_s
        while (left := ends - self._loop.time()) > 0 and not (child.exited.done() or hurry.is_set()):
            await _unless(child, hurry, self._look(min(left, _REPORT_TIMEOUT_S)))
            await wait_first(max(0.0, min(REPORT_S, ends - self._loop.time())), child.exited, hurry)
        if not duration_s or child.exited.done() or hurry.is_set():
            return
        await _unless(child, hurry, self._look(_REPORT_TIMEOUT_S))
        if self._counts and not self._trouble and not (child.exited.done() or hurry.is_set()):
            _log.warn(f"the time is over; the end of the proxy cuts {self._described()}")

    async def _look(self, timeout_s: float) -> None:
        """Count once, and find out who it is; trouble is noted."""
        try:
            statistics = await self._admin.stats(connections.PATTERN, timeout_s)
            self._counts = connections.active(statistics, self._settings.own_ports)
        except (AdminError, NoCount) as error:
            self._trouble = str(error)
            return
        self._trouble, self._holders = "", ()
        if self._counts:
            await self._find_holders()

    # --- until nobody is connected ------------------------------------------------------------------------------------

    async def _until_zero(self, child: Child, hurry: asyncio.Event) -> None:
        settings = self._settings
        assert self._began is not None
        began = self._began
        if settings.maximum_s is not None:
            self._ends = began + settings.maximum_s
        await wait_first(self._limited(settings.minimum_s), child.exited, hurry)
        counting = self._count_down(child, hurry, began)
        if self._ends is None:
            await counting
            return
        try:
            async with asyncio.timeout_at(self._ends):
                await counting
        except TimeoutError:
            who = self._described() if self._counts else "what is open"
            _log.warn(f"EXIT_ON_ZERO_MAX_DURATION ({settings.maximum_s:g}s) is over; the end of the proxy cuts {who}")

    def _limited(self, seconds: float) -> float:
        """Not beyond the end of the drain."""
        return seconds if self._ends is None else max(0.0, min(seconds, self._ends - self._loop.time()))

    async def _count_down(self, child: Child, hurry: asyncio.Event, began: float) -> None:
        """Count every POLL_S; back when nothing was open ZEROS times in a row, or counting cannot go on."""
        zeros = 0
        failing_since: float | None = None
        next_report = self._loop.time()
        while not child.exited.done() and not hurry.is_set():
            try:
                counts = await _unless(child, hurry, self._count())
            except (AdminError, NoCount) as error:
                now = self._loop.time()
                zeros, self._trouble = 0, str(error)
                if failing_since is None:
                    failing_since = now
                    _log.warn(f"connections cannot be counted: {error}")
                if now >= max(failing_since + FAILING_S, began + self._settings.termination_drain_s):
                    _log.error(f"connections could not be counted for {now - failing_since:.0f}s: the drain ends here")
                    return
            else:
                if counts is None:
                    return
                failing_since, self._trouble, self._counts = None, "", counts
                zeros = zeros + 1 if not counts else 0
                if zeros == 1:
                    self._holders = ()
                if zeros == ZEROS:
                    _log.info("no connection is open any more: the drain is over")
                    return
                if counts and self._loop.time() >= next_report:
                    next_report = self._loop.time() + REPORT_S
                    await _unless(child, hurry, self._find_holders())
                    _log.info(f"the exit waits for {self._described()}")
            await wait_first(POLL_S, child.exited, hurry)

    async def _count(self) -> dict[str, int]:
        settings = self._settings
        statistics = await self._admin.stats(connections.PATTERN, POLL_TIMEOUT_S)
        counts = connections.active(statistics, settings.own_ports)
        if settings.count != ALL and not counts.keys() <= self._directions.keys():
            # Listeners come and go with updates of the control plane.
            self._directions = await self._find_directions(counts)
        return connections.wanted(counts, settings.count, self._directions)

    async def _find_directions(self, counts: Mapping[str, int]) -> dict[str, str]:
        try:
            directions = await self._admin.listener_directions(POLL_TIMEOUT_S)
        except AdminError as error:
            _log.warn(f"every listener counts, for the proxy does not tell their directions: {error}")
            directions = {}
        # Asked once for each: a listener that the configuration does not name counts in any case.
        return {**dict.fromkeys(counts, ""), **self._directions, **directions}

    async def _find_holders(self) -> None:
        """Who is behind the counts; without an answer the counts have to do."""
        try:
            holders = await self._admin.connections(_REPORT_TIMEOUT_S) or ()
        except AdminError as error:
            _log.debug(f"connections are not listed: {error}")
            holders = ()
        self._holders = tuple(
            holder
            for holder in holders
            if connections.holds(holder, self._settings.count) and not self._is_own(holder.local)
        )

    def _is_own(self, local: str) -> bool:
        """Whether a connection is one to the ports for probes and metrics."""
        port = local.rpartition(":")[2]
        return port.isascii() and port.isdigit() and int(port) in self._settings.own_ports

    def _described(self) -> str:
        return connections.described(self._counts or {}, self._holders)


async def _unless(child: Child, hurry: asyncio.Event, work: Coroutine[Any, Any, _T]) -> _T | None:
    """The result of `work`; None when the proxy ended or `hurry` was set first (`work` is then cancelled)."""
    loop = asyncio.get_running_loop()
    task = loop.create_task(work, name="drain:request")
    hurried = loop.create_task(hurry.wait(), name="drain:hurry")
    try:
        first: set[asyncio.Future[Any]] = {task, hurried, child.exited}
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        hurried.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait([task])
