"""`pilot-agent`: finds the command, parses its flags, turns its outcome into an exit status.

The module of a command is imported only when that command runs: `wait` is what kubelet runs before each application
container, so it must not pay for the event loop and YAML that `proxy` needs.
"""

import importlib
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType

from agent import log, terminal
from agent.errors import FAILURE, AgentError, UsageError
from agent.flags import Flag, Parsed, describe, parse
from agent.options import (
    COMPLETION_FLAGS,
    GLOBAL_FLAGS,
    PROXY_FLAGS,
    REQUEST_FLAGS,
    VERSION_FLAGS,
    WAIT_FLAGS,
    log_options,
)

PROGRAM = "pilot-agent"
_INTERRUPTED = 128 + signal.SIGINT


@dataclass(frozen=True, slots=True)
class Command:
    """`run` names a function `(Parsed) -> int` as module:function."""

    summary: str
    run: str
    flags: tuple[Flag, ...] = GLOBAL_FLAGS
    usage: str = "[flags]"
    tolerates_unknown_flags: bool = False
    # Must end quietly on SIGTERM from its first moment on. Process 1 of a container ignores a signal without a handler.
    handles_termination: bool = False


COMMANDS: Mapping[str, Command] = {
    "proxy": Command(
        "run the proxy and supervise it",
        "agent.proxy_command:run",
        PROXY_FLAGS,
        usage="[sidecar|router|waypoint] [flags]",
        tolerates_unknown_flags=True,
        handles_termination=True,
    ),
    "wait": Command("wait until the proxy is ready", "agent.wait:run", WAIT_FLAGS),
    "request": Command(
        "ask the proxy's admin port or the agent, and print the answer",
        "agent.request:run",
        REQUEST_FLAGS,
        usage="METHOD PATH [BODY] [flags]",
    ),
    "version": Command("print build information", "agent.version:run", VERSION_FLAGS),
    "completion": Command(
        "print a completion script for a shell",
        "agent.completion:run",
        COMPLETION_FLAGS,
        usage="bash|zsh|fish [flags]",
    ),
}

# Programs of their own with flags of their own: every argument goes through untouched. Name -> (function, summary).
PASSED_ON: Mapping[str, tuple[str, str]] = {
    "istio-iptables": ("main", "program traffic capture"),
    "istio-clean-iptables": ("clean_main", "remove traffic capture"),
}
HELP_COMMAND = ("help", "help about a command")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status: 0, or 255 for any error as the real program does."""
    terminal.open_standard_descriptors()
    try:
        return _dispatch(list(sys.argv[1:] if arguments is None else arguments))
    except AgentError as error:
        for warning in getattr(error, "warnings", ()):
            log.scope().warn(warning)
        log.print_error(error)
        return FAILURE
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        terminal.discard_output()
        return FAILURE


def _dispatch(arguments: list[str]) -> int:
    at = find_command(arguments)
    if at is None:
        return _without_command(arguments)
    name, rest = arguments[at], arguments[:at] + arguments[at + 1 :]
    if name == "help":
        return _help(rest)
    if name in PASSED_ON:
        return _run_init(name, rest)
    if name not in COMMANDS:
        known = ", ".join((*COMMANDS, *PASSED_ON, "help"))
        raise UsageError(f'unknown command "{name[:64]}" for "{PROGRAM}": expected one of {known}')
    command = COMMANDS[name]
    if command.handles_termination:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _end_before_start)
    parsed = parse(command.flags, rest, tolerate_unknown=command.tolerates_unknown_flags)
    if parsed.switch("help"):
        return _help([name])
    log.configure(log_options(parsed))
    module, _, function = command.run.partition(":")
    run: Callable[[Parsed], int] = getattr(importlib.import_module(module), function)
    return run(parsed)


def find_command(arguments: Sequence[str]) -> int | None:
    """Index of the command's name: the first token that is neither a flag nor the value of one (cobra's rule).

    A flag that is not a known switch takes the next token with it, known or not.
    """
    switches = {f.name for f in GLOBAL_FLAGS if f.is_switch}
    short_switches = {f.short for f in GLOBAL_FLAGS if f.is_switch and f.short}
    at = 0
    while at < len(arguments):
        token = arguments[at]
        if token == "--":
            return None
        if token.startswith("--"):
            at += 1 if "=" in token or token[2:] in switches else 2
        elif token.startswith("-") and len(token) > 1:
            at += 2 if len(token) == 2 and token[1] not in short_switches else 1
        else:
            return at
    return None


def _without_command(arguments: list[str]) -> int:
    parsed = parse(GLOBAL_FLAGS, arguments, tolerate_unknown=True)
    log.configure(log_options(parsed))
    return _help([])


def _help(names: list[str]) -> int:
    names = [name for name in names if not name.startswith("-")]
    if not names:
        rows = {name: command.summary for name, command in COMMANDS.items()}
        rows.update((name, summary) for name, (_, summary) in PASSED_ON.items())
        rows.update((HELP_COMMAND,))
        commands = "\n".join(f"  {name:<22}{text}" for name, text in rows.items())
        terminal.print_line(
            f"Supervisor of the sidecar proxy\n\nUsage:\n  {PROGRAM} [command]\n\nCommands:\n{commands}\n\n"
            f'Flags:\n{describe(GLOBAL_FLAGS)}\n\n"{PROGRAM} help [command]" shows the flags of a command.'
        )
        return 0
    if names[0] in PASSED_ON:
        return _run_init(names[0], ["--help"])
    if names[0] not in COMMANDS:
        raise UsageError(f'unknown help topic "{names[0][:64]}": expected one of {", ".join((*COMMANDS, *PASSED_ON))}')
    command = COMMANDS[names[0]]
    terminal.print_line(
        f"{command.summary}\n\nUsage:\n  {PROGRAM} {names[0]} {command.usage}\n\nFlags:\n{describe(command.flags)}"
    )
    return 0


def _run_init(name: str, arguments: list[str]) -> int:
    """`istio-iptables`, in this process: its exit status is the command's. The agent shares no code with it."""
    try:
        program = importlib.import_module("init.cli")
    except ModuleNotFoundError as error:
        if error.name not in ("init", "init.cli"):
            raise
        raise AgentError(f"{name} is not installed beside this program (no Python package 'init')") from None
    run: Callable[[list[str]], int] = getattr(program, PASSED_ON[name][0])
    return run(arguments)


def _end_before_start(number: int, _frame: FrameType | None) -> None:
    """SIGTERM or SIGINT before there is a proxy: nothing to drain, an orderly end. The supervisor replaces this.

    Nothing has been made that would have to be cleared away. An exception could come up where Python drops it (in a
    callback), and a second signal would kill the interpreter in the middle of its orderly end.
    """
    os._exit(0)
