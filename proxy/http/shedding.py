"""HTTP connections where the load-shed point hcm_ondata_creating_codec is configured; others are not asked anything."""

from __future__ import annotations

from proxy.http.server_connection import ServerConnection


class SheddingConnection(ServerConnection):
    """A connection that may end for overload at its first bytes, before there is a codec for them in Envoy."""

    __slots__ = ("_begun",)
    _begun: bool

    def data_received(self, data: bytes) -> None:
        # Not set by a constructor: the class of most connections needs no such attribute.
        if not hasattr(self, "_begun"):
            self._begun = True
            sheds = self.manager.sheds_codec
            if sheds is not None and sheds():
                stats = self.stats
                stats.downstream_cx_rx_bytes_total += len(data)
                stats.downstream_rq_overload_close += 1
                self.close_after_flush(delay=True)
                return
        super().data_received(data)
