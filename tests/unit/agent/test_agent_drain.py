"""The drain on a clock that jumps from timer to timer: how long it lasts, what it counts, what it says."""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from agent import drain as module
from agent.admin import AdminError
from agent.child import ExitStatus
from agent.drain import Drain, DrainSettings
from agent.lifecycle.connections import ALL, INBOUND, OUTBOUND, WITNESS, Holder


class JumpingSelector(selectors.SelectSelector):
    """Does not wait: it moves the clock to where the wait would have ended."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready and timeout:
            self.now += timeout
        return ready


class JumpingLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.jumping = JumpingSelector()
        super().__init__(self.jumping)

    def time(self) -> float:
        return self.jumping.now


class FakeChild:
    def __init__(self) -> None:
        self.exited: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()


class FakeAdmin:
    """Answers `/stats` with what `open` says at the time: seconds since the start -> connections by listener."""

    def __init__(self, open: Callable[[float], dict[str, int] | Exception | None]) -> None:
        self._open = open
        self._loop = asyncio.get_running_loop()
        self.began = self._loop.time()
        self.polls: list[float] = []
        self.asked: list[str] = []
        self.refuses_drain = self.hangs = False
        self.holders: tuple[Holder, ...] | None = None
        self.directions = {"0.0.0.0_15006": "INBOUND", "0.0.0.0_9080": "OUTBOUND"}

    async def drain_listeners(self, *, inbound_only: bool, skip_exit: bool, timeout_s: float) -> None:
        self.asked.append(f"drain inbound_only={inbound_only} skip_exit={skip_exit}")
        if self.hangs:
            await asyncio.sleep(timeout_s)
        if self.hangs or self.refuses_drain:
            raise AdminError("no answer")

    async def stats(self, pattern: str, timeout_s: float) -> dict[str, int]:
        self.polls.append(round(self._loop.time() - self.began, 2))
        answer = self._open(self._loop.time() - self.began)
        if isinstance(answer, Exception):
            raise answer
        if answer is None:
            return {}
        return {WITNESS: 1, **{f"listener.{name}.downstream_cx_active": count for name, count in answer.items()}}

    async def connections(self, timeout_s: float) -> tuple[Holder, ...] | None:
        self.asked.append("connections")
        return self.holders

    async def listener_directions(self, timeout_s: float) -> dict[str, str]:
        self.asked.append("directions")
        return self.directions


class Scene:
    """One drain at work."""

    def __init__(self, settings: DrainSettings, open: Callable[[float], Any]) -> None:
        self.loop = asyncio.get_running_loop()
        self.admin = FakeAdmin(open)
        self.child: Any = FakeChild()
        self.hurry = asyncio.Event()
        self.drain = Drain(self.admin, settings)  # type: ignore[arg-type]
        self.lines: list[str] = []

    @property
    def elapsed(self) -> float:
        return round(self.loop.time() - self.admin.began, 2)

    def after(self, seconds: float, act: Callable[[], object]) -> None:
        self.loop.call_later(seconds, act)

    async def run(self) -> float:
        """Seconds that the drain took."""
        await self.drain.run(self.child, self.hurry)
        return self.elapsed


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is logged, with its level."""
    found: list[str] = []
    for level in ("debug", "info", "warn", "error"):
        monkeypatch.setattr(
            module._log.__class__, level, lambda _self, text, level=level: found.append(f"{level}: {text}")
        )
    return found


def play(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        runner.run(scenario())


def until_zero(**settings: Any) -> DrainSettings:
    return DrainSettings(**{"inbound_only": True, "termination_drain_s": 5.0, "exit_on_zero": True, **settings})


IN, OUT = "0.0.0.0_15006", "0.0.0.0_9080"


def test_the_fixed_time_and_who_is_cut_by_its_end(lines: list[str]) -> None:
    async def scenario() -> None:
        scene = Scene(DrainSettings(inbound_only=True, termination_drain_s=7.5), lambda _: {IN: 1})
        scene.admin.holders = (Holder("i", "INBOUND", "10.0.0.9:5", "10.0.0.1:80", 2.0, 3, 1),)
        assert scene.drain.report()["state"] == "running"
        reports: list[dict[str, Any]] = []
        scene.after(6.0, lambda: reports.append(scene.drain.report()))
        assert await scene.run() == 7.5
        assert scene.admin.asked == ["drain inbound_only=True skip_exit=False", *["connections"] * 3]
        assert scene.admin.polls == [0.0, 5.0, 7.5]
        (report,) = reports
        assert (report["mode"], report["ends_in_seconds"], report["connections"]) == ("fixed", 1.5, 1)
        assert report["holders"][0]["peer"] == "10.0.0.9:5"
        scene.drain.ending()
        assert scene.drain.report()["state"] == "ending"

    play(scenario)
    assert lines == [
        "info: inbound listeners are draining; the proxy ends in 7.5s",
        "warn: the time is over; the end of the proxy cuts 1 connection: inbound 10.0.0.9:5 -> 10.0.0.1:80 "
        "(2.0s, 3 requests, 1 under way)",
    ]


@pytest.mark.parametrize("exit_on_zero", [False, True])
@pytest.mark.parametrize("event", ["child", "hurry"])
def test_the_end_of_the_proxy_and_a_second_signal_end_the_drain(exit_on_zero: bool, event: str) -> None:
    """At once, in whatever it is: the request, the wait, the count."""

    async def scenario() -> None:
        for at in (0.5, 3.0, 6.03):
            scene = Scene(until_zero(exit_on_zero=exit_on_zero, termination_drain_s=3600), lambda _: {IN: 1})
            scene.admin.hangs = at < 1
            scene.after(
                at, scene.hurry.set if event == "hurry" else lambda s=scene: s.child.exited.set_result(ExitStatus(0, 0))
            )
            assert await scene.run() == at

    play(scenario)


def test_a_drain_request_that_hangs_has_a_limit(lines: list[str]) -> None:
    async def scenario() -> None:
        scene = Scene(DrainSettings(inbound_only=False, termination_drain_s=2.0), lambda _: {})
        scene.admin.hangs = True
        assert await scene.run() == 7.0

    play(scenario)
    assert lines == ["error: the drain could not be started: no answer; the proxy still ends in 2s"]


def test_until_nobody_is_connected(lines: list[str]) -> None:
    """The minimum first, then every 100 ms; nothing open twice in a row ends it. The fixed time is ignored."""

    async def scenario() -> None:
        scene = Scene(until_zero(termination_drain_s=1.0), lambda now: {IN: 1} if now < 5.25 else {})
        assert await scene.run() == 5.4
        assert scene.admin.polls == [5.0, 5.1, 5.2, 5.3, 5.4]

    play(scenario)
    assert lines == [
        "info: inbound listeners are draining; the proxy ends in at least 5s, until no connection is open",
        f"info: the exit waits for 1 connection: 1 on {IN}",
        "info: no connection is open any more: the drain is over",
    ]


def test_a_single_zero_is_not_believed() -> None:
    async def scenario() -> None:
        scene = Scene(until_zero(minimum_s=0), lambda now: {} if round(now, 1) in (0.2, 0.4) or now > 1.05 else {IN: 1})
        assert await scene.run() == 1.2

    play(scenario)


@pytest.mark.parametrize(("count", "ends"), [(ALL, 12.1), (INBOUND, 3.1), (OUTBOUND, 12.1)])
def test_what_counts(count: str, ends: float) -> None:
    """Inbound until 3 s, outbound until 12 s."""

    async def scenario() -> None:
        def open(now: float) -> dict[str, int]:
            return {**({IN: 2} if now < 2.95 else {}), **({OUT: 1} if now < 11.95 else {})}

        scene = Scene(until_zero(minimum_s=1, count=count), open)
        assert await scene.run() == ends
        # Directions are asked for once, and only when they matter.
        assert scene.admin.asked.count("directions") == (count != ALL)

    play(scenario)


def test_a_proxy_that_does_not_tell_directions_counts_as_a_whole(lines: list[str]) -> None:
    async def scenario() -> None:
        scene = Scene(until_zero(minimum_s=0, count=INBOUND), lambda now: {OUT: 1} if now < 2 else {})

        async def no_answer(timeout_s: float) -> dict[str, str]:
            raise AdminError("hm")

        scene.admin.listener_directions = no_answer  # type: ignore[method-assign]
        assert 2 <= await scene.run() < 2.5

    play(scenario)
    assert lines.count("warn: every listener counts, for the proxy does not tell their directions: hm") == 1


@pytest.mark.parametrize("answer", [AdminError("refused"), None])
def test_failed_and_empty_answers_are_no_zero(answer: Exception | None, lines: list[str]) -> None:
    """They stop, and the count goes on."""

    async def scenario() -> None:
        scene = Scene(until_zero(minimum_s=1), lambda now: answer if now < 3 else {IN: 1} if now < 9 else {})
        assert 9 < await scene.run() < 9.3
        assert scene.drain.report()["error"] == ""

    play(scenario)
    why = "refused" if answer else f"the statistics of the proxy have no {WITNESS}: its stats_config has to let it pass"
    assert f"warn: connections cannot be counted: {why}" in lines


@pytest.mark.parametrize(("fixed", "ends"), [(2.0, 6.0), (30.0, 30.0)])
def test_answers_that_never_come_end_the_drain_in_the_end(fixed: float, ends: float, lines: list[str]) -> None:
    """After the failing has lasted for a while, but not before the time that the pod would have had otherwise."""

    async def scenario() -> None:
        scene = Scene(until_zero(minimum_s=1, termination_drain_s=fixed), lambda _: None)
        assert ends <= await scene.run() <= ends + 0.2

    play(scenario)
    assert lines[-1].startswith("error: connections could not be counted for ")


@pytest.mark.parametrize(("maximum", "minimum"), [(20.0, 5.0), (2.0, 5.0)])
def test_an_upper_bound(maximum: float, minimum: float, lines: list[str]) -> None:
    async def scenario() -> None:
        scene = Scene(until_zero(minimum_s=minimum, maximum_s=maximum), lambda _: {IN: 1})
        assert await scene.run() == maximum

    play(scenario)
    who = f"1 connection: 1 on {IN}" if maximum > minimum else "what is open"
    assert lines[-1] == f"warn: EXIT_ON_ZERO_MAX_DURATION ({maximum:g}s) is over; the end of the proxy cuts {who}"


def test_who_holds_the_exit_is_logged_every_five_seconds_and_reported(lines: list[str]) -> None:
    async def scenario() -> None:
        scene = Scene(until_zero(minimum_s=0, count=OUTBOUND), lambda now: {IN: 1, OUT: 2} if now < 14 else {})
        inbound = Holder("i", "INBOUND", "10.0.0.9:5", "10.0.0.1:80", 2.0, 3, 1)
        outbound = Holder("o", "OUTBOUND", "10.0.0.1:6", "10.9.0.1:9080", 4.5, 0, 0)
        probe = Holder("p", "UNSPECIFIED", "10.0.0.1:7", "10.0.0.1:15021", 4.5, 0, 0)
        scene.admin.holders = (inbound, outbound, probe)
        reports: list[dict[str, Any]] = []
        scene.after(7.0, lambda: reports.append(scene.drain.report()))
        await scene.run()
        assert scene.admin.asked.count("connections") == 3
        assert reports == [
            {
                "draining": True, "state": "draining", "mode": "until-zero", "since_seconds": 7.0,
                "ends_in_seconds": None, "counted": "outbound", "connections": 2, "listeners": {OUT: 2},
                "holders": [{"listener": "o", "direction": "OUTBOUND", "peer": "10.0.0.1:6", "local": "10.9.0.1:9080",
                             "age_seconds": 4.5, "requests": 0, "active_requests": 0}],
                "error": "",
            }
        ]  # fmt: skip

    play(scenario)
    waiting = [line for line in lines if line.startswith("info: the exit waits for 2 connections: outbound 10.0.0.1:6")]
    assert len(waiting) == 3


def test_drain_without_an_end() -> None:
    """What /drain asks for."""

    async def scenario() -> None:
        scene = Scene(until_zero(), lambda _: {})
        await scene.drain.begin(skip_exit=True)
        assert scene.admin.asked == ["drain inbound_only=True skip_exit=True"]
        assert scene.drain.report()["draining"] is True

    play(scenario)


def test_a_drain_that_was_refused_has_not_begun() -> None:
    async def scenario() -> None:
        scene = Scene(until_zero(), lambda _: {})
        scene.admin.refuses_drain = True
        with pytest.raises(AdminError):
            await scene.drain.begin(skip_exit=True)
        assert scene.drain.report()["state"] == "running"
        assert scene.drain.report()["since_seconds"] is None

    play(scenario)
