"""Steps that are all done or all undone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from init.backends.base import Holding, Store
from init.errors import KernelError
from init.rules import Plan


class Step(Protocol):
    """One change of the kernel."""

    @property
    def what(self) -> str:
        """What it does, for the log."""

    def do(self) -> None:
        """Make the change. Raises KernelError."""

    def undo(self) -> None:
        """Put back what stood before, also after a change that failed half way. Raises KernelError."""


@dataclass(frozen=True, slots=True)
class ReplaceRules:
    """One store's rules: `present` becomes `plan` (None: nothing)."""

    store: Store
    present: Holding
    plan: Plan | None

    @property
    def what(self) -> str:
        """For the log."""
        return f"{'remove rules from' if self.plan is None else 'write rules with'} {self.store.name}"

    def do(self) -> None:
        """One transaction of the store."""
        self.store.replace(self.present, self.plan)

    def undo(self) -> None:
        """Put back `present`."""
        self.store.put_back(self.present, self.store.wanted(self.plan) if self.plan else Holding())

    def check(self) -> Sequence[str]:
        """Lines of what is in the kernel but not intended (`- `) and the other way round (`+ `)."""
        return difference(self.store.holding(self.plan), self.store.wanted(self.plan) if self.plan else Holding())


def perform(steps: Sequence[Step]) -> None:
    """Do all steps and check those that can be checked; on any failure undo them, last one first, and raise.

    Raises KernelError, or whatever interrupted a step.
    """
    done: list[Step] = []
    try:
        for step in steps:
            done.append(step)
            step.do()
        for step in steps:
            if isinstance(step, ReplaceRules) and (lines := step.check()):
                raise KernelError(
                    f"{step.store.name} reported success but the kernel does not hold the rules "
                    "(- present, + wanted):\n" + "\n".join(lines)
                )
    except BaseException as failure:
        undo(done, failure)
        raise


def undo(steps: Sequence[Step], failure: BaseException) -> None:
    """Undo `steps`, last one first, all of them even if one fails. Raises KernelError if one did."""
    problems = []
    for step in reversed(steps):
        try:
            step.undo()
        except KernelError as error:
            problems.append(str(error))
    if problems:
        raise KernelError(
            f"{failure}; what was there before could not be put back either ({'; '.join(problems)}): "
            "run istio-clean-iptables"
        ) from failure


MAX_DIFFERENCE = 50  # lines of wanted and present rules in one error


def difference(present: Holding, wanted: Holding) -> list[str]:
    """A diff of two holdings without context, cut after MAX_DIFFERENCE lines."""
    if present.lines == wanted.lines:
        return []
    import difflib

    lines = [
        line
        for line in difflib.unified_diff(present.lines, wanted.lines, lineterm="", n=0)
        if not line.startswith(("---", "+++", "@@"))
    ]
    more = [f"... and {len(lines) - MAX_DIFFERENCE} lines more"] if len(lines) > MAX_DIFFERENCE else []
    return lines[:MAX_DIFFERENCE] + more
