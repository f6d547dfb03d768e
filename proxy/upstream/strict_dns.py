"""STRICT_DNS clusters: every address of every name is a host; names are resolved again at dns_refresh_rate.

The system resolver answers (as configured in /etc/resolv.conf), in the loop's thread pool. As in Envoy, a name that
does not exist empties its hosts, a resolver that fails keeps them.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

from proxy.config import model
from proxy.config.model import SocketAddress
from proxy.log import get
from proxy.upstream.cluster import Cluster, Host

if TYPE_CHECKING:
    from proxy.context import Context

log = get("upstream")

FAMILIES = {
    "AUTO": (socket.AF_INET6, socket.AF_INET),
    "V4_PREFERRED": (socket.AF_INET, socket.AF_INET6),
    "V4_ONLY": (socket.AF_INET,),
    "V6_ONLY": (socket.AF_INET6,),
}
"""dns_lookup_family -> the families asked in order until one has addresses; ALL asks for both at once."""

GONE = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))


class StrictDnsCluster(Cluster):
    """Hosts keep their connections and statistics as long as their address is still in the answer."""

    def __init__(self, config: model.Cluster, context: Context) -> None:
        super().__init__(config, context)
        self._answers: dict[int, list[SocketAddress]] = {}
        self._resolving = False
        self.deadline = context.loop.time() + config.dns_refresh_rate
        context.deadlines.watch(self)

    async def start(self) -> None:
        """The first resolution."""
        await self._resolve()

    def on_deadline(self, now: float) -> None:
        """Resolve again."""
        self.deadline = now + self.config.dns_refresh_rate
        if not self._resolving:
            self.context.spawn(self._resolve(), f"resolve {self.name}")

    async def _resolve(self) -> None:
        self._resolving = True
        try:
            await asyncio.gather(*[self._resolve_one(i, e) for i, e in enumerate(self.config.endpoints)])
            self._apply()
        finally:
            self._resolving = False

    async def _resolve_one(self, index: int, endpoint: model.Endpoint) -> None:
        self.stats.update_attempt += 1
        try:
            self._answers[index] = await self._addresses(endpoint.address)
        except socket.gaierror as error:
            self.stats.update_failure += 1
            log.debug("cluster %s: cannot resolve %s: %s", self.name, endpoint.address.host, error.strerror)
            return
        self.stats.update_success += 1
        if not self._answers[index]:
            self.stats.update_empty += 1

    async def _addresses(self, name: SocketAddress) -> list[SocketAddress]:
        loop = self.context.loop
        family = self.config.dns_lookup_family
        asked = [(socket.AF_UNSPEC,)] if family == "ALL" else [(f,) for f in FAMILIES[family]]
        for (one,) in asked:
            try:
                found = await loop.getaddrinfo(name.host, name.port, family=one, type=socket.SOCK_STREAM)
            except socket.gaierror as error:
                if error.errno not in GONE:
                    raise
                continue
            if found:
                return list(dict.fromkeys(SocketAddress(str(a[4][0]), int(a[4][1])) for a in found))
        return []

    def _apply(self) -> None:
        wanted: dict[SocketAddress, model.Endpoint] = {}
        for index, endpoint in enumerate(self.config.endpoints):
            for address in self._answers.get(index, ()):
                wanted.setdefault(address, endpoint)
        known = {h.address: h for h in self.hosts}
        if known.keys() == wanted.keys():
            self.stats.update_no_rebuild += 1
            return
        for address, host in known.items():
            if address not in wanted:
                host.close()
        self.set_hosts([
            known.get(address) or Host(self, address, model.Endpoint(
                address, endpoint.hostname or endpoint.address.host, endpoint.weight, endpoint.region, endpoint.zone,
                endpoint.sub_zone))
            for address, endpoint in wanted.items()
        ])
