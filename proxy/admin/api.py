"""What the admin interface needs of the main process, and what its handlers share."""

from __future__ import annotations

from asyncio import AbstractEventLoop
from typing import TYPE_CHECKING, Any, Protocol

from proxy.options import Options
from proxy.stats.groups import Snapshot
from proxy.stats.histogram import HistogramStore

if TYPE_CHECKING:
    from proxy.access_log.file import LogFiles
    from proxy.config.load import Loaded
    from proxy.runtime.control import RuntimeControl

LIVE, DRAINING = "LIVE", "DRAINING"
STATES = {LIVE: 0, DRAINING: 1, "PRE_INITIALIZING": 2, "INITIALIZING": 3}
"""admin.v3.ServerInfo.State -> the gauge server.state."""


class Server(Protocol):
    """The main process. Every coroutine comes back in bounded time, whether or not a worker answers."""

    @property
    def options(self) -> Options:
        """The command line."""

    @property
    def loaded(self) -> Loaded:
        """The configuration, as message and compiled."""

    @property
    def loop(self) -> AbstractEventLoop:
        """The loop of the main process."""

    @property
    def state(self) -> str:
        """A key of STATES."""

    @property
    def started_at(self) -> float:
        """Wall clock, seconds."""

    @property
    def initialization_time_ms(self) -> int | None:
        """From the start of the process until the state was LIVE for the first time."""

    @property
    def workers_started(self) -> bool:
        """Every worker accepts."""

    @property
    def listeners_stopped(self) -> int:
        """Listeners closed by drain_listeners."""

    @property
    def worker_restarts(self) -> int:
        """Workers that died and were replaced."""

    @property
    def log_files(self) -> LogFiles:
        """Log files of the main process."""

    @property
    def histograms(self) -> HistogramStore:
        """Histograms of all workers as of the last flush."""

    @property
    def runtime(self) -> RuntimeControl:
        """Runtime layers and connection limits."""

    async def modify_runtime(self, overrides: dict[str, str]) -> list[int]:
        """Change the admin layer; the workers that have not followed in time. Raises proxy.runtime.layers' errors."""

    async def snapshot(self) -> Snapshot:
        """Statistics of all workers added up, without histograms; the caller's own copy."""

    async def clusters(self) -> list[dict[str, Any]]:
        """The status of every cluster, added up over the workers."""

    async def connections(self, limit: int) -> tuple[int, list[dict[str, Any]]]:
        """How many downstream connections are open, and the ``limit`` oldest (proxy.admin.connections.FIELDS)."""

    async def explain_name(self, name: bytes, qtype: int) -> list[tuple[int, dict[str, Any]]] | None:
        """What each worker would answer to a DNS query, and why; None: DNS is off. ``name`` is the wire form."""

    async def limit_clients(self) -> dict[str, list[tuple[str, int]]]:
        """Key of a connection limit -> (IP address, connections) of those who hold the most (proxy.admin.limits)."""

    async def drain_listeners(self, inbound_only: bool = False, graceful: bool = False,
                              skip_exit: bool = False) -> None:
        """Close or drain listeners."""

    async def set_health_failed(self, failed: bool) -> None:
        """Fail health checks (every response closes its connection), or pass them again."""

    async def reopen_logs(self) -> None:
        """Reopen access logs by path."""

    async def set_log_level(self, component: str | None, level: str) -> None:
        """The level of one logger or (None) all; ValueError says what is unknown."""

    async def reset_counters(self) -> None:
        """Set every counter of the workers to 0."""

    def quit(self) -> None:
        """End the process soon; returns at once."""
