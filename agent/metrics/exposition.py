"""Reads a document in one of Prometheus' two text formats into families, in the form that the page has.

Strict where a scraper is: one bad line makes it refuse a whole page, so a source with a bad line must not get in.
Only what differs between the formats is rewritten; other lines stay as they are.
"""

import math
import re
from collections.abc import Iterator, Sequence
from enum import Enum


class Format(Enum):
    TEXT = "text/plain; version=0.0.4; charset=utf-8"
    OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
    OPENMETRICS_001 = "application/openmetrics-text; version=0.0.1; charset=utf-8"

    @property
    def is_open(self) -> bool:
        return self is not Format.TEXT


# Real series have a few hundred bytes. The labels of a line of megabytes would take a hundred times its size.
MAX_LINE = 64 * 1024


class BadDocument(Exception):
    """A scraper would refuse the document; the text names the line."""


class Family:
    """Metrics of one name: sample lines, ready for the page."""

    __slots__ = ("help", "kind", "lines", "name", "unit")

    def __init__(self, name: bytes, kind: bytes = b"") -> None:
        self.name = name
        self.kind = kind  # b"" = nobody said
        self.help: bytes | None = None
        self.unit = b""
        self.lines: list[bytes] = []


# Kind -> what samples are called: the family's name and one of these.
SUFFIXES: dict[Format, dict[bytes, tuple[bytes, ...]]] = {
    Format.TEXT: {b"histogram": (b"_bucket", b"_count", b"_sum"), b"summary": (b"", b"_count", b"_sum")},
    Format.OPENMETRICS: {
        b"counter": (b"_total", b"_created", b""),
        b"histogram": (b"_bucket", b"_count", b"_sum", b"_created"),
        b"gaugehistogram": (b"_bucket", b"_gcount", b"_gsum"),
        b"summary": (b"", b"_count", b"_sum", b"_created"),
        b"info": (b"_info",),
    },
}
SUFFIXES[Format.OPENMETRICS_001] = SUFFIXES[Format.OPENMETRICS]
_NO_SUFFIX = (b"",)
_ALL_SUFFIXES = (b"_total", b"_created", b"_bucket", b"_count", b"_sum", b"_gcount", b"_gsum", b"_info")

_TEXT_KINDS = (b"counter", b"gauge", b"histogram", b"summary", b"untyped")
_OPEN_KINDS = (b"counter", b"gauge", b"histogram", b"gaugehistogram", b"summary", b"info", b"stateset", b"unknown")

# Possessive quantifiers on single characters only: on groups they are not reliable before Python 3.12. What is left to
# backtrack gives back whole labels, so the time stays linear.
_QUOTED = rb'"[^"\\]*+(?:\\.[^"\\]*+)*"'
_ITEM = rb"(?:(?:[a-zA-Z_][a-zA-Z0-9_]*+|%b)[ \t]*+=[ \t]*+)?%b" % (_QUOTED, _QUOTED)
_LABELS = rb"\{[ \t]*+(?:%b(?:[ \t]*+,[ \t]*+%b)*[ \t]*+,?)?[ \t]*+\}" % (_ITEM, _ITEM)
_NUMBER = rb"[+-]?(?:[0-9]++(?:\.[0-9]*+)?(?:[eE][+-]?[0-9]++)?|\.[0-9]++(?:[eE][+-]?[0-9]++)?|(?i:inf(?:inity)?|nan))"
# A quoted name inside of the braces is how names beyond ASCII are written.
_SAMPLE = re.compile(
    rb"(?:([a-zA-Z_:][a-zA-Z0-9_:]*+)[ \t]*+(%b)?|(?=\{[ \t]*+\")(%b))[ \t]*+(?<=[ \t}])(%b)"
    rb"(?:[ \t]++(-?[0-9]++(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?))?[ \t]*+(#[ \t]*+%b[ \t]++[^\n]*+)?"
    % (_LABELS, _LABELS, _NUMBER, _LABELS)
)
_LABEL_NAMES = re.compile(rb"(?:([a-zA-Z_][a-zA-Z0-9_]*+|%b)[ \t]*+=[ \t]*+)?(%b)" % (_QUOTED, _QUOTED))
_COMMENT = re.compile(rb"#[ \t]*+(HELP|TYPE|UNIT)[ \t]++([a-zA-Z_:][a-zA-Z0-9_:]*+|%b)(?:[ \t]++([^\n]*+))?" % _QUOTED)
_MAX_STAMP = 18  # characters: milliseconds are an int64
_BAD_ESCAPE = re.compile(rb'\\(\\|"|n|)')
_BAD_ESCAPE_OF_HELP = re.compile(rb"\\(\\|n|)")  # in the text format a quotation mark needs none
# The label of each line of such a family that has to be a number.
_BOUNDS = {b"histogram": b"le", b"gaugehistogram": b"le", b"summary": b"quantile"}
_IS_NUMBER = re.compile(rb'"%b"' % _NUMBER)


class Reader:
    """Feed it lines, then take `families`. `source` is the document's format, `page` that of what is wanted."""

    def __init__(self, source: Format, page: Format) -> None:
        self._source = source
        self._page = page
        self._convert = source.is_open != page.is_open
        self._suffixes = SUFFIXES[source]
        self._kinds = _OPEN_KINDS if source.is_open else _TEXT_KINDS
        self._families: dict[bytes, Family] = {}
        self._family_of: dict[bytes, Family] = {}  # by name of sample
        self._number = 0
        self._ended = False

    def feed(self, lines: Sequence[bytes]) -> None:
        """Raises BadDocument."""
        for line in lines:
            self._number += 1
            if len(line) > MAX_LINE:
                raise self._bad(f"longer than {MAX_LINE} bytes")
            if self._ended:
                if line:
                    raise self._bad("something follows # EOF")
            elif not line or line.isspace():
                continue
            elif line.startswith(b"#"):
                self._comment(line)
            else:
                self._sample(line)

    def families(self) -> Iterator[Family]:
        """The families in the page's form, those without samples left out. Raises BadDocument before the first."""
        if self._source.is_open and not self._ended:
            raise BadDocument("it does not end with # EOF")
        for family in self._families.values():
            bound = _BOUNDS.get(family.kind)
            if bound is not None:
                for line in family.lines:
                    _check_bound(line, bound)
        return self._all_families()

    def _all_families(self) -> Iterator[Family]:
        for family in self._families.values():
            if family.lines:
                if family.help is not None and b"\\" in family.help:
                    allowed = _BAD_ESCAPE if self._source.is_open else _BAD_ESCAPE_OF_HELP
                    family.help = allowed.sub(_escape, family.help)
                yield from self._converted(family) if self._convert else (family,)

    def _bad(self, what: str) -> BadDocument:
        return BadDocument(f"line {self._number}: {what}")

    def _comment(self, line: bytes) -> None:
        if self._source.is_open and line.rstrip() == b"# EOF":
            self._ended = True
            return
        match = _COMMENT.fullmatch(line)
        if match is None:
            return  # a remark
        what, name, text = match.groups()
        if name.startswith(b'"'):
            name = name[1:-1]
        family = self._family(name)
        text = text or b""
        if what == b"HELP":
            if family.help is None:
                family.help = text
        elif what == b"UNIT":
            family.unit = text.strip()
        else:
            kind = text.strip()
            kind = kind if kind in self._kinds else b"unknown" if self._source.is_open else b"untyped"
            if family.kind and family.kind != kind:
                raise self._bad(f"a second type for {_shown(name)}")
            if not family.kind:
                family.kind = kind
                self._take_over(family)

    def _take_over(self, family: Family) -> None:
        """Samples that came before their TYPE line were taken for families of their own."""
        for suffix in self._suffixes.get(family.kind, ()):
            name = family.name + suffix
            other = self._families.get(name) if suffix else None
            if other is not None and not other.kind:
                family.lines += other.lines
                del self._families[name]
            if other is None or not other.kind:
                self._family_of[name] = family

    def _family(self, name: bytes) -> Family:
        family = self._families.get(name)
        if family is None:
            family = self._families[name] = Family(name)
            self._family_of.setdefault(name, family)
        return family

    def _sample(self, line: bytes) -> None:
        match = _SAMPLE.fullmatch(line)
        if match is None:
            raise self._bad(f"not a sample: {_shown(line)}")
        name, labels, named_labels, number, stamp, exemplar = match.groups()
        if _overflows(number) or (stamp is not None and self._is_too_long(stamp)):
            raise self._bad(f"number is out of range: {_shown(line)}")
        labels = labels or named_labels or b""
        if b"," in labels or named_labels:
            pairs = _LABEL_NAMES.findall(labels)
            names = [pair[0] for pair in pairs]
            if named_labels is not None:
                name = pairs[0][1][1:-1]
            if len(set(names)) != len(names) or (b"" in names and named_labels is None):
                raise self._bad(f"label names are not unique: {_shown(line)}")
        elif b'"' in labels and b"=" not in labels.partition(b'"')[0]:
            raise self._bad(f"label without a name: {_shown(line)}")
        if not self._source.is_open:
            if exemplar is not None or (stamp is not None and not stamp.lstrip(b"-").isdigit()):
                raise self._bad(f"not a sample: {_shown(line)}")
        if b"\\" in line:
            line = _BAD_ESCAPE.sub(_escape, line)
        if line[-1] in b" \t":
            line = line.rstrip(b" \t")  # a blank at the end announces a timestamp to some
        family = self._family_of.get(name) or self._family(name)
        if self._convert:
            if self._source.is_open and family.kind in _CREATED and name == family.name + b"_created":
                return  # when a series began: the other format has no place for it
            if exemplar is not None:
                line = line[: match.start(6)].rstrip()
            if stamp is not None:
                line = line[: match.start(5)].rstrip() + b" " + self._stamp(stamp)
        family.lines.append(line)

    def _is_too_long(self, stamp: bytes) -> bool:
        return _overflows(stamp) if self._source.is_open else len(stamp) > _MAX_STAMP

    def _stamp(self, stamp: bytes) -> bytes:
        """Milliseconds in the text format, seconds in OpenMetrics."""
        value = float(stamp)
        if abs(value) > 1e15:
            raise self._bad("timestamp is out of range")
        return b"%d" % round(value * 1000) if self._source.is_open else b"%.3f" % (value / 1000)

    def _converted(self, family: Family) -> Iterator[Family]:
        yield from self._to_text(family) if self._source.is_open else self._to_open(family)

    def _to_open(self, family: Family) -> Iterator[Family]:
        if family.help is not None:
            # A quotation mark needs no escape in the text format.
            family.help = family.help.replace(b'\\"', b'"').replace(b'"', b'\\"')
        if family.kind == b"counter":
            base = family.name.removesuffix(b"_total")
            if base != family.name and base not in self._families:
                family.name = base
            else:
                family.kind = b"unknown"  # a counter must end in _total, and the name must stay what it is
        elif family.kind in (b"untyped", b""):
            family.kind = b"unknown"
        yield family

    def _to_text(self, family: Family) -> Iterator[Family]:
        if family.help is not None:
            family.help = family.help.replace(b'\\"', b'"')
        family.unit = b""
        kind = family.kind
        if kind in (b"histogram", b"summary", b"gauge"):
            yield family
            return
        if kind == b"stateset":
            family.kind = b"gauge"
            yield family
            return
        target = {b"counter": b"counter", b"info": b"gauge"}.get(kind, b"untyped")
        split: dict[bytes, Family] = {}
        for line in family.lines:
            match = _SAMPLE.match(line)
            name = match[1] if match and match[1] else family.name
            if name not in split:
                split[name] = Family(name, target)
                split[name].help = family.help
            split[name].lines.append(line)
        yield from split.values()


_CREATED = (b"counter", b"histogram", b"summary")


def sample_names(family: Family, page: Format) -> Iterator[bytes]:
    """Every name that a scraper may take for a sample of this family."""
    yield family.name
    for suffix in SUFFIXES[page].get(family.kind, _NO_SUFFIX):
        yield family.name + suffix


def series_key(line: bytes, family: Family) -> bytes:
    """What tells a metric of this family from its others: the labels in order. The parts of a histogram or summary
    have the same key, for they make no sense without each other.
    """
    match = _SAMPLE.match(line)
    assert match is not None
    pairs = _LABEL_NAMES.findall(match[2] or match[3] or b"")
    parts = family.kind in (b"histogram", b"gaugehistogram", b"summary")
    kept = sorted((name, value) for name, value in pairs if not (parts and name in (b"le", b"quantile")))
    name = b"" if parts else match[1] or b""
    return name + b"{" + b",".join(name + b"=" + value for name, value in kept)


def _check_bound(line: bytes, label: bytes) -> None:
    """Raises BadDocument when the label is there and no number."""
    match = _SAMPLE.match(line) if label in line else None
    for name, value in _LABEL_NAMES.findall(match[2] or match[3] or b"") if match else ():
        if name == label and (not _IS_NUMBER.fullmatch(value) or _overflows(value[1:-1])):
            raise BadDocument(f"{label.decode()} is not a number: {_shown(line)}")


def _overflows(number: bytes) -> bool:
    """Whether it is too large for a float; a scraper takes infinity only by its name."""
    return (b"e" in number or b"E" in number or len(number) > 300) and math.isinf(float(number))


def _escape(match: re.Match[bytes]) -> bytes:
    """A backslash that escapes nothing stands for itself; some scrapers want it doubled."""
    return match[0] if match[1] else b"\\\\"


def _shown(text: bytes) -> str:
    return repr(text[:80].decode("utf-8", "replace"))
