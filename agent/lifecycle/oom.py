"""Whether the kernel killed for lack of memory: the counters of our memory cgroup, v2 (memory.events) or v1."""

from dataclasses import dataclass
from pathlib import Path

_MAX_BYTES = 256 * 1024  # of a file under /proc or the cgroup; a busy node has thousands of mounts
_UNLIMITED = 1 << 60  # v1 says "no limit" with a number near 2^63


@dataclass(frozen=True, slots=True)
class MemoryCgroup:
    """The two files of one cgroup: where OOM kills are counted, and the limit in bytes."""

    events: Path
    limit: Path

    def oom_kills(self) -> int | None:
        """Processes of this cgroup that were killed for lack of memory so far; None when the kernel does not say."""
        for line in (_read(self.events) or "").splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill" and value.strip().isdigit():
                return int(value)
        return None

    def limit_bytes(self) -> int | None:
        """The memory limit; None when there is none."""
        text = (_read(self.limit) or "").strip()
        return int(text) if text.isdigit() and int(text) < _UNLIMITED else None


def find(proc: Path = Path("/proc/self"), root: Path = Path("/")) -> MemoryCgroup | None:
    """Our memory cgroup; None when it cannot be seen. `root` is put before every path that `proc` names (tests)."""
    groups = _read(proc / "cgroup")
    mounts = _read(proc / "mountinfo")
    if groups is None or mounts is None:
        return None
    v1: str | None = None
    v2: str | None = None
    for line in groups.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            v2 = path
        elif "memory" in controllers.split(","):
            v1 = path
    # A v1 memory controller, where there is one, is the one that counts: v2 has none then.
    choices = (
        (v1, "cgroup", "memory.oom_control", "memory.limit_in_bytes"),
        (v2, "cgroup2", "memory.events", "memory.max"),
    )
    for cgroup, kind, events, limit in choices:
        folder = None if cgroup is None else _folder(mounts, kind, cgroup, root)
        if folder is not None and (folder / events).exists():
            return MemoryCgroup(folder / events, folder / limit)
    return None


def _folder(mounts: str, kind: str, path: str, root: Path) -> Path | None:
    """Where the cgroup `path` is mounted (proc(5), mountinfo: root 4th, mount point 5th, type after the dash)."""
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        fields, others = before.split(" "), after.split(" ")
        if len(fields) < 5 or others[0] != kind or (kind == "cgroup" and "memory" not in others[-1].split(",")):
            continue
        # Both are relative to the cgroup namespace; one that shows a part only (`/..`) is taken as it is mounted.
        inside = path.removeprefix(fields[3]) if path.startswith(fields[3]) else ""
        for candidate in (inside, ""):
            folder = root / fields[4].lstrip("/") / candidate.strip("/")
            if folder.is_dir() and ".." not in candidate.split("/"):
                return folder
    return None


def _read(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_BYTES).decode("utf-8", "replace")
    except OSError:
        return None
