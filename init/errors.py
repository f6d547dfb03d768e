"""Failures as values: each carries the exit code that pilot-agent's `istio-iptables` uses for its kind."""

from collections.abc import Sequence

EXIT_FAILURE = 1  # configuration, detection, rule application
EXIT_VALIDATION = 126  # --run-validation: the CNI repair controller looks for this code
EXIT_USAGE = 255  # command line; the real binary exits with -1


class InitError(Exception):
    """The run ends here with `exit_code`; each of `lines` is one complete sentence for the operator."""

    exit_code = EXIT_FAILURE

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(lines))
        self.lines: Sequence[str] = lines


class UsageError(InitError):
    """The command line cannot be understood."""

    exit_code = EXIT_USAGE


class SettingsError(InitError):
    """One or more values are refused; `usage` when a flag's value is not even of its type."""

    def __init__(self, lines: Sequence[str], *, usage: bool) -> None:
        super().__init__(*lines)
        self.exit_code = EXIT_USAGE if usage else EXIT_FAILURE


class KernelError(InitError):
    """The kernel, an iptables binary or a privilege stands in the way."""


class ValidationError(InitError):
    """The rules are there, but a probe did not go where they should send it."""

    exit_code = EXIT_VALIDATION


MAX_SHOWN = 80  # characters of a refused value repeated in an error


def printable(word: str) -> str:
    """A word of the command line for an error line, quoted only if it must be."""
    return word if word.isprintable() and len(word) <= MAX_SHOWN else shown(word)


def shown(value: str) -> str:
    """`value` quoted for an error line: control characters escaped, overlong values cut."""
    return repr(value) if len(value) <= MAX_SHOWN else f"{value[:MAX_SHOWN]!r}... ({len(value)} characters)"
