"""What the overload manager does to a listener: refuse new connections, or leave them with the kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from proxy.config import overload_model as model
from proxy.overload.worker import any_of

if TYPE_CHECKING:
    from proxy.listener.listener import ActiveListener


def reject_gate(listener: ActiveListener) -> Callable[[], bool] | None:
    """Asked for each accepted connection: whether it is closed at once, which is counted then. None: never."""
    state = listener.context.overload
    if state is None or listener.config.bypass_overload_manager:
        return None
    rejects = any_of(state.find(model.TCP_ACCEPT), state.find(model.REJECT_CONNECTIONS))
    if rejects is None:
        return None
    stats = listener.stats

    def gate() -> bool:
        if not rejects():
            return False
        stats.downstream_cx_overload_reject += 1
        return True

    return gate


def watch_listener(listener: ActiveListener) -> None:
    """Pass on to a listener what it has to know of overload actions."""
    state = listener.context.overload
    if state is not None and not listener.config.bypass_overload_manager:
        state.on_change(model.STOP_ACCEPTING_CONNECTIONS, lambda value: listener.suspend(value >= 1))
        state.on_change(model.DISABLE_KEEPALIVE, listener.end_keepalive)
