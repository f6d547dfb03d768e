"""The proxy's standard error on its way through the agent: nothing lost, nothing waited for, the end remembered."""

import asyncio
import os
import stat
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.lifecycle import output
from agent.lifecycle.output import Relay


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Read and write end of a pipe that plays the agent's standard error."""
    ends = os.pipe()
    os.set_blocking(ends[0], False)
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError:
            pass  # the test closed it


def run(scenario: Callable[[asyncio.AbstractEventLoop], Coroutine[Any, Any, None]]) -> None:
    async def with_loop() -> None:
        async with asyncio.timeout(30):
            await scenario(asyncio.get_running_loop())

    asyncio.run(with_loop())


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_lines_pass_as_they_come_and_the_last_are_kept(pipe: tuple[int, int]) -> None:
    async def scenario(loop: asyncio.AbstractEventLoop) -> None:
        relay = Relay(loop, pipe[1])
        seen = b""
        for number in range(100):
            line = b"line %d\n" % number
            os.write(relay.write_end, line)
            await until(lambda: relay._tail.endswith(line))  # noqa: B023
            await asyncio.sleep(0)
            seen += os.read(pipe[0], 65536)
        assert seen == b"".join(b"line %d\n" % number for number in range(100))
        assert relay.last_lines() == [f"line {number}" for number in range(95, 100)]
        relay.close()

    run(scenario)


def test_what_came_last_is_read_before_the_end_even_if_a_stranger_holds_the_pipe(pipe: tuple[int, int]) -> None:
    async def scenario(loop: asyncio.AbstractEventLoop) -> None:
        relay = Relay(loop, pipe[1])
        held = os.dup(relay.write_end)
        os.write(held, b"last\xff words, unfinished")
        relay.spawned()
        relay.close()
        relay.close()
        assert os.read(pipe[0], 65536) == b"last\xff words, unfinished"
        assert relay.last_lines() == ["last\N{REPLACEMENT CHARACTER} words, unfinished"]
        os.close(held)

    run(scenario)


def test_a_slow_reader_holds_the_proxy_not_the_agent(pipe: tuple[int, int]) -> None:
    """More than both pipes take: the agent's loop goes on, and everything arrives in the end."""

    async def scenario(loop: asyncio.AbstractEventLoop) -> None:
        relay = Relay(loop, pipe[1])
        os.set_blocking(relay.write_end, False)
        data = b"".join(b"%07d\n" % number for number in range(100_000))
        sent = 0
        while sent < 500_000:  # both pipes are full long before
            try:
                sent += os.write(relay.write_end, data[sent : sent + 65536])
            except BlockingIOError:
                await asyncio.sleep(0)
                if not relay._waiting:
                    continue
                got = b""
                # Nobody has read until now; the relay has stopped reading too.
                while len(got) < 65536:
                    await asyncio.sleep(0)
                    try:
                        got += os.read(pipe[0], 65536)
                    except BlockingIOError:
                        pass
                received.append(got)
        os.close(relay.write_end)
        relay.write_end = -1
        while sum(map(len, received)) < sent:
            await asyncio.sleep(0)
            try:
                received.append(os.read(pipe[0], 65536))
            except BlockingIOError:
                pass
        assert b"".join(received) == data[:sent]
        relay.close()

    received: list[bytes] = []
    run(scenario)


def test_without_a_reader_everything_is_dropped_and_still_remembered(pipe: tuple[int, int]) -> None:
    async def scenario(loop: asyncio.AbstractEventLoop) -> None:
        relay = Relay(loop, pipe[1])
        os.close(pipe[0])
        for _ in range(100):
            os.write(relay.write_end, b"x" * 8_192 + b"\n")
            await asyncio.sleep(0)
        os.write(relay.write_end, b"the end\n")
        relay.close()
        assert relay.last_lines()[-1] == "the end"
        assert sum(map(len, relay.last_lines())) <= output.TAIL_LINES * output.MAX_LINE

    run(scenario)


def test_a_file_is_written_where_it_stands(tmp_path: Path) -> None:
    """It is not opened anew: that would write over what is there."""

    async def scenario(loop: asyncio.AbstractEventLoop) -> None:
        with (tmp_path / "err").open("wb", buffering=0) as file:
            file.write(b"before\n")
            relay = Relay(loop, file.fileno())
            os.write(relay.write_end, b"between\n")
            relay.close()
            file.write(b"after\n")

    run(scenario)
    assert (tmp_path / "err").read_bytes() == b"before\nbetween\nafter\n"


def test_critical_lines_come_first(pipe: tuple[int, int]) -> None:
    async def scenario(loop: asyncio.AbstractEventLoop) -> None:
        relay = Relay(loop, pipe[1])
        os.write(relay.write_end, b"[info] a\n[1][critical][x] caught SIGSEGV\n[1][critical][x] frame\n[info] b\n")
        relay.close()
        assert relay.last_lines() == ["[1][critical][x] caught SIGSEGV", "[1][critical][x] frame"]

    run(scenario)


def test_no_descriptor_is_left(pipe: tuple[int, int]) -> None:
    async def scenario(loop: asyncio.AbstractEventLoop) -> None:
        before = os.listdir("/proc/self/fd")
        relay = Relay(loop, pipe[1])
        assert stat.S_ISFIFO(os.fstat(relay.write_end).st_mode)
        relay.close()
        assert os.listdir("/proc/self/fd") == before

    run(scenario)
