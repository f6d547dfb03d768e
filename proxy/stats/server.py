"""The statistics of the main process: ``server``, ``listener_manager``, ``cluster_manager``.

Envoy's names for what cannot happen here yet (warming clusters, listeners that are modified, a parent) are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from proxy.stats.groups import Snapshot

NO_CERTIFICATE = 4294967295
"""``server.days_until_first_cert_expiring`` when there is none."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of main and its workers together; pages that they share are counted once."""

    allocated: int = 0
    """Anonymous memory (heap and the like)."""
    heap_size: int = 0
    """Anonymous memory with what is swapped out."""
    physical_size: int = 0
    """All resident memory, mapped files included (PSS)."""


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What the statistics are made of."""

    state: int
    live: bool
    uptime: int
    """Seconds."""
    concurrency: int
    version: int
    restart_epoch: int
    memory: Memory
    unknown_fields: int
    worker_restarts: int
    workers_started: bool
    connections: int
    listeners: int
    listeners_created: int
    listeners_stopped: int
    clusters: int


def connections(workers: Snapshot) -> int:
    """``server.total_connections``: the open connections of all listeners."""
    return sum(value for name, value in workers.gauges.items()
               if name.startswith("listener.") and name.endswith(".downstream_cx_active") and ".worker_" not in name)


def add(out: Snapshot, facts: ServerFacts) -> None:
    """Add main's statistics to a snapshot."""
    memory = facts.memory
    out.levels.update({
        "server.concurrency": facts.concurrency,
        "server.days_until_first_cert_expiring": NO_CERTIFICATE,
        "server.hot_restart_epoch": facts.restart_epoch,
        "server.live": int(facts.live),
        "server.memory_allocated": memory.allocated,
        "server.memory_heap_size": memory.heap_size,
        "server.memory_physical_size": memory.physical_size,
        "server.state": facts.state,
        "server.total_connections": facts.connections,
        "server.uptime": facts.uptime,
        "server.version": facts.version,
        "listener_manager.total_listeners_active": facts.listeners if facts.workers_started else 0,
        "listener_manager.total_listeners_warming": 0 if facts.workers_started else facts.listeners,
        "listener_manager.workers_started": int(facts.workers_started),
        "cluster_manager.active_clusters": facts.clusters,
    })
    out.counters.update({
        "server.static_unknown_fields": facts.unknown_fields,
        "server.worker_restarts": facts.worker_restarts,
        "listener_manager.listener_added": facts.listeners,
        "listener_manager.listener_create_success": facts.listeners_created,
        "listener_manager.listener_stopped": facts.listeners_stopped,
        "cluster_manager.cluster_added": facts.clusters,
    })


_FIELDS = {"Pss": 0, "Pss_Anon": 1, "SwapPss": 2}


def memory_of(pids: list[int]) -> Memory:
    """The memory of some processes by /proc/<pid>/smaps_rollup (Linux); one that is gone or not readable counts 0."""
    totals = [0, 0, 0]
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            name, _, rest = line.partition(":")
            if (at := _FIELDS.get(name)) is not None:
                totals[at] += int(rest.split()[0]) * 1024
    physical, anonymous, swapped = totals
    return Memory(anonymous, anonymous + swapped, physical)


def family(pid: int) -> list[int]:
    """A process and its children."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        children = []
    return [pid, *map(int, children)]
