"""What DNS is told: one table of flags and environment variables; the flag goes before the variable.

The variables without ``DNS_FORWARD_PARALLEL`` and ``DNS_FORWARD_TIMEOUT``, which are pilot-agent's, are our own.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from proxy.dns.message import MessageError, name_to_wire

if TYPE_CHECKING:
    from proxy.config.model import SocketAddress

LOOPBACK = ("127.0.0.1", "::1")
MAX_LISTEN = 16
MAX_CACHE = 1_000_000
MAX_SECONDS = 7 * 86400.0
MAX_FORWARD_TIMEOUT = 60.0

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(?:(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:ns|us|µs|μs|ms|s|m|h))+")
_PART = re.compile(r"([0-9.]+)(ns|us|µs|μs|ms|s|m|h)")


class SettingsError(ValueError):
    """A setting that cannot be used; the text names it and says what was expected."""


class Listen(NamedTuple):
    """An address to answer on. Not ``required``: left out where the host has no such address (::1 without IPv6)."""

    address: SocketAddress
    required: bool = True


@dataclass(frozen=True, slots=True)
class DnsSettings:
    """Times are seconds. DNS is on when ``listen`` has an address."""

    listen: tuple[Listen, ...] = ()
    name_table: str = ""
    """File with the table as istiod's NDS sends it, as JSON; empty: none, every query goes to the servers."""
    domain: str = ""
    """The proxy's DNS domain, ``ns1.svc.cluster.local``."""
    namespace: str = ""
    resolv_conf: str = "/etc/resolv.conf"
    forward_timeout: float = 5.0
    """Bounds a query to the servers as a whole."""
    parallel: bool = False
    """Ask all servers at once and take the first reply."""
    cache_size: int = 10_000
    """Answers, 0 for no cache."""
    cache_max_ttl: float = 3600.0
    serve_stale: float = 30.0
    """How long after its end an answer may be given when no server answers; 0: never."""

    @property
    def enabled(self) -> bool:
        """There is something to listen on."""
        return bool(self.listen)


# --- values -----------------------------------------------------------------------------------------------------------


def parse_listen(text: str) -> tuple[Listen, ...]:
    """``15053``, ``localhost:15053``, ``127.0.0.1:15053``, ``[::1]:15053``; several with commas between.

    A bare port and ``localhost`` mean loopback of both families, as far as they exist.
    """
    found: dict[SocketAddress, Listen] = {}
    for part in text.split(","):
        for one in _listen(part.strip()):
            found.setdefault(one.address, one)
    if len(found) > MAX_LISTEN:
        raise ValueError(f"{len(found)} addresses, expected at most {MAX_LISTEN}")
    return tuple(found.values())


def _listen(text: str) -> list[Listen]:
    from proxy.config.model import SocketAddress  # the command line of a proxy without DNS needs no model

    host, colon, port_text = text.rpartition(":")
    expected = "expected a port, localhost:port or an IP address and a port such as 127.0.0.1:15053 or [::1]:15053"
    if not (port_text.isascii() and port_text.isdigit() and len(port_text) <= 5 and 0 < int(port_text) <= 65535):
        raise ValueError(expected)
    port = int(port_text)
    if not colon or host == "localhost":
        return [Listen(SocketAddress(loopback, port), required=False) for loopback in LOOPBACK]
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        address = ipaddress.ip_address(host[1:-1] if bracketed else host)
    except ValueError:
        raise ValueError(expected) from None
    if bracketed != (address.version == 6) or "%" in host or address.is_multicast:
        raise ValueError(expected)
    return [Listen(SocketAddress(str(address), port))]


def parse_duration(text: str) -> float:
    """Seconds of a duration in Go's syntax (``5s``, ``1m30s``, ``250ms``, ``0``). Raises ValueError."""
    if text == "0":
        return 0.0
    if len(text) > 40 or not _DURATION.fullmatch(text):
        raise ValueError("expected a duration such as 5s, 1m30s or 250ms")
    return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))


def _duration(lowest: float, highest: float) -> Callable[[str], float]:
    def check(text: str) -> float:
        seconds = parse_duration(text)
        if not lowest <= seconds <= highest:
            raise ValueError(f"expected {lowest:g} to {highest:g} seconds")
        return seconds
    return check


def _count(highest: int) -> Callable[[str], int]:
    def check(text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) < 12 and int(text) <= highest):
            raise ValueError(f"expected a number from 0 to {highest}")
        return int(text)
    return check


def _bool(text: str) -> bool:
    # Go's strconv.ParseBool, by which pilot-agent reads its environment.
    if text in ("1", "t", "T", "true", "TRUE", "True"):
        return True
    if text in ("0", "f", "F", "false", "FALSE", "False"):
        return False
    raise ValueError("expected true or false")


def _domain(text: str) -> str:
    try:
        name_to_wire(text)
    except MessageError as error:
        raise ValueError(f"expected a domain such as ns1.svc.cluster.local: {error}") from None
    return text.rstrip(".").lower()


def _label(text: str) -> str:
    if not re.fullmatch(r"[a-zA-Z0-9](?:[-a-zA-Z0-9]{0,61}[a-zA-Z0-9])?", text):
        raise ValueError("expected the name of a namespace")
    return text.lower()


def _path(text: str) -> str:
    if not text or "\0" in text:
        raise ValueError("expected the path of a file")
    return text


# --- the table --------------------------------------------------------------------------------------------------------


class Setting(NamedTuple):
    """One setting: field of DnsSettings, flag (without dashes), environment variable, text -> value, help."""

    field: str
    flag: str
    variable: str
    parse: Callable[[str], Any]
    help: str
    type: str = "<string>"


SETTINGS = (
    Setting("listen", "dns-listen", "DNS_LISTEN", parse_listen,
            "Answer DNS there, over UDP and TCP: a port or localhost:15053 (loopback only), IP:port; several with "
            "commas. Without it DNS is off."),
    Setting("name_table", "dns-name-table", "DNS_NAME_TABLE", _path,
            "File with istiod's name table (NDS) as JSON; read again when it changes."),
    Setting("domain", "dns-domain", "DNS_DOMAIN", _domain,
            "DNS domain of the proxy, such as ns1.svc.cluster.local: which short names the table's services have."),
    Setting("namespace", "dns-namespace", "DNS_NAMESPACE", _label,
            "Namespace of the proxy (default: the first label of --dns-domain)."),
    Setting("resolv_conf", "dns-resolv-conf", "DNS_RESOLV_CONF", _path,
            "File with the servers for all other names and the search list (default /etc/resolv.conf); read again "
            "when it changes."),
    Setting("forward_timeout", "dns-forward-timeout", "DNS_FORWARD_TIMEOUT", _duration(0.1, MAX_FORWARD_TIMEOUT),
            "How long a query to the servers may take in all (default 5s).", "<duration>"),
    Setting("parallel", "dns-forward-parallel", "DNS_FORWARD_PARALLEL", _bool,
            "Ask all servers at once and take the first reply (default false).", "<bool>"),
    Setting("cache_size", "dns-cache-size", "DNS_CACHE_SIZE", _count(MAX_CACHE),
            "Answers of the servers that each worker remembers (default 10000; 0: none).", "<uint32_t>"),
    Setting("cache_max_ttl", "dns-cache-max-ttl", "DNS_CACHE_MAX_TTL", _duration(0, MAX_SECONDS),
            "Longest time that such an answer is used, whatever its TTL (default 1h).", "<duration>"),
    Setting("serve_stale", "dns-serve-stale", "DNS_SERVE_STALE", _duration(0, MAX_SECONDS),
            "How long after that it may still be used while no server answers (default 30s; 0: never).", "<duration>"),
)


def build(given: Mapping[str, str], environment: Mapping[str, str]) -> DnsSettings:
    """Settings of the flags that were given (flag -> text) and of the environment. Raises SettingsError.

    An empty variable counts as not set, as in a pod template that leaves it empty.
    """
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for setting in SETTINGS:
        if setting.flag in given:
            source, text = f"--{setting.flag}", given[setting.flag]
        elif environment.get(setting.variable):
            source, text = setting.variable, environment[setting.variable]
        else:
            continue
        sources[setting.field] = source
        try:
            values[setting.field] = setting.parse(text)
        except ValueError as error:
            raise SettingsError(f"{source} '{text[:200]}': {error}") from None
    if not values.get("listen"):
        # Variables alone may be meant for another program in this environment; a flag is meant for us.
        for field, source in sources.items():
            if source.startswith("--") and field != "listen":
                raise SettingsError(f"{source}: without effect, because DNS is off; expected --dns-listen as well")
        return DnsSettings()
    if "namespace" not in values:
        values["namespace"] = values.get("domain", "").partition(".")[0]
    return DnsSettings(**values)
