"""Regular expressions that come in requests: RE2, for `/stats/prometheus` is open to the outside, query included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

MAX_LENGTH = 1024
"""Characters of a pattern."""
MAX_PROGRAM_SIZE = 1000
"""Instructions of the compiled pattern: they bound the time for each character of a name."""


class PatternError(ValueError):
    """A pattern that cannot be used; the text says why."""


def search(pattern: str) -> Callable[[str], bool]:
    """A predicate that is true where the pattern is found anywhere in a text. Raises PatternError."""
    found = _compile(pattern).search
    return lambda text: found(text.encode()) is not None


def full_match(pattern: str) -> Callable[[str], bool]:
    """A predicate that is true for texts which match as a whole. Raises PatternError."""
    matches = _compile(pattern).fullmatch
    return lambda text: matches(text.encode()) is not None


def _compile(pattern: str) -> Any:
    # Imported at the first pattern: it brings the C++ library, which most proxies never need.
    import re2  # type: ignore[import-untyped]

    if len(pattern) > MAX_LENGTH:
        raise PatternError(f"pattern of {len(pattern)} characters, at most {MAX_LENGTH} are allowed")
    quiet = re2.Options()
    quiet.log_errors = False
    try:
        compiled = re2.compile(pattern.encode(), quiet)
    except re2.error as error:
        reason = error.args[0]
        raise PatternError(reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)) from None
    finally:
        # The module keeps the last 128 patterns, up to 8 MB each: not for what anyone may send.
        re2.purge()
    if compiled.programsize > MAX_PROGRAM_SIZE:
        raise PatternError(f"pattern too large: program size {compiled.programsize}, at most {MAX_PROGRAM_SIZE}")
    return compiled
