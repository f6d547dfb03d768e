"""wrk's command line and the parser of its report."""

from __future__ import annotations

import pytest

from bench import wrk

GOOD = """\
Running 4s test @ http://127.0.0.1:8080/1k
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   439.22us  116.11us   4.10ms   93.05%
    Req/Sec    54.55k     2.13k   57.45k    80.00%
  Latency Distribution
     50%  421.00us
     75%  470.00us
     90%  533.00us
     99%    1.82ms
  217072 requests in 4.00s, 245.73MB read
Requests/sec:  54268.02
Transfer/sec:     61.43MB
"""
BAD = GOOD.replace(
    "245.73MB read\n",
    "245.73MB read\n  Socket errors: connect 1, read 2, write 3, timeout 4\n  Non-2xx or 3xx responses: 5\n",
)


def test_report_of_a_clean_run() -> None:
    report = wrk.parse(GOOD)
    assert report.requests == 217072
    assert report.seconds == 4.0
    assert report.rate == 54268.02
    assert (report.p50_us, report.p99_us) == (421.0, 1820.0)
    assert report.bytes_read == 245.73 * 1024 * 1024
    assert report.complaint(1024) == ""


def test_every_kind_of_error_is_named() -> None:
    report = wrk.parse(BAD)
    assert report.complaint(1024) == (
        "5 responses other than 2xx or 3xx, 1 connect errors, 2 read errors, 3 write errors, 4 timeouts"
    )


@pytest.mark.parametrize("kind", ["connect", "read", "write", "timeout"])
def test_one_socket_error_is_enough(kind: str) -> None:
    counts = {name: int(name == kind) for name in ("connect", "read", "write", "timeout")}
    line = "  Socket errors: " + ", ".join(f"{name} {count}" for name, count in counts.items())
    report = wrk.parse(GOOD.replace("MB read\n", f"MB read\n{line}\n"))
    assert kind in report.complaint(1024)


def test_short_bodies_do_not_count() -> None:
    report = wrk.parse(GOOD)
    average = report.bytes_read / report.requests
    assert wrk.parse(GOOD).complaint(int(average)) == ""
    assert "bytes a response, expected 2048 or more" in report.complaint(2048)


def test_a_run_without_a_response_does_not_count() -> None:
    nothing = GOOD.replace("217072 requests in 4.00s, 245.73MB read", "0 requests in 4.00s, 0.00B read")
    assert wrk.parse(nothing).complaint(1024) == "no response at all"


@pytest.mark.parametrize(
    ("text", "microseconds"), [("12.34us", 12.34), ("1.50ms", 1500.0), ("2.00s", 2e6), ("1.00m", 60e6)]
)
def test_units_of_time(text: str, microseconds: float) -> None:
    assert wrk.parse(GOOD.replace("1.82ms", text)).p99_us == pytest.approx(microseconds)


@pytest.mark.parametrize(("text", "size"), [("0.00B", 0), ("512.00B", 512), ("3.00KB", 3072), ("2.50GB", 2.5 * 2**30)])
def test_units_of_size(text: str, size: float) -> None:
    assert wrk.parse(GOOD.replace("245.73MB", text)).bytes_read == size


@pytest.mark.parametrize(
    ("cut", "named"),
    [
        ("  217072 requests in 4.00s, 245.73MB read\n", "total of requests"),
        ("Requests/sec:  54268.02\n", "Requests/sec"),
        ("     50%  421.00us\n", "50% latency"),
        ("     99%    1.82ms\n", "99% latency"),
    ],
)
def test_a_missing_part_is_named(cut: str, named: str) -> None:
    with pytest.raises(wrk.WrkError, match=named):
        wrk.parse(GOOD.replace(cut, ""))


def test_command_asks_for_a_new_connection_only_where_wanted() -> None:
    keep = wrk.command(8080, "/1k", "details:9080", 4, new_connection=False)
    close = wrk.command(8080, "/1k", "details:9080", 4, new_connection=True)
    assert keep[:4] == ["wrk", "-t1", "-c32", "-d4s"]
    assert keep[-1] == "http://127.0.0.1:8080/1k"
    assert "Host: details:9080" in keep
    assert "Connection: close" not in keep
    assert "Connection: close" in close
