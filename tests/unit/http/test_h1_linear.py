"""A read full of tiny pieces is taken in few steps: each step copies what it leaves, so many would be quadratic."""

from __future__ import annotations

from typing import ClassVar

from proxy.http.h1 import HeadError, Http1Codec
from proxy.http.headers import Field

PIECES = 10_000


class Counting(Http1Codec):
    """Counts its steps."""

    def __init__(self) -> None:
        super().__init__(65536, 100)
        self.steps = 0
        self.body = b""
        self.ended = False

    def _counted(self, step: int, data: bytes) -> bytes:
        self.steps += 1
        rest: bytes = Http1Codec.STEPS[step](self, data)
        return rest

    STEPS: ClassVar = tuple(
        (lambda self, data, step=step: self._counted(step, data)) for step in range(len(Http1Codec.STEPS)))

    def on_data(self, data: bytes) -> None:
        self.body += data

    def on_end(self, trailers: list[Field] | None) -> None:
        self.ended = True

    def on_error(self, error: HeadError) -> None:
        raise error


def test_chunks_of_one_byte() -> None:
    codec = Counting()
    codec.expect_chunks()
    codec.feed(b"1\r\na\r\n" * PIECES + b"0\r\n\r\n")
    assert codec.body == b"a" * PIECES
    assert codec.ended
    assert codec.steps < 10


def test_many_short_trailers() -> None:
    codec = Counting()
    codec.expect_chunks()
    codec.feed(b"0\r\n" + b"a:b\r\n" * PIECES + b"\r\n")
    assert codec.ended
    assert codec.steps < 10
