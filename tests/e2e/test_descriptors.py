"""A worker without descriptors: who is connected goes on, who is not waits, and nothing spins."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.proxy_process import CONFIG, PATIENCE, ProxyProcess, wait_for

DESCRIPTORS = 256
RESERVED = DESCRIPTORS // 8
CLIENTS = 300
ROUTE = "              - match: {prefix: /}\n"
ROUTED = "              - {match: {prefix: /up}, route: {cluster: up}}\n" + ROUTE
CLUSTER = """\
  clusters:
  - name: up
    connect_timeout: 5s
    load_assignment:
      cluster_name: up
      endpoints:
      - lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: UP}}}}]
"""
REQUEST = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
OBSERVED_S = 2.0
MOST_TICKS = 40
"""Of 200 in that time (USER_HZ is 100). A worker that spins takes them all, one that waits about one."""


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[ProxyProcess]:
    with socket.create_server(("127.0.0.1", 0)) as upstream:
        thread = threading.Thread(target=answer_once, args=(upstream,), daemon=True)
        thread.start()
        port = str(upstream.getsockname()[1])
        proxy = ProxyProcess(tmp_path, CONFIG.replace(ROUTE, ROUTED) + CLUSTER.replace("UP", port))
        yield proxy
        proxy.close()
        thread.join(PATIENCE)


def answer_once(upstream: socket.socket) -> None:
    sock, _ = upstream.accept()
    with sock:
        while sock.recv(4096):
            sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello")


def connected(proxy: ProxyProcess) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), PATIENCE)


def ask(client: socket.socket, path: bytes = b"/") -> bytes:
    """One request on a connection that stays open."""
    client.sendall(REQUEST.replace(b"/", path, 1))
    answer = b""
    while not answer.endswith(b"hello"):
        piece = client.recv(4096)
        assert piece, answer
        answer += piece
    return answer


def ticks(pid: int) -> int:
    """Processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_out_of_descriptors(proxy: ProxyProcess) -> None:
    proxy.start(workers=1, descriptors=DESCRIPTORS)
    (worker,) = proxy.workers()
    with contextlib.ExitStack() as clients:
        old = clients.enter_context(connected(proxy))
        assert ask(old).startswith(b"HTTP/1.1 200 OK\r\n")
        others = [clients.enter_context(connected(proxy)) for _ in range(CLIENTS)]
        wait_for("the worker to run out", lambda: "only reserved descriptors are left" in proxy.log)
        wait_for("them to be in use", lambda: len(os.listdir(f"/proc/{worker}/fd")) >= DESCRIPTORS - RESERVED)
        served = proxy.stat("http.in.downstream_cx_active")
        assert DESCRIPTORS - 80 < served < DESCRIPTORS - RESERVED

        # Who is connected does not notice, the operator gets in, and the rest costs nothing.
        for _ in range(20):
            assert ask(old).startswith(b"HTTP/1.1 200 OK\r\n")
        assert ask(old, b"/up").endswith(b"hello")  # needs a descriptor for its upstream
        assert proxy.admin("/ready") == (200, "LIVE\n")
        before = ticks(worker)
        assert select.select([old], [], [], OBSERVED_S) == ([], [], [])
        assert ticks(worker) - before < MOST_TICKS * OBSERVED_S / 2

        # Some leave: those that wait are served, without anybody having to do anything.
        waiting = others[-20:]
        for client in waiting:
            client.sendall(REQUEST)
        assert select.select(waiting, [], [], 0.0)[0] == []
        for client in others[:CLIENTS - DESCRIPTORS + 100]:
            client.close()
        for client in waiting:
            assert client.recv(4096).startswith(b"HTTP/1.1 200 OK\r\n")
        assert ask(old).startswith(b"HTTP/1.1 200 OK\r\n")
    wait_for("all to be gone", lambda: not proxy.stat("http.in.downstream_cx_active"))
    assert proxy.get() == 200
    assert proxy.log.count("new connections wait") == 1, proxy.log


TCP = """\
admin: {address: {socket_address: {address: 127.0.0.1, port_value: ADMIN}}}
static_resources:
  listeners:
  - name: main
    address: {socket_address: {address: 127.0.0.1, port_value: MAIN}}
    filter_chains:
    - filters:
      - name: tcp
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: raw
          cluster: up
""" + CLUSTER


def test_connections_that_need_a_descriptor_each_for_their_upstream(tmp_path: Path) -> None:
    """What is accepted is served: nobody's upstream connection finds that there is no descriptor left."""
    with contextlib.ExitStack() as everything:
        upstream = everything.enter_context(socket.create_server(("127.0.0.1", 0), backlog=2 * CLIENTS))
        proxy = ProxyProcess(tmp_path, TCP.replace("UP", str(upstream.getsockname()[1])))
        everything.callback(proxy.close)
        proxy.start(workers=1, descriptors=DESCRIPTORS)
        clients = [connected(proxy) for _ in range(CLIENTS)]
        for client in clients:
            everything.callback(client.close)
        wait_for("the worker to run out", lambda: "only reserved descriptors are left" in proxy.log)
        served = proxy.stat("tcp.raw.downstream_cx_total")
        assert DESCRIPTORS - 80 < 2 * served < DESCRIPTORS
        for client in clients[:served // 2]:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # RST ends both sides
            client.close()
        # They leave two descriptors each, which are for a client and its upstream connection again.
        wait_for("others to be served", lambda: proxy.stat("tcp.raw.downstream_cx_total") >= served + served // 2)
        assert proxy.stat("cluster.up.upstream_cx_connect_fail") == 0
        assert proxy.log.count("new connections wait") == 1, proxy.log


def test_a_worker_that_cannot_be_forked(tmp_path: Path) -> None:
    proxy = ProxyProcess(tmp_path)
    try:
        proxy.start(workers=1)
        (worker,) = proxy.workers()
        limits = resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE, (3, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        os.kill(worker, signal.SIGKILL)
        wait_for("main to notice", lambda: "worker 0 cannot be forked: Too many open files" in proxy.log)
        resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE, limits)
        wait_for("the worker to be back", lambda: "worker 0 is back" in proxy.log)
        assert proxy.get() == 200
    finally:
        proxy.close()
