"""The iptables programs as a tool: which are installed, and what they are called."""

from collections.abc import Callable
from dataclasses import dataclass

from init.backends.iptables import PROGRAMS
from init.backends.process import LOCK_WAIT, find, run
from init.errors import KernelError
from init.namespace import Sandbox
from init.rules import Version

_FORMS = ("-save", "-restore")


@dataclass(frozen=True, slots=True)
class Binary:
    """One set of programs, `<path>-save` and `<path>-restore`, for one family."""

    path: str
    legacy: bool
    sandbox: Sandbox | None = None

    @property
    def name(self) -> str:
        """The name of the programs without their folder and suffix."""
        return self.path.rpartition("/")[2]

    def save(self) -> str:
        """Raises KernelError."""
        return self._run([f"{self.path}-save"])

    def restore(self, text: str) -> None:
        """Raises KernelError."""
        # Releases before 1.6.2 (2018) know no waiting and are refused by their own message.
        wait = [f"--wait={LOCK_WAIT}"] if self.legacy else []
        self._run([f"{self.path}-restore", "--noflush", *wait], text)

    def _run(self, command: list[str], text: str | None = None) -> str:
        if self.sandbox is None:
            return run(command, text)
        locked = self.legacy and text is not None
        return run(command, text, prepare=self.sandbox.prepare, environment=self.sandbox.environment(locked))


def finder(legacy: bool, sandbox: Sandbox | None = None) -> Callable[[Version], Binary]:
    """What finds the programs of a family: those named after their kind, else unsuffixed ones of that kind."""

    def found(version: Version) -> Binary:
        program = PROGRAMS[version]
        suffix = "legacy" if legacy else "nft"
        path = find(f"{program}-{suffix}", _FORMS)
        if path is None:
            path = find(program, _FORMS)
            if path is None or ("nf_tables" in run([f"{path}-restore", "--version"])) == legacy:
                raise KernelError(f"no {program}-{suffix} found in PATH: install the package iptables")
        return Binary(path, legacy, sandbox)

    return found
