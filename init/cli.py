"""Entry points: `istio-iptables` and `istio-clean-iptables`. Both return the exit code."""

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import TYPE_CHECKING

from init.errors import InitError, KernelError, shown
from init.flags import TRUE, resolve, usage
from init.log import Log, log_options
from init.recipe import make_plan
from init.rules import Plan
from init.settings import Settings, load, machine_of_this_process

if TYPE_CHECKING:
    from init.apply import Outcome
    from init.backends.choice import Backends

INTERRUPTED = 130
EXPLAIN = "explain"


def main(argv: Sequence[str] | None = None) -> int:
    """`istio-iptables`: install the capture rules, print them (--dry-run), remove them (--cleanup-only), or
    `explain` what they do to a packet."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] == [EXPLAIN]:
        from init.explain import run

        return run(arguments[1:], os.environ)
    return _run("istio-iptables", arguments, os.environ, cleanup_only=False)


def clean_main(argv: Sequence[str] | None = None) -> int:
    """`istio-clean-iptables`: `istio-iptables --cleanup-only`."""
    return _run("istio-clean-iptables", sys.argv[1:] if argv is None else argv, os.environ, cleanup_only=True)


def _run(program: str, argv: Sequence[str], environ: Mapping[str, str], *, cleanup_only: bool) -> int:
    try:
        values = resolve(argv, environ)
        if values["help"].text in TRUE:
            _show(f"{usage(program)}\n")
            return 0
        log = Log(log_options(values))
    except InitError as error:
        print(f"Error: {error}\nRun '{program} --help' for usage.", file=sys.stderr)
        return error.exit_code
    # A container that is stopped half way puts back what stood before.
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        if values["network-namespace"].text:
            from init.namespace import enter

            enter(values["network-namespace"].text)
        settings = load(values, machine_of_this_process(), cleanup_only=cleanup_only)
        for warning in settings.warnings:
            log.warn(warning)
        _act(settings, log)
    except InitError as error:
        log.errors(error.lines)
        return error.exit_code
    except KeyboardInterrupt:
        log.errors(("interrupted",))
        return INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, before)
        log.close()
    return 0


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _act(settings: Settings, log: Log) -> None:
    # Imported where they are needed: a dry run and a refusal look at nothing in the kernel.
    if settings.cleanup_only:
        from init.cleanup import clean_up

        _report(settings, None, clean_up(settings, _backends(settings, log), log, _show))
        return
    if not settings.skip_rule_apply:
        plan = make_plan(settings)
        if settings.dry_run:
            _dry_run(plan, settings)
        else:
            from init.apply import apply

            _report(settings, plan, apply(plan, settings, _backends(settings, log), log))
    if settings.run_validation and not settings.dry_run:
        from init.probe import validate

        validate(settings, log)


def _backends(settings: Settings, log: Log) -> "Backends":
    from init.backends.choice import Backends
    from init.namespace import Sandbox

    sandbox = Sandbox.for_this_namespace(settings.network_namespace, log.warn) if settings.cni_mode else None
    return Backends(sandbox, settings.backend)


def _dry_run(plan: Plan, settings: Settings) -> None:
    """What would be fed to the programs, and nothing else, on standard output."""
    from init.iptables_text import document, installation

    if settings.backend == "nftables":
        from init.nft_text import script

        texts = [script(plan)]
    else:
        texts = [document(installation(plan.of(version))) for version in plan.versions]
    if settings.output == "json":
        _report(settings, plan, None)
    elif len(texts) == 1:
        _show(texts[0])
    else:
        _show(
            "".join(
                f"# {program}-restore\n{text}" for program, text in zip(("iptables", "ip6tables"), texts, strict=True)
            )
        )
    _write_dry_run_file(settings, "".join(texts))


def _report(settings: Settings, plan: Plan | None, outcome: "Outcome | None") -> None:
    """With --output json: the rules as data, and what was done."""
    if settings.output == "json" and not (settings.cleanup_only and settings.dry_run):
        from init.rules_json import report

        _show(report(settings, plan, outcome))


def _show(text: str) -> None:
    try:
        print(text, end="", flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes it once more at exit
        raise KernelError(f"cannot write to standard output: {error.strerror}") from error


def _write_dry_run_file(settings: Settings, text: str) -> None:
    """The calls of a run in the form that Istio's dry run gives them: what is read, what is restored, what is read."""
    path = settings.dry_run_file
    if not path:
        return
    if settings.backend == "nftables":
        lines = text
    else:
        lines = f"iptables-save\nip6tables-save\n{text}iptables-save\n" + ("ip6tables-save\n" if settings.ipv6 else "")
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(lines)
    except (OSError, ValueError) as error:
        raise KernelError(f"DRY_RUN_FILE_PATH: cannot write {shown(path)}: {error}") from error
