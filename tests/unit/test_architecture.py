"""docs/ARCHITECTURE.md tells the truth: its names exist, its steps are numbered without gaps, its limits have the
values that it gives, and the sections marked "Traced" name what a real data plane calls, in the order of the calls.
"""

from __future__ import annotations

import asyncio
import pkgutil
import re
import select
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import dns.message
import dns.rrset
import pytest

from proxy.config.load import load_bootstrap
from proxy.config.model import SocketAddress
from proxy.dataplane import DataPlane
from proxy.dns.name_table import parse_name_table
from proxy.dns.server import DnsServer
from proxy.dns.settings import DnsSettings, Listen
from proxy.dns.table import compile_table
from proxy.listener import listener_filters
from proxy.options import Options
from tests.unit.listener.plane import Client, Plane, Upstream, run, until

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs/ARCHITECTURE.md").read_text(encoding="utf-8")
NAME = re.compile(r"`((?:proxy|agent|init)(?:\.\w+)+)`")
FILE = re.compile(r"`((?:proxy|agent|init|tests|docs|scripts)/[\w./]*)`")
STEP = re.compile(r"(\d+)\. ")


@dataclass
class Step:
    """A numbered step. ``path`` is what is called in it: the names before its colon."""

    number: int
    text: str

    @property
    def path(self) -> list[str]:
        return NAME.findall(self.text.partition(":")[0])


def sections() -> dict[str, str]:
    """Heading -> text up to the next heading."""
    parts = re.split(r"^#{2,3} (.+)\n", DOCUMENT, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def lists(text: str) -> list[list[Step]]:
    """The numbered lists of a section. A line that is neither a step nor indented ends a list."""
    found: list[list[Step]] = [[]]
    for line in text.splitlines():
        if match := STEP.match(line):
            found[-1].append(Step(int(match[1]), line[match.end():]))
        elif line.startswith("   ") and found[-1]:
            found[-1][-1].text += " " + line.strip()
        elif line and found[-1]:
            found.append([])
    return [steps for steps in found if steps]


SECTIONS = sections()
NUMBERED = {f"{heading} ({at})": steps for heading, text in SECTIONS.items() for at, steps in enumerate(lists(text), 1)}
TRACED = [heading for heading, text in SECTIONS.items() if text.startswith("Traced.")]
LIMITS = dict(re.findall(r"^\| `([\w.]+)` \| ([\d,.]+) \|", DOCUMENT, flags=re.MULTILINE))


@pytest.mark.parametrize("name", sorted(set(NAME.findall(DOCUMENT))))
def test_every_name_exists(name: str) -> None:
    pkgutil.resolve_name(name)


@pytest.mark.parametrize("path", sorted(set(FILE.findall(DOCUMENT))))
def test_every_file_exists(path: str) -> None:
    assert (ROOT / path.replace("NAME.py", "")).exists()


@pytest.mark.parametrize("heading", NUMBERED)
def test_steps_are_consecutive_and_name_what_is_called(heading: str) -> None:
    steps = NUMBERED[heading]
    assert [step.number for step in steps] == list(range(1, len(steps) + 1))
    for step in steps:
        assert step.path, f"step {step.number} names nothing before its colon"
        assert all(callable(pkgutil.resolve_name(name)) for name in step.path)


@pytest.mark.parametrize("name", LIMITS)
def test_limits_have_the_value_of_the_table(name: str) -> None:
    assert pkgutil.resolve_name(name) == float(LIMITS[name].replace(",", ""))


def test_the_document_is_read_as_it_is_meant() -> None:
    """Changes of the layout must not empty the tests above."""
    assert set(TRACED) == set(CAPTURED_AS)
    assert len(NUMBERED) >= 13
    assert len(LIMITS) >= 30


# --- what is called -------------------------------------------------------------------------------------------------

DNS_TABLE, DNS_AGAIN, DNS_SERVER = "DNS: of the table", "DNS: again", "DNS: of a server"
OUTBOUND, RESPONSE, PLAN = "outbound connection and request", "response", "plan"
INBOUND, TCP, CONFIGURATION = "inbound", "tcp", "configuration"
CAPTURED_AS = {
    "Outbound: from REDIRECT to the filter chain": OUTBOUND,
    "Inbound: the same on one listener": INBOUND,
    "A connection through tcp_proxy": TCP,
    "The request, general path": OUTBOUND,
    "The response, general path": RESPONSE,
    "The plan: a head that came before": PLAN,
    "Life of a configuration": CONFIGURATION,
    "A name of the table": DNS_TABLE,
    "The same query again": DNS_AGAIN,
    "Another name": DNS_SERVER,
}

CONFIGURATION_FILE = """
static_resources:
  listeners:
  - name: virtualOutbound
    use_original_dst: true
    address: {socket_address: {address: 127.0.0.1, port_value: 0}}
    filter_chains:
    - filters:
      - name: tcp
        typed_config:
          "@type": $EXT/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: passthrough
          cluster: passthrough
  - name: 0.0.0.0_9080
    bind_to_port: false
    address: {socket_address: {address: 0.0.0.0, port_value: 9080}}
    listener_filters: &inspector
    - name: http
      typed_config: {"@type": $EXT/envoy.extensions.filters.listener.http_inspector.v3.HttpInspector}
    filter_chains:
    - filter_chain_match: {application_protocols: [http/1.1]}
      filters: &http
      - name: http
        typed_config:
          "@type": $EXT/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: http
          tracing: {}
          http_filters:
          - name: router
            typed_config: {"@type": $EXT/envoy.extensions.filters.http.router.v3.Router}
          access_log:
          - name: file
            typed_config:
              "@type": $EXT/envoy.extensions.access_loggers.file.v3.FileAccessLog
              path: $FOLDER/access.log
          route_config:
            virtual_hosts:
            - {name: up, domains: [up], routes: [{match: {prefix: /}, route: {cluster: up}}]}
            - {name: here, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: inbound}}]}
  - name: virtualInbound
    address: {socket_address: {address: 127.0.0.1, port_value: 0}}
    listener_filters:
    - name: original_dst
      typed_config: {"@type": $EXT/envoy.extensions.filters.listener.original_dst.v3.OriginalDst}
    - name: http
      typed_config: {"@type": $EXT/envoy.extensions.filters.listener.http_inspector.v3.HttpInspector}
    filter_chains:
    - filter_chain_match: {destination_port: $PORT}
      filters: *http
  clusters:
  - name: up
    lb_policy: LEAST_REQUEST
    load_assignment:
      cluster_name: up
      endpoints:
      - lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: $PORT}}}}]
  - {name: passthrough, type: ORIGINAL_DST, lb_policy: CLUSTER_PROVIDED}
  - name: inbound
    type: ORIGINAL_DST
    lb_policy: CLUSTER_PROVIDED
    upstream_bind_config: {source_address: {address: 127.0.0.6, port_value: 0}}
"""
RESPONSE_BYTES = b"HTTP/1.1 200 OK\r\ndate: Sat, 01 Jan 2000 00:00:00 GMT\r\ncontent-length: 2\r\n\r\nok"


def request(host: str) -> bytes:
    return f"GET / HTTP/1.1\r\nhost: {host}\r\n\r\n".encode()


class Capture:
    """Records which functions of the proxy are called."""

    def __init__(self) -> None:
        self.calls: dict[str, list[CodeType]] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        calls = self.calls[name] = []
        package = str(ROOT / "proxy") + "/"

        def note(frame: FrameType, event: str, _: Any) -> None:
            if event == "call" and frame.f_code.co_filename.startswith(package):
                calls.append(frame.f_code)

        sys.setprofile(note)
        try:
            yield
        finally:
            sys.setprofile(None)


async def read_head(peer: Client) -> bytes:
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        data += await peer.read(1)
    return data


async def answered(server: Client, client: Client) -> None:
    """The upstream answers; the client has it all, and the stream is over."""
    await server.send(RESPONSE_BYTES)
    await read_head(client)
    assert await client.read(2) == b"ok"
    await asyncio.sleep(0)


async def outbound_http(capture: Capture, proxy: Plane, up: Upstream) -> None:
    with capture(OUTBOUND):
        client = await proxy.connect(name="virtualOutbound")
        await until(lambda: proxy.stat("listener.0.0.0.0_9080.downstream_pre_cx_active") == 1)
        await client.send(request("up"))
        server = await up.accept()
        await read_head(server)
    with capture(RESPONSE):
        await answered(server, client)
    for name in ("makes the plan", PLAN):
        with capture(name):
            await client.send(request("up"))
            await read_head(server)
            await answered(server, client)
    client.close()
    server.close()


async def inbound_http(capture: Capture, proxy: Plane, up: Upstream) -> None:
    with capture(INBOUND):
        client = await proxy.connect(request("here"), name="virtualInbound")
        server = await up.accept()
        assert server.sock.getpeername()[0] == "127.0.0.6"
        await read_head(server)
    await answered(server, client)
    client.close()
    server.close()


async def outbound_tcp(capture: Capture, proxy: Plane, up: Upstream) -> None:
    with capture(TCP):
        client = await proxy.connect(b"ping", name="virtualOutbound")
        server = await up.accept()
        assert await server.read(4) == b"ping"
        await server.send(b"pong")
        assert await client.read(4) == b"pong"
        client.finish()
        assert await server.rest() == b""
        server.close()
        assert await client.rest() == b""
        await until(lambda: not proxy.stat("cluster.passthrough.upstream_cx_active"))
    client.close()


DNS = DnsSettings(listen=(Listen(SocketAddress("127.0.0.1", 0)),), domain="ns1.svc.cluster.local", namespace="ns1")
NAME_TABLE = b'{"table": {"web.ns1.svc.cluster.local": {"ips": ["10.0.0.1"], "registry": "External"}}}'


async def names(capture: Capture, server: DnsServer) -> None:
    loop = asyncio.get_running_loop()
    server.service.set_table(compile_table(parse_name_table(NAME_TABLE), DNS.domain, DNS.namespace, ()))
    with socket.socket(type=socket.SOCK_DGRAM) as client, socket.socket(type=socket.SOCK_DGRAM) as upstream:
        upstream.bind(("127.0.0.1", 0))
        server.service.set_servers([SocketAddress(*upstream.getsockname())])
        client.connect(tuple(server.addresses[0][1]))
        client.setblocking(False)
        upstream.setblocking(False)

        async def ask(name: str, then: Callable[[], Awaitable[None]] | None = None) -> None:
            client.send(dns.message.make_query(name, "A").to_wire())
            if then is not None:
                await then()
            assert dns.message.from_wire(await loop.sock_recv(client, 4096)).answer

        async def answer() -> None:
            await until(lambda: select.select([upstream], [], [], 0)[0])
            query, sender = upstream.recvfrom(4096)
            response = dns.message.make_response(dns.message.from_wire(query), recursion_available=True)
            response.answer.append(dns.rrset.from_text(response.question[0].name, 60, "IN", "A", "10.0.0.2"))
            upstream.sendto(response.to_wire(), sender)

        for name in (DNS_TABLE, DNS_AGAIN):
            with capture(name):
                await ask("web.ns1.svc.cluster.local")
        with capture(DNS_SERVER):
            await ask("x.example", answer)


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[CodeType]]:
    """What is called while a configuration is read, and while connections and requests pass."""
    folder = tmp_path_factory.mktemp("architecture")
    capture = Capture()

    async def scene() -> None:
        up = Upstream()
        text = CONFIGURATION_FILE.replace("$PORT", str(up.address.port)).replace("$FOLDER", str(folder))
        options = Options(concurrency=1, config_yaml=text.replace("$EXT", "type.googleapis.com"), dns=DNS)
        with capture(CONFIGURATION):
            bootstrap = load_bootstrap(options).bootstrap
        data_plane = DataPlane(bootstrap, options, asyncio.get_running_loop(), 0)
        data_plane.bind()
        await data_plane.start()
        proxy = Plane(data_plane, folder / "access.log")
        original = [SocketAddress("10.0.0.9", 9080)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(listener_filters, "original_destination", lambda _: original[0])
            await outbound_http(capture, proxy, up)
            original[0] = up.address
            await outbound_tcp(capture, proxy, up)
            await inbound_http(capture, proxy, up)
        assert data_plane.dns is not None
        await names(capture, data_plane.dns)
        data_plane.close()
        for one in data_plane.listeners.listeners:
            await until(lambda one=one: not one.connections)  # type: ignore[misc]
        up.close()

    run(scene())
    return capture.calls


@pytest.mark.parametrize("heading", TRACED)
def test_functions_are_called_in_the_order_of_the_steps(heading: str, calls: dict[str, list[CodeType]]) -> None:
    steps = lists(SECTIONS[heading])[0]
    rest = iter(calls[CAPTURED_AS[heading]])
    for step in steps:
        for name in step.path:
            code = pkgutil.resolve_name(name).__code__
            # Consumes the calls up to this one.
            assert any(called is code for called in rest), f"step {step.number}: {name} is not called here"
