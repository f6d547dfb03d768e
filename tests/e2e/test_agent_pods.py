"""Whole pods under a kubelet, behind real capture: start order, stop under load, crashes, native sidecars, jobs."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.mesh_pod import APPLICATION, CALL, OUTSIDE, POD, READY, Client, World, public_world, status_page
from tests.e2e.test_kubelet import in_order
from tests.kubelet import Kubelet

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module", params=["pysidecar", "envoy"])
def both(request: pytest.FixtureRequest) -> Iterator[World]:
    """A world with our proxy in it, and one with Envoy."""
    with public_world(str(request.param)) as made:
        yield made


@pytest.fixture(scope="module")
def ours() -> Iterator[World]:
    with public_world("pysidecar") as made:
        yield made


def test_the_application_is_held_until_the_proxy_is_ready(both: World) -> None:
    """holdApplicationUntilProxyStarts: its very first request already goes through the proxy."""
    spec = {"containers": [both.sidecar(hold=True), both.application(CALL)], "restartPolicy": "Never"}

    async def scenario(pod: Kubelet) -> None:
        await pod.until("the call", lambda: pod["app"].over)
        await pod.delete()

    pod = both.run(spec, scenario)
    in_order(pod, "istio-proxy: started", "istio-proxy: postStart done", "app: started", "app: exited 0")
    assert pod["app"].out == "200 envoy\n"
    assert pod["istio-proxy"].exits == [0]


def test_stop_under_load(both: World) -> None:
    """Keep-alive clients in both directions: no request fails, each is in the log, nobody is cut."""
    spec = {"containers": [both.sidecar(hold=True), both.application()]}
    inbound = [Client(both.outside, POD) for _ in range(4)]
    outbound = [Client(both.pod, OUTSIDE, "service") for _ in range(2)]

    async def scenario(pod: Kubelet) -> None:
        await pod.is_ready()
        gone = asyncio.Event()  # the endpoint has been taken out of the clients' lists
        work = [pod.spawn(client.work(gone), "load") for client in (*inbound, *outbound)]
        await pod.until("some load", lambda: all(client.requests > 20 for client in inbound))
        deleting = pod.spawn(pod.delete(), "delete")
        await pod.until("announcements", lambda: all(client.announced for client in inbound))
        asked = [client.requests for client in outbound]
        await pod.until("outbound", lambda: all(c.requests > n + 5 for c, n in zip(outbound, asked, strict=True)))
        assert not any(client.announced for client in outbound)
        gone.set()
        await asyncio.gather(*work)
        await deleting

    pod = both.run(spec, scenario)
    assert [client.failures for client in (*inbound, *outbound)] == [[]] * 6
    assert pod["istio-proxy"].exits == pod["app"].exits == [0]
    log = pod["istio-proxy"].out
    for name, clients in (("inbound", inbound), ("outbound", outbound)):
        assert log.count(f"{name} / 200 -") == sum(client.requests for client in clients)
    assert "received SIGTERM: draining for 1s" in log
    assert "The proxy exited with status 0, as asked" in log
    assert "cuts" not in log


def test_a_slow_application(ours: World) -> None:
    """The sidecar is ready long before it; the pod is when the application is, as its rewritten probe finds out."""
    probers = {"/app-health/app/readyz": {"httpGet": {"port": 9080, "path": "/"}, "timeoutSeconds": 5}}
    sidecar = ours.sidecar({"ISTIO_KUBE_APP_PROBERS": json.dumps(probers)})
    probe = {"httpGet": {"path": "/app-health/app/readyz", "port": 15020}, "periodSeconds": 0.05}
    slow = f"import os, time\nwhile not os.path.exists('go'): time.sleep(0.01)\n{APPLICATION}"
    spec = {"containers": [sidecar, ours.application(slow, readinessProbe=probe)]}
    client = Client(ours.outside, POD)

    async def scenario(pod: Kubelet) -> None:
        await pod.until("a sidecar that is ready", lambda: pod["istio-proxy"].ready)
        app = pod["app"]
        await pod.until("an application that runs", lambda: app.pid)
        assert not await app.handle(probe, 5)
        assert not pod.in_service
        (app.folder / "go").touch()
        await pod.is_ready()
        await client.get()
        client.close()
        await pod.delete()

    pod = ours.run(spec, scenario)
    assert client.failures == []
    in_order(pod, "istio-proxy: ready", "app: ready", "pod: deleted")


def test_exit_on_zero_waits_for_slow_work_and_says_for_whom(both: World) -> None:
    """A request that outlasts the fixed time many times over; meanwhile the agent answers. Then everything ends."""
    env = {"EXIT_ON_ZERO_ACTIVE_CONNECTIONS": "true", "MINIMUM_DRAIN_DURATION": "10ms"}
    probers = {"/app-health/app/livez": {"tcpSocket": {"port": 9080}, "timeoutSeconds": 5}}
    env["ISTIO_KUBE_APP_PROBERS"] = json.dumps(probers)
    spec = {"containers": [both.sidecar(env, terminationDrainDuration="0.01s"), both.application()]}
    client = Client(both.outside, POD)

    async def scenario(pod: Kubelet) -> None:
        await pod.is_ready()
        slow = pod.spawn(client.get("/slow/1.5"), "slow")
        await pod.until("a connection", lambda: client._writer is not None)
        await asyncio.sleep(0.05)
        deleting = pod.spawn(pod.delete(), "delete")
        await pod.until("a report", lambda: "the exit waits for 1 connection: " in pod["istio-proxy"].out)
        assert (await status_page(both, "/healthz/ready"))[0] == 503
        assert (await status_page(both, "/app-health/app/livez"))[0] == 200
        status, metrics = await status_page(both, "/stats/prometheus")
        assert status == 200 and "envoy_server_live" in metrics and "istio_agent_" in metrics
        report = json.loads((await status_page(both, "/debug/drain"))[1])
        assert (report["state"], report["connections"], report["mode"]) == ("draining", 1, "until-zero")
        assert report["listeners"] == {"0.0.0.0_15006": 1}
        if not both.binary:
            assert [holder["peer"] for holder in report["holders"]] == [client.address]
            assert f"inbound {client.address} -> {POD}:9080 (" in pod["istio-proxy"].out
        await slow
        await deleting

    pod = both.run(spec, scenario)
    assert client.failures == []
    assert client.announced == 1
    assert pod["istio-proxy"].exits == [0]
    assert "no connection is open any more: the drain is over" in pod["istio-proxy"].out


@pytest.mark.parametrize("count", ["inbound", "all"])
def test_idle_outbound_connections_hold_the_exit_only_if_they_count(both: World, count: str) -> None:
    env = {"EXIT_ON_ZERO_ACTIVE_CONNECTIONS": "true", "MINIMUM_DRAIN_DURATION": "0s", "EXIT_ON_ZERO_COUNT": count}
    spec = {"containers": [both.sidecar(env), both.application()]}
    client = Client(both.pod, OUTSIDE, "service")

    async def scenario(pod: Kubelet) -> None:
        await pod.is_ready()
        await client.get()
        deleting = pod.spawn(pod.delete(), "delete")
        if count == "all":
            await pod.until("a report", lambda: "the exit waits for 1 connection: " in pod["istio-proxy"].out)
            client.close()
        await deleting
        client.close()

    pod = both.run(spec, scenario)
    assert client.failures == []
    assert pod["istio-proxy"].exits == [0]
    assert ("the exit waits" in pod["istio-proxy"].out) is (count == "all")


def test_exit_on_zero_has_a_bound(ours: World) -> None:
    """Set in proxyMetadata, where the real program would not see it."""
    metadata = {"EXIT_ON_ZERO_ACTIVE_CONNECTIONS": "true", "MINIMUM_DRAIN_DURATION": "0s"}
    metadata["EXIT_ON_ZERO_MAX_DURATION"] = "300ms"
    spec = {"containers": [ours.sidecar(proxyMetadata=metadata), ours.application()]}
    client = Client(ours.outside, POD)

    async def scenario(pod: Kubelet) -> None:
        await pod.is_ready()
        await client.get()
        await pod.delete()
        client.close()

    pod = ours.run(spec, scenario)
    assert "EXIT_ON_ZERO_MAX_DURATION (0.3s) is over; the end of the proxy cuts 1 connection: inbound" in (
        pod["istio-proxy"].out
    )
    assert pod["istio-proxy"].exits == [0]


def test_a_grace_period_that_is_too_short(ours: World) -> None:
    """kubelet kills the agent in the middle of its drain: nothing is left, and the next pod starts."""
    spec = {"containers": [ours.sidecar(terminationDrainDuration="3600s"), ours.application()]}

    async def scenario(pod: Kubelet) -> None:
        await pod.is_ready()
        await pod.delete(grace=0.3)

    pod = ours.run(spec, scenario)
    in_order(pod, "istio-proxy: SIGTERM", "istio-proxy: SIGKILL", "istio-proxy: exited -9")
    assert pod["app"].exits == [0]


def proxy_of(pod: Kubelet) -> int:
    """Pid of the proxy's main process, as seen from here."""
    agent = pod["istio-proxy"].pid
    children = Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
    return int(children[0])


def test_a_crash_restarts_the_container(both: World) -> None:
    """Whatever the former one left lying about (sockets, files, a bootstrap) does not stand in the way."""
    spec = {"containers": [both.sidecar(), both.application()]}

    async def scenario(pod: Kubelet) -> None:
        await pod.is_ready()
        os.kill(proxy_of(pod), signal.SIGSEGV)
        await pod.until("a restart", lambda: pod["istio-proxy"].restarts == 1 and pod.ready)
        client = Client(both.outside, POD)
        await client.get()
        client.close()
        assert client.failures == []
        await pod.delete()

    pod = both.run(spec, scenario)
    assert pod["istio-proxy"].exits == [255, 0]
    assert "Error: the proxy was killed by SIGSEGV (11)" in pod["istio-proxy"].err


def test_a_crash_as_the_real_program_takes_it(ours: World) -> None:
    """CRASH_EXIT_CODE=0: success, so that a pod that restarts on failure does not."""
    spec = {
        "containers": [ours.sidecar({"CRASH_EXIT_CODE": "0"}), ours.application()], "restartPolicy": "OnFailure",
    }  # fmt: skip

    async def scenario(pod: Kubelet) -> None:
        await pod.is_ready()
        os.kill(proxy_of(pod), signal.SIGKILL)
        await pod.until("the end", lambda: pod["istio-proxy"].over)
        await pod.delete()

    pod = ours.run(spec, scenario)
    assert pod["istio-proxy"].exits == [0]
    assert "Error: the proxy was killed by SIGKILL (9); likely cause: " in pod["istio-proxy"].err


@pytest.mark.parametrize("proxy", [True, False])
def test_orphans_of_process_1_are_collected(ours: World, proxy: bool) -> None:
    """Somebody's `kubectl exec` leaves a process behind; the agent, process 1, collects it when it ends."""
    sidecar = ours.sidecar({} if proxy else {"DISABLE_ENVOY": "true"})
    if not proxy:
        for probe in ("startupProbe", "readinessProbe"):
            sidecar[probe] = {**READY, "httpGet": {"path": "/healthz/ready", "port": 15020}}
    spec = {"containers": [sidecar, ours.application()]}

    async def scenario(pod: Kubelet) -> None:
        await pod.is_ready()
        agent = pod["istio-proxy"].pid
        inside = ["nsenter", f"--target={agent}", "--pid", "--mount"]
        # The shell is gone at once, so that its child falls to process 1, and ends some time later.
        process = await asyncio.create_subprocess_exec(*inside, "sh", "-c", "sleep 0.3 &")
        await process.wait()
        children = Path(f"/proc/{agent}/task/{agent}/children")
        await pod.until("an orphan", lambda: len(children.read_text().split()) == 1 + proxy)
        await pod.until("its collection", lambda: len(children.read_text().split()) == proxy)
        await pod.delete()

    ours.run(spec, scenario)


def test_native_sidecar(both: World) -> None:
    """Network for later init containers; drained by preStop; outlives the application, whose last call succeeds."""
    farewell = f"import signal\n{CALL}\nopen('up', 'w')\nsignal.sigwait([signal.SIGTERM])\n{CALL}"
    spec = {
        "initContainers": [both.sidecar(native=True, terminationDrainDuration="3600s"),
                           both.application(CALL, name="migration")],
        "containers": [both.application("import signal; signal.pthread_sigmask(0, [15])\n" + farewell)],
    }  # fmt: skip

    async def scenario(pod: Kubelet) -> None:
        await pod.until("the first call", lambda: (pod["app"].folder / "up").exists())
        await pod.delete()

    pod = both.run(spec, scenario)
    in_order(
        pod, "istio-proxy: is started", "migration: started", "migration: exited 0", "app: started", "pod: deleted",
        "app: exited 0", "app: over", "istio-proxy: SIGTERM", "istio-proxy: exited 0",
    )  # fmt: skip
    assert pod.events.index("istio-proxy: preStop") < pod.events.index("app: exited 0")
    assert pod["migration"].out == "200 envoy\n"
    assert pod["app"].out == "200 envoy\n" * 2
    assert "received SIGTERM: drained already, the proxy ends now" in pod["istio-proxy"].out


@pytest.mark.parametrize("native", [True, False])
def test_job(ours: World, native: bool) -> None:
    """With a native sidecar a job completes by itself; in an ordinary pod it asks the agent to end."""
    sidecar = ours.sidecar(native=native, hold=not native, terminationDrainDuration="3600s")
    quit = "\nimport urllib.request as r; r.urlopen(r.Request('http://127.0.0.1:15020/quitquitquit', method='POST'))"
    job = ours.application(CALL + ("" if native else quit), name="job")
    spec = {"restartPolicy": "Never"}
    spec |= {"initContainers": [sidecar], "containers": [job]} if native else {"containers": [sidecar, job]}

    async def scenario(pod: Kubelet) -> None:
        assert await pod.is_over() == "Succeeded"

    pod = ours.run(spec, scenario)
    assert pod["job"].out == "200 envoy\n"
    assert pod["istio-proxy"].exits == [0]
