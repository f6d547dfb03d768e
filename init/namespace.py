"""Other namespaces: the network namespace of --network-namespace, and the mount sandbox of --cni-mode.

This program is never the `istio-cni` executable, for which Istio's enters a nested user namespace with nsenter: who
runs it for a pod whose network namespace belongs to another user namespace enters that first.
"""

import errno
import functools
import os
import stat
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from init.errors import KernelError, shown

if TYPE_CHECKING:
    from ctypes import CDLL

NAMESPACE = "/proc/thread-self/ns/net"
NSSWITCH = "/etc/nsswitch.conf"
XTABLES_LOCK = "/run/xtables.lock"  # what iptables-legacy before 1.8.6 locks whatever the environment says
PRIVATE_LOCK = "/proc/self/comm"  # a file that no other process opens by this name

_CLONE_NEWNS, _CLONE_NEWNET = 0x00020000, 0x40000000
_MS_BIND, _MS_REC, _MS_PRIVATE, _MS_SLAVE = 0x1000, 0x4000, 1 << 18, 1 << 19
_MAX_PROBLEM = 4096  # bytes
_EXPECTED = "expected the file of a network namespace, such as /run/netns/NAME or /proc/PID/ns/net"


def enter(path: str) -> None:
    """Make the network namespace at `path` that of this thread, unless it is. Raises KernelError."""
    refused = f"--network-namespace: cannot enter {shown(path)}"
    try:
        target = os.stat(path)
        if not stat.S_ISREG(target.st_mode):  # opening a pipe or a device could hang or do something
            raise KernelError(f"{refused}: not a namespace: {_EXPECTED}")
        if _is_here(target):
            return
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise KernelError(f"{refused}: {reason}: {_EXPECTED} that this process can read") from error
    try:
        _check(_libc().setns(fd, _CLONE_NEWNET))
    except OSError as error:
        advice = _EXPECTED
        if error.errno == errno.EINVAL:
            advice += " (an ordinary file there can mean that its mount did not reach this container: mount its folder "
            advice += "with mountPropagation: HostToContainer)"
        elif error.errno == errno.EPERM:
            advice = "run as root with the capability SYS_ADMIN, or start this program inside that namespace"
        raise KernelError(f"{refused}: {error.strerror}: {advice}") from error
    finally:
        os.close(fd)


def _is_here(target: os.stat_result) -> bool:
    try:
        return os.path.samestat(target, os.stat(NAMESPACE))
    except OSError:
        return False  # no /proc


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True, slots=True)
class Sandbox:
    """Runs programs in a mount namespace of their own that ends with them, so that a host's files serve a pod.

    In it /etc/nsswitch.conf is empty: the names of users and groups are not asked of the host's services. The lock of
    iptables-legacy is one that nobody else holds, so runs for several pods do not wait for one another. What keeps two
    runs for one pod apart is the lock on its network namespace (`init.lock`). That is the file which Istio's program
    gives to iptables as its lock; here it is held already, and a program that took it again would wait forever.
    """

    works: bool

    @classmethod
    def for_this_namespace(cls, path: str = "", warn: Callable[[str], None] = _to_stderr) -> Self:
        """Try it once; where it cannot be built, programs run without it, after a warning.

        `path` is what the network namespace is called in the warning.
        """
        problem = _try()
        if problem:
            where = f" for {shown(path)}" if path else ""
            warn(f"--cni-mode: programs run{where} without a mount sandbox (it needs CAP_SYS_ADMIN): {problem}")
        return cls(not problem)

    def prepare(self) -> None:
        """What a child process does before it becomes the program (`preexec_fn`; this process has one thread)."""
        if self.works:
            try:
                _build()
            except OSError:
                pass  # it could be built before: without it the program works as well

    def environment(self, locked: bool) -> Mapping[str, str]:
        """What to add to the environment of a program that takes the lock of iptables-legacy or does not."""
        return {"XTABLES_LOCKFILE": PRIVATE_LOCK} if self.works and locked else {}


def _try() -> str:
    """What is in the way of a sandbox, found by building one in a child process, or the empty string."""
    _libc()  # loaded here, not in every child
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _build()
        except OSError as error:
            os.write(writer, f"{error.filename}: {error.strerror}".encode()[:_MAX_PROBLEM])
        except BaseException as error:
            os.write(writer, repr(error).encode()[:_MAX_PROBLEM])
        finally:
            os._exit(0)
    os.close(writer)
    try:
        return os.read(reader, _MAX_PROBLEM).decode("utf-8", "replace")
    finally:
        os.close(reader)
        os.waitpid(child, 0)


def _build() -> None:
    """Move this process into a sandbox. Raises OSError with the name of what could not be mounted."""
    _check(_libc().unshare(_CLONE_NEWNS), "a new mount namespace")
    try:
        _mount(None, "/", _MS_REC | _MS_PRIVATE)
    except OSError:
        _mount(None, "/", _MS_REC | _MS_SLAVE)
    # From here on nothing that is mounted shows outside.
    for source, target in ((os.devnull, NSSWITCH), (PRIVATE_LOCK, XTABLES_LOCK)):
        if os.path.exists(target):
            _mount(source, target, _MS_BIND)


def _mount(source: str | None, target: str, flags: int) -> None:
    _check(_libc().mount(source.encode() if source else None, target.encode(), None, flags, None), target)


def _check(result: int, name: str | None = None) -> None:
    if result != 0:
        from ctypes import get_errno

        code = get_errno()
        raise OSError(code, os.strerror(code), name)


@functools.cache
def _libc() -> "CDLL":
    """The C library: Python 3.11 has neither setns nor unshare nor mount. Imported where one is needed."""
    from ctypes import CDLL, c_char_p, c_ulong, c_void_p

    libc = CDLL(None, use_errno=True)
    libc.mount.argtypes = (c_char_p, c_char_p, c_char_p, c_ulong, c_void_p)
    return libc
