"""Options, and the profile's reading of samples."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench import __main__ as main
from bench import profiling
from bench.measure import Effort


@pytest.mark.parametrize(
    ("arguments", "effort"),
    [
        ([], Effort(5, 4, 1)),
        (["--quick"], Effort(1, 1, 0)),
        (["--pairs", "7", "--seconds", "2"], Effort(7, 2, 1)),
        (["--quick", "--pairs", "2"], Effort(2, 1, 0)),
    ],
)
def test_effort(arguments: list[str], effort: Effort) -> None:
    assert main.effort_of(main.parse_arguments(arguments)) == effort


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--only", "http3"], "--only: no case named http3"),
        (["--profile", "http3"], "--profile: no case named http3"),
        (["--pairs", "0"], "'0' is not a whole number of 1 or more"),
        (["--seconds", "1.5"], "'1.5' is not a whole number"),
        (["--peers", "envoy,squid"], "no peer named squid; known: envoy, haproxy"),
        (["--before", "/nonexistent"], "/nonexistent is not a checkout"),
        (["--subject", "nginx"], "invalid choice: 'nginx'"),
    ],
)
def test_wrong_options_are_named(arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main.parse_arguments(arguments)
    assert ended.value.code == 2
    assert named in capsys.readouterr().err


def test_order_of_the_proxies(tmp_path: Path) -> None:
    (tmp_path / "proxy").mkdir()
    (tmp_path / "proxy" / "__main__.py").touch()
    options = main.parse_arguments(["--before", str(tmp_path), "--peers", "haproxy,envoy"])
    assert [s.name for s in main.subjects_of(options)] == ["direct", "ours", "before", "haproxy", "envoy"]
    again = main.parse_arguments(["--subject", "envoy", "--peers", "envoy"])
    assert [(s.name, s.kind) for s in main.subjects_of(again)][1:] == [("envoy again", "envoy"), ("envoy", "envoy")]


def test_list_names_every_case_with_its_target(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("http1-keepalive ")
    assert "target: rate >= 1.5x" in lines[0]
    assert any("idle <= 45 MB, load <= 1.0x" in line for line in lines)


def test_profile_adds_both_kinds_of_samples_of_a_function() -> None:
    place = ["/x/proxy/http/a.py", 7, "A.feed"]
    content = {"pid": 5, "samples": 10, "own": [[*place, True, 3], [*place, False, 4]], "total": [[*place, 9]]}
    found = profiling.parse(json.dumps(content))
    text = profiling.render(found)
    assert " 70.0%  30.0%  90.0%  A.feed" in text
    assert "process 5: 10 samples" in text


def test_profile_shows_the_top_only() -> None:
    own = [[f"/f{n}.py", 1, f"f{n}", False, 100 - n] for n in range(60)]
    content = {"pid": 1, "samples": 4230, "own": own, "total": [[*row[:3], 1] for row in own]}
    text = profiling.render(profiling.parse(json.dumps(content)))
    assert "f39 " in text
    assert "f40 " not in text


SPINNING = """
import os, sys, time
def spin(path):
    deadline = time.monotonic() + 30
    while not os.path.exists(path) and time.monotonic() < deadline:
        sum(range(200))
child = os.fork()
spin(os.path.join(os.environ["PYSIDECAR_BENCH_PROFILE"], f"{os.getpid()}.json"))
if child:
    os.waitpid(child, 0)
"""


def test_sampler_follows_a_fork_and_finds_the_busy_function(tmp_path: Path) -> None:
    environment = {"PYTHONPATH": str(profiling.SAMPLER), "PYSIDECAR_BENCH_PROFILE": str(tmp_path)}
    subprocess.run([sys.executable, "-c", SPINNING, "proxy"], env=environment, check=True, timeout=60)
    profiles = [profiling.parse(file.read_text(encoding="utf-8")) for file in tmp_path.glob("*.json")]
    assert len(profiles) == 2
    for found in profiles:
        ((_, _, name), _), *_ = found.own.most_common(1)
        assert name == "spin"
