"""Which backend to use: the one asked for, the one that holds our rules, or what is there."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from init.backends.base import Backend, Holding, Store
from init.backends.binaries import finder
from init.backends.iptables import PROGRAMS, IptablesBackend
from init.backends.process import find
from init.errors import KernelError
from init.log import Log
from init.namespace import Sandbox
from init.rules import VERSIONS, Plan
from init.settings import Settings


@dataclass(frozen=True, slots=True)
class Held:
    """What one store holds of ours."""

    kind: str
    store: Store
    holding: Holding


@dataclass(slots=True)
class Backends:
    """All kinds, made when they are asked for: each costs imports or processes."""

    sandbox: Sandbox | None
    asked: str = ""  # the kind that the settings ask for
    _made: dict[str, Backend] = field(default_factory=dict, init=False)

    def get(self, kind: str) -> Backend:
        """The backend of a kind. Raises KernelError where what it needs is not installed."""
        if kind not in self._made:
            self._made[kind] = _MAKERS[kind](self.sandbox)
        return self._made[kind]

    def legacy(self) -> Backend:
        """Legacy tables by what is asked for, else by the programs, else by libiptc: they are the same tables."""
        if self.asked in ("iptables-legacy", "libiptc"):
            return self.get(self.asked)
        return self.get("libiptc" if find(f"{PROGRAMS[4]}-legacy") is None and _has_iptc() else "iptables-legacy")

    def legacy_in_use(self) -> bool:
        """Whether legacy tables hold any rule, chain or policy, foreign ones too."""
        backend = self.legacy()
        return isinstance(backend, IptablesBackend) and backend.in_use()

    def all(self) -> list[Backend]:
        """One backend for each place of the kernel that can hold rules of ours."""
        return [self.get("iptables-nft"), self.legacy(), self.get("nftables")]


def _nft_programs(sandbox: Sandbox | None) -> Backend:
    return IptablesBackend("iptables-nft", False, finder(False, sandbox))


def _legacy_programs(sandbox: Sandbox | None) -> Backend:
    return IptablesBackend("iptables-legacy", True, finder(True, sandbox))


def _native(sandbox: Sandbox | None) -> Backend:
    from init.backends.nftables import NftablesBackend

    return NftablesBackend()


def _libiptc(sandbox: Sandbox | None) -> Backend:
    from init.backends.libiptc import tool

    return IptablesBackend("libiptc", True, tool)


_MAKERS: Mapping[str, Callable[[Sandbox | None], Backend]] = {
    "iptables-nft": _nft_programs,
    "iptables-legacy": _legacy_programs,
    "nftables": _native,
    "libiptc": _libiptc,
}


def _has_iptc() -> bool:
    from importlib.util import find_spec

    return find_spec("iptc") is not None


def holders(backends: Backends, plan: Plan | None, log: Log) -> list[Held]:
    """Every store that holds rules of ours. Raises KernelError where one may and cannot be read."""
    found = []
    for backend in backends.all():
        for store in traces(backend, log):
            holding = store.holding(plan)
            if holding:
                found.append(Held(backend.kind, store, holding))
    return found


def traces(backend: Backend, log: Log) -> list[Store]:
    """The stores of a backend that may hold rules of ours; legacy tables that nothing here can read are left out."""
    try:
        return list(backend.traces())
    except KernelError as error:
        if backend.kind != "iptables-legacy":
            raise
        # An empty legacy table is made by merely looking at it, and stays: no reason to fail.
        log.debug(f"legacy tables exist, but cannot be looked into: {error}")
        return []


def choose(settings: Settings, backends: Backends, held: list[Held]) -> Backend:
    """The backend that is to hold the rules.

    What the settings ask for; else the one that holds our rules; else legacy if its tables are in use, as in Istio,
    so that all rules of a namespace stay in one place; else nft; else legacy. Raises KernelError.
    """
    if settings.backend:
        return backends.get(settings.backend)
    kinds = list(dict.fromkeys(entry.kind for entry in held))
    if kinds:
        return backends.get(kinds[0])
    if backends.legacy_in_use():
        return backends.legacy()
    if all(find(f"{program}{suffix}") is None for program in (PROGRAMS[4],) for suffix in ("-nft", "-legacy", "")):
        others = [kind for kind, there in (("nftables", find("nft")), ("libiptc", _has_iptc())) if there]
        instead = f", or use --backend {' or '.join(others)}" if others else ""
        raise KernelError(f"no iptables found in PATH: install the package iptables{instead}")
    try:
        finder(False)(VERSIONS[0])
    except KernelError:
        return backends.get("iptables-legacy")
    return backends.get("iptables-nft")
