"""The iptables binaries: which ones there are, which one to use, and running them."""

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from init.errors import KernelError
from init.plan import Family
from init.state import Dump, parse_save

Kind = Literal["nft", "legacy"]

LOCK_WAIT = 30  # seconds that a legacy binary waits for the xtables lock, as in Istio
TIMEOUT = LOCK_WAIT + 30  # seconds for one binary to end
_SEARCH = ("/usr/local/sbin", "/usr/sbin", "/sbin")  # looked through after $PATH, which may lack them

# What a message of the binaries or the kernel means for the operator.
_HINTS = (
    ("must be root", "run as root with the capability NET_ADMIN in this network namespace"),
    ("Permission denied", "run as root with the capabilities NET_ADMIN and NET_RAW in this network namespace"),
    ("Operation not permitted", "run as root with the capabilities NET_ADMIN and NET_RAW in this network namespace"),
    ("unable to initialize table", "run as root with NET_ADMIN and NET_RAW, and load the kernel module of that table"),
    ("can't open lock file", "make /run writable or point $XTABLES_LOCKFILE to a writable place"),
    ("holding the xtables lock", f"another program has held the xtables lock for {LOCK_WAIT} s: try again"),
    ("can't initialize", "load the kernel modules of iptables, or use the other --force-iptables-binary"),
    ("Failed to initialize nft", "this kernel has no nf_tables: use --force-iptables-binary legacy"),
    ("No chain/target/match by that name", "load the kernel modules xt_REDIRECT, xt_owner and xt_tcpudp"),
    ("missing kernel module", "load the kernel modules xt_REDIRECT, xt_owner and xt_tcpudp"),
)


@dataclass(frozen=True, slots=True)
class Backend:
    """One set of binaries, `<path>-save` and `<path>-restore`, for one family."""

    family: Family
    kind: Kind
    path: str

    @property
    def name(self) -> str:
        """The name of the binaries without their folder and suffix."""
        return os.path.basename(self.path)

    def save(self) -> Dump:
        """Everything that is in the kernel. Raises KernelError."""
        return parse_save(_run([f"{self.path}-save"]))

    def restore(self, text: str) -> None:
        """Apply restore text on top of what is there, each table as a whole or not at all. Raises KernelError."""
        wait = [f"--wait={LOCK_WAIT}"] if self.kind == "legacy" else []
        _run([f"{self.path}-restore", "--noflush", *wait], text)


def _run(command: Sequence[str], text: str | None = None) -> str:
    name = os.path.basename(command[0])
    try:
        done = subprocess.run(
            command,
            input=text,
            stdin=subprocess.DEVNULL if text is None else None,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            env={**os.environ, "LC_ALL": "C"},
            timeout=TIMEOUT,
            check=False,
        )
    except OSError as error:
        raise KernelError(f"cannot run {command[0]}: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise KernelError(f"{name} did not end within {TIMEOUT} s") from error
    if done.returncode:
        said = " ".join(done.stderr.split()).rstrip(".") or "no message"
        hint = next((f": {hint}" for sign, hint in _HINTS if sign in said), "")
        raise KernelError(f"{name} failed with status {done.returncode}: {said}{hint}")
    return done.stdout


def _find(program: str) -> str | None:
    """The path of `program` whose -save and -restore forms can be executed, or None."""
    for folder in (*os.environ.get("PATH", "").split(os.pathsep), *_SEARCH):
        path = os.path.join(folder, program)
        if folder and all(os.access(f"{path}-{form}", os.X_OK) for form in ("save", "restore")):
            return path
    return None


def installed(family: Family) -> list[Backend]:
    """The binaries of both kinds; where neither is there, those without `-nft` or `-legacy` in their name."""
    kinds: tuple[Kind, ...] = ("nft", "legacy")
    found = [Backend(family, kind, path) for kind in kinds if (path := _find(f"{family.program}-{kind}"))]
    if found or not (path := _find(family.program)):
        return found
    return [Backend(family, "nft" if "nf_tables" in _run([f"{path}-restore", "--version"]) else "legacy", path)]


def not_installed(family: Family, forced: str) -> str:
    """What to say where `installed` finds nothing to use."""
    return f"no {family.program}{'-' + forced if forced else ''} found in PATH: install the package iptables"


def has_legacy_tables(family: Family) -> bool:
    """Whether any legacy table exists in this network namespace, asked without starting a process."""
    names = "/proc/net/ip_tables_names" if family.version == 4 else "/proc/net/ip6_tables_names"
    try:
        with open(names, encoding="ascii") as file:
            return bool(file.read(4096).strip())
    except PermissionError:
        return True
    except OSError:
        return False  # the module is not loaded


def select(family: Family, forced: str) -> tuple[Backend, Dump]:
    """The backend to use and what it shows to be in the kernel now.

    The one that holds our rules; else legacy if it holds any rule, as Istio does, so that all rules of a namespace
    stay in one place; else nft; else legacy. Raises KernelError when none can be used, when both hold our rules, or
    when the forced one is not the one that does.
    """
    found = installed(family)
    if not any(forced in ("", backend.kind) for backend in found):
        raise KernelError(not_installed(family, forced))
    dumps: dict[Kind, tuple[Backend, Dump]] = {}
    problems: list[KernelError] = []
    # A legacy binary without tables has nothing to tell: it is asked last, if nothing else can be used.
    idle = {backend: backend.kind == "legacy" and not has_legacy_tables(family) for backend in found}
    for backend in sorted(found, key=idle.__getitem__):
        if dumps and idle[backend] and backend.kind != forced:
            continue
        try:
            dumps[backend.kind] = (backend, backend.save())
        except KernelError as error:
            if "Permission denied" in str(error):
                raise  # a binary that may not look is not one that cannot be used
            problems.append(error)
    holders = [kind for kind, (_, dump) in dumps.items() if dump.ours()]
    if len(holders) > 1 or (forced and holders and holders != [forced]):
        raise KernelError(
            f"rules of an earlier run are in {' and '.join(f'{family.program}-{kind}' for kind in holders)}"
            f"{f', not in {family.program}-{forced}' if forced else ''}: remove them with istio-clean-iptables first"
        )
    legacy_in_use = "legacy" in dumps and dumps["legacy"][1].in_use()
    for kind in [forced] if forced else [*holders, *(("legacy", "nft") if legacy_in_use else ("nft", "legacy"))]:
        if kind in dumps:
            return dumps[kind]
    raise problems[0]
