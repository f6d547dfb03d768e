"""The agent and the proxy's DNS."""

import asyncio
import os

import pytest

from agent.child import Child
from agent.child_command import ChildCommand

PYTHON = "/usr/bin/python3"  # which uid 1337 can execute, wherever the tests' own interpreter lies
BIND_53 = """
import os, socket
assert os.getuid() == os.getgid() == 1337
assert os.environ["DNS_LISTEN"] == "127.0.0.77:53"
socket.socket(type=socket.SOCK_DGRAM).bind(("127.0.0.77", 53))
status = dict(line.split(":\\t") for line in open("/proc/self/status").read().splitlines())
assert int(status["CapEff"], 16) == 1 << 10, status["CapEff"]
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_proxy_that_is_not_root_binds_port_53_and_can_do_nothing_else() -> None:
    async def run() -> str:
        command = ChildCommand((PYTHON, "-c", BIND_53), (), {"DNS_LISTEN": "127.0.0.77:53"})
        child = Child.start(command, asyncio.get_running_loop(), 1337)
        try:
            return f"{await child.exited} {child.last_lines()}"
        finally:
            child.close()

    assert asyncio.run(run()) == "exited with status 0 []"
