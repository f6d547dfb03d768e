"""Main and its workers: start, death, replacement, signals, logs, and the end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.proxy_process import CONFIG, PATIENCE, ROOT, ProxyProcess, alive, listening, wait_for

REQUEST = b"GET /%d HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[ProxyProcess]:
    proxy = ProxyProcess(tmp_path)
    yield proxy
    proxy.close()


# --- workers ----------------------------------------------------------------------------------------------------------


def test_counters_are_those_of_all_workers_and_survive_them(proxy: ProxyProcess) -> None:
    proxy.start()
    first = proxy.workers()
    assert len(first) == 2
    for n in range(20):
        assert proxy.get(f"/{n}") == 200
    assert proxy.stat("http.in.downstream_rq_total") == 20
    os.kill(first[0], signal.SIGKILL)
    wait_for("the replacement", lambda: len(proxy.workers()) == 2 and first[0] not in proxy.workers())
    wait_for("the log to say so", lambda: "is back" in proxy.log)
    assert f"(pid {first[0]}) was killed by SIGKILL after" in proxy.log
    assert proxy.stat("server.worker_restarts") == 1
    assert proxy.stat("http.in.downstream_rq_total") == 20
    for n in range(20):
        assert proxy.get(f"/{n}") == 200
    assert proxy.stat("http.in.downstream_rq_total") == 40
    assert proxy.stat("http.in.downstream_cx_active") == 0
    assert proxy.admin("/reset_counters", "POST")[0] == 200
    assert proxy.stat("http.in.downstream_rq_total") == 0
    assert proxy.get() == 200
    assert proxy.stat("http.in.downstream_rq_total") == 1
    wait_for("the histogram", lambda: "http.in.downstream_rq_time: P0(" in proxy.admin("/stats")[1])


def test_no_client_hangs_when_a_worker_is_killed(proxy: ProxyProcess) -> None:
    """Connections that the kernel queued for it end with it: main has no copy of its listening socket."""
    proxy.start()
    stopped = proxy.workers()[0]
    os.kill(stopped, signal.SIGSTOP)
    outcomes: Counter[str] = Counter()
    connected = threading.Barrier(41)

    def client(number: int) -> None:
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE) as sock:
            sock.sendall(REQUEST % number)
            connected.wait(PATIENCE)
            try:
                outcomes["served" if sock.recv(1000).startswith(b"HTTP/1.1 200") else "closed"] += 1
            except ConnectionResetError:
                outcomes["reset"] += 1
            except TimeoutError:
                outcomes["hung"] += 1

    threads = [threading.Thread(target=client, args=(n,)) for n in range(40)]
    for thread in threads:
        thread.start()
    connected.wait(PATIENCE)
    os.kill(stopped, signal.SIGKILL)
    for thread in threads:
        thread.join()
    assert outcomes["hung"] == 0
    assert outcomes["served"] + outcomes["reset"] + outcomes["closed"] == 40
    assert outcomes["served"] > 0 and outcomes["reset"] + outcomes["closed"] > 0  # both workers had some
    wait_for("the replacement", lambda: len(proxy.workers()) == 2)
    for n in range(40):
        assert proxy.get(f"/{n}") == 200


def test_a_worker_that_does_not_answer_does_not_hang_a_scrape(proxy: ProxyProcess) -> None:
    proxy.start()
    for n in range(20):
        proxy.get(f"/{n}")
    assert proxy.stat("http.in.downstream_rq_total") == 20
    stopped = proxy.workers()[0]
    os.kill(stopped, signal.SIGSTOP)
    assert proxy.stat("http.in.downstream_rq_total") == 20
    assert f"(pid {stopped}) did not answer 'snapshot' within 2 s" in proxy.log
    os.kill(stopped, signal.SIGCONT)
    assert proxy.stop() == 0


def test_workers_that_die_again_and_again_end_main(proxy: ProxyProcess) -> None:
    proxy.start()

    def kill_the_youngest() -> bool:
        if proxy.process is not None and proxy.process.poll() is not None:
            return True
        for pid in proxy.workers()[-1:]:
            with contextlib.suppress(ProcessLookupError):  # main has given up and ended it just now
                os.kill(pid, signal.SIGKILL)
        return False

    wait_for("main to give up", kill_the_youngest)
    assert proxy.ended() == 1
    assert "died 5 times within 5 s of its start: giving up" in proxy.log


def test_a_new_worker_is_like_its_siblings(proxy: ProxyProcess) -> None:
    """A worker that replaces another after a drain does not listen again; health and log levels are the same."""
    proxy.start()
    assert proxy.admin("/healthcheck/fail", "POST")[0] == 200
    assert proxy.admin("/ready") == (503, "DRAINING\n")
    assert proxy.admin("/drain_listeners?inboundonly", "POST")[0] == 200
    with pytest.raises(ConnectionRefusedError):
        proxy.get()
    for pid in proxy.workers():
        os.kill(pid, signal.SIGKILL)
    wait_for("both to be back", lambda: proxy.log.count("is back") == 2)
    with pytest.raises(ConnectionRefusedError):
        proxy.get()
    assert proxy.stat("listener_manager.listener_stopped") == 1
    assert proxy.admin("/healthcheck/ok", "POST")[0] == 200
    assert proxy.admin("/ready") == (200, "LIVE\n")


def test_log_level_changes_in_main_and_workers(proxy: ProxyProcess) -> None:
    proxy.start("-l", "warning")
    assert "[info]" not in proxy.log
    assert proxy.admin("/logging?level=debug", "POST")[0] == 200
    pids = set(proxy.workers())
    wait_for("the workers' debug lines", lambda: all(f"][{pid}][debug]" in proxy.log for pid in pids))


# --- the end ----------------------------------------------------------------------------------------------------------


def test_workers_end_when_main_is_killed(proxy: ProxyProcess) -> None:
    proxy.start()
    workers = proxy.workers()
    os.kill(proxy.pid, signal.SIGKILL)
    wait_for("the workers to end", lambda: not any(alive(pid) for pid in workers))
    assert proxy.ended() == -signal.SIGKILL


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_end_writes_the_access_log_out(proxy: ProxyProcess, number: signal.Signals) -> None:
    proxy.start("--file-flush-interval-msec", "3600000")
    for n in range(30):
        proxy.get(f"/{n}")
    assert len(proxy.access_log.read_text().splitlines()) < 30
    assert proxy.stop(number) == 0
    assert sorted(proxy.access_log.read_text().splitlines()) == sorted(f"/{n} 200" for n in range(30))
    assert f"caught {number.name}" in proxy.log


def test_quitquitquit(proxy: ProxyProcess) -> None:
    proxy.start()
    assert proxy.admin("/quitquitquit", "POST") == (200, "OK\n")
    assert proxy.ended() == 0


def test_a_worker_that_does_not_end_is_killed(proxy: ProxyProcess) -> None:
    proxy.start()
    os.kill(proxy.workers()[0], signal.SIGSTOP)
    assert proxy.stop() == 0
    assert "does not end: killing it" in proxy.log


def test_signals_to_the_whole_group_end_it_once(proxy: ProxyProcess) -> None:
    """Ctrl-C reaches the workers too; they leave it to main, which sees none of them die before their time."""
    proxy.start()
    for pid in [*proxy.workers(), proxy.pid]:
        os.kill(pid, signal.SIGINT)
    assert proxy.ended() == 0
    assert "was killed" not in proxy.log
    assert "ended with code" not in proxy.log


def test_sighup_is_ignored_and_sigusr1_rotates(proxy: ProxyProcess) -> None:
    log_path = proxy.folder / "app.log"
    proxy.start("--log-path", str(log_path))
    for n in range(10):
        proxy.get(f"/{n}")
    os.kill(proxy.pid, signal.SIGHUP)
    for pid in proxy.workers():
        os.kill(pid, signal.SIGHUP)
    old = proxy.folder / "access.log.1"
    proxy.access_log.rename(old)
    log_path.rename(proxy.folder / "app.log.1")
    os.kill(proxy.pid, signal.SIGUSR1)
    wait_for("the new files", lambda: proxy.access_log.exists() and log_path.exists())
    for n in range(10, 20):
        proxy.get(f"/{n}")
    assert proxy.stop() == 0
    lines = old.read_text().splitlines() + proxy.access_log.read_text().splitlines()
    assert sorted(lines) == sorted(f"/{n} 200" for n in range(20))
    assert all(f"/{n} 200" in proxy.access_log.read_text().splitlines() for n in range(10, 20))
    assert "caught SIGTERM" in log_path.read_text()
    assert proxy.log == ""


# --- start ------------------------------------------------------------------------------------------------------------


def test_a_port_in_use_is_fatal(proxy: ProxyProcess) -> None:
    with listening(proxy.port):
        proxy.start("-l", "off", wait=False)
        assert proxy.ended() == 1
    assert proxy.log == f"cannot bind '127.0.0.1:{proxy.port}': Address already in use\n"


def test_an_admin_port_in_use_is_fatal(proxy: ProxyProcess) -> None:
    with listening(proxy.admin_port):
        proxy.start(wait=False)
        assert proxy.ended() == 1
    text = f"cannot bind '127.0.0.1:{proxy.admin_port}': Address already in use"
    assert "[critical][main] [proxy/main.py:" in proxy.log
    assert f"error `{text}` initializing config '{proxy.config}'" in proxy.log


def test_an_access_log_that_cannot_be_opened_is_fatal(tmp_path: Path) -> None:
    proxy = ProxyProcess(tmp_path, CONFIG.replace("LOG", "/nonexistent/access.log"))
    proxy.start("-l", "off", wait=False)
    assert proxy.ended() == 1
    assert proxy.log == "unable to open file '/nonexistent/access.log': No such file or directory\n"
    proxy.close()


def test_listeners_are_all_or_none(tmp_path: Path) -> None:
    """One of two listeners cannot be bound: the other one never accepts."""
    listener = CONFIG[CONFIG.index("  - name: main"):]
    proxy = ProxyProcess(tmp_path, CONFIG + listener.replace("name: main", "name: second").replace("MAIN", "SECOND"))
    config = proxy.config.read_text()
    with socket.create_server(("127.0.0.1", 0)) as other:
        proxy.config.write_text(config.replace("SECOND", str(other.getsockname()[1])))
        proxy.start("-l", "off", wait=False)
        while proxy.process is not None and proxy.process.poll() is None:
            with pytest.raises(ConnectionRefusedError):
                proxy.get()
    assert proxy.ended() == 1
    assert "Address already in use" in proxy.log
    proxy.close()


def test_files_for_other_programs(proxy: ProxyProcess) -> None:
    address, base_id = proxy.folder / "address", proxy.folder / "base-id"
    proxy.start("--admin-address-path", str(address), "--base-id-path", str(base_id), "--base-id", "7")
    assert address.read_text() == f"127.0.0.1:{proxy.admin_port}"
    assert base_id.read_text() == "7"


def test_node_and_tags_of_the_command_line(proxy: ProxyProcess) -> None:
    proxy.start("--service-node", "n1", "--service-cluster", "c1", "--service-zone", "z1", "--stats-tag", "pod:p1")
    assert proxy.get() == 200
    info = proxy.admin("/server_info")[1]
    assert '"id": "n1"' in info and '"cluster": "c1"' in info and '"zone": "z1"' in info
    metrics = proxy.admin("/stats/prometheus?filter=http.in.downstream_rq_total")[1]
    assert 'pod="p1"' in metrics


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-W", "error", "-m", "proxy", *arguments], cwd=ROOT, capture_output=True,
                          text=True, timeout=PATIENCE)


def test_validate(proxy: ProxyProcess) -> None:
    with listening(proxy.port), listening(proxy.admin_port):
        done = run("-c", str(proxy.config), "--mode", "validate", "-l", "warning")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"configuration '{proxy.config}' OK\n", "")
    assert not proxy.access_log.exists()


def test_validate_reports_every_error(proxy: ProxyProcess) -> None:
    proxy.config.write_text(proxy.config.read_text().replace("prefix: /", "prefixx: /").replace("%REQ", "%REQQ"))
    done = run("-c", str(proxy.config), "--mode", "validate")
    assert (done.returncode, done.stdout) == (1, "")
    lines = [line for line in done.stderr.splitlines() if "[critical]" in line]
    assert any("prefixx" in line for line in lines)
    assert any("unknown operator REQQ" in line for line in lines)
    assert all(f"error initializing configuration '{proxy.config}': " in line for line in lines)


def test_version_and_bad_options() -> None:
    assert run("--version").stdout.startswith("\npython -m proxy  version: ")
    done = run("--mode", "x")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "error: unknown mode 'x'\n")
    done = run("--log-path", "/nonexistent/log")
    assert (done.returncode, done.stderr) == (
        1, "error: --log-path: unable to open file '/nonexistent/log': No such file or directory\n")
    done = run()
    assert done.returncode == 1
    assert "At least one of --config-path or --config-yaml" in done.stderr
