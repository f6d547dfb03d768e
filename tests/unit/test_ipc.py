"""The channel between main and a worker: main runs asyncio's loop, a worker uvloop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
import uvloop

from proxy import ipc
from proxy.ipc import Channel, ChannelClosed, Refusal, RemoteError


class Ends:
    """Two channels on one loop; the second answers by ``handler``."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.errors: list[dict[str, Any]] = []
        self.closed: list[str] = []
        self.handler: Callable[[str, Any], Any] = lambda name, value: (name, value)
        loop.set_exception_handler(lambda _, context: self.errors.append(context))
        self.ours = Channel(loop, self._refuse, lambda: self.closed.append("ours"))
        self.theirs = Channel(loop, lambda name, value: self.handler(name, value), lambda: self.closed.append("theirs"))
        self.sockets = socket.socketpair()
        for channel, sock in zip((self.ours, self.theirs), self.sockets, strict=True):
            sock.setblocking(False)
            self.run(loop.create_unix_connection(lambda channel=channel: channel, sock=sock))  # type: ignore[misc]

    @staticmethod
    def _refuse(name: str, value: Any) -> Any:
        raise Refusal("asks, does not answer")

    def run(self, awaitable: Coroutine[Any, Any, Any] | asyncio.Future[Any]) -> Any:
        async def limited() -> Any:
            async with asyncio.timeout(10):
                return await awaitable

        return self.loop.run_until_complete(limited())

    def ask(self, name: str, value: Any = None) -> Any:
        return self.run(self.ours.request(name, value))


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def ends(request: pytest.FixtureRequest) -> Iterator[Ends]:
    loop = request.param()
    ends = Ends(loop)
    yield ends
    ends.ours.close()
    ends.theirs.close()
    ends.run(asyncio.sleep(0.01))
    loop.close()


@pytest.mark.parametrize("value", [None, 0, "text", b"bytes", (1, [2.5, {"a": {1: 2}}], True), "x" * 1_000_000])
def test_request_and_reply(ends: Ends, value: Any) -> None:
    assert ends.ask("name", value) == ("name", value)


def test_both_ends_may_ask(ends: Ends) -> None:
    with pytest.raises(RemoteError, match="asks, does not answer"):
        ends.run(ends.theirs.request("x"))
    assert not ends.errors


def test_answers_find_their_questions(ends: Ends) -> None:
    gates: dict[int, asyncio.Future[int]] = {n: ends.loop.create_future() for n in range(10)}

    async def later(number: int) -> int:
        return await gates[number]

    ends.handler = lambda name, number: later(number)
    asked = {n: ends.ours.request("later", n) for n in gates}
    for n in reversed(gates):
        gates[n].set_result(n * n)
    assert [ends.run(asked[n]) for n in gates] == [n * n for n in gates]


def test_a_failure_of_the_handler_reaches_the_caller_and_the_log(ends: Ends) -> None:
    def fail(name: str, value: Any) -> Any:
        raise KeyError("defect")

    async def fail_later(value: Any) -> Any:
        raise Refusal("not now")

    ends.handler = fail
    with pytest.raises(RemoteError, match="defect"):
        ends.ask("x")
    assert isinstance(ends.errors.pop()["exception"], KeyError)
    ends.handler = lambda name, value: fail_later(value)
    with pytest.raises(RemoteError, match="not now"):
        ends.ask("x")
    assert not ends.errors
    ends.handler = lambda name, value: value
    assert ends.ask("x", 1) == 1


def test_a_reply_that_nobody_waits_for_is_dropped(ends: Ends) -> None:
    gate: asyncio.Future[int] = ends.loop.create_future()

    async def later() -> int:
        return await gate

    ends.handler = lambda name, value: later()
    ends.ours.request("slow").cancel()
    gate.set_result(1)
    ends.handler = lambda name, value: "next"
    assert ends.ask("x") == "next"


def test_the_end_of_the_peer_ends_what_waits(ends: Ends) -> None:
    gate: asyncio.Future[int] = ends.loop.create_future()

    async def forever() -> int:
        return await gate

    ends.handler = lambda name, value: forever()
    asked = ends.ours.request("x")
    ends.theirs.close()
    with pytest.raises(ChannelClosed):
        ends.run(asked)
    assert set(ends.closed) == {"ours", "theirs"}
    assert not ends.ours.connected
    with pytest.raises(ChannelClosed):
        ends.ask("again")


def test_messages_arrive_in_any_pieces(ends: Ends) -> None:
    received: list[Any] = []
    channel = Channel(ends.loop, lambda name, value: received.append(value), lambda: None)
    sent: list[bytes] = []

    class Wire:
        def write(self, data: bytes) -> None:
            sent.append(data)

    writer = Channel(ends.loop, lambda name, value: None, lambda: None)
    writer._transport = Wire()  # type: ignore[assignment]
    for n in range(5):
        writer.request("x", [n] * 100)
    stream = b"".join(sent)
    for at in range(0, len(stream), 7):
        channel.data_received(stream[at:at + 7])
    channel.data_received(stream)
    assert received == [[n] * 100 for n in range(5)] * 2


def test_a_message_that_is_too_long_is_an_error(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ipc, "MAX_MESSAGE", 1000)
    with pytest.raises(ValueError, match="message of 1001 bytes between main and worker, at most 1000 expected"):
        ends.ours.data_received((1001).to_bytes(4, "big"))
