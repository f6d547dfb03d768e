"""A whole pod behind real capture that has IPv6 addresses only, and one that has both kinds."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest

from tests.e2e.mesh_pod import DUAL_STACK, IPV6, PORT, Addresses, Client, World, public_world
from tests.kubelet import Kubelet

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module", params=[IPV6, DUAL_STACK], ids=["ipv6", "dual-stack"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    addresses: Addresses = request.param
    with public_world("pysidecar", addresses) as made:
        yield made


def test_a_life_from_hold_to_drain(world: World) -> None:
    """`pilot-agent wait`, probes, rewritten probes, metrics, traffic of every family in both directions, a stop under
    load in which no request fails, and an exit that waits for the connections of all of them.
    """
    env = {"EXIT_ON_ZERO_ACTIVE_CONNECTIONS": "true", "MINIMUM_DRAIN_DURATION": "0s", "EXIT_ON_ZERO_COUNT": "inbound"}
    env["ISTIO_KUBE_APP_PROBERS"] = json.dumps(
        {"/app-health/app/readyz": {"httpGet": {"port": PORT, "path": "/probe"}, "timeoutSeconds": 5}}
    )
    probe = {"httpGet": {"path": "/app-health/app/readyz", "port": 15020}, "periodSeconds": 0.05}
    app = {**world.application(), "readinessProbe": probe}
    sidecar = world.sidecar(env, hold=True)
    inbound = [Client(world.outside, host) for host in world.addresses.pod]
    outbound = [Client(world.pod, host, "service") for host in world.addresses.outside]
    waiting = [Client(world.outside, host) for host in world.addresses.pod]

    async def scenario(pod: Kubelet) -> None:
        await pod.is_ready()
        gone = asyncio.Event()
        work = [pod.spawn(client.work(gone), "load") for client in (*inbound, *outbound)]
        await pod.until("some load", lambda: all(client.requests > 20 for client in (*inbound, *outbound)))
        for client in waiting:
            await client.get()
        peers = [client.address for client in waiting]
        deleting = pod.spawn(pod.delete(), "delete")
        await pod.until("announcements", lambda: all(client.announced for client in inbound))
        gone.set()
        await asyncio.gather(*work)
        log = pod["istio-proxy"]
        await pod.until("names of who holds the exit", lambda: all(f"inbound {peer} -> " in log.out for peer in peers))
        for client in waiting:
            await client.get()
            assert client.announced == 1
        await deleting

    pod = world.run({"containers": [sidecar, app]}, scenario)
    clients = (*inbound, *outbound, *waiting)
    assert [client.failures for client in clients] == [[]] * len(clients)
    assert pod["istio-proxy"].exits == pod["app"].exits == [0]
    log = pod["istio-proxy"].out
    for name, some in (("inbound", (*inbound, *waiting)), ("outbound", outbound)):
        assert log.count(f"{name} / 200 -") == sum(client.requests for client in some)
    assert "inbound /probe" not in log  # the agent's own probes pass capture without the proxy
    assert "no connection is open any more: the drain is over" in log
