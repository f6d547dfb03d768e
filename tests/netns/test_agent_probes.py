"""Probes of the application behind the real capture rules: those of the agent pass, other calls of uid 1337 do not."""

from __future__ import annotations

import select
import socket

import pytest

from .netns import DEADLINE, Namespace, require, require_python

pytestmark = pytest.mark.netns

POD = "10.9.9.9"
APPLICATION, PROXY_IN = 8080, 15006
PROXY_UID = 1337

PROBE = """
import asyncio, sys
from agent.status.app_probes import AppProbes
from agent.status.http_server import Request
from agent.status.probe_documents import parse_app_probers
from agent.status.prober import Prober

path = "/app-health/app/livez"
probes = parse_app_probers('{"%s": {"tcpSocket": {"port": 8080}, "timeoutSeconds": 10}}' % path)
answers = AppProbes(probes, Prober(), host=sys.argv[1], status_port=lambda: 15020)
print(asyncio.run(answers.answer(Request("GET", path, ""))).status)
"""

PLAIN = """
import socket, sys
with socket.create_connection((sys.argv[1], 8080), timeout=10) as connection:
    print(connection.getpeername()[1])
"""


@pytest.mark.parametrize(("code", "arrives"), [(PROBE, "application"), (PLAIN, "proxy")])
def test_a_probe_reaches_the_application_itself(code: str, arrives: str) -> None:
    require()
    require_python(PROXY_UID)
    with Namespace() as pod:
        pod.ip("link", "set", "lo", "up")
        pod.interface("eth0", [f"{POD}/24"])
        done = pod.python("-m", "init")
        assert done.returncode == 0, done.stderr
        with pod.entered():
            listeners = {
                "application": socket.create_server((POD, APPLICATION)),
                "proxy": socket.create_server(("0.0.0.0", PROXY_IN)),
            }
        done = pod.python("-c", code, POD, uid=PROXY_UID)
        assert done.stdout in ("200\n", "8080\n"), done.stderr
        ready, _, _ = select.select(list(listeners.values()), [], [], DEADLINE)
        assert [name for name, listener in listeners.items() if listener in ready] == [arrives]
        with ready[0].accept()[0] as connection:
            assert (connection.getpeername()[0] == "127.0.0.6") is (arrives == "application")
        for listener in listeners.values():
            listener.close()
