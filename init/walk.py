"""The way of Linux's netfilter through rules, without the kernel.

What is followed: the tables of each hook in the order of their priorities, jumps and policies, marks, conntrack zones,
and destination translation, which looks at its rules for the first packet of a connection only. What is not: source
translation, which changes nobody's destination.
"""

import ipaddress
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Literal

from init.errors import KernelError
from init.iptables_text import specification
from init.packet import Host, IPAddress, Outcome, Packet, Place, Ruleset, Step, Verdict
from init.rules import CHAINS, Match, MatchKind, Rule, Target, TargetKind

End = Literal["return", "accept", "drop"]

# Hook -> tables in the order of their priorities in the kernel. nat of INPUT and POSTROUTING changes sources only.
TABLES_OF: Mapping[str, tuple[str, ...]] = {
    "OUTPUT": ("raw", "mangle", "nat", "filter", "security"),
    "POSTROUTING": ("mangle",),
    "PREROUTING": ("raw", "mangle", "nat"),
    "INPUT": ("mangle", "filter", "security"),
    "FORWARD": ("mangle", "filter", "security"),
}
LO = "lo"
MAX_DEPTH = 128  # jumps into one another; the kernel's own limit is 16 for nft
MAX_RULES = 100_000  # looked at for one packet: chains that jump to one chain twice each multiply

# Extension targets that let a packet go on unchanged in every respect that rules of capture look at.
_PASSING = frozenset(
    "AUDIT CHECKSUM CLASSIFY CONNSECMARK DSCP ECN HL IDLETIMER LED LOG NFLOG RATEEST SECMARK SET TCPMSS TCPOPTSTRIP "
    "TEE TOS TRACE TTL ULOG".split()
)
_REDIRECT = re.compile(r"--to-ports? (\S+)")
_DNAT = re.compile(r"--to-destination (\S+)")
_COMMENT = re.compile(r"-m comment$|--comment ")
_NUMBERS = {"tcp": "6", "udp": "17"}


def walk(packet: Packet, stores: Mapping[str, Ruleset], host: Host) -> Outcome:
    """Follow a packet through the rules of its family; `stores` of equal priority are asked in the order given.

    Raises KernelError where rules jump too deep or in too many ways to be followed.
    """
    return _Walk(packet, stores, host).run()


class _Walk:
    def __init__(self, packet: Packet, stores: Mapping[str, Ruleset], host: Host) -> None:
        self.packet = packet  # as it is now: translation and marks replace it
        self.hook = ""
        self._is_first = True
        self.in_interface = self.out_interface = ""
        self.zone = ""
        self.tracked = False  # conntrack has seen it: true for good after the first raw table
        self._states = {packet.state}
        self._stores = stores
        self._host = host
        self._translated = False  # nat has answered for this connection
        self._verdict: Verdict | None = None
        self._decided_by: Place | None = None
        self._exempt: dict[str, Place] = {}  # table of the first hook -> what let the packet through there
        self._tproxy_port = 0
        self._steps: list[Step] = []
        self._uncertain: dict[str, None] = {}
        self._looked_at = 0

    def run(self) -> Outcome:
        """The hooks that the packet meets, until one drops it."""
        verdict = self._arrives(self.packet.interface) if self.packet.inbound else self._sent()
        if verdict == "delivered" and self._verdict:
            verdict = self._verdict
        return Outcome(
            verdict,
            self.packet.destination,
            self._tproxy_port if verdict == "tproxied" else self.packet.destination_port,
            self.packet.mark,
            self.zone or "0",
            self._decided_by or self._exempt.get("nat") or self._exempt.get("mangle"),
            tuple(self._steps),
            tuple(self._uncertain),
        )

    def _sent(self) -> Verdict:
        # The hooks of OUTPUT see the interface of the first routing decision; translation and marks make another.
        if not self._passes("OUTPUT", "", self._route()):
            return "dropped"
        interface = self._route()
        if not self._passes("POSTROUTING", "", interface):
            return "dropped"
        if interface != LO:
            return "leaves"
        self.packet = replace(self.packet, uid=None, gid=None)  # the loopback device cuts the socket off
        return self._arrives(LO)

    def _arrives(self, interface: str) -> Verdict:
        if not self._passes("PREROUTING", interface, ""):
            return "dropped"
        if self._host.keeps(self.packet.destination, self.packet.mark):
            return "delivered" if self._passes("INPUT", interface, "") else "dropped"
        onward = self._passes("FORWARD", interface, "") and self._passes("POSTROUTING", "", "")
        return "leaves" if onward else "dropped"

    def _route(self) -> str:
        return LO if self._host.keeps(self.packet.destination, self.packet.mark) else self.packet.interface

    def _passes(self, hook: str, in_interface: str, out_interface: str) -> bool:
        """Whether the packet comes through all tables of a hook."""
        self._is_first = not self.hook
        self.hook, self.in_interface, self.out_interface = hook, in_interface, out_interface
        for table in TABLES_OF[hook]:
            self.tracked |= table != "raw"
            for name, ruleset in self._stores.items():
                if not self._passes_table(Place(name, table, hook), ruleset):
                    return False
            if self._is_first and table == "nat":
                self._translated = True  # if no rule did it, then to no change: conntrack remembers that too
        return True

    def _passes_table(self, place: Place, ruleset: Ruleset) -> bool:
        policy = ruleset.policies.get(place.table, {}).get(place.chain, "ACCEPT")
        rules = ruleset.tables.get(place.table, {}).get(place.chain, ())
        if not rules and policy == "ACCEPT":
            return True
        if place.table == "nat" and (refusal := self._no_translation()):
            self._step(place, f"not asked: {refusal}", 0)
            return True
        end = self._chain(ruleset, place, 0)
        if end != "return":
            return end == "accept"
        self._step(place, f"policy {policy}", 0)
        if policy != "ACCEPT":
            self._decided_by = place
        return policy == "ACCEPT"

    def _no_translation(self) -> str:
        """Why nat does not look at its rules for this packet, or the empty string."""
        if self._translated:
            return "conntrack has this connection's translation"
        if self._states & {"NEW", "RELATED"}:
            return ""
        return f"conntrack calls the packet {min(self._states)}"

    def _chain(self, ruleset: Ruleset, head: Place, depth: int) -> End:
        """Walk one chain; `return` is also the end of a chain whose rules let the packet go on."""
        if depth > MAX_DEPTH:
            raise KernelError(f"{head.table} {head.chain}: chains jump into one another more than {MAX_DEPTH} deep")
        any_matched = False
        for number, rule in enumerate(ruleset.tables[head.table][head.chain], 1):
            self._looked_at += 1
            if self._looked_at > MAX_RULES:
                raise KernelError(f"more than {MAX_RULES} rules would be looked at for one packet")
            place = replace(head, number=number, rule=rule)
            if not self._matches(place, rule):
                continue
            any_matched = True
            end = self._act(ruleset, place, rule.target, depth)
            if end is not None:
                return end
        if not any_matched and depth:
            self._step(head, "no rule matches", depth)
        return "return"

    def _matches(self, place: Place, rule: Rule) -> bool:
        unclear = False
        for match in rule.matches:
            holds = self._holds(match)
            if holds is None:
                unclear = True
            elif holds == match.negated:
                return False
        if unclear and rule.target.kind != "none" and _extension(rule.target) not in _PASSING:
            self._doubt(place, "has a condition that cannot be judged here and is taken not to match")
        return not unclear

    def _holds(self, match: Match) -> bool | None:
        """Whether a condition holds, its negation apart; None where that cannot be told."""
        try:
            return _CONDITIONS[match.kind](self, match.value)
        except ValueError:
            return None

    def states(self) -> Collection[str]:
        """What conntrack calls the packet; before it has looked, it is invalid."""
        return self._states if self.tracked else ("INVALID",)

    def _act(self, ruleset: Ruleset, place: Place, target: Target, depth: int) -> End | None:
        """What a matching rule does; None lets the packet go on to the next rule."""
        if target.kind == "jump" and target.value in ruleset.tables[place.table]:
            self._step(place, f"jump to {target.value}", depth)
            inner = self._chain(ruleset, Place(place.store, place.table, target.value), depth + 1)
            return None if inner == "return" else inner
        if target.kind == "other" and target.value.startswith("-g "):
            chain = target.value.removeprefix("-g ")
            if chain in ruleset.tables[place.table]:
                self._step(place, f"goto {chain}", depth)
                return self._chain(ruleset, Place(place.store, place.table, chain), depth + 1)
        try:
            effect, end = _TARGETS[target.kind](self, place, target)
        except ValueError:
            effect, end = self._unknown(place)
        self._step(place, effect, depth)
        return end

    def _step(self, place: Place, effect: str, depth: int) -> None:
        self._steps.append(Step(place, effect, depth))

    def _doubt(self, place: Place, what: str) -> None:
        words = f" ({specification(place.rule)})" if place.rule else ""
        self._uncertain.setdefault(f"{place} of {place.store}{words} {what}")

    # Targets: what they do, in words, and how the chain ends. ValueError: not understood.

    def _leave(self, place: Place, target: Target) -> tuple[str, End | None]:
        """RETURN and ACCEPT: if nothing captures the packet later, this is why."""
        from_foreign_chain = target.kind == "return" and place.chain not in CHAINS | TABLES_OF.keys()
        if self._is_first and not from_foreign_chain:
            self._exempt[place.table] = place
        return ("return", "return") if target.kind == "return" else ("accept", "accept")

    def _drop(self, place: Place, _: Target) -> tuple[str, End | None]:
        self._decided_by = place
        return "drop", "drop"

    def _redirect(self, place: Place, target: Target) -> tuple[str, End | None]:
        return self._redirect_to(place, target.value)

    def _redirect_to(self, place: Place, ports: str) -> tuple[str, End | None]:
        first, _, last = ports.partition("-")
        port = int(first)
        if last:
            self._doubt(place, f"may choose any of the ports {ports}; the first is taken")
        loopback = ipaddress.ip_address("127.0.0.1" if self.packet.version == 4 else "::1")
        on_lo = self.hook == "OUTPUT" or self.in_interface == LO
        self._translate(loopback if on_lo else self._own_address(loopback), port)
        if self._verdict is None:  # a socket that TPROXY chose keeps the packet
            self._verdict, self._decided_by = "redirected", place
        return f"redirect to port {port}", "accept"

    def _own_address(self, otherwise: IPAddress) -> IPAddress:
        """What REDIRECT of an incoming packet translates to: an address of the interface that it came in by."""
        if self._host.owns(self.packet.destination):
            return self.packet.destination
        of_family = (a for a in self._host.addresses if a.version == otherwise.version and not a.is_loopback)
        return next(of_family, otherwise)

    def _translate(self, address: IPAddress, port: int) -> None:
        self.packet = replace(self.packet, destination=address, destination_port=port)
        self._translated = True
        self._states = self._states | {"DNAT"}

    def _tproxy(self, place: Place, target: Target) -> tuple[str, End | None]:
        self._tproxy_port = int(target.value) or self.packet.destination_port
        self.packet = replace(self.packet, mark=int(target.mark, 0))
        self._verdict, self._decided_by = "tproxied", place
        return f"hand to the transparent socket on port {target.value}, mark {target.mark}", "accept"

    def _mark(self, _: Place, target: Target) -> tuple[str, End | None]:
        self.packet = replace(self.packet, mark=int(target.value, 0))
        return f"mark {target.value} set", None

    def _save_mark(self, _: Place, __: Target) -> tuple[str, End | None]:
        self.packet = replace(self.packet, connection_mark=self.packet.mark)
        return f"mark {self.packet.mark} saved to the connection", None

    def _restore_mark(self, _: Place, __: Target) -> tuple[str, End | None]:
        self.packet = replace(self.packet, mark=self.packet.connection_mark)
        return f"mark {self.packet.mark} restored from the connection", None

    def _zone(self, _: Place, target: Target) -> tuple[str, End | None]:
        if self.tracked or self.zone:  # the kernel takes the first one that comes before conntrack
            return f"zone {target.value} ignored: the connection is in zone {self.zone or '0'}", None
        self.zone = target.value
        return f"conntrack zone {target.value} set", None

    def _count(self, _: Place, __: Target) -> tuple[str, End | None]:
        return "counted", None

    def _foreign(self, place: Place, target: Target) -> tuple[str, End | None]:
        """A target that rules of capture never have."""
        name = _extension(target)
        text = target.value if target.kind == "other" else f"-j {target.value}"
        if name in _PASSING:
            return f"{name}: goes on", None
        if name == "REJECT":
            self._decided_by = place
            return "reject", "drop"
        if name == "NOTRACK" or (name == "CT" and "--notrack" in text):
            self._states = {"UNTRACKED"}
            return "not tracked by conntrack", None
        if name == "REDIRECT":
            ports = _REDIRECT.search(text)
            return self._redirect_to(place, ports[1] if ports else str(self.packet.destination_port))
        if name == "DNAT" and (to := _DNAT.search(text)):
            address, port = _endpoint(to[1])
            self._translate(address, port or self.packet.destination_port)
            self._decided_by = self._decided_by or place
            return f"destination translated to {to[1]}", "accept"
        return self._unknown(place)

    def _unknown(self, place: Place) -> tuple[str, End | None]:
        self._doubt(place, "has a target that cannot be judged here and is taken to let the packet go on")
        return "cannot be judged: taken to go on", None


def _extension(target: Target) -> str:
    """`LOG` of `-j LOG --log-prefix x`: the name of a target that is no chain, or the empty string."""
    words = target.value.split()
    if target.kind == "jump":
        return target.value
    return words[1] if target.kind == "other" and words[:1] == ["-j"] and len(words) > 1 else ""


def _endpoint(text: str) -> tuple[IPAddress, int]:
    """`address`, `address:port` or `[address]:port`; port 0 where there is none. Raises ValueError."""
    try:
        return ipaddress.ip_address(text), 0
    except ValueError:
        address, _, port = text.rpartition(":")
        return ipaddress.ip_address(address.strip("[]")), int(port)


# Conditions. Each may raise ValueError for a value that it does not understand.

Condition = Callable[[_Walk, str], "bool | None"]


def _interface(name: str, pattern: str) -> bool:
    """`eth+` is how iptables, `eth*` how nft writes every interface that begins with `eth`."""
    return name.startswith(pattern[:-1]) if pattern.endswith(("+", "*")) else name == pattern


def _within(address: IPAddress, network: str) -> bool:
    return address in ipaddress.ip_network(network, strict=False)


def _numbered(number: int | None, ranges: str) -> bool:
    """Whether a number is in `53`, `80:90`, `80-90` or several of these joined by commas."""
    if number is None:
        return False
    for item in ranges.split(","):
        first, separator, last = item.replace("-", ":").partition(":")
        if int(first or 0) <= number <= int((last or 65535) if separator else first):
            return True
    return False


def _protocol(walked: _Walk, value: str) -> bool:
    name = walked.packet.protocol
    return value in (name, _NUMBERS[name], "all", "0")


_CONDITIONS: Mapping[MatchKind, Condition] = {
    "in-interface": lambda w, value: _interface(w.in_interface, value),
    "out-interface": lambda w, value: _interface(w.out_interface, value),
    "source": lambda w, value: _within(w.packet.source, value),
    "destination": lambda w, value: _within(w.packet.destination, value),
    "protocol": _protocol,
    "source-port": lambda w, value: _numbered(w.packet.source_port, value),
    "destination-port": lambda w, value: _numbered(w.packet.destination_port, value),
    "destination-ports": lambda w, value: _numbered(w.packet.destination_port, value),
    "uid": lambda w, value: _numbered(w.packet.uid, value),
    "gid": lambda w, value: _numbered(w.packet.gid, value),
    "ct-state": lambda w, value: not set(w.states()).isdisjoint(value.upper().split(",")),
    "mark": lambda w, value: w.packet.mark == int(value, 0),
    "connmark": lambda w, value: w.packet.connection_mark == int(value, 0),
    "other": lambda w, value: True if _COMMENT.match(value) else None,
}

_TARGETS: Mapping[TargetKind, Callable[[_Walk, Place, Target], "tuple[str, End | None]"]] = {
    "return": _Walk._leave,
    "accept": _Walk._leave,
    "drop": _Walk._drop,
    "jump": _Walk._foreign,  # a jump to no chain: an extension without options
    "redirect": _Walk._redirect,
    "mark": _Walk._mark,
    "tproxy": _Walk._tproxy,
    "save-mark": _Walk._save_mark,
    "restore-mark": _Walk._restore_mark,
    "zone": _Walk._zone,
    "none": _Walk._count,
    "other": _Walk._foreign,
}
