"""The application's probes against real sockets: a table of what the application does and what kubelet gets to see."""

import asyncio
import json
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events
import pytest

from agent.http.dial import LOCALHOST
from agent.http.exchange import Response
from agent.http.redirect import LeavesHost, Place, follow
from agent.status import app_probes
from agent.status.app_probes import AppProbes, copied_headers, host_header
from agent.status.http_server import Reply, Request
from agent.status.probe_documents import parse_app_probers
from agent.status.prober import Prober
from tests.unit.agent.status_tools import App, Stream, response, running

PATH = "/app-health/app/livez"


def probes_for(action: dict[str, Any], prober: Prober, host: str = "127.0.0.1", **more: Any) -> AppProbes:
    entries = parse_app_probers(json.dumps({PATH: {**action, **more}}))
    return AppProbes(entries, prober, host=host, status_port=lambda: 15020)


def probe(
    play: Stream | bytes,
    kind: str = "httpGet",
    *,
    headers: tuple[tuple[str, str], ...] = (("host", "10.0.0.9:15020"),),
    tls: ssl.SSLContext | None = None,
    http2: bool = True,
    times: int = 1,
    keepalive: bool = False,
    host: str = "127.0.0.1",
    timeout: int = 5,
    **fields: Any,
) -> tuple[Reply, App]:
    async def run() -> tuple[Reply, App]:
        prober = Prober(keepalive=keepalive, http2=http2)
        async with running(App(play), tls) as app:
            action = {kind: {"port": app.port, **fields}}
            probes = probes_for(action, prober, host, timeoutSeconds=timeout)
            request = Request("GET", PATH, "10.0.0.1", "", headers)
            async with asyncio.timeout(60):
                for _ in range(times):
                    reply = await probes.answer(request)
            prober.close()
            return reply, app

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("wire", "status", "body"),
    [
        (response(200, b"fine", "content-type: text/html"), 200, b"fine"),
        (response(404, b"no"), 404, b"no"),
        (response(503, b"down"), 503, b"down"),
        (response(299), 299, b""),
        (response(204).replace(b"content-length: 0\r\n", b""), 204, b""),
        (response(200, b"x" * 20_000), 200, b"x" * 10_240),
        (response(304), 200, b""),
        (response(302), 200, b""),  # no Location: nowhere to go
        (response(302, b"there", "location: http://elsewhere/"), 200, b""),
        (response(301, b"", "location: https://10.0.0.9:1/"), 200, b""),
        (response(302, b"", "location: /again"), 500, b""),  # for ever
        (response(302, b"", "location: http://127.0.0.1:1/"), 500, b""),  # same host, closed port
        (response(302, b"", "location: http://127.0.0.1:99999/"), 500, b""),
        (response(302, b"", "location: http://[::1/"), 500, b""),
        (b"nonsense\r\n\r\n", 500, b""),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 300_000 + b"\r\n\r\n", 500, b""),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nab", 500, b""),
    ],
)
def test_http(wire: bytes, status: int, body: bytes) -> None:
    reply, app = probe(wire)
    assert (reply.status, reply.body) == (status, body)
    assert set(app.peers) == {"127.0.0.6"}


def test_what_the_application_gets() -> None:
    headers = (
        ("host", "10.0.0.9:15020"),
        ("user-agent", "kube-probe/1.29"),
        ("x-custom", "a\xe9b"),
        ("x-custom", "c"),
        ("connection", "close, x-hop"),
        ("x-hop", "1"),
        ("te", "trailers"),
        ("expect", "100-continue"),
        ("accept", "*/*"),
    )
    _, app = probe(response(200), headers=headers, path="health?full=1")
    head = app.heads[0].split("\r\n")
    assert head[0] == "GET /health?full=1 HTTP/1.1"
    fields = [line.split(": ", 1) for line in head[1:] if line]
    assert fields == [
        ["host", f"10.0.0.9:{app.port}"],
        ["user-agent", "kube-probe/1.29"],
        ["x-custom", "a\xe9b"],
        ["x-custom", "c"],
        ["accept", "*/*"],
        ["connection", "close"],
    ]


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("10.0.0.9:15020", "10.0.0.9:8080"),
        ("[fd00::9]:15020", "[fd00::9]:8080"),
        ("example.com", "example.com"),
        ("example.com:80", "example.com:80"),
        ("example.com:150200", "example.com:150200"),
        ("15020", "15020"),
        ("", ""),
    ],
)
def test_host_header(host: str, expected: str) -> None:
    assert host_header(host, 15020, 8080) == expected


def test_no_header_of_the_connection_is_copied() -> None:
    request = Request("GET", PATH, "", "", (("connection", "A"), ("a", "1"), ("transfer-encoding", "x"), ("b", "2")))
    assert copied_headers(request) == [("b", "2")]


def at(target: str = "/a/b?c", tls: bool = False) -> Place:
    return Place(tls, "10.0.0.9", 8080, target, "example.com")


@pytest.mark.parametrize(
    ("location", "following"),
    [
        ("/x", at("/x")),
        ("x?y", at("/a/x?y")),
        ("../x#z", at("/x")),
        ("?q", at("/a/b?q")),
        ("http://10.0.0.9/x", Place(False, "10.0.0.9", 80, "/x", "10.0.0.9")),
        ("https://10.0.0.9:8443", Place(True, "10.0.0.9", 8443, "/", "10.0.0.9:8443")),
        ("//10.0.0.9:9/x", Place(False, "10.0.0.9", 9, "/x", "10.0.0.9:9")),
    ],
)
def test_redirects_within_the_host(location: str, following: Place) -> None:
    assert follow(Response(302, b"", ((b"location", location.encode()),)), at()) == following


@pytest.mark.parametrize("location", ["http://10.0.0.8/", "//example.com/", "ftp://10.0.0.9/", "https://x@10.0.0.90/"])
def test_redirects_to_elsewhere(location: str) -> None:
    with pytest.raises(LeavesHost):
        follow(Response(307, b"", ((b"location", location.encode()),)), at())


def test_a_redirect_is_followed_to_its_end() -> None:
    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        hops = int(head.split()[1].removeprefix(b"/"))
        writer.write(response(302, b"", f"location: /{hops - 1}") if hops else response(200, b"end"))

    assert probe(play, path="/9")[0] == Reply(200, b"end")
    assert probe(play, path="/10")[0].status == 500  # Go's client stops after ten requests, kubelet too


@pytest.mark.parametrize("kind", ["httpGet", "tcpSocket", "grpc"])
def test_nobody_listens(kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

    async def run() -> list[int]:
        prober = Prober()
        probes = probes_for({kind: {"port": port}}, prober)
        return [(await probes.answer(Request("GET", PATH, ""))).status for _ in range(3)]

    assert asyncio.run(run()) == [500] * 3
    out = capfd.readouterr().out
    assert out.count(f"probe {PATH} failed: cannot connect to 127.0.0.1:{port}: Connection refused") == 1


def test_tcp() -> None:
    async def play(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.read()

    reply, app = probe(play, "tcpSocket")
    assert (reply, app.peers) == (Reply(200), ["127.0.0.6"])


@pytest.mark.parametrize("kind", ["httpGet", "grpc"])
def test_the_probe_has_a_time_limit(
    kind: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(app_probes, "LONGEST_S", 0.05)  # what a probe without a limit of its own has

    async def silent(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.read()

    assert probe(silent, kind, timeout=0)[0].status == 500
    assert "no answer within 0.05s" in capfd.readouterr().out


@pytest.mark.parametrize("host", ["", "localhost"])
def test_this_host(host: str) -> None:
    reply, app = probe(response(200), host=host, headers=())
    assert reply.status == 200
    assert f"host: localhost:{app.port}" in app.heads[0]


def test_ipv6() -> None:
    async def run() -> int:
        app = App(response(200))
        try:
            server = await asyncio.start_server(app.serve, "::1", 0)
        except OSError:
            pytest.skip("this machine has no IPv6")
        port = server.sockets[0].getsockname()[1]
        prober = Prober()
        status = (await probes_for({"httpGet": {"port": port}}, prober, "::1").answer(Request("GET", PATH, ""))).status
        assert f"host: [::1]:{port}" in app.heads[0]
        server.close()
        for writer in app.open:
            writer.transport.abort()
        return status

    assert asyncio.run(run()) == 200  # from ::6 where the loopback interface has it, else from any address


@pytest.mark.parametrize(("keepalive", "connections"), [(True, 1), (False, 3)])
def test_keepalive(keepalive: bool, connections: int) -> None:
    reply, app = probe(response(200), times=3, keepalive=keepalive)
    assert reply.status == 200
    assert (len(app.peers), len(app.heads)) == (connections, 3)
    assert ("connection: close" in app.heads[0]) is not keepalive


def test_a_kept_connection_that_was_closed_is_no_failure() -> None:
    reply, app = probe(response(200).replace(b"X\r\n", b"X\r\nnote: will close\r\n"), times=3, keepalive=True)
    assert reply.status == 200
    assert len(app.peers) == 3


def test_one_probe_does_not_run_too_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_probes, "MAX_AT_ONCE", 2)

    async def run() -> list[int]:
        release = asyncio.Event()

        async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            await release.wait()
            writer.write(response(200))

        async with running(App(slow)) as app:
            probes = probes_for({"httpGet": {"port": app.port}}, Prober())
            loop = asyncio.get_running_loop()
            request = Request("GET", PATH, "")
            two = [loop.create_task(probes.answer(request)) for _ in range(2)]
            await asyncio.sleep(0)
            third = await probes.answer(request)
            release.set()
            return [third.status, *[(await each).status for each in two], (await probes.answer(request)).status]

    assert asyncio.run(run()) == [503, 200, 200, 200]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=wrong -keyout - -out -"
    )
    path.write_bytes(subprocess.run(command.split(), check=True, capture_output=True).stdout)
    yield path


def server_tls(certificate: Path, *protocols: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    if protocols:
        context.set_alpn_protocols(list(protocols))
    return context


def test_https_with_any_certificate(certificate: Path) -> None:
    reply, app = probe(response(200, b"tls"), tls=server_tls(certificate), scheme="HTTPS")
    assert (reply, app.peers) == (Reply(200, b"tls"), ["127.0.0.6"])


def test_https_to_a_plain_port(capfd: pytest.CaptureFixture[str]) -> None:
    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    assert probe(play, scheme="HTTPS")[0].status == 500
    assert "TLS: " in capfd.readouterr().out


class Http2App:
    """Speaks HTTP/2 by the h2 library; `answer` sends what the application says."""

    def __init__(self, answer: Callable[[h2.connection.H2Connection, int], None]) -> None:
        self._answer = answer
        self.headers: dict[str, str] = {}
        self.body = b""

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="latin-1"))
        connection.initiate_connection()
        writer.write(connection.data_to_send())
        while data := await reader.read(65536):
            for event in connection.receive_data(data):
                if isinstance(event, h2.events.RequestReceived):
                    self.headers = {str(name): str(value) for name, value in event.headers}
                elif isinstance(event, h2.events.DataReceived):
                    self.body += event.data
                elif isinstance(event, h2.events.StreamEnded):
                    self._answer(connection, event.stream_id)
            writer.write(connection.data_to_send())
        writer.close()


@pytest.mark.parametrize(("http2", "status", "body"), [(True, 201, b"h2"), (False, 500, b"")])
def test_https_by_http2(certificate: Path, http2: bool, status: int, body: bytes) -> None:
    def answer(connection: h2.connection.H2Connection, stream: int) -> None:
        connection.send_headers(stream, [(":status", "201")])
        connection.send_data(stream, b"h2", end_stream=True)

    app = Http2App(answer)
    reply, _ = probe(app, tls=server_tls(certificate, "h2"), scheme="HTTPS", http2=http2, path="/x?y")
    assert (reply.status, reply.body) == (status, body)
    if http2:
        assert (app.headers[":path"], app.headers[":scheme"]) == ("/x?y", "https")
        assert app.headers[":authority"].startswith("10.0.0.9:")


def grpc_app(body: bytes, status: str) -> Http2App:
    def answer(connection: h2.connection.H2Connection, stream: int) -> None:
        connection.send_headers(stream, [(":status", "200"), ("content-type", "application/grpc")])
        connection.send_data(stream, body)
        connection.send_headers(stream, [("grpc-status", status), ("grpc-message", "because")], end_stream=True)

    return Http2App(answer)


@pytest.mark.parametrize(
    ("body", "grpc_status", "status", "reason"),
    [
        (b"\0\0\0\0\2\x08\1", "0", 200, ""),
        (b"\0\0\0\0\2\x08\2", "0", 500, "service is NOT_SERVING"),
        (b"\0\0\0\0\0", "0", 500, "service is UNKNOWN"),
        (b"", "12", 500, "gRPC status UNIMPLEMENTED: because"),
        (b"\0" * 5000, "0", 500, "larger than 4096 bytes"),
    ],
)
def test_grpc(body: bytes, grpc_status: str, status: int, reason: str, capfd: pytest.CaptureFixture[str]) -> None:
    app = grpc_app(body, grpc_status)
    headers = (("host", "10.0.0.9:15020"), ("user-agent", "kube-probe/1.29"), ("x-other", "1"))
    reply, served = probe(app, "grpc", service="my.Service", headers=headers, timeout=0)
    assert reply == Reply(status)
    assert reason in capfd.readouterr().out
    assert app.headers[":path"] == "/grpc.health.v1.Health/Check"
    assert (app.headers["user-agent"], app.headers["te"]) == ("kube-probe/1.29", "trailers")
    assert "x-other" not in app.headers
    assert app.body == b"\0\0\0\0\x0c\x0a\x0amy.Service"
    assert served.peers == ["127.0.0.6"]


def test_grpc_to_an_http1_application(capfd: pytest.CaptureFixture[str]) -> None:
    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    assert probe(play, "grpc")[0].status == 500
    assert "the peer speaks HTTP/1, not HTTP/2" in capfd.readouterr().out


def test_localhost_is_both_families() -> None:
    assert LOCALHOST == ("127.0.0.1", "::1")
