"""`pilot-agent proxy` over small scripts in place of a proxy: bad configuration, bad programs, bad manners."""

import contextlib
import fcntl
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.agent_pod import ROOT, AgentPod, binary_of, eventually, fetch

pytestmark = pytest.mark.e2e

MakePod = Callable[..., AgentPod]


@pytest.fixture
def make_pod(tmp_path: Path) -> Iterator[MakePod]:
    with contextlib.ExitStack() as stack:

        def make(script: str = "", **fields: Any) -> AgentPod:
            """`script`: Python code that plays the proxy."""
            program = tmp_path / "program"
            program.write_text(f"#!{sys.executable}\nimport os, signal, sys, time\n{script}\n")
            program.chmod(0o755)
            pod = AgentPod(tmp_path, {"binaryPath": str(program), **fields})
            stack.callback(pod.close)
            return pod

        yield make


RUN = "print('program started', flush=True)\nwhile True: time.sleep(3600)"
STUBBORN = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + RUN


def test_arguments_environment_and_descriptors(make_pod: MakePod) -> None:
    script = (
        "print(sys.argv[1:], os.environ['EXTRA'], os.path.realpath('/proc/self/fd/0'), os.getpgid(0) == os.getpid())\n"
        "print('to stderr', file=sys.stderr); sys.exit(3)"
    )
    pod = make_pod(script)
    pod.start("--drainDuration=7s", EXTRA="inherited", INSTANCE_IP="10.0.0.1")
    assert pod.ended() == 255
    arguments = ["-c", str(pod.config), "--drain-time-s", "7", "--drain-strategy", "immediate"]
    assert str(arguments)[:-1] in pod.out
    assert "inherited /dev/null True" in pod.out
    assert "to stderr" in pod.err
    assert "Error: the proxy exited with status 3 before it was ready" in pod.err


@pytest.mark.parametrize(
    ("proxy_config", "text"),
    [
        (
            '{"customConfigFile": "/nonexistent.yaml"}',
            "customConfigFile: cannot read '/nonexistent.yaml': No such file",
        ),
        ("a: [", "PROXY_CONFIG is not a ProxyConfig document"),
        ('{"statusPort": 99999}', "PROXY_CONFIG: statusPort: 99999: expected an integer from 1 to 65535"),
        ('{"terminationDrainDuration": "5 mins"}', "'5 mins' is not a duration in seconds"),
    ],
)
def test_configuration_errors(make_pod: MakePod, proxy_config: str, text: str) -> None:
    pod = make_pod(RUN)
    pod.start(proxy_config=proxy_config)
    assert pod.ended() == 255
    assert text in pod.err
    assert pod.err.count("\n") == 1
    assert "Proxy command" not in pod.out


def test_a_bootstrap_that_the_proxy_refuses(make_pod: MakePod) -> None:
    """Without customConfigFile the bootstrap says ADS. Whatever the proxy has to say about it ends in our report."""
    pod = make_pod()
    pod.fields = {"statusPort": pod.status, "proxyAdminPort": pod.admin, **binary_of("pysidecar", pod.directory)}
    pod.start()
    assert pod.ended() == 255
    made = pod.directory / "etc/istio/proxy/envoy-rev.json"
    assert f"-c ./{made.relative_to(pod.directory)}" in pod.out
    error = next(line for line in pod.err.splitlines() if line.startswith("Error: "))
    assert error.startswith("Error: the proxy exited with status 1 before it was ready; its last lines: [")
    assert "dynamic_resources.ads_config: is not supported yet" in error
    assert "dynamic_resources.ads_config: is not supported yet" in pod.err.partition("Error: ")[0]
    assert not made.exists()


@pytest.mark.parametrize(
    ("content", "mode", "text"),
    [
        (None, 0, "binaryPath: '{program}' is not a file"),
        (b"\x7fELF nonsense", 0o755, "the proxy cannot be started: {program}: Exec format error"),
        (b"#!/no/such/interpreter\n", 0o755, "the proxy cannot be started: {program}: No such file or directory"),
    ],
)
def test_programs_that_cannot_start(make_pod: MakePod, content: bytes | None, mode: int, text: str) -> None:
    pod = make_pod()
    program = Path(pod.fields["binaryPath"])
    program.unlink()
    if content is not None:
        program.write_bytes(content)
        program.chmod(mode)
    pod.start()
    assert pod.ended() == 255
    assert text.format(program=program) in pod.err


def test_program_that_may_not_be_executed(make_pod: MakePod) -> None:
    pod = make_pod()
    os.chmod(pod.fields["binaryPath"], 0o644)
    pod.start()
    assert pod.ended() == 255
    assert "may not be executed by uid" in pod.err


def test_status_zero_before_readiness_is_no_success(make_pod: MakePod) -> None:
    pod = make_pod()
    pod.start()
    assert pod.ended() == 255
    assert "Error: the proxy exited with status 0 before it was ready" in pod.err


def test_admin_port_without_a_listener(make_pod: MakePod) -> None:
    """Readiness says why it is not there; the drain is logged as failed, its time is given all the same."""
    pod = make_pod(RUN, terminationDrainDuration="0.2s")
    pod.start()
    pod.logged("program started")
    assert fetch(pod.status, "/healthz/ready")[0] == 503
    pod.logged(
        "Envoy proxy is NOT ready: GET /stats?usedonly&filter=^(server[.]state|listener_manager[.]workers_started)$"
    )
    pod.signal(signal.SIGTERM)
    assert pod.ended() == 0
    assert f"on admin port {pod.admin}: cannot connect to 127.0.0.1:{pod.admin}: Connection refused" in pod.out
    assert "the drain could not be started: POST /drain_listeners?inboundonly&graceful on admin port" in pod.out
    assert "was killed by SIGTERM (15), as asked" in pod.out


def test_admin_port_that_never_answers(make_pod: MakePod) -> None:
    """A second SIGTERM does not wait for the drain request either."""
    pod = make_pod(RUN, terminationDrainDuration="3600s")
    with socket.create_server(("127.0.0.1", pod.admin)) as admin:
        pod.start()
        pod.logged("program started")
        pod.signal(signal.SIGTERM)
        connection, _ = admin.accept()
        with connection:
            assert connection.recv(65536).startswith(b"POST /drain_listeners?inboundonly&graceful HTTP/1.1\r\n")
            pod.signal(signal.SIGTERM)
            assert pod.ended() == 0


def test_proxy_that_ignores_sigterm_is_killed(make_pod: MakePod) -> None:
    pod = make_pod(STUBBORN, terminationDrainDuration="0s")
    pod.start()
    pod.logged("program started")
    pod.signal(signal.SIGTERM)
    assert pod.ended() == 0
    assert "proxy is killed: still running 3s after SIGTERM" in pod.out


def test_third_signal_kills_at_once(make_pod: MakePod) -> None:
    pod = make_pod(STUBBORN, terminationDrainDuration="3600s")
    pod.start()
    pod.logged("program started")
    for text in ("SIGTERM: draining", "SIGTERM again", "SIGINT once more"):
        pod.signal(getattr(signal, text.split()[0].rstrip(":")))
        pod.logged(f"received {text}")
    assert pod.ended() == 0
    assert "proxy is killed: asked to hurry" in pod.out


@pytest.mark.parametrize("end", ["sys.exit(1)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_what_a_proxy_leaves_in_its_group_is_killed(make_pod: MakePod, end: str) -> None:
    pod = make_pod(f"if os.fork() == 0:\n    while True: time.sleep(3600)\n{end}")
    pod.start()
    assert pod.ended() == 255  # and close() finds nothing


@pytest.mark.parametrize("module", ["agent.addresses", "asyncio", "agent.supervisor", "agent.metrics.page"])
def test_two_signals_during_the_start(make_pod: MakePod, module: str) -> None:
    """The first when `module` is imported, the second on the way out: an orderly end, without a word, nothing left."""
    pod = make_pod(RUN, terminationDrainDuration="0s")
    (pod.directory / "sitecustomize.py").write_text(
        "import atexit, os, signal, sys\n"
        "def terminate(): os.kill(os.getpid(), signal.SIGTERM)\n"
        "def hook(event, arguments):\n"
        f"    if event == 'import' and arguments[0] == {module!r}:\n"
        "        atexit.register(terminate)\n"
        "        terminate()\n"
        "sys.addaudithook(hook)\n"
    )
    pod.start(PYTHONPATH=f"{pod.directory}:{ROOT}")
    assert pod.ended() == 0
    assert pod.err == ""
    assert "program started" not in pod.out


@contextlib.contextmanager
def full_pipe() -> Iterator[int]:
    """The end to write to of a pipe that nobody reads."""
    read_end, write_end = os.pipe()
    try:
        os.write(write_end, b"x" * fcntl.fcntl(write_end, fcntl.F_GETPIPE_SZ))
        os.set_inheritable(write_end, True)
        yield write_end
    finally:
        os.close(read_end)
        os.close(write_end)


def test_nobody_reads_standard_output(make_pod: MakePod) -> None:
    """A container runtime whose reader hangs: the agent still answers, drains and ends."""
    pod = make_pod(STUBBORN.replace("print('program started', flush=True)\n", ""), terminationDrainDuration="0s")
    with full_pipe() as pipe:
        pod.start(through=["sh", "-c", 'exec "$@" >/proc/$PPID/fd/$FD', "sh"], FD=str(pipe))
        eventually("an answer", lambda: fetch(pod.status, "/healthz/ready")[0] == 503)
        pod.child()
        for _ in range(3):
            pod.signal(signal.SIGTERM)
            fetch(pod.status, "/healthz/ready")  # it has seen the signal when it answers
        assert pod.ended() == 0


def test_nobody_reads_standard_error(make_pod: MakePod) -> None:
    """Nor do the last words of an agent whose proxy died keep the container from its restart."""
    pod = make_pod("sys.exit(3)")
    with full_pipe() as pipe:
        pod.start(through=["sh", "-c", 'exec "$@" 2>/proc/$PPID/fd/$FD', "sh"], FD=str(pipe))
        assert pod.ended() == 255
    assert "the proxy exited with status 3 before it was ready" in pod.out


def test_annotations_and_mesh_configuration_are_read(make_pod: MakePod) -> None:
    pod = make_pod(RUN)
    (pod.directory / "etc/istio/pod").mkdir(parents=True)
    (pod.directory / "etc/istio/config").mkdir(parents=True)
    overlay = json.dumps({"concurrency": 3, "unheardOf": 1})
    (pod.directory / "etc/istio/pod/annotations").write_text(f"proxy.istio.io/config={json.dumps(overlay)}\n")
    (pod.directory / "etc/istio/config/mesh").write_text("defaultConfig: {drainDuration: 9s, concurrency: 5}\n")
    pod.start(ISTIO_CPU_LIMIT="8")
    pod.logged("--drain-time-s 9 ")
    pod.logged("--concurrency 3\n")
    pod.logged("annotation proxy.istio.io/config: unknown ProxyConfig field 'unheardOf' is ignored")
    pod.logged("program started")
    pod.signal(signal.SIGINT)
    assert pod.ended() == 0


def test_admin_port_of_the_file_is_compared(make_pod: MakePod) -> None:
    pod = make_pod(RUN, proxyAdminPort=1)
    pod.start()
    pod.logged(f"customConfigFile has its admin on port {pod.admin}, but ProxyConfig proxyAdminPort is 1")
    pod.logged("program started")
    pod.signal(signal.SIGKILL)
    pod.ended()


def test_root_gives_the_proxy_away_for_a_dns_server_on_port_53(make_pod: MakePod, public_tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    program = public_tmp_path / "program"
    program.write_text("#!/bin/sh\nid -u; id -g; exec sleep 3600\n")
    program.chmod(0o755)
    pod = make_pod(binaryPath=str(program))
    pod.start(DNS_PROXY_ADDR="localhost:53")
    pod.logged("1337\n1337\n")
    pod.signal(signal.SIGKILL)  # PR_SET_PDEATHSIG has survived the change of uid
    pod.ended()


def test_without_a_proxy(make_pod: MakePod) -> None:
    """DISABLE_ENVOY: there is nothing to drain, which is said, and the agent ends as told."""
    pod = make_pod(RUN)
    pod.start(DISABLE_ENVOY="true")
    pod.logged("DISABLE_ENVOY is set: no proxy is started")
    assert fetch(pod.status, "/healthz/ready")[0] == 200
    status, _, body = fetch(pod.status, "/drain", "POST")
    assert (status, body) == (503, "the drain could not be started: there is no proxy to drain\n")
    assert json.loads(fetch(pod.status, "/debug/drain")[2])["state"] == "running"
    pod.signal(signal.SIGTERM)
    assert pod.ended() == 0
    assert "program started" not in pod.out


@pytest.mark.parametrize(("code", "status"), [("0", 0), ("7", 7), ("256", 255), ("x", 255)])
def test_crash_exit_code(make_pod: MakePod, code: str, status: int) -> None:
    pod = make_pod("print('last words', file=sys.stderr); os.kill(os.getpid(), signal.SIGABRT)")
    pod.start(CRASH_EXIT_CODE=code)
    assert pod.ended() == status
    line = "the proxy was killed by SIGABRT (6) before it was ready; likely cause: a failed check of its own; "
    assert f"Error: {line}its last lines: last words\n" in pod.err
    assert (f"'{code}' is ignored" in pod.out) is (code in ("256", "x"))


def test_a_proxy_that_takes_the_quit_request_and_stays(make_pod: MakePod) -> None:
    """Admin quit, then SIGTERM, then SIGKILL."""
    admin = (
        "import http.server\n"
        "class Admin(http.server.BaseHTTPRequestHandler):\n"
        "    def do_POST(self):\n"
        "        print('asked', self.path, flush=True)\n"
        "        self.send_response(200); self.send_header('content-length', '0'); self.end_headers()\n"
        "signal.signal(signal.SIGTERM, lambda *_: print('terminated', flush=True))\n"
        "http.server.HTTPServer(('127.0.0.1', int(os.environ['ADMIN'])), Admin).serve_forever()\n"
    )
    pod = make_pod(admin, terminationDrainDuration="0s")
    pod.start(ADMIN=str(pod.admin))
    eventually("an admin port", lambda: fetch(pod.admin, "/")[0])
    pod.signal(signal.SIGTERM)
    pod.logged("asked /quitquitquit")
    pod.logged("terminated")
    pod.signal(signal.SIGTERM)
    pod.logged("received SIGTERM again")
    pod.signal(signal.SIGTERM)
    assert pod.ended() == 0
    asked = [line for line in pod.out.splitlines() if line.startswith(("asked", "terminated"))]
    assert asked == ["asked /drain_listeners?inboundonly&graceful", "asked /quitquitquit", "terminated"]
    assert "proxy is killed: " in pod.out


def test_out_of_memory(make_pod: MakePod) -> None:
    """The real thing where a memory cgroup can be made; elsewhere a kill that the cgroup knows nothing of."""
    pod = make_pod(
        "data = []\nwhile os.environ['GROUP']: data.append(b'x' * 1000000)\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    with memory_cgroup(64 << 20) as group:
        pod.start(GROUP=group, through=["sh", "-c", f'echo $$ > {group or "/dev"}/cgroup.procs; exec "$@"', "sh"])
        assert pod.ended() == 255
    told = "out of memory: the container's limit is 64 MiB\n" if group else "somebody's kill -9, or "
    told = told if group or "is not readable" not in pod.err else "(the memory cgroup is not readable)"
    assert "Error: the proxy was killed by SIGKILL (9) before it was ready; likely cause: " in pod.err
    assert told in pod.err


@contextlib.contextmanager
def memory_cgroup(limit: int) -> Iterator[str]:
    """A cgroup below ours with a limit in bytes; "" where it cannot be made."""
    from agent.lifecycle import oom

    parent = oom.find()
    folder = None if parent is None else parent.events.parent / f"pysidecar-test-{os.getpid()}"
    try:
        if folder is None:
            raise OSError
        folder.mkdir()
    except OSError:
        yield ""
        return
    try:
        files = [folder / name for name in ("memory.limit_in_bytes", "memory.max") if (folder / name).exists()]
        try:
            files[0].write_text(str(limit))
        except (OSError, IndexError):
            yield ""
            return
        yield str(folder)
    finally:
        folder.rmdir()
