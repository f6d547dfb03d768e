"""Set up what one purpose of the Makefile needs, then run a command there.

    scripts/run PURPOSE [COMMAND ...]        purposes: demo, lint, test, bench, image
    scripts/run remove                       undo: virtual environment and installed copy

Makes a virtual environment with the packages pinned in constraints.txt and, as root, installs the Debian packages whose
commands are missing. Without root it names them. Standard library only; a run that finds all in place takes a moment.

The proxy runs as uid 1337 wherever the kernel redirects traffic, so as root everything must be where that user can go:

- an interpreter in a private folder (a pyenv under /root) is passed over for one of the system, Debian's if need be;
- a checkout in a private folder is copied to /var/lib/pysidecar/<hash of its path>, and commands run in the copy, which
  is brought up to date each time. The virtual environment then lies beside the copy, else in .venv of the checkout.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
PROXY_UID = 1337
OUTSIDE = Path("/var/lib/pysidecar")
MINIMUM = (3, 11)
SYSTEM_PYTHONS = [
    f"{folder}/{name}"
    for folder in ("/usr/bin", "/usr/local/bin")
    for name in ("python3", "python3.11", "python3.12", "python3.13", "python3.14")
]
NOT_COPIED = {".git", ".venv", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis", "__pycache__"}
CAPTURE = {"ip": "iproute2", "iptables-restore": "iptables"}


@dataclass(frozen=True)
class Purpose:
    """What a purpose needs.

    `extras` are those of pyproject.toml; `commands` maps a command to the Debian packages that have it;
    `root_commands` are only of use to root. `in_checkout`: run there even where a copy exists.
    """

    extras: frozenset[str] = frozenset()
    commands: dict[str, str] = field(default_factory=dict)
    root_commands: dict[str, str] = field(default_factory=dict)
    in_checkout: bool = False


PURPOSES = {
    "demo": Purpose(commands={"curl": "curl"}, root_commands=CAPTURE),
    "lint": Purpose(frozenset({"lint"})),
    # cc: python-iptables comes as source
    "test": Purpose(
        frozenset({"lint", "test"}),
        {
            "curl": "curl",
            "cc": "gcc libc6-dev",
            "promtool": "prometheus",
            "dig": "bind9-dnsutils",
            "musl-gcc": "musl-tools",
        },
        {**CAPTURE, "nft": "nftables", "dnsmasq": "dnsmasq-base"},
    ),
    "bench": Purpose(
        frozenset({"bench"}),
        {"wrk": "wrk", "nginx": "nginx", "haproxy": "haproxy", "taskset": "util-linux"},
        {**CAPTURE, "nft": "nftables", "dnsperf": "dnsperf", "dnsmasq": "dnsmasq-base", "unbound": "unbound"},
        in_checkout=True,
    ),
    "image": Purpose(  # `make image-test`
        frozenset({"test"}),
        {"cc": "gcc libc6-dev", "podman": "podman", "runc": "runc"},
        {**CAPTURE, "nft": "nftables"},
    ),
}


class SetupError(Exception):
    """The set-up cannot go on; the text says what is missing and how to get it."""


@dataclass(frozen=True)
class Place:
    """Where things are: the base interpreter, the folder of the virtual environment, the folder of the code."""

    python: str
    home: Path
    code: Path

    @property
    def venv(self) -> Path:
        return self.home / (".venv" if self.home == ROOT else "venv")


def say(text: str) -> None:
    print(f"[setup] {text}", file=sys.stderr, flush=True)


# --- what uid 1337 may do ---------------------------------------------------------------------------------------------


def can_be_proxy_user() -> bool:
    """Whether this process may become uid 1337 (root may, except where a user namespace does not map that uid)."""
    return os.geteuid() == 0 and runs(["/bin/true"], as_proxy=True)


def runs(command: list[str], *, as_proxy: bool) -> bool:
    user = {"user": PROXY_UID, "group": PROXY_UID, "extra_groups": []} if as_proxy else {}
    try:
        done = subprocess.run(command, cwd="/", capture_output=True, stdin=subprocess.DEVNULL, **user)  # type: ignore[call-overload]
    except (OSError, subprocess.SubprocessError):
        return False
    return bool(done.returncode == 0)


def interpreter_works(python: str, *, as_proxy: bool) -> bool:
    """Whether it is new enough, and (as uid 1337 where asked) finds its own library."""
    test = f"import ctypes, ssl, sys; sys.exit(sys.version_info < {MINIMUM})"
    return runs([python, "-I", "-c", test], as_proxy=as_proxy)


def readable_as_proxy(folder: Path) -> bool:
    """Whether uid 1337 can read every file of the project there."""
    child = os.fork()
    if child == 0:
        status = 1
        with contextlib.suppress(OSError):
            os.setgroups([])
            os.setresgid(PROXY_UID, PROXY_UID, PROXY_UID)
            os.setresuid(PROXY_UID, PROXY_UID, PROXY_UID)
            seen = [os.access(folder / path, os.R_OK) for path in project_files(folder)]
            status = 0 if seen and all(seen) else 1
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def choose_place() -> Place:
    """Where to set up. Raises SetupError when no usable interpreter exists and none can be installed."""
    as_proxy = can_be_proxy_user()
    python = choose_interpreter(as_proxy)
    mine = os.stat(ROOT).st_uid == os.geteuid() and os.access(ROOT, os.W_OK)
    code_in_place = not as_proxy or readable_as_proxy(ROOT)
    if mine and code_in_place:
        return Place(python, ROOT, ROOT)
    name = hashlib.sha256(os.fsencode(ROOT)).hexdigest()[:12]
    base = OUTSIDE if os.geteuid() == 0 else Path.home() / ".cache/pysidecar"
    return Place(python, base / name, ROOT if code_in_place else base / name / "code")


def choose_interpreter(as_proxy: bool) -> str:
    current = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
    for python in (current, *SYSTEM_PYTHONS):
        if interpreter_works(python, as_proxy=as_proxy):
            return python
    say(f"uid {PROXY_UID} cannot run {current}; the demo and the tests need an interpreter that it can run")
    for packages in (("python3", "python3-venv"), ("python3.11", "python3.11-venv")):
        with contextlib.suppress(SetupError):
            apt_install(packages)
        for python in SYSTEM_PYTHONS:
            if interpreter_works(python, as_proxy=as_proxy):
                return python
    raise SetupError(f"uid {PROXY_UID} can run no Python 3.11 or newer; apt-get install python3.11 python3.11-venv")


# --- Debian packages --------------------------------------------------------------------------------------------------


def missing(commands: dict[str, str]) -> dict[str, str]:
    path = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin"
    return {command: package for command, package in commands.items() if shutil.which(command, path=path) is None}


def ensure_commands(purpose: Purpose) -> None:
    root = os.geteuid() == 0
    wanted = missing({**purpose.commands, **(purpose.root_commands if root else {})})
    if not wanted:
        return
    packages = sorted({package for names in wanted.values() for package in names.split()})
    if not root:
        raise SetupError(
            f"missing: {', '.join(sorted(wanted))}. Without root nothing can be installed here; ask for:\n"
            f"  sudo apt-get install {' '.join(packages)}"
        )
    apt_install(packages)
    still = missing(wanted)
    if still:
        raise SetupError(f"still missing after apt-get install {' '.join(packages)}: {', '.join(sorted(still))}")


def apt_install(packages: Iterable[str]) -> None:
    """Install Debian packages. No service that a package brings is started."""
    packages = list(packages)
    if shutil.which("apt-get") is None:
        raise SetupError(f"no apt-get here; install by other means: {' '.join(packages)}")
    say(f"apt-get install {' '.join(packages)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with no_services():
        for command in (
            ["apt-get", "update", "-qq"],
            ["apt-get", "install", "-qq", "-y", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=120", *packages],
        ):
            done = subprocess.run(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
            if done.returncode and command[1] == "install":
                sys.stderr.buffer.write(done.stdout[-4000:])
                raise SetupError(f"{' '.join(command)}: exit status {done.returncode}")


@contextlib.contextmanager
def no_services() -> Iterator[None]:
    """Keep packages from starting a daemon (nginx would take port 80): Debian asks policy-rc.d."""
    policy = Path("/usr/sbin/policy-rc.d")
    if policy.exists():
        yield
        return
    policy.write_text("#!/bin/sh\nexit 101\n", encoding="ascii")
    policy.chmod(0o755)
    try:
        yield
    finally:
        policy.unlink()


# --- virtual environment ----------------------------------------------------------------------------------------------


def ensure_environment(place: Place, extras: frozenset[str]) -> None:
    """Bring the virtual environment up to date: nothing to do when its stamp says so."""
    stamp = place.venv / "stamp.json"
    key = environment_key(place)
    try:
        found = json.loads(stamp.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = {}
    if found.get("key") == key and extras <= set(found["extras"]):
        return
    stamp.unlink(missing_ok=True)
    base = [place.python, str(place.venv)]
    if found.get("base") != base or not runs([str(place.venv / "bin/python"), "-c", ""], as_proxy=False):
        create_environment(place)
        found = {}
    extras = extras.union(found.get("extras", ()))
    say(f"installing packages into {place.venv}")
    target = f"{place.code}[{','.join(sorted(extras))}]" if extras else str(place.code)
    pip(place, "hatchling", "setuptools")
    pip(place, "--no-build-isolation", "--editable", target)
    if can_be_proxy_user():
        probe = [str(place.venv / "bin/python"), "-c", "import httptools, uvloop, yaml, proxy, agent, init"]
        if not runs(probe, as_proxy=True):
            raise SetupError(f"uid {PROXY_UID} cannot run the proxy from {place.venv} and {place.code}")
    stamp.write_text(json.dumps({"key": key, "base": base, "extras": sorted(extras)}), encoding="utf-8")


def environment_key(place: Place) -> str:
    digest = hashlib.sha256()
    for path in (ROOT / "pyproject.toml", ROOT / "constraints.txt", Path(__file__)):
        digest.update(path.read_bytes())
    digest.update("\n".join((place.python, str(place.venv), str(place.code))).encode())
    return digest.hexdigest()


def create_environment(place: Place) -> None:
    if not runs([place.python, "-I", "-c", "import ensurepip, venv"], as_proxy=False):
        version = subprocess.run(
            [place.python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"], capture_output=True, text=True
        ).stdout.strip()
        package = f"python{version}-venv"
        if os.geteuid() != 0:
            raise SetupError(f"{place.python} has no venv module; ask for:\n  sudo apt-get install {package}")
        apt_install([package])
    say(f"virtual environment in {place.venv}, with {place.python}")
    shutil.rmtree(place.venv, ignore_errors=True)
    run_quietly([place.python, "-I", "-m", "venv", str(place.venv)])


def pip(place: Place, *arguments: str) -> None:
    run_quietly(
        [str(place.venv / "bin/python"), "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--quiet"]
        + ["--constraint", str(ROOT / "constraints.txt"), *arguments]
    )


def run_quietly(command: list[str]) -> None:
    done = subprocess.run(command, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        sys.stderr.buffer.write(done.stdout[-4000:])
        raise SetupError(f"{' '.join(command)}: exit status {done.returncode}")


# --- installed copy ---------------------------------------------------------------------------------------------------


def project_files(folder: Path) -> Iterator[Path]:
    """The project's files, relative to `folder`: all but what tools leave behind."""
    for at, folders, names in os.walk(folder):
        folders[:] = sorted(set(folders) - NOT_COPIED)
        yield from (Path(at, name).relative_to(folder) for name in names if not name.endswith((".pyc", ".egg-info")))


def refresh_copy(source: Path, copy: Path) -> int:
    """Make `copy` hold what `source` holds now, readable by everybody; returns how many files changed."""
    changed = 0
    wanted = set(project_files(source))
    for path in wanted:
        if not same(source / path, copy / path):
            (copy / path).parent.mkdir(parents=True, exist_ok=True)
            (copy / path).unlink(missing_ok=True)
            shutil.copy2(source / path, copy / path)
            (copy / path).chmod(0o755 if (source / path).stat().st_mode & 0o100 else 0o644)
            changed += 1
    for path in set(project_files(copy)) - wanted:
        (copy / path).unlink()
        changed += 1
    return changed


def same(one: Path, other: Path) -> bool:
    try:
        a, b = one.stat(), other.stat()
    except FileNotFoundError:
        return False
    return (a.st_size, a.st_mtime_ns, a.st_mode & 0o100) == (b.st_size, b.st_mtime_ns, b.st_mode & 0o100)


def link_shared(code: Path) -> None:
    """Tests look for recorded data beside the checkout; the copy gets a link to it."""
    shared, link = (ROOT.parent / "shared").resolve(), code.parent / "shared"
    if link.is_symlink() and Path(os.readlink(link)) != shared:
        link.unlink()
    if shared.is_dir() and not link.is_symlink():
        link.symlink_to(shared)


# --- command line -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def locked(home: Path) -> Iterator[None]:
    """One set-up at a time in one place."""
    home.mkdir(parents=True, exist_ok=True)
    lock = os.open(home, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def prepare(purpose: Purpose) -> Place:
    place = choose_place()
    with locked(place.home):
        if place.code != ROOT:
            place.code.mkdir(exist_ok=True)
            refresh_copy(ROOT, place.code)
            link_shared(place.code)
        ensure_commands(purpose)
        ensure_environment(place, purpose.extras)
    return place


def remove() -> None:
    """Undo the set-up of this checkout; Debian packages stay."""
    name = hashlib.sha256(os.fsencode(ROOT)).hexdigest()[:12]
    for folder in (ROOT / ".venv", OUTSIDE / name, Path.home() / ".cache/pysidecar" / name):
        if folder.is_dir():
            say(f"removing {folder}")
            shutil.rmtree(folder)


def execute(place: Place, purpose: Purpose, command: list[str]) -> NoReturn:
    os.chdir(ROOT if purpose.in_checkout else place.code)
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONHOME", "PYTHONPATH")}
    environment["VIRTUAL_ENV"] = str(place.venv)
    if os.stat(ROOT).st_uid != os.geteuid():
        environment["PYTHONDONTWRITEBYTECODE"] = "1"  # root leaves nothing in somebody else's checkout
    environment["PATH"] = f"{place.venv}/bin:{environment.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    os.execvpe(command[0], command, environment)


def main(arguments: list[str]) -> int:
    if arguments == ["remove"]:
        remove()
        return 0
    if not arguments or arguments[0] not in PURPOSES:
        print(f"usage: scripts/run {'|'.join(PURPOSES)} [COMMAND ...]\n       scripts/run remove", file=sys.stderr)
        return 2
    os.umask(0o022)
    purpose = PURPOSES[arguments[0]]
    try:
        place = prepare(purpose)
    except (SetupError, OSError) as error:
        print(f"[setup] error: {error}", file=sys.stderr)
        return 1
    if arguments[1:]:
        execute(place, purpose, arguments[1:])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
