"""Rules -> the text that `iptables-restore --noflush` reads.

The form is that of Istio's program: `* table`, `-N` for each chain in order of first use, the rules, `COMMIT`.
"""

from collections.abc import Mapping, Sequence

from init.plan import CHAINS, Match, MatchKind, Rule, Target, TargetKind

Commands = Mapping[str, Sequence[str]]  # table -> lines of it

# Words before the (negatable) option, and the option itself.
_MATCHES: Mapping[MatchKind, tuple[tuple[str, ...], str]] = {
    "out-interface": ((), "-o"),
    "source": ((), "-s"),
    "destination": ((), "-d"),
    "protocol": ((), "-p"),
    "destination-port": ((), "--dport"),
    "uid": (("-m", "owner"), "--uid-owner"),
    "gid": (("-m", "owner"), "--gid-owner"),
}
_TARGETS: Mapping[TargetKind, tuple[str, ...]] = {
    "return": ("-j", "RETURN"),
    "jump": ("-j",),
    "redirect": ("-j", "REDIRECT", "--to-ports"),
}


def specification(rule: Rule) -> str:
    """The rule without its chain: what stands after `-A CHAIN`."""
    return " ".join(word for part in (*map(_match, rule.matches), _target(rule.target)) for word in part)


def _match(match: Match) -> tuple[str, ...]:
    before, option = _MATCHES[match.kind]
    return (*before, *(("!",) if match.negated else ()), option, match.value)


def _target(target: Target) -> tuple[str, ...]:
    return (*_TARGETS[target.kind], target.value) if target.value else _TARGETS[target.kind]


def installation(rules: Sequence[Rule]) -> Commands:
    """The lines that create the chains of `rules`, then the rules, by table."""
    chains: dict[str, dict[str, None]] = {}
    lines: dict[str, list[str]] = {}
    for rule in rules:
        if rule.chain in CHAINS:
            chains.setdefault(rule.table, {}).setdefault(rule.chain)
        lines.setdefault(rule.table, []).append(f"-A {rule.chain} {specification(rule)}")
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
