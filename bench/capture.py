"""`python -m bench.capture`: how long traffic capture takes on a pod's start path, beside `iptables-restore` alone.

Both write the same rules, in turn, into network namespaces that it makes and removes; needs root. The interpreter's
start is part of what is measured, as it is in a pod.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

PAIRS = 15
TARGET_S = 0.250
NAMESPACE = f"pysc-bench-{os.getpid()}"
INJECTED = ("-p", "15001", "-z", "15006", "-u", "1337", "-m", "REDIRECT", "-i", "*", "-x", "", "-b", "*")


@dataclass(frozen=True)
class Case:
    """`programs` are the restore programs that the rules of this case go through."""

    name: str
    arguments: tuple[str, ...]
    programs: tuple[str, ...]


CASES = (
    Case("REDIRECT, IPv4", (*INJECTED, "-d", "15090,15021,15020"), ("iptables-nft",)),
    Case(
        "TPROXY, DNS, both families",
        (*INJECTED, "-m", "TPROXY", "--dual-stack", "--redirect-dns", "--capture-all-dns"),
        ("iptables-nft", "ip6tables-nft"),
    ),
)


def inside(command: Sequence[str], text: str | None = None) -> str:
    """Run in the namespace; raises CalledProcessError."""
    done = subprocess.run(
        ["ip", "netns", "exec", NAMESPACE, *command], input=text, capture_output=True, text=True, check=True
    )
    return done.stdout


def seconds(command: Sequence[str], text: str | None = None) -> float:
    """How long a command takes in the namespace."""
    started = time.perf_counter()
    inside(command, text)
    return time.perf_counter() - started


def measure(case: Case) -> tuple[list[float], list[float], list[float]]:
    """Seconds of a first run, of a run that finds everything done, of the restore programs alone."""
    init = [sys.executable, "-m", "init", *case.arguments, "--log_output_level=none"]
    texts = [part for part in inside([*init, "-n"]).split("# ip") if part]
    texts = [text if text.startswith("*") else text.partition("\n")[2] for text in texts]
    first, again, restore = [], [], []
    for _ in range(PAIRS):
        first.append(seconds(init))
        again.append(seconds(init))
        inside([sys.executable, "-m", "init", "--cleanup-only", "--log_output_level=none"])
        pairs = zip(case.programs, texts, strict=True)
        restore.append(sum(seconds([f"{program}-restore", "--noflush"], text) for program, text in pairs))
        inside(["nft", "flush", "ruleset"])
    return first, again, restore


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one line a case; 1 when the target is missed."""
    argparse.ArgumentParser(prog="python -m bench.capture", description=(__doc__ or "").partition("\n")[0]).parse_args(
        arguments
    )
    if os.geteuid() != 0:
        print("bench.capture: needs root for network namespaces: left out", file=sys.stderr)
        return 0
    missed = 0
    subprocess.run(["ip", "netns", "add", NAMESPACE], check=True)
    try:
        for command in (
            "link set lo up",
            "link add eth0 type veth peer name eth0-peer",
            "address add 10.10.0.41/24 dev eth0",
            "-6 address add fd00:10::41/64 dev eth0 nodad",
            "link set eth0 up",
        ):
            subprocess.run(["ip", "-n", NAMESPACE, *command.split()], check=True)
        print(f"{'istio-iptables, milliseconds, median of ' + str(PAIRS):42}first  again  restore alone  ratio")
        for case in CASES:
            first, again, restore = (statistics.median(found) for found in measure(case))
            missed += first > TARGET_S
            figures = f"{first * 1e3:5.0f}  {again * 1e3:5.0f}  {restore * 1e3:13.0f}  {first / restore:5.1f}"
            print(f"{case.name:42}{figures}  target < {TARGET_S * 1e3:.0f}: {'ok' if first <= TARGET_S else 'missed'}")
    finally:
        subprocess.run(["ip", "netns", "del", NAMESPACE], check=False)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
