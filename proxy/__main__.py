"""``python -m proxy``: the command line of the proxy."""

from __future__ import annotations

import os
import sys

from proxy import log
from proxy.options import Exit, OptionError, Options, parse


def main(argv: list[str] | None = None) -> int:
    """Run with ``argv`` (default: the process's); the exit code."""
    program = os.path.basename(sys.argv[0])
    if program == "__main__.py":
        program = "python -m proxy"
    try:
        options = parse(sys.argv[1:] if argv is None else argv, program, os.environ)
        _configure_log(options)
    except Exit as wanted:
        print(wanted.text, end="", file=sys.stderr if wanted.to_stderr else sys.stdout)
        return 0
    except OptionError as error:
        print(error, file=sys.stderr)
        return 1
    # Only now, so that --version and bad options answer without the configuration's modules.
    from proxy.main import run

    return run(options)


def _configure_log(options: Options) -> None:
    try:
        log.configure(options.log_level, options.component_log_level, options.log_format, options.log_format_escaped,
                      options.log_path, options.log_stacktrace_single_entry)
    except OSError as error:
        raise OptionError(f"error: --log-path: unable to open file '{options.log_path}': {error.strerror}") from None
    sys.excepthook = log.log_uncaught


if __name__ == "__main__":
    sys.exit(main())
