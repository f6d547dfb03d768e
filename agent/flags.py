"""A thin command-line parser with the rules of Go's pflag, which pods and injectors were written for.

Not argparse: it abbreviates long flags, has no rule for unknown flags that swallows their value the way pflag does
(facts of the real program: `--x token` swallows the token, `--x=v` does not), and costs 10 ms to import in a
command that kubelet runs before every application container. A table and one loop do all of it.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from agent.errors import UsageError

Value = str | int | bool | tuple[str, ...]

# Go's strconv.ParseBool.
BOOLEANS: Mapping[str, bool] = {
    **dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True),
    **dict.fromkeys(("0", "f", "F", "FALSE", "false", "False"), False),
}
_INTEGER = re.compile(r"[-+]?(0[xX][0-9a-fA-F]{1,16}|0[oO][0-7]{1,22}|0[bB][01]{1,64}|0|[1-9][0-9]{0,18})")
_INT64 = range(-(2**63), 2**63)


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag. The type of the default is the type of the flag; a tuple makes it repeatable."""

    name: str
    default: Value
    help: str
    short: str = ""

    @property
    def is_switch(self) -> bool:
        """Whether the flag stands alone on the command line (a bool takes a value only as `--x=value`)."""
        return isinstance(self.default, bool)


_Taker = Callable[[Flag, str, str | None], None]  # flag, how it was written, value written with =
_Skipper = Callable[[str, str | None], None]

HELP = Flag("help", False, "show this help", short="h")


@dataclass(slots=True)
class Parsed:
    """The outcome of `parse`: a value for every flag of the table, and what else stood on the command line."""

    values: dict[str, Value]
    given: set[str] = field(default_factory=set)  # flags that stood on the command line
    positionals: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)  # tolerated flags, as written, without their values

    def text(self, name: str) -> str:
        value = self.values[name]
        assert isinstance(value, str)
        return value

    def integer(self, name: str) -> int:
        value = self.values[name]
        assert isinstance(value, int)
        return value

    def switch(self, name: str) -> bool:
        value = self.values[name]
        assert isinstance(value, bool)
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        value = self.values[name]
        assert isinstance(value, tuple)
        return value


def parse_integer(text: str) -> int:
    """A 64-bit integer as pflag takes it (decimal, 0x, 0o, 0b). Raises ValueError."""
    if not _INTEGER.fullmatch(text) or int(text, 0) not in _INT64:
        raise ValueError("expected an integer")
    return int(text, 0)


def parse(flags: Sequence[Flag], arguments: Sequence[str], *, tolerate_unknown: bool) -> Parsed:
    """Parse `arguments` (the command's own name already removed).

    With `tolerate_unknown` a flag that is not in the table is collected in `unknown` instead of refused, and takes the
    next token with it unless it was written as `--x=v` or the next token begins with `-`.
    Raises UsageError for an unknown flag, a missing or a malformed value.
    """
    long = {f.name: f for f in flags}
    short = {f.short: f for f in flags if f.short}
    parsed = Parsed({f.name: f.default for f in flags})
    rest = list(arguments)
    rest.reverse()  # so that pop() takes the next token

    def take_value(flag: Flag, shown: str, inline: str | None) -> None:
        if inline is None:
            if flag.is_switch:
                inline = "true"
            elif rest:
                inline = rest.pop()
            else:
                raise UsageError(f"flag needs an argument: {shown}")
        _store(parsed, flag, shown, inline)

    def skip_unknown(shown: str, inline: str | None) -> None:
        if not tolerate_unknown:
            raise UsageError(f"unknown flag: {shown}")
        parsed.unknown.append(shown)
        if inline is None and rest and not rest[-1].startswith("-"):
            rest.pop()

    while rest:
        token = rest.pop()
        if token == "--":
            parsed.positionals.extend(reversed(rest))
            break
        if token.startswith("--"):
            name, equals, value = token[2:].partition("=")
            if not name or name.startswith("-"):
                raise UsageError(f"bad flag syntax: {token}")
            inline = value if equals else None
            if name in long:
                take_value(long[name], f"--{name}", inline)
            else:
                skip_unknown(f"--{name}", inline)
        elif token.startswith("-") and len(token) > 1:
            _short_flags(token[1:], short, take_value, skip_unknown)
        else:
            parsed.positionals.append(token)
    return parsed


def _short_flags(letters: str, short: Mapping[str, Flag], take_value: _Taker, skip_unknown: _Skipper) -> None:
    """`-s`, `-sx`, `-o json`, `-ojson`, `-o=json`: letters until one takes the remainder as its value."""
    while letters:
        letter, letters = letters[0], letters[1:]
        flag = short.get(letter)
        if flag is None:
            attached = letters.startswith("=")
            skip_unknown(f"-{letter}", letters[1:] if attached else None)
            if attached:
                return
            continue
        if letters.startswith("="):
            take_value(flag, f"-{letter}", letters[1:])
            return
        if letters and not flag.is_switch:
            take_value(flag, f"-{letter}", letters)
            return
        take_value(flag, f"-{letter}", None)


def _store(parsed: Parsed, flag: Flag, shown: str, text: str) -> None:
    value: Value
    if isinstance(flag.default, bool):
        if text not in BOOLEANS:
            raise UsageError(f'invalid argument "{text[:64]}" for "{shown}" flag: expected true or false')
        value = BOOLEANS[text]
    elif isinstance(flag.default, int):
        try:
            value = parse_integer(text)
        except ValueError as error:
            raise UsageError(f'invalid argument "{text[:64]}" for "{shown}" flag: {error}') from None
    elif isinstance(flag.default, tuple):
        earlier = parsed.texts(flag.name) if flag.name in parsed.given else ()
        value = (*earlier, text)
    else:
        value = text
    parsed.values[flag.name] = value
    parsed.given.add(flag.name)


def describe(flags: Sequence[Flag]) -> str:
    """The flag table as help text, one flag a line."""
    rows = []
    for flag in sorted(flags, key=lambda f: f.name):
        head = f"-{flag.short}, --{flag.name}" if flag.short else f"    --{flag.name}"
        kind = "" if flag.is_switch else " int" if isinstance(flag.default, int) else " string"
        shown = ",".join(flag.default) if isinstance(flag.default, tuple) else str(flag.default)
        shown = shown.lower() if flag.is_switch else shown
        default = f" (default {shown})" if flag.default not in (False, "", ()) else ""
        rows.append((head + kind, flag.help + default))
    width = max((len(head) for head, _ in rows), default=0)
    return "\n".join(f"  {head:<{width}}   {text}" for head, text in rows)
