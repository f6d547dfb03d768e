"""A pod of init container, sidecar and application, all with the rights and arguments that the injector gives them."""

from __future__ import annotations

import asyncio
import http.client
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.mesh_pod import CALL, OUTSIDE, POD, PORT, Client, serving
from tests.image.pod import CONFIG, SIDECAR, Pod
from tests.image.podman import Podman
from tests.netns.netns import Namespace, require

WHILE_THERE_ARE_ORPHANS = """
import os, time
def processes():
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat") as stat:
                yield stat.read()
        except OSError:
            pass
while any("(sleep)" in process for process in processes()):
    time.sleep(0.01)
"""


@pytest.fixture(scope="module")
def pod(podman: Podman) -> Iterator[Pod]:
    """Captured, with an application; tests start the sidecar."""
    require()
    folder = podman.folder / "pod"
    folder.mkdir()
    with Namespace() as inside, Namespace() as outside:
        made = Pod(podman, folder, inside, outside)
        try:
            done = made.init()
            assert done.returncode == 0, done.stderr
            made.start_application()
            yield made
        finally:
            made.close()


@pytest.fixture
def sidecar(pod: Pod) -> Iterator[Pod]:
    """The pod with a sidecar that is ready."""
    try:
        pod.start_sidecar()
        yield pod
    finally:
        pod.podman.remove("istio-proxy")


def ask(pod: Pod, port: int, path: str, host: str = POD) -> tuple[int, str]:
    """From outside: status and body."""
    with pod.outside.entered():
        connection = http.client.HTTPConnection(host, port, timeout=10)
        connection.connect()
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def test_init_container(pod: Pod) -> None:
    """Its second run, after a restart of the pod's sandbox, changes nothing."""

    def rules() -> list[str]:
        saved = [pod.inside.run([f"{program}-save"]).stdout for program in ("iptables", "ip6tables")]
        return [line for text in saved for line in text.splitlines() if line.startswith("-A ")]

    before = rules()
    assert "-A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports 15006" in before
    assert "-A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN" in before
    again = pod.init()
    assert again.returncode == 0, again.stderr
    assert rules() == before


def test_validation_container(pod: Pod) -> None:
    done = pod.validation()
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("flags", [["--native-nftables"], ["--backend=libiptc"], ["--backend=iptables-legacy"]])
def test_other_backends(podman: Podman, flags: list[str]) -> None:
    with Namespace() as inside, Namespace() as outside:
        folder = podman.folder / flags[0].strip("-").replace("=", "-")
        folder.mkdir()
        other = Pod(podman, folder, inside, outside)
        done = other.init(*flags)
        assert done.returncode == 0, done.stderr
        done = other.validation()
        assert done.returncode == 0, done.stderr


def test_requests_in_both_directions(sidecar: Pod) -> None:
    assert ask(sidecar, 15021, "/healthz/ready")[0] == 200
    client = Client(sidecar.outside, POD)

    async def play() -> str:
        async with serving(sidecar.outside, (OUTSIDE,)):
            await client.get("/in")
            client.close()
            return (await asyncio.to_thread(sidecar.podman.execute, "app", "python3", "-c", CALL)).stdout

    assert asyncio.run(play()) == "200 envoy\n"
    assert client.failures == []
    assert sidecar.stop_sidecar()["ExitCode"] == 0
    log = sidecar.podman.logs("istio-proxy")
    assert "inbound /in 200 -" in log and "outbound /call 200 -" in log


def test_status_and_admin_ports(sidecar: Pod) -> None:
    """Prometheus from outside, the operator within."""
    ask(sidecar, PORT, "/")
    for port in (15020, 15090):
        status, page = ask(sidecar, port, "/stats/prometheus")
        assert status == 200 and "envoy_cluster_upstream_rq_total{" in page
    stats = sidecar.podman.execute("istio-proxy", "pilot-agent", "request", "GET", "stats")
    assert "http.inbound.downstream_rq_2xx: 1\n" in stats.stdout, stats.stderr


def test_stop_under_load(sidecar: Pod) -> None:
    """`podman stop`, as a kubelet stops: every request is answered, everybody is told to go, then it ends with 0."""
    clients = [Client(sidecar.outside, POD) for _ in range(4)]

    async def play() -> dict[str, Any]:
        gone = asyncio.Event()  # the endpoint has been taken out of the clients' lists
        loop = asyncio.get_running_loop()
        work = [loop.create_task(client.work(gone)) for client in clients]
        while not all(client.requests > 20 for client in clients):
            await asyncio.sleep(0.01)
        stop = loop.create_task(asyncio.to_thread(sidecar.stop_sidecar))
        while not all(client.announced for client in clients) and not stop.done():
            await asyncio.sleep(0.01)
        gone.set()
        await asyncio.gather(*work)
        return await stop

    state = asyncio.run(play())
    assert [client.failures for client in clients] == [[]] * 4
    assert all(client.announced for client in clients)
    assert (state["Status"], state["ExitCode"], state["OOMKilled"]) == ("exited", 0, False)
    log = sidecar.podman.logs("istio-proxy")
    assert "received SIGTERM: draining for 1s" in log
    assert log.count("inbound / 200 -") == sum(client.requests for client in clients)


def test_native_sidecar(sidecar: Pod) -> None:
    """Its preStop hook drains, requests still go through, and SIGTERM, after the application's end, is the end."""
    hook = sidecar.podman.execute("istio-proxy", "pilot-agent", "request", "--debug-port=15020", "POST", "drain")
    assert hook.returncode == 0, hook.stderr
    assert ask(sidecar, PORT, "/")[0] == 200
    assert sidecar.stop_sidecar()["ExitCode"] == 0
    assert "draining for" not in sidecar.podman.logs("istio-proxy")


def test_the_first_process_collects_orphans(sidecar: Pod) -> None:
    """What a hook or `kubectl exec` leaves behind has the agent as its parent."""
    assert sidecar.podman.execute("istio-proxy", "sh", "-c", "sleep 0.05 & sleep 0.05 &").returncode == 0
    done = sidecar.podman.execute("istio-proxy", "timeout", "20", "python3", "-c", WHILE_THERE_ARE_ORPHANS)
    assert done.returncode == 0, done.stderr


def test_killed_and_started_again(sidecar: Pod) -> None:
    """A container of the same pod after one that could clean up nothing, on the same volumes."""
    sidecar.podman("kill", "--signal=KILL", Podman.name("istio-proxy"))
    sidecar.podman("wait", Podman.name("istio-proxy"))
    sidecar.podman.remove("istio-proxy")
    sidecar.start_sidecar()
    assert ask(sidecar, PORT, "/")[0] == 200


def test_settings_as_injected(pod: Pod) -> None:
    """Limits and files of the pod are seen: two CPUs are two workers; the program is our proxy in Envoy's place."""
    done = pod.sidecar("--explain-config")
    assert done.returncode == 0, done.stderr
    found = dict(line.split("\t", 1) for line in done.stdout.splitlines() if "\t" in line)
    assert found["ProxyConfig concurrency"].startswith("2\t")
    assert '"/usr/local/bin/envoy"' in found["ProxyConfig binaryPath"]


def test_a_broken_configuration_ends_the_container(pod: Pod) -> None:
    done = pod.sidecar(customConfigFile="/etc/sidecar/absent.json")
    assert done.returncode not in (0, 125, 126, 127)
    assert "/etc/sidecar/absent.json" in done.stdout + done.stderr


def test_out_of_memory(pod: Pod) -> None:
    """The limit of the container is told from a kill."""
    eater = "#!/usr/bin/python3\neaten = []\nwhile True: eaten.append(bytearray(1 << 20))\n"
    rights = [*SIDECAR, "--memory=96m"]
    fields = {"customConfigFile": CONFIG, "binaryPath": pod.place("eater", eater)}
    done = pod.sidecar(rights=rights, **fields)
    assert done.returncode == 255
    assert "killed by SIGKILL (9) before it was ready; likely cause: out of memory" in done.stderr
    assert "96 MiB" in done.stderr
