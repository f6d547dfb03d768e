"""The proxy's admin port, as far as the agent uses it."""

from collections.abc import Sequence

from agent.http.client import request
from agent.http.exchange import HttpError


class AdminError(Exception):
    """The admin port gave no usable answer."""


class Admin:
    """Asks one proxy. Times are seconds; every method raises AdminError with the reason."""

    def __init__(self, hosts: Sequence[str], port: int) -> None:
        """`hosts`: loopback addresses in the order in which they are tried."""
        self._hosts = tuple(hosts)
        self._port = port

    async def stats(self, pattern: str, timeout_s: float) -> dict[str, int]:
        """Statistics in use whose name matches the regular expression, which must be fit for a URL as it stands.

        Lines that are not `name: integer` are left out.
        """
        body = await self._ask("GET", f"/stats?usedonly&filter={pattern}", timeout_s)
        values: dict[str, int] = {}
        for line in body.decode("utf-8", "replace").splitlines():
            name, colon, value = line.rpartition(":")
            if colon and value.strip().isdigit():
                values[name] = int(value.strip()[:20])
        return values

    async def is_live(self, timeout_s: float) -> bool:
        """Whether `/ready` says so."""
        try:
            await self._ask("GET", "/ready", timeout_s)
        except _Refused:
            return False
        return True

    async def drain_listeners(self, *, inbound_only: bool, timeout_s: float) -> None:
        """Begin the graceful drain: the proxy goes on accepting and asks its clients to leave."""
        scope = "inboundonly&" if inbound_only else ""
        await self._ask("POST", f"/drain_listeners?{scope}graceful", timeout_s)

    async def _ask(self, method: str, target: str, timeout_s: float) -> bytes:
        try:
            response = await request(method, self._hosts, self._port, target, timeout_s=timeout_s)
        except HttpError as error:
            raise AdminError(f"{method} {target} on admin port {self._port}: {error}") from None
        if response.status != 200:
            said = response.body[:200].decode("utf-8", "replace").strip()
            raise _Refused(f"{method} {target} on admin port {self._port}: status {response.status}: {said}")
        return response.body


class _Refused(AdminError):
    """An answer, but not 200."""
