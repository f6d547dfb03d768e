"""HTTP/1 messages: the grammar of heads and the push parser that both codecs share (RFC 9110, RFC 9112).

One parser, exact everywhere: a field line that was seen before is looked up whole (`FIELD_MEMO`), which is faster
than a C tokenizer that has to call back for each field, and a line that is new is judged by the grammar.
What Envoy accepts leniently in ways that help request smuggling (bare CR or LF, folded lines, data beyond a chunk's
size) is refused; docs/differences-from-envoy.md has the list.
"""

from __future__ import annotations

import re
from typing import ClassVar

from proxy.http.headers import Field, Headers

TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
VISIBLE = rb"[\x21-\x7e\x80-\xff]"
_FIELD = re.compile(
    rb"(" + TOKEN + rb"):[ \t]*((?:" + VISIBLE + rb"(?:[\t\x20-\x7e\x80-\xff]*" + VISIBLE + rb")?)?)[ \t]*"
)
_FIELD_ANY_VALUE = re.compile(rb"(" + TOKEN + rb"):[^\r\n]*")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(?:;[\t\x20-\x7e\x80-\xff]*)?")
AUTHORITY = re.compile(rb"[A-Za-z0-9\-._~%!$&'()*+,;=:@\[\]]*")
_BARE_LF = re.compile(rb"(?<!\r)\n")
_EMPTY_LINES = re.compile(rb"(?:\r\n)*")

MAX_CHUNK_LINE = 4096
"""Bytes of a chunk-size line with its extensions."""

FIELD_MEMO: dict[bytes, Field] = {}
MEMO_ENTRIES = 2048
MEMO_LINE = 256
"""The memo's bounds: a line longer than this is parsed each time; a full memo starts anew."""
NEVER_MEMO = frozenset((
    b"x-request-id", b"traceparent", b"tracestate", b"x-b3-traceid", b"x-b3-spanid", b"x-b3-parentspanid", b"b3",
    b"authorization", b"proxy-authorization", b"cookie", b"set-cookie", b"x-forwarded-client-cert",
))
"""Values that hardly repeat, or that are nobody's business after the request."""


class HeadError(Exception):
    """A message that breaks the grammar. ``status`` is what a server answers, ``details`` Envoy's word for it."""

    def __init__(self, details: bytes, status: int = 400) -> None:
        super().__init__(details)
        self.details = details
        self.status = status


CODEC_ERROR = b"http1.codec_error"


def parse_field(line: bytes) -> Field:
    """One field line without its CRLF (RFC 9112 section 5), looked up or judged; raises HeadError."""
    match = _FIELD.fullmatch(line)
    if match is not None and match[1].lower() == b"host" and AUTHORITY.fullmatch(match[2]) is None:
        raise HeadError(b"http.invalid_authority")
    if match is None:
        named = _FIELD_ANY_VALUE.fullmatch(line)
        raise HeadError(CODEC_ERROR if named is None and b"\0" not in line else b"http1.invalid_characters")
    name = match[1].lower()
    value = match[2]
    made = (name, value, b"%b: %b\r\n" % (name, value))
    if len(line) <= MEMO_LINE and name not in NEVER_MEMO:
        if len(FIELD_MEMO) >= MEMO_ENTRIES:
            FIELD_MEMO.clear()
        FIELD_MEMO[line] = made
    return made


def parse_length(value: bytes) -> int:
    """content-length: digits only, small enough for 63 bits (RFC 9110 section 8.6); raises HeadError."""
    if not value.isdigit() or len(value) > 18:
        raise HeadError(CODEC_ERROR)
    return int(value)


class Http1Codec:
    """Bytes in, calls out; no I/O. Subclasses give meaning to heads, and get body, trailers and errors.

    ``feed`` may be given any split of the byte stream. After ``on_end`` nothing more is parsed until ``next_message``:
    what has arrived by then is kept, up to ``MAX_HELD`` bytes, beyond which ``on_hold`` asks the owner to stop reading.
    """

    HEAD, LENGTH, CHUNK_SIZE, CHUNK_DATA, CHUNK_END, TRAILERS, RAW, HELD, IGNORE = range(9)
    MAX_HELD: ClassVar[int] = 65536

    __slots__ = ("_left", "_pieces", "_rest", "_scanned", "_state", "_trailer_bytes", "_trailers", "keep_trailers",
                 "max_fields", "max_head")
    EMPTY_LINES_FIRST: ClassVar[bool] = True
    """Empty lines before a start line are ignored (RFC 9112 section 2.2)."""

    def __init__(self, max_head: int, max_fields: int) -> None:
        self.max_head = max_head
        """Bytes of start line and fields."""
        self.max_fields = max_fields
        self._state = self.HEAD
        self._rest = b""
        self._scanned = 0
        self._left = 0
        self._pieces: list[bytes] = []
        """Chunk data of the current read: passed on as one piece."""
        self.keep_trailers = False
        """Trailer fields go to on_end; otherwise they are checked and dropped."""
        self._trailers: list[Field] = []
        self._trailer_bytes = 0

    # What a subclass implements.

    def _start(self, lines: list[bytes]) -> None:
        """A whole head as lines (at least one, the first not empty). Sets the framing; raises HeadError."""
        raise NotImplementedError

    def _check_start_line(self, partial: bytes) -> None:
        """A head that is not complete yet: raise HeadError if it can no longer become one."""

    def on_data(self, data: bytes) -> None:
        """A piece of the body, never empty."""
        raise NotImplementedError

    def on_end(self, trailers: list[Field] | None) -> None:
        """The message is complete."""
        raise NotImplementedError

    def on_error(self, error: HeadError) -> None:
        """The peer broke the grammar; nothing more will be parsed."""
        raise NotImplementedError

    def on_hold(self) -> None:
        """More than ``MAX_HELD`` bytes of following messages have arrived."""

    # Framing, chosen in _start.

    def expect_length(self, length: int) -> None:
        """A body of exactly so many bytes follows."""
        self._left = length
        self._state = self.LENGTH

    def expect_chunks(self) -> None:
        """A chunked body follows."""
        self._state = self.CHUNK_SIZE

    def expect_raw(self) -> None:
        """Everything until the end of the connection is body (or the tunnel's data)."""
        self._state = self.RAW

    def expect_nothing(self) -> None:
        """The message ends with its head."""
        self._state = self.HELD

    def next_message(self) -> None:
        """The next message may be parsed; what was held is fed at once.

        Called from within on_end nothing is held yet: the loop in ``feed`` goes on by itself, so that pipelined
        requests never nest.
        """
        self._state = self.HEAD
        held = self._rest
        if held:
            self._rest = b""
            self.feed(held)

    def ignore(self) -> None:
        """Parse nothing any more and drop what arrives."""
        self._state = self.IGNORE
        self._rest = b""

    @property
    def has_partial(self) -> bool:
        """Some bytes of an unfinished head, or held ones, are waiting."""
        return bool(self._rest)

    def feed(self, data: bytes) -> None:
        """Parse what arrived."""
        if self._rest:
            data = self._rest + data
            self._rest = b""
        steps = self.STEPS
        try:
            while data:
                data = steps[self._state](self, data)
            if self._pieces:
                self._emit()
        except HeadError as error:
            self._pieces.clear()
            self.ignore()
            self.on_error(error)

    def _emit(self) -> None:
        pieces = self._pieces
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self.on_data(data)

    # Steps: take what they can and return what is left, or keep it in _rest and return nothing.

    def _step_head(self, data: bytes) -> bytes:
        end = data.find(b"\r\n\r\n", self._scanned)
        if end < 0:
            if data[0] == 13 and self.EMPTY_LINES_FIRST:
                rest = data[_EMPTY_LINES.match(data).end():]  # type: ignore[union-attr]
                if rest == b"\r":
                    self._rest = rest
                    return b""
                if rest[:1] != b"\r":
                    return rest
            # The last three bytes may belong to the end.
            if len(data) > self.max_head + 3:
                raise HeadError(b"http1.headers_too_large", 431)
            self._check_start_line(data)
            self._scanned = max(0, len(data) - 3)
            self._rest = data
            return b""
        self._scanned = 0
        if end > self.max_head:
            raise HeadError(b"http1.headers_too_large", 431)
        lines = data[:end].split(b"\r\n")
        if not lines[0] and self.EMPTY_LINES_FIRST:
            return data[_EMPTY_LINES.match(data).end():]  # type: ignore[union-attr]
        self._start(lines)
        return data[end + 4:]

    def _step_length(self, data: bytes) -> bytes:
        size = len(data)
        left = self._left
        if size < left:
            self._left = left - size
            self.on_data(data)
            return b""
        self._left = 0
        self._state = self.HELD
        if size == left:
            self.on_data(data)
            self.on_end(None)
            return b""
        self.on_data(data[:left])
        self.on_end(None)
        return data[left:]

    def _step_chunk_size(self, data: bytes) -> bytes:
        # Whole chunks are taken here, by position: a copy of what is left for each would be quadratic in their number.
        at = 0
        total = len(data)
        while at < total:
            end = data.find(b"\n", at, at + MAX_CHUNK_LINE + 2)
            if end < 0:
                if total - at > MAX_CHUNK_LINE + 1:
                    raise HeadError(CODEC_ERROR)
                self._rest = data[at:]
                return b""
            match = _CHUNK_SIZE.fullmatch(data, at, end - 1) if end > at and data[end - 1] == 13 else None
            if match is None:
                raise HeadError(CODEC_ERROR)
            size = int(match[1], 16)
            at = end + 1
            if not size:
                self._trailers = []
                self._trailer_bytes = 0
                self._state = self.TRAILERS
                if self._pieces:
                    self._emit()
                return data[at:]
            stop = at + size
            if data[stop:stop + 2] != b"\r\n":
                self._left = size
                self._state = self.CHUNK_DATA
                return data[at:]
            self._pieces.append(data[at:stop])
            at = stop + 2
        return b""

    def _step_chunk_data(self, data: bytes) -> bytes:
        size = len(data)
        left = self._left
        if size < left:
            self._left = left - size
            self._pieces.append(data)
            return b""
        self._state = self.CHUNK_END
        self._pieces.append(data[:left])
        return data[left:]

    def _step_chunk_end(self, data: bytes) -> bytes:
        if data[:2] == b"\r\n":
            self._state = self.CHUNK_SIZE
            return data[2:]
        if data == b"\r":
            self._rest = data
            return b""
        raise HeadError(CODEC_ERROR)

    def _step_trailers(self, data: bytes) -> bytes:
        at = 0
        while (end := data.find(b"\r\n", at)) > at:
            self._trailer_bytes += end - at
            if self._trailer_bytes > self.max_head:
                raise HeadError(b"http1.headers_too_large", 431)
            parsed = parse_field(data[at:end])
            if self.keep_trailers:
                if len(self._trailers) >= self.max_fields:
                    raise HeadError(b"http1.too_many_headers", 431)
                self._trailers.append(parsed)
            at = end + 2
        data = data[at:]
        if end < 0:
            if len(data) + self._trailer_bytes > self.max_head + 1:
                raise HeadError(b"http1.headers_too_large", 431)
            if _BARE_LF.search(data):
                raise HeadError(CODEC_ERROR)
            self._rest = data
            return b""
        self._state = self.HELD
        self.on_end(self._trailers)
        return data[2:]

    def _step_raw(self, data: bytes) -> bytes:
        self.on_data(data)
        return b""

    def _step_held(self, data: bytes) -> bytes:
        self._rest = data
        if len(data) > self.MAX_HELD:
            self.on_hold()
        return b""

    def _step_ignore(self, data: bytes) -> bytes:
        return b""

    STEPS: ClassVar = (_step_head, _step_length, _step_chunk_size, _step_chunk_data, _step_chunk_end, _step_trailers,
                       _step_raw, _step_held, _step_ignore)


def parse_fields(lines: list[bytes], max_fields: int) -> Headers:
    """The field lines of a head; raises HeadError. The index knows the first field of each name."""
    if len(lines) > max_fields:
        raise HeadError(b"http1.too_many_headers", 431)
    memo = FIELD_MEMO.get
    fields = [memo(line) or parse_field(line) for line in lines]
    index = {f[0]: f for f in fields}
    if len(index) != len(fields):
        return _joined(fields)
    return Headers(fields, index)


SINGLE = frozenset((
    b"user-agent", b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"x-request-id", b"content-type",
    b"via", b"expect", b"upgrade", b"te", b"keep-alive", b"proxy-connection", b"grpc-timeout", b"server", b"date",
    b"location", b"x-envoy-upstream-service-time",
))
"""Headers that Envoy keeps as one: values of further fields are joined to the first with a comma."""


def _joined(fields: list[Field]) -> Headers:
    headers = Headers(fields)
    for name in SINGLE.intersection(headers.index):
        values = headers.get_all(name)
        if len(values) > 1:
            headers.set(name, b",".join(values))
    return headers


def bare_line_feed(data: bytes) -> bool:
    """Whether a line ends in LF alone."""
    return _BARE_LF.search(data) is not None
