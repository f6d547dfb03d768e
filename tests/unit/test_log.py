"""The application log: levels, components, spdlog patterns, and a reader that does not read."""

from __future__ import annotations

import fcntl
import os
import re
import select
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy import log
from proxy.log_pattern import Record, compile_pattern, escape_c


@pytest.fixture(autouse=True)
def restore() -> Iterator[None]:
    yield
    log.configure()


def test_default_line(capfd: pytest.CaptureFixture[str]) -> None:
    log.get("main").info("started %d of %s", 1, "x")
    line = capfd.readouterr().err
    pattern = (rf"\[20\d\d-\d\d-\d\d \d\d:\d\d:\d\d\.\d\d\d\]\[{os.getpid()}\]\[info\]\[main\] "
               r"\[tests/unit/test_log\.py:\d+\] started 1 of x\n")
    assert re.fullmatch(pattern, line)


def test_percent_signs_without_arguments_stay(capfd: pytest.CaptureFixture[str]) -> None:
    log.get("main").error("100% of %s")
    assert capfd.readouterr().err.endswith("] 100% of %s\n")


def test_levels(capfd: pytest.CaptureFixture[str]) -> None:
    log.configure("warning", "upstream:debug,http:off", pattern="%n.%l")
    for name in ("main", "upstream", "http"):
        logger = log.get(name)
        for write in (logger.trace, logger.debug, logger.info, logger.warning, logger.error, logger.critical):
            write("x")
    assert capfd.readouterr().err.split() == ["main.warning", "main.error", "main.critical", "upstream.debug",
                                              "upstream.info", "upstream.warning", "upstream.error",
                                              "upstream.critical"]
    assert (log.get("upstream").debug_on, log.get("main").debug_on, log.get("main").info_on) == (True, False, False)


def test_set_level_and_list() -> None:
    log.set_level(None, "error")
    log.set_level("config", "trace")
    assert log.levels()["config"] == "trace"
    assert log.levels()["main"] == "error"
    assert tuple(log.levels()) == log.COMPONENTS
    assert log.get("config").trace_on
    with pytest.raises(log.UnknownLogger):
        log.set_level("nope", "info")
    with pytest.raises(log.UnknownLevel):
        log.set_level(None, "loud")
    with pytest.raises(KeyError):
        log.get("nope")


def test_exception_one_entry_a_line_or_one_in_all(capfd: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise ValueError("of itself")

    for single in (False, True):
        log.configure(pattern="<%l> %v", single_entry=single)
        try:
            fail()
        except ValueError as error:
            log.get("main").exception("task failed", error)
        text = capfd.readouterr().err
        assert text.startswith("<critical> task failed\n")
        assert "ValueError: of itself" in text
        assert text.count("<critical>") == (1 if single else text.count("\n"))


def test_escaped(capfd: pytest.CaptureFixture[str]) -> None:
    log.configure(pattern="%v", escaped=True)
    log.get("main").info("a\n\"b\"\t\\ é")
    assert capfd.readouterr().err == r'a\n\"b\"\t\\ \303\251' + "\n"
    assert escape_c("\x01\x7f") == r"\001\177"


RECORD = Record("warning", "main", "te\nxt", "/somewhere/x.py", 12, "run")


@pytest.mark.parametrize(("pattern", "expected"), [
    ("%v", "te\nxt"),
    ("%_", "te\\nxt"),
    ("%j", "te\\nxt"),
    ("%l %L %n", "warning W main"),
    ("%s:%# %! %g %@", "x.py:12 run /somewhere/x.py /somewhere/x.py:12"),
    ("[%8l][%-8l][%=9l][%3!l]", "[ warning][warning ][ warning ][war]"),
    ("%^%l%$ %%", "warning %"),
    ("%P %t", "PID PID"),
    ("plain", "plain"),
    ("", ""),
])
def test_pattern(pattern: str, expected: str) -> None:
    assert compile_pattern(pattern)(RECORD) == expected.replace("PID", str(os.getpid()))


@pytest.mark.parametrize(("pattern", "expected"), [
    ("%Y-%m-%d %T.%e", r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}"),
    ("%H:%M:%S %f %F", r"\d\d:\d\d:\d\d \d{6} \d{9}"),
    ("%E", r"\d{10}"),
    ("%z", r"[+-]\d\d:\d\d"),
    ("%D %R %I %p %a %A %b %B %C %r", r"\d\d/\d\d/\d\d \d\d:\d\d \d\d [AP]M \w+ \w+ \w+ \w+ \d\d \d\d:\d\d:\d\d [AP]M"),
])
def test_pattern_of_time(pattern: str, expected: str) -> None:
    assert re.fullmatch(expected, compile_pattern(pattern)(RECORD))


@pytest.mark.parametrize("pattern", ["%Q", "a %", "%8"])
def test_unknown_pattern(pattern: str) -> None:
    with pytest.raises(ValueError, match="unknown flag '%"):
        compile_pattern(pattern)


def test_path_and_rotation(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log"
    log.configure(pattern="%v", path=str(path))
    log.get("main").info("one")
    path.rename(tmp_path / "log.1")
    log.reopen()
    log.get("main").info("two")
    assert ((tmp_path / "log.1").read_text(), path.read_text()) == ("one\n", "two\n")
    (descriptor,) = log.descriptors()
    log.configure()
    os.close(descriptor)
    assert capfd.readouterr().err == ""
    with pytest.raises(OSError, match="No such file"):
        log.configure(path=str(tmp_path / "none" / "log"))


def test_a_pipe_that_is_full_is_not_waited_for() -> None:
    reader, writer = os.pipe()
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, select.PIPE_BUF)
    log.configure(pattern="%v")
    log._sink.use(writer)
    logger = log.get("main")
    for n in range(100):
        logger.info("%099d", n)
    kept = os.read(reader, 1 << 16).count(b"\n")
    assert 0 < kept < 100
    logger.info("after")
    assert os.read(reader, 1 << 16).decode() == (
        f"({100 - kept} log lines were lost here: the reader does not keep up)\nafter\n")
    log.configure()
    os.close(reader)
    os.close(writer)
