"""Policy rules, routes, addresses, tables: bytes as a kernel writes them become values, values become requests."""

from __future__ import annotations

import errno
import ipaddress
import random
import socket
import sys
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from init.errors import KernelError
from init.netlink import addresses, nftables, routes, rules
from init.netlink.routes import Route
from init.netlink.rules import Rule
from init.netlink.wire import Message, attribute, number

WHOLE = 0xFFFFFFFF
LO = 1


def host(value: int, size: int) -> bytes:
    return value.to_bytes(size, sys.byteorder)


def rule(
    *attributes: bytes, family: int = 2, to: int = 0, source: int = 0, tos: int = 0, action: int = 1, flags: int = 0
) -> bytes:
    """The body of a message about `lookup 133`, as kernels since 4.17 write it."""
    head = bytes([family, to, source, tos, 133, 0, 0, action]) + host(flags, 4)
    always = number(15, 133) + number(14, WHOLE) + attribute(21, b"\x03")
    return head + always + number(6, 32765) + b"".join(attributes)


MARK, MASK = number(10, 0x539), number(16, WHOLE)
PLAIN = Rule(4, 32765, 0x539, WHOLE, 133, plain=True)


def test_a_policy_rule_is_read() -> None:
    assert rules.parse(4, rule(MARK, MASK)) == PLAIN
    assert rules.parse(6, rule(MARK, MASK, family=10)) == Rule(6, 32765, 0x539, WHOLE, 133, plain=True)
    assert rules.parse(4, rule(MARK)) == PLAIN  # without a mask the kernel compares all bits
    assert rules.parse(4, rule(MARK, number(16, 0xFF))) == Rule(4, 32765, 0x539, 0xFF, 133, plain=True)
    assert rules.parse(4, rule()) == Rule(4, 32765, 0, 0, 133, plain=True)
    assert rules.parse(4, rule(MARK, MASK, number(15, 70000))).table == 70000  # does not fit into the head
    head_only = bytes([2, 0, 0, 0, 255, 0, 0, 1]) + host(0, 4)
    assert rules.parse(4, head_only) == Rule(4, 0, 0, 0, 255, plain=True)


@pytest.mark.parametrize(
    "body",
    [
        rule(MARK, MASK, attribute(1, bytes(4)), to=32),
        rule(MARK, MASK, attribute(2, bytes(4)), source=8),
        rule(MARK, MASK, to=1),
        rule(MARK, MASK, tos=4),
        rule(MARK, MASK, flags=2),  # `not`
        rule(MARK, MASK, action=6),  # blackhole
        rule(MARK, MASK, number(4, 100), action=2),  # goto
        rule(MARK, MASK, attribute(3, b"eth0\0")),
        rule(MARK, MASK, attribute(17, b"lo\0")),
        rule(MARK, MASK, attribute(12, bytes(8))),  # tunnel
        rule(MARK, MASK, number(14, 0)),  # suppress_prefixlength 0
        rule(MARK, MASK, number(13, 5)),  # suppress_ifgroup
        rule(MARK, MASK, attribute(19, b"\1")),  # l3mdev
        rule(MARK, MASK, attribute(20, bytes(8))),  # uidrange
        rule(MARK, MASK, attribute(22, b"\6")),  # ipproto
        rule(MARK, MASK, attribute(24, bytes(4))),  # dport
        rule(MARK, MASK, attribute(60, b"\6")),  # what a later kernel may know
    ],
)
def test_a_policy_rule_that_looks_at_more_is_not_plain(body: bytes) -> None:
    found = rules.parse(4, body)
    assert not found.plain
    assert (found.mark, found.mask, found.table, found.priority) == (0x539, WHOLE, 133, 32765)


def test_a_policy_rule_is_asked_for() -> None:
    lookup = bytes([2, 0, 0, 0, 0, 0, 0, 1]) + host(0, 4)
    assert rules.request(4, 0x539, 133, None) == lookup + MARK + MASK + number(15, 133)
    assert rules.request(6, 1, 70000, 7) == (
        bytes([10, 0, 0, 0, 0, 0, 0, 1]) + host(0, 4) + number(6, 7) + number(10, 1) + MASK + number(15, 70000)
    )
    assert rules.parse(4, rules.request(4, 0x539, 133, 32765)) == PLAIN


def route(
    *attributes: bytes, kind: int = 2, to: int = 0, source: int = 0, tos: int = 0, scope: int = 254, flags: int = 0
) -> bytes:
    """The body of a message about `local default dev lo table 133`."""
    head = bytes([2, to, source, tos, 133, 3, scope, kind]) + host(flags, 4)
    return head + number(15, 133) + b"".join(attributes)


BY_LO = number(4, LO)


def test_a_route_is_read() -> None:
    assert routes.parse(4, route(BY_LO), LO) == Route(4, 133, 0, keeps_all=True)
    said_by_ipv6 = (number(6, 1024), attribute(12, bytes(32)), attribute(20, b"\0"))
    assert routes.parse(6, route(BY_LO, *said_by_ipv6), LO) == Route(6, 133, 1024, keeps_all=True)
    assert routes.parse(4, route(BY_LO, number(15, 70000)), LO) == Route(4, 70000, 0, keeps_all=True)
    assert routes.parse(6, route(BY_LO, flags=0x200), LO) is None


@pytest.mark.parametrize(
    "body",
    [
        route(number(4, 2)),  # another interface
        route(),
        route(BY_LO, kind=1),  # unicast
        route(BY_LO, attribute(1, bytes(4)), to=8),
        route(BY_LO, to=8),  # 0.0.0.0/8
        route(BY_LO, source=1),
        route(BY_LO, tos=4),
        route(BY_LO, attribute(5, bytes(4))),  # gateway
        route(BY_LO, attribute(7, bytes(4))),  # preferred source
        route(attribute(9, bytes(16))),  # several next hops
        route(BY_LO, attribute(22, bytes(4))),  # encapsulation
        route(BY_LO, number(30, 1)),  # next hop object
    ],
)
def test_another_route_does_not_keep_all(body: bytes) -> None:
    assert routes.parse(4, body, LO) == Route(4, 133, 0, keeps_all=False)


def test_a_route_is_asked_for() -> None:
    assert (
        routes.request(4, 133, 0, 254, LO) == bytes([2, 0, 0, 0, 0, 3, 254, 2]) + host(0, 4) + number(15, 133) + BY_LO
    )
    assert routes.parse(6, routes.request(6, 70000, 5, 0, LO), LO) == Route(6, 70000, 5, keeps_all=True)


def test_an_address_is_read() -> None:
    head = bytes([10, 128, 0x80, 0]) + host(LO, 4)
    six = ipaddress.ip_interface("::6/128")
    assert addresses.parse(head + attribute(1, six.packed) + attribute(6, bytes(16))) == (LO, six)
    head = bytes([2, 24, 0x80, 0]) + host(7, 4)
    mine, peer = ipaddress.ip_interface("10.0.0.1/24"), ipaddress.ip_interface("10.0.0.2/24")
    assert addresses.parse(head + attribute(1, peer.packed) + attribute(2, mine.packed)) == (7, mine)
    assert addresses.parse(head) is None
    assert addresses.parse(head + attribute(1, bytes(6))) is None
    assert addresses.parse(bytes([2, 33, 0, 0]) + host(7, 4) + attribute(1, bytes(4))) is None


def test_an_address_is_asked_for() -> None:
    six = ipaddress.ip_interface("::6/128")
    head = bytes([10, 128, 0, 0]) + host(LO, 4)
    assert addresses.request(six, LO) == head + attribute(2, six.packed) + attribute(1, six.packed)


@pytest.mark.parametrize(
    ("read", "whole"),
    [
        (lambda body: rules.parse(4, body), rule(MARK, MASK, attribute(1, bytes(16)))),
        (lambda body: routes.parse(4, body, LO), route(BY_LO, attribute(12, bytes(32)))),
        (addresses.parse, addresses.request(ipaddress.ip_interface("::6/128"), LO)),
    ],
)
def test_broken_bodies_are_values_or_errors(read: Callable[[bytes], object], whole: bytes) -> None:
    chance = random.Random(4)
    outcomes = {"error": 0, "value": 0}
    for _ in range(2000):
        body = bytearray(whole[: chance.randrange(len(whole) + 1)])
        for _ in range(chance.randrange(4) if body else 0):
            body[chance.randrange(len(body))] = chance.choice((0, 1, 2, 3, 4, 5, 8, 16, 127, 255))
        try:
            read(bytes(body))
            outcomes["value"] += 1
        except OSError as problem:
            assert problem.errno == errno.EBADMSG
            outcomes["error"] += 1
    assert min(outcomes.values()) > 50


class Kernel:
    """Instead of `Netlink`: what each kind of list is answered with, or the error of all of them."""

    def __init__(self, lists: Mapping[int, list[bytes]], failure: OSError | None = None) -> None:
        self.lists = lists
        self.failure = failure
        self.asked: list[tuple[int, bytes]] = []

    def __call__(self, protocol: int) -> Kernel:
        if self.failure is not None:
            raise self.failure
        return self

    def __enter__(self) -> Kernel:
        return self

    def __exit__(self, *_: object) -> None: ...

    def dump(self, kind: int, body: bytes) -> list[Message]:
        self.asked.append((kind, body))
        return [Message(kind, answer) for answer in self.lists.get(kind, [])]


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Kernel]:
    def install(lists: Mapping[int, list[bytes]] | None = None, failure: int = 0) -> Kernel:
        fake = Kernel(lists or {}, OSError(failure, "no") if failure else None)
        for module in (addresses, nftables, routes, rules):
            monkeypatch.setattr(module, "Netlink", fake)
        monkeypatch.setattr(socket, "if_nametoindex", lambda name: LO)
        return fake

    return install


def test_answers_of_other_families_and_tables_are_left_out(kernel: Callable[..., Kernel]) -> None:
    """As kernels without IPv6, or older than 4.20, give them."""
    kernel({34: [rule(MARK, MASK, family=10), rule(MARK, MASK)], 26: [route(BY_LO), route(BY_LO, number(15, 7))]})
    assert rules.all_rules(4) == [PLAIN]
    assert routes.of_table(4, 133) == [Route(4, 133, 0, keeps_all=True)]
    assert routes.of_table(6, 133) == []


@pytest.mark.parametrize("code", [errno.EAFNOSUPPORT, errno.EOPNOTSUPP])
def test_without_ipv6_there_is_nothing(kernel: Callable[..., Kernel], code: int) -> None:
    kernel(failure=code)
    assert rules.all_rules(6) == routes.of_table(6, 133) == addresses.on_lo() == []


def test_a_table_that_nobody_made_is_empty(kernel: Callable[..., Kernel]) -> None:
    kernel(failure=errno.ENOENT)
    assert routes.of_table(4, 133) == []
    with pytest.raises(OSError, match="no"):
        rules.all_rules(4)


def test_tables_and_chains_of_nftables(kernel: Callable[..., Kernel]) -> None:
    head = bytes([2, 0, 0, 0])
    tables = [head + attribute(1, name + b"\0") for name in (b"nat", b"blank", b"od\xffd")]
    chains = [
        head + attribute(1, table + b"\0") + attribute(3, chain + b"\0")
        for table, chain in ((b"nat", b"OUTPUT"), (b"nat", b"ISTIO_OUTPUT"), (b"late", b"x"))
    ]
    fake = kernel({0xA01: tables, 0xA04: chains})
    assert nftables.chains_of("ip") == {
        "nat": {"OUTPUT", "ISTIO_OUTPUT"},
        "blank": frozenset(),
        "od\ufffdd": frozenset(),
        "late": {"x"},  # made between the two lists
    }
    assert fake.asked == [(0xA01, head), (0xA04, head)]


@pytest.mark.parametrize(("family", "byte"), [("ip", 2), ("ip6", 10), ("inet", 1)])
def test_families_of_nftables(kernel: Callable[..., Kernel], family: str, byte: int) -> None:
    fake = kernel()
    assert nftables.chains_of(family) == {}
    assert fake.asked == [(0xA01, bytes([byte, 0, 0, 0]))]


@pytest.mark.parametrize("code", [errno.EPROTONOSUPPORT, errno.EINVAL, errno.EOPNOTSUPP])
def test_a_kernel_without_nftables_has_no_tables(kernel: Callable[..., Kernel], code: int) -> None:
    kernel(failure=code)
    assert nftables.chains_of("inet") == {}


def test_nftables_that_may_not_be_asked(kernel: Callable[..., Kernel]) -> None:
    kernel(failure=errno.EPERM)
    with pytest.raises(
        KernelError, match="cannot list the nftables tables of family inet: no: run as root with the cap"
    ):
        nftables.chains_of("inet")


def test_addresses_that_may_not_be_asked(kernel: Callable[..., Kernel]) -> None:
    kernel(failure=errno.EPERM)
    with pytest.raises(KernelError, match="cannot list the addresses of this network namespace: no"):
        addresses.local_addresses()


def test_addresses_in_the_kernels_order(kernel: Callable[..., Kernel]) -> None:
    def body(text: str, index: int) -> bytes:
        address: Any = ipaddress.ip_interface(text)
        family = 2 if address.version == 4 else 10
        return bytes([family, address.network.prefixlen, 0, 0]) + host(index, 4) + attribute(1, address.packed)

    fake = kernel({22: [body("127.0.0.1/8", LO), body("10.0.0.1/24", 2), body("::6/128", LO), body("fd00::1/64", 2)]})
    assert list(map(str, addresses.local_addresses())) == ["127.0.0.1", "10.0.0.1", "::6", "fd00::1"]
    assert fake.asked == [(22, bytes(8))]
    assert list(map(str, addresses.on_lo())) == ["::6/128"]
