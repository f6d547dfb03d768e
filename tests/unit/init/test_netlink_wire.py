"""Netlink as bytes: what is sent, what is understood, and that no answer leads astray. Nothing here opens a socket."""

from __future__ import annotations

import errno
import random
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import init.netlink.wire as wire
from init.netlink.wire import Answer, Message, Netlink, attribute, attributes, number

ERROR, DONE, OVERRUN = 2, 3, 4
INTERRUPTED, CAPPED, EXPLAINED = 0x10, 0x100, 0x200


def host(value: int, size: int) -> bytes:
    """A number as this host stores it."""
    return value.to_bytes(size, sys.byteorder, signed=value < 0)


def packet(kind: int, body: bytes = b"", flags: int = 0, sequence: int = 1) -> bytes:
    """A message written field by field, independently of the code under test."""
    length = 16 + len(body)
    head = host(length, 4) + host(kind, 2) + host(flags, 2) + host(sequence, 4) + host(0, 4)
    return head + body + bytes(-length % 4)


def test_a_message_has_netlinks_layout() -> None:
    assert wire.message(34, 0x301, b"abcd", 7) == packet(34, b"abcd", 0x301, 7)


def test_attributes_are_padded_and_numbers_are_of_this_host() -> None:
    assert attribute(3, b"abcde") == host(9, 2) + host(3, 2) + b"abcde\0\0\0"
    assert number(15, 133) == host(8, 2) + host(15, 2) + host(133, 4)
    assert wire.as_number(host(133, 4)) == 133


def test_attributes_are_read_back() -> None:
    nested = attribute(0x8000 | 4, attribute(1, b"x"))
    found = attributes(attribute(1, b"abcde") + attribute(2, b"") + nested)
    assert found == {1: b"abcde", 2: b"", 4: attribute(1, b"x")}
    assert attributes(b"") == {}
    assert attributes(attribute(1, b"abcde")[:-3]) == {1: b"abcde"}  # the last one need not be padded


@pytest.mark.parametrize(
    "data",
    [
        b"\1\0",  # no whole header
        host(3, 2) + host(1, 2),  # shorter than its header: would be read for ever
        host(0, 2) + host(1, 2),
        host(9, 2) + host(1, 2) + b"abcd",  # longer than what is there
        attribute(1, b"abcd") + b"\0\0",
    ],
)
def test_malformed_attributes(data: bytes) -> None:
    with pytest.raises(OSError, match="makes no sense") as caught:
        attributes(data)
    assert caught.value.errno == errno.EBADMSG


def test_a_body_shorter_than_its_fixed_part() -> None:
    layout = wire.struct.Struct("=BBH")
    assert wire.unpack(layout, b"\1\2" + host(3, 2) + attribute(1, b"x")) == ((1, 2, 3), {1: b"x"})
    with pytest.raises(OSError, match="a body of 3 bytes where 4 are the least"):
        wire.unpack(layout, b"abc")


def test_an_answer_is_all_up_to_its_end() -> None:
    answer = Answer(range(1, 2))
    assert not answer.feed(packet(24, b"one1") + packet(24, b"two"))
    assert not answer.feed(packet(24, b"old", sequence=9))  # of somebody else's request
    assert answer.feed(packet(24, b"three") + packet(DONE, host(0, 4)) + packet(24, b"after"))
    assert answer.messages == [Message(24, b"one1"), Message(24, b"two"), Message(24, b"three")]
    assert not answer.interrupted


def test_an_acknowledgement_ends_an_answer() -> None:
    answer = Answer(range(3, 6))
    assert answer.feed(packet(24, b"x", sequence=3) + packet(ERROR, host(0, 4) + packet(24)[:16], sequence=4))
    assert answer.messages == [Message(24, b"x")]


def test_the_end_of_an_old_kernels_list_says_nothing() -> None:
    assert Answer(range(1, 2)).feed(packet(DONE))


def test_a_list_that_changed_meanwhile_is_marked() -> None:
    answer = Answer(range(1, 2))
    answer.feed(packet(24, b"x", INTERRUPTED) + packet(DONE, host(0, 4)))
    assert answer.interrupted


def error(code: int, words: bytes | None, *, capped: bool) -> bytes:
    request = packet(34, b"" if capped else b"request of 22 bytes...")
    told = b"" if words is None else attribute(1, words)
    flags = (EXPLAINED if words is not None else 0) | (CAPPED if capped else 0)
    # The request is echoed in full, or only its header.
    return packet(ERROR, host(-code, 4) + request + told, flags)


@pytest.mark.parametrize("capped", [True, False])
@pytest.mark.parametrize(
    ("words", "text"),
    [
        (None, "No such file or directory"),
        (b"FIB table does not exist\0", "No such file or directory (FIB table does not exist)"),
        (b"two\nlines\x1b[1m\0", "No such file or directory (twolines[1m)"),
        (b"x" * 999, f"No such file or directory ({'x' * 200})"),
        (b"\0", "No such file or directory"),
    ],
)
def test_what_the_kernel_refuses(words: bytes | None, text: str, capped: bool) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        Answer(range(1, 2)).feed(error(errno.ENOENT, words, capped=capped))
    assert (caught.value.errno, caught.value.strerror) == (errno.ENOENT, text)


def test_a_list_can_end_with_an_error() -> None:
    with pytest.raises(OSError) as caught:
        Answer(range(1, 2)).feed(packet(DONE, host(-errno.EAFNOSUPPORT, 4)))
    assert caught.value.errno == errno.EAFNOSUPPORT


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"short", errno.EBADMSG),
        (packet(24, b"abcd")[:-1], errno.EBADMSG),
        (packet(24) + b"\0", errno.EBADMSG),
        (host(15, 4) + packet(24)[4:], errno.EBADMSG),  # a length that would never move on
        (host(0, 4) + packet(24)[4:], errno.EBADMSG),
        (host(2**32 - 1, 4) + packet(24)[4:], errno.EBADMSG),
        (packet(ERROR, b"\0\0"), errno.EBADMSG),
        (packet(OVERRUN), errno.ENOBUFS),
    ],
)
def test_malformed_answers(data: bytes, code: int) -> None:
    with pytest.raises(OSError) as caught:
        Answer(range(1, 2)).feed(data)
    assert caught.value.errno == code


def test_answers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_MESSAGES", 10)
    answer = Answer(range(1, 2))
    assert not answer.feed(packet(24) * 10)
    with pytest.raises(OSError, match="more than 10 messages") as caught:
        answer.feed(packet(24, sequence=7))  # those of others count, too
    assert caught.value.errno == errno.EMSGSIZE
    monkeypatch.setattr(wire, "MAX_BYTES", 100)
    with pytest.raises(OSError, match="an answer of more than") as caught:
        Answer(range(1, 2)).feed(bytes(101))
    assert caught.value.errno == errno.EMSGSIZE


def broken(data: bytes, chance: random.Random) -> bytes:
    """`data` cut, or with some bytes changed."""
    changed = bytearray(data)
    for _ in range(chance.randrange(4)):
        changed[chance.randrange(len(changed))] = chance.choice((0, 1, 3, 4, 16, 127, 128, 255))
    return bytes(changed[: chance.choice((len(changed), chance.randrange(len(changed))))])


def test_broken_answers_are_answers_or_errors() -> None:
    """Never another exception, never an endless loop; both outcomes happen."""
    chance = random.Random(4)
    whole = packet(24, attribute(1, b"abc")) + error(2, b"words\0", capped=False)
    outcomes = {"error": 0, "answer": 0}
    for _ in range(3000):
        try:
            Answer(range(1, 2)).feed(broken(whole, chance))
            outcomes["answer"] += 1
        except OSError as problem:
            assert problem.errno
            outcomes["error"] += 1
    assert min(outcomes.values()) > 100


class FakeSocket:
    """A socket of a kernel that says what `answer` makes of each request: datagrams, with who sends them."""

    def __init__(self, answer: Callable[[bytes], Iterator[tuple[bytes, int, int]]]) -> None:
        self._answer = answer
        self.pending: list[tuple[bytes, int, int]] = []
        self.is_open = True

    def bind(self, address: object) -> None: ...

    def setsockopt(self, level: int, option: int, value: int) -> None:
        raise OSError(errno.ENOPROTOOPT, "an old kernel")

    def settimeout(self, seconds: float) -> None:
        assert 0 < seconds <= wire.TIMEOUT

    def send(self, data: bytes) -> None:
        self.pending += self._answer(data)

    def recvmsg(self, size: int) -> tuple[bytes, list[Any], int, tuple[int, int]]:
        if not self.pending:
            raise TimeoutError
        data, flags, sender = self.pending.pop(0)
        return data, [], flags, (sender, 0)

    def close(self) -> None:
        self.is_open = False


@pytest.fixture
def kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[Callable[[bytes], Iterator[tuple[bytes, int, int]]]], FakeSocket]:
    def install(answer: Callable[[bytes], Iterator[tuple[bytes, int, int]]]) -> FakeSocket:
        fake = FakeSocket(answer)
        monkeypatch.setattr(socket, "socket", lambda *_: fake)
        return fake

    return install


def sequence_of(request: bytes) -> int:
    return int.from_bytes(request[8:12], sys.byteorder)


def test_a_list_that_changed_is_read_again(kernel: Any) -> None:
    flags = [INTERRUPTED, INTERRUPTED, 0]

    def answer(request: bytes) -> Iterator[tuple[bytes, int, int]]:
        number_of = sequence_of(request)
        flag = flags.pop(0)
        yield packet(24, bytes([flag]), flag, number_of) + packet(DONE, host(0, 4), flag, number_of), 0, 0

    fake = kernel(answer)
    with Netlink(wire.ROUTE) as netlink:
        assert netlink.dump(26, b"") == [Message(24, b"\0")]
    assert not fake.is_open
    flags += [INTERRUPTED] * 8
    with Netlink(wire.ROUTE) as netlink, pytest.raises(OSError, match="changed each of the 8 times"):
        netlink.dump(26, b"")


def test_only_the_kernel_is_listened_to(kernel: Any) -> None:
    def answer(request: bytes) -> Iterator[tuple[bytes, int, int]]:
        yield packet(24, b"lie"), 0, 4711
        yield packet(ERROR, host(-errno.EPERM, 4)), 0, 4711
        yield packet(24, b"truth") + packet(ERROR, host(0, 4)), 0, 0

    kernel(answer)
    with Netlink(wire.ROUTE) as netlink:
        assert netlink.ask(26, b"") == [Message(24, b"truth")]


@pytest.mark.parametrize(
    ("datagrams", "code"),
    [
        ([], errno.ETIMEDOUT),
        ([(packet(24), 0, 0)], errno.ETIMEDOUT),
        ([(packet(24), socket.MSG_TRUNC, 0)], errno.EMSGSIZE),
    ],
)
def test_answers_that_do_not_come_whole(kernel: Any, datagrams: list[tuple[bytes, int, int]], code: int) -> None:
    fake = kernel(lambda request: iter(datagrams))
    with pytest.raises(OSError) as caught, Netlink(wire.ROUTE) as netlink:
        netlink.ask(26, b"")
    assert caught.value.errno == code
    assert not fake.is_open


def test_an_answer_that_never_ends_is_given_up(kernel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(1000))
    monkeypatch.setattr(wire.time, "monotonic", lambda: float(next(now)))
    kernel(lambda request: iter([(packet(24), 0, 0)] * 1000))
    with pytest.raises(OSError, match="did not end within 5 s") as caught, Netlink(wire.ROUTE) as netlink:
        netlink.ask(26, b"")
    assert caught.value.errno == errno.ETIMEDOUT


def test_requests_of_one_batch_are_numbered(kernel: Any) -> None:
    sent: list[bytes] = []

    def answer(request: bytes) -> Iterator[tuple[bytes, int, int]]:
        sent.append(request)
        yield packet(ERROR, host(0, 4), sequence=2), 0, 0

    kernel(answer)
    with Netlink(wire.NETFILTER) as netlink:
        netlink.exchange((16, 1, b"abcd"), (17, 5, b""))
    assert sent == [packet(16, b"abcd", 1, 1) + packet(17, b"", 5, 2)]
