"""Hostile clients and upstreams against a real proxy: bounded memory, nobody else's response, no traceback, no leak.

One worker serves all tests of this file, so that whatever one of them leaves behind is met by the next, and its peak
memory is that of all. A traceback fails the file when the proxy is closed.
"""

from __future__ import annotations

import re
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.proxy_process import CONFIG, PATIENCE, ProxyProcess, wait_for

DATE = b"date: Sat, 21 Nov 2026 06:00:00 GMT\r\n"
OK = b"HTTP/1.1 200 OK\r\n" + DATE + b"content-length: 2\r\n\r\nok"
BIG = 32 << 20
PEAK = 48 << 10
"""KiB of memory that all attacks together may add to a worker, many times less than each of them sends."""
LIMIT = 32768
ROUTES = """\
              - match: {prefix: /local}
                direct_response: {status: 200, body: {inline_string: "BODY"}}
              - match: {prefix: /retried}
                route: {cluster: a, retry_policy: {retry_on: "reset,5xx", num_retries: 2}}
              - match: {prefix: /}
                route: {cluster: a, timeout: 5s}
"""
CLUSTER = f"""\
  clusters:
  - name: a
    type: STATIC
    connect_timeout: 5s
    per_connection_buffer_limit_bytes: {LIMIT}
    load_assignment:
      cluster_name: a
      endpoints:
      - lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: UP}}}}}}}}]
"""
HCM = """\
          stat_prefix: in
          stream_idle_timeout: 1s
          delayed_close_timeout: 0.1s
          upgrade_configs: [{upgrade_type: websocket}]
"""
LOCAL = b"L" * 4000


def read_head(sock: socket.socket) -> bytes:
    """A request head with whatever came with it; empty at the end."""
    head = b""
    while b"\r\n\r\n" not in head:
        data = sock.recv(65536)
        if not data:
            return b""
        head += data
    return head


class Upstream:
    """What it does is in the path: the first word of it names one of ``REPLIES``, or a method."""

    REPLIES: dict[bytes, bytes] = {
        b"garbage": b"220 ready\r\n",
        b"cut-head": b"HTTP/1.1 200 OK\r\ncontent-le",
        b"cut-body": b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc",
        b"long-head": b"HTTP/1.1 200 OK\r\nx: " + b"a" * (1 << 20),
        b"huge-chunk": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffff\r\nabc",
        b"wide-chunk": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\nabc",
        b"close": b"",
    }
    """Sent, and then the connection ends."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=200)
        self.port: int = self._socket.getsockname()[1]
        self.bodies: list[int] = []
        self.release = threading.Event()
        self._closed = False
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with sock:
            try:
                while head := read_head(sock):
                    path = head.split(b" ")[1]
                    kind = path.split(b"/")[1]
                    if kind in self.REPLIES:
                        sock.sendall(self.REPLIES[kind])
                        return
                    if kind == b"unread":
                        self.release.wait(PATIENCE)
                        return
                    if not self._answer(sock, kind, path):
                        return
            except OSError:
                pass  # the proxy may go as it likes

    def _answer(self, sock: socket.socket, kind: bytes, path: bytes) -> bool:
        if kind == b"big":
            sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % BIG)
            for _ in range(BIG >> 16):
                sock.sendall(b"x" * 65536)
        elif kind == b"medium":
            sock.sendall(b"HTTP/1.1 200 OK\r\n" + DATE + b"content-length: 60000\r\n\r\n" + b"m" * 60000)
        elif kind == b"interim":
            sock.sendall(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 5000 + OK)
        elif kind == b"two":
            sock.sendall(OK + b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nPOISON")
        elif kind in (b"mixed", b"retried"):
            return self._mixed(sock, path)
        else:
            sock.sendall(OK)
        return True

    @staticmethod
    def _mixed(sock: socket.socket, path: bytes) -> bool:
        """The path as body, in a way that the last digits of the path choose."""
        size = b"content-length: %d\r\n" % len(path)
        way = int(path[-2:]) % 10
        if way == 0:
            sock.sendall(b"HTTP/1.1 200 OK\r\n" + DATE + b"\r\n" + path)
            return False
        if way == 1:
            sock.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n"
                         % (len(path), path))
        elif way == 2:
            sock.sendall(b"HTTP/1.1 200 OK\r\n" + size + b"\r\n" + path + b"HTTP/1.1 200 OK\r\n")
        elif way == 3:
            sock.sendall(b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\n" + DATE + size + b"\r\n" + path)
        elif way == 4:
            sock.sendall(b"HTTP/1.1 503 Later\r\n" + DATE + size + b"\r\n" + path)
        elif way == 5:
            return False
        else:
            sock.sendall(b"HTTP/1.1 200 OK\r\n" + DATE + size + b"\r\n" + path)
        return True

    def close(self) -> None:
        """No more connections; handlers end with theirs."""
        self.release.set()
        self._socket.close()


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    upstream = Upstream()
    yield upstream
    upstream.close()


@pytest.fixture(scope="module")
def one_proxy(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[ProxyProcess]:
    before, after = CONFIG.split("              - match: {prefix: /}\n"
                                 '                direct_response: {status: 200, body: {inline_string: "hello"}}\n')
    config = (before + ROUTES.replace("BODY", LOCAL.decode()) + after + CLUSTER).replace("UP", str(upstream.port))
    config = config.replace("          stat_prefix: in\n", HCM)
    config = config.replace("    filter_chains:\n",
                            f"    per_connection_buffer_limit_bytes: {LIMIT}\n    filter_chains:\n")
    proxy = ProxyProcess(tmp_path_factory.mktemp("bad-input"), config)
    try:
        proxy.start(workers=1)
        (worker,) = proxy.workers()
        assert get(proxy, b"/before") == b"ok"
        peak = peak_memory(worker)
        files = open_files(worker)
        yield proxy
        judge(proxy, upstream, worker, peak, files)
    finally:
        proxy.close()


def judge(proxy: ProxyProcess, upstream: Upstream, worker: int, peak: int, files: int) -> None:
    """After everything: the same worker, nothing left open, and never much memory."""
    assert proxy.workers() == [worker], "a worker died"
    upstream.release.set()
    wait_for("all connections to be gone", lambda: proxy.stat("http.in.downstream_cx_active") == 0)
    assert proxy.stat("http.in.downstream_rq_active") == 0
    assert proxy.stat("cluster.a.upstream_rq_pending_active") == 0
    idle = proxy.stat("cluster.a.upstream_cx_active")
    assert open_files(worker) <= files + idle
    assert peak_memory(worker) < peak + PEAK


@pytest.fixture
def proxy(one_proxy: ProxyProcess) -> Iterator[ProxyProcess]:
    """Alive and well after each test."""
    yield one_proxy
    assert get(one_proxy, b"/after") == b"ok"
    assert "Traceback" not in one_proxy.log, one_proxy.log


def peak_memory(pid: int) -> int:
    """The largest resident set of a process so far, KiB."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1])


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def connect(proxy: ProxyProcess, window: int = 0) -> socket.socket:
    """A connection; ``window`` bytes of receive buffer."""
    sock = socket.socket()
    if window:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
    sock.settimeout(PATIENCE)
    sock.connect(("127.0.0.1", proxy.port))
    return sock


def request(path: bytes, fields: bytes = b"", method: bytes = b"GET") -> bytes:
    return b"%b %b HTTP/1.1\r\nhost: a\r\n%b\r\n" % (method, path, fields)


def read_all(sock: socket.socket) -> bytes:
    """Everything until the proxy closes; a reset ends it too."""
    got = b""
    try:
        while data := sock.recv(65536):
            got += data
    except ConnectionResetError:
        pass
    return got


def get(proxy: ProxyProcess, path: bytes) -> bytes:
    """The body of one response."""
    with connect(proxy) as sock:
        sock.sendall(request(path, b"connection: close\r\n"))
        return read_all(sock).partition(b"\r\n\r\n")[2]


def send_what_is_taken(sock: socket.socket, data: bytes) -> None:
    """Send it all, or until the proxy has closed."""
    try:
        sock.sendall(data)
    except (ConnectionResetError, BrokenPipeError):
        pass


# --- slow and silent peers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [b"", b"connection: close\r\n"])
def test_clients_that_never_read_a_large_response(proxy: ProxyProcess, fields: bytes) -> None:
    """Neither is it kept in memory, nor are the connections kept for ever."""
    clients = [connect(proxy, 4096) for _ in range(4)]
    for sock in clients:
        sock.sendall(request(b"/big", fields))
    wait_for("the upstream to be paused", lambda: proxy.stat("cluster.a.upstream_flow_control_paused_reading_total"))
    wait_for("the delayed close", lambda: proxy.stat("http.in.downstream_cx_active") == 0)
    for sock in clients:
        sock.close()


def test_pipelined_requests_whose_responses_nobody_reads_yet(proxy: ProxyProcess) -> None:
    """No further request is begun while the client reads nothing; later it gets all of them."""
    count = 10_000
    paused = proxy.stat("http.in.downstream_flow_control_paused_reading_total")
    with connect(proxy, 4096) as sock:
        sender = threading.Thread(target=sock.sendall, args=(request(b"/local") * count,))
        sender.start()
        wait_for("reading to be paused",
                 lambda: proxy.stat("http.in.downstream_flow_control_paused_reading_total") > paused)
        assert proxy.stat("http.in.downstream_rq_total") < count
        seen = bodies = 0
        tail = b""
        while bodies < count * len(LOCAL):
            data = sock.recv(1 << 20)
            assert data
            bodies += data.count(b"L")
            tail += data
            seen += tail.count(b"HTTP/1.1 200 OK\r\n")
            tail = tail[tail.rfind(b"\n") + 1:] if tail.count(b"\n") else tail[-20:]
        sender.join(PATIENCE)
    assert seen == count


def test_a_slow_client_does_not_spoil_the_connection_for_the_next(proxy: ProxyProcess) -> None:
    """The upstream connection was paused for it, and goes back to the pool with the end of the response."""
    def served() -> int:
        return proxy.stat("cluster.a.upstream_rq_total")

    def pauses() -> int:
        return proxy.stat("cluster.a.upstream_flow_control_paused_reading_total")

    before_all = pauses()
    with connect(proxy, 4096) as sock:
        while pauses() == before_all:
            before = served()
            sock.sendall(request(b"/medium"))
            # The response before may still be on its way: then it is that which pauses, and this request waits.
            wait_for("the request", lambda before=before: served() > before or pauses() > before_all)  # type: ignore[misc]
        assert get(proxy, b"/other") == b"ok"
    for _ in range(3):
        assert get(proxy, b"/other") == b"ok"


def test_an_upstream_that_never_reads_a_large_upload(proxy: ProxyProcess) -> None:
    with connect(proxy) as sock:
        sock.settimeout(0.3)
        sock.sendall(request(b"/unread", b"content-length: %d\r\n" % BIG, b"POST"))
        with pytest.raises((TimeoutError, ConnectionError)):
            for _ in range(BIG >> 16):
                sock.sendall(b"u" * 65536)
            sock.recv(1)
    wait_for("the request to be cancelled", lambda: proxy.stat("http.in.downstream_cx_active") == 0)


# --- clients that break the grammar -----------------------------------------------------------------------------------

CHUNKED = b"POST /echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
UPGRADE = b"connection: upgrade\r\nupgrade: websocket\r\n"


@pytest.mark.parametrize(("sent", "status"), [
    (b"GET /local HTTP/1.1\r\nhost: a\r\nx: " + b"a" * (1 << 20) + b"\r\n\r\n", b"431"),
    (b"GET /" + b"a" * (1 << 20) + b" HTTP/1.1\r\nhost: a\r\n\r\n", b"431"),
    (request(b"/local", b"a: b\r\n" * 1000), b"431"),
    (b"POST /unread HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\n", b"400"),
    (b"POST /unread HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n1;" + b"e" * (1 << 20), b"400"),
    (b"POST /unread HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n" + b"a: b\r\n" * 100_000, b"431"),
    (b"POST /unread HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx: " + b"a" * (1 << 20), b"431"),
    (b"POST /unread HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n1\r\nab\r\n", b"400"),
    (bytes(range(256)) * 100, b"400"),
    (b"\r\n" * 10_000 + b"\0", b"400"),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"400"),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"400"),
    (request(b"/wrong", b"connection: upgrade\r\nupgrade: other\r\n"), b"403"),
], ids=range(13))
def test_refused(proxy: ProxyProcess, sent: bytes, status: bytes) -> None:
    with connect(proxy) as sock:
        send_what_is_taken(sock, sent)
        assert read_all(sock).startswith(b"HTTP/1.1 %b " % status)


@pytest.mark.parametrize("sent", [
    request(b"/unread", b"content-length: 10\r\n", b"POST") + b"abc", CHUNKED + b"5\r\nab", request(b"/unread"),
    request(b"/unread", UPGRADE) + b"early", b"GET /lo", request(b"/local") * 100 + b"GET /",
], ids=range(6))
@pytest.mark.parametrize("reset", [False, True])
def test_clients_that_leave(proxy: ProxyProcess, sent: bytes, reset: bool) -> None:
    for _ in range(10):
        with connect(proxy) as sock:
            sock.sendall(sent)
            if reset:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wait_for("them to be gone", lambda: proxy.stat("http.in.downstream_cx_active") == 0)


def test_bytes_after_the_end_of_a_request(proxy: ProxyProcess) -> None:
    with connect(proxy) as sock:
        sock.sendall(request(b"/x", b"content-length: 1\r\n", b"POST") + b"abcdef \r\n\r\n")
        got = read_all(sock)
    assert re.findall(rb"HTTP/1.1 (\d+)", got) == [b"200", b"400"]


def test_more_hosts_and_fields_than_are_remembered(proxy: ProxyProcess) -> None:
    count = 3000
    with connect(proxy) as sock:
        sender = threading.Thread(target=sock.sendall, args=(b"".join(
            b"GET /local HTTP/1.1\r\nhost: h%d\r\nx-%d: %b\r\n%b\r\n" % (
                n, n, b"v" * 200, b"connection: close\r\n" if n == count - 1 else b"") for n in range(count)),))
        sender.start()
        got = read_all(sock)
        sender.join(PATIENCE)
    assert got.count(b"HTTP/1.1 200 OK\r\n") == count


def test_the_admin_port_under_garbage(proxy: ProxyProcess) -> None:
    for sent in (b"\0" * 100, b"GET / HTTP/1.1\r\nx: " + b"a" * (1 << 20),
                 b"GET /%ff%00 HTTP/1.1\r\nhost: \xff\r\n\r\n",
                 b"POST /stats HTTP/1.1\r\nhost: a\r\ncontent-length: 99999999999999999999\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", proxy.admin_port), timeout=PATIENCE) as sock:
            send_what_is_taken(sock, sent)
            assert sock.recv(100).startswith(b"HTTP/1.1 4")
    assert proxy.admin("/ready") == (200, "LIVE\n")


# --- upstreams that break the grammar ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "expected"), [
    (b"garbage", b"HTTP/1.1 502 "), (b"cut-head", b"HTTP/1.1 502 "), (b"long-head", b"HTTP/1.1 502 "),
    (b"wide-chunk", b"HTTP/1.1 200 "), (b"huge-chunk", b"HTTP/1.1 200 "), (b"cut-body", b"HTTP/1.1 200 "),
    (b"close", b"HTTP/1.1 503 "), (b"interim", b"HTTP/1.1 200 "),
])
def test_upstreams(proxy: ProxyProcess, kind: bytes, expected: bytes) -> None:
    for _ in range(3):
        with connect(proxy) as sock:
            sock.sendall(request(b"/" + kind, b"connection: close\r\n"))
            assert read_all(sock).startswith(expected)


def test_a_response_too_many_reaches_nobody(proxy: ProxyProcess) -> None:
    for _ in range(5):
        assert get(proxy, b"/two") == b"ok"
        assert get(proxy, b"/other") == b"ok"


def test_every_response_belongs_to_its_request(proxy: ProxyProcess) -> None:
    """Planned and unplanned heads, pipelining, retries, lost connections and surplus bytes, all at once."""
    wrong: list[bytes] = []
    answered: list[int] = []

    def client(number: int) -> None:
        paths = [b"/%b/%d/%d" % (b"retried" if n % 3 else b"mixed", number if n % 2 else 0, 1000 + n % 40)
                 for n in range(80)]
        while paths:
            with connect(proxy) as sock, sock.makefile("rb") as stream:
                while paths:
                    batch = paths[:1 + len(paths) % 3]
                    sock.sendall(b"".join(map(request, batch)))
                    try:
                        going_on = all(response(stream, paths) for _ in batch)
                    except (ConnectionResetError, EOFError):
                        del paths[0]  # cut off: nothing can be said about it
                        going_on = False
                    if not going_on:
                        break

    def response(stream, paths: list[bytes]) -> bool:  # type: ignore[no-untyped-def]
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            line = stream.readline()
            if not line:
                raise EOFError
            head += line
        if b"chunked" in head:
            body = b""
            while size := int(stream.readline(), 16):
                body += stream.read(size + 2)[:-2]
            stream.readline()
        else:
            length = re.search(rb"content-length: (\d+)", head)
            assert length is not None, head
            body = stream.read(int(length[1]))
        path = paths.pop(0)
        answered.append(int(head[9:12]))
        if body != path and not (head[9:12] == b"503" and body.startswith(b"upstream connect error")):
            wrong.append(b"%b got %b %b" % (path, head, body))
        return b"connection: close" not in head

    threads = [threading.Thread(target=client, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in threads)
    assert not wrong
    assert answered.count(200) > 12 * 80 // 2
