"""--network-namespace enters it; --cni-mode runs programs in a mount namespace that shows nothing to the host."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .netns import REPOSITORY, Namespace, require

pytestmark = pytest.mark.netns

FILES = Path("/run/netns")
WITHOUT_SYS_ADMIN = ("setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin")


@pytest.fixture(scope="module", autouse=True)
def _required() -> None:
    require()


@pytest.fixture
def outside() -> Iterator[Namespace]:
    """Where the program is started: if it did not enter, its work would be found here, not on the machine."""
    with Namespace() as namespace:
        namespace.interface("eth0", ["10.10.0.1/24"])
        yield namespace


@pytest.fixture
def pod() -> Iterator[Namespace]:
    with Namespace() as namespace:
        namespace.interface("eth0", ["10.10.0.41/24"])
        yield namespace


def path_of(namespace: Namespace) -> str:
    return str(FILES / namespace.name)


ENTER = """
import os, sys
from init.errors import KernelError
from init.lock import namespace_lock
from init.namespace import enter
from init.netlink import local_addresses
for path in sys.argv[1:]:
    try:
        enter(path)
        print(os.stat("/proc/thread-self/ns/net").st_ino, *local_addresses())
        with namespace_lock(lambda: print("waits"), wait=0):
            print("locked")
    except KernelError as error:
        print(error)
"""


def entering(namespace: Namespace, *paths: str, prefix: tuple[str, ...] = ()) -> list[str]:
    done = namespace.run([*prefix, sys.executable, "-c", ENTER, *paths])
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_a_namespace_is_entered(outside: Namespace, pod: Namespace) -> None:
    number = os.stat(path_of(pod)).st_ino
    lines = entering(outside, path_of(pod), path_of(pod), path_of(outside))
    assert lines == [
        f"{number} 127.0.0.1 10.10.0.41 ::1 {link_local(pod)}",
        "locked",
        f"{number} 127.0.0.1 10.10.0.41 ::1 {link_local(pod)}",
        "locked",
        f"{os.stat(path_of(outside)).st_ino} 127.0.0.1 10.10.0.1 ::1 {link_local(outside)}",
        "locked",
    ]


def link_local(namespace: Namespace) -> str:
    """The kernel's own addresses of the interfaces, in its order."""
    shown = namespace.ip("-6", "-o", "address", "show", "scope", "link").splitlines()
    return " ".join(line.split()[3].partition("/")[0] for line in shown)


def test_the_lock_is_that_of_the_namespace_that_was_entered(outside: Namespace, pod: Namespace) -> None:
    with open(path_of(pod)) as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert entering(outside, path_of(outside))[1:] == ["locked"]
        lines = entering(outside, path_of(pod))[1:]
    assert lines[0] == "waits"
    assert lines[1].startswith("another process has held the lock of this network namespace")


def test_what_is_no_namespace_is_refused(outside: Namespace, tmp_path: Path) -> None:
    plain, pipe = tmp_path / "plain", tmp_path / "pipe"
    plain.touch()
    os.mkfifo(pipe)
    lines = entering(
        outside, str(tmp_path / "absent"), str(plain), str(pipe), str(tmp_path), "/proc/self/ns/mnt", "/dev/null"
    )
    expected = "expected the file of a network namespace, such as /run/netns/NAME or /proc/PID/ns/net"
    start = f"--network-namespace: cannot enter '{tmp_path}"
    mount = "an ordinary file there can mean that its mount did not reach this container"
    assert lines[0] == f"{start}/absent': No such file or directory: {expected} that this process can read"
    assert lines[1].startswith(f"{start}/plain': Invalid argument: {expected} ({mount}")
    assert lines[2] == f"{start}/pipe': not a namespace: {expected}"
    assert lines[3] == f"{start}': not a namespace: {expected}"
    assert lines[4].startswith(f"--network-namespace: cannot enter '/proc/self/ns/mnt': Invalid argument: {expected}")
    assert lines[5] == f"--network-namespace: cannot enter '/dev/null': not a namespace: {expected}"


def test_without_the_capability_it_says_what_to_do_unless_it_is_inside(outside: Namespace, pod: Namespace) -> None:
    lines = entering(outside, path_of(pod), path_of(outside), prefix=WITHOUT_SYS_ADMIN)
    assert lines[0] == (
        f"--network-namespace: cannot enter '{path_of(pod)}': Operation not permitted: run as root with the capability "
        "SYS_ADMIN, or start this program inside that namespace"
    )
    assert lines[1].startswith(f"{os.stat(path_of(outside)).st_ino} ")


def test_the_program_works_in_the_namespace_of_its_flag(outside: Namespace, pod: Namespace) -> None:
    flags = ("--network-namespace", path_of(pod), "-m", "TPROXY", "-i", "*", "-b", "*", "-u", "1337")
    done = outside.python("-m", "init", *flags)
    assert done.returncode == 0, done.stderr
    assert "ISTIO_REDIRECT" in pod.run(["iptables-nft-save"]).stdout
    assert "from all fwmark 0x539 lookup 133" in pod.ip("rule")
    assert outside.run(["nft", "list", "ruleset"]).stdout == ""
    assert "fwmark" not in outside.ip("rule")
    done = outside.python("-m", "init", "--cleanup-only", env={"NETWORK_NAMESPACE": path_of(pod)})
    assert done.returncode == 0, done.stderr
    assert pod.run(["nft", "list", "ruleset"]).stdout == ""
    assert "fwmark" not in pod.ip("rule")


# A mount namespace whose mounts are shared, as on a host: what a sandbox mounted there without care would show here.
HOST = """
mount --make-rprivate / && mount --make-rshared / || exit 99
mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /mnt || exit 99
printf 'passwd: files host\\n' > /mnt/nsswitch.conf && touch /etc/nsswitch.conf || exit 99
mount --bind /mnt/nsswitch.conf /etc/nsswitch.conf || exit 99
exec "$@"
"""

SANDBOX = """
import os, subprocess, sys
from init.lock import namespace_lock
from init.namespace import Sandbox

def mounts():
    return open("/proc/self/mountinfo").read()

def run(command, **options):
    done = subprocess.run(command, text=True, capture_output=True, **options)
    return done.stdout, done.returncode

show = ["sh", "-c", "cat /etc/nsswitch.conf; cat /proc/self/mountinfo; readlink /proc/self/ns/mnt /proc/self/ns/net"]
warnings = []
sandbox = Sandbox.for_this_namespace("/run/netns/pod", warnings.append)
"""


def on_a_host(pod: Namespace, program: str, *prefix: str) -> list[str]:
    """Run a program that asserts, and prints for the tests to assert, on top of SANDBOX."""
    command = ["unshare", "--mount", "sh", "-c", HOST, "sh", *prefix, sys.executable, "-c", SANDBOX + program]
    done = pod.run(command)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_sandbox_hides_the_hosts_files_and_shows_nothing_outside(pod: Namespace) -> None:
    program = """
open("/run/xtables.lock", "w").close()
before = mounts()
inside, _ = run(show, preexec_fn=sandbox.prepare)
assert mounts() == before
outside, _ = run(show)
assert outside.startswith("passwd: files host")
*lines, mount_namespace, network_namespace = inside.splitlines()
assert "passwd" not in lines[0] and not any(" shared:" in line for line in lines)
points = [line.split()[4] for line in lines]
assert points[-2:] == ["/etc/nsswitch.conf", "/run/xtables.lock"], points
assert len(points) == len(before.splitlines()) + 2
assert mount_namespace != os.readlink("/proc/self/ns/mnt") and network_namespace == os.readlink("/proc/self/ns/net")
print(sandbox.works, warnings, sandbox.environment(True), sandbox.environment(False))
"""
    assert on_a_host(pod, program) == ["True [] {'XTABLES_LOCKFILE': '/proc/self/comm'} {}"]


def test_what_the_host_does_not_have_is_not_made(pod: Namespace) -> None:
    program = """
before = mounts()
inside, _ = run(["cat", "/proc/self/mountinfo"], preexec_fn=sandbox.prepare)
assert not os.path.exists("/run/xtables.lock") and mounts() == before
lines = inside.splitlines()
print(len(lines) - len(before.splitlines()), lines[-1].split()[4], warnings)
"""
    assert on_a_host(pod, program) == ["1 /etc/nsswitch.conf []"]


def test_the_hosts_lock_is_not_waited_for_and_ours_is_not_in_the_way(pod: Namespace) -> None:
    """By the environment (iptables 1.8.6 and later) and by the name of the file (before)."""
    program = """
import fcntl
held = open("/run/xtables.lock", "w")
fcntl.flock(held, fcntl.LOCK_EX)
append = ["iptables-legacy", "-w", "1", "-t", "nat", "-A", "OUTPUT", "-j", "RETURN"]  # waits for a second
with namespace_lock(lambda: None):  # as in every run; Istio's program gives this very file to iptables
    codes = [run(append)[1]]
    codes.append(run(append, preexec_fn=sandbox.prepare)[1])
    environment = {**os.environ, **sandbox.environment(True)}
    codes.append(run(append, preexec_fn=sandbox.prepare, env=environment)[1])
    fcntl.flock(held, fcntl.LOCK_UN)
    codes.append(run(append, preexec_fn=sandbox.prepare, env=environment)[1])
print(codes)
"""
    assert on_a_host(pod, program) == ["[4, 0, 0, 0]"]
    assert pod.run(["iptables-legacy-save"]).stdout.count("-A OUTPUT -j RETURN") == 3


def test_where_no_sandbox_can_be_built_programs_run_after_a_warning(pod: Namespace) -> None:
    program = """
inside, code = run(show, preexec_fn=sandbox.prepare)
outside, _ = run(show)
assert code == 0 and inside == outside
print(sandbox.works, sandbox.environment(True))
print(*warnings, sep="\\n")
"""
    assert on_a_host(pod, program, *WITHOUT_SYS_ADMIN) == [
        "False {}",
        "--cni-mode: programs run for '/run/netns/pod' without a mount sandbox (it needs CAP_SYS_ADMIN): a new mount "
        "namespace: Operation not permitted",
    ]


def test_the_program_in_cni_mode(pod: Namespace) -> None:
    """Rules arrive through a sandbox, legacy ones too, though somebody holds the lock of the host."""
    program = f"""
import fcntl
held = open("/run/xtables.lock", "w")
fcntl.flock(held, fcntl.LOCK_EX)
os.chdir({str(REPOSITORY)!r})
for kind in ("nft", "legacy"):
    flags = ["--cni-mode", "--force-iptables-binary", kind, "-i", "*", "-b", "*", "-u", "1337"]
    for more in ([], ["--cleanup-only"]):
        done = subprocess.run([sys.executable, "-m", "init", *flags, *more], text=True, capture_output=True)
        print(done.returncode, done.stderr if done.returncode else "")
"""
    assert on_a_host(pod, program) == ["0 "] * 4
