"""Where the files of this process' control groups are, of version 1 and 2, and what their numbers mean.

Envoy reads fixed paths below /sys/fs/cgroup, which are the process' own control group only in a container with a
cgroup namespace. Here the process' own group is looked up (proc(5): /proc/self/cgroup and mountinfo), which is the same
in such a container and right elsewhere, too.
"""

from __future__ import annotations

from pathlib import Path

UNLIMITED = 1 << 62
"""Limits from here on are none: version 1 shows the largest multiple of a page in 63 bits, version 2 "max"."""


class CgroupError(Exception):
    """A file is missing or says something unexpected; the text names it."""


def read_text(path: Path) -> str:
    """A file's content without white space at its ends. Raises CgroupError."""
    try:
        return path.read_text().strip()
    except (OSError, ValueError) as error:
        raise CgroupError(f"{path}: {error.strerror if isinstance(error, OSError) else 'not a text'}") from None


def read_number(path: Path) -> int:
    """A number in a file of its own; ``max`` and -1 are UNLIMITED. Raises CgroupError."""
    text = read_text(path)
    if text in ("max", "-1"):
        return UNLIMITED
    if not text.isdigit():
        raise CgroupError(f"{path}: {text[:40]!r} is not a number")
    return min(int(text), UNLIMITED)


def read_key(path: Path, key: str) -> int:
    """A number in a file of lines ``key number``. Raises CgroupError."""
    for line in read_text(path).splitlines():
        name, _, value = line.partition(" ")
        if name == key and value.isdigit():
            return int(value)
    raise CgroupError(f"{path}: no line {key!r} with a number")


def _mounts(mountinfo: str, version: int, controller: str) -> list[tuple[str, str]]:
    """(root within the hierarchy, mount point) of the matching mounts."""
    found = []
    for line in mountinfo.splitlines():
        before, separator, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if not separator or len(fields) < 5 or not kind:
            continue
        if version == 2 and kind[0] == "cgroup2":
            found.append((fields[3], fields[4]))
        elif version == 1 and kind[0] == "cgroup" and controller in kind[-1].split(","):
            found.append((fields[3], fields[4]))
    return found


def _paths(cgroup: str, version: int, controller: str) -> list[str]:
    """The process' paths within the hierarchies of that version and controller."""
    found = []
    for line in cgroup.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if (number == "0" and not controllers) if version == 2 else controller in controllers.split(","):
            found.append(path)
    return found


def directories(version: int, controller: str, proc: Path = Path("/proc/self")) -> list[Path]:
    """Directories in which the process' own control group may be seen, the most specific first."""
    try:
        cgroup, mountinfo = (proc / "cgroup").read_text(), (proc / "mountinfo").read_text()
    except OSError:
        return []
    found = []
    for root, mount_point in _mounts(mountinfo, version, controller):
        for path in _paths(cgroup, version, controller):
            inner = path if root == "/" else path[len(root):] if path.startswith(root) else ""
            if inner.strip("/"):
                found.append(Path(mount_point, inner.lstrip("/")))
        found.append(Path(mount_point))
    return found


def find(version: int, controller: str, *names: str, proc: Path = Path("/proc/self")) -> Path | None:
    """The first of ``directories`` that has all these files."""
    for directory in directories(version, controller, proc):
        if all((directory / name).is_file() for name in names):
            return directory
    return None
