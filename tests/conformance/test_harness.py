"""The judge is judged: readers, normalisation and the case language, without a proxy."""

from __future__ import annotations

import socket

import pytest

from tests.conformance import normalise
from tests.conformance.dsl import Op, chunks, flatten, get, msg, on, reply, send
from tests.conformance.wire import Ended, Stuck, Wire

pytestmark = pytest.mark.conformance


def both(patience: float = 2.0) -> tuple[Wire, Wire]:
    """Two ends of one TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    return Wire(near, patience), Wire(far, patience)


def transcript(*sent: bytes, reader: list[Op]) -> list[bytes | str]:
    """What a wire has seen after these bytes and operations."""
    near, far = both()
    for data in sent:
        far.do(send(data))
    far.close()
    try:
        for op in reader:
            near.do(op)
    finally:
        near.close()
    return near.seen


@pytest.mark.parametrize(
    ("message", "body"),
    [
        (msg("HTTP/1.1 200 OK", "content-length: 5", body=b"hello"), b"hello"),
        (msg("HTTP/1.1 200 OK", "transfer-encoding: chunked", body=chunks(b"hel", b"lo", trailers=b"a: b\r\n")),
         b"hello"),
        (msg("HTTP/1.1 304 Not Modified", "content-length: 5"), b""),
        (msg("HTTP/1.1 100 Continue"), b""),
    ],
)
def test_one_message_is_read_and_no_more(message: bytes, body: bytes) -> None:
    """The reader stops where the message ends."""
    near, far = both()
    far.do(send(message + b"NEXT"))
    assert near.read_message(is_response=True)[1] == body
    near.do(Op("recv", 4))
    assert near.seen == [message + b"NEXT"]
    near.close()
    far.close()


def test_the_end_is_told_apart() -> None:
    """FIN and RST leave different marks."""
    assert transcript(b"x", reader=[Op("end")]) == [b"x", "FIN"]
    near, far = both()
    far.do(Op("reset"))
    near.do(Op("end"))
    assert near.seen == ["RST"]
    near.close()


def test_a_cut_message_is_not_a_message() -> None:
    """The end inside a message stops the script and is noted."""
    with pytest.raises(Ended):
        transcript(b"HTTP/1.1 200 OK\r\ncontent-le", reader=[Op("response")])


def test_silence_is_noticed() -> None:
    """An operation that never completes ends at its deadline."""
    near, far = both(patience=0.05)
    with pytest.raises(Stuck):
        near.do(Op("response"))
    near.close()
    far.close()


def test_shorthands() -> None:
    """Bytes are sent and answered; HEAD has no body; nested steps are flattened; `on` names the connection."""
    ops = flatten([get("/"), [get("/", method="HEAD")], on("b", send(b"x"))])
    assert [(op.kind, op.peer) for op in ops] == [
        ("send", "c"), ("response", "c"), ("send", "c"), ("response", "c"), ("send", "b"),
    ]  # fmt: skip
    assert [op.data for op in ops if op.kind == "response"] == [False, True]


def test_volatile_values_only() -> None:
    """Dates and durations are named, but only when they are well-formed; everything else stays."""
    good = "date: Sat, 21 Nov 2026 05:25:20 GMT\r\n"
    assert normalise._DATE.sub("<date>", good) == "<date>\n"
    for wrong in (good.replace("21 Nov", "1 Nov"), "date: 2026-11-21\r\n", good.replace("date", "Date")):
        assert normalise._DATE.sub("<date>", wrong) == wrong
    assert normalise._REMAINING.sub(normalise._round_up, "x-envoy-expected-rq-timeout-ms: 14973\r") == (
        "x-envoy-expected-rq-timeout-ms: 15000\r"
    )


def test_chunks_are_joined() -> None:
    """However a chunked body was cut, it reads the same; an unfinished one does not."""
    lead = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    once, twice = (lead + chunks(*parts).decode() + "rest" for parts in ((b"hello",), (b"hel", b"lo")))
    assert normalise._rejoin(once) == normalise._rejoin(twice) != normalise._rejoin(once[:-11])
    assert normalise._rejoin(reply().decode()) == reply().decode()
