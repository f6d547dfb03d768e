"""Finding and running the programs that change rules."""

import os
import subprocess
from collections.abc import Callable, Mapping, Sequence

from init.errors import KernelError

LOCK_WAIT = 30  # seconds that a legacy binary waits for the xtables lock, as in Istio
TIMEOUT = LOCK_WAIT + 30  # seconds for one program to end
_SEARCH = ("/usr/local/sbin", "/usr/sbin", "/sbin")  # looked through after $PATH, which may lack them
_RUN_AS_ROOT = "run as root with the capabilities NET_ADMIN and NET_RAW in this network namespace"
_LOAD_MODULES = "load the kernel modules that the rule needs (xt_REDIRECT, xt_owner, xt_tcpudp, xt_multiport, \
xt_conntrack; xt_TPROXY, xt_mark, xt_connmark for TPROXY; xt_CT for DNS)"

# What a message of the programs or the kernel means for the operator.
_HINTS = (
    ("must be root", _RUN_AS_ROOT),
    ("Permission denied", _RUN_AS_ROOT),
    ("Operation not permitted", _RUN_AS_ROOT),
    ("unable to initialize table", "run as root with NET_ADMIN and NET_RAW, and load the kernel module of that table"),
    ("can't open lock file", "make /run writable or point $XTABLES_LOCKFILE to a writable place"),
    ("holding the xtables lock", f"another program has held the xtables lock for {LOCK_WAIT} s: try again"),
    ("can't initialize", "load the kernel modules of iptables, or use the other --force-iptables-binary"),
    ("Failed to initialize nft", "this kernel has no nf_tables: use --force-iptables-binary legacy"),
    ("No space left on device", "the kernel has no memory left for rules: see the memory limit of the container"),
    ("Cannot allocate memory", "the kernel has no memory left for rules: see the memory limit of the container"),
    ("No chain/target/match by that name", _LOAD_MODULES),
    ("missing kernel module", _LOAD_MODULES),
    ("Extension", _LOAD_MODULES),
)


def hint(message: str) -> str:
    """`: what to do` for a message of a program or of the kernel, or the empty string."""
    return next((f": {advice}" for sign, advice in _HINTS if sign in message), "")


def run(
    command: Sequence[str],
    text: str | None = None,
    *,
    prepare: Callable[[], None] | None = None,
    environment: Mapping[str, str] | None = None,
) -> str:
    """The standard output of a program that is fed `text`. Raises KernelError unless it ends with status 0.

    `prepare` runs in the child before the program, `environment` is added to this process's.
    """
    name = os.path.basename(command[0])
    try:
        done = subprocess.run(
            command,
            input=text,
            stdin=subprocess.DEVNULL if text is None else None,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            env={**os.environ, "LC_ALL": "C", **(environment or {})},
            timeout=TIMEOUT,
            check=False,
            preexec_fn=prepare,
        )
    except OSError as error:
        raise KernelError(f"cannot run {command[0]}: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise KernelError(f"{name} did not end within {TIMEOUT} s") from error
    if done.returncode:
        said = " ".join(done.stderr.split()).rstrip(".") or "no message"
        raise KernelError(f"{name} failed with status {done.returncode}: {said}{hint(said)}")
    return done.stdout


def find(program: str, forms: Sequence[str] = ("",)) -> str | None:
    """The path of `program` whose `forms` (suffixes of its name) can all be executed, or None."""
    for folder in (*os.environ.get("PATH", "").split(os.pathsep), *_SEARCH):
        path = os.path.join(folder, program)
        if folder and all(os.access(f"{path}{form}", os.X_OK) for form in forms):
            return path
    return None
