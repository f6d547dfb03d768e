"""Several documents become one that a scraper accepts: each name once, with one type, and no series twice.

What comes first stays as it is. A later family of the same name and type adds the series that are not there yet; types
that differ become untyped where both are plain numbers; what cannot go together is left out and reported.
"""

from collections.abc import Iterable, Iterator

from agent.metrics.exposition import Family, Format, sample_names, series_key

_PLAIN = (b"counter", b"gauge", b"untyped", b"unknown", b"")
_PIECE = 1000  # families or lines between two turns of the event loop
_TURN = (0, "")


class Merger:
    """Add families, the most important source first, then take the page."""

    def __init__(self, page: Format) -> None:
        self._page = page
        self._families: dict[bytes, Family] = {}
        self._owner: dict[bytes, bytes] = {}  # name of sample -> name of its family
        self._keys: dict[bytes, set[bytes]] = {}  # of families that more than one source has

    def add(self, families: Iterable[Family]) -> Iterator[tuple[int, str]]:
        """Yields how many series were left out of a family, with the reason; (0, "") now and then in between, so that
        the caller can give others a turn.
        """
        for index, family in enumerate(families):
            if index % _PIECE == _PIECE - 1:
                yield _TURN
            yield from self._add(family)

    def render(self) -> Iterator[bytes]:
        """The page in pieces."""
        for family in self._families.values():
            name = family.name if family.name.isascii() and _is_plain(family.name) else b'"%b"' % family.name
            if family.help is not None:
                yield b"# HELP %b %b\n" % (name, family.help)
            if family.kind:
                yield b"# TYPE %b %b\n" % (name, family.kind)
            if family.unit and self._page.is_open:
                yield b"# UNIT %b %b\n" % (name, family.unit)
            yield b"\n".join(family.lines)
            yield b"\n"
        if self._page.is_open:
            yield b"# EOF\n"

    def _add(self, family: Family) -> Iterator[tuple[int, str]]:
        present = self._families.get(family.name)
        if present is None:
            names = tuple(sample_names(family, self._page))
            taken = next((self._owner[name] for name in names if name in self._owner), None)
            if taken is not None:
                yield len(family.lines), f"{_text(family.name)} has sample names of {_text(taken)}"
                return
            self._families[family.name] = family
            self._owner |= dict.fromkeys(names, family.name)
            return
        kind = _common_kind(present.kind, family.kind, self._page)
        if kind is None:
            types = f"{_text(present.kind or b'untyped')} and {_text(family.kind or b'untyped')}"
            yield len(family.lines), f"{_text(family.name)} has the types {types}"
            return
        keys = self._keys.get(family.name)
        if keys is None:
            keys = self._keys[family.name] = set()
            for piece in _pieces(present.lines):
                keys.update(series_key(line, present) for line in piece)
                yield _TURN
        present.kind = kind
        present.help = family.help if present.help is None else present.help
        dropped = 0
        mine: set[bytes] = set()
        for piece in _pieces(family.lines):
            for line in piece:
                key = series_key(line, family)
                if key in keys:
                    dropped += 1
                else:
                    mine.add(key)
                    present.lines.append(line)
            yield _TURN
        keys |= mine
        if dropped:
            yield dropped, f"{_text(family.name)} has the same series in two sources"


def _pieces(lines: list[bytes]) -> Iterator[list[bytes]]:
    for at in range(0, len(lines), _PIECE):
        yield lines[at : at + _PIECE]


def _common_kind(one: bytes, other: bytes, page: Format) -> bytes | None:
    if one == other:
        return one
    if one not in _PLAIN or other not in _PLAIN or (page.is_open and b"counter" in (one, other)):
        return None  # an OpenMetrics counter is called otherwise than its samples
    return b"unknown" if page.is_open else b"untyped"


def _is_plain(name: bytes) -> bool:
    return name.replace(b":", b"_").decode("ascii").isidentifier()


def _text(name: bytes) -> str:
    return name[:80].decode("utf-8", "replace")
