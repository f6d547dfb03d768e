"""The name table's document: what istiod sends is read, what is wrong is named, what is useless is left out."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from dns_tables import RECORDED
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.config.errors import ConfigErrors
from proxy.dns import name_table
from proxy.dns.name_table import (
    MAX_ADDRESSES,
    MAX_ALT_HOSTS,
    MAX_ERRORS,
    MAX_HOSTS,
    Host,
    NameTable,
    pack_address,
    parse_name_table,
    read_name_table,
)


def test_what_istiod_sent() -> None:
    file = RECORDED / "plain-productpage-v1/name-table.json"
    if not file.exists():
        pytest.skip(f"no recorded data in {RECORDED}")
    table = parse_name_table(file.read_bytes())
    assert table.warnings == ()
    hosts = {host.name: host for host in table.hosts}
    assert len(hosts) == len(json.loads(file.read_text())["table"]) == 12
    assert hosts["db.corp.example"] == Host("db.corp.example", bytes((10, 77, 0, 5)), b"", "External")
    assert hosts["mongo.bookinfo.svc.cluster.local"] == Host(
        "mongo.bookinfo.svc.cluster.local", bytes((10, 10, 0, 81, 10, 10, 0, 82, 10, 10, 0, 83)), b"", "Kubernetes",
        "mongo", "bookinfo")
    assert [host.name for host in table.hosts] == sorted(hosts)


@pytest.mark.parametrize("document", [{}, {"table": {}}, {"table": None}])
def test_an_empty_table_is_a_table(document: Any) -> None:
    assert read_name_table(document) == NameTable()


def test_protobufs_two_spellings() -> None:
    for field in ("alt_hosts", "altHosts"):
        table = read_name_table({"table": {"a.example": {"ips": ["1.2.3.4"], field: ["b.example"], "registry": None}}})
        assert table.hosts == (Host("a.example", b"\1\2\3\4", b"", alt_hosts=("b.example",)),)


BAD = [
    ([], "an object with the field table expected, not a list"),
    (None, "an object with the field table expected, not null"),
    ({"tabel": {}}, "tabel: no such field; a name table has the field table"),
    ({"table": [1]}, "table: an object of hosts expected, not a list"),
    ({"table": {"a.example": "1.2.3.4"}}, 'table["a.example"]: an object expected, not a string'),
    ({"table": {"a.example": {"ips": "1.2.3.4"}}}, 'table["a.example"].ips: a list of strings expected, not a string'),
    ({"table": {"a.example": {"ips": ["1.2.3.4", 5]}}}, 'table["a.example"].ips[1]: a string expected, not a number'),
    ({"table": {"a.example": {"altHosts": {}}}},
     'table["a.example"].altHosts: a list of strings expected, not an object'),
    ({"table": {"a.example": {"registry": True}}}, 'table["a.example"].registry: a string expected, not true or false'),
    ({"table": {"a.example": {"ip": []}}},
     'table["a.example"].ip: no such field; ips, registry, shortname, namespace, alt_hosts are known'),
    ({"table": {"a\nb": {"i\np": 1}}},
     'table["a\\nb"].i\\np: no such field; ips, registry, shortname, namespace, alt_hosts are known'),
    ({"x\n": 1}, "x\\n: no such field; a name table has the field table"),
    ({"table": {str(n): {} for n in range(MAX_HOSTS + 1)}}, "table: 100001 hosts, at most 100000 expected"),
]


@pytest.mark.parametrize(("document", "expected"), BAD, ids=range(len(BAD)))
def test_errors_name_the_field(document: Any, expected: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        read_name_table(document)
    assert str(caught.value) == expected


TEXTS = [
    ('{"table": {}', "JSON: Expecting ',' delimiter at line 1, column 13"),
    (b"\xff", "byte 0 is not UTF-8"),
    ('{"table": {"a": {}, "a": {}}}', "JSON: duplicate key 'a'"),
    ("", "JSON: Expecting value at line 1, column 1"),
    ('{"table":' * 5000, "JSON: nested too deep"),
]


@pytest.mark.parametrize(("text", "expected"), TEXTS, ids=range(len(TEXTS)))
def test_texts_that_are_no_document(text: str | bytes, expected: str) -> None:
    with pytest.raises(ConfigErrors, match=re.escape(expected)):
        parse_name_table(text)


def test_a_document_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(name_table, "MAX_TEXT", 20)
    assert parse_name_table('{"table": {}}') == NameTable()
    with pytest.raises(ConfigErrors, match="21 bytes, at most 20 expected"):
        parse_name_table(" " * 21)


def test_many_errors_are_cut() -> None:
    with pytest.raises(ConfigErrors) as caught:
        read_name_table({"table": {f"h{n}": 1 for n in range(1000)}})
    assert len(caught.value.errors) == MAX_ERRORS + 1
    assert str(caught.value.errors[-1]) == "more errors follow"


def test_addresses_that_are_none_are_skipped_and_told() -> None:
    table = read_name_table({"table": {
        "some.example": {"ips": ["10.0.0.0/8", "1.2.3.4", "nonsense", "2001:db8::1"]},
        "none.example": {"ips": ["10.0.0.0/8"]},
        "empty.example": {"ips": []},
    }})
    assert table.hosts == (Host("some.example", b"\1\2\3\4", bytes.fromhex("20010db8000000000000000000000001")),)
    assert table.warnings == (
        "host 'some.example': '10.0.0.0/8' is no IP address: skipped",
        "host 'none.example': '10.0.0.0/8' is no IP address: the host has no other address and is left out",
    )


def test_warnings_are_bounded() -> None:
    table = read_name_table({"table": {f"h{n}": {"ips": ["x"]} for n in range(MAX_ERRORS + 7)}})
    assert len(table.warnings) == MAX_ERRORS + 1 and table.warnings[-1] == "and 7 more"


def test_addresses_once_and_not_without_end() -> None:
    many = [f"10.0.{n // 256}.{n % 256}" for n in range(MAX_ADDRESSES + 5)]
    table = read_name_table({"table": {"a": {"ips": ["10.0.0.1", *many, "10.0.0.1"], "alt_hosts": ["x"] * 100}}})
    (host,) = table.hosts
    assert len(host.v4) == 4 * MAX_ADDRESSES and host.v4[:8] == bytes((10, 0, 0, 1, 10, 0, 0, 0))
    assert len(host.alt_hosts) == MAX_ALT_HOSTS
    assert table.warnings == (f"host 'a': {MAX_ADDRESSES + 5} addresses, the first {MAX_ADDRESSES} are used",
                              f"host 'a': 100 alt_hosts, the first {MAX_ALT_HOSTS} are used")


@pytest.mark.parametrize(("text", "packed"), [
    ("1.2.3.4", "01020304"), ("::1", "0" * 31 + "1"), ("::ffff:1.2.3.4", "01020304"), ("1.2.3", None),
    ("01.2.3.4", None), ("fe80::1%eth0", None), ("", None), ("1.2.3.4\0", None), ("\ud800", None), (" 1.2.3.4", None),
])
def test_addresses(text: str, packed: str | None) -> None:
    assert pack_address(text) == (None if packed is None else bytes.fromhex(packed))


FIELDS = st.sampled_from(["table", "ips", "registry", "alt_hosts", "x"])
JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS, inner, max_size=4))


@settings(max_examples=300, deadline=None)
@given(JSON)
def test_any_document_is_a_table_or_an_error(document: Any) -> None:
    try:
        assert isinstance(read_name_table(document), NameTable)
    except ConfigErrors as error:
        assert 0 < len(error.errors) <= MAX_ERRORS + 1
