"""`python -m bench.limits`: what a connection limit costs on a new connection, with one worker and with several.

One proxy at a time has two equal listeners, of which one is exempt from the limit of all connections. Both get short
bursts of new connections in turn, and the processor time of a connection is compared pair by pair. Nothing else
resolves a percent: two proxies that do the same differ by more as long as they live, and so does the same one from
second to second. Every other proxy has the listeners' roles exchanged. The row without a limit shows what the method is
worth.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
import time
from collections.abc import Sequence

from bench import config, machine
from bench.__main__ import LOG_BYTES_PER_SECOND, positive, progress, scratch
from bench.bursts import BurstError, burst
from bench.config import BODY_1K, PATH_1K, Json
from bench.machine import MachineError
from bench.process import ProcessError
from bench.stats import median, median_interval
from bench.subjects import Run, Running, Subject, SubjectError, start, upstream
from proxy.config.overload_model import GLOBAL_CONNECTIONS

COUNTED = 2**31 - 1
"""Istio's limit, which no number of descriptors could reach: connections are only counted."""
ROWS: tuple[tuple[int, str, int | None, bool], ...] = (
    (1, "no limit", None, False),
    (1, "only counted", COUNTED, True),
    (1, "limit", 10_000, True),
    (2, "no limit", None, False),
    (2, "only counted", COUNTED, True),
    (2, "limit", 10_000, True),
    (2, "close to it", 100, False),
    (4, "limit", 10_000, True),
)
"""Workers, what the row shows, limit, whether the target applies."""
TARGET = 1.02
"""Processor time of a connection, compared with that without a limit."""
AT_ONCE = 32
WARM_UP = 6000
BURST = 1500
"""Connections."""


def with_twin(template: Json, limit: int | None, exchanged: bool) -> Json:
    """A sidecar with this limit of all connections and two equal listeners, at ``Ports.http`` and ``Ports.tcp``.

    The second one is exempt from the limit; the first one, if ``exchanged``.
    """
    document: Json = copy.deepcopy(template)
    document.pop("overload_manager", None)
    if limit is not None:
        kind = "envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig"
        document["overload_manager"] = {"resource_monitors": [{
            "name": GLOBAL_CONNECTIONS,
            "typed_config": {"@type": f"type.googleapis.com/{kind}", "max_active_downstream_connections": limit},
        }]}  # fmt: skip
    listeners = document["static_resources"]["listeners"]
    first = next(listener for listener in listeners if listener["name"] == config.HTTP_LISTENER)
    second = {**copy.deepcopy(first), "name": config.TCP_LISTENER}
    listeners[:] = [second if listener["name"] == config.TCP_LISTENER else listener for listener in listeners]
    (first if exchanged else second)["ignore_global_conn_limit"] = True
    return document


class Measurement:
    """One proxy under alternating bursts."""

    def __init__(self, run: Run, running: Running, exchanged: bool) -> None:
        assert running.child is not None
        self._child = running.child
        self._running = running
        self._request = f"GET {PATH_1K} HTTP/1.1\r\nHost: {run.host}\r\nConnection: close\r\n\r\n".encode()
        ports = [running.ports.http, running.ports.tcp]
        self._limited, self._free = reversed(ports) if exchanged else ports
        for port in ports:
            self._burst(port, WARM_UP)

    def pair(self, limited_first: bool) -> tuple[float, float]:
        """Microseconds of processor time for a connection: (with the limit, exempt)."""
        if limited_first:
            limited = self._burst(self._limited, BURST)
            return limited, self._burst(self._free, BURST)
        free = self._burst(self._free, BURST)
        return self._burst(self._limited, BURST), free

    def _burst(self, port: int, count: int) -> float:
        before = self._child.cpu_nanoseconds()
        burst(port, self._request, count, AT_ONCE, BODY_1K)
        self._running.logged_requests += count
        return (self._child.cpu_nanoseconds() - before) / count / 1000


def measure(run: Run, workers: int, limit: int | None, starts: int, pairs: int) -> list[tuple[float, float]]:
    """Pairs of as many proxies as ``starts`` says."""
    found = []
    for number in range(starts):
        exchanged = number % 2 == 1
        template = with_twin(run.template, limit, exchanged)
        subject = Subject(f"limit-{limit}-{workers}-{number}", "ours")
        running = start(Run(run.directory, run.cores, run.host, run.upstream_port, template), subject,
                        access_log=True, workers=workers)
        try:
            measurement = Measurement(run, running, exchanged)
            found += [measurement.pair(pair % 2 == 0) for pair in range(pairs)]
        finally:
            for problem in running.finish():
                progress(problem)
    return found


def verdict(ratios: Sequence[float]) -> bool | None:
    """Whether their median meets the target with 95% confidence; None when these ratios cannot tell."""
    interval = median_interval(ratios)
    if interval is None or interval[0] <= TARGET < interval[1]:
        return None
    return interval[1] <= TARGET


def main(arguments: Sequence[str] | None = None) -> int:
    """0, or with --strict 1 when a target is missed or cannot be judged; 2 when nothing could be measured."""
    parser = argparse.ArgumentParser(prog="python -m bench.limits", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pairs", type=positive, default=25, help="of bursts, for each start of a proxy")
    parser.add_argument("--starts", type=positive, default=6,
                        help="of a proxy, for each row; twice as many again where the target cannot be judged")
    parser.add_argument("--strict", action="store_true", help="a target that is not met makes the exit status 1")
    options = parser.parse_args(arguments)
    met = []
    try:
        machine.require_tools()
        cores = machine.choose_cores(sorted(os.sched_getaffinity(0)), machine.thread_siblings())
        os.sched_setaffinity(0, {cores.load})
        log_bytes = LOG_BYTES_PER_SECOND * max(1, options.pairs // 8)
        with scratch(log_bytes) as directory, upstream(directory, cores) as port:
            run = Run(directory, cores, "details:9080", port)
            print(f"workers  limit         us a connection   ratio (95% confidence), target <= {TARGET}")
            for workers, name, limit, judged in ROWS:
                began = time.monotonic()
                found = measure(run, workers, limit, options.starts, options.pairs)
                ratios = [limited / free for limited, free in found]
                if judged and verdict(ratios) is None:
                    found += measure(run, workers, limit, 2 * options.starts, options.pairs)
                    ratios = [limited / free for limited, free in found]
                low, high = median_interval(ratios) or (min(ratios), max(ratios))
                said = ""
                if judged:
                    met.append(verdict(ratios))
                    said = {True: "ok", False: "missed", None: "not resolved"}[met[-1]]
                print(f"{workers:7}  {name:12}  {median([free for _, free in found]):15.1f}   "
                      f"{median(ratios):.3f} ({low:.3f}-{high:.3f})  {said}".rstrip(), flush=True)
                progress(f"{workers} workers, {name}: {time.monotonic() - began:.0f} s")
    except (MachineError, SubjectError, ProcessError, BurstError, OSError) as error:
        print(f"bench.limits: {error}", file=sys.stderr)
        return 2
    return 1 if options.strict and not all(met) else 0


if __name__ == "__main__":
    sys.exit(main())
