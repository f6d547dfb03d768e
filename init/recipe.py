"""The ordered recipe: Settings -> rules, for both address families at once.

This is the only place that knows which rules exist. The order of emission is Istio's (`tools/istio-iptables`,
capture), and order is what decides: rules are tried first to last. Step numbers are those of that order; a rule
without `version` stands in both families.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

from init.rules import (
    DIVERT,
    DROP,
    IN_REDIRECT,
    INBOUND,
    OUTPUT,
    OUTPUT_DNS,
    PASSTHROUGH,
    REDIRECT,
    SELF_CALL_MARK,
    TPROXY,
    VERSIONS,
    Match,
    Plan,
    Rule,
    Target,
    Version,
)
from init.settings import Settings
from init.values import ALL, Cidr, IPAddress

DNS_PORT = "53"
DNS_CAPTURE_PORT = "15053"
ZONE_OF_PROXY, ZONE_OF_APPLICATION = "1", "2"  # conntrack zones: proxy <-> resolver, application <-> proxy

Owner = tuple[Literal["uid", "gid"], str]

RETURN, ACCEPT, DROP_PACKET = Target("return"), Target("accept"), Target("drop")
TCP, UDP = Match("protocol", "tcp"), Match("protocol", "udp")
LO_IN, LO_OUT = Match("in-interface", "lo"), Match("out-interface", "lo")
ESTABLISHED = Match("ct-state", "RELATED,ESTABLISHED")


def make_plan(settings: Settings) -> Plan:
    """The rules that `settings` ask for."""
    families = VERSIONS if settings.ipv6 else VERSIONS[:1]
    return Plan(
        tuple(rule for rule in _recipe(settings) if rule.version is None or rule.version in families), settings.ipv6
    )


def _recipe(settings: Settings) -> Iterator[Rule]:
    for interface in settings.exclude_interfaces:  # 1, 2
        for table in ("nat", "mangle") if settings.tproxy else ("nat",):
            yield _rule(table, "PREROUTING", Match("in-interface", interface), target=RETURN)
            yield _rule(table, "OUTPUT", Match("out-interface", interface), target=RETURN)
    for interface in settings.virtual_interfaces:  # 3
        yield _nat("PREROUTING", Match("in-interface", interface), target=RETURN, position=1)
    if settings.drop_invalid:  # 4
        yield _mangle("PREROUTING", Match("ct-state", "INVALID"), target=_jump(DROP))
        yield _mangle(DROP, target=DROP_PACKET)
    yield _nat(INBOUND, TCP, _dport(str(settings.inbound_tunnel_port)), target=RETURN)  # 5
    yield _nat(REDIRECT, TCP, target=Target("redirect", str(settings.proxy_port)))  # 6
    yield _nat(IN_REDIRECT, TCP, target=Target("redirect", str(settings.inbound_capture_port)))  # 7
    if settings.inbound_ports:  # 8
        yield from _inbound(settings)
    yield _nat("OUTPUT", target=_jump(OUTPUT))  # 9
    for port in settings.outbound_ports_exclude:  # 10
        yield _nat(OUTPUT, TCP, _dport(port), target=RETURN)
        yield _nat(OUTPUT, UDP, _dport(port), target=RETURN)
    # What the proxy itself sends through lo to an application of its pod: passthrough from 127.0.0.6.
    for version, address in PASSTHROUGH.items():  # 11
        yield _nat(OUTPUT, LO_OUT, Match("source", address), target=RETURN, version=version)
    for owner in _owners(settings):  # 12, 13
        yield from _owner(settings, owner)
    yield from _owner_groups(settings)  # 14
    if settings.captures_dns:  # 15
        yield from _dns(settings)
    for version in VERSIONS:  # 16
        yield _nat(OUTPUT, Match("destination", settings.loopback(version)), target=RETURN, version=version)
    for cidr in _by_version(settings.outbound_ranges_exclude):  # 17
        yield _nat(OUTPUT, Match("destination", cidr.text), target=RETURN, version=cidr.version)
    for port in settings.outbound_ports:  # 18
        yield _nat(OUTPUT, TCP, _dport(port), target=_jump(REDIRECT))
    yield from _outbound_ranges(settings)  # 19
    if settings.tproxy:  # 20
        yield from _tproxy_tail(settings)


def _inbound(settings: Settings) -> Iterator[Rule]:
    table = "mangle" if settings.tproxy else "nat"
    if settings.tproxy:
        mark = str(settings.tproxy_mark)
        yield _mangle(DIVERT, target=Target("mark", mark))
        yield _mangle(DIVERT, target=ACCEPT)
        for version in VERSIONS:
            elsewhere = Match("destination", settings.loopback(version), negated=True)
            to_proxy = Target("tproxy", str(settings.inbound_capture_port), mark)
            yield _mangle(TPROXY, elsewhere, TCP, target=to_proxy, version=version)
    yield _rule(table, "PREROUTING", TCP, target=_jump(INBOUND))
    everything = settings.inbound_ports == ALL
    if everything:
        for port in settings.inbound_ports_exclude:
            yield _rule(table, INBOUND, TCP, _dport(port), target=RETURN)
    for ports in [()] if everything else [(_dport(port),) for port in settings.inbound_ports]:
        if settings.tproxy:
            # A connection that goes to an existing socket of the proxy must not be sent to its listener again.
            yield _mangle(INBOUND, TCP, *ports, ESTABLISHED, target=_jump(DIVERT))
            yield _mangle(INBOUND, TCP, *ports, target=_jump(TPROXY))
        else:
            yield _nat(INBOUND, TCP, *ports, target=_jump(IN_REDIRECT))


def _owners(settings: Settings) -> list[Owner]:
    """Every identity of the proxy: uids first, as Istio."""
    uids: list[Owner] = [("uid", str(uid)) for uid in settings.proxy_uids]
    gids: list[Owner] = [("gid", str(gid)) for gid in settings.proxy_gids]
    return uids + gids


def _owner(settings: Settings, owner: Owner) -> Iterator[Rule]:
    """The three rules of one identity of the proxy: its self-calls, everybody else's on lo, everything else of its."""
    kind, number = owner
    proxy, others = Match(kind, number), Match(kind, number, negated=True)
    tunnel = str(settings.inbound_tunnel_port)
    # The proxy calling its own pod by its address is inbound traffic; by the tunnel port it is already HBONE, and its
    # own DNS over TCP must reach the resolver. (Istio exempts DNS for uids only.)
    if settings.captures_dns and kind == "uid":
        other_ports = Match("destination-ports", f"{DNS_PORT},{tunnel}", negated=True)
    else:
        other_ports = Match("destination-port", tunnel, negated=True)
    for version in VERSIONS:
        elsewhere = Match("destination", settings.loopback(version), negated=True)
        target = _jump(IN_REDIRECT)
        yield _nat(OUTPUT, LO_OUT, elsewhere, TCP, other_ports, proxy, target=target, version=version)
    # An application calling its own pod stays uncaptured, unless a captured range is itself a loopback address.
    if not any(cidr.is_loopback for cidr in settings.outbound_ranges or ()):
        if settings.captures_dns:  # a resolver may listen on lo
            yield _nat(OUTPUT, LO_OUT, TCP, Match("destination-port", DNS_PORT, negated=True), others, target=RETURN)
        else:
            yield _nat(OUTPUT, LO_OUT, others, target=RETURN)
    yield _nat(OUTPUT, proxy, target=RETURN)


def _owner_groups(settings: Settings) -> Iterator[Rule]:
    if settings.owner_groups is None:
        for group in settings.owner_groups_exclude:
            yield _nat(OUTPUT, Match("gid", str(group)), target=RETURN)
    else:
        outsiders = (Match("gid", str(group), negated=True) for group in settings.owner_groups)
        yield _nat(OUTPUT, *outsiders, target=RETURN)


def _dns(settings: Settings) -> Iterator[Rule]:
    servers = settings.dns_servers
    yield _raw("OUTPUT", target=_jump(OUTPUT_DNS))
    for version in VERSIONS:
        if settings.capture_all_dns or _of(version, servers):
            yield _nat(OUTPUT, target=_jump(OUTPUT_DNS), version=version)
    capture = Target("redirect", DNS_CAPTURE_PORT)
    if settings.capture_all_dns:
        for protocol in (TCP, UDP):
            yield _nat(OUTPUT_DNS, protocol, _dport(DNS_PORT), target=capture)
    else:
        for protocol in (TCP, UDP):
            for version, server in _ordered(servers):
                to_server = Match("destination", server)
                yield _nat(OUTPUT_DNS, protocol, _dport(DNS_PORT), to_server, target=capture, version=version)
    # Zones keep the two halves apart: without them the redirected query and the proxy's own look like one connection.
    of_proxy, of_application = Target("zone", ZONE_OF_PROXY), Target("zone", ZONE_OF_APPLICATION)
    sport = Match("source-port", DNS_PORT)
    for kind, number in _owners(settings):
        proxy = Match(kind, number)
        yield _raw(OUTPUT_DNS, UDP, _dport(DNS_PORT), proxy, target=of_proxy)
        yield _raw(OUTPUT_DNS, UDP, Match("source-port", DNS_CAPTURE_PORT), proxy, target=of_application)
    if settings.capture_all_dns:
        yield _raw("PREROUTING", target=_jump(INBOUND))
        yield _raw(OUTPUT_DNS, UDP, _dport(DNS_PORT), target=of_application)
        yield _raw(INBOUND, UDP, sport, target=of_proxy)
        return
    for version in VERSIONS:
        if _of(version, servers):
            yield _raw("PREROUTING", target=_jump(INBOUND), version=version)
    for version, server in _ordered(servers):
        to_server, from_server = Match("destination", server), Match("source", server)
        yield _raw(OUTPUT_DNS, UDP, _dport(DNS_PORT), to_server, target=of_application, version=version)
        yield _raw(INBOUND, UDP, sport, from_server, target=of_proxy, version=version)


def _outbound_ranges(settings: Settings) -> Iterator[Rule]:
    if settings.outbound_ranges is None:
        yield _nat(OUTPUT, target=_jump(REDIRECT))
        for interface in settings.virtual_interfaces:
            yield _nat("PREROUTING", Match("in-interface", interface), target=_jump(REDIRECT), position=1)
        return
    for cidr in _by_version(settings.outbound_ranges):
        to_range = Match("destination", cidr.text)
        for interface in settings.virtual_interfaces:
            virtual = Match("in-interface", interface)
            target = _jump(REDIRECT)
            yield _nat("PREROUTING", virtual, to_range, target=target, position=1, version=cidr.version)
        yield _nat(OUTPUT, to_range, target=_jump(REDIRECT), version=cidr.version)


def _tproxy_tail(settings: Settings) -> Iterator[Rule]:
    """Marks: the configured one is on what the proxy sends with the client's address, and on the replies to it; the
    fixed one is on the proxy's calls to its own pod, the only traffic of lo that is captured."""
    mark, self_call = str(settings.tproxy_mark), str(SELF_CALL_MARK)
    marked = Match("mark", mark)
    yield _mangle("PREROUTING", TCP, marked, target=Target("save-mark"))
    yield _mangle("OUTPUT", TCP, LO_OUT, marked, target=RETURN)
    for kind, number in _owners(settings):
        for version in VERSIONS:
            elsewhere = Match("destination", settings.loopback(version), negated=True)
            proxy = Match(kind, number)
            yield _mangle("OUTPUT", elsewhere, TCP, LO_OUT, proxy, target=Target("mark", self_call), version=version)
    yield _mangle("OUTPUT", TCP, Match("connmark", mark), target=Target("restore-mark"))
    yield _mangle(INBOUND, TCP, marked, target=RETURN, position=1)
    for version, address in PASSTHROUGH.items():
        yield _mangle(INBOUND, TCP, Match("source", address), LO_IN, target=RETURN, position=2, version=version)
    not_self_call = Match("mark", self_call, negated=True)
    yield _mangle(INBOUND, TCP, LO_IN, not_self_call, target=RETURN, position=3)


def _by_version(cidrs: Sequence[Cidr]) -> list[Cidr]:
    return sorted(cidrs, key=lambda cidr: cidr.version)


def _of(version: Version, servers: Sequence[IPAddress]) -> list[IPAddress]:
    return [server for server in servers if server.version == version]


def _ordered(servers: Sequence[IPAddress]) -> list[tuple[Version, str]]:
    return [(version, f"{s}/{s.max_prefixlen}") for version in VERSIONS for s in _of(version, servers)]


def _rule(
    table: str,
    chain: str,
    *matches: Match,
    target: Target,
    position: int | None = None,
    version: Version | None = None,
) -> Rule:
    return Rule(table, chain, matches, target, position, version)


def _nat(
    chain: str, *matches: Match, target: Target, position: int | None = None, version: Version | None = None
) -> Rule:
    return Rule("nat", chain, matches, target, position, version)


def _mangle(
    chain: str, *matches: Match, target: Target, position: int | None = None, version: Version | None = None
) -> Rule:
    return Rule("mangle", chain, matches, target, position, version)


def _raw(chain: str, *matches: Match, target: Target, version: Version | None = None) -> Rule:
    return Rule("raw", chain, matches, target, None, version)


def _dport(port: str) -> Match:
    return Match("destination-port", port)


def _jump(chain: str) -> Target:
    return Target("jump", chain)
