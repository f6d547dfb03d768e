"""Rules of legacy iptables as the kernel stores them <-> the words of iptables-save.

Each match and target library encodes and prints its own options, as in the iptables programs, so the spelling is
theirs, and foreign rules are understood as well as ours. Here are only the options of every rule (addresses,
interfaces, protocol) and the way an option finds its library.
"""

import ctypes
import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from init.backends.xtables import Libraries
from init.errors import KernelError

_WORD = re.compile(r'(?:"(?:[^"\\]|\\.)*"|[^\s"])+')
_IN_QUOTES = re.compile(r'"((?:[^"\\]|\\.)*)"')
_ESCAPE = re.compile(r"\\(.)")

# Bits of invflags and flags in struct ipt_ip and ip6t_ip6 (linux/netfilter_ipv4/ip_tables.h).
_INVERSE: Mapping[str, int] = {"-i": 0x01, "-o": 0x02, "-s": 0x08, "-d": 0x10, "-f": 0x20, "-p": 0x40}
_FRAGMENT = 0x01
_INTERFACE_SIZE = 16  # IFNAMSIZ
_STANDARD = b"standard"  # the library of verdicts and jumps
_VERDICTS = frozenset(("ACCEPT", "DROP", "RETURN", "QUEUE"))
_NO_REVISION = " [unsupported revision]"  # iptables-save's words where no library can print the options


def split(line: str) -> list[str]:
    """The words of a line as iptables-restore reads them: double quotes group, a backslash in them escapes."""
    return [
        _IN_QUOTES.sub(lambda quoted: _ESCAPE.sub(r"\1", quoted[1]), word) if '"' in word else word
        for word in _WORD.findall(line)
    ]


@dataclass(frozen=True, slots=True)
class Encoded:
    """A rule as libiptc takes it. `target`: its chain, verdict or extension; `is_standard`: one of the first two."""

    blob: bytes
    target: str
    is_standard: bool


def encode(libraries: Libraries, words: Sequence[str], is_chain: Callable[[str], bool]) -> Encoded:
    """The rule that `words`, what stands after `-A CHAIN`, specify. Raises KernelError for what is no option.

    What a library does not accept ends the process, after a message of libxtables on standard error.
    """
    rule = _Rule(libraries, is_chain)
    rest = list(words)
    while rest:
        negated = rest[0] == "!"
        option, *values = rest[negated:] or [""]
        rest = (
            rule.extension_option(option, values, negated)
            if option[:2] == "--"
            else rule.option(option, values, negated)
        )
    return rule.finish()


class _Option(NamedTuple):
    """An option of a library; `number` is how its parser knows it."""

    name: str
    number: int
    takes_value: bool


class _Extension:
    """One use of a match or target library in a rule that is being encoded."""

    def __init__(self, libraries: Libraries, name: str, *, is_match: bool, is_standard: bool = False) -> None:
        original = libraries.extension(_STANDARD if is_standard else name.encode(), is_match=is_match, must=True)
        self._library = type(original.contents).from_buffer_copy(original.contents)
        self._libraries = libraries
        self._calls = libraries.libxtables
        self._parse = self._calls.xtables_option_mpcall if is_match else self._calls.xtables_option_tpcall
        self._check = self._calls.xtables_option_mfcall if is_match else self._calls.xtables_option_tfcall
        self._data_field = "m" if is_match else "t"
        self._kept: list[object] = []  # words that the library may still point to
        head = libraries.match_head if is_match else libraries.target_head
        size = _aligned(ctypes.sizeof(head)) + _aligned(self._library.size)
        data = ctypes.cast(self._calls.xtables_calloc(1, size), ctypes.POINTER(head))
        setattr(data.contents.u.user, "match_size" if is_match else "target_size", size)
        data.contents.u.user.name = self._library.real_name or name.encode()
        data.contents.u.user.revision = self._library.revision
        setattr(self._library, self._data_field, data)
        if self._library.udata_size:
            self._library.udata = self._calls.xtables_calloc(1, self._library.udata_size)
        if self._library.init:
            self._library.init(data)

    def options(self) -> Iterator[_Option]:
        """What the library understands."""
        for table, number, kind in (("x6_options", "id", "type"), ("extra_opts", "val", "has_arg")):
            entries = getattr(self._library, table)
            at = 0
            while entries and entries[at].name is not None:
                yield _Option(entries[at].name.decode(), getattr(entries[at], number), bool(getattr(entries[at], kind)))
                at += 1

    def parse(self, option: _Option, values: Sequence[str], negated: bool, entry: Any) -> list[str]:
        """Let the library read an option, as getopt leaves it; what follows it and its values."""
        if option.takes_value and not values:
            raise KernelError(f"the option --{option.name} has no value")
        encoded = [b"", *(value.encode() for value in values), None]
        words = (ctypes.c_char_p * len(encoded))(*encoded)
        self._kept += [encoded, words]
        read = ctypes.c_int.in_dll(self._libraries.libc, "optind")
        read.value = 2 if option.takes_value else 1
        ctypes.c_char_p.in_dll(self._libraries.libc, "optarg").value = encoded[1] if option.takes_value else None
        self._parse(option.number, words, negated, ctypes.byref(self._library), ctypes.byref(entry))
        return list(values[read.value - 1 :])

    def finish(self) -> bytes:
        """Its part of the rule; the process ends if an option is missing."""
        self._check(ctypes.byref(self._library))
        data = getattr(self._library, self._data_field)
        return ctypes.string_at(data, ctypes.cast(data, ctypes.POINTER(ctypes.c_uint16))[0])


class _Rule:
    """A rule that is being encoded."""

    def __init__(self, libraries: Libraries, is_chain: Callable[[str], bool]) -> None:
        self._libraries = libraries
        self._is_chain = is_chain
        self._entry = libraries.entry_type.from_buffer(bytearray(ctypes.sizeof(libraries.entry_type)))
        self._ip = getattr(self._entry, libraries.ip)
        self._protocol = ""
        self._matches: list[_Extension] = []
        self._target: _Extension | None = None
        self._target_name, self._is_standard = "", True
        self._newest_first: list[_Extension] = []

    def option(self, option: str, values: Sequence[str], negated: bool) -> list[str]:
        """Read one option that every rule may have; what follows it."""
        if option not in _OPTIONS or (negated and option not in _INVERSE):
            raise KernelError(f"{'! ' if negated else ''}{option or 'nothing'} is not understood")
        if negated:
            self._ip.invflags |= _INVERSE[option]
        if option == "-f":
            if self._libraries.socket_family != socket.AF_INET:
                raise KernelError("the option -f is one of IPv4")
            self._ip.flags |= _FRAGMENT
            return list(values)
        if not values:
            raise KernelError(f"the option {option} has no value")
        _OPTIONS[option](self, option, values[0])
        return list(values[1:])

    def extension_option(self, option: str, values: Sequence[str], negated: bool) -> list[str]:
        """Read one option of a match or target; what follows it."""
        extension, found = self._owner(option[2:])
        return extension.parse(found, values, negated, self._entry)

    def _owner(self, name: str) -> tuple[_Extension, _Option]:
        """The newest extension with that option, which may be abbreviated; else the protocol's match."""
        known = [(extension, option) for extension in self._newest_first for option in extension.options()]
        exact = [pair for pair in known if pair[1].name == name]
        started = exact or [pair for pair in known if pair[1].name.startswith(name)]
        if len({option.name for _, option in started}) == 1:
            return started[0]
        if not started and self._protocol:
            protocol, self._protocol = self._protocol, ""  # tried once
            if self._libraries.extension(protocol.encode(), is_match=True):
                self._use_match("-m", protocol)
                return self._owner(name)
        raise KernelError(f"--{name} is {'ambiguous' if started else 'no option of a match or target of this rule'}")

    def _set_address(self, option: str, value: str) -> None:
        network, slash, bits = value.partition("/")
        family = self._libraries.socket_family
        length = 4 if family == socket.AF_INET else 16
        try:
            address = socket.inet_pton(family, network)
            if bits.isdecimal() and int(bits) <= 8 * length:
                mask = ((1 << 8 * length) - (1 << 8 * length - int(bits))).to_bytes(length, "big")
            else:
                mask = socket.inet_pton(family, bits) if slash else b"\xff" * length
        except OSError:
            raise KernelError(f"{value} is no address of this family with a prefix length or mask") from None
        _write(self._ip, "src" if option == "-s" else "dst", bytes(a & b for a, b in zip(address, mask, strict=True)))
        _write(self._ip, "smsk" if option == "-s" else "dmsk", mask)

    def _set_interface(self, option: str, value: str) -> None:
        name, mask = (ctypes.create_string_buffer(_INTERFACE_SIZE) for _ in range(2))
        self._libraries.libxtables.xtables_parse_interface(value.encode(), name, mask)
        field = "iniface" if option == "-i" else "outiface"
        _write(self._ip, field, name.raw)
        _write(self._ip, f"{field}_mask", mask.raw)

    def _set_protocol(self, option: str, value: str) -> None:
        self._protocol = value.lower()
        self._ip.proto = self._libraries.libxtables.xtables_parse_protocol(self._protocol.encode())
        self._ip.flags |= self._libraries.looks_at_protocol if self._ip.proto else 0

    def _use_match(self, option: str, value: str) -> None:
        self._matches.append(_Extension(self._libraries, value, is_match=True))
        self._newest_first.insert(0, self._matches[-1])
        if value == self._protocol:
            self._protocol = ""  # its options are there now

    def _set_target(self, option: str, value: str) -> None:
        is_chain = self._is_chain(value)
        if self._target is not None:
            raise KernelError("a rule has one -j or -g")
        if option == "-g":
            if not is_chain:
                raise KernelError(f"there is no chain {value}")
            self._ip.flags |= self._libraries.goto
        self._target_name, self._is_standard = value, is_chain or value in _VERDICTS
        self._target = _Extension(self._libraries, value, is_match=False, is_standard=self._is_standard)
        self._newest_first.insert(0, self._target)

    def finish(self) -> Encoded:
        """The rule, if nothing is missing."""
        matches = b"".join(match.finish() for match in self._matches)
        target = self._target or _Extension(self._libraries, "", is_match=False, is_standard=True)
        end = target.finish()
        self._entry.target_offset = ctypes.sizeof(self._entry) + len(matches)
        self._entry.next_offset = self._entry.target_offset + len(end)
        return Encoded(bytes(self._entry) + matches + end, self._target_name, self._is_standard)


_OPTIONS: Mapping[str, Callable[[_Rule, str, str], None]] = {
    "-s": _Rule._set_address,
    "-d": _Rule._set_address,
    "-i": _Rule._set_interface,
    "-o": _Rule._set_interface,
    "-p": _Rule._set_protocol,
    "-f": lambda *_: None,  # takes no value
    "-m": _Rule._use_match,
    "-j": _Rule._set_target,
    "-g": _Rule._set_target,
}


def show_encoded(libraries: Libraries, rule: Encoded) -> str:
    """What iptables-save prints of the rule after `-A CHAIN`, once it is in the kernel."""
    buffer = ctypes.create_string_buffer(rule.blob, len(rule.blob))
    return _show(libraries, libraries.entry_type.from_buffer(buffer), rule.target, rule.is_standard)


def show_stored(libraries: Libraries, entry: Any, target: int) -> str:
    """The same of a rule in libiptc's memory. `target`: where the name is that libiptc gives to its target."""
    start = ctypes.addressof(entry)
    is_extension = start <= target < start + entry.next_offset  # names of chains and verdicts are elsewhere
    return _show(libraries, entry, ctypes.string_at(target).decode(errors="replace"), not is_extension)


def _show(libraries: Libraries, entry: Any, target: str, is_standard: bool) -> str:
    ip = getattr(entry, libraries.ip)
    text = _show_ip(libraries, ip)
    at = ctypes.sizeof(libraries.entry_type)
    while at < entry.target_offset:
        match = libraries.match_head.from_address(ctypes.addressof(entry) + at)
        text += _show_extension(libraries, ip, "-m", match, is_match=True)
        at += match.u.match_size
    if not is_standard:
        data = libraries.target_head.from_address(ctypes.addressof(entry) + at)
        text += _show_extension(libraries, ip, "-j", data, is_match=False)
    elif target:
        text += f" {'-g' if ip.flags & libraries.goto else '-j'} {target}"
    return text[1:]


def _show_ip(libraries: Libraries, ip: Any) -> str:
    inverse = {option: " !" if ip.invflags & bit else "" for option, bit in _INVERSE.items()}
    text = ""
    for option, address, mask in (("-s", bytes(ip.src), bytes(ip.smsk)), ("-d", bytes(ip.dst), bytes(ip.dmsk))):
        if any(mask) or inverse[option]:
            shown = socket.inet_ntop(libraries.socket_family, address)
            text += f"{inverse[option]} {option} {shown}/{_show_mask(libraries, mask)}"
    for option, name, field in (("-i", ip.iniface, "iniface_mask"), ("-o", ip.outiface, "outiface_mask")):
        length = len(_read(ip, field).rstrip(b"\0"))
        if length:  # the mask of a whole name covers its final null byte
            wildcard = "+" if len(name) >= length else ""
            text += f"{inverse[option]} {option} {name[:length].decode(errors='replace')}{wildcard}"
    if ip.proto:
        text += f"{inverse['-p']} -p {libraries.protocol(ip.proto)}"
    if libraries.socket_family == socket.AF_INET and ip.flags & _FRAGMENT:
        text += f"{inverse['-f']} -f"
    return text


def _show_mask(libraries: Libraries, mask: bytes) -> str:
    """The number of leading ones, or the mask itself when others follow."""
    bits = "".join(f"{byte:08b}" for byte in mask)
    return socket.inet_ntop(libraries.socket_family, mask) if "01" in bits else str(bits.count("1"))


def _show_extension(libraries: Libraries, ip: Any, option: str, data: Any, *, is_match: bool) -> str:
    name = data.u.user.name
    library = libraries.revision(name, data.u.user.revision, is_match=is_match)
    if library is None:
        return f" {option} {name.decode(errors='replace')}{_NO_REVISION}"
    shown = library.alias(ctypes.byref(data)) if library.alias else name
    return f" {option} {shown.decode(errors='replace')}{_printed(libraries, library.save, ip, data)}"


def _printed(libraries: Libraries, save: Any, ip: Any, data: Any) -> str:
    """What a library's function writes to standard output, which is a file of ours."""
    if not save:
        return ""
    save(ctypes.addressof(ip), ctypes.byref(data))
    libraries.libc.fflush(None)
    text = os.pread(1, os.lseek(1, 0, os.SEEK_CUR), 0)
    os.lseek(1, 0, os.SEEK_SET)
    return text.decode(errors="replace")


def _aligned(size: int) -> int:
    """XT_ALIGN."""
    return (size + 7) & ~7


def _write(structure: Any, field: str, data: bytes) -> None:
    ctypes.memmove(ctypes.addressof(structure) + getattr(type(structure), field).offset, data, len(data))


def _read(structure: Any, field: str) -> bytes:
    """A character array whole; as a value it ends at its first null byte."""
    described = getattr(type(structure), field)
    return ctypes.string_at(ctypes.addressof(structure) + described.offset, described.size)
