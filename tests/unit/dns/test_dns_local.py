"""Local answers: the query algorithm as cases, every reply read by dnslib and by dnspython."""

from __future__ import annotations

import re
from typing import Any

import dns.flags
import dns.rcode
import dns.rdatatype
import pytest
from dns_tables import RECORDED, answers, ask, external, kubernetes, query, read, table_of
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.dns.local import TTL, LocalAnswer, answer, corrected
from proxy.dns.message import name_to_wire, reply, type_number
from proxy.dns.name_table import parse_name_table, read_name_table
from proxy.dns.query import OUR_UDP, parse_query
from proxy.dns.table import compile_table

HEADLESS = [f"10.1.{n // 256}.{n % 256}" for n in range(1, 301)]
TABLE = table_of(
    kubernetes("web", "ns1", "10.0.0.1"),
    kubernetes("dual", "ns1", "10.0.0.2", "fd00::2"),
    kubernetes("six", "ns1", "fd00::3"),
    kubernetes("three", "ns1", "10.0.1.1", "10.0.1.2", "10.0.1.3"),
    kubernetes("many", "ns1", *HEADLESS),
    external("www.google.com", "1.1.1.1"),
    external("*.wildcard", "10.2.0.1"),
)
FQDN = "svc.cluster.local."

# (name, type) -> (code, answers, reason), None: upstream servers are asked
CASES: list[tuple[str, str, tuple[str, list[str], str] | None]] = [
    ("web.ns1.svc.cluster.local", "A", ("NOERROR", ["A 10.0.0.1"], f"host web.ns1.{FQDN[:-1]} (host)")),
    ("web.ns1", "A", ("NOERROR", ["A 10.0.0.1"], "(short name and namespace)")),
    ("WeB", "A", ("NOERROR", ["A 10.0.0.1"], "(short name)")),
    ("dual.ns1", "A", ("NOERROR", ["A 10.0.0.2"], "dual")),
    ("dual.ns1", "AAAA", ("NOERROR", ["AAAA fd00::2"], "dual")),
    # the CNAME first, then the addresses of its target
    ("www.google.com.ns1.svc.cluster.local", "A",
     ("NOERROR", ["CNAME www.google.com.", "www.google.com. A 1.1.1.1"], f"(host, search domain ns1.{FQDN})")),
    ("WWW.Google.com.CORP.example", "A",
     ("NOERROR", ["CNAME www.google.com.", "www.google.com. A 1.1.1.1"], "search domain corp.example.")),
    ("web.ns1.ns1.svc.cluster.local", "A", ("NOERROR", ["CNAME web.ns1.", "web.ns1. A 10.0.0.1"], "search domain")),
    # wildcards: the owner is the name asked for (trap 43)
    ("a.b.wildcard", "A", ("NOERROR", ["A 10.2.0.1"], "host *.wildcard (host, wildcard *.wildcard.)")),
    ("foo.wildcard.cluster.local", "A",
     ("NOERROR", ["CNAME foo.wildcard.", "foo.wildcard. A 10.2.0.1"], "wildcard *.wildcard.")),
    ("wildcard", "A", None),
    # another family: NOERROR, never NXDOMAIN (trap 41)
    ("web.ns1", "AAAA", ("NOERROR", [], "no AAAA record")),
    ("six.ns1", "A", ("NOERROR", [], "no A record")),
    ("www.google.com.ns1.svc.cluster.local", "AAAA", ("NOERROR", [], "no AAAA record")),
    ("foo.wildcard", "AAAA", ("NOERROR", [], "no AAAA record")),
    # other types of the cluster's names (trap 45)
    *((name, kind, ("NOERROR", [], f"no {kind} record"))
      for name in ("web.ns1", "web.ns1.svc.cluster.local", "web.ns1.cluster.local")
      for kind in ("MX", "TXT", "SRV", "SOA", "NS", "HTTPS", "SVCB", "PTR", "CAA", "TYPE1234")),
    # of other hosts only what leads to an address
    *((name, kind, ("NOERROR", [], f"no {kind} record"))
      for name in ("www.google.com", "x.wildcard", "x.wildcard.cluster.local") for kind in ("HTTPS", "SVCB")),
    *((name, kind, None) for name in ("www.google.com", "_sip._tcp.wildcard") for kind in ("MX", "TXT", "SRV", "SOA")),
    # CNAME and ANY (RFC 1034 section 3.6.2)
    ("web.ns1.cluster.local", "CNAME", ("NOERROR", ["CNAME web.ns1."], "search domain")),
    ("web.ns1", "CNAME", ("NOERROR", [], "no CNAME record")),
    ("dual.ns1", "ANY", ("NOERROR", ["A 10.0.0.2", "AAAA fd00::2"], "dual")),
    ("web.ns1.cluster.local", "ANY", ("NOERROR", ["CNAME web.ns1."], "search domain")),
    # reverse names
    ("1.0.0.10.in-addr.arpa", "PTR", ("NOERROR", [f"PTR web.ns1.{FQDN}"], f"address of web.ns1.{FQDN[:-1]}")),
    ("1.0.0.10.IN-ADDR.arpa", "ANY", ("NOERROR", [f"PTR web.ns1.{FQDN}"], "address of web")),
    ("1.0.0.10.in-addr.arpa", "A", ("NOERROR", [], "no A record")),
    ("2." + "0." * 29 + "d.f.ip6.arpa", "PTR", ("NOERROR", [f"PTR dual.ns1.{FQDN}"], "address of dual")),
    ("1.1.1.1.in-addr.arpa", "PTR", None),
    ("9.0.0.10.in-addr.arpa", "PTR", None),
    # not ours
    ("example.com", "A", None),
    ("svc.cluster.local", "A", None),
    (".", "NS", None),
]


@pytest.mark.parametrize(("name", "kind", "expected"), CASES, ids=[f"{name} {kind}" for name, kind, _ in CASES])
def test_cases(name: str, kind: str, expected: tuple[str, list[str], str] | None) -> None:
    found = ask(TABLE, name, kind)
    if expected is None:
        assert found is None
    else:
        assert found is not None and found[:2] == expected[:2]
        assert found[2].startswith("name table: ") and expected[2] in found[2]


# --- the real thing ---------------------------------------------------------------------------------------------------


def test_everything_that_istiod_sent() -> None:
    """Each host by each of its names and with a search domain, other types too, and back from its addresses."""
    file = RECORDED / "plain-productpage-v1/name-table.json"
    if not file.exists():
        pytest.skip(f"no recorded data in {RECORDED}")
    search = ("bookinfo.svc.cluster.local", "svc.cluster.local", "cluster.local")
    names = parse_name_table(file.read_bytes())
    table = compile_table(names, "bookinfo.svc.cluster.local", "bookinfo", search)
    assert len(names.hosts) == 12 and table.warnings == ()
    for host in names.hosts:
        expected = sorted(".".join(map(str, host.v4[at:at + 4])) for at in range(0, len(host.v4), 4))
        asked = [host.name]
        if host.registry == "Kubernetes":
            short, namespace = host.shortname, host.namespace
            asked += [f"{short}.{namespace}", f"{short}.{namespace}.svc", *([short] if namespace == "bookinfo" else [])]
        for name in asked:
            direct = ask(table, name)
            assert direct is not None and direct[0] == "NOERROR"
            assert sorted(direct[1]) == [f"A {ip}" for ip in expected]
            for kind in ("AAAA", "HTTPS"):
                empty = ask(table, name, kind)
                assert empty is not None and empty[:2] == ("NOERROR", [])
            if "." in name and name != host.name:
                chained = ask(table, f"{name}.bookinfo.svc.cluster.local")
                assert chained is not None and chained[1][0] == f"CNAME {name}."
                assert sorted(chained[1][1:]) == [f"{name}. A {ip}" for ip in expected]
        for ip in expected:
            back = ask(table, ".".join(reversed(ip.split("."))) + ".in-addr.arpa", "PTR")
            assert back is not None and back[1] == [f"PTR {host.name}."]
    assert ask(table, "db.corp.example", "MX") is None
    assert ask(table, "istiod") is None and ask(table, "nothing.bookinfo.svc.cluster.local") is None


# --- header, case, EDNS -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sent", "expected"), [
    (0x0000, dns.flags.QR | dns.flags.AA),
    (0x0100, dns.flags.QR | dns.flags.AA | dns.flags.RD),
    (0x0110, dns.flags.QR | dns.flags.AA | dns.flags.RD | dns.flags.CD),
    (0x0120, dns.flags.QR | dns.flags.AA | dns.flags.RD),  # AD asks for nothing that we could say
])
def test_flags(sent: int, expected: int) -> None:
    for kind in ("A", "AAAA"):
        asked = query("web.ns1", kind, flags=sent)
        found = answer(TABLE, asked)
        assert found is not None and read(asked, found.reply).flags == expected


def test_the_questions_case_comes_back() -> None:
    """0x20 (trap 48): question and owners byte for byte as asked; what the table adds is in lower case."""
    asked = query("wEb.Ns1.cLUSTER.local")
    found = answer(TABLE, asked)
    assert found is not None and asked.name in found.reply
    message = read(asked, found.reply)
    assert str(message.answer[0].name) == "wEb.Ns1.cLUSTER.local."
    assert str(message.answer[0][0]) == str(message.answer[1].name) == "web.ns1."


@pytest.mark.parametrize("edns", [None, 0, 512, 1232, 65535])
def test_a_client_with_edns_gets_an_opt_record(edns: int | None) -> None:
    asked = query("web.ns1", edns=edns)
    found = answer(TABLE, asked)
    assert found is not None
    message = read(asked, found.reply)
    assert message.payload == (0 if edns is None else OUR_UDP) and message.options == ()


def test_ttls() -> None:
    for kind in ("A", "AAAA"):
        asked = query("www.google.com.corp.example", kind)
        found = answer(TABLE, asked)
        assert found is not None
        message = read(asked, found.reply)
        assert {one.ttl for one in (*message.answer, *message.authority)} == {TTL} == {30}


@pytest.mark.parametrize("name", ["web.ns1", "www.google.com.corp.example", "x.wildcard.corp.example"])
def test_no_data_can_be_remembered(name: str) -> None:
    """RFC 2308: a SOA of a zone that the name is in, of which the minimum is the time."""
    asked = query(name, "AAAA")
    found = answer(TABLE, asked)
    assert found is not None and found.variants == 1
    (authority,) = read(asked, found.reply).authority
    assert authority.rdtype == dns.rdatatype.SOA and asked.name.endswith(authority.name.to_wire())
    assert authority.ttl == authority[0].minimum == TTL
    assert (str(authority[0].mname), str(authority[0].rname)) == (f"{name}.", "nobody.invalid.")


@pytest.mark.parametrize("qclass", [3, 4, 254, 0, 77])
def test_other_classes_are_not_ours(qclass: int) -> None:
    assert answer(TABLE, query("web.ns1", qclass=qclass)) is None


def test_any_class_is_class_in() -> None:
    assert ask(TABLE, "web.ns1", qclass=255) == ask(TABLE, "web.ns1")


# --- rotation ---------------------------------------------------------------------------------------------------------


def test_every_address_comes_first_equally_often() -> None:
    order = ["A 10.0.1.1", "A 10.0.1.2", "A 10.0.1.3"]
    found = answer(TABLE, query("three.ns1"))
    assert found is not None and found.variants == 3
    for turn in range(7):
        turned = ask(TABLE, "three.ns1", rotation=turn)
        assert turned is not None and turned[1] == order[turn % 3:] + order[:turn % 3]
    chained = ask(TABLE, "three.ns1.cluster.local", rotation=1)
    assert chained is not None
    assert chained[1] == ["CNAME three.ns1.", *(f"three.ns1. A 10.0.1.{n}" for n in (2, 3, 1))]


def test_variants_are_the_different_replies() -> None:
    for name, kind, count in (("web.ns1", "A", 1), ("three.ns1", "A", 3), ("many.ns1", "A", 300),
                              ("dual.ns1", "ANY", 1), ("three.ns1", "CNAME", 1), ("three.ns1.cluster.local", "A", 3)):
        found = [answer(TABLE, query(name, kind, tcp=True), turn) for turn in range(count + 1)]
        assert {one.variants for one in found if one is not None} == {count}
        assert len({one.reply for one in found if one is not None}) == count


# --- size -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("how", "records"), [
    ({}, 30),  # 512 - 12 - 14 bytes of question, 16 a record
    ({"edns": 512}, 29),
    ({"edns": 0}, 29),
    ({"edns": 1232}, 74),
    ({"edns": 65535}, 253),
    ({"tcp": True}, 300),
])
def test_truncation_keeps_whole_records(how: dict[str, Any], records: int) -> None:
    asked = query("many.ns1", **how)
    found = answer(TABLE, asked, 299)
    assert found is not None
    message = read(asked, found.reply)
    assert bool(message.flags & dns.flags.TC) == (records < 300)
    turned = [HEADLESS[-1], *HEADLESS[:-1]]
    assert answers(message) == [f"A {ip}" for ip in turned[:records]]


def test_names_as_long_as_they_can_be() -> None:
    """255 bytes, and a search domain that the target does not have; a CNAME that does not fit is left out whole."""
    domain = "cluster.local"
    rest = 255 - len(name_to_wire(domain))
    label = "l" * 63
    target = f"{label}.{label}.{label}.{'x' * (rest - 3 * 64 - 1)}"
    table = table_of(external(target, "10.0.0.1"), external("*." + target.partition(".")[2], "10.0.0.2"))
    asked = query(f"{target}.{domain}")
    assert len(asked.name) == 255
    found = answer(table, asked)
    assert found is not None
    message = read(asked, found.reply)
    assert message.flags & dns.flags.TC and not message.answer and len(found.reply) == 12 + 259
    for how in ({"tcp": True}, {"edns": 1232}):
        whole = ask(table, f"{target}.{domain}", **how)
        assert whole is not None and whole[1] == [f"CNAME {target}.", f"{target}. A 10.0.0.1"]
    empty = ask(table, f"{target}.{domain}", "AAAA")
    assert empty is not None and empty[:2] == ("NOERROR", [])
    wild = ask(table, f"{label[1:]}.{target.partition('.')[2]}.{domain}", tcp=True)
    assert wild is not None and wild[1][1].endswith("A 10.0.0.2")


# --- what upstream servers say of our names ---------------------------------------------------------------------------


def test_nxdomain_for_a_name_of_the_table_is_no_data() -> None:
    for name, kind in (("www.google.com", "MX"), ("a.wildcard", "TXT"), ("www.google.com.cluster.local", "SRV")):
        asked = query(name, kind, edns=1232)
        assert answer(TABLE, asked) is None
        message = read(asked, corrected(TABLE, asked, reply(asked, rcode=3)))
        assert message.rcode() == dns.rcode.NOERROR and not message.answer and len(message.authority) == 1


@pytest.mark.parametrize(("name", "rcode", "qclass"), [
    ("example.com", 3, 1), ("www.google.com", 0, 1), ("www.google.com", 2, 1), ("www.google.com", 3, 3),
])
def test_other_replies_stay_as_they_are(name: str, rcode: int, qclass: int) -> None:
    asked = query(name, "MX", qclass=qclass)
    theirs = reply(asked, rcode=rcode)
    assert corrected(TABLE, asked, theirs) is theirs


# --- anything ---------------------------------------------------------------------------------------------------------

LABEL = st.sampled_from(["a", "b", "web", "svc", "ns1", "cluster", "local", "*", "L" * 63])
NAME = st.lists(LABEL, min_size=1, max_size=5).map(".".join).filter(lambda name: len(name) < 250)
IPS = st.lists(st.ip_addresses().map(str), min_size=1, max_size=40)
INFO = st.fixed_dictionaries({"ips": IPS}, optional={
    "registry": st.sampled_from(["Kubernetes", "External"]), "shortname": LABEL, "namespace": LABEL,
    "alt_hosts": st.lists(NAME, max_size=2)})
KINDS = st.sampled_from(["A", "AAAA", "ANY", "CNAME", "PTR", "HTTPS", "MX", "TYPE65535"])


@settings(max_examples=200, deadline=None)
@given(document=st.dictionaries(NAME, INFO, min_size=1, max_size=6), search=st.lists(NAME, max_size=3), data=st.data())
def test_any_table_and_question(document: dict[str, Any], search: list[str], data: st.DataObject) -> None:
    """Replies fit, others can read them, and a record's owner is the question or the CNAME's target."""
    names = read_name_table({"table": document})
    table = compile_table(names, "ns1.svc.cluster.local", "ns1", search)
    known = [name_to_wire(host) for host in document]
    pool = [*known, *(host[:-1] + name_to_wire(one) for host in known for one in search)]
    wire = data.draw(st.sampled_from(pool) | NAME.map(name_to_wire))
    if len(wire) > 255:
        return
    question = wire + type_number(data.draw(KINDS)).to_bytes(2, "big") + b"\0\1"
    opt = data.draw(st.none() | st.integers(0, 65535))
    tail = b"" if opt is None else b"\0\0\x29" + opt.to_bytes(2, "big") + bytes(6)
    packet = b"\x12\x34\x01\0\0\1\0\0\0\0\0" + bytes((opt is not None,)) + question + tail
    asked = parse_query(packet, data.draw(st.booleans()), ("127.0.0.1", 5353))
    assert not isinstance(asked, bytes) and asked is not None
    found: LocalAnswer | None = answer(table, asked, data.draw(st.integers(0, 1000)))
    if found is None:
        return
    message = read(asked, found.reply)
    assert message.rcode() == dns.rcode.NOERROR and message.flags & dns.flags.AA
    owners = {message.question[0].name}
    for record in message.answer:
        assert record.name in owners
        if record.rdtype == dns.rdatatype.CNAME:
            assert record is message.answer[0]
            owners = {record[0].target}
    assert message.answer or message.authority or message.flags & dns.flags.TC
    assert re.match(r"name table: (host|address of) ", found.reason)
