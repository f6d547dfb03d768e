"""Several documents become one that a scraper accepts: each name once, with one type, and no series twice.

What comes first stays as it is. A later family of the same name and type adds the series that are not there yet; types
that differ become untyped where both are plain numbers; what cannot go together is left out and reported.
"""

from collections.abc import Iterable, Iterator

from agent.metrics.exposition import Family, Format, sample_names, series_key

_PLAIN = (b"counter", b"gauge", b"untyped", b"unknown", b"")
_PIECE = 1000  # families or lines between two turns of the event loop


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
            dropped, why = self._add(family)
            if dropped or index % _PIECE == _PIECE - 1:
                yield dropped, why

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

    def _add(self, family: Family) -> tuple[int, str]:
        present = self._families.get(family.name)
        if present is None:
            names = tuple(sample_names(family, self._page))
            taken = next((self._owner[name] for name in names if name in self._owner), None)
            if taken is not None:
                return len(family.lines), f"{_text(family.name)} has sample names of {_text(taken)}"
            self._families[family.name] = family
            self._owner |= dict.fromkeys(names, family.name)
            return 0, ""
        kind = _common_kind(present.kind, family.kind, self._page)
        if kind is None:
            types = f"{_text(present.kind or b'untyped')} and {_text(family.kind or b'untyped')}"
            return len(family.lines), f"{_text(family.name)} has the types {types}"
        return self._join(present, family, kind)

    def _join(self, present: Family, family: Family, kind: bytes) -> tuple[int, str]:
        keys = self._keys.get(family.name)
        if keys is None:
            keys = self._keys[family.name] = {series_key(line, present) for line in present.lines}
        present.kind = kind
        present.help = family.help if present.help is None else present.help
        mine: set[bytes] = set()
        dropped = 0
        for line in family.lines:
            key = series_key(line, family)
            if key in keys:
                dropped += 1
            else:
                mine.add(key)
                present.lines.append(line)
        keys |= mine
        return dropped, f"{_text(family.name)} has the same series in two sources" if dropped else ""


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
