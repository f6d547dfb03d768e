"""Log lines: Istio's two forms, scopes, levels."""

import fcntl
import json
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import log
from agent.errors import UsageError
from agent.options import LogOptions


@pytest.fixture(autouse=True)
def restore() -> Iterator[None]:
    yield
    log.configure(LogOptions(("stdout",), False, "", "default:none", ""))


def written(path: Path, output: str = "", stack: str = "default:none", caller: str = "", as_json: bool = False) -> str:
    log.configure(LogOptions((str(path),), as_json, output, stack, caller))
    for name in ("default", "dns"):
        scope = log.scope(name)
        scope.debug("d")
        scope.info("i")
        scope.warn("w")
        scope.error("e")
    return path.read_text()


def test_text_form(tmp_path: Path) -> None:
    lines = written(tmp_path / "log").splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z\tinfo\ti", lines[0])
    assert [line.split("\t")[1:] for line in lines] == [
        ["info", "i"], ["warn", "w"], ["error", "e"], ["info", "dns", "i"], ["warn", "dns", "w"], ["error", "dns", "e"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("output", "count"),
    [
        ("debug", 7),
        ("default:error", 4),
        ("dns:none", 3),
        ("all:none", 0),
        ("all:debug,dns:none", 8),
        ("warn,dns:warn", 4),
    ],
)
def test_levels(tmp_path: Path, output: str, count: int) -> None:
    assert len(written(tmp_path / "log", output).splitlines()) == count


def test_json_form(tmp_path: Path) -> None:
    records = [json.loads(line) for line in written(tmp_path / "log", "error", as_json=True).splitlines()]
    assert records[0].keys() == {"level", "time", "msg"}
    assert (records[0]["level"], records[0]["msg"]) == ("error", "e")
    assert records[-1]["scope"] == "dns"


def test_caller_and_stack(tmp_path: Path) -> None:
    text = written(tmp_path / "log", "error", stack="default:error", caller="default")
    assert re.search(r"\terror\ttest_agent_log\.py:\d+\te\n", text)
    assert "in written" in text
    assert text.splitlines()[-1].split("\t")[1:] == ["error", "dns", "e"]  # neither for the other scope


def test_a_message_is_one_line(tmp_path: Path) -> None:
    log.configure(LogOptions((str(tmp_path / "log"),), False, "", "", ""))
    log.scope().info("one\ntwo\x1b[31m\udcff")
    assert (tmp_path / "log").read_text().split("\t")[2] == "one\\ntwo\\x1b[31m\\udcff\n"


@pytest.mark.parametrize(("verbosity", "lines"), [(0, 0), (4, 1)])
def test_vklog_is_the_debug_level_of_one_scope(tmp_path: Path, verbosity: int, lines: int) -> None:
    log.configure(LogOptions((str(tmp_path / "log"),), False, "", "default:none", "", verbosity))
    log.scope("klog").debug("d")
    log.scope("dns").debug("d")
    assert len((tmp_path / "log").read_text().splitlines()) == lines


def test_scopes_of_istiod_are_no_error(tmp_path: Path) -> None:
    """A mesh has one setting of levels for istiod and its pods (`global.logging.level`)."""
    text = written(tmp_path / "log", "default:error,model:debug,ads:debug", "rbac:error", "validation,default")
    assert [line.split("\t")[1] for line in text.splitlines()] == ["error", "info", "warn", "error"]
    assert log.unknown_scopes() == ("model", "rbac", "validation")
    many = ",".join(f"s{number}:info" for number in range(1000))
    written(tmp_path / "log", many)
    assert len(log.unknown_scopes()) == 16
    with pytest.raises(UsageError, match="--log_output_level: unknown level 'loud'"):
        written(tmp_path / "log", "model:loud")
    with pytest.raises(UsageError, match="--log_stacktrace_level: unknown level 'debug:info'"):
        written(tmp_path / "log", stack="default:debug:info")


def test_a_reader_that_has_stopped_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that does not fit is lost; how many were is said when somebody reads again."""
    waits: list[int] = []

    def writable(descriptor: int, patience_ms: int) -> bool:
        waits.append(patience_ms)
        return False

    monkeypatch.setattr(log, "_is_writable", writable)
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    os.write(write_end, b"x" * fcntl.fcntl(write_end, fcntl.F_GETPIPE_SZ))
    monkeypatch.setattr(log._sink, "descriptors", (write_end,))
    scope = log.scope()
    try:
        for _ in range(5):
            scope.info("lost")
        assert waits == [log._PATIENCE_MS, 0, 0, 0, 0]
        os.read(read_end, 1 << 20)
        scope.info("after")
        told, after = os.read(read_end, 65536).decode().splitlines()
        assert told == "5 lines of the log were lost: nobody read it"
        assert after.endswith("\tinfo\tafter")
        assert os.get_blocking(write_end)
    finally:
        for end in (read_end, write_end):
            os.close(end)


def test_a_pipe_that_may_not_be_opened_anew_is_looked_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard output of another user; or a socket, as from systemd."""
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    monkeypatch.setattr(log._sink, "descriptors", (ours.fileno(),))
    monkeypatch.setattr(log, "_PATIENCE_MS", 1)
    with ours, theirs:
        for number in range(2000):
            log.scope().info(f"{number:04d}{'x' * 100}")  # would block for ever
        theirs.setblocking(False)
        assert b"0000xxx" in theirs.recv(65536)


def test_a_descriptor_that_is_not_open_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    read_end, write_end = os.pipe()
    monkeypatch.setattr(log._sink, "descriptors", (write_end,))
    log.scope().info("first")
    os.close(write_end)
    log.scope().info("nowhere")
    os.read(read_end, 65536)
    os.close(read_end)
