"""The proxy's admin port, as far as the agent uses it."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from agent.http.client import MAX_BODY, request
from agent.http.exchange import HttpError
from agent.lifecycle.connections import Holder, statistics_name

_MAX_HOLDERS = 100
_MAX_DUMP = 32 * 1024 * 1024  # listeners of a large mesh

_MAX_TEXT = 256  # of a name in an answer, for logs and reports

# What reading a document raises that is not what it should be; the last ones come of nesting and of Infinity.
_NONSENSE = (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError)


class AdminError(Exception):
    """The admin port gave no usable answer."""


class Refused(AdminError):
    """An answer, but not 200."""


class Admin:
    """Asks one proxy. Times are seconds; every method raises AdminError with the reason."""

    def __init__(self, hosts: Sequence[str], port: int) -> None:
        """`hosts`: loopback addresses in the order in which they are tried."""
        self._hosts = tuple(hosts)
        self.port = port

    async def stats(self, pattern: str, timeout_s: float) -> dict[str, int]:
        """Statistics in use whose name matches the regular expression, which must be fit for a URL as it stands.

        Lines that are not `name: integer` are left out.
        """
        body = await self._ask("GET", f"/stats?usedonly&filter={pattern}", timeout_s)
        values: dict[str, int] = {}
        for line in body.decode("utf-8", "replace").splitlines():
            name, colon, value = line.rpartition(":")
            if colon and value.isascii() and value.strip().isdigit():
                values[name] = int(value.strip()[:20])
        return values

    async def is_live(self, timeout_s: float) -> bool:
        """Whether `/ready` says so."""
        try:
            await self._ask("GET", "/ready", timeout_s)
        except Refused:
            return False
        return True

    async def drain_listeners(self, *, inbound_only: bool, skip_exit: bool = False, timeout_s: float) -> None:
        """Begin the graceful drain: the proxy goes on accepting and asks its clients to leave.

        With `skip_exit` it never stops accepting; without, it does when its drain time is over.
        """
        scope = "inboundonly&" if inbound_only else ""
        exits = "&skip_exit" if skip_exit else ""
        await self._ask("POST", f"/drain_listeners?{scope}graceful{exits}", timeout_s)

    async def quit(self, timeout_s: float) -> None:
        """Ask the proxy to end; it writes out its logs and exits soon after its answer."""
        await self._ask("POST", "/quitquitquit", timeout_s)

    async def connections(self, timeout_s: float) -> tuple[Holder, ...] | None:
        """The oldest open downstream connections; None when the proxy cannot tell (Envoy)."""
        try:
            body = await self._ask("GET", f"/connections?format=json&limit={_MAX_HOLDERS}", timeout_s)
        except Refused:
            return None
        try:
            return tuple(
                Holder(
                    _short(row["listener"]), _short(row["direction"]), _short(row["peer"]), _short(row["local"]),
                    _finite(row["age"]), int(row["requests"]), int(row["active"]),
                )
                for row in json.loads(body)["connections"][:_MAX_HOLDERS]
            )  # fmt: skip
        except _NONSENSE as error:
            raise AdminError(f"GET /connections on admin port {self.port}: unexpected answer: {error!r}") from None

    async def name_table(self, timeout_s: float) -> bool | None:
        """Whether the mesh's names have arrived; None when the proxy serves no DNS (Envoy)."""
        try:
            body = await self._ask("GET", "/dns?format=json", timeout_s)
        except Refused:
            return None
        try:
            return bool(json.loads(body)["table"]["loaded"])
        except _NONSENSE as error:
            raise AdminError(f"GET /dns on admin port {self.port}: unexpected answer: {error!r}") from None

    async def listener_directions(self, timeout_s: float) -> dict[str, str]:
        """traffic_direction by the name that a listener has in statistics."""
        directions: dict[str, str] = {}
        for resource in ("static_listeners", "dynamic_listeners"):
            body = await self._ask("GET", f"/config_dump?resource={resource}", timeout_s, _MAX_DUMP)
            try:
                for listener in _listeners(json.loads(body)):
                    direction = str(listener.get("traffic_direction", "UNSPECIFIED"))
                    address = listener["address"]["socket_address"]
                    prefix = str(listener.get("stat_prefix", ""))
                    directions[statistics_name(address["address"], int(address["port_value"]), prefix)] = direction
            except _NONSENSE as error:
                raise AdminError(f"GET /config_dump on admin port {self.port}: unexpected answer: {error!r}") from None
        return directions

    async def _ask(self, method: str, target: str, timeout_s: float, max_body: int = MAX_BODY) -> bytes:
        try:
            response = await request(method, self._hosts, self.port, target, timeout_s=timeout_s, max_body=max_body)
        except HttpError as error:
            raise AdminError(f"{method} {target} on admin port {self.port}: {error}") from None
        if response.status != 200:
            said = response.body[:200].decode("utf-8", "replace").strip()
            raise Refused(f"{method} {target} on admin port {self.port}: status {response.status}: {said}")
        return response.body


def _short(value: Any) -> str:
    return str(value)[:_MAX_TEXT]


def _finite(value: Any) -> float:
    """Raises ValueError for NaN and infinity, which JSON has no words for."""
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"not a number: {value!r}")
    return number


def _listeners(dump: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Every listener of a configuration dump that has a socket address, in whatever state it is."""
    for entry in dump.get("configs", ()):
        for state in (entry, *(entry.get(name, {}) for name in ("active_state", "warming_state", "draining_state"))):
            listener = state.get("listener")
            if listener is not None and "socket_address" in listener.get("address", {}):
                yield listener
