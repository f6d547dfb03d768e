"""The main process: configuration, admin interface, statistics; it forks the workers and never touches traffic."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import signal
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from proxy import log
from proxy.access_log.file import LogFileError, LogFiles
from proxy.admin import connections, limits
from proxy.admin.server import AdminServer
from proxy.config.errors import ConfigErrors
from proxy.config.load import Loaded, load_bootstrap
from proxy.dns.stats import PREFIX, NameTableStats
from proxy.limits.pools import GLOBAL, NoDescriptors
from proxy.options import Options
from proxy.overload.manager import OverloadManager
from proxy.overrides import with_command_line
from proxy.runtime.control import RuntimeControl
from proxy.stats.groups import Snapshot
from proxy.stats.histogram import HistogramStore
from proxy.stats.merge import merge
from proxy.worker import log_loop_error
from proxy.workers import StartError, Workers

if TYPE_CHECKING:
    from proxy.dns.watch import DnsWatch

_log = log.get("main")

_PR_SET_DUMPABLE = 4


def run(options: Options) -> int:
    """Validate or serve; the exit code of the process."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a plain end, no traceback, while there is nothing to shut down
    gc.disable()  # nothing becomes garbage while configuration is built; workers and serve() turn it on again
    _log.info("initializing epoch 0 (base id=%d, hot restart version=disabled)", options.base_id)
    name = options.config_path or "--config-yaml"
    try:
        loaded = with_command_line(load_bootstrap(options), options)
    except ConfigErrors as errors:
        for error in errors.errors:
            _log.critical("error initializing configuration '%s': %s", name, error)
        return 1
    for warning in loaded.warnings:
        _log.warning("%s", warning)
    if options.mode == "validate":
        print(f"configuration '{options.config_path}' OK")
        return 0
    if options.enable_core_dump:
        _allow_core_dump()
    _raise_file_limit()
    return serve(options, loaded)


def serve(options: Options, loaded: Loaded) -> int:
    """Run until SIGTERM, SIGINT or /quitquitquit (0), or until it cannot go on (1)."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    loop.set_exception_handler(log_loop_error)
    try:
        server = Server(options, loaded, loop)
        return loop.run_until_complete(server.run())
    except NoDescriptors as error:
        _fail(StartError(str(error)), options)
        return 1
    finally:
        loop.close()
        _log.info("exiting")


class Server:
    """What the admin interface and the signals act on. Coroutines return in bounded time whatever workers do."""

    def __init__(self, options: Options, loaded: Loaded, loop: asyncio.AbstractEventLoop) -> None:
        self.options = options
        self.loaded = loaded
        self.loop = loop
        self.started_at = _process_start()
        """Wall clock, seconds."""
        self.initialization_time_ms: int | None = None
        self.workers_started = False
        self.health_failed = False
        self.listeners_stopped = 0
        self.draining_listeners = 0
        self.log_files = LogFiles(loop, options.file_flush_interval, options.file_flush_min_size_kb * 1024)
        self.histograms = HistogramStore()
        self._dns_stats = NameTableStats(PREFIX)
        self._dns: DnsWatch | None = None
        self._stage = "PRE_INITIALIZING"
        self._admin: AdminServer | None = None
        self._ended: asyncio.Future[int] = loop.create_future()
        self.runtime = RuntimeControl(loaded.bootstrap, options.concurrency)
        self._workers = Workers(loop, loaded.bootstrap, options, self.runtime.pools, self._replay, self._give_up)
        self._overload: OverloadManager | None = None
        if (overload := loaded.bootstrap.overload) is not None:
            limited = overload.max_active_downstream_connections is not None
            self._overload = OverloadManager(
                overload, loop, pids=lambda: [os.getpid(), *self._workers.pids],
                tell=lambda values: self._spawn(self._workers.ask("overload", values)),
                shrink=lambda: self._spawn(self._workers.ask("shrink_heap")),
                connections=self.runtime.pools.pool(GLOBAL) if limited else None)
        self._stopped: set[int] = set()
        """Listeners that were closed, by position."""
        self._drains: list[tuple[float, bool, bool, bool]] = []
        """Loop time and flags of every drain_listeners."""
        self._baseline: dict[str, int] = {}
        """Counters as they were at the last reset."""
        self._tasks: set[asyncio.Task[Any]] = set()

    # --- life -----------------------------------------------------------------------------------------------------

    async def run(self) -> int:
        """Start, serve, stop; the exit code."""
        self._handle_signals()
        try:
            starting = self.loop.create_task(self._start())
            either: list[asyncio.Future[Any]] = [starting, self._ended]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                starting.cancel()
                await asyncio.wait([starting])
            elif (error := starting.exception()) is not None:
                _fail(error, self.options)
                return 1
            return await self._ended
        finally:
            _log.info("shutting down server instance")
            for task in list(self._tasks):
                task.cancel()
            if self._dns is not None:
                self._dns.close()
            await self._workers.stop()
            if self._admin is not None:
                await self._admin.close()
            self.log_files.close()
            _log.info("main dispatch loop exited")

    async def _start(self) -> None:
        options = self.options
        admin = self._admin = AdminServer(self)
        address = self.loaded.bootstrap.admin.address
        if address is not None:
            try:
                bound = await admin.start(address)
            except OSError as error:
                raise StartError(f"cannot bind '{address.text}': {os.strerror(error.errno or 0)}") from None
            log.get("admin").info("admin address: %s", bound.text)
            _write_file("--admin-address-path", options.admin_address_path, bound.text)
        _write_file("--base-id-path", options.base_id_path, str(options.base_id))
        self._stage = "INITIALIZING"
        if options.dns.enabled:
            # Only where it is wanted, but before the fork, so that workers share the pages.
            import proxy.dns.server  # noqa: F401
            from proxy.dns.watch import DnsWatch

            self._dns = DnsWatch(self.loop, options.dns, self._dns_stats, self._tell_workers, time.time)
            self._dns.start()
        self.runtime.warn()
        if self._overload is not None:
            self._overload.start()
        await self._workers.start()
        self.workers_started = True
        self._stage = "LIVE"
        self.initialization_time_ms = round((time.time() - self.started_at) * 1000)
        self._spawn(self._flush_histograms())
        gc.collect()
        gc.enable()
        _log.info("all dependencies initialized. starting workers")
        _log.info("starting main dispatch loop")

    def _handle_signals(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            self.loop.add_signal_handler(number, self._terminate, number)
        self.loop.add_signal_handler(signal.SIGCHLD, self._workers.reap)
        self.loop.add_signal_handler(signal.SIGUSR1, self._reopen_on_signal)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def _terminate(self, number: signal.Signals) -> None:
        _log.warning("caught %s", number.name)
        self.quit()

    def _reopen_on_signal(self) -> None:
        _log.info("caught SIGUSR1. Reopening access logs.")
        self._spawn(self.reopen_logs())

    def _give_up(self, why: str) -> None:
        _log.critical("%s: giving up", why)
        if not self._ended.done():
            self._ended.set_result(1)

    def _spawn(self, coroutine: Any) -> None:
        task = self.loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._reap_task)

    def _reap_task(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.loop.call_exception_handler({"message": "a task of main failed", "exception": error})

    async def _flush_histograms(self) -> None:
        interval = self.loaded.bootstrap.stats_flush_interval
        while True:
            await asyncio.sleep(interval)
            self.runtime.pools.tidy()
            recorded = await self._workers.flush()
            if self._overload is not None:
                recorded.append(self._overload.flush())
            self.histograms.flush(recorded)

    # --- what admin uses ------------------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        """PRE_INITIALIZING, INITIALIZING, LIVE, DRAINING (admin.v3.ServerInfo.State)."""
        return "DRAINING" if self.health_failed and self._stage == "LIVE" else self._stage

    @property
    def worker_restarts(self) -> int:
        """Workers that were replaced."""
        return self._workers.restarts

    async def snapshot(self) -> Snapshot:
        """All workers' statistics and main's log files', since the last reset; ``histograms`` is empty."""
        total = await self._total()
        for name in total.histograms:
            # Listed before anything was recorded in them.
            self.histograms.cumulative.setdefault(name, {})
            self.histograms.interval.setdefault(name, {})
        total.histograms = {}
        baseline = self._baseline
        if baseline:
            total.counters = {name: n - baseline.get(name, 0) for name, n in total.counters.items()}
        return total

    async def _total(self) -> Snapshot:
        own = Snapshot()
        self.log_files.stats.collect(own, False)
        if self._dns is not None:
            self._dns_stats.collect(own, False)
        self.runtime.layers.stats.collect(own, False)
        if self._overload is not None:
            self._overload.collect(own)
        return merge([await self._workers.snapshot(), own])

    async def reset_counters(self) -> None:
        """Counters start again at 0; gauges and histograms keep their values."""
        self._baseline = (await self._total()).counters

    async def clusters(self) -> list[dict[str, Any]]:
        """Every cluster's status, hosts of all workers together and their statistics added up."""
        return merge_clusters([status for _, status in await self._workers.ask("clusters")])

    async def connections(self, limit: int) -> tuple[int, list[dict[str, Any]]]:
        """Open downstream connections of all workers: their number, and the oldest of them."""
        return connections.merge([answer for _, answer in await self._workers.ask("connections", limit)], limit)

    async def limit_clients(self) -> limits.Clients:
        """Who holds the connections that count for each limit."""
        return limits.merge([answer for _, answer in await self._workers.ask("limit_clients")])

    async def drain_listeners(self, inbound_only: bool = False, graceful: bool = False,
                              skip_exit: bool = False) -> None:
        """Stop listening at once or, ``graceful``, after the drain time (``skip_exit``: never)."""
        self._drains.append((self.loop.time(), inbound_only, graceful, skip_exit))
        affected = {at for at, listener in enumerate(self.loaded.bootstrap.listeners)
                    if not inbound_only or listener.traffic_direction == "INBOUND"}
        await self._workers.ask("drain_listeners", (inbound_only, graceful, skip_exit))
        if not graceful:
            self._count_stopped(affected)
        elif not skip_exit:
            self.draining_listeners = len(affected - self._stopped)
            self.loop.call_later(self.options.drain_time, self._count_stopped, affected)

    def _count_stopped(self, listeners: set[int]) -> None:
        self._stopped |= listeners
        self.listeners_stopped = len(self._stopped)
        self.draining_listeners = 0

    def _replay(self) -> Iterator[tuple[str, Any]]:
        """What a new worker must be told between binding and starting to be like its siblings."""
        if self.health_failed:
            yield "set_health_failed", True
        if self._dns is not None:
            yield from self._dns.requests()
        yield "runtime", self.runtime.message()
        if self._overload is not None:
            yield "overload", self._overload.values
        for when, inbound_only, graceful, skip_exit in self._drains:
            over = graceful and not skip_exit and self.loop.time() >= when + self.options.drain_time
            yield "drain_listeners", (inbound_only, graceful and not over, skip_exit)

    def _tell_workers(self, name: str, value: Any) -> None:
        self._spawn(self._workers.ask(name, value))

    async def explain_name(self, name: bytes, qtype: int) -> list[tuple[int, dict[str, Any]]] | None:
        """What each worker would answer to a DNS query, by the worker's number (service.DnsService.explain).

        ``name`` is the wire form. None: DNS is off.
        """
        if self._dns is None:
            return None
        return [(w.index, answer) for w, answer in await self._workers.ask("dns_explain", (name, qtype))]

    async def set_health_failed(self, failed: bool) -> None:
        """/healthcheck/fail and /healthcheck/ok."""
        self.health_failed = failed
        await self._workers.ask("set_health_failed", failed)

    async def reopen_logs(self) -> None:
        """Open all log files anew, here and in the workers."""
        self.log_files.reopen()
        try:
            log.reopen()
        except OSError as error:
            _log.error("unable to reopen the log: %s", error)
        await self._workers.ask("reopen_logs")

    async def set_log_level(self, component: str | None, level: str) -> None:
        """Everywhere; raises ValueError for an unknown component or level."""
        log.set_level(component, level)
        await self._workers.ask("set_log_level", (component, level))

    async def modify_runtime(self, overrides: dict[str, str]) -> list[int]:
        """/runtime_modify; the workers that have not followed in time. Raises runtime.layers.*."""
        return await self.runtime.change(overrides, self._workers.tell)

    def quit(self) -> None:
        """End the process with code 0, soon; returns at once."""
        if not self._ended.done():
            self._ended.set_result(0)


def merge_clusters(parts: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The workers' lists as one: clusters by name, hosts by address, integers in ``stats`` added."""
    merged: dict[str, dict[str, Any]] = {}
    hosts: dict[str, dict[str, dict[str, Any]]] = {}
    for part in parts:
        for cluster in part:
            name = cluster["name"]
            merged.setdefault(name, cluster)
            known = hosts.setdefault(name, {})
            for host in cluster["hosts"]:
                first = known.setdefault(host["address"], host)
                if first is not host:
                    stats = first["stats"]
                    for stat, value in host["stats"].items():
                        stats[stat] = stats.get(stat, 0) + value
    for name, cluster in merged.items():
        cluster["hosts"] = list(hosts[name].values())
    return list(merged.values())


def _fail(error: BaseException, options: Options) -> None:
    if not isinstance(error, (StartError, LogFileError)):
        _log.exception("cannot start", error)
        return
    _log.critical("error `%s` initializing config '%s'", error, options.config_path or "--config-yaml")
    os.write(2, f"{error}\n".encode())  # also with the log switched off


def _write_file(option: str, path: str, text: str) -> None:
    if path:
        try:
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            _log.critical("%s: cannot write '%s': %s", option, path, error.strerror)


def _process_start() -> float:
    """When the process began, wall clock: now less its age (proc(5), stat field 22 against uptime)."""
    try:
        with open("/proc/self/stat", "rb") as stat, open("/proc/uptime", "rb") as uptime:
            ticks = int(stat.read().rpartition(b")")[2].split()[19])
            age = float(uptime.read().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        age = 0.0
    return time.time() - max(0.0, age)


def _raise_file_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _allow_core_dump() -> None:
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
    log.get("misc").info("core dump enabled")
