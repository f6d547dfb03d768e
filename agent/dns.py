"""DNS capture: what the pod's settings mean for the proxy, which answers names in the place of the real pilot-agent.

The proxy takes them as environment variables, so that its arguments stay those of the real program.
"""

import ipaddress
import os
from collections.abc import Sequence

from agent.durations import format_seconds
from agent.errors import ConfigError
from agent.settings import AgentSettings

RESOLV_CONF = "/etc/resolv.conf"
RESOLV_CONF_BEHIND_US = "/var/lib/istio/resolv.conf"
"""Where a virtual machine has the servers when its own resolv.conf names us, on port 53 (Istio: NewLocalDNSServer)."""
NAME_TABLE = "name-table.json"
"""In the configuration directory, where DNS_NAME_TABLE names no other file."""
DEFAULT_ADDRESS = "localhost:15053"
PRIVILEGED_PORT = 53
_MAX_RESOLV_CONF = 1 << 20  # bytes


def is_served(settings: AgentSettings) -> bool:
    """Whether names are answered at all (Istio: initDNSServer)."""
    captured = settings.dns.capture and settings.options.node_type == "sidecar"
    return (captured or settings.dns.server) and not settings.launch.disable_proxy


def environment(settings: AgentSettings, warnings: list[str], *, is_root: bool | None = None) -> dict[str, str]:
    """What is added to the proxy's environment; empty without DNS. Raises ConfigError naming DNS_PROXY_ADDR."""
    if not is_served(settings):
        return {}
    dns = settings.dns
    is_root = os.geteuid() == 0 if is_root is None else is_root
    resolv_conf = dns.resolv_conf or _resolv_conf(dns.address, is_root)
    listen = _addresses(dns.address, _families(resolv_conf), is_root, warnings)
    made = {
        "DNS_LISTEN": ",".join(listen),
        "DNS_NAME_TABLE": dns.name_table or os.path.join(settings.config.config_path, NAME_TABLE),
        # Without a namespace there are no short names. ("" before the first dot: neither POD_NAMESPACE nor --domain.)
        "DNS_DOMAIN": "" if settings.domain.startswith(".") else settings.domain,
        "DNS_NAMESPACE": settings.identity.pod_namespace,
        "DNS_RESOLV_CONF": resolv_conf,
        "DNS_FORWARD_PARALLEL": "true" if dns.forward_parallel else "false",
        "DNS_FORWARD_TIMEOUT": format_seconds(dns.forward_timeout_s),
        "DNS_CACHE_SIZE": dns.cache_size,
        "DNS_CACHE_MAX_TTL": dns.cache_max_ttl,
        "DNS_SERVE_STALE": dns.serve_stale,
    }
    return {name: value for name, value in made.items() if value}


def _resolv_conf(address: str, is_root: bool) -> str:
    on_port_53 = is_root and address.endswith(f":{PRIVILEGED_PORT}")
    return RESOLV_CONF_BEHIND_US if on_port_53 and os.path.exists(RESOLV_CONF_BEHIND_US) else RESOLV_CONF


def _addresses(address: str, families: Sequence[int], is_root: bool, warnings: list[str]) -> list[str]:
    host, colon, number = address.rpartition(":")
    if not colon or not (number.isascii() and number.isdigit() and 0 < int(number[:6]) <= 65535):
        raise ConfigError(
            f"DNS_PROXY_ADDR: {address[:200]!r} is not an address: expected host:port such as localhost:15053"
        )
    if int(number) == PRIVILEGED_PORT and not is_root:
        warnings.append(f"DNS_PROXY_ADDR: {address} needs an agent that is root: {DEFAULT_ADDRESS} is served instead")
        return _addresses(DEFAULT_ADDRESS, families, is_root, warnings)
    if host == "localhost":
        return [f"127.0.0.1:{number}" if family == 4 else f"[::1]:{number}" for family in families]
    bare = host.removeprefix("[").removesuffix("]")
    try:
        version = ipaddress.ip_address(bare or "0.0.0.0").version
    except ValueError:
        raise ConfigError(
            f"DNS_PROXY_ADDR: {address[:200]!r}: expected localhost or an IP address before the port"
        ) from None
    if not bare:
        return [f"0.0.0.0:{number}", f"[::]:{number}"]
    return [f"[{bare}]:{number}" if version == 6 else f"{bare}:{number}"]


def _families(resolv_conf: str) -> list[int]:
    """IP versions of the resolvers; capture redirects a query within its family. IPv4 where none is known."""
    try:
        with open(resolv_conf, encoding="utf-8", errors="replace") as file:
            lines = file.read(_MAX_RESOLV_CONF).splitlines()
    except OSError:
        return [4]
    found = set()
    for line in lines:
        words = line.split()
        if len(words) > 1 and words[0] == "nameserver":
            try:
                found.add(ipaddress.ip_address(words[1].partition("%")[0]).version)
            except ValueError:
                continue
    return sorted(found) or [4]
