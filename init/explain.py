"""`istio-iptables explain`: what the rules that are in the kernel now do to one packet, and which of them decides."""

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address
from itertools import permutations
from typing import TYPE_CHECKING, Any

from init.errors import EXIT_FAILURE, InitError, KernelError, UsageError
from init.iptables_text import specification
from init.packet import Host, IPAddress, Outcome, Packet, Place, Ruleset, Step
from init.question import Question, read, split, usage
from init.rules import IN_REDIRECT, OUTPUT_DNS, REDIRECT, TPROXY, Rule, Version
from init.walk import LO, walk

if TYPE_CHECKING:
    from init.backends.base import Backend
    from init.route_lookup import Route

NO_RULE = "no rule of this program is in the kernel"
# A client that no route of a pod is about, where the question names none (RFC 5737, RFC 3849).
SOMEBODY: Mapping[Version, IPAddress] = {4: ip_address("192.0.2.1"), 6: ip_address("2001:db8::1")}
_CAPTURE_OF = {REDIRECT: "outbound", IN_REDIRECT: "inbound", TPROXY: "inbound", OUTPUT_DNS: "DNS"}


def run(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Answer one question on standard output; returns the exit code."""
    try:
        given = split(argv)
        text = usage() if "help" in given else _answer(read(given, environ))
    except UsageError as error:
        print(f"Error: {error}\nRun 'istio-iptables explain --help' for usage.", file=sys.stderr)
        return error.exit_code
    except InitError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    try:
        print(text, end="", flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes it once more at exit
        print(f"Error: cannot write to standard output: {error.strerror}", file=sys.stderr)
        return EXIT_FAILURE
    return 0


def _answer(question: Question) -> str:
    from init.backends.choice import Backends
    from init.netlink import local_addresses
    from init.route_lookup import lookup

    if question.namespace:
        from init.namespace import enter

        enter(question.namespace)
    addresses = local_addresses()
    packet = packet_of(question, addresses, lookup)
    stores, unread = read_stores(Backends(None).all(), packet.version)
    answer = explain(packet, stores, host_of(packet, addresses, stores, lookup), unread)
    return answer.json() if question.as_json else answer.text()


Lookup = Callable[[IPAddress, int, "int | None"], "Route"]


def packet_of(question: Question, addresses: Sequence[IPAddress], lookup: Lookup) -> Packet:
    """The packet with what the question leaves out: its source and interface, as routing chooses them.

    Raises KernelError where the kernel would not send such a packet.
    """
    version = question.version
    loopback = ip_address("127.0.0.1" if version == 4 else "::1")
    source, to, interface = question.source, question.to, question.interface
    if question.inbound:
        own = next(
            (a for a in addresses if a.version == version and not a.is_loopback and not a.is_link_local), loopback
        )
        to = to or own
        source = source or SOMEBODY[version]
        interface = interface or _interface_of(source, lookup)
    else:
        to = loopback if to is None or to.is_unspecified else to
        if source is None or not interface:
            route = lookup(to, question.mark, question.uid)
            source, interface = source or route.source or loopback, interface or route.interface
    packet = Packet(
        question.inbound,
        "udp" if question.udp else "tcp",
        source,
        to,
        question.port,
        interface=interface,
        uid=question.uid,
        gid=question.gid,
        mark=question.mark,
    )
    return packet if question.source_port is None else replace(packet, source_port=question.source_port)


def _interface_of(client: IPAddress, lookup: Lookup) -> str:
    """The interface that a client's packets come in by: where the way back to it leads."""
    import socket

    try:
        found = lookup(client, 0, None).interface
    except KernelError:
        found = LO
    others = [name for _, name in socket.if_nameindex() if name != LO]
    if found == LO and not others:
        raise KernelError("--interface: this network namespace has none but lo: name the one that is meant")
    return others[0] if found == LO else found


def read_stores(backends: Iterable["Backend"], version: Version) -> tuple[dict[str, Ruleset], list[str]]:
    """Backend -> its rules of one family, and a line for each backend that cannot be read.

    Raises KernelError if none can.
    """
    stores: dict[str, Ruleset] = {}
    unread = []
    read = False
    for backend in backends:
        try:
            held = backend.rules_in_kernel()
        except KernelError as error:
            unread.append(f"{backend.kind} cannot be read, and is taken to hold no rule: {error}")
            continue
        read = True
        if version in held:
            stores[backend.kind] = held[version]
    if unread and not read:
        raise KernelError(*unread)
    return stores, unread


def host_of(packet: Packet, addresses: Sequence[IPAddress], stores: Mapping[str, Ruleset], lookup: Lookup) -> Host:
    """The namespace as far as this packet is concerned: which marks that it may get keep it, or its answer, inside."""
    host = Host(addresses)
    remote = packet.source if packet.inbound or host.owns(packet.destination) else packet.destination
    if host.owns(remote):
        remote = SOMEBODY[packet.version]
    rules = [rule for held in stores.values() for chains in held.tables.values() for c in chains.values() for rule in c]
    marks = {packet.mark, *_marks(rules, "mark", "tproxy")} - {0}
    return Host(addresses, frozenset(mark for mark in marks if _is_local(remote, mark, lookup)))


def _marks(rules: Iterable[Rule], *kinds: str) -> Iterator[int]:
    """The marks that targets of these kinds give."""
    for rule in rules:
        if rule.target.kind in kinds:
            try:
                yield int(rule.target.mark or rule.target.value, 0)
            except ValueError:
                pass  # a foreign rule that `walk` will not understand either


def _is_local(address: IPAddress, mark: int, lookup: Lookup) -> bool:
    try:
        return lookup(address, mark, None).is_local
    except KernelError:
        return False


# The answer.


@dataclass(frozen=True, slots=True)
class Answer:
    """What was found out about a packet. `missing` has a line for each thing without which capture does not work."""

    packet: Packet
    stores: Sequence[str]
    outcome: Outcome
    conclusion: str
    uncertain: Sequence[str]
    missing: Sequence[str]

    def text(self) -> str:
        """For people: a line for each rule that matched and each chain where none did, then the conclusion."""
        lines = [f"packet: {_packet_text(self.packet)}"]
        if len(self.stores) > 1:
            lines.append(f"rules are in several places: {', '.join(self.stores)}")
        lines += [_step_text(step, several=len(self.stores) > 1) for step in self.outcome.steps]
        lines += [f"uncertain: {line}" for line in self.uncertain]
        lines += [f"missing: {line}" for line in self.missing]
        return "\n".join(map(_one_line, [*lines, f"-> {self.conclusion}"])) + "\n"

    def json(self) -> str:
        """For programs."""
        outcome, packet = self.outcome, self.packet
        document: dict[str, Any] = {
            "packet": {
                "direction": "inbound" if packet.inbound else "outbound",
                "protocol": packet.protocol,
                "source": str(packet.source),
                "destination": str(packet.destination),
                "port": packet.destination_port,
                "interface": packet.interface,
                "uid": packet.uid,
                "gid": packet.gid,
                "mark": packet.mark,
            },
            "stores": list(self.stores),
            "trace": [_place(step.place) | {"effect": step.effect} for step in outcome.steps],
            "verdict": outcome.verdict,
            "captured": outcome.captured,
            "address": str(outcome.address),
            "port": outcome.port,
            "mark": outcome.mark,
            "zone": outcome.zone,
            "decided_by": _place(outcome.decided_by) if outcome.decided_by else None,
            "uncertain": list(self.uncertain),
            "missing": list(self.missing),
            "conclusion": self.conclusion,
        }
        return json.dumps(document, indent=2) + "\n"


def explain(packet: Packet, stores: Mapping[str, Ruleset], host: Host, unread: Sequence[str] = ()) -> Answer:
    """Walk the packet through every store's rules of its family and say what came of it."""
    deciding = {name: ruleset for name, ruleset in stores.items() if ruleset.decides}
    ours = any(ruleset.holds_ours for ruleset in deciding.values())
    outcome, *others = (walk(packet, dict(order), host) for order in permutations(deciding.items()))
    conclusion = conclude(packet, outcome, ours=ours)
    uncertain = [*unread]
    for name, ruleset in stores.items():
        uncertain += [f"{what} cannot be read by {name} and is left out" for what in sorted(ruleset.unreadable)]
    uncertain += outcome.uncertain
    # Hooks of nf_tables and ip_tables have equal priorities, and the kernel does not tell which was registered first.
    differing = (conclude(packet, other, ours=ours) for other in others if other.effect != outcome.effect)
    uncertain += [
        f"of tables with one priority the younger is asked first; in another order: {text}"
        for text in dict.fromkeys(differing)
    ]
    return Answer(packet, list(deciding), outcome, conclusion, uncertain, _missing(outcome, host))


def conclude(packet: Packet, outcome: Outcome, *, ours: bool) -> str:
    """One line: whether the packet is captured, where it goes, and by which rule. `ours`: whether there are rules of
    capture at all."""
    by = outcome.decided_by
    if outcome.verdict == "dropped":
        return f"dropped by {by}{_words(by)}"
    if outcome.captured and by:
        way = f" ({_CAPTURE_OF[by.chain]})" if by.chain in _CAPTURE_OF else ""
        if outcome.verdict == "redirected":
            return f"captured: redirected to port {outcome.port}{way} by {by}"
        return (
            f"captured: handed to the transparent socket on port {outcome.port} with mark {outcome.mark}{way} by {by}"
        )
    if outcome.verdict in ("redirected", "tproxied"):
        how = "redirected to" if outcome.verdict == "redirected" else "handed to the transparent socket on"
        return f"not captured: {how} port {outcome.port} by a foreign rule, {by}{_words(by)}"
    if not ours and (outcome.address, outcome.port) == (packet.destination, packet.destination_port):
        return f"not captured: {NO_RULE}"
    where = f"{_host(outcome.address)}:{outcome.port}"
    if outcome.verdict == "delivered":
        goes = f"delivered to the application at {where}"
    else:
        goes = f"{'forwarded' if packet.inbound else 'leaves the pod'} towards {where}"
    return f"not captured: {goes}, {f'by {by}{_words(by)}' if by else 'no rule captures it'}"


def _missing(outcome: Outcome, host: Host) -> list[str]:
    """TPROXY works only where the mark keeps answers, which go to the client's address, inside the pod."""
    marks = _marks((step.place.rule for step in outcome.steps if step.place.rule is not None), "tproxy")
    return [
        f"no policy rule for mark {mark} leads to a table with the route `local default dev lo`, so the application's "
        "answers to the client leave the pod: run this program again"
        for mark in sorted({*marks} - {*host.local_marks})
    ]


def _packet_text(packet: Packet) -> str:
    owner = "" if packet.inbound else f" of uid {packet.uid} gid {packet.gid}"
    mark = f" with mark {packet.mark}" if packet.mark else ""
    way = "in" if packet.inbound else "out"
    to = f"{_host(packet.destination)}:{packet.destination_port}"
    return f"{packet.protocol} from {packet.source}{owner} to {to}{mark}, {way} by {packet.interface}"


def _step_text(step: Step, *, several: bool) -> str:
    place = step.place
    store = f"{place.store}: " if several else ""
    indent = "  " * step.depth
    if place.rule is None:
        return f"{store}{indent}{place.table} {place.chain}: {step.effect}"
    said = "" if place.rule.target.kind in ("return", "accept", "drop", "redirect", "mark", "tproxy") else step.effect
    said = "" if said.startswith(("jump to ", "goto ")) else said
    return f"{store}{indent}{place}: {specification(place.rule)}{f' ({said})' if said else ''}"


def _words(place: Place | None) -> str:
    return f" ({specification(place.rule)})" if place and place.rule else ""


def _place(place: Place) -> dict[str, Any]:
    rule: Rule | None = place.rule
    return {
        "store": place.store,
        "table": place.table,
        "chain": place.chain,
        "rule": place.number if rule else None,
        "iptables": specification(rule) if rule else None,
    }


def _host(address: IPAddress) -> str:
    return f"[{address}]" if address.version == 6 else str(address)


def _one_line(text: str) -> str:
    """Comments of foreign rules may hold anything; a terminal must not obey it."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
