"""Readiness: the four checks, their texts, and how little the proxy is asked."""

import asyncio
import time
from typing import Any

import pytest

from agent.admin import AdminError
from agent.status.readiness import KEPT_S, Readiness
from tests.unit.agent.status_tools import LIVE, Clock, FakeAdmin


def readiness(admin: FakeAdmin, awaits: tuple[str, ...] = (), **more: Any) -> Readiness:
    return Readiness(admin, awaits, time.monotonic(), **more)


UPDATES = {"cluster_manager.cds.update_success": 1, "listener_manager.lds.update_success": 1}


@pytest.mark.parametrize(
    ("awaits", "stats", "live", "reason"),
    [
        ((), LIVE, False, ""),
        ((), {**LIVE, "server.state": 3}, False, "server is not live, current state is: INITIALIZING"),
        ((), {**LIVE, "server.state": 9}, False, "server is not live, current state is: 9"),
        ((), {**LIVE, "listener_manager.workers_started": 0}, False, "workers have not yet started"),
        ((), {}, True, ""),  # statistics left out by the file: /ready decides
        ((), {}, False, "does not answer /ready with 200"),
        ((), AdminError("refused"), False, "refused"),
        (("cds", "lds"), {**LIVE, **UPDATES}, False, ""),
        (
            ("cds", "lds"),
            LIVE,
            True,
            "config not received from XDS server (is Istiod running?): cds updates: 0 successful, 0 rejected; "
            "lds updates: 0 successful, 0 rejected",
        ),
        (
            ("cds", "lds"),
            {**LIVE, "cluster_manager.cds.update_success": 7},
            True,
            "config not fully received from XDS server: cds updates: 7 successful, 0 rejected; "
            "lds updates: 0 successful, 0 rejected",
        ),
        (
            ("cds", "lds"),
            {**LIVE, "cluster_manager.cds.update_success": 1, "listener_manager.lds.update_rejected": 2},
            True,
            "config received from XDS server, but was rejected: cds updates: 1 successful, 0 rejected; "
            "lds updates: 0 successful, 2 rejected",
        ),
        (("lds",), {**LIVE, "listener_manager.lds.update_success": 1}, False, ""),
    ],
)
def test_readiness(
    awaits: tuple[str, ...], stats: Any, live: bool, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    checks = readiness(FakeAdmin(stats, live), awaits)
    assert asyncio.run(checks.check()) is (reason == "")
    out = capfd.readouterr().out
    assert reason in out
    assert ("Envoy proxy is ready" in out) == (reason == "")
    assert ("Envoy proxy is NOT ready: " in out) == (reason != "")
    assert (checks.ready_after_s is not None) == checks.was_ready == (reason == "")


def test_readiness_passes_once_and_for_all() -> None:
    admin = FakeAdmin({**LIVE, **UPDATES})
    checks = readiness(admin, ("cds", "lds"))

    async def run() -> None:
        assert await checks.check()
        admin.answer = AdminError("gone")
        assert await checks.check()
        assert len(admin.asked) == 2
        checks.shut_down()
        assert not await checks.check()

    asyncio.run(run())


def test_a_flood_of_probes_is_one_check() -> None:
    admin = FakeAdmin(LIVE)

    async def run() -> list[bool]:
        admin.gate = asyncio.Event()
        checks = readiness(admin)
        many = asyncio.gather(*(checks.check() for _ in range(100)))
        await asyncio.sleep(0)
        admin.gate.set()
        return await many

    assert asyncio.run(run()) == [True] * 100
    assert len(admin.asked) == 1


def test_the_same_reason_is_logged_once(capfd: pytest.CaptureFixture[str]) -> None:
    admin = FakeAdmin(AdminError("refused"))
    clock = Clock()
    checks = readiness(admin, now=clock)

    async def run() -> None:
        for _ in range(5):
            assert not await checks.check()
            clock.now += 1
        admin.answer = {**LIVE, "server.state": 2}
        assert not await checks.check()

    asyncio.run(run())
    assert capfd.readouterr().out.count("NOT ready") == 2


def test_a_failure_is_the_answer_for_a_moment() -> None:
    """However many ask while the proxy starts, its admin port is asked 1/KEPT_S times a second."""
    admin = FakeAdmin(AdminError("refused"))
    clock = Clock()
    checks = readiness(admin, now=clock)

    async def run() -> None:
        for _ in range(1000):
            assert not await checks.check()
            clock.now += 0.001
        assert len(admin.asked) <= 1 / KEPT_S + 1
        admin.answer = LIVE
        clock.now += KEPT_S
        assert await checks.check()
        asked = len(admin.asked)
        for _ in range(1000):
            assert await checks.check()
        assert len(admin.asked) == asked

    asyncio.run(run())


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (None, "gRPC bootstrap {path}: No such file"),
        ("{", "gRPC bootstrap {path} is not JSON"),
        ("[" * 100_000, "gRPC bootstrap {path} is not JSON"),
        ("[]", ""),
        ('{"certificate_providers": {"default": {"plugin_name": "other", "config": {"private_key_file": "/no"}}}}', ""),
        (
            '{"certificate_providers": {"default": {"plugin_name": "file_watcher", "config": '
            '{"certificate_file": "/", "private_key_file": "/no/key.pem", "ca_certificate_file": "/no/root.pem"}}}}',
            "certificate provider default: private_key_file /no/key.pem does not exist",
        ),
    ],
)
def test_grpc_bootstrap(document: str | None, reason: str, tmp_path: Any, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "grpc-bootstrap.json"
    if document is not None:
        path.write_text(document)
    checks = readiness(FakeAdmin(LIVE), grpc_bootstrap=str(path))
    assert asyncio.run(checks.check()) is (reason == "")
    assert reason.format(path=path) in capfd.readouterr().out


def test_without_a_proxy_nothing_of_it_is_asked() -> None:
    admin = FakeAdmin(AdminError("refused"))
    assert asyncio.run(readiness(admin, ("cds", "lds"), proxyless=True).check())
    assert not admin.asked


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (False, "DNS lookup table is not ready yet"),
        (None, "this proxy has no DNS"),
        (AdminError("refused"), "refused"),
    ],
)
def test_name_table(answer: Any, reason: str, capfd: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    admin = FakeAdmin(LIVE)
    admin.names = [answer, True]
    checks = readiness(admin, awaits_name_table=True, now=clock)

    async def run() -> None:
        assert not await checks.check()
        assert reason in capfd.readouterr().out
        clock.now += 1
        assert await checks.check()

    asyncio.run(run())


def test_shut_down_while_a_check_is_under_way(capfd: pytest.CaptureFixture[str]) -> None:
    admin = FakeAdmin(LIVE)

    async def run() -> bool:
        admin.gate = asyncio.Event()
        checks = readiness(admin)
        check = asyncio.get_running_loop().create_task(checks.check())
        await asyncio.sleep(0)
        checks.shut_down()
        admin.gate.set()
        return await check

    assert asyncio.run(run()) is False
    assert "ready" not in capfd.readouterr().out
