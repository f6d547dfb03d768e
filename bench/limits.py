"""`python -m bench.limits`: what a connection limit costs on a new connection, with one worker and with several.

Our proxy three times, on one processor, in turn: without a limit; with Istio's, which no number of descriptors could
reach, so that connections are only counted; with one that holds. Rate and processor time a connection are compared pair
by pair, which resolves some percent on a quiet machine and not even that on another one. So the check alone is measured
as well, a place taken and given back; the target is about its share of a connection's processor time.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import math
import os
import socket
import sys
import time
from collections.abc import Sequence

from bench import machine
from bench.__main__ import LOG_BYTES_PER_SECOND, positive, progress, scratch
from bench.cases import CASES
from bench.config import Json
from bench.machine import MachineError
from bench.measure import load
from bench.process import ProcessError
from bench.stats import median, paired_ratio
from bench.subjects import Run, Running, Subject, SubjectError, start, upstream
from bench.wrk import WrkError
from proxy.limits.pools import GLOBAL, Limit, Pools, WorkerPools
from proxy.limits.worker import Charged, admission_of, discharge
from proxy.stats.groups import ListenerStats

CASE = next(case for case in CASES if case.name == "http1-new-connection")
MONITOR = "envoy.resource_monitors.global_downstream_max_connections"
LIMITS: tuple[tuple[str, int | None], ...] = (("no limit", None), ("only counted", 2**31 - 1), ("limit", 10_000))
WORKERS = (1, 2, 4)
TARGET = 0.02
"""Of the processor time of a connection without a limit."""
ROUNDS, CHECKS = 40, 5000
"""The fastest of so many rounds of so many checks counts."""
OPEN = 500
"""Connections that are open meanwhile."""
JIFFIES = os.sysconf("SC_CLK_TCK")


class Charges:
    """A connection, as far as limits know it."""

    __slots__ = ("charged",)
    charged: Charged


def limited(template: Json, limit: int | None) -> Json:
    """A sidecar's configuration with this limit of all connections, or none."""
    document: Json = copy.deepcopy(template)
    document.pop("overload_manager", None)
    if limit is not None:
        kind = "envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig"
        document["overload_manager"] = {"resource_monitors": [{
            "name": MONITOR,
            "typed_config": {"@type": f"type.googleapis.com/{kind}", "max_active_downstream_connections": limit},
        }]}  # fmt: skip
    return document


def check_alone(workers: int, limit: int) -> float:
    """Microseconds for taking a connection's place and giving it back."""
    pools = Pools(workers, [GLOBAL], 0)
    pools.put_in_force([Limit(GLOBAL, limit, "global", "", MONITOR)])
    pool = WorkerPools(pools, 0).in_use[GLOBAL]
    admit = admission_of(pool, None, None, ListenerStats("bench"))
    for _ in range(OPEN):
        pool.take()
    sock = socket.socket()
    connection = Charges()
    best = math.inf
    for _ in range(ROUNDS):
        before = time.process_time()
        for _ in range(CHECKS):
            connection.charged = admit(sock) or ()
            if connection.charged:
                discharge(connection)
        best = min(best, time.process_time() - before)
    sock.close()
    pool.close()
    return best / CHECKS * 1e6


def measure(run: Run, running: Running, seconds: int) -> tuple[float, float]:
    """(connections a second, microseconds of processor time each)."""
    child = running.child
    assert child is not None
    before = child.cpu_jiffies()
    report = load(run, CASE, running, seconds)
    used = child.cpu_jiffies() - before
    return report.rate, used / JIFFIES / report.requests * 1e6


def compare(run: Run, workers: int, pairs: int, seconds: int) -> bool:
    """Print a line for each limit; whether the target was met."""
    started: list[Running] = []
    found: list[list[tuple[float, float]]] = [[] for _ in LIMITS]
    try:
        for name, limit in LIMITS:
            with_limit = dataclasses.replace(run, template=limited(run.template, limit))
            subject = Subject(f"{name.replace(' ', '-')}-{workers}", "ours")
            started.append(start(with_limit, subject, access_log=True, workers=workers))
        for running in started:
            load(run, CASE, running, 1)
        for pair in range(pairs):
            order = list(enumerate(started))
            for at, running in order if pair % 2 == 0 else reversed(order):
                found[at].append(measure(run, running, seconds))
            progress(f"{workers} workers, {pair + 1}/{pairs}: "
                     + ", ".join(f"{values[-1][0]:,.0f}/s {values[-1][1]:.1f} us" for values in found))
    finally:
        for running in started:
            for problem in running.finish():
                progress(problem)
    base = found[0]
    for (name, _), values in zip(LIMITS, found, strict=True):
        rate = paired_ratio([value[0] for value in values], [value[0] for value in base])
        cost = paired_ratio([value[1] for value in values], [value[1] for value in base])
        print(f"{workers:7}  {name:12}  {median([value[0] for value in values]):8,.0f}/s  {rate.median:5.3f} "
              f"({rate.low:.3f}-{rate.high:.3f})  {median([value[1] for value in values]):7.1f} us  {cost.median:5.3f} "
              f"({cost.low:.3f}-{cost.high:.3f})")
    each = median([value[1] for value in base])
    shares = {name: check_alone(workers, limit) for name, limit in LIMITS if limit is not None}
    met = max(shares.values()) <= TARGET * each
    shown = ", ".join(f"{name} {us:.2f} us ({us / each:.1%})" for name, us in shares.items())
    verdict = f"target <= {TARGET:.0%}: {'ok' if met else 'missed'}"
    print(f"{workers:7}  the check alone: {shown}; {verdict}", flush=True)
    return met


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when the target is met, 1 when it is missed, 2 when nothing could be measured."""
    parser = argparse.ArgumentParser(prog="python -m bench.limits", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pairs", type=positive, default=7)
    parser.add_argument("--seconds", type=positive, default=3, help="of one measurement")
    options = parser.parse_args(arguments)
    log_bytes = (options.pairs + 1) * options.seconds * len(LIMITS) * LOG_BYTES_PER_SECOND // 4
    try:
        machine.require_tools()
        cores = machine.choose_cores(sorted(os.sched_getaffinity(0)), machine.thread_siblings())
        os.sched_setaffinity(0, {cores.load})
        with scratch(log_bytes) as directory, upstream(directory, cores) as port:
            run = Run(directory, cores, "details:9080", port)
            print("workers  limit          connections  ratio                processor time, ratio")
            met = [compare(run, workers, options.pairs, options.seconds) for workers in WORKERS]
    except (MachineError, SubjectError, ProcessError, WrkError) as error:
        print(f"bench.limits: {error}", file=sys.stderr)
        return 2
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
