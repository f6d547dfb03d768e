"""Settings and plans for tests, from flags and a machine that answers what the test says."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence

from init.flags import resolve
from init.recipe import make_plan
from init.rules import Plan
from init.settings import Machine, Settings, load

IPV4_POD = ("127.0.0.1", "10.10.0.41", "::1", "fe80::1")
IPV6_POD = ("127.0.0.1", "::1", "fd00:10::41")
DUAL_POD = ("127.0.0.1", "10.10.0.41", "::1", "fd00:10::41")
GROUPS = {"java": 3001, "ftp": 3002, "mail": 8, "daemon": 1}


def settings(
    *argv: str,
    environ: dict[str, str] | None = None,
    account: int | None | Callable[[str], int | None] = None,
    addresses: Sequence[str] = IPV4_POD,
    servers: Sequence[str] = ("10.96.0.10", "169.254.20.10"),
    resolv_conf: str | OSError | None = None,
    cleanup_only: bool = False,
) -> Settings:
    """What `argv` and `environ` mean on a machine with these addresses and name servers."""

    def read() -> str:
        if isinstance(resolv_conf, OSError):
            raise resolv_conf
        if resolv_conf is not None:
            return resolv_conf
        return "".join(f"nameserver {server}\n" for server in servers)

    machine = Machine(
        uid_of=account if callable(account) else lambda name: account,
        gid_of=GROUPS.get,
        addresses=lambda: [ipaddress.ip_address(address) for address in addresses],
        resolv_conf=read,
    )
    return load(resolve(argv, environ or {}), machine, cleanup_only=cleanup_only)


def plan(*argv: str, **world: object) -> Plan:
    """The rules for the same."""
    return make_plan(settings(*argv, **world))  # type: ignore[arg-type]
