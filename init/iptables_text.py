"""Rules <-> the words of iptables, by one table for both directions.

Writing gives the text that `iptables-restore --noflush` reads, in the form of Istio's program: `* table`, `-N` for each
chain in order of first use, the rules, `COMMIT`. Reading understands what `iptables-save` prints for such rules, and
keeps what it does not understand as `other`.
"""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from init.rules import CHAINS, Match, MatchKind, Rule, Target, TargetKind, canonical

Commands = Mapping[str, Sequence[str]]  # table -> lines of it


@dataclass(frozen=True, slots=True)
class _Option:
    """A condition: the option, the match extension that it needs, what iptables-save adds to its value."""

    kind: MatchKind
    option: str
    module: str = ""


_MATCHES: tuple[_Option, ...] = (
    _Option("in-interface", "-i"),
    _Option("out-interface", "-o"),
    _Option("source", "-s"),
    _Option("destination", "-d"),
    _Option("protocol", "-p"),
    _Option("source-port", "--sport"),
    _Option("destination-port", "--dport"),
    _Option("destination-ports", "--dports", "multiport"),
    _Option("uid", "--uid-owner", "owner"),
    _Option("gid", "--gid-owner", "owner"),
    _Option("ct-state", "--ctstate", "conntrack"),
    _Option("mark", "--mark", "mark"),
    _Option("connmark", "--mark", "connmark"),
)
_WRITTEN: Mapping[MatchKind, _Option] = {match.kind: match for match in _MATCHES}
_READ: Mapping[tuple[str, str], _Option] = {(match.module, match.option): match for match in _MATCHES}
_IMPLIED_MODULES = ("tcp", "udp")  # iptables-save names them beside a port; they say nothing of their own
_FULL_MASK = "0xffffffff"

# A target as words; `{value}` and `{mark}` stand for its own.
_TARGETS: Mapping[TargetKind, str] = {
    "none": "",
    "return": "-j RETURN",
    "accept": "-j ACCEPT",
    "drop": "-j DROP",
    "jump": "-j {value}",
    "redirect": "-j REDIRECT --to-ports {value}",
    "mark": "-j MARK --set-mark {value}",
    "tproxy": "-j TPROXY --tproxy-mark {mark}/0xffffffff --on-port {value}",
    "save-mark": "-j CONNMARK --save-mark",
    "restore-mark": "-j CONNMARK --restore-mark",
    "zone": "-j CT --zone {value}",
    "other": "{value}",
}
# Targets that are one word.
_BARE: Mapping[str, TargetKind] = {"RETURN": "return", "ACCEPT": "accept", "DROP": "drop"}
# Target extension -> (which of our kinds its options mean, given as option -> value).
_Options = Mapping[str, str]
_EXTENSIONS: Mapping[str, Callable[[_Options], Target | None]] = {
    "REDIRECT": lambda o: Target("redirect", o["--to-ports"]) if o.keys() == {"--to-ports"} else None,
    "MARK": lambda o: Target("mark", mark) if (mark := _full_mark(o, "--set-xmark")) and len(o) == 1 else None,
    "TPROXY": lambda o: (
        Target("tproxy", o["--on-port"], mark)
        if (mark := _full_mark(o, "--tproxy-mark")) and o.get("--on-ip", "::") in ("0.0.0.0", "::") and "--on-port" in o
        else None
    ),
    "CONNMARK": lambda o: (
        Target("save-mark" if "--save-mark" in o else "restore-mark")
        if ("--save-mark" in o) != ("--restore-mark" in o)
        and o.get("--nfmask", _FULL_MASK) == o.get("--ctmask", _FULL_MASK) == _FULL_MASK
        and not o.keys() - {"--save-mark", "--restore-mark", "--nfmask", "--ctmask"}
        else None
    ),
    "CT": lambda o: Target("zone", o["--zone"]) if o.keys() == {"--zone"} else None,
}


def _full_mark(options: _Options, option: str) -> str:
    """The decimal mark of `mark/mask` when all bits count, else the empty string."""
    mark, _, mask = options.get(option, "").partition("/")
    return _decimal(mark) if mark and mask in ("", _FULL_MASK) else ""


def _decimal(number: str) -> str:
    try:
        return str(int(number, 0))
    except ValueError:
        return ""


def specification(rule: Rule) -> str:
    """The rule without its chain: what stands after `-A CHAIN`."""
    words = [word for match in rule.matches for word in _match_words(match)]
    target = _TARGETS[rule.target.kind].format(value=rule.target.value, mark=rule.target.mark)
    if rule.target.kind == "redirect" and rule.match("protocol") == "udp":
        target = target.replace("--to-ports", "--to-port")  # as Istio writes it; the kernel sees no difference
    return " ".join([*words, target] if target else words)


def _match_words(match: Match) -> tuple[str, ...]:
    if match.kind == "other":
        return (match.value,)
    option = _WRITTEN[match.kind]
    return (
        *(("-m", option.module) if option.module else ()),
        *(("!",) if match.negated else ()),
        option.option,
        match.value,
    )


def command(rule: Rule) -> str:
    """The line of a restore text that creates the rule."""
    place = f"-A {rule.chain}" if rule.position is None else f"-I {rule.chain} {rule.position}"
    return f"{place} {specification(rule)}".rstrip()


def line(rule: Rule) -> str:
    """A rule in its canonical spelling, with its table: what listings and differences show."""
    return f"{rule.table}: -A {rule.chain} {specification(canonical(rule))}".rstrip()


def installation(rules: Sequence[Rule]) -> Commands:
    """The lines that create the chains of `rules`, then the rules, by table."""
    chains: dict[str, dict[str, None]] = {}
    lines: dict[str, list[str]] = {}
    for rule in rules:
        if rule.chain in CHAINS:
            chains.setdefault(rule.table, {}).setdefault(rule.chain)
        lines.setdefault(rule.table, []).append(command(rule))
    for rule in rules:  # a chain that is jumped to but holds no rule
        if rule.target.kind == "jump":
            chains.setdefault(rule.table, {}).setdefault(rule.target.value)
    return {table: [*(f"-N {chain}" for chain in chains.get(table, ())), *rest] for table, rest in lines.items()}


def document(*parts: Commands) -> str:
    """One restore text: the tables in alphabetical order, within each the lines of the parts in turn.

    A table is committed as a whole or not at all, so removal and installation of a table in one document are one step.
    """
    text: list[str] = []
    for table in sorted({table for part in parts for table, lines in part.items() if lines}):
        text += [f"* {table}", *(line for part in parts for line in part.get(table, ())), "COMMIT"]
    return "".join(line + "\n" for line in text)


def read_rule(table: str, chain: str, text: str) -> Rule:
    """A rule from what iptables-save prints after `-A CHAIN`."""
    words = _split(text)
    matches: list[Match] = []
    target = Target("none")
    module = ""
    at = 0
    while at < len(words):
        start = at
        negated = words[at] == "!"
        at += negated
        option = words[at] if at < len(words) else ""
        at += 1
        if option in ("-j", "-g"):
            target = _read_target(option, words[at:])
            break
        values_from = at
        while at < len(words) and words[at] != "!" and not words[at].startswith("-"):
            at += 1
        values = words[values_from:at]
        if option == "-m":
            module = values[0] if values else ""
            if module in _IMPLIED_MODULES or any(module == known.module for known in _MATCHES):
                continue
        known = _READ.get((module, option)) or _READ.get(("", option))
        found = _read_match(known, negated, values) if known else None
        matches.append(found or Match("other", " ".join(words[start:at])))
    return Rule(table, chain, tuple(matches), target)


def _split(text: str) -> list[str]:
    try:
        return (
            [shlex.quote(word) if " " in word else word for word in shlex.split(text)] if '"' in text else text.split()
        )
    except ValueError:
        return text.split()


def _read_match(option: _Option, negated: bool, values: Sequence[str]) -> Match | None:
    if len(values) != 1:
        return None
    value = values[0]
    if option.kind in ("mark", "connmark"):
        value = _decimal(value)  # a mask makes it another condition: not understood
    return Match(option.kind, value, negated) if value else None


def _read_target(option: str, words: Sequence[str]) -> Target:
    name = words[0] if words else ""
    other = Target("other", " ".join([option, *words]))
    if option != "-j" or not name:
        return other
    if name in _EXTENSIONS:
        options: dict[str, str] = {}
        for word in words[1:]:
            if word.startswith("--"):
                options[word] = ""
                last = word
            elif options and not options[last]:
                options[last] = word
            else:
                return other
        return _EXTENSIONS[name](options) or other
    if len(words) > 1:
        return other
    return Target(_BARE[name]) if name in _BARE else Target("jump", name)
