"""Killed, refused, out of space, in the way: nothing is half applied, and the next run heals what a kill left."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from .netns import Namespace, require
from .test_init import FOREIGN, clean, install, network, restore, saved

pytestmark = pytest.mark.netns

OLD = (
    "-u",
    "5000",
    "-b",
    "8080",
    "-i",
    "10.0.0.0/8",
    "--dual-stack",
    "-m",
    "TPROXY",
    "-t",
    "99",
    "-r",
    "199",
    "-c",
    "x0",
)
NEW = ("-u", "1337", "-b", "*", "-i", "*", "--dual-stack", "-m", "TPROXY", "--redirect-dns", "--capture-all-dns")
BACKENDS = ("iptables-nft", "iptables-legacy", "libiptc", "nftables")

# Runs the program, but dies by SIGKILL before or after the numbered step; says how many steps there were.
KILLED = """
import os, signal, sys
import init.cli, init.transaction as transaction
at, when, arguments = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
def die():
    os.kill(os.getpid(), signal.SIGKILL)
real = transaction.perform
class Watched:
    def __init__(self, step, number):
        self.step, self.number = step, number
    def __getattr__(self, name):
        return getattr(self.step, name)
    def do(self):
        if (self.number, when) == (at, "before"):
            die()
        self.step.do()
        if (self.number, when) == (at, "after"):
            die()
def perform(steps):
    print(len(steps), flush=True)
    real([Watched(step, number) for number, step in enumerate(steps)])
import init.apply
init.apply.perform = perform
sys.exit(init.cli.main(arguments))
"""


@pytest.fixture
def pod() -> Iterator[Namespace]:
    require()
    with Namespace() as namespace:
        namespace.interface("eth0", ["10.10.0.41/24", "fd00:10::41/64"])
        yield namespace


State = dict[str, list[str]]


def state(pod: Namespace) -> State:
    """Everything that a run may change: each table of each family and kind, the nft tables, the network."""
    # The priority of a policy rule says only which others were there when it was made.
    found: State = {place: [line.partition("\t")[2] or line for line in lines] for place, lines in network(pod).items()}
    for kind in ("nft", "legacy"):
        for program in (f"iptables-{kind}", f"ip6tables-{kind}"):
            for line in saved(pod, program):
                if line.startswith("*"):
                    table = f"{program} {line}"
                elif line.startswith(("-A", ":ISTIO")):
                    found.setdefault(table, []).append(line)
    native = [
        line for line in pod.run(["nft", "-s", "list", "ruleset"]).stdout.split("table ") if "istio-proxy" in line
    ]
    for part in native:
        found[part.split(" {")[0]] = part.splitlines()
    return {place: lines for place, lines in found.items() if lines}


def killed(pod: Namespace, at: int, when: str, *arguments: str) -> int | None:
    """Run until the kill; the number of steps, or None if the run ended before that step."""
    done = pod.python("-c", KILLED, str(at), when, *arguments)
    if done.returncode == -9 or done.returncode == 137:
        return int(done.stdout.split()[0])
    assert done.returncode == 0, done.stderr
    return None


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_kill_at_any_step_leaves_old_or_new_and_the_next_run_heals(pod: Namespace, backend: str) -> None:
    choice = ("--backend", backend)
    assert install(pod, *NEW, *choice)[0] == 0
    new = state(pod)
    assert clean(pod)[0] == 0
    assert install(pod, *OLD, *choice)[0] == 0
    old = state(pod)
    at = 0
    while killed(pod, at, "before", *NEW, *choice, "--reconcile") is not None:
        check_each_place(state(pod), old, new)
        killed(pod, at, "after", *NEW, *choice, "--reconcile")
        check_each_place(state(pod), old, new)
        code, log = install(pod, *NEW, *choice, "--reconcile")
        assert code == 0, log
        assert state(pod) == new, at
        code, log = install(pod, *OLD, *choice, "--reconcile")
        assert code == 0, log
        assert state(pod) == old, at
        at += 1
    assert at >= (4 if backend == "nftables" else 5)
    assert clean(pod)[0] == 0
    assert {place: lines for place, lines in state(pod).items() if place != "lo"} == {}


def check_each_place(found: State, old: State, new: State) -> None:
    """Each table is the old or the new one. The network may hold objects of both: they are single things."""
    for place in {*found, *old, *new}:
        lines = found.get(place, [])
        if place.startswith(("rules", "routes", "lo")):
            assert set(lines) <= {*old.get(place, []), *new.get(place, [])}
        else:
            assert lines in (old.get(place, []), new.get(place, [])), place


def wrapped(folder: Path, name: str, script: str) -> dict[str, str]:
    """A PATH in which `name` is a script; $real is the program behind it. Its siblings stay what they are."""
    real = f"/usr/sbin/{name}"
    for form in ("save", "restore"):
        sibling = folder / f"{name.rpartition('-')[0]}-{form}"
        if not sibling.exists():
            sibling.write_text(f'#!/bin/sh\nexec /usr/sbin/{sibling.name} "$@"\n')
            sibling.chmod(0o755)
    (folder / name).write_text(f"#!/bin/sh\nreal={real}\n{script}\n")
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


FAULTS = {
    "no ip6tables in the kernel": (
        "echo \"ip6tables-restore v1.8.9 (nf_tables): can't initialize ip6tables table \\`nat': "
        'Table does not exist (do you need to insmod?)" >&2; exit 3',
        "load the kernel modules of iptables",
    ),
    "no space": ('echo "line 2: CHAIN_ADD failed (No space left on device)" >&2; exit 4', "no memory left for rules"),
    "half of the tables, then an error": (
        'awk "/^\\* nat/{exit} {print}" | "$real" "$@"; echo broken >&2; exit 9',
        "failed with status 9: broken",
    ),
}


@pytest.mark.parametrize("earlier", [(), OLD], ids=["fresh", "replacing"])
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", ["nft", "legacy"])
def test_a_failure_of_the_second_family_rolls_the_first_one_back(
    pod: Namespace, tmp_path: Path, kind: str, fault: str, earlier: Sequence[str]
) -> None:
    force = ("--force-iptables-binary", kind)
    restore(pod, FOREIGN, f"iptables-{kind}")
    if earlier:
        assert install(pod, *earlier, *force)[0] == 0
    before = state(pod)
    script, said = FAULTS[fault]
    failed = tmp_path / "failed"
    once = f'[ -e {failed} ] && exec "$real" "$@"; touch {failed}; {script}'
    path = wrapped(tmp_path, f"ip6tables-{kind}-restore", once)
    code, log = install(pod, *NEW, *force, "--reconcile", env=path)
    assert code == 1
    assert said in log and failed.exists()
    assert state(pod) == before
    assert install(pod, *NEW, *force, "--reconcile")[0] == 0


def test_when_even_the_way_back_is_barred_it_says_so(pod: Namespace, tmp_path: Path) -> None:
    path = wrapped(tmp_path, "ip6tables-nft-restore", "echo broken >&2; exit 9")
    script = (
        'text=$(cat); case "$text" in *"-F ISTIO"*) echo barred >&2; exit 8;; esac; '
        'printf "%s\\n" "$text" | "$real" "$@"'
    )
    path |= wrapped(tmp_path, "iptables-nft-restore", script)
    code, log = install(pod, *NEW, env=path)
    assert code == 1
    assert "broken" in log and "barred" in log and "run istio-clean-iptables" in log
    assert clean(pod)[0] == 0


def test_ip6tables_is_not_needed_where_ipv6_is_not_captured(pod: Namespace, tmp_path: Path) -> None:
    path = wrapped(tmp_path, "ip6tables-nft-restore", "exit 1") | wrapped(tmp_path, "ip6tables-nft-save", "exit 1")
    code, log = install(pod, "-b", "*", "-i", "*", env=path)
    assert code == 0, log
    code, log = install(pod, "-b", "*", "-i", "*", "--dual-stack", "--reconcile", env=path)
    assert code == 1
    assert "ip6tables-nft-restore failed with status 1" in log


def test_a_stopped_run_puts_everything_back(pod: Namespace, tmp_path: Path) -> None:
    """SIGTERM while the second family is being written."""
    assert install(pod, *OLD)[0] == 0
    before = state(pod)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    stuck = tmp_path / "stuck"
    script = f'[ -e {stuck} ] && exec "$real" "$@"; touch {stuck}; echo > {fifo}; exec sleep 60'
    path = wrapped(tmp_path, "ip6tables-nft-restore", script)
    run = pod.start([sys.executable, "-m", "init", *NEW, "--reconcile"], env=path)
    fifo.read_text()  # the program is inside the second family now
    run.terminate()
    assert run.stderr is not None
    log = run.stderr.read()
    assert run.wait(30) == 130, log
    assert "interrupted" in log and "Traceback" not in log
    assert state(pod) == before


def test_a_table_of_ours_in_somebody_elses_hands(pod: Namespace) -> None:
    """A chain that bears one of our names but holds other rules: refused with a diff, replaced under --reconcile."""
    text = (
        "*nat\n:ISTIO_OUTPUT - [0:0]\n"
        "-A ISTIO_OUTPUT -p tcp -m tcp --dport 1 -m comment --comment mine -j ACCEPT\nCOMMIT\n"
    )
    restore(pod, text)
    before = state(pod)
    few = ("-b", "*", "-i", "*")
    code, log = install(pod, *few)
    assert code == 1
    assert "-nat: -A ISTIO_OUTPUT -p tcp --dport 1 -m comment --comment mine -j ACCEPT" in log
    assert state(pod) == before
    assert install(pod, *few, "--reconcile")[0] == 0


def test_output_that_cannot_be_written(pod: Namespace) -> None:
    code, log = install(pod, *NEW, "-n", env={"DRY_RUN_FILE_PATH": "/dev/full"})
    assert code == 1 and "DRY_RUN_FILE_PATH: cannot write '/dev/full'" in log and "No space left" in log
    code, _ = install(pod, *NEW, "--log_target=/dev/full")  # a log that cannot be written stops nothing
    assert code == 0
