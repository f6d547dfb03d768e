"""An ordered header list with constant-time look-up, in the form in which it goes out again.

A field is a tuple ``(name, value, wire)``: lower-case name, value without surrounding white space, and
``name: value CRLF`` as HTTP/1 sends it. Fields of messages that pass are shared with the parser's memo, so passing a
header on costs nothing but its place in the list.
"""

from __future__ import annotations

from collections.abc import Iterable

Field = tuple[bytes, bytes, bytes]


def field(name: bytes, value: bytes) -> Field:
    """Make a field of a lower-case name and a valid value."""
    return (name, value, b"%b: %b\r\n" % (name, value))


class Headers:
    """Fields in order; ``index`` maps each name to its first field. Mutators keep both true."""

    __slots__ = ("fields", "index")

    def __init__(self, fields: list[Field], index: dict[bytes, Field] | None = None) -> None:
        self.fields = fields
        if index is None:
            index = {}
            for f in fields:
                index.setdefault(f[0], f)
        self.index = index

    @classmethod
    def of(cls, pairs: Iterable[tuple[bytes, bytes]]) -> Headers:
        """Headers of (lower-case name, value) pairs."""
        return cls([field(name, value) for name, value in pairs])

    def get(self, name: bytes) -> bytes | None:
        """The first value of a header; None when absent, ``b""`` when present and empty."""
        f = self.index.get(name)
        return None if f is None else f[1]

    def get_all(self, name: bytes) -> list[bytes]:
        """Every value of a header, in order."""
        if name not in self.index:
            return []
        return [f[1] for f in self.fields if f[0] == name]

    def __contains__(self, name: bytes) -> bool:
        return name in self.index

    def add(self, name: bytes, value: bytes) -> None:
        """Append a field, also when the name is present."""
        f = (name, value, b"%b: %b\r\n" % (name, value))
        self.fields.append(f)
        if name not in self.index:
            self.index[name] = f

    def set(self, name: bytes, value: bytes) -> None:
        """Replace the value in place (and drop further fields of that name), or append."""
        old = self.index.get(name)
        if old is None:
            self.add(name, value)
            return
        f = field(name, value)
        fields = self.fields
        at = fields.index(old)
        fields[at] = f
        self.index[name] = f
        for i in range(len(fields) - 1, at, -1):
            if fields[i][0] == name:
                del fields[i]

    def remove(self, name: bytes) -> bool:
        """Drop every field of a name; True if there was one."""
        first = self.index.pop(name, None)
        if first is None:
            return False
        self.fields.remove(first)
        if len(self.fields) != len(self.index):
            self.fields = [f for f in self.fields if f[0] != name]
        return True

    def put(self, f: Field) -> None:
        """Append a ready-made field whose name is not present yet."""
        self.fields.append(f)
        self.index[f[0]] = f

    def replace(self, f: Field) -> None:
        """Like ``set``, with a ready-made field."""
        old = self.index.get(f[0])
        if old is None or len(self.fields) != len(self.index):
            self.set(f[0], f[1])
        else:
            self.fields[self.fields.index(old)] = f
            self.index[f[0]] = f

    def pairs(self) -> list[tuple[bytes, bytes]]:
        """(name, value) in order."""
        return [(f[0], f[1]) for f in self.fields]

    def copy(self) -> Headers:
        """An independent list of the same fields."""
        return Headers(self.fields[:], self.index.copy())

    def __repr__(self) -> str:
        return f"Headers({self.pairs()!r})"
