"""What the parts of a bootstrap have in common, worked out once."""

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agent.errors import ConfigError
from agent.settings import AgentSettings

Json = Any
TYPES = "type.googleapis.com/"
SDS_DIRECTORY = "./var/run/secrets/workload-spiffe-uds"


@dataclass(frozen=True, slots=True)
class Family:
    """Addresses to listen on and to ask, for the IP families of the pod; None = the pod has one family only."""

    localhost: str
    wildcard: str
    other_localhost: str | None
    other_wildcard: str | None
    dns_lookup: str


_V4 = ("127.0.0.1", "0.0.0.0")
_V6 = ("::1", "::")


def family_of(addresses: Sequence[str], dual_stack: bool) -> Family:
    """A pod with addresses of both families counts as IPv4 unless ISTIO_DUAL_STACK is on; the first address leads."""
    versions = [ipaddress.ip_address(address).version for address in addresses]
    if all(version == 6 for version in versions):
        return Family(*_V6, None, None, "V6_ONLY")
    if all(version == 4 for version in versions) or not dual_stack:
        return Family(*_V4, None, None, "V4_ONLY")
    first, second = (_V6, _V4) if versions[0] == 6 else (_V4, _V6)
    return Family(*first, *second, "ALL")


@dataclass(frozen=True, slots=True)
class Sockets:
    """Unix sockets of others that answer: a credential provider, and an SDS server that is not the agent's."""

    credential: bool = False
    external_sds: bool = False


@dataclass(frozen=True, slots=True)
class Facts:
    """Settings and what follows from them. `warnings` collects what a part leaves out."""

    settings: AgentSettings
    family: Family
    sockets: Sockets
    raw_metadata: Mapping[str, Json]
    tls_files: Mapping[str, str]  # TLS_CLIENT_* of the node's metadata
    metadata_discovery: bool
    platform: Mapping[str, str] = field(default_factory=dict)  # PLATFORM_METADATA
    warnings: list[str] = field(default_factory=list)

    @property
    def proxy_config(self) -> Mapping[str, Json]:
        return self.settings.config.document

    def address(self, text: str, where: str) -> dict[str, Json]:
        """A socket_address for `host:port`; the host $(HOST_IP) is the node. Raises ConfigError naming `where`."""
        match = re.fullmatch(r"\[(.+)\]:(\d+)|([^\[\]]+):(\d+)", text)
        if match is None:
            raise ConfigError(f"{where}: {text[:256]!r}: expected host:port")
        host, port = match[1] or match[3], match[2] or match[4]
        if host == "$(HOST_IP)" and self.settings.identity.host_ip:
            host = self.settings.identity.host_ip
        return {"address": host, "port_value": int(port)}
