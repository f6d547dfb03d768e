"""`make soak`, second part: a connection limit among workers that are killed, with clients that end in every way.

    python -m demo.limits [--seconds N] [--workers N] [--clients N] [--limit N]

The upstream counts who is served. It sends each connection numbered lines, the client sends them back: when number k
comes back, the connection was served until k was sent, whatever still lies in whose buffers. Such times of connections
never overlap more often than the limit says; they do that often; and afterwards no place is lost. As root this happens
in a network namespace of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

from demo.processes import COMPLAINTS, DemoError
from demo.report import Report

CLONE_NEWNET = 0x40000000
PING = 0.002
"""Seconds between two lines to one connection."""
PATIENCE = 20.0
OLD = 5.5
"""A worker that lived so long may die as often as it likes; others make the proxy give up after a few times."""
YOUNG_KILLS = 4
RETURN = 1.0
"""Seconds within which a dead worker's places are free."""
KEY = "overload.global_downstream_max_connections"

CONFIG = """
admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {admin}}}}}}}
layered_runtime:
  layers: [{{name: static, static_layer: {{{key}: {limit}}}}}, {{name: admin, admin_layer: {{}}}}]
static_resources:
  listeners:
  - name: main
    address: {{socket_address: {{address: 127.0.0.1, port_value: {main}}}}}
    filter_chains: [{{filters: [{{name: tcp, typed_config: {{"@type": {types}.tcp_proxy.v3.TcpProxy, stat_prefix: main,
      cluster: up}}}}]}}]
  - name: operator
    bypass_overload_manager: true
    address: {{socket_address: {{address: 127.0.0.1, port_value: {operator}}}}}
    filter_chains: [{{filters: [{{name: tcp, typed_config: {{"@type": {types}.tcp_proxy.v3.TcpProxy,
      stat_prefix: operator, cluster: up}}}}]}}]
  clusters:
  - name: up
    type: STATIC
    load_assignment: {{cluster_name: up, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address:
      {{address: 127.0.0.1, port_value: {up}}}}}}}}}]}}]}}
    circuit_breakers: {{thresholds: [{{max_connections: 100000}}]}}
"""


class Upstream:
    """Who is served, and when: ``intervals`` of time in which a connection certainly was."""

    def __init__(self) -> None:
        self.intervals: list[tuple[float, float]] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection through the proxy."""
        sent = began = served_until = 0.0
        try:
            greeting = await reader.readline()
            if greeting != b"hello\n":
                writer.write(greeting)  # the operator, who does not count
                return
            began = time.monotonic()
            number = 0
            while True:
                sent = time.monotonic()
                line = b"%d\n" % number
                writer.write(line)
                await writer.drain()
                if await reader.readline() != line:
                    return
                served_until = sent
                number += 1
                await asyncio.sleep(PING)
        except OSError:
            pass
        finally:
            if served_until:
                self.intervals.append((began, served_until))
            writer.close()

    def most_at_once(self) -> int:
        """The largest number of connections that were served at one moment."""
        # At the same instant ends come first: what only touches does not overlap.
        events = sorted([(began, 1) for began, _ in self.intervals] + [(ended, -1) for _, ended in self.intervals])
        most = now = 0
        for _, change in events:
            now += change
            most = max(most, now)
        return most


class Soak:
    """The proxy, its upstream and its clients."""

    def __init__(self, options: argparse.Namespace, report: Report, folder: Path) -> None:
        self.options = options
        self.report = report
        self.upstream = Upstream()
        self.ports = {name: free_port() for name in ("admin", "main", "operator", "up")}
        self._chance = random.Random(options.seed)
        self._output = folder / "proxy.log"
        config = folder / "proxy.yaml"
        config.write_text(CONFIG.format(types="type.googleapis.com/envoy.extensions.filters.network", key=KEY,
                                        limit=options.limit, **self.ports))
        with self._output.open("wb") as output:
            self.proxy = subprocess.Popen([sys.executable, "-m", "proxy", "-c", str(config), "--concurrency",
                                           str(options.workers)], stdout=output, stderr=output)
        self._clients: dict[int, subprocess.Popen[bytes]] = {}
        self._born: dict[int, float] = {}
        self._young_kills = 0
        self.kills = 0

    async def run(self) -> None:
        """Everything. Raises DemoError where it cannot go on."""
        options, report = self.options, self.report
        server = await asyncio.start_server(self.upstream.serve, "127.0.0.1", self.ports["up"], backlog=1024)
        async with server:
            await self._live()
            report.section(f"{options.seconds:g} s: limit {options.limit}, {options.workers} workers that are killed, "
                           f"{options.clients} client processes")
            entries = await self._play()
            most = self.upstream.most_at_once()
            served = len(self.upstream.intervals)
            report.expect(most <= options.limit, f"never more than {options.limit} served at once: at most {most}")
            report.expect(most == options.limit, f"all {options.limit} reached")
            report.expect(self.kills > 0, f"{self.kills} workers killed, {served} connections served")
            report.expect(entries > 0, f"the operator got in {entries} times, each time")
            report.section("Afterwards")
            await self._afterwards()
        text = self._output.read_text()
        complaints = [line for line in text.splitlines()
                      if any(complaint in line for complaint in COMPLAINTS) and "was killed by SIGKILL" not in line]
        report.expect(not complaints, "no complaint in the proxy's output")
        report.lines(complaints[:10])

    async def _live(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(OSError):
                if (await self.admin("GET", "/ready")).startswith("LIVE"):
                    return
            if self.proxy.poll() is not None or time.monotonic() > deadline:
                raise DemoError(f"the proxy is not there: {self._output.read_text()[-2000:]}")
            await asyncio.sleep(0.02)

    async def _play(self) -> int:
        """Clients come, workers die, the operator looks in: how often."""
        end = time.monotonic() + self.options.seconds
        next_kill = time.monotonic() + 0.5
        entries = 0
        while time.monotonic() < end:
            self._keep_clients()
            if time.monotonic() >= next_kill:
                next_kill = time.monotonic() + 0.2 + self._chance.random()
                self._kill_one()
            await self._operator()
            entries += 1
            await asyncio.sleep(0.05)
        for client in self._clients.values():
            client.kill()
            client.wait()
        self._clients.clear()
        return entries

    def _keep_clients(self) -> None:
        for at in range(self.options.clients):
            client = self._clients.get(at)
            if client is None or client.poll() is not None:
                connections = max(2, 3 * self.options.limit // self.options.clients)
                self._clients[at] = subprocess.Popen(
                    [sys.executable, "-m", "demo.limits_client", str(self.ports["main"]), str(connections),
                     str(self._chance.randrange(1 << 30))])

    def workers(self) -> list[int]:
        """Pids of the proxy's workers."""
        pids = [int(pid) for pid in
                Path(f"/proc/{self.proxy.pid}/task/{self.proxy.pid}/children").read_text().split()]
        now = time.monotonic()
        self._born = {pid: self._born.get(pid, now) for pid in pids}
        return pids

    def _kill_one(self) -> None:
        pids = self.workers()
        now = time.monotonic()
        old = [pid for pid in pids if now - self._born[pid] > OLD]
        if not old and self._young_kills < YOUNG_KILLS:
            old = pids
            self._young_kills += 1
        if old:
            os.kill(self._chance.choice(old), signal.SIGKILL)
            self.kills += 1

    async def _operator(self) -> None:
        if not (await self.admin("GET", "/limits")).startswith("global: limit"):
            raise DemoError("the admin interface does not tell of the limit")
        async with self.client("operator") as served:
            # A worker that has just been killed takes its connections with it.
            if not served and not self._died_just_now():
                raise DemoError("the operator's listener refused a connection")

    def _died_just_now(self) -> bool:
        return len(self.workers()) < self.options.workers or any(
            time.monotonic() - born < 1.0 for born in self._born.values())

    @contextlib.asynccontextmanager
    async def client(self, listener: str = "main") -> AsyncIterator[bool]:
        """A connection; whether it is served."""
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.ports[listener])
        except OSError:
            yield False
            return
        try:
            yield await _answers(reader, writer, b"hello\n" if listener == "main" else b"operator\n")
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def admin(self, method: str, path: str) -> str:
        """The body of an admin answer. Raises OSError."""
        return await asyncio.to_thread(self._ask, method, path)

    def _ask(self, method: str, path: str) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self.ports["admin"], timeout=PATIENCE)
        try:
            connection.request(method, path)
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    # --- afterwards ---

    async def _afterwards(self) -> None:
        """No place is lost, a dead worker's come back, and the limit can be changed."""
        limit, report = self.options.limit, self.report
        await self._nobody_left()
        async with contextlib.AsyncExitStack() as stack:
            served = [await stack.enter_async_context(self.client()) for _ in range(limit + 3)]
            report.expect(served == [True] * limit + [False] * 3,
                          f"one after another {sum(served)} of {limit + 3} served")
            rows = json.loads(await self.admin("GET", "/limits?format=json"))["limits"]
            report.expect((rows[0]["in_use"], rows[0]["highest"]) == (limit, limit),
                          f"/limits: {rows[0]['in_use']} in use, at most {rows[0]['highest']}, "
                          f"{rows[0]['refused']} refused")
            await self._set(limit // 2)
            async with self.client() as other:
                report.expect(not other, f"lowered to {limit // 2}: nobody else gets in")
        await self._nobody_left()
        async with contextlib.AsyncExitStack() as stack:
            served = [await stack.enter_async_context(self.client()) for _ in range(limit)]
            report.expect(sum(served) == limit // 2, f"then {sum(served)} of {limit} served")
            await self._set(limit)
            more = [await stack.enter_async_context(self.client()) for _ in range(limit)]
            report.expect(sum(more) == limit - limit // 2, f"raised to {limit}: {sum(more)} more")
            # One that holds connections: two descriptors for each.
            pid = max(self.workers(), key=lambda pid: len(os.listdir(f"/proc/{pid}/fd")))
            died = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            back = await self._wait_for_room(stack)
            report.expect(back - died < RETURN,
                          f"a killed worker's places are free after {1000 * (back - died):.0f} ms")
        await self._nobody_left()
        async with contextlib.AsyncExitStack() as stack:
            served = [await stack.enter_async_context(self.client()) for _ in range(limit + 1)]
            report.expect(sum(served) == limit, f"and {sum(served)} of {limit + 1} served in the end")

    async def _set(self, limit: int) -> None:
        if await self.admin("POST", f"/runtime_modify?{KEY}={limit}") != "OK\n":
            raise DemoError("the limit could not be changed")

    async def _in_use(self) -> int:
        return int(json.loads(await self.admin("GET", "/limits?format=json"))["limits"][0]["in_use"])

    async def _nobody_left(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while await self._in_use():
            if time.monotonic() > deadline:
                raise DemoError(f"{await self._in_use()} connections are still counted")
            await asyncio.sleep(0.01)

    async def _wait_for_room(self, stack: contextlib.AsyncExitStack) -> float:
        """When the first connection is served again."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if await stack.enter_async_context(self.client()):
                return time.monotonic()
        raise DemoError("no place came back")

    def close(self) -> None:
        """End everything."""
        for client in self._clients.values():
            client.kill()
            client.wait()
        self.proxy.terminate()
        try:
            self.proxy.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.proxy.kill()
            self.proxy.wait()


async def _answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, greeting: bytes) -> bool:
    """Whether the upstream is there."""
    try:
        writer.write(greeting)
        line = await asyncio.wait_for(reader.readline(), PATIENCE)
        writer.write(line)
        return bool(line)
    except OSError:
        return False


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def enter_namespace() -> None:
    """A network namespace of its own with `lo` up. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="demo.limits", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--clients", type=int, default=8, help="client processes, each with several connections")
    parser.add_argument("--limit", type=int, default=12)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args(arguments)
    report = Report()
    if os.geteuid() == 0:
        enter_namespace()
    report.note(f"seed {options.seed}")
    with tempfile.TemporaryDirectory(prefix="limits") as folder:
        soak = Soak(options, report, Path(folder))
        try:
            asyncio.run(soak.run())
        except DemoError as error:
            report.expect(False, str(error))
        except KeyboardInterrupt:
            return 130
        finally:
            soak.close()
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
