"""The kubelet of the tests, judged with shell scripts: what is later said about the agent rests on it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.kubelet import Image, Kubelet

IMAGES = {"shell": Image(["/bin/sh", "-c"])}
OBEDIENT = "trap 'exit 0' TERM; echo up > up; while :; do sleep 0.01; done"
DEAF = "trap '' TERM; echo up > up; while :; do sleep 0.01; done"


EXISTS = {"exec": {"command": ["test", "-e", "up"]}, "periodSeconds": 0.01, "failureThreshold": 1000}


def shell(name: str, script: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "image": "shell", "args": [script], **fields}


def run_pod(folder: Path, spec: dict[str, Any], scenario: Callable[[Kubelet], Awaitable[None]]) -> Kubelet:
    """The pod, after the scenario."""
    folder.chmod(0o755)
    manifest = {"metadata": {"name": "p", "labels": {"app": "a"}}, "spec": spec}

    async def run() -> Kubelet:
        async with Kubelet(manifest, IMAGES, folder / "pod") as pod:
            await scenario(pod)
        return pod

    return asyncio.run(run())


def in_order(pod: Kubelet, *events: str) -> None:
    """These events happened, in this order."""
    rest = iter(pod.events)
    missing = next((event for event in events if event not in rest), None)
    assert missing is None, f"{missing!r} not in its place of {pod}"


def test_init_containers_then_hooks_then_probes(tmp_path: Path) -> None:
    spec = {
        "restartPolicy": "Always",
        "initContainers": [shell("init", "exit 0"),
                           shell("side", OBEDIENT, restartPolicy="Always", startupProbe=EXISTS)],
        "containers": [
            shell("first", OBEDIENT, lifecycle={"postStart": {"exec": {"command": ["sh", "-c", "echo $APP > hook"]}}},
                  env=[{"name": "APP", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}}],
                  readinessProbe=EXISTS),
            shell("second", OBEDIENT, readinessProbe=EXISTS),
        ],
    }  # fmt: skip

    async def scenario(pod: Kubelet) -> None:
        await pod.is_ready()
        assert (pod["first"].folder / "hook").read_text() == "a\n"
        await pod.delete()

    pod = run_pod(tmp_path, spec, scenario)
    in_order(
        pod, "init: started", "init: exited 0", "side: started", "side: is started", "first: started",
        "first: postStart done", "second: started", "second: ready", "pod: deleted",
    )  # fmt: skip
    # The native sidecar is told to end when the others have.
    in_order(pod, "second: SIGTERM", "second: over", "side: SIGTERM", "side: exited 0", "pod: Succeeded")
    assert pod.events.index("first: over") < pod.events.index("side: SIGTERM")


def test_a_deaf_container_is_killed(tmp_path: Path) -> None:
    async def scenario(pod: Kubelet) -> None:
        await pod.until("a trap", lambda: (pod["deaf"].folder / "up").exists())
        await pod.delete(grace=0.1)

    pod = run_pod(tmp_path, {"containers": [shell("deaf", DEAF)]}, scenario)
    in_order(pod, "deaf: SIGTERM", "deaf: SIGKILL", "deaf: exited -9", "pod: Failed")


@pytest.mark.parametrize(("policy", "script", "phase"), [
    ("Never", "exit 3", "Failed"), ("Never", "exit 0", "Succeeded"), ("OnFailure", "exit 0", "Succeeded"),
    ("OnFailure", "test -e again || { touch again; exit 4; }", "Succeeded"),
])  # fmt: skip
def test_jobs(tmp_path: Path, policy: str, script: str, phase: str) -> None:
    """A native sidecar does not keep a job from completing; a failed container runs again where the policy says so."""

    async def scenario(pod: Kubelet) -> None:
        assert await pod.is_over() == phase

    side = shell("side", OBEDIENT, restartPolicy="Always", startupProbe=EXISTS)
    spec = {"restartPolicy": policy, "initContainers": [side], "containers": [shell("job", script)]}
    pod = run_pod(tmp_path, spec, scenario)
    in_order(pod, "job: over", "side: SIGTERM", "side: exited 0", f"pod: {phase}")
    assert pod["job"].restarts == ("again" in script)


def test_a_failed_liveness_probe_restarts_with_the_hook_first(tmp_path: Path) -> None:
    spec = {"containers": [shell(
        "one", OBEDIENT, readinessProbe=EXISTS,
        livenessProbe={"exec": {"command": ["test", "!", "-e", "sick"]}, "periodSeconds": 0.01, "failureThreshold": 2},
        lifecycle={"preStop": {"exec": {"command": ["rm", "sick"]}}})]}  # fmt: skip

    async def scenario(pod: Kubelet) -> None:
        await pod.is_ready()
        (pod["one"].folder / "sick").touch()
        await pod.until("a second run", lambda: pod["one"].restarts == 1 and pod.ready)
        assert not (pod["one"].folder / "sick").exists()

    pod = run_pod(tmp_path, spec, scenario)
    in_order(pod, "one: liveness probe failed", "one: preStop", "one: SIGTERM", "one: exited 0", "one: started")


@pytest.mark.parametrize("fails", [False, True])
def test_what_a_container_started_ends_with_it(tmp_path: Path, fails: bool) -> None:
    """As root: the processes of a container are in a namespace of their own. Nor does a test that fails leave any."""

    async def scenario(pod: Kubelet) -> None:
        await pod.until("a child", lambda: (pod["one"].folder / "child").exists())
        if fails:
            raise AssertionError("the scenario")
        await pod.delete(grace=0)

    tmp_path.parent.chmod(0o755)
    marker = f"4{tmp_path.stat().st_ino}.5"
    user = {"securityContext": {"runAsUser": 1000}}
    spec = {"containers": [shell("one", f"sleep {marker} & touch child; wait", **user)]}
    with pytest.raises(AssertionError, match="the scenario") if fails else contextlib.nullcontext():
        run_pod(tmp_path, spec, scenario)
    left = [p for p in Path("/proc").glob("[0-9]*/cmdline") if marker.encode() in _read(p)]
    assert not left


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
