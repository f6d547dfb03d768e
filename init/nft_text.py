"""Rules <-> the words of nft, by one table for both directions.

Writing gives the script that `nft -f` runs as one transaction, in the form of Istio's program: one set of tables of the
family inet for IPv4 and IPv6. Reading understands what `nft list` prints for such rules, and keeps what it does not
understand as `other`.

A rule of one address family bears its `version`; where no address condition says so, `meta nfproto` does.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from init.nft_names import TABLES, table_name
from init.rules import (
    CHAINS,
    DIVERT,
    DROP,
    IN_REDIRECT,
    INBOUND,
    OUTPUT,
    OUTPUT_DNS,
    REDIRECT,
    TPROXY,
    Match,
    MatchKind,
    Plan,
    Rule,
    Target,
    TargetKind,
    Version,
    canonical,
)

CHAIN_ORDER = ("PREROUTING", "OUTPUT", DIVERT, TPROXY, INBOUND, REDIRECT, IN_REDIRECT, OUTPUT, OUTPUT_DNS, DROP)
# Hooks with the priorities of iptables' tables.
BASE_CHAINS: Mapping[tuple[str, str], str] = {
    ("nat", "PREROUTING"): "{ type nat hook prerouting priority -100 ; }",
    ("nat", "OUTPUT"): "{ type nat hook output priority -100 ; }",
    ("mangle", "PREROUTING"): "{ type filter hook prerouting priority -150 ; }",
    ("mangle", "OUTPUT"): "{ type route hook output priority -150 ; }",
    ("raw", "PREROUTING"): "{ type filter hook prerouting priority -300 ; }",
    ("raw", "OUTPUT"): "{ type filter hook output priority -300 ; }",
}
_FAMILY: Mapping[Version, str] = {4: "ip", 6: "ip6"}
_VERSIONS: Mapping[str, Version] = {"ip": 4, "ip6": 6}
_NFPROTO: Mapping[str, Version] = {"ipv4": 4, "ipv6": 6, "2": 4, "10": 6}
_PROTOCOLS: Mapping[str, str] = {"tcp": "tcp", "udp": "udp", "6": "tcp", "17": "udp"}
_STATES = {"0x1": "INVALID", "0x2": "ESTABLISHED", "0x4": "RELATED", "0x8": "NEW", "0x40": "UNTRACKED"}  # of `nft -n`
_STATE_OF = _STATES | {state.lower(): state for state in _STATES.values()}
_PORTS = re.compile(r"\d+(-\d+)?")
# Words of nft that an interface may be called too; names of letters only are always quoted.
_KEYWORDS = frozenset(("gc-interval", "icmpv6", "rt0", "rt2", "rt4"))


def chain_name(chain: str) -> str:
    """`istio-output` for `ISTIO_OUTPUT`."""
    return chain.lower().replace("_", "-")


CHAIN_OF: Mapping[str, str] = {chain_name(chain): chain for chain in (*CHAINS, "PREROUTING", "OUTPUT")}


@dataclass(frozen=True, slots=True)
class _Condition:
    """`words`, an operator and a value. `read` gives the value or the empty string: not understood."""

    kind: MatchKind
    words: str  # {ip}: ip or ip6, {l4}: tcp or udp
    write: Callable[[str], str]
    read: Callable[[str], str]


def _quoted(interface: str) -> str:
    bare = interface == "lo" or (not interface.isalpha() and interface not in _KEYWORDS)
    return interface if bare else f'"{interface}"'


def _unquoted(text: str) -> str:
    return text[1:-1] if text.startswith('"') else "" if text.startswith(("{", "@")) else text


def _network(text: str) -> str:
    if not re.fullmatch(r"[0-9a-fA-F.:]+(/\d+)?", text):
        return ""
    return text if "/" in text else f"{text}/{128 if ':' in text else 32}"


def _decimal(text: str) -> str:
    try:
        return str(int(text, 0))
    except ValueError:
        return ""


def _port(text: str) -> str:
    return text.replace("-", ":") if _PORTS.fullmatch(text) else ""


def _port_set(text: str) -> str:
    if not text.startswith("{"):
        return ""
    ports = [_port(item.strip()) for item in text[1:-1].split(",")]
    return ",".join(ports) if all(ports) else ""


def _states(text: str) -> str:
    states = [_STATE_OF.get(state, "") for state in text.split(",")]
    return ",".join(states) if all(states) else ""


# In the order in which a rule has them.
_CONDITIONS: tuple[_Condition, ...] = (
    _Condition("in-interface", "iifname", _quoted, _unquoted),
    _Condition("out-interface", "oifname", _quoted, _unquoted),
    _Condition("protocol", "meta l4proto", str, lambda text: _PROTOCOLS.get(text, "")),
    _Condition("mark", "mark", str, _decimal),
    _Condition("connmark", "ct mark", str, _decimal),
    _Condition("ct-state", "ct state", str.lower, _states),
    _Condition("source", "{ip} saddr", str, _network),
    _Condition("destination", "{ip} daddr", str, _network),
    _Condition("source-port", "{l4} sport", lambda port: port.replace(":", "-"), _port),
    _Condition("destination-port", "{l4} dport", lambda port: port.replace(":", "-"), _port),
    _Condition(
        "destination-ports",
        "{l4} dport",
        lambda ports: f"{{ {', '.join(ports.replace(':', '-').split(','))} }}",
        _port_set,
    ),
    _Condition("uid", "skuid", str, _decimal),
    _Condition("gid", "skgid", str, _decimal),
)
_ORDER: Sequence[MatchKind] = [*(condition.kind for condition in _CONDITIONS), "other"]
_LAST_IN_RAW = ("source", "destination")  # and `meta` before an owner: Istio's spelling of that table
_WRITTEN: Mapping[MatchKind, _Condition] = {condition.kind: condition for condition in _CONDITIONS}


@dataclass(frozen=True, slots=True)
class _Key:
    """The words of a condition as they are printed, what they imply, and the readings to try."""

    version: Version | None
    protocol: str
    conditions: tuple[_Condition, ...]


def _keys() -> dict[str, _Key]:
    found: dict[str, _Key] = {}
    for condition in _CONDITIONS:
        for ip in _VERSIONS if "{ip}" in condition.words else ("",):
            for l4 in ("tcp", "udp") if "{l4}" in condition.words else ("",):
                words = condition.words.format(ip=ip, l4=l4)
                earlier = found[words].conditions if words in found else ()
                found[words] = _Key(_VERSIONS.get(ip), l4, (*earlier, condition))
    found |= {"iif": found["iifname"], "oif": found["oifname"]}
    found["ip protocol"] = replace(found["meta l4proto"], version=4)
    return found


_READ = _keys()

# What follows the conditions, the counter apart.
_TARGETS: Mapping[TargetKind, str] = {
    "none": "counter",
    "return": "counter return",
    "accept": "counter accept",
    "drop": "counter drop",
    "jump": "counter jump {value}",
    "redirect": "counter redirect to :{value}",
    "mark": "counter meta mark set {value}",
    "tproxy": "tproxy {ip} to :{value} meta mark set {mark} counter accept",
    "save-mark": "counter ct mark set mark",
    "restore-mark": "counter meta mark set ct mark",
    "zone": "counter ct zone set {value}",
    "other": "counter {value}",
}
# `mark` and `meta mark` are the same, a counter and a comment may stand anywhere, a log decides nothing.
_META = re.compile(r"\bmeta (?=mark\b|skuid\b|skgid\b|iifname\b|oifname\b|iif\b|oif\b)")
_LOG = (
    r"log(?: prefix \"[^\"]*\"| level \w+| group \d+| snaplen \d+| queue-threshold \d+"
    r"| flags (?:all|skuid|ether|ip options|tcp (?:sequence|options)(?:,(?:sequence|options))?))*"
)
_IGNORED = re.compile(rf'(?:^|(?<=\s))(?:counter(?: packets \d+ bytes \d+)?|comment "[^"]*"|{_LOG})(?=\s|$)')
_TOKEN = re.compile(r'"[^"]*"|\{[^{}]*\}|[^\s"{}]+|[{}"]')


def _normal_text(text: str) -> str:
    return " ".join(_META.sub("", _IGNORED.sub("", text)).split())


def _pattern(written: str) -> re.Pattern[str]:
    escaped = re.escape(_normal_text(written))
    return re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^\\s:]+)", escaped))


_TARGET_PATTERNS: Sequence[tuple[TargetKind, re.Pattern[str]]] = [
    (kind, _pattern(written)) for kind, written in _TARGETS.items() if kind not in ("none", "other", "restore-mark")
]
_RESTORE_MARK = _pattern(_TARGETS["restore-mark"])
# Targets that rules of capture never have, in the words of iptables, which `walk` knows.
_FOREIGN_TARGETS = (
    (re.compile(r"goto (\S+)"), "-g {}"),
    (re.compile(r"reject\b.*()"), "-j REJECT"),
    (re.compile(r"notrack()"), "-j NOTRACK"),
    (re.compile(r"redirect to :(\d+(?:-\d+)?)\b.*"), "-j REDIRECT --to-ports {}"),
    (re.compile(r"redirect()"), "-j REDIRECT"),
    (re.compile(r"dnat (?:ip6? )?to (\S+)(?: (?:random|persistent)\S*)?"), "-j DNAT --to-destination {}"),
)


def intended(plan: Plan) -> Iterator[Rule]:
    """The rules of a plan as they stand in tables that see packets of both families, in order of emission.

    Where IPv6 is captured, what stands in each family is one rule, and so is a pair of equal rules or one that leads
    to rules with addresses only. Where it is not, rules that do anything to a packet are bound to IPv4.
    """
    previous: Rule | None = None
    for rule in plan.rules:
        both = replace(rule, version=None)
        if not plan.ipv6:
            yield replace(rule, version=4) if rule.version or _must_be_bound(rule) else rule
        elif rule.version is None or _has_address(rule):
            yield rule
        elif previous is None or replace(previous, version=None) != both:
            yield both
        previous = rule if rule.version is not None else None


def _has_address(rule: Rule) -> bool:
    return any(match.kind in ("source", "destination") for match in rule.matches)


def _must_be_bound(rule: Rule) -> bool:
    """Whether a rule that every packet meets does more than exempt it or lead to rules that are bound."""
    if (rule.table, rule.chain) not in BASE_CHAINS and rule.chain != OUTPUT:
        return False
    return rule.target != Target("return") and rule.target != Target("jump", OUTPUT)


def statement(rule: Rule) -> str:
    """The rule without its place: what stands after `add rule inet TABLE CHAIN`."""
    words = []
    if rule.version and not _has_address(rule):
        words.append(f"meta nfproto ipv{rule.version}")
    ip = _FAMILY[rule.version] if rule.version else "ip"
    l4 = rule.match("protocol") or "th"
    raw = rule.table == "raw"
    for match in sorted(rule.matches, key=lambda m: (raw and m.kind in _LAST_IN_RAW, _ORDER.index(m.kind))):
        if match.kind == "other":
            words.append(match.value)
        elif match.kind != "protocol" or _spells_protocol(rule):
            condition = _WRITTEN[match.kind]
            meta = "meta " if raw and match.kind in ("uid", "gid") else ""
            key = condition.words.format(ip=ip, l4=l4)
            words.append(f"{meta}{key} {'!= ' if match.negated else ''}{condition.write(match.value)}")
    value = chain_name(rule.target.value) if rule.target.value in CHAINS else rule.target.value
    return " ".join([*words, _TARGETS[rule.target.kind].format(value=value, mark=rule.target.mark, ip=ip)])


def _spells_protocol(rule: Rule) -> bool:
    """Whether `meta l4proto` stands beside a port, which says the same: as Istio has it."""
    kinds = {match.kind for match in rule.matches}
    if kinds.isdisjoint(("source-port", "destination-port", "destination-ports")):
        return True
    if rule.match("protocol") == "udp" or (rule.chain == OUTPUT and "out-interface" not in kinds):
        return False
    return not (rule.chain == OUTPUT_DNS and "destination" in kinds)


def normal(rule: Rule) -> Rule:
    """Its canonical form, port sets as nft keeps them: sorted, each port once."""
    rule = canonical(rule)
    return replace(rule, matches=tuple(_normal_ports(match) for match in rule.matches))


def _normal_ports(match: Match) -> Match:
    if match.kind not in ("source-port", "destination-port", "destination-ports"):
        return match
    items = {item.partition(":")[0] if len(set(item.split(":"))) == 1 else item for item in match.value.split(",")}
    ports = sorted(items, key=lambda item: int(item.partition(":")[0]))
    kind = "destination-port" if match.kind == "destination-ports" and len(ports) == 1 else match.kind
    return replace(match, kind=kind, value=",".join(ports))


def line(rule: Rule) -> str:
    """A rule of ours with its place, in one spelling: what listings and differences show."""
    return f"{_place('rule', rule.table, rule.chain)} {statement(normal(rule))}"


def chain_line(table: str, chain: str) -> str:
    """The line that creates a chain of ours."""
    return f"{_place('chain', table, chain)} {BASE_CHAINS.get((table, chain), '')}".rstrip()


def table_line(table: str) -> str:
    """The line that creates a table of ours if it is not there."""
    return f"add table inet {table_name(table)}"


def _place(what: str, table: str, chain: str) -> str:
    return f"add {what} inet {table_name(table)} {chain_name(chain)}"


def by_chain(rules: Iterable[Rule]) -> dict[str, dict[str, list[Rule]]]:
    """Table -> chain -> what stands in it once `rules` are created, in the order of the script."""
    found: dict[str, dict[str, list[Rule]]] = {}
    for rule in rules:
        chains = found.setdefault(rule.table, {})
        chain = chains.setdefault(rule.chain, [])
        chain.insert(len(chain) if rule.position is None else rule.position - 1, rule)
        if rule.target.kind == "jump":
            chains.setdefault(rule.target.value, [])
    return {
        table: {chain: found[table][chain] for chain in CHAIN_ORDER if chain in found[table]}
        for table in TABLES
        if table in found
    }


def installation(rules: Sequence[Rule]) -> list[str]:
    """The lines that make the tables of `rules` hold just these."""
    lines = []
    for table, chains in by_chain(rules).items():
        lines += [table_line(table), f"flush table inet {table_name(table)}"]
        lines += [chain_line(table, chain) for chain in chains]
        counts = dict.fromkeys(chains, 0)
        for rule in rules:
            if rule.table == table:
                lines.append(_command(rule, counts[rule.chain]))
                counts[rule.chain] += 1
    return lines


def _command(rule: Rule, count: int) -> str:
    """The line that creates a rule in a chain of `count` rules."""
    place = f"rule inet {table_name(rule.table)} {chain_name(rule.chain)}"
    if rule.position is None or rule.position > count:
        return f"add {place} {statement(rule)}"
    return f"insert {place} index {rule.position - 1} {statement(rule)}"


def removal(tables: Iterable[str]) -> list[str]:
    """The lines that remove tables of ours, also if they are not there."""
    return [line for table in tables for line in (table_line(table), f"delete table inet {table_name(table)}")]


def script(plan: Plan) -> str:
    """What `nft -f` reads where there is nothing of ours yet."""
    return document(installation(list(intended(plan))))


def document(lines: Iterable[str]) -> str:
    """Lines, or tables as nft lists them, as one script: one transaction."""
    return "".join(f"{line}\n" for line in lines)


def read_rule(table: str, chain: str, text: str, chain_of: Mapping[str, str] = CHAIN_OF) -> Rule:
    """A rule from what `nft list` prints; `chain_of` gives our names of chains."""
    tokens = _TOKEN.findall(_normal_text(text))
    matches: list[Match] = []
    version: Version | None = None
    unknown: list[str] = []  # words since the last condition that was understood
    target = Target("none")
    at = 0
    while at < len(tokens):
        found = _read_target(" ".join(tokens[at:]), chain_of)
        if found is not None:
            target, implied = found
            version = implied or version
            break
        condition = _read_condition(tokens[at : at + 4])
        if condition is None:
            unknown.append(tokens[at])
            at += 1
            continue
        used, implied, read = condition
        if unknown:
            matches.append(Match("other", " ".join(unknown)))
            unknown = []
        version = implied or version
        matches += (match for match in read if match not in matches)
        at += used
    else:
        if unknown:
            target, unknown = Target("other", " ".join(unknown)), []
    if unknown:
        matches.append(Match("other", " ".join(unknown)))
    return Rule(table, chain, tuple(matches), target, None, version)


def _read_condition(tokens: Sequence[str]) -> tuple[int, Version | None, Sequence[Match]] | None:
    """How many tokens the condition in front takes, the family that it implies, and what it means."""
    if tokens[:2] == ["meta", "nfproto"] and tokens[2:3] and (version := _NFPROTO.get(tokens[2])):
        return 3, version, ()
    for length in (2, 1):
        key = _READ.get(" ".join(tokens[:length]))
        if key is None:
            continue
        negated = tokens[length : length + 1] == ["!="]
        at = length + (negated or tokens[length : length + 1] == ["=="])
        if at >= len(tokens):
            return None
        for condition in key.conditions:
            if value := condition.read(tokens[at]):
                protocol = (Match("protocol", key.protocol),) if key.protocol else ()
                return at + 1, key.version, (*protocol, Match(condition.kind, value, negated))
    return None


def _read_target(text: str, chain_of: Mapping[str, str]) -> tuple[Target, Version | None] | None:
    """What a text that is nothing but a target means, and the family that it implies."""
    if _RESTORE_MARK.fullmatch(text):
        return Target("restore-mark"), None
    for kind, pattern in _TARGET_PATTERNS:
        if not (found := pattern.fullmatch(text)):
            continue
        values = found.groupdict()
        value, mark = values.get("value", ""), _decimal(values.get("mark", ""))
        if kind == "jump":
            return Target(kind, chain_of.get(value, value)), None
        if kind in ("redirect", "mark", "tproxy", "zone"):
            value = _decimal(value)
        if (value or not pattern.groups) and (mark or kind != "tproxy") and values.get("ip", "ip") in _VERSIONS:
            return Target(kind, value, mark), _VERSIONS.get(values.get("ip", ""))
    for pattern, words in _FOREIGN_TARGETS:
        if found := pattern.fullmatch(text):
            return Target("other", words.format(chain_of.get(found[1], found[1]))), None
    return None


@dataclass(frozen=True, slots=True)
class ListedChain:
    """A chain as nft prints it; `head` is the line of a base chain: type, hook, priority and policy."""

    name: str
    head: str
    rules: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ListedTable:
    """A table as nft prints it. `text` is all of it, `rest` what is in it beside chains: sets, flags."""

    family: str
    name: str
    text: str
    chains: tuple[ListedChain, ...]
    rest: tuple[str, ...]


_HEAD = re.compile(r"(\w+) (?:(\w+) )?(\S+) \{")


def read_listing(text: str) -> list[ListedTable]:
    """The tables of what `nft list ruleset` prints."""
    tables = []
    for lines in _blocks(text.splitlines()):
        head = _HEAD.match(lines[0])
        if head is None or head[1] != "table":
            continue
        chains, rest = [], []
        for inner in _blocks(lines[1:-1]):
            if (named := _HEAD.match(inner[0])) and named[1] == "chain":
                rules = [" ".join(block) for block in _blocks(inner[1:-1]) if not block[0].startswith("comment ")]
                base = [rule for rule in rules if rule.startswith("type ")]
                chains.append(ListedChain(named[3], "".join(base), tuple(rule for rule in rules if rule not in base)))
            else:
                rest.append(" ".join(inner))
        tables.append(ListedTable(head[2] or "ip", head[3], "\n".join(lines), tuple(chains), tuple(rest)))
    return tables


def _blocks(lines: Sequence[str]) -> Iterator[list[str]]:
    """Lines, stripped, in groups that close what they open."""
    group: list[str] = []
    depth = 0
    for line in map(str.strip, lines):
        if not line or line.startswith("#"):
            continue
        bare = re.sub(r'"[^"]*"', "", line) if '"' in line else line
        depth += bare.count("{") - bare.count("}")
        group.append(line)
        if depth <= 0:
            yield group
            group, depth = [], 0
