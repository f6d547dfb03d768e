"""What the demo prints: numbered sections, commands, what came out, and whether that was as expected."""

from __future__ import annotations

from collections.abc import Iterable


class Report:
    """Prints, and remembers what was not as expected."""

    def __init__(self) -> None:
        self.failures: list[str] = []
        self._section = 0

    def title(self, text: str) -> None:
        print(text, flush=True)

    def section(self, text: str) -> None:
        self._section += 1
        print(f"\n{self._section}. {text}", flush=True)

    def command(self, command: str, *, where: str = "") -> None:
        print(f"   {where}$ {command}", flush=True)

    def lines(self, lines: Iterable[str]) -> None:
        for line in lines:
            print(f"     {line}", flush=True)

    def note(self, text: str) -> None:
        print(f"   {text}", flush=True)

    def expect(self, holds: bool, what: str) -> None:
        print(f"   {'ok  ' if holds else 'FAIL'} {what}", flush=True)
        if not holds:
            self.failures.append(what)
