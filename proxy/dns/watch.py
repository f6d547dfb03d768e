"""Main's part of DNS: reads the name table and resolv.conf, compiles them and hands them to the workers.

Files are looked at once a second. Kubernetes replaces the files of a volume by renaming a link, istiod's debug page is
saved in place, an editor does either: content is what counts. What cannot be used changes nothing but a counter.
"""

from __future__ import annotations

import marshal
import os
import stat
from asyncio import AbstractEventLoop, TimerHandle
from collections.abc import Callable
from typing import Any

from proxy.config.errors import ConfigErrors
from proxy.dns import resolv_conf
from proxy.dns.name_table import MAX_TEXT, NameTable, parse_name_table
from proxy.dns.resolv_conf import ResolvConf
from proxy.dns.settings import DnsSettings
from proxy.dns.stats import NameTableStats
from proxy.dns.table import compile_table
from proxy.log import get

log = get("dns")

INTERVAL = 1.0
"""Seconds between looks."""
YOUNG = 2.0
"""Seconds for which a file's time of change may belong to more than one content."""
MAX_TOLD = 5
"""Warnings of one file that are logged one by one."""


class FileWatch:
    """One file. ``read`` returns its content when that is another than last time."""

    def __init__(self, path: str, limit: int) -> None:
        self.path = path
        self._limit = limit
        self._signature: tuple[int, ...] | None = None
        self._content: bytes | None = None
        self._error = ""

    def read(self, now: float) -> bytes | None:
        """New content, None when nothing is new. ``now`` is wall-clock time in seconds.

        Raises OSError (with errno 0 for a file that is too large or no file), once for each different error.
        """
        try:
            found = os.stat(self.path)
            signature = (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size)
            if signature == self._signature:
                return None
            if not stat.S_ISREG(found.st_mode):
                raise OSError(0, "it is no regular file")
            content = b""
            if found.st_size <= self._limit:
                with open(self.path, "rb") as file:
                    content = file.read(self._limit + 1)  # it may have grown
            if max(found.st_size, len(content)) > self._limit:
                raise OSError(0, f"it has more than {self._limit} bytes")
        except OSError as error:
            self._signature = None
            text = error.strerror or str(error)
            if text == self._error:
                return None
            self._error = text
            raise
        self._error = ""
        # Changed again within a tick of the file system's clock, it might look the same: then it is read once more.
        self._signature = signature if now - found.st_mtime > YOUNG else None
        if content == self._content:
            return None
        self._content = content
        return content


class DnsWatch:
    """Keeps ``send(name, value)`` (a request to all workers) up to date. Life: ``start``, ..., ``close``."""

    def __init__(self, loop: AbstractEventLoop, settings: DnsSettings, stats: NameTableStats,
                 send: Callable[[str, Any], None], wall_clock: Callable[[], float]) -> None:
        self._loop = loop
        self._settings = settings
        self._stats = stats
        self._send = send
        self._wall_clock = wall_clock
        self._table_file = FileWatch(settings.name_table, MAX_TEXT) if settings.name_table else None
        self._resolv_file = FileWatch(settings.resolv_conf, resolv_conf.MAX_BYTES)
        self._names: NameTable | None = None
        self._resolv = ResolvConf()
        self._servers: list[tuple[str, int]] = []
        self._compiled: bytes | None = None
        self._timer: TimerHandle | None = None

    def start(self) -> None:
        """Look at once and from then on every second. Nothing is sent for the first look: see ``requests``."""
        send, self._send = self._send, _nowhere
        self.look()
        self._send = send
        self._timer = self._loop.call_later(INTERVAL, self._tick)

    def close(self) -> None:
        """Stop looking."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def requests(self) -> list[tuple[str, Any]]:
        """What a worker must be told before it starts."""
        servers: list[tuple[str, Any]] = [("dns_servers", self._servers)]
        return servers if self._compiled is None else [*servers, ("dns_table", self._compiled)]

    def set_name_table(self, names: NameTable) -> None:
        """Use this table from now on: what a file, or a control plane, has sent. Raises ConfigErrors."""
        self._compile(names)
        self._names = names

    # --- inside ---------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        self._timer = self._loop.call_later(INTERVAL, self._tick)
        self.look()

    def look(self) -> None:
        """Read what has changed."""
        search = self._resolv.search
        self._read_resolv_conf()
        if not self._read_table() and self._resolv.search != search and self._names is not None:
            try:
                self._compile(self._names)
            except ConfigErrors as errors:
                self._refuse(f"with the new search list {errors}")

    def _read_resolv_conf(self) -> None:
        path = self._resolv_file.path
        try:
            content = self._resolv_file.read(self._wall_clock())
        except OSError as error:
            log.error("cannot read '%s': %s; the servers are %s", path, error.strerror, self._server_texts())
            return
        if content is None:
            return
        if not content.strip() and self._servers:
            # In containers it cannot be replaced by renaming: it is emptied first, then written.
            log.warning("'%s' is empty; the servers are %s", path, self._server_texts())
            return
        found = resolv_conf.parse(content.decode("utf-8", "surrogateescape"), path)
        _warn(found.warnings)
        self._resolv = found
        self._servers = [(server.host, server.port) for server in found.servers]
        log.info("DNS servers of '%s': %s; search list: %s", path, self._server_texts(),
                 " ".join(found.search) or "none")
        self._send("dns_servers", self._servers)

    def _server_texts(self) -> str:
        return " ".join(host for host, _ in self._servers) or "none"

    def _read_table(self) -> bool:
        """Whether a new table was compiled."""
        file = self._table_file
        if file is None:
            return False
        try:
            content = file.read(self._wall_clock())
        except OSError as error:
            self._refuse(f"cannot read it: {error.strerror}")
            return False
        if content is None:
            return False
        try:
            self.set_name_table(parse_name_table(content))
        except ConfigErrors as errors:
            for text in [str(each) for each in errors.errors][:MAX_TOLD]:
                log.error("name table '%s': %s", file.path, text)
            self._refuse(f"errors: {len(errors.errors)}")
            return False
        return True

    def _refuse(self, why: str) -> None:
        self._stats.name_table_rejected_total += 1
        log.error("name table '%s' is not used: %s; %s", self._settings.name_table, why,
                  "all queries go to the servers" if self._compiled is None else "the one before stays")

    def _compile(self, names: NameTable) -> None:
        settings = self._settings
        table = compile_table(names, settings.domain, settings.namespace, self._resolv.search)
        _warn(table.warnings)
        # Marshalled here, once: a worker's request then copies bytes.
        self._compiled = marshal.dumps(table.to_wire())
        self._stats.name_table_updates_total += 1
        log.info("name table: %d hosts, %d names", len(names.hosts), len(table))
        self._send("dns_table", self._compiled)


def _nowhere(_name: str, _value: Any) -> None:
    pass


def _warn(texts: tuple[str, ...]) -> None:
    for text in texts[:MAX_TOLD]:
        log.warning("%s", text)
    if len(texts) > MAX_TOLD:
        log.warning("and %d more warnings", len(texts) - MAX_TOLD)
