"""The DNS benchmark: what it reads of dnsperf, how it judges, and that every server gets the same names."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path

import dns.message
import dns.rrset
import pytest

from bench import dns as bench
from bench import dns_servers as servers
from bench.dns import CASES, Result
from bench.process import ProcessError

OUTPUT = """\
Statistics:

  Queries sent:         {sent}
  Queries completed:    {completed} (100.00%)
  Queries lost:         {lost} (0.00%)

  Response codes:       {codes}
  Average packet size:  request 44, response 60
  Run time (s):         3.000095
  Queries per second:   39998.400051
"""
GOOD = {"sent": 119999, "completed": 119999, "lost": 0, "codes": "NOERROR 119999 (100.00%)"}


def test_dnsperf() -> None:
    assert bench.parse_dnsperf(OUTPUT.format(**GOOD)) == (119999, 39998.400051)


@pytest.mark.parametrize("bad", [{"lost": 1}, {"codes": "NOERROR 1 (50.00%), NXDOMAIN 1 (50.00%)"},
                                 {"codes": "SERVFAIL 119999 (100.00%)"}])
def test_a_run_with_a_wrong_answer_does_not_count(bad: dict[str, object]) -> None:
    with pytest.raises(ProcessError, match="queries lost"):
        bench.parse_dnsperf(OUTPUT.format(**{**GOOD, **bad}))
    with pytest.raises(ProcessError, match="dnsperf said: nonsense"):
        bench.parse_dnsperf("nonsense")


def test_latencies() -> None:
    text = "> NOERROR svc1.ns1 A 0.000123\n> NOERROR svc2.ns1 A 0.000023\n[Timeout] x\n"
    assert bench.parse_latencies(text) == [pytest.approx(23), pytest.approx(123)]


def result(rate: float, p99: float = 500.0, problem: str = "") -> Result:
    return Result([rate, rate * 1.1], [5.0, 5.0], 100.0, p99, rate / 2, problem)


def test_ours_is_judged_by_the_faster_peer() -> None:
    lines = bench.rows(CASES[0], {"ours": result(95), "dnsmasq": result(50), "unbound": result(100)})
    assert lines[0][4:6] == ("0.95x unbound (0.95-0.95)", ">= 0.9x ok") and lines[0][7] == "< 1 ms ok"
    lines = bench.rows(CASES[0], {"ours": result(89, p99=1000.0), "dnsmasq": result(100), "unbound": result(50)})
    assert lines[0][4:6] == ("0.89x dnsmasq (0.89-0.89)", ">= 0.9x MISSED") and lines[0][7] == "< 1 ms MISSED"
    lines = bench.rows(CASES[2], {"ours": result(89), "dnsmasq": result(100), "unbound": result(1, problem="gone")})
    assert lines[0][5] == ">= 0.8x ok" and lines[2][2] == "FAILED: gone"
    assert len({len(line) for line in bench.table(lines).splitlines()}) == 1


@pytest.mark.parametrize("count", [bench.SMALL, bench.LARGE])
def test_everyone_has_the_same_names(tmp_path: Path, count: int) -> None:
    names = servers.known_names(count)
    assert len({one.name for one in names}) == len({one.address for one in names}) == count
    table = json.loads(servers.name_table(tmp_path, names).read_text())["table"]
    assert {(name, entry["ips"][0]) for name, entry in table.items()} == {(one.name, one.address) for one in names}
    hosts = servers.hosts_file(tmp_path, "x", names).read_text().splitlines()
    assert set(hosts) == {f"{one.address} {one.name}" for one in names}
    unbound = servers.unbound_config(tmp_path, 1, names).read_text()
    assert all(f'"{one.name}. 30 A {one.address}"' in unbound for one in names)
    queries = servers.query_file(tmp_path, "x", names).read_text().splitlines()
    assert sorted(queries) == sorted(f"{one.name} A" for one in names)


def test_a_server_must_prove_its_names() -> None:
    right, wrong = servers.Name("a.example", "10.0.0.1"), servers.Name("b.example", "10.0.0.2")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))

        def serve() -> None:
            for _ in range(3):
                packet, client = sock.recvfrom(4096)
                response = dns.message.make_response(dns.message.from_wire(packet))
                response.answer.append(dns.rrset.from_text(response.question[0].name, 30, "IN", "A", "10.0.0.1"))
                sock.sendto(response.to_wire(), client)

        thread = threading.Thread(target=serve)
        thread.start()
        port = sock.getsockname()[1]
        assert servers.complaint("127.0.0.1", port, [right]) == ""
        assert servers.complaint("127.0.0.1", port, [right, wrong]).startswith("b.example: expected 10.0.0.2, got ")
        thread.join()


def test_options() -> None:
    assert bench.parse_arguments([]).cases == list(CASES)
    options = bench.parse_arguments(["--quick", "--only", "cached"])
    assert (options.pairs, options.seconds, [case.name for case in options.cases]) == (1, 1, ["cached"])
    for bad in (["--only", "x"], ["--pairs", "-1"]):
        with pytest.raises(SystemExit) as raised:
            bench.parse_arguments(bad)
        assert raised.value.code == 2
