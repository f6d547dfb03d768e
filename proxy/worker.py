"""A worker: one process, one uvloop, one data plane; everything it is told comes from main over a socketpair.

It starts as a fork of main and shares main's pages, so it imports nothing more. It ends when main says so, or when main
is gone: the channel's end tells a worker that runs, the kernel's parent-death signal one that is stuck.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import signal
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

import uvloop

from proxy import log
from proxy.access_log.file import LogFileError
from proxy.config.model import Bootstrap
from proxy.dataplane import BindError, DataPlane
from proxy.ipc import Channel, Refusal
from proxy.options import Options

if TYPE_CHECKING:
    from proxy.dns.server import DnsServer

GC_THRESHOLDS = (50_000, 20, 50)
"""Python's own (700, 10, 10) looks for garbage several hundred times a second under load, and there is hardly any."""

_PR_SET_PDEATHSIG = 1
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
"""malloc.h of glibc."""

_log = log.get("main")


def run(channel_socket: socket.socket, bootstrap: Bootstrap, options: Options, index: int, main_pid: int) -> NoReturn:
    """The life of a worker. Called in the child right after the fork, with all signals blocked; never returns."""
    status = 1
    try:
        _leave_main_behind(channel_socket.fileno(), main_pid)
        _keep_freed_memory()
        loop = uvloop.new_event_loop()
        asyncio.set_event_loop(loop)
        loop.set_exception_handler(log_loop_error)
        worker = Worker(loop, bootstrap, options, index)
        _handle_signals(main_pid, worker.finish_now)
        loop.run_until_complete(loop.create_unix_connection(lambda: worker.channel, sock=channel_socket))
        loop.run_forever()
        worker.finish()
        status = 0
    except Exception as error:
        _log.exception(f"worker {index} failed", error)
    finally:
        os._exit(status)


def _keep_freed_memory() -> None:
    """Have the allocator reuse the buffers of large reads instead of giving them back to the kernel each time.

    By default glibc maps and unmaps every block over 128 KiB, which a read of a large body is: a page fault for each of
    its pages. A mebibyte through the proxy costs a fifth less without.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return  # not glibc
    for parameter, value in ((_M_MMAP_THRESHOLD, 4 << 20), (_M_TRIM_THRESHOLD, 16 << 20), (_M_TOP_PAD, 1 << 20)):
        mallopt(parameter, value)


class Worker:
    """Answers main's requests with the data plane."""

    def __init__(self, loop: asyncio.AbstractEventLoop, bootstrap: Bootstrap, options: Options, index: int) -> None:
        self._loop = loop
        self._bootstrap = bootstrap
        self._options = options
        self._index = index
        self._data_plane: DataPlane | None = None
        self.channel = Channel(loop, self._answer, loop.stop)
        self._requests: dict[str, Callable[[Any], Any]] = {
            "bind": self._bind,
            "start": self._start,
            "snapshot": lambda flush: self.data_plane.snapshot(flush).to_wire(),
            "clusters": lambda _: self.data_plane.cluster_status(),
            "connections": lambda limit: self.data_plane.connections(limit),
            "drain_listeners": lambda flags: self.data_plane.drain_listeners(*flags),
            "set_health_failed": lambda failed: self.data_plane.set_health_failed(failed),
            "reopen_logs": lambda _: self._reopen_logs(),
            "dns_table": lambda compiled: self.dns.set_table(compiled),
            "dns_servers": lambda servers: self.dns.set_servers(servers),
            "dns_explain": lambda question: self.dns.explain(question),
            "set_log_level": self._set_log_level,
            "quit": lambda _: self._loop.stop(),
        }

    @property
    def data_plane(self) -> DataPlane:
        """Exists from "bind" on."""
        if self._data_plane is None:
            raise Refusal("not started yet")
        return self._data_plane

    @property
    def dns(self) -> DnsServer:
        """Exists from "bind" on, if there is DNS."""
        if self.data_plane.dns is None:
            raise Refusal("DNS is off")
        return self.data_plane.dns

    def _answer(self, name: str, value: Any) -> Any:
        return self._requests[name](value)

    def _bind(self, _: None) -> None:
        try:
            self._data_plane = DataPlane(self._bootstrap, self._options, self._loop, self._index)
            self._data_plane.bind()
        except (BindError, LogFileError) as error:
            raise Refusal(str(error)) from None

    async def _start(self, _: None) -> None:
        try:
            await self.data_plane.start()
        except BindError as error:
            raise Refusal(str(error)) from None
        # What exists now stays: configuration, listeners, clusters. The collector need not look at it again.
        gc.collect()
        gc.freeze()

    def _set_log_level(self, setting: tuple[str | None, str]) -> None:
        component, level = setting
        log.set_level(component, level)
        _log.debug("log level of %s is %s", component or "all components", level)

    def _reopen_logs(self) -> None:
        self.data_plane.reopen_logs()
        try:
            log.reopen()
        except OSError as error:
            _log.error("unable to reopen the log: %s", error)

    def finish(self) -> None:
        """Close everything and write the logs out."""
        if self._data_plane is not None:
            self._loop.run_until_complete(self._data_plane.close_connections())
            self._data_plane.close()

    def finish_now(self) -> None:
        """Write the logs out and end, from a signal handler."""
        try:
            if self._data_plane is not None:
                self._data_plane.flush_logs()
        finally:
            os._exit(1)


def log_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """The loops' exception handler: whatever arrives here is a defect."""
    error = context.get("exception")
    if error is None:
        _log.critical("%s", context["message"])
    else:
        _log.exception(context["message"], error)


def _leave_main_behind(channel: int, main_pid: int) -> None:
    """Drop what the fork brought along: main's event loop, its sockets, its collector settings."""
    signal.set_wakeup_fd(-1)
    asyncio._set_running_loop(None)
    keep = {0, 1, 2, channel} | log.descriptors()
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in keep:
            try:
                os.close(int(name))
            except OSError:
                pass  # the descriptor of the listing itself
    gc.enable()
    gc.set_threshold(*GC_THRESHOLDS)


def _handle_signals(main_pid: int, finish: Callable[[], None]) -> None:
    """Signals for the whole process group are main's business; SIGTERM counts when main is gone."""

    def terminate(number: int, frame: object) -> None:
        if os.getppid() != main_pid:
            finish()

    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, terminate)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    if os.getppid() != main_pid:
        finish()  # main died before the kernel was asked to tell
