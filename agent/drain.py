"""The drain: clients are asked to leave, and get the time to."""

import asyncio
from typing import Any

from agent import log
from agent.admin import Admin, AdminError
from agent.child import Child, wait_first
from agent.durations import format_seconds

# The real program waits without limit for the answer, so that a hung admin port keeps a pod from ending.
_REQUEST_TIMEOUT_S = 5.0

_log = log.scope()


async def drain(child: Child, admin: Admin, *, inbound_only: bool, duration_s: float, hurry: asyncio.Event) -> None:
    """Tell the proxy to drain and wait `duration_s`; back earlier when it ends by itself or `hurry` is set.

    A proxy that does not answer is logged: its connections still get their time.
    """
    loop = asyncio.get_running_loop()
    request = loop.create_task(
        admin.drain_listeners(inbound_only=inbound_only, timeout_s=_REQUEST_TIMEOUT_S), name="drain_listeners"
    )
    hurried = loop.create_task(hurry.wait(), name="drain:hurry")
    try:
        first: set[asyncio.Future[Any]] = {request, hurried, child.exited}
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        if not request.done():
            return
        request.result()
        what = "inbound listeners" if inbound_only else "listeners"
        _log.info(f"{what} are draining; the proxy ends in {format_seconds(duration_s)}")
    except AdminError as error:
        _log.error(f"the drain could not be started: {error}; the proxy still ends in {format_seconds(duration_s)}")
    finally:
        hurried.cancel()
        request.cancel()
    await wait_first(duration_s, child.exited, hurry)
