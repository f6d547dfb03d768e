"""What the overload manager does to requests of one HTTP connection manager.

While nothing is shed, the connection manager knows nothing of it: ``manager.shedding`` is None and repeated heads take
their plans. Plans would get round the checks, so that they are laid aside for as long as anything is shed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.config import overload_model as model
from proxy.http.http1_server import NO_BODY
from proxy.http.plan import PlanMemo, RequestPlan
from proxy.overload.worker import Chance, OverloadState, any_of

if TYPE_CHECKING:
    from proxy.http.headers import Headers
    from proxy.http.manager import HttpConnectionManager
    from proxy.http.server_connection import ServerConnection
    from proxy.http.stream import Stream

BODY = b"envoy overloaded"
DETAILS = b"overload"
LOCAL_OVERLOADED = ((b"x-envoy-local-overloaded", b"true"),)


class NoPlans(PlanMemo[RequestPlan]):
    """Stands for the plans while requests are being shed: there are none, and none is kept."""

    def worth(self, head: bytes) -> bool:
        return False


class HttpOverload:
    """The actions and load-shed points that concern requests, and what they do to one."""

    def __init__(self, state: OverloadState, manager: HttpConnectionManager) -> None:
        self._manager = manager
        self._refuses = any_of(state.find(model.DECODE_HEADERS), state.find(model.STOP_ACCEPTING_REQUESTS))
        self._aborts = state.find(model.ABORT_DISPATCH)
        self.keepalive = state.find(model.DISABLE_KEEPALIVE)
        self.filter_check = state.find(model.FILTER_CHECK)
        self._reply_headers = LOCAL_OVERLOADED if manager.config.append_local_overload else ()
        self._shedding: list[Chance] = []
        for name in (model.DECODE_HEADERS, model.STOP_ACCEPTING_REQUESTS, model.ABORT_DISPATCH, model.FILTER_CHECK):
            if (chance := state.find(name)) is not None:
                self._shedding.append(chance)
                state.on_change(name, self._changed)
        self._plans = manager.request_plans
        self._no_plans = NoPlans()

    def _changed(self, _: float) -> None:
        manager = self._manager
        if any(chance.value for chance in self._shedding):
            manager.shedding = self
            manager.request_plans = self._no_plans
        else:
            manager.shedding = None
            manager.request_plans = self._plans

    def aborts(self, conn: ServerConnection) -> bool:
        """A message begins: whether its connection ends here (http1_server_abort_dispatch)."""
        if self._aborts is None or not self._aborts():
            return False
        stream = conn.stream = conn._new_stream()
        stats = self._manager.stats
        stats.downstream_rq_overload_close += 1
        stats.downstream_rq_rx_reset += 1
        stream.protocol = b"HTTP/1.1"
        stream.add_flag(b"DPE")
        conn.ignore()
        stream.local_reply(500, b"Internal Server Error", DETAILS, close=True)
        return True

    def refuses(self, stream: Stream, method: bytes, path: bytes, authority: bytes | None, http10: bool,
                headers: Headers, length: int, tokens: list[bytes]) -> bool:
        """A head has arrived: whether it is answered with 503 before anything else is looked at."""
        if self._refuses is None or not self._refuses():
            return False
        stream.method = method
        stream.path = path or None
        stream.authority = authority
        stream.request_headers = headers
        stream.protocol = b"HTTP/1.0" if http10 else b"HTTP/1.1"
        stream.http10 = http10
        stream.request_complete = length == NO_BODY and method != b"CONNECT" and not (
            b"upgrade" in tokens and b"upgrade" in headers.index)
        self._manager.stats.downstream_rq_overload_close += 1
        close = b"close" in tokens or (http10 and b"keep-alive" not in tokens)
        stream.local_reply(503, BODY, DETAILS, headers=self._reply_headers, close=close)
        return True

    def checks_route(self, stream: Stream) -> bool:
        """A route to a cluster was found: whether the request ends here (http_downstream_filter_check)."""
        if self.filter_check is None or not self.filter_check():
            return False
        self._manager.stats.rq_overload_local_reply += 1
        stream.local_reply(503, BODY, DETAILS, headers=self._reply_headers)
        return True
