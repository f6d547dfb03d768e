"""Connection limits of a whole proxy: several workers, some of them killed, changes while it works."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.e2e.proxy_process import CONFIG, PATIENCE, ROOT, ProxyProcess, wait_for

pytestmark = pytest.mark.e2e

GLOBAL = "overload.global_downstream_max_connections"
OWN = "envoy.resource_limits.listener.main.connection_limit"
LAYERS = f"""
layered_runtime:
  layers: [{{name: static, static_layer: {{{GLOBAL}: 6}}}}, {{name: admin, admin_layer: {{}}}}]
"""


class Client:
    """A connection that asks again and again."""

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), PATIENCE)
        self.served = self.ask()

    def ask(self) -> bool:
        """Whether a request is answered."""
        try:
            self.sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            return self.sock.recv(4096).startswith(b"HTTP/1.1 200")
        except (ConnectionResetError, BrokenPipeError):
            return False

    def close(self) -> None:
        self.sock.close()

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[ProxyProcess]:
    with closing(ProxyProcess(tmp_path, CONFIG + LAYERS)) as found:
        yield found


Come = Callable[[int], list[Client]]


@pytest.fixture
def come(proxy: ProxyProcess) -> Iterator[Come]:
    """So many clients, one after the other."""
    everybody: list[Client] = []

    def new(number: int) -> list[Client]:
        found = [Client(proxy.port) for _ in range(number)]
        everybody.extend(found)
        return found

    yield new
    for client in everybody:
        client.close()


def served(found: list[Client]) -> int:
    return sum(client.served for client in found)


def row(proxy: ProxyProcess, kind: str) -> dict[str, object]:
    """What /limits says of one limit."""
    rows = json.loads(proxy.admin("/limits?format=json")[1])["limits"]
    return next(each for each in rows if each["kind"] == kind)


def modify(proxy: ProxyProcess, query: str) -> None:
    assert proxy.admin(f"/runtime_modify?{query}", "POST") == (200, "OK\n")


def test_a_limit_over_two_workers(proxy: ProxyProcess, come: Come) -> None:
    proxy.start()
    assert f"deprecated runtime key {GLOBAL}, consider switching to `envoy.resource_monitors." in proxy.log
    assert "There is no configured limit to the number of allowed active downstream connections." in proxy.log
    found = come(9)
    assert [client.served for client in found] == [True] * 6 + [False] * 3
    found[0].close()
    found[1].reset()
    wait_for("both to be noticed", lambda: row(proxy, "global")["in_use"] == 4)
    more = come(4)
    assert served(more) == 2
    shown = row(proxy, "global")
    assert [shown[name] for name in ("source", "limit", "in_use", "highest", "refused")] == [GLOBAL, 6, 6, 6, 5]
    assert shown["clients"] == [{"address": "127.0.0.1", "connections": 6}]


def test_limits_that_change(proxy: ProxyProcess, come: Come) -> None:
    proxy.start()
    found = come(6)
    modify(proxy, f"{GLOBAL}=3&{OWN}=5")
    assert served(come(2)) == 0
    assert all(client.ask() for client in found), "nobody is cut"
    for client in found[:4]:
        client.close()
    wait_for("four to be noticed", lambda: row(proxy, "listener")["in_use"] == 2)
    more = come(3)
    assert served(more) == 1
    modify(proxy, f"{GLOBAL}=")  # the static layer's value again
    more += come(4)
    assert served(more) == 3, "the listener's own limit is the lower one now"
    assert (row(proxy, "listener")["source"], row(proxy, "listener")["limit"]) == (OWN, 5)
    modify(proxy, f"{OWN}=")
    more += come(3)
    assert served(more) == 4, "six with the two that stayed"
    assert row(proxy, "listener")["limit"] is None


def test_places_of_a_worker_that_is_killed(proxy: ProxyProcess, come: Come) -> None:
    proxy.start()
    modify(proxy, f"{GLOBAL}=20")
    found = come(20)
    assert served(found) == 20
    before = proxy.workers()
    os.kill(before[0], signal.SIGKILL)
    wait_for("another worker", lambda: len(proxy.workers()) == 2 and before[0] not in proxy.workers())
    left = [client for client in found if client.ask()]
    assert row(proxy, "global")["in_use"] == len(left)
    wait_for("the new worker to accept", lambda: "is back" in proxy.log)
    more = come(25)
    assert len(left) + served(more) == 20
    modify(proxy, f"{GLOBAL}=10")
    pid = proxy.workers()[0]
    os.kill(pid, signal.SIGKILL)
    wait_for("another worker", lambda: proxy.log.count("is back") == 2)
    left = [client for client in [*left, *more] if client.served and client.ask()]
    again = come(20)
    assert len(left) + served(again) == max(10, len(left)), "what it owed is settled as well"


def test_nobody_is_served_too_much() -> None:
    """A few seconds of what `make soak` does for a minute, in a network namespace where that is possible."""
    command = [sys.executable, "-m", "demo.limits", "--seconds", "5", "--clients", "4", "--seed", "7"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
