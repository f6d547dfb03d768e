"""Connections that kernel rules redirect to the proxy: original destination, hand-off to other listeners, loops."""

from __future__ import annotations

import http.client
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.netns.netns import DEADLINE, Namespace, require, require_python

PROXY_UID = 1337
V4, V6 = "10.77.0.1", "fd00:77::1"
ADMIN, CATCH_ALL = 15000, 15001
LOG = ("%FILTER_CHAIN_NAME% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_DIRECT_LOCAL_ADDRESS% %UPSTREAM_HOST% "
       "%RESPONSE_FLAGS%\n")

TYPES = "type.googleapis.com/envoy.extensions"


def listener_filter(name: str, message: str) -> dict[str, object]:
    return {"name": f"envoy.filters.listener.{name}",
            "typed_config": {"@type": f"{TYPES}.filters.listener.{name}.v3.{message}"}}


ORIGINAL_DST = listener_filter("original_dst", "OriginalDst")
HTTP_INSPECTOR = listener_filter("http_inspector", "HttpInspector")


class Sidecar:
    """A proxy behind REDIRECT rules in a namespace that also has the servers and the client."""

    def __init__(self, folder: Path) -> None:
        self.namespace = Namespace()
        self._log = folder / "access.log"
        self._config = folder / "proxy.json"
        self._config.write_text(json.dumps(self._bootstrap()))
        folder.chmod(0o777)
        self.namespace.interface("eth0", [f"{V4}/24", f"{V6}/64"])
        for program in ("iptables", "ip6tables"):
            for rule in (
                f"-A OUTPUT -m owner --uid-owner {PROXY_UID} -j RETURN",
                f"-A OUTPUT -p tcp --dport {CATCH_ALL} -j RETURN",
                f"-A OUTPUT -p tcp --dport {ADMIN} -j RETURN",
                f"-A OUTPUT -p tcp -j REDIRECT --to-ports {CATCH_ALL}",
            ):
                done = self.namespace.run([program, "-t", "nat", *rule.split()])
                assert done.returncode == 0, done.stderr
        self.process = self.namespace.start(
            [sys.executable, "-m", "proxy", "-c", str(self._config), "--concurrency", "2", "-l", "warning",
             "--file-flush-interval-msec", "20"], uid=PROXY_UID)
        self.wait_until(lambda: self.process.poll() is not None or self._ready())
        assert self.process.poll() is None, self.process.communicate()

    def _bootstrap(self) -> dict[str, object]:
        access_log = [{
            "name": "envoy.access_loggers.file",
            "typed_config": {"@type": f"{TYPES}.access_loggers.file.v3.FileAccessLog", "path": str(self._log),
                             "log_format": {"text_format_source": {"inline_string": LOG}}},
        }]

        def chain(name: str, cluster: str, **match: object) -> dict[str, object]:
            return {"name": name, "filter_chain_match": match, "filters": [{
                "name": "envoy.filters.network.tcp_proxy",
                "typed_config": {"@type": f"{TYPES}.filters.network.tcp_proxy.v3.TcpProxy", "stat_prefix": name,
                                 "cluster": cluster, "access_log": access_log},
            }]}

        def listener(name: str, host: str, port: int, chains: list[dict[str, object]],
                     **more: object) -> dict[str, object]:
            address = {"socket_address": {"address": host, "port_value": port}}
            return {"name": name, "address": address, "filter_chains": chains, **more}

        def catch_all(name: str, host: str) -> dict[str, object]:
            return listener(name, host, CATCH_ALL, [
                chain(f"{name}-loop", "black_hole", destination_port=CATCH_ALL),
                chain(f"{name}-passthrough", "passthrough"),
            ], use_original_dst=True)

        listeners = [catch_all("v4", "0.0.0.0"), catch_all("v6", "::")]
        for family, wildcard, address in (("v4", "0.0.0.0", V4), ("v6", "::", V6)):
            listeners += [
                listener(f"{family}-exact", address, 9000, [chain(f"{family}-exact", "passthrough")],
                         bind_to_port=False, use_original_dst=True),
                listener(f"{family}-wildcard", wildcard, 9000, [chain(f"{family}-wildcard", "passthrough")],
                         bind_to_port=False),
                listener(f"{family}-sniffing", wildcard, 9002, [
                    chain(f"{family}-http", "passthrough", application_protocols=["http/1.1"]),
                    chain(f"{family}-other", "passthrough"),
                ], bind_to_port=False, listener_filters=[HTTP_INSPECTOR]),
            ]
        return {
            "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": ADMIN}}},
            "static_resources": {
                "listeners": listeners,
                "clusters": [
                    {"name": "passthrough", "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED"},
                    {"name": "black_hole", "type": "STATIC"},
                ],
            },
        }

    def wait_until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < deadline, "it did not happen in time"
            time.sleep(0.01)

    def get(self, path: str) -> str:
        with self.namespace.entered():
            connection = http.client.HTTPConnection("127.0.0.1", ADMIN, timeout=DEADLINE)
            connection.connect()
        with closing(connection):
            connection.request("GET", path)
            response = connection.getresponse()
            assert response.status == 200
            return response.read().decode()

    def _ready(self) -> bool:
        try:
            return self.get("/ready") == "LIVE\n"
        except (OSError, AssertionError):
            return False

    def statistic(self, name: str) -> int:
        for line in self.get("/stats").splitlines():
            if line.startswith(f"{name}: "):
                return int(line.rpartition(" ")[2])
        raise KeyError(name)

    def lines(self, count: int) -> list[str]:
        """The access log once it has so many lines."""
        self.wait_until(lambda: self._log.exists() and len(self._log.read_text().splitlines()) >= count)
        return self._log.read_text().splitlines()

    def exchange(self, address: str, port: int, data: bytes) -> bytes:
        """Send, half-close, and read to the end, as a program that knows nothing of the proxy."""
        with self.namespace.entered():
            sock = socket.create_connection((address, port), DEADLINE)
        with sock:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            answer = b""
            while piece := sock.recv(65536):
                answer += piece
            return answer

    def close(self) -> None:
        self.process.terminate()
        _, errors = self.process.communicate(timeout=DEADLINE)
        self.namespace.close()
        assert "Traceback" not in errors, errors


class Echo:
    """A server in the namespace: returns who it is and what was sent to it, when the client has finished."""

    def __init__(self, namespace: Namespace, address: str, port: int) -> None:
        with namespace.entered():
            self._sock = socket.create_server((address, port),
                                              family=socket.AF_INET6 if ":" in address else socket.AF_INET)
        self._text = f"{address} {port} ".encode()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._sock.accept()
            except OSError:
                return
            with sock:
                sock.settimeout(DEADLINE)
                data = b""
                while piece := sock.recv(65536):
                    data += piece
                sock.sendall(self._text + data)

    def close(self) -> None:
        self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
        self._thread.join(DEADLINE)


@pytest.fixture
def sidecar(public_tmp_path: Path) -> Iterator[Sidecar]:
    require()
    require_python(PROXY_UID)
    one = Sidecar(public_tmp_path)
    yield one
    one.close()


@pytest.fixture(params=[("v4", V4), ("v6", V6)], ids=["v4", "v6"])
def family(request: pytest.FixtureRequest) -> tuple[str, str]:
    return request.param  # type: ignore[no-any-return]


def shown(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def stat_name(address: str, port: int) -> str:
    return f"listener.{shown(address, port)}".replace(":", "_")


def test_the_way_follows_the_original_destination(sidecar: Sidecar, family: tuple[str, str]) -> None:
    name, address = family
    wildcard = "0.0.0.0" if name == "v4" else "::"
    other = "127.0.0.2" if name == "v4" else "::1"
    direct = shown("127.0.0.1" if name == "v4" else "::1", CATCH_ALL)
    cases = [
        # (client connects to, data, chain, listener that is charged)
        (address, 9000, b"x", f"{name}-exact", stat_name(address, 9000)),
        (other, 9000, b"x", f"{name}-wildcard", stat_name(wildcard, 9000)),
        (address, 9001, b"x", f"{name}-passthrough", stat_name(wildcard, CATCH_ALL)),
        (address, 9002, b"GET / HTTP/1.1\r\n\r\n", f"{name}-http", stat_name(wildcard, 9002)),
        (address, 9002, b"\x00\x01", f"{name}-other", stat_name(wildcard, 9002)),
    ]
    servers = [Echo(sidecar.namespace, *where) for where in dict.fromkeys((c[0], c[1]) for c in cases)]
    try:
        for number, (host, port, data, chain, charged) in enumerate(cases):
            before = sidecar.statistic(f"{charged}.downstream_cx_total")
            assert sidecar.exchange(host, port, data) == f"{host} {port} ".encode() + data
            target = shown(host, port)
            assert sidecar.lines(number + 1)[number] == f"{chain} {target} {direct} {target} -"
            assert sidecar.statistic(f"{charged}.downstream_cx_total") == before + 1
            sidecar.wait_until(lambda charged=charged: sidecar.statistic(f"{charged}.downstream_cx_active") == 0)
    finally:
        for server in servers:
            server.close()


def test_a_connection_to_the_catch_all_port_itself_ends_in_the_black_hole(
    sidecar: Sidecar, family: tuple[str, str]
) -> None:
    name, address = family
    assert sidecar.exchange(address, CATCH_ALL, b"") == b""
    assert sidecar.lines(1) == [f"{name}-loop {shown(address, CATCH_ALL)} {shown(address, CATCH_ALL)} - UH"]
