"""`istio-iptables explain` against the kernel: what it says a packet will do is what a real packet does."""

from __future__ import annotations

import json
import os
import select
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

import pytest

from init import nft_text
from init.explain import run
from init.flags import resolve
from init.iptables_text import document, installation
from init.recipe import make_plan
from init.rules import TABLES
from init.settings import Machine, load

from .capture_world import APPLICATION, DNS, DNS_PROXY, OTHER, POD, PROXY_IN, PROXY_OUT, SECOND, SERVER, TUNNEL, World
from .netns import DEADLINE, Namespace, require, require_python

pytestmark = pytest.mark.netns

CAPTURE = ("-u", "1337", "-b", "*", "-i", "*", "--dual-stack")
RESOLVERS = f"nameserver {SERVER[4]}\nnameserver {SERVER[6]}\n"
VIRTUAL = "10.9.9.77"  # translated to the pod itself by a foreign rule


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    require()
    require_python(1000)
    with Namespace() as pod, Namespace() as server, World(pod, server) as world:
        for family in ("-4", "-6"):  # what TPROXY needs; they decide nothing about packets without the mark
            pod.ip(family, "rule", "add", "fwmark", "1337", "lookup", "133")
            pod.ip(family, "route", "add", "local", "default", "dev", "lo", "table", "133")
        yield world


def restore(pod: Namespace, text: str, program: str = "iptables-nft") -> None:
    done = pod.run([f"{program}-restore", "--noflush"], stdin=text)
    assert done.returncode == 0, done.stderr


def nft(pod: Namespace, text: str) -> None:
    done = pod.run(["nft", "-f", "-"], stdin=text)
    assert done.returncode == 0, done.stderr


def capture(pod: Namespace, *argv: str, store: str = "iptables-nft") -> None:
    """Install the rules that the flags ask for."""
    addresses = [ip_address(POD[4]), ip_address(POD[6])]
    machine = Machine(lambda _: None, lambda _: None, lambda: addresses, lambda: RESOLVERS)
    plan = make_plan(load(resolve((*CAPTURE, *argv), {}), machine))
    if store == "nftables":
        nft(pod, nft_text.script(plan))
        return
    restore(pod, document(installation(plan.of(4))), store)
    restore(pod, document(installation(plan.of(6))), store.replace("ip", "ip6", 1))


def flush(pod: Namespace) -> None:
    empty = "".join(f"*{table}\nCOMMIT\n" for table in ("filter", "mangle", "nat", "raw"))
    for program in ("iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"):
        done = pod.run([f"{program}-restore"], stdin=empty)
        assert done.returncode == 0, done.stderr
    nft(pod, nft_text.document(nft_text.removal(TABLES)))


@dataclass(frozen=True)
class Sent:
    """One packet, and the listener that gets it; None if it is refused."""

    arrives: str | None
    to: str
    port: int = APPLICATION
    who: tuple[int, int] = (1000, 1000)
    udp: bool = False
    outside: bool = False
    source: str = ""
    mark: int = 0

    @property
    def question(self) -> list[str]:
        """What `explain` is asked about it."""
        address = f"[{self.to}]" if ":" in self.to else self.to
        if self.outside:
            argv = [
                "--inbound",
                "--to",
                self.to,
                "--port",
                str(self.port),
                "--from",
                SERVER[6 if ":" in self.to else 4],
            ]
        else:
            argv = ["--uid", str(self.who[0]), "--gid", str(self.who[1]), "--to", f"{address}:{self.port}"]
        argv += ["--from", self.source] if self.source else []
        return argv + (["--mark", str(self.mark)] if self.mark else []) + (["--udp"] if self.udp else [])


FOREIGN = f"""*filter
:INPUT ACCEPT
:REFUSE -
-A INPUT -i lo -p tcp -m tcp --dport {PROXY_OUT} -s {OTHER[4]} -j DROP
-A OUTPUT -o eth0 -d 127.0.0.1/32 -p tcp -m owner --uid-owner 2000 -g REFUSE
-A REFUSE -p udp -j ACCEPT
-A REFUSE -p tcp -m comment --comment "not this one" -j REJECT
COMMIT
*nat
:ASIDE -
-A PREROUTING -p tcp -m tcp --dport {SECOND} -m comment --comment "a 'quoted' one" -j REDIRECT --to-ports {APPLICATION}
-A PREROUTING -i eth+ -p tcp -m tcp --dport 7777 -j REDIRECT --to-ports {PROXY_IN}
-A OUTPUT -j LOG --log-prefix "never seen "
-A OUTPUT -p tcp -j ASIDE
-A OUTPUT -d {OTHER[4]}/32 -p tcp -m multiport --dports {SECOND},9000:9010 -j ACCEPT
-A OUTPUT -d {VIRTUAL}/32 -p tcp -j DNAT --to-destination {POD[4]}:{APPLICATION}
-A ASIDE -j RETURN
-A ASIDE -j ACCEPT
COMMIT
"""

# Flags, foreign rules, and packets. The first table is facts section 7 with foreign rules in the way.
SETUPS: dict[str, tuple[Sequence[str], str, list[Sent]]] = {
    "redirect": (
        (),
        FOREIGN,
        [
            Sent("outbound", OTHER[4]),
            Sent("application", POD[4]),
            Sent("application", "127.0.0.1"),
            Sent("application", "127.0.0.2"),
            Sent("inbound", POD[4], who=(1337, 1337)),
            Sent("tunnel", POD[4], TUNNEL, who=(1337, 1337)),
            Sent("application", POD[4], who=(1337, 1337), source="127.0.0.6"),
            Sent("server", OTHER[4], who=(1337, 1337)),
            Sent("server", OTHER[4], who=(1000, 1337)),
            Sent("application", POD[4], who=(1000, 1337)),
            Sent("resolver", SERVER[4], DNS, udp=True),
            Sent("inbound", POD[4], outside=True),
            Sent("tunnel", POD[4], TUNNEL, outside=True),
            Sent("outbound", OTHER[6]),
            Sent("application", POD[6]),
            Sent("inbound", POD[6], who=(1337, 1337)),
            Sent("server", OTHER[6], who=(1337, 1337)),
            Sent("inbound", POD[6], outside=True),
            # the foreign rules
            Sent("server second", OTHER[4], SECOND),
            Sent("outbound", SERVER[4], SECOND),
            Sent("application", POD[4], SECOND, outside=True),
            Sent("second", POD[4], SECOND),  # nat PREROUTING is not asked on lo
            Sent("inbound", POD[4], 7777, outside=True),
            Sent("application", VIRTUAL),
            Sent(None, OTHER[4], who=(2000, 2000)),  # the filter sees the interface of the first route
            Sent("application", "127.0.0.1", who=(2000, 2000)),
        ],
    ),
    "tproxy": (
        ("-m", "TPROXY", "-d", f"{SECOND}"),
        "",
        [
            Sent("inbound", POD[4], outside=True),
            Sent("inbound", POD[6], outside=True),
            Sent("second", POD[4], SECOND, outside=True),
            Sent("inbound", POD[4], TUNNEL, outside=True),  # no exemption of the tunnel in mangle
            Sent("outbound", OTHER[4]),
            Sent("application", POD[4]),
            Sent("inbound", POD[4], who=(1337, 1337)),
            Sent("inbound", POD[4], TUNNEL, who=(1337, 1337)),  # marked as a self-call, then TPROXY
            Sent("application", POD[4], who=(1337, 1337), source="127.0.0.6"),
            Sent("application", "127.0.0.1", who=(1337, 1337)),
        ],
    ),
    "dns": (
        ("--redirect-dns",),
        "",
        [
            Sent("dns proxy", SERVER[4], DNS, udp=True),
            Sent("dns proxy", SERVER[6], DNS, udp=True),
            Sent("dns proxy tcp", SERVER[4], DNS),
            Sent("other resolver", OTHER[4], DNS, udp=True),
            Sent("outbound", OTHER[4], DNS),
            Sent("resolver", SERVER[4], DNS, who=(1337, 1337), udp=True),
        ],
    ),
    "all dns": (
        ("--redirect-dns", "--capture-all-dns"),
        "",
        [
            Sent("dns proxy", OTHER[4], DNS, udp=True),
            Sent("dns proxy", "127.0.0.1", DNS, udp=True),
            Sent("dns proxy", POD[4], DNS, udp=True),
            Sent("dns proxy", OTHER[6], DNS, udp=True),
            Sent("other resolver", OTHER[4], DNS, who=(1337, 1337), udp=True),
        ],
    ),
    "ports before ranges": (
        ("-i", "", "-x", f"{OTHER[4]}/32", "-q", f"{APPLICATION}", "-o", "9999"),
        "",
        [
            Sent("server", OTHER[4]),
            Sent("outbound", SERVER[4]),
            Sent("server second", SERVER[4], SECOND),
            Sent("second", POD[4], SECOND, who=(1337, 1337)),  # an excluded port is no self-call
        ],
    ),
}


def explained(world: World, capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    with world.pod.entered():
        code = run([*argv, "--output", "json"], {})
    said = capsys.readouterr()
    assert code == 0, said.err
    answer: dict[str, Any] = json.loads(said.out)
    return answer


def arrives(world: World, packet: Sent) -> str | None:
    """The listener that a real packet reaches."""
    if packet.udp:
        return datagram_arrives(world, packet)
    arrival = world.sends(
        packet.to, packet.port, who=packet.who, outside=packet.outside, source=packet.source, mark=packet.mark
    )
    return arrival.name if arrival else None


def datagram_arrives(world: World, packet: Sent) -> str:
    """The same for a datagram, which nobody needs to answer."""
    uid, gid = packet.who
    with world.pod.entered():
        os.setegid(gid)
        os.seteuid(uid)
        try:
            sock = socket.socket(socket.AF_INET6 if ":" in packet.to else socket.AF_INET, socket.SOCK_DGRAM)
        finally:
            os.seteuid(0)
            os.setegid(0)
    listeners = [listener for listener in world.listeners if listener.type == socket.SOCK_DGRAM]
    with sock:
        sock.sendto(b"?", (packet.to, packet.port))
        ready, _, _ = select.select(listeners, [], [], DEADLINE)
        assert len(ready) == 1, packet
        ready[0].recvfrom(64)
        return world.listeners[ready[0]]


def listener(answer: dict[str, Any], packet: Sent) -> str | None:
    """The listener of `World` that an answer means."""
    port, verdict = answer["port"], answer["verdict"]
    if verdict == "dropped":
        return None
    if verdict == "leaves":
        if packet.udp:
            return "resolver" if answer["address"] in SERVER.values() else "other resolver"
        return {APPLICATION: "server", SECOND: "server second", DNS: "server dns"}[port]
    dns = "dns proxy" if packet.udp else "dns proxy tcp"
    ports = {APPLICATION: "application", SECOND: "second", TUNNEL: "tunnel", PROXY_OUT: "outbound"}
    return {**ports, PROXY_IN: "inbound", DNS_PROXY: dns}[port]


# Foreign rules are iptables': in two stores at once the kernel would ask nft's tables as if there were none.
RUNS = [(name, "iptables-nft") for name in SETUPS] + [("redirect", "iptables-legacy"), ("dns", "iptables-legacy")]
RUNS += [(name, "nftables") for name, (_, foreign, _) in SETUPS.items() if not foreign]


@pytest.mark.parametrize(("name", "store"), RUNS)
def test_explanations_are_what_happens(name: str, store: str, world: World, capsys: pytest.CaptureFixture[str]) -> None:
    argv, foreign, packets = SETUPS[name]
    try:
        if foreign:
            restore(world.pod, foreign, store)
        capture(world.pod, *argv, store=store)
        for packet in packets:
            answer = explained(world, capsys, *packet.question)
            really = arrives(world, packet)
            assert really == packet.arrives, (packet, answer["conclusion"])
            assert listener(answer, packet) == really, (packet, answer)
            assert (answer["stores"], answer["uncertain"], answer["missing"]) == ([store], [], []), answer
    finally:
        flush(world.pod)


def test_rules_of_two_stores(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """ACCEPT ends the nat table of one store; the other is asked all the same, whichever comes first."""
    packet = Sent("outbound", OTHER[4])
    try:
        capture(world.pod)
        restore(world.pod, f"*nat\n-A OUTPUT -d {OTHER[4]}/32 -p tcp -j ACCEPT\nCOMMIT\n", "iptables-legacy")
        answer = explained(world, capsys, *packet.question)
        arrival = world.sends(packet.to, packet.port)
        assert arrival is not None and arrival.name == packet.arrives
        assert sorted(answer["stores"]) == ["iptables-legacy", "iptables-nft"]
        assert answer["conclusion"] == ("captured: redirected to port 15001 (outbound) by nat ISTIO_REDIRECT rule 1")
        assert answer["uncertain"] == []
        # Two redirects: the kernel asks the younger hook first and does not tell which that is.
        restore(world.pod, f"*nat\n-I OUTPUT -p tcp -j REDIRECT --to-ports {SECOND}\nCOMMIT\n", "iptables-legacy")
        (doubt,) = explained(world, capsys, *packet.question)["uncertain"]
        assert doubt.startswith("of tables with one priority the younger is asked first; in another order: ")
    finally:
        flush(world.pod)


def test_what_stands_in_the_way_is_said(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    question = Sent(None, OTHER[4]).question
    nothing = "not captured: no rule of this program is in the kernel"
    assert explained(world, capsys, *question)["conclusion"] == nothing
    try:
        restore(world.pod, "*nat\n-A OUTPUT -p tcp -m addrtype ! --dst-type LOCAL -j ACCEPT\nCOMMIT\n")
        capture(world.pod, "-m", "TPROXY", "-t", "1234")
        answer = explained(world, capsys, *question)
        assert answer["verdict"] == "redirected"
        (doubt,) = answer["uncertain"]
        assert doubt == (
            "nat OUTPUT rule 1 of iptables-nft (-p tcp -m addrtype ! --dst-type LOCAL -j ACCEPT) has a condition that "
            "cannot be judged here and is taken not to match"
        )
        (missing,) = explained(world, capsys, *Sent(None, POD[4], outside=True).question)["missing"]
        assert missing.startswith("no policy rule for mark 1234 leads to a table with the route `local default dev lo`")
    finally:
        flush(world.pod)


def test_the_command(world: World) -> None:
    """As it is called: text by default, one line for each step and the conclusion last."""
    try:
        capture(world.pod)
        done = world.pod.python("-m", "init", "explain", "--uid", "1000", "--to", f"{OTHER[4]}:80")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines() == [
            f"packet: tcp from {POD[4]} of uid 1000 gid 1000 to {OTHER[4]}:80, out by eth0",
            "nat OUTPUT rule 1: -j ISTIO_OUTPUT",
            "  nat ISTIO_OUTPUT rule 9: -j ISTIO_REDIRECT",
            "    nat ISTIO_REDIRECT rule 1: -p tcp -j REDIRECT --to-ports 15001",
            "nat PREROUTING: not asked: conntrack has this connection's translation",
            "-> captured: redirected to port 15001 (outbound) by nat ISTIO_REDIRECT rule 1",
        ]
        refused = world.pod.python("-m", "init", "explain", "--uid", "1000", "--to", "somewhere")
        assert refused.returncode == 255 and "--to: 'somewhere' is refused" in refused.stderr
        powerless = world.pod.python("-m", "init", "explain", "--inbound", "--port", "80", uid=1000)
        assert powerless.returncode == 1 and "run as root" in powerless.stderr
    finally:
        flush(world.pod)
