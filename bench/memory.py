"""Memory of a group of processes, from /proc.

PSS (the kernel's proportional set size) counts a page that n processes map as 1/n, whoever they are: the harness and
every other Python on the machine make ours look smaller, a second Envoy halves the first one's program. The targets
are therefore judged by `alone`, the PSS that the group would have if nobody else mapped its files: anonymous memory
by PSS, and every file page of the group once and whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

MAPPING = re.compile(r"^[0-9a-f]+-[0-9a-f]+ \S+ ([0-9a-f]+) ([0-9a-f]+:[0-9a-f]+) (\d+)")
FIELD = re.compile(r"^(\w+):\s+(\d+) kB")


@dataclass(frozen=True, slots=True)
class Memory:
    """Megabytes (10^6 bytes)."""

    pss: float
    alone: float


@dataclass(frozen=True, slots=True)
class Mapping:
    """One mapping of /proc/PID/smaps; kilobytes of 1024 bytes. `key` is None for anonymous memory."""

    key: tuple[str, int, int] | None
    rss: int
    pss: int
    anonymous: int


def parse_smaps(text: str) -> list[Mapping]:
    mappings: list[Mapping] = []
    key: tuple[str, int, int] | None = None
    fields: dict[str, int] = {}
    open_mapping = False

    def close() -> None:
        if open_mapping:
            mappings.append(Mapping(key, fields.get("Rss", 0), fields.get("Pss", 0), fields.get("Anonymous", 0)))

    for line in text.splitlines():
        if header := MAPPING.match(line):
            close()
            offset, device, inode = header.groups()
            key = (device, int(inode), int(offset, 16)) if inode != "0" else None
            fields = {}
            open_mapping = True
        elif field := FIELD.match(line):
            fields[field[1]] = int(field[2])
    close()
    return mappings


def add_up(processes: Iterable[list[Mapping]]) -> Memory:
    """Sum over the mappings of several processes."""
    pss = anonymous = 0.0
    files: dict[tuple[str, int, int], int] = {}
    for mappings in processes:
        for mapping in mappings:
            pss += mapping.pss
            if mapping.key is None:
                anonymous += mapping.pss
                continue
            # A private mapping of a file holds copied (anonymous) pages beside pages of the file; their share of
            # the PSS is not told apart, so that they are counted at their share of the RSS.
            copied = mapping.pss * mapping.anonymous / mapping.rss if mapping.rss else 0.0
            anonymous += copied
            files[mapping.key] = max(files.get(mapping.key, 0), mapping.rss - mapping.anonymous)
    return Memory(pss * 1024 / 1e6, (anonymous + sum(files.values())) * 1024 / 1e6)


def measure(pids: Iterable[int]) -> Memory:
    """Memory of these processes now; one that ends meanwhile counts nothing. PermissionError for others' processes."""
    texts = []
    for pid in pids:
        try:
            texts.append(parse_smaps(Path(f"/proc/{pid}/smaps").read_text(encoding="utf-8", errors="replace")))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return add_up(texts)
