"""DNS in real processes: every worker answers, also a new one; tables and servers change; a start that cannot be."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import dns.flags
import dns.message
import dns.query
import dns.rcode
import pytest

from tests.e2e.proxy_process import PATIENCE, ProxyProcess, free_port, wait_for

CLIENTS = 24
"""Sockets with ports of their own: the kernel spreads them over the workers."""
UPSTREAM = "127.0.0.77"


class Upstream(threading.Thread):
    """A DNS server on port 53 of a loopback address: every A query is answered with ``address``."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self.address = address
        self.asked: list[str] = []
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self.sock.bind((UPSTREAM, 53))
        except PermissionError:
            self.sock.close()
            pytest.skip("port 53 needs root")
        self.start()

    def run(self) -> None:
        while (received := self.sock.recvfrom(4096))[0]:
            query = dns.message.from_wire(received[0])
            self.asked.append(query.question[0].name.to_text())
            response = dns.message.make_response(query)
            response.flags |= dns.flags.RA
            response.answer.append(dns.rrset.from_text(query.question[0].name, 60, "IN", "A", self.address))
            self.sock.sendto(response.to_wire(), received[1])

    def close(self) -> None:
        with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as last:
            last.sendto(b"", (UPSTREAM, 53))
        self.join()
        self.sock.close()


class DnsProxy(ProxyProcess):
    """A proxy with DNS on loopback."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.dns_port = free_port()
        self.table_path, self.resolv_path = folder / "table.json", folder / "resolv.conf"
        self.resolv_path.write_text(f"search ns1.svc.cluster.local\nnameserver {UPSTREAM}\n")

    def serve(self, *arguments: str, wait: bool = True) -> None:
        self.start("--dns-listen", str(self.dns_port), "--dns-name-table", str(self.table_path), "--dns-domain",
                   "ns1.svc.cluster.local", "--dns-resolv-conf", str(self.resolv_path), *arguments, wait=wait)

    def table(self, **hosts: str) -> None:
        """One address a host; replaced in one step."""
        entries = {f"{name}.ns1.svc.cluster.local": {"ips": [ip], "registry": "Kubernetes", "shortname": name,
                                                    "namespace": "ns1"} for name, ip in hosts.items()}
        new = self.table_path.with_suffix(".new")
        new.write_text(json.dumps({"table": entries}))
        new.replace(self.table_path)

    def addresses(self, name: str) -> set[str]:
        """What CLIENTS clients get over UDP."""
        found = set()
        with ExitStack() as stack:
            socks = [stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(CLIENTS)]
            query = dns.message.make_query(name, "A")
            for sock in socks:
                sock.settimeout(PATIENCE)
                sock.sendto(query.to_wire(), ("127.0.0.1", self.dns_port))
            for sock in socks:
                reply = dns.message.from_wire(sock.recv(4096))
                assert query.is_response(reply)
                found.add(dns.rcode.to_text(reply.rcode()) if not reply.answer else reply.answer[0][0].address)
        return found


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[DnsProxy]:
    proxy = DnsProxy(tmp_path)
    yield proxy
    proxy.close()


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    upstream = Upstream("9.9.9.9")
    yield upstream
    upstream.close()


def test_all_workers_answer_and_follow_the_table(proxy: DnsProxy, upstream: Upstream) -> None:
    proxy.serve()
    # before a table: the servers' answers, not SERVFAIL, and it can be seen
    assert proxy.addresses("web.ns1.svc.cluster.local") == {"9.9.9.9"}
    assert proxy.stat("dns.name_table_loaded") == 0
    assert set(upstream.asked) == {"web.ns1.svc.cluster.local."}
    proxy.table(web="10.0.0.1")
    wait_for("the table", lambda: proxy.addresses("web.ns1") == {"10.0.0.1"})
    assert proxy.stat("dns.name_table_loaded") == 1 and proxy.stat("dns.name_table_updates_total") == 1
    assert proxy.addresses("x.example") == {"9.9.9.9"}
    # a new worker knows table and servers before it answers
    first = proxy.workers()[0]
    os.kill(first, signal.SIGKILL)
    wait_for("the replacement", lambda: "is back" in proxy.log)
    assert proxy.addresses("web.ns1") == {"10.0.0.1"} and proxy.addresses("x.example") == {"9.9.9.9"}
    # both transports, both families
    query = dns.message.make_query("WEB.ns1", "A")
    assert str(dns.query.tcp(query, "127.0.0.1", PATIENCE, proxy.dns_port).answer[0]) == "WEB.ns1. 30 IN A 10.0.0.1"
    if socket.has_dualstack_ipv6():
        assert dns.query.udp(query, "::1", PATIENCE, proxy.dns_port).answer[0][0].address == "10.0.0.1"
    # a bad table changes nothing, the next one counts
    proxy.table_path.write_text("{")
    wait_for("the refusal", lambda: proxy.stat("dns.name_table_rejected_total") == 1)
    assert proxy.addresses("web.ns1") == {"10.0.0.1"}
    proxy.table(web="10.0.0.2", more="10.0.0.3")
    wait_for("the next table", lambda: proxy.addresses("web.ns1") == {"10.0.0.2"})
    assert proxy.addresses("more.ns1") == {"10.0.0.3"}
    # other servers
    proxy.resolv_path.write_text("search ns1.svc.cluster.local\n")
    wait_for("no servers", lambda: proxy.addresses("z.example") == {"SERVFAIL"})


def test_what_an_operator_sees(proxy: DnsProxy, upstream: Upstream) -> None:
    proxy.table(web="10.0.0.1")
    proxy.serve()
    assert proxy.addresses("web.ns1") == {"10.0.0.1"} and proxy.addresses("x.example") == {"9.9.9.9"}
    assert proxy.stat("dns.requests_total") == proxy.stat("dns.requests_udp") == 2 * CLIENTS
    assert proxy.stat("dns.answers_local") == CLIENTS
    asked = proxy.stat("dns.upstream_requests_total")
    assert 1 <= asked <= 2 and len(upstream.asked) == asked, "each worker asks once"
    _, page = proxy.admin("/stats/prometheus")
    assert f"istio_agent_dns_requests_total{{}} {2 * CLIENTS}\n" in page
    assert f"istio_agent_dns_upstream_requests_total{{}} {asked}\n" in page
    assert "istio_agent_dns_upstream_failures_total{} 0\n" in page
    assert "# TYPE istio_agent_dns_upstream_request_duration_seconds histogram\n" in page
    status, text = proxy.admin("/dns?name=web.ns1")
    assert status == 200
    assert text.splitlines()[:4] == [
        "web.ns1. A: answered from the name table",
        "reason: name table: host web.ns1.svc.cluster.local (short name and namespace)",
        "answer: NOERROR", "  web.ns1. 30 IN A 10.0.0.1"]
    status, text = proxy.admin("/dns?name=x.example&format=json")
    workers = json.loads(text)["workers"]
    assert [worker["worker"] for worker in workers] == [0, 1]
    assert {server["address"] for worker in workers for server in worker["servers"]} == {f"{UPSTREAM}:53"}
    # the log tells the reason of each answer, also of what is remembered
    assert proxy.admin("/logging?dns=debug", "POST")[0] == 200
    assert proxy.addresses("web.ns1") == {"10.0.0.1"}
    host = "name table: host web.ns1.svc.cluster.local (short name and namespace)"
    assert proxy.log.count(f" web.ns1. IN A: NOERROR, 1 answer ({host})") == CLIENTS


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
def test_an_address_in_use_ends_the_start(proxy: DnsProxy, kind: int) -> None:
    proxy.table(web="10.0.0.1")
    with closing(socket.socket(socket.AF_INET, kind)) as other:
        other.bind(("127.0.0.1", proxy.dns_port))
        if kind == socket.SOCK_STREAM:
            other.listen()
        proxy.serve(wait=False)
        assert proxy.ended() == 1
    protocol = "UDP" if kind == socket.SOCK_DGRAM else "TCP"
    assert f"cannot bind '127.0.0.1:{proxy.dns_port}' for DNS over {protocol}: Address already in use\n" in proxy.log


def test_dns_is_off_without_an_address(proxy: DnsProxy) -> None:
    proxy.start()
    assert "dns." not in proxy.admin("/stats")[1]
    assert proxy.admin("/dns?name=x") == (404, "DNS is off: --dns-listen or DNS_LISTEN turns it on\n")
    assert proxy.admin("/dns")[0] == 404 and proxy.admin("/dns?name=a..b")[0] == 400


def test_a_flood_of_nonsense_does_no_harm(proxy: DnsProxy) -> None:
    proxy.table(web="10.0.0.1")
    proxy.serve()
    good = dns.message.make_query("web.ns1", "A").to_wire()
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
        for n in range(2000):
            damaged = bytearray(good)
            damaged[n * 7 % len(good)] ^= 1 << n % 8
            sock.sendto(bytes(damaged[:len(good) - n % 5]), ("127.0.0.1", proxy.dns_port))
    with closing(socket.create_connection(("127.0.0.1", proxy.dns_port), PATIENCE)) as sock:
        sock.sendall(struct.pack("!H", 60000) + bytes(100))
        assert sock.recv(10) == b""
    assert proxy.addresses("web.ns1") == {"10.0.0.1"}
    assert proxy.stat("dns.malformed_total") > 100 and len(proxy.workers()) == 2
