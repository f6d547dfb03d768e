"""HTTP connections where load-shed points are configured that act on bytes; others are not asked anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.config import overload_model as model
from proxy.http.server_connection import CLOSED, CLOSING, OPEN, ServerConnection

if TYPE_CHECKING:
    from proxy.overload.worker import Chance, OverloadState


class DataPoints:
    """hcm_ondata_creating_codec at the first bytes, http2_server_go_away_(and_close_)on_dispatch at any."""

    def __init__(self, state: OverloadState) -> None:
        self.codec: Chance | None = state.find(model.CREATING_CODEC)
        self.away: Chance | None = state.find(model.GO_AWAY)
        self.close: Chance | None = state.find(model.GO_AWAY_AND_CLOSE)
        self.any = self.codec or self.away or self.close


class SheddingConnection(ServerConnection):
    """A connection that may end for overload when bytes arrive."""

    __slots__ = ("_begun",)
    _begun: bool

    def data_received(self, data: bytes) -> None:
        points = self.manager.data_points
        assert points is not None
        # Not set by a constructor: the class of most connections needs no such attribute.
        if not hasattr(self, "_begun"):
            self._begun = True
            if points.codec is not None and points.codec():
                self.stats.downstream_rq_overload_close += 1
                self._shed(data)
                return
        if self.drain_state not in (CLOSING, CLOSED):
            if points.close is not None and points.close():
                self._shed(data)
                return
            if points.away is not None and points.away() and self.drain_state == OPEN:
                self._start_drain()
        super().data_received(data)

    def _shed(self, data: bytes) -> None:
        self.stats.downstream_cx_rx_bytes_total += len(data)
        self.close_after_flush(delay=True)
