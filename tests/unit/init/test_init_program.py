"""The program around the rules: exit codes, output, log lines, lock, imports."""

import fcntl
import ipaddress
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import init.cli
import init.lock
import init.settings
from init.errors import KernelError, UsageError
from init.flags import resolve
from init.lock import namespace_lock
from init.log import Log, log_options
from init.netlink import local_addresses

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def _one_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(init.settings, "_addresses", lambda: [ipaddress.ip_address("10.10.0.41")])
    monkeypatch.delenv("DRY_RUN_FILE_PATH", raising=False)


def test_dry_run_prints_only_the_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert init.cli.main(["-n", "-b", "*", "--log_output_level=debug"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("* nat\n-N ISTIO_INBOUND\n") and out.endswith("COMMIT\n")
    assert err == ""


def test_dry_run_file_lists_the_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "calls"
    path.write_text("longer than what is written now\n" * 1000)
    monkeypatch.setenv("DRY_RUN_FILE_PATH", str(path))
    assert init.cli.main(["-n"]) == 0
    assert path.read_text() == f"iptables-save\nip6tables-save\n{capsys.readouterr().out}iptables-save\n"
    monkeypatch.setenv("DRY_RUN_FILE_PATH", str(tmp_path))
    assert init.cli.main(["-n"]) == 1
    assert f"DRY_RUN_FILE_PATH: cannot write {str(tmp_path)!r}" in capsys.readouterr().err


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert init.cli.clean_main(["--help=1"]) == 0
    assert init.cli.clean_main(["-h"]) == 0
    assert capsys.readouterr().out.startswith("Usage: istio-clean-iptables [flags]\n")


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["--nope"], 255, "Error: unknown flag: --nope\n"),
        (["--log_output_level=default:loud"], 255, "Error: --log_output_level: 'default:loud' is not a log level"),
        (["--log_target=/nonexistent/x"], 255, "Error: --log_target: cannot append to '/nonexistent/x'"),
        (["--vklog=x"], 255, "Error: --vklog: 'x' is not a whole number"),
        (["-b", "http"], 1, "\terror\t--istio-inbound-ports (-b): 'http' is not a port"),
        (["--help=perhaps"], 255, "--help (-h): 'perhaps' is not a boolean"),
    ],
)
def test_exit_codes(argv: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert init.cli.main(argv) == code
    out, err = capsys.readouterr()
    assert said in err
    assert out == ""


def test_output_that_cannot_be_written_is_an_error_and_no_traceback() -> None:
    for arguments in (["--help"], ["-n"]):
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                [sys.executable, "-m", "init", *arguments],
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                cwd=REPOSITORY,
            )
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert "cannot write to standard output" in done.stderr or "no valid local IP" in done.stderr


def log(*argv: str) -> Log:
    return Log(log_options(resolve(argv, {})))


@pytest.mark.parametrize(
    ("argv", "shown"),
    [
        ((), ["info", "warn", "error"]),
        (("--log_output_level=default:error",), ["error"]),
        (("--log_output_level=debug",), ["debug", "info", "warn", "error"]),
        (("--log_output_level=ads:debug,default:warn",), ["warn", "error"]),
        (("--log_output_level=default:debug,all:error",), ["error"]),
        (("--log_output_level=none",), []),
        (("--log_output_level=",), ["info", "warn", "error"]),
        (("--log_output_level=none", "--log_output_level=default:error"), ["error"]),
    ],
)
def test_levels(argv: tuple[str, ...], shown: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    to = log(*argv)
    to.debug("d")
    to.info("i")
    to.warn("w")
    to.errors(["e"])
    assert [line.split("\t")[1] for line in capsys.readouterr().err.splitlines()] == shown


def test_log_forms(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    log().info("hello")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z\tinfo\thello\n", capsys.readouterr().err)
    to = log("--log_as_json", "--log_target=stdout", f"--log_target={tmp_path / 'log'}", "--log_caller=default")
    to.warn('say "\n"')
    to.close()
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    record = json.loads(line)
    assert (record["level"], record["msg"]) == ("warn", 'say "\n"')
    assert record["caller"].split(":")[0].endswith("test_init_program.py")
    assert (tmp_path / "log").read_text() == line
    log("--log_stacktrace_level=default:warn").warn("deep")
    assert "test_log_forms" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["loud", "default:", ":info", "a:b:info:", "default:info,"])
def test_bad_levels(value: str) -> None:
    with pytest.raises(UsageError):
        log(f"--log_output_level={value}")


def test_the_lock_waits_and_gives_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "namespace"
    path.touch()
    monkeypatch.setattr(init.lock, "NAMESPACE", str(path))
    waited: list[bool] = []
    with namespace_lock(lambda: waited.append(True)):
        assert waited == []
        with pytest.raises(KernelError, match="another process has held the lock"):
            with namespace_lock(lambda: waited.append(True), wait=0.05):
                raise AssertionError("two holders")
    assert waited == [True]
    with open(path) as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with namespace_lock(lambda: fcntl.flock(other, fcntl.LOCK_UN), wait=60):
            pass


def test_the_lock_is_released_after_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "namespace"
    path.touch()
    monkeypatch.setattr(init.lock, "NAMESPACE", str(path))
    with pytest.raises(RuntimeError), namespace_lock(lambda: None):
        raise RuntimeError
    with namespace_lock(lambda: None, wait=0):
        pass
    monkeypatch.setattr(init.lock, "NAMESPACE", str(tmp_path / "absent"))
    with pytest.raises(KernelError, match="mount /proc"), namespace_lock(lambda: None):
        pass


def test_the_kernel_lists_its_addresses() -> None:
    found = local_addresses()
    assert [a.version for a in found] == sorted(a.version for a in found)
    assert all(isinstance(a, ipaddress.IPv4Address | ipaddress.IPv6Address) for a in found)


def test_only_the_standard_library_is_imported() -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); import init.cli, init.apply, init.cleanup\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    # -S: what site-packages itself imports at start is not this program's.
    done = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=True)
    imported = set(done.stdout.split()) - {"init", "__main__"}
    assert imported <= set(sys.stdlib_module_names)
    assert not imported & {"asyncio", "argparse", "logging", "ssl", "importlib.metadata", "multiprocessing"}
