"""The report of a proxy that died: signal, likely cause by the cgroup's counters, last lines."""

import signal
from pathlib import Path

import pytest

from agent.child import ExitStatus
from agent.lifecycle import crash, oom

KILLED = ExitStatus(0, signal.SIGKILL)
V1_MOUNT = "31 30 0:27 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n"
V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
OTHERS = "24 30 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n25 1 8:1 / / rw - ext4 /dev/sda1 rw\n"


def machine(root: Path, cgroup: str, mounts: str, files: dict[str, str]) -> oom.MemoryCgroup | None:
    """What is found on a machine with these files; `cgroup` and `mounts` are those of /proc/self."""
    proc = root / "proc/self"
    proc.mkdir(parents=True)
    (proc / "cgroup").write_text(cgroup)
    (proc / "mountinfo").write_text(mounts)
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return oom.find(proc, root)


EVENTS = "low 0\nhigh 0\nmax 12\noom 1\noom_kill 3\noom_group_kill 0\n"
V1_EVENTS = "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"


@pytest.mark.parametrize(
    ("cgroup", "mounts", "files", "kills", "limit"),
    [
        # A container with a cgroup namespace of its own.
        ("0::/\n", OTHERS + V2_MOUNT,
         {"sys/fs/cgroup/memory.events": EVENTS, "sys/fs/cgroup/memory.max": "268435456\n"}, 3, 1 << 28),
        # Without: the whole path, and the hybrid set-up, where v2 is there and has no memory controller.
        ("0::/kubepods/pod1/c1\n", V2_MOUNT,
         {"sys/fs/cgroup/kubepods/pod1/c1/memory.events": EVENTS, "sys/fs/cgroup/memory.events": "oom_kill 99\n",
          "sys/fs/cgroup/kubepods/pod1/c1/memory.max": "max\n"}, 3, None),
        ("4:memory:/docker/c1\n3:cpu,cpuacct:/x\n0::/\n", OTHERS + V1_MOUNT,
         {"sys/fs/cgroup/memory/docker/c1/memory.oom_control": V1_EVENTS,
          "sys/fs/cgroup/memory/docker/c1/memory.limit_in_bytes": "9223372036854771712\n"}, 2, None),
        # The container's own part alone is mounted.
        ("4:memory:/docker/c1\n", V1_MOUNT.replace(" / /sys", " /docker/c1 /sys"),
         {"sys/fs/cgroup/memory/memory.oom_control": V1_EVENTS,
          "sys/fs/cgroup/memory/memory.limit_in_bytes": "1048576\n"}, 2, 1 << 20),
        # A namespace rooted elsewhere; a kernel before 4.13 does not count.
        ("0::/../other\n", V2_MOUNT, {"sys/fs/cgroup/memory.events": EVENTS}, 3, None),
        ("4:memory:/\n", V1_MOUNT, {"sys/fs/cgroup/memory/memory.oom_control": "under_oom 0\n"}, None, None),
    ],
)  # fmt: skip
def test_cgroups(tmp_path: Path, cgroup: str, mounts: str, files: dict[str, str], kills: int | None,
                 limit: int | None) -> None:  # fmt: skip
    found = machine(tmp_path, cgroup, mounts, files)
    assert found is not None
    assert (found.oom_kills(), found.limit_bytes()) == (kills, limit)


@pytest.mark.parametrize(("cgroup", "mounts"), [("", ""), ("0::/\n", OTHERS), ("nonsense\n", "nonsense\n")])
def test_machines_that_do_not_say(tmp_path: Path, cgroup: str, mounts: str) -> None:
    assert machine(tmp_path, cgroup, mounts, {}) is None


def test_this_machine_is_readable_or_not_but_never_an_error() -> None:
    found = oom.find()
    assert found is None or found.oom_kills() is None or found.oom_kills() >= 0  # type: ignore[operator]
    assert oom.find(Path("/nonexistent")) is None


def memory(tmp_path: Path, kills: int, limit: str = "134217728") -> oom.MemoryCgroup:
    (tmp_path / "events").write_text(f"oom_kill {kills}\n")
    (tmp_path / "limit").write_text(limit)
    return oom.MemoryCgroup(tmp_path / "events", tmp_path / "limit")


def test_out_of_memory_is_told_from_somebodys_kill(tmp_path: Path) -> None:
    cgroup = memory(tmp_path, 2)
    assert crash.describe(KILLED, "", cgroup, 1, []) == (
        "the proxy was killed by SIGKILL (9); likely cause: out of memory: the container's limit is 128 MiB"
    )
    assert "likely cause: somebody's kill -9, or memory ran out on the node" in crash.describe(
        KILLED, "", cgroup, 2, []
    )
    assert "the memory cgroup is not readable" in crash.describe(KILLED, "", None, None, [])
    # A wrapper script passes the death on as a status.
    assert "out of memory: " in crash.describe(ExitStatus(137, 0), "", cgroup, 1, [])
    # It ended because one of its workers was killed.
    assert "out of memory: " in crash.describe(ExitStatus(1, 0), "", cgroup, 1, [])
    assert "likely cause" not in crash.describe(ExitStatus(1, 0), "", cgroup, 2, [])


def test_everything_in_one_line(tmp_path: Path) -> None:
    text = crash.describe(ExitStatus(0, signal.SIGSEGV), " during the drain", None, None, ["first", "second"])
    assert text == (
        "the proxy was killed by SIGSEGV (11) during the drain; likely cause: a defect in the proxy; "
        "its last lines: first | second"
    )
    assert crash.describe(ExitStatus(1, 0), " before it was ready", None, None, []) == (
        "the proxy exited with status 1 before it was ready"
    )
    assert "a program or library that is missing" in crash.describe(ExitStatus(127, 0), "", None, None, [])
    assert crash.describe(ExitStatus(0, 50), "", None, None, []) == "the proxy was killed by unnamed signal (50)"
