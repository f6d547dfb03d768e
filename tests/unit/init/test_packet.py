"""Where packets go by the rules of the recipe: the measured outcomes and traps of Istio's program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address

import pytest

from init.packet import Packet
from init.settings import Settings
from init.walk import walk
from tests.unit.init.packet_world import CAPTURE, HOST, POD, inbound, outbound, rules_of, said, settings

DNS = (*CAPTURE, "--redirect-dns")
DNS_53 = "nameserver 127.0.0.53\nnameserver ::127.0.0.53\n"

# Flags, then packets and where each goes. Facts 7 and traps; the numbers are those of Istio's measured outcomes.
OUTBOUND: list[tuple[Sequence[str], dict[str, str], str, list[tuple[Packet, str]]]] = [
    (
        CAPTURE,
        {},
        "",
        [
            (outbound("1.2.3.4:8080"), "15001"),
            (outbound("10.9.9.9:8080"), "app 8080"),
            (outbound("127.0.0.1:8080"), "app 8080"),
            (outbound("127.0.0.2:8080"), "app 8080"),
            (outbound("10.9.9.9:8080", uid=1337), "15006"),
            (outbound("10.9.9.9:15008", uid=1337), "app 15008"),
            (outbound("127.0.0.1:8080", uid=1337), "app 8080"),
            (outbound("1.2.3.4:8080", uid=1337), "leaves"),
            (outbound("1.2.3.4:8080", gid=1337), "leaves"),
            (outbound("10.9.9.9:8080", gid=1337), "app 8080"),
            # T14: passthrough to the application, from the address that says so
            (outbound("10.9.9.9:8080", uid=1337, source=ip_address("127.0.0.6")), "app 8080"),
            # T13: UDP is never redirected but for DNS
            (outbound("1.2.3.4:8080", udp=True), "leaves"),
            (outbound("1.2.3.4:53", udp=True), "leaves"),
            (outbound("[fd01::1]:8080"), "15001"),
            (outbound("[fd00::9]:8080"), "app 8080"),
            (outbound("[::1]:8080"), "app 8080"),
            (outbound("[fd00::9]:8080", uid=1337), "15006"),
            (outbound("[fd01::1]:8080", uid=1337), "leaves"),
            (outbound("[fd00::9]:8080", uid=1337, source=ip_address("::6")), "app 8080"),
        ],
    ),
    (
        (*CAPTURE[2:], "-u", "3,4", "-g", "5"),
        {},
        "",
        [  # T9: a second uid is shadowed by the first
            (outbound("10.9.9.9:8080", uid=3), "15006"),
            (outbound("10.9.9.9:8080", uid=4), "app 8080"),
            (outbound("10.9.9.9:8080", uid=1000, gid=5), "app 8080"),
            (outbound("1.2.3.4:8080", uid=4), "leaves"),
            (outbound("1.2.3.4:8080", uid=1000, gid=5), "leaves"),
        ],
    ),
    (
        ("-u", "1337", "-b", "*", "-x", "1.2.3.0/24", "-q", "8080", "-i", ""),
        {},
        "",
        [  # T1: -x before -q before -i
            (outbound("1.2.3.4:8080"), "leaves"),
            (outbound("1.2.4.4:8080"), "15001"),
            (outbound("1.2.4.4:8081"), "leaves"),
        ],
    ),
    (
        (*CAPTURE, "-x", "1.2.3.0/24", "-o", "8080,9000:9010", "-q", "8080,9001"),
        {},
        "",
        [  # T1: -o before everything; T2: and the self-call of that port goes straight to the application
            (outbound("1.2.4.4:8080"), "leaves"),
            (outbound("1.2.4.4:9001"), "leaves"),
            (outbound("1.2.4.4:9011"), "15001"),
            (outbound("1.2.3.4:9011"), "leaves"),
            (outbound("10.9.9.9:8080", uid=1337), "app 8080"),
            (outbound("10.9.9.9:8081", uid=1337), "15006"),
        ],
    ),
    (
        CAPTURE,
        {"ISTIO_OUTBOUND_OWNER_GROUPS": "2000,2001"},
        "",
        [
            (outbound("1.2.3.4:8080", gid=1000), "leaves"),
            (outbound("1.2.3.4:8080", gid=2001), "15001"),
            (outbound("1.2.3.4:8080", gid=2000), "15001"),
        ],
    ),
    (
        DNS,
        {"ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE": "888"},
        DNS_53,
        [
            (outbound("1.2.3.4:8080", gid=888), "leaves"),
            (outbound("127.0.0.53:53", gid=888, udp=True), "app 53"),
            (outbound("1.2.3.4:8080"), "15001"),
        ],
    ),
    (
        DNS,
        {},
        DNS_53,
        [
            (outbound("127.0.0.53:53", udp=True), "15053"),
            (outbound("127.0.0.53:53"), "15053"),
            (outbound("1.1.1.1:53", udp=True), "leaves"),
            (outbound("1.1.1.1:53"), "15001"),
            (outbound("127.0.0.53:53", uid=1337, udp=True), "app 53"),
            (outbound("[::127.0.0.53]:53", udp=True), "15053"),
            # T10: rule 12b spares TCP only, so UDP of an application on lo reaches the rules behind it
            (outbound("10.9.9.9:8080"), "app 8080"),
            (outbound("10.9.9.9:8080", udp=True), "app 8080"),
            # T11: the proxy's own DNS over TCP is exempt by uid, not by gid
            (outbound("10.9.9.9:53", uid=1337, gid=1), "app 53"),
            (outbound("10.9.9.9:53", uid=1, gid=1337), "15006"),
        ],
    ),
    (
        (*DNS, "-o", "53"),
        {},
        DNS_53,
        [  # T2: excluding port 53 switches DNS capture off
            (outbound("127.0.0.53:53", udp=True), "app 53"),
            (outbound("127.0.0.53:53"), "app 53"),
        ],
    ),
    (
        (*DNS, "--capture-all-dns"),
        {},
        "",
        [
            (outbound("1.1.1.1:53", udp=True), "15053"),
            (outbound("127.0.0.1:53", udp=True), "15053"),
            (outbound("10.9.9.9:53", udp=True), "15053"),
            (outbound("[fd01::1]:53", udp=True), "15053"),
            (outbound("1.1.1.1:53", uid=1337, udp=True), "leaves"),
        ],
    ),
    (
        ("-u", "1337", "-b", "*", "-i", "127.1.0.0/16,10.0.0.0/8"),
        {},
        "",
        [  # T12: one loopback range uncovers what applications send through lo
            (outbound("127.1.2.3:8080"), "15001"),
            (outbound("127.0.0.1:8080"), "app 8080"),
            (outbound("10.9.9.9:8080"), "15001"),
            (outbound("[fd00::9]:8080"), "app 8080"),
        ],
    ),
    (
        (*CAPTURE, "-c", "net1"),
        {},
        "",
        [
            (outbound("1.2.3.4:8080", interface="net1"), "leaves"),
            (outbound("1.2.3.4:8080", interface="net10"), "15001"),
            (inbound(8080, interface="net1"), "app 8080"),
            (inbound(8080, interface="net10"), "15006"),
        ],
    ),
    (("-u", "1337"), {}, "", [(outbound("1.2.3.4:8080"), "leaves"), (inbound(8080), "app 8080")]),  # T4
    (
        (*CAPTURE, "-d", "15090,15021"),
        {},
        "",
        [  # T6: the tunnel port comes first
            (inbound(8080), "15006"),
            (inbound(15021), "app 15021"),
            (inbound(15008), "app 15008"),
            (inbound(8080, protocol="udp"), "app 8080"),
            (inbound(8080, to=POD[6]), "15006"),
            (inbound(8080, to="10.7.7.7"), "15006"),
        ],
    ),
    (
        ("-u", "1337", "-i", "*", "-b", "8080,9090", "-d", "8080"),
        {},
        "",
        [(inbound(8080), "15006"), (inbound(9090), "15006"), (inbound(22), "app 22")],  # T5: -d without -b '*'
    ),
    (
        (*CAPTURE, "-k", "vm0,vm1", "-x", "1.2.3.0/24", "-q", "99"),
        {},
        "",
        [  # T15: traffic of virtual machines is outbound whatever -x and -q say
            (inbound(80, to="1.2.3.4", interface="vm0"), "15001"),
            (inbound(80, to="8.8.8.8", interface="vm1"), "15001"),
            (inbound(80, interface="eth0"), "15006"),
            (inbound(80, to="8.8.8.8", interface="vm1", protocol="udp"), "leaves"),
        ],
    ),
    (
        ("-u", "1337", "-b", "*", "-k", "vm0,vm1", "-i", "8.0.0.0/8"),
        {},
        "",
        [
            (inbound(80, to="8.8.8.8", interface="vm1"), "15001"),
            (inbound(80, to="9.9.9.9", interface="vm1"), "leaves"),  # RETURN comes before the inbound jump
        ],
    ),
    (
        (*CAPTURE, "--drop-invalid", "-c", "net1"),
        {},
        "",
        [  # T16: without TPROXY an excluded interface is not spared
            (inbound(80, state="INVALID"), "dropped"),
            (inbound(80, state="INVALID", interface="net1"), "dropped"),
            (inbound(80), "15006"),
        ],
    ),
    (
        (*CAPTURE, "-m", "TPROXY", "--drop-invalid", "-c", "net1", "-d", "15021"),
        {},
        "",
        [
            (inbound(80, state="INVALID"), "dropped"),
            (inbound(80, state="INVALID", interface="net1"), "app 80"),
            (inbound(80, interface="net1"), "app 80"),
            (inbound(80), "tproxy 15006 mark 1337"),
            (inbound(80, to=POD[6]), "tproxy 15006 mark 1337"),
            (inbound(15008), "tproxy 15006 mark 1337"),  # T6: no exemption of the tunnel in mangle
            (inbound(15021), "app 15021"),
            (inbound(80, mark=1337), "app 80"),
            (inbound(80, state="ESTABLISHED"), "app 80"),
            (outbound("1.2.3.4:8080"), "15001"),
            (outbound("10.9.9.9:8080"), "app 8080"),
            (outbound("10.9.9.9:8080", uid=1337), "15006"),
            (outbound("10.9.9.9:15008", uid=1337), "tproxy 15006 mark 1337"),  # marked 1338 on its way out
            (outbound("10.9.9.9:8080", uid=1337, source=ip_address("127.0.0.6")), "app 8080"),
            (outbound("10.9.9.9:8080", uid=1337, mark=1337), "15006"),
            (outbound("127.0.0.1:8080", uid=1337), "app 8080"),
        ],
    ),
    (
        (*CAPTURE, "-m", "TPROXY", "-k", "vm0"),
        {},
        "",
        # T15: mangle takes it for inbound before nat is asked
        [(inbound(80, interface="vm0"), "tproxy 15006 mark 1337")],
    ),
]
CASES = [
    pytest.param(settings(*argv, env=env, resolv_conf=resolv_conf), packet, expected, id=f"{number}-{at}")
    for number, (argv, env, resolv_conf, packets) in enumerate(OUTBOUND)
    for at, (packet, expected) in enumerate(packets)
]


@pytest.mark.parametrize(("made", "packet", "expected"), CASES)
def test_where_packets_go(made: Settings, packet: Packet, expected: str) -> None:
    outcome = walk(packet, rules_of(made, packet.version), HOST)
    assert said(outcome) == expected, [f"{step.place}: {step.effect}" for step in outcome.steps]
    assert not outcome.uncertain


def test_owner_groups_of_nobody_exempt_everybody() -> None:
    """T3: refused by settings, but a kernel may hold it."""
    made = replace(settings(*DNS, resolv_conf=DNS_53), owner_groups=())
    for packet in (outbound("1.2.3.4:8080"), outbound("127.0.0.53:53", udp=True)):
        outcome = walk(packet, rules_of(made, 4), HOST)
        assert said(outcome) in ("leaves", "app 53")
        assert outcome.decided_by is not None and outcome.decided_by.rule is not None
        assert outcome.decided_by.rule.matches == ()


def test_what_decides_and_what_is_on_the_way() -> None:
    made = settings(*DNS, "-m", "TPROXY", resolv_conf=DNS_53)

    def decision(packet: Packet) -> tuple[str, str, int, bool]:
        outcome = walk(packet, rules_of(made, packet.version), HOST)
        assert outcome.decided_by is not None
        return str(outcome.decided_by), outcome.zone, outcome.mark, outcome.captured

    assert decision(outbound("1.2.3.4:80")) == ("nat ISTIO_REDIRECT rule 1", "0", 0, True)
    # zone 2 is the application's, zone 1 the proxy's, and the first that is given stays
    assert decision(outbound("127.0.0.53:53", udp=True)) == ("nat ISTIO_OUTPUT_DNS rule 2", "2", 0, True)
    assert decision(outbound("127.0.0.53:53", uid=1337, udp=True)) == ("nat ISTIO_OUTPUT rule 4", "1", 0, False)
    assert decision(outbound("10.9.9.9:80", uid=1337)) == ("nat ISTIO_IN_REDIRECT rule 1", "0", 1338, True)
    assert decision(inbound(80)) == ("mangle ISTIO_TPROXY rule 1", "0", 1337, True)
    assert decision(inbound(80, state="ESTABLISHED")) == ("mangle ISTIO_DIVERT rule 2", "0", 1337, False)
    reply = inbound(40000, protocol="udp", source_port=53, source=ip_address("127.0.0.53"), state="ESTABLISHED")
    assert walk(reply, rules_of(made, 4), HOST).zone == "1"


def test_replies_of_the_application_get_the_mark_of_their_connection() -> None:
    """In TPROXY mode they are for the client's address, and only the mark keeps them in the pod."""
    made = settings(*CAPTURE, "-m", "TPROXY")
    reply = outbound("10.1.1.1:40000", source_port=8080, state="ESTABLISHED", connection_mark=1337)
    kept = walk(reply, rules_of(made, 4), replace(HOST, local_marks=[1337]))
    lost = walk(reply, rules_of(made, 4), HOST)
    assert (kept.verdict, kept.mark) == ("delivered", 1337)
    assert (lost.verdict, lost.mark) == ("leaves", 1337)


def test_a_policy_rule_is_what_keeps_tproxied_traffic_of_virtual_machines_in_the_pod() -> None:
    made = settings("-u", "1337", "-b", "*", "-i", "9.0.0.0/8", "-m", "TPROXY", "-k", "vm0")
    packet = inbound(80, to="8.8.8.8", interface="vm0")
    kept = walk(packet, rules_of(made, 4), replace(HOST, local_marks=[1337]))
    lost = walk(packet, rules_of(made, 4), HOST)
    assert (said(kept), str(kept.address)) == ("tproxy 15006 mark 1337", "8.8.8.8")
    assert (said(lost), str(lost.decided_by)) == ("leaves", "mangle ISTIO_TPROXY rule 1")
