"""RE2 regular expressions (type.matcher.v3.RegexMatcher) that take linear time on any input.

Peers are hostile and Python's ``re`` backtracks: ``.*a.*b`` over 60 KB of ``a`` takes it minutes. So RE2 itself decides
(package google-re2: 8 ms of import and 4 MB, once, shared by the workers). Its Python binding costs 1 to 3 microseconds
a call, which every request would pay; a pattern in which ``re`` cannot backtrack further than once over the value is
therefore matched by ``re``, at a tenth of that. Which patterns these are is decided by ``_linear``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

MAX_PROGRAM_SIZE = 100
"""Default of the runtime key re2.max_program_size.error_level."""
_PLAIN = re.compile(r"(?:[A-Za-z0-9/_ -]|\\\.|\.\*){0,40}")
"""Text with ``.*`` in places (``/beta/.*``): RE2 takes it for certain, with a small program, and it can be matched
without any engine. Most meshes have no other patterns, and then the 4 MB of RE2 are never loaded."""
_MAX_FIXED_LENGTH = 256
"""Characters after a repetition that may have to be given back: they bound the work for each character."""


@cache
def _engine() -> tuple[Any, Any]:
    """The module re2 and the options of every pattern. Imported by the first regular expression of a configuration."""
    import re2  # type: ignore[import-untyped]

    options = re2.Options()
    options.log_errors = False
    # Like Envoy: a pattern is bytes and matches bytes, so ``.`` is half of a two-byte character (re2_use_latin1_mode).
    options.encoding = re2.Options.Encoding.LATIN1
    return re2, options


class RegexError(ValueError):
    """A pattern or a substitution that RE2 does not take, or that is too large; the text is Envoy's."""


class SafeRegex:
    """A compiled pattern over bytes, with the methods of ``re.Pattern`` that matchers use."""

    __slots__ = ("_compiled", "fullmatch", "text")

    fullmatch: Callable[[bytes], object | None]
    """RE2::FullMatch: something when the whole value matches, else None."""

    def __init__(self, text: str, max_program_size: int = MAX_PROGRAM_SIZE) -> None:
        """Raises RegexError for a pattern with bad syntax or a program of more than ``max_program_size``."""
        self.text = text
        self._compiled: Any = None
        plain = _PLAIN.fullmatch(text) is not None
        if not plain or max_program_size < MAX_PROGRAM_SIZE:
            self._compile(max_program_size)
        fast = _linear(text)
        if fast is not None:
            self.fullmatch = re.compile(fast).fullmatch
        else:
            self.fullmatch = _in_order(text) if plain else self._re2.fullmatch

    @property
    def _re2(self) -> Any:
        if self._compiled is None:
            self._compile(MAX_PROGRAM_SIZE)
        return self._compiled

    def _compile(self, max_program_size: int) -> None:
        text = self.text
        re2, options = _engine()
        try:
            self._compiled = re2.compile(text.encode(), options)
        except re2.error as error:
            reason = error.args[0]
            raise RegexError(reason.decode() if isinstance(reason, bytes) else str(reason)) from None
        size = self._compiled.programsize
        if size > max_program_size:
            raise RegexError(
                f"regex {text!r} RE2 program size of {size} > max program size of {max_program_size} set for the error "
                "level threshold. Increase configured max program size if necessary "
                "(runtime key re2.max_program_size.error_level).")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SafeRegex) and other.text == self.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"SafeRegex({self.text!r})"

    @property
    def groups(self) -> int:
        """How many capturing groups the pattern has."""
        count: int = self._re2.groups
        return count

    def sub(self, substitution: Substitution, value: bytes) -> bytes:
        """RE2::GlobalReplace: every match from left to right is replaced; none is empty right after another match."""
        out: list[bytes] = []
        at, last_end = 0, -1
        while at <= len(value):
            match = self._re2.search(value, at)
            if match is None:
                break
            start, end = match.span()
            out.append(value[at:start])
            if start == end == last_end:
                out.append(value[at:at + 1])
                at += 1
                continue
            out.extend(part if isinstance(part, bytes) else match[part] or b"" for part in substitution.parts)
            at = last_end = end
        out.append(value[at:])
        return b"".join(out)


def _in_order(text: str) -> Callable[[bytes], object | None]:
    """A matcher for a ``_PLAIN`` pattern with ``.*``: its pieces of text must follow each other."""
    first, *middle, last = [piece.replace("\\.", ".").encode() for piece in text.split(".*")]

    def fullmatch(value: bytes) -> bytes | None:
        at, end = len(first), len(value) - len(last)
        if at > end or not value.startswith(first) or not value.endswith(last) or b"\n" in value:
            return None
        for piece in middle:
            found = value.find(piece, at, end)
            if found < 0:
                return None
            at = found + len(piece)
        return value

    return fullmatch


@dataclass(frozen=True, slots=True)
class Substitution:
    """A rewrite string of RE2: text and numbers of groups, 0 for the whole match."""

    parts: tuple[bytes | int, ...]

    @classmethod
    def parse(cls, text: str, groups: int) -> Substitution:
        r"""Parse ``\0`` to ``\9`` and ``\\``. Raises RegexError for other escapes and for groups that do not exist."""
        parts: list[bytes | int] = []
        at = 0
        while at < len(text):
            if text[at] != "\\":
                end = text.find("\\", at)
                end = len(text) if end < 0 else end
                parts.append(text[at:end].encode())
                at = end
                continue
            escaped = text[at + 1:at + 2]
            if escaped.isdecimal() and escaped.isascii():
                if int(escaped) > groups:
                    raise RegexError(f"substitution {text!r} names group {escaped}, the pattern has {groups}")
                parts.append(int(escaped))
            elif escaped == "\\":
                parts.append(b"\\")
            else:
                raise RegexError(f"substitution {text!r}: a backslash must be followed by a digit or a backslash")
            at += 2
        return cls(tuple(parts))


# --- which patterns are linear in ``re`` --------------------------------------------------------------------------

_ALL = frozenset(range(256))
_SETS = {
    "d": frozenset(b"0123456789"),
    "w": frozenset(b"0123456789_ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"),
    "s": frozenset(b"\t\n\f\r "),
}
_SETS |= {name.upper(): _ALL - members for name, members in _SETS.items()}
_META = frozenset("\\.^$*+?()[]{}|")
_REPEAT = re.compile(r"\{(\d{1,4})(,(\d{0,4}))?\}", re.ASCII)


class _NotSimple(Exception):
    pass


@dataclass(frozen=True, slots=True)
class _Item:
    """One character of a set, repeated. ``most`` None: without limit."""

    members: frozenset[int]
    least: int
    most: int | None

    @property
    def fixed(self) -> bool:
        return self.least == self.most

    def render(self, possessive: bool) -> bytes:
        if self.members == _ALL:
            one = b"(?s:.)"
        elif len(self.members) == 1:
            one = b"\\x%02x" % min(self.members)
        elif len(self.members) <= len(_ALL) // 2:
            one = b"[%b]" % b"".join(b"\\x%02x" % byte for byte in sorted(self.members))
        else:
            one = b"[^%b]" % b"".join(b"\\x%02x" % byte for byte in sorted(_ALL - self.members))
        if self.least == self.most == 1:
            return one
        most = b"" if self.most is None else b"%d" % self.most
        return b"%b{%d,%b}%b" % (one, self.least, most, b"+" if possessive else b"")


def _linear(text: str) -> bytes | None:
    """A pattern for ``re`` that matches the same values in linear time, None when there is none.

    Taken are sequences of characters and sets, with repetitions but without groups and alternatives. A repetition whose
    set has nothing in common with a mandatory successor, or that ends the pattern, never has to give anything back: it
    is made possessive. One more repetition may give back, if only a bounded number of characters follows it.
    """
    text = text.encode().decode("latin-1")  # a character for each byte
    if text.startswith("^"):
        text = text[1:]
    if text.endswith("$") and not text.endswith("\\$"):
        text = text[:-1]
    try:
        items = list(_items(text))
    except _NotSimple:
        return None
    parts: list[bytes] = []
    gives_back = False
    fixed_length = 0
    for index, item in enumerate(items):
        after = items[index + 1] if index + 1 < len(items) else None
        exact = after is None or (after.least > 0 and not item.members & after.members)
        if gives_back:
            fixed_length += item.least
            if not item.fixed or fixed_length > _MAX_FIXED_LENGTH:
                return None
        elif not item.fixed and not exact:
            gives_back = True
        parts.append(item.render(possessive=not item.fixed and exact))
    return b"".join(parts)


def _items(text: str) -> Iterator[_Item]:
    at = 0
    while at < len(text):
        members, at = _set_at(text, at)
        least, most = 1, 1
        following = text[at:at + 1]
        if following and following in "*+?":
            least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}[following]  # type: ignore[assignment]
            at += 1
        elif following == "{":
            repeat = _REPEAT.match(text, at)
            if repeat is None:
                raise _NotSimple
            least = int(repeat[1])
            most = least if repeat[2] is None else int(repeat[3]) if repeat[3] else None  # type: ignore[assignment]
            at = repeat.end()
        if text[at:at + 1] in tuple("*+?{"):
            raise _NotSimple
        yield _Item(members, least, most)


def _set_at(text: str, at: int) -> tuple[frozenset[int], int]:
    """The characters that match at a place of the pattern, and the place after."""
    char = text[at]
    if char == "[":
        return _class_at(text, at + 1)
    if char == ".":
        return _ALL - {0x0A}, at + 1
    if char == "\\":
        return _escape_at(text, at + 1)
    if char in _META:
        raise _NotSimple
    return frozenset((ord(char),)), at + 1


def _escape_at(text: str, at: int) -> tuple[frozenset[int], int]:
    char = text[at:at + 1]
    if char in _SETS:
        return _SETS[char], at + 1
    if not char.isascii() or not char.isprintable() or char.isalnum() or not char:
        raise _NotSimple
    return frozenset((ord(char),)), at + 1


def _class_at(text: str, at: int) -> tuple[frozenset[int], int]:
    negated = text[at:at + 1] == "^"
    at += negated
    members: set[int] = set()
    start = at
    while text[at:at + 1] != "]" or at == start:
        low, at = _class_member(text, at)
        if text[at:at + 1] == "-" and text[at + 1:at + 2] not in ("]", ""):
            high, at = _class_member(text, at + 1)
            if len(low) != 1 or len(high) != 1 or min(low) > min(high):
                raise _NotSimple
            low = frozenset(range(min(low), min(high) + 1))
        members |= low
    if not members or (negated and members >= _ALL):
        raise _NotSimple
    return frozenset(_ALL - members if negated else members), at + 1


def _class_member(text: str, at: int) -> tuple[frozenset[int], int]:
    char = text[at:at + 1]
    if char == "\\":
        return _escape_at(text, at + 1)
    if not char or char == "[":
        raise _NotSimple
    return frozenset((ord(char),)), at + 1
