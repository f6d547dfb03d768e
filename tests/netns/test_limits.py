"""Whose limit a connection counts for that is handed to the listener of its original destination: as Envoy does it."""

from __future__ import annotations

import http.client
import json
import os
import socket
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from tests.conformance.proxies import ENVOY
from tests.netns.netns import DEADLINE, Namespace, require, require_python

PROXY_UID = 1337
ADDRESS = "10.78.0.1"
ADMIN, CATCH_ALL, TARGET, FREE = 15000, 15001, 9000, 9001
TYPES = "type.googleapis.com/envoy.extensions"
ORIGINAL_DST = {"name": "original_dst",
                "typed_config": {"@type": f"{TYPES}.filters.listener.original_dst.v3.OriginalDst"}}
LIMITED = ("target", "catch_all")
REQUEST = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


def listener(name: str, host: str, port: int, **more: object) -> dict[str, object]:
    """A listener that answers with its name."""
    route = {"match": {"prefix": "/"}, "direct_response": {"status": 200, "body": {"inline_string": name}}}
    router = {"name": "router", "typed_config": {"@type": f"{TYPES}.filters.http.router.v3.Router"}}
    manager = {"@type": f"{TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager",
               "stat_prefix": name, "http_filters": [router],
               "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]}}
    return {"name": name, "address": {"socket_address": {"address": host, "port_value": port}},
            "filter_chains": [{"filters": [{"name": "hcm", "typed_config": manager}]}], **more}


def config(limits: dict[str, int]) -> dict[str, object]:
    """Everything is caught; connections to TARGET are handed to a listener of their own."""
    keys = {f"envoy.resource_limits.listener.{name}.connection_limit": limit for name, limit in limits.items()}
    return {
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": ADMIN}}},
        "layered_runtime": {"layers": [{"name": "static", "static_layer": keys}]},
        "static_resources": {"listeners": [
            listener("catch_all", "0.0.0.0", CATCH_ALL, use_original_dst=True, listener_filters=[ORIGINAL_DST]),
            listener("target", ADDRESS, TARGET, bind_to_port=False)]},
    }


class World:
    """One proxy that gets everything."""

    def __init__(self, command: list[str], limits: dict[str, int], folder: Path) -> None:
        path = folder / "proxy.json"
        path.write_text(json.dumps(config(limits)))
        folder.chmod(0o777)
        self.namespace = Namespace()
        self.namespace.interface("eth0", [f"{ADDRESS}/24"])
        for rule in (f"-A OUTPUT -m owner --uid-owner {PROXY_UID} -j RETURN",
                     f"-A OUTPUT -p tcp --dport {ADMIN} -j RETURN",
                     f"-A OUTPUT -p tcp -j REDIRECT --to-ports {CATCH_ALL}"):
            done = self.namespace.run(["iptables", "-t", "nat", *rule.split()])
            assert done.returncode == 0, done.stderr
        self.process = self.namespace.start([*command, "-c", str(path), "--concurrency", "2", "-l", "error"],
                                            uid=PROXY_UID)
        deadline = time.monotonic() + DEADLINE
        while not self.live():
            assert time.monotonic() < deadline and self.process.poll() is None, self.process.communicate()
            time.sleep(0.01)

    def live(self) -> bool:
        try:
            return self.admin("/ready") == "LIVE\n"
        except OSError:
            return False

    def admin(self, path: str) -> str:
        with self.namespace.entered():
            connection = http.client.HTTPConnection("127.0.0.1", ADMIN, timeout=DEADLINE)
            connection.connect()
        with closing(connection):
            connection.request("GET", path)
            return connection.getresponse().read().decode()

    def counts(self) -> list[str]:
        """What was refused, what is open."""
        pattern = r"^listener\.[0-9._]*\.downstream_cx_(overflow|active|total)$"
        return self.admin(f"/stats?filter={pattern}").splitlines()

    def nobody_left(self) -> None:
        """Wait until every connection's end has been noticed."""
        deadline = time.monotonic() + DEADLINE
        while any(not line.endswith(": 0") for line in self.counts() if "_active" in line):
            assert time.monotonic() < deadline, self.counts()
            time.sleep(0.01)

    def connect(self, port: int) -> socket.socket:
        with self.namespace.entered():
            return socket.create_connection((ADDRESS, port), DEADLINE)

    def close(self) -> None:
        self.process.terminate()
        self.process.communicate(timeout=DEADLINE)
        self.namespace.close()


def served(sock: socket.socket) -> str:
    """The name of the listener that answers, or nothing."""
    try:
        sock.sendall(REQUEST)
        return sock.recv(4096).decode().rpartition("\r\n")[2]
    except (ConnectionResetError, BrokenPipeError):
        return ""


def story(command: list[str], limits: dict[str, int], folder: Path) -> list[object]:
    """Connections to both listeners, and what becomes of them."""
    world = World(command, limits, folder)
    told: list[object] = []
    held = []
    try:
        for port in (TARGET, TARGET, FREE, FREE, TARGET):
            sock = world.connect(port)
            held.append(sock)
            told.append((port, served(sock)))
        told.append(world.counts())
        for sock in held:
            sock.close()
        for port in (FREE, TARGET):
            world.nobody_left()
            with world.connect(port) as sock:
                told.append((port, served(sock)))
    finally:
        for sock in held:
            sock.close()
        world.close()
    return told


@pytest.mark.parametrize("limits", [{"catch_all": 1}, {"target": 1}, {"catch_all": 1, "target": 1}],
                         ids=lambda limits: "-".join(limits))
def test_hand_off(limits: dict[str, int], public_tmp_path: Path) -> None:
    require()
    require_python(PROXY_UID)
    assert os.access(ENVOY, os.X_OK)
    theirs = story([str(ENVOY), "--base-id", str(os.getpid())], limits, public_tmp_path)
    ours = story([sys.executable, "-m", "proxy"], limits, public_tmp_path)
    assert ours == theirs
    assert (FREE, "catch_all") in ours and (TARGET, "target") in ours
    assert ((FREE, "") in ours) == ("catch_all" in limits)
