"""A proxy in a control group with a real limit: clients that never read fill its buffers until overload stops them."""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.overload import cgroup
from tests.conftest import CI
from tests.e2e.proxy_process import CONFIG, PATIENCE, ProxyProcess, free_port, wait_for

ROOM = 80 << 20
"""Bytes above what the proxy needs by itself."""
CLIENTS = 400
"""Each of them fills a buffer of 1 MiB (per_connection_buffer_limit_bytes): far more than there is room for."""
_EXTENSIONS = "type.googleapis.com/envoy.extensions"
TUNNEL = f"""\
  clusters:
  - name: flood
    connect_timeout: 5s
    load_assignment:
      cluster_name: flood
      endpoints:
      - lb_endpoints:
        - endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: FLOOD}}}}}}
  listeners:
  - name: tunnel
    address: {{socket_address: {{address: 127.0.0.1, port_value: TUNNEL}}}}
    filter_chains:
    - filters:
      - name: tcp
        typed_config:
          "@type": {_EXTENSIONS}.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: tunnel
          cluster: flood
"""
OVERLOAD = f"""\
overload_manager:
  refresh_interval: 0.02s
  resource_monitors:
  - name: memory
    typed_config: {{"@type": {_EXTENSIONS}.resource_monitors.cgroup_memory.v3.CgroupMemoryConfig}}
  actions:
  - name: envoy.overload_actions.reject_incoming_connections
    triggers: [{{name: memory, threshold: {{value: 0.85}}}}]
  - name: envoy.overload_actions.shrink_heap
    triggers: [{{name: memory, threshold: {{value: 0.85}}}}]
"""


class Group:
    """A control group for memory below our own, of either version."""

    def __init__(self, directory: Path, version: int) -> None:
        self.directory = directory
        self._limit, self._usage = (
            ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes"))
        directory.mkdir()

    @property
    def usage(self) -> int:
        return int((self.directory / self._usage).read_text())

    def limit(self, size: int) -> None:
        (self.directory / self._limit).write_text(str(size))


@pytest.fixture
def group() -> Iterator[Group]:
    for version, control in ((1, "memory.limit_in_bytes"), (2, "memory.max")):
        own = cgroup.find(version, "memory", control)
        if own is not None and os.access(own, os.W_OK) and (
                version == 1 or "memory" in (own / "cgroup.subtree_control").read_text().split()):
            made = Group(own / f"pysidecar-test-{os.getpid()}", version)
            yield made
            processes = made.directory / "cgroup.procs"
            wait_for("the control group to be empty", lambda processes=processes: not processes.read_text())
            made.directory.rmdir()
            return
    why = "no memory controller in which this user may make a control group"
    if CI:
        pytest.xfail(why)  # nothing that a privilege would change
    pytest.skip(why)


class Flood:
    """An upstream that sends to whoever connects as much as he takes, without end."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port: int = self._listening.getsockname()[1]
        self._selector = selectors.DefaultSelector()
        self._stop, stopped = os.pipe()[::-1]
        self._stopped = stopped
        self._listening.setblocking(False)
        self._selector.register(self._listening, selectors.EVENT_READ)
        self._selector.register(stopped, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        data = bytes(65536)
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._listening:
                    with contextlib.suppress(BlockingIOError):
                        sock, _ = self._listening.accept()
                        sock.setblocking(False)
                        self._selector.register(sock, selectors.EVENT_WRITE)
                elif key.fd == self._stopped:
                    return
                else:
                    sock = key.fileobj  # type: ignore[assignment]
                    try:
                        sock.send(data)
                    except BlockingIOError:
                        pass
                    except OSError:
                        self._selector.unregister(sock)
                        sock.close()

    def close(self) -> None:
        os.write(self._stop, b"x")
        self._thread.join(PATIENCE)
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
        self._selector.close()
        os.close(self._stop)
        os.close(self._stopped)


def test_a_real_limit_of_memory(tmp_path: Path, group: Group) -> None:
    flood, port = Flood(), free_port()
    config = CONFIG.replace("  listeners:\n", TUNNEL.replace("FLOOD", str(flood.port)).replace("TUNNEL", str(port)), 1)
    proxy = ProxyProcess(tmp_path, config + OVERLOAD)
    clients: list[socket.socket] = []
    try:
        proxy.start(workers=1, within=group.directory / "cgroup.procs")
        workers = proxy.workers()
        group.limit(group.usage + ROOM)
        refused = 0
        for _ in range(CLIENTS):
            client = socket.create_connection(("127.0.0.1", port), PATIENCE)
            clients.append(client)
            refused += not client.recv(1)  # one byte, and no more
            # An answer of main's: it has had its turn to look at the memory. On a busy machine clients could fill what
            # is left between two looks, and the kernel would end the worker.
            proxy.stat("overload.memory.pressure")
            if refused == 20:
                break
        assert refused == 20, "the clients found room for everything"
        assert proxy.stat(f"listener.127.0.0.1_{port}.downstream_cx_overload_reject") == 20
        assert proxy.stat("overload.memory.pressure") >= 80
        assert proxy.stat("overload.envoy.overload_actions.reject_incoming_connections.active") == 1
        open_now = proxy.stat("tcp.tunnel.downstream_cx_total")
        assert 20 < open_now < CLIENTS
        # Nobody was killed for want of memory, and memory that is not needed any more goes back.
        for client in clients:
            client.close()
        wait_for("room", lambda: proxy.stat("overload.envoy.overload_actions.reject_incoming_connections.active") == 0)
        assert proxy.get() == 200
        assert proxy.workers() == workers
        assert "Failed to update resource" not in proxy.log
    finally:
        for client in clients:
            client.close()
        proxy.close()
        flood.close()
