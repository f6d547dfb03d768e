"""Entry points: `istio-iptables` and `istio-clean-iptables`. Both return the exit code."""

import os
import sys
from collections.abc import Mapping, Sequence

from init.errors import InitError, KernelError, shown
from init.flags import TRUE, resolve, usage
from init.log import Log, log_options
from init.netlink import local_addresses
from init.plan import make_plan
from init.render import document, installation
from init.settings import Settings, load

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """`istio-iptables`: install the capture rules, print them (--dry-run) or remove them (--cleanup-only)."""
    return _run("istio-iptables", sys.argv[1:] if argv is None else argv, os.environ, cleanup_only=False)


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
    try:
        settings = load(values, _uid_of, local_addresses, cleanup_only=cleanup_only)
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
        log.close()
    return 0


def _act(settings: Settings, log: Log) -> None:
    # Not imported where they are not needed: a dry run and a refusal start no process.
    if settings.cleanup_only:
        from init.cleanup import clean_up

        clean_up(settings, log, _show)
        return
    plan = make_plan(settings)
    if settings.dry_run:
        text = document(installation(plan.rules))
        _show(text)
        _write_dry_run_file(settings.dry_run_file, text)
        return
    from init.apply import apply

    apply(plan, settings, log)


def _show(text: str) -> None:
    try:
        print(text, end="", flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes it once more at exit
        raise KernelError(f"cannot write to standard output: {error.strerror}") from error


def _write_dry_run_file(path: str, text: str) -> None:
    """The calls of a run in the form that Istio's dry run gives them: what is read, what is restored, what is read."""
    if not path:
        return
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(f"iptables-save\nip6tables-save\n{text}iptables-save\n")
    except (OSError, ValueError) as error:
        raise KernelError(f"DRY_RUN_FILE_PATH: cannot write {shown(path)}: {error}") from error


def _uid_of(user: str) -> int | None:
    import pwd

    try:
        return pwd.getpwnam(user).pw_uid
    except (KeyError, ValueError):
        return None
