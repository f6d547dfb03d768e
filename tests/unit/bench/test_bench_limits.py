"""What `python -m bench.limits` compares."""

from __future__ import annotations

import json
import os
import socket
import threading
import time

import pytest

from bench import config, limits
from bench.bursts import BurstError, burst
from bench.process import cpu_nanoseconds

TEMPLATE = json.loads(config.TEMPLATE.read_text(encoding="utf-8"))
PORTS = config.Ports(1, 2, 3)


def listeners(limit: int | None, exchanged: bool) -> tuple[dict[str, object], ...]:
    document = config.sidecar(limits.with_twin(TEMPLATE, limit, exchanged), PORTS, 4, None)
    by_port = {one["address"]["socket_address"]["port_value"]: one for one in document["static_resources"]["listeners"]}
    return by_port[1], by_port[2]


@pytest.mark.parametrize("exchanged", [False, True])
def test_listeners_differ_in_the_exemption_alone(exchanged: bool) -> None:
    first, second = listeners(7, exchanged)
    free, limited = (first, second) if exchanged else (second, first)
    assert free.pop("ignore_global_conn_limit") is True
    for key in ("name", "address"):
        assert limited.pop(key) != free.pop(key)
    assert limited == free


def test_the_limit() -> None:
    (monitor,) = limits.with_twin(TEMPLATE, 7, False)["overload_manager"]["resource_monitors"]
    assert monitor["typed_config"]["max_active_downstream_connections"] == 7
    assert "overload_manager" not in limits.with_twin(TEMPLATE, None, False)


def test_what_cannot_be_resolved_is_not_judged() -> None:
    assert limits.verdict([1.01] * 9) is True
    assert limits.verdict([1.03] * 8 + [0.9]) is False
    assert limits.verdict([1.03] * 5 + [1.0] * 4) is None
    assert limits.verdict([1.01] * 5) is None


def serve(answer: bytes, times: int) -> int:
    """A port where so many connections get the same answer."""
    listening = socket.create_server(("127.0.0.1", 0))

    def work() -> None:
        with listening:
            for _ in range(times):
                with listening.accept()[0] as sock:
                    assert sock.recv(1000) == b"GET"
                    sock.sendall(answer)

    threading.Thread(target=work, daemon=True).start()
    port: int = listening.getsockname()[1]
    return port


def test_a_burst() -> None:
    burst(serve(b"HTTP/1.1 200 OK\r\n\r\nbody", 20), b"GET", 20, 3, 4)


@pytest.mark.parametrize("answer", [b"HTTP/1.1 503 No\r\n\r\nbody", b"HTTP/1.1 200 OK\r\n", b""])
def test_a_burst_that_is_not_served(answer: bytes) -> None:
    with pytest.raises(BurstError, match="the answer begins with"):
        burst(serve(answer, 1), b"GET", 1, 1, 100)


def test_processor_time() -> None:
    before = cpu_nanoseconds(os.getpid())
    end = time.process_time() + 0.05  # the kernel notes it at its next tick
    while time.process_time() < end:
        pass
    assert cpu_nanoseconds(os.getpid()) > before
    assert cpu_nanoseconds(2**22 - 1) == 0
