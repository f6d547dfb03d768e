"""Rules of legacy iptables as the kernel stores them <-> the words of iptables-save, by the extensions of libxtables.

Every match and target library of the image encodes and prints its own options here, as in the iptables programs, so
that the spelling is theirs and foreign rules are understood too. python-iptables gives the libraries, their structures
and their functions; its Rule, Match and Target are not used: they open (which creates) every table of the kernel to
look up a target, leave Python frames by longjmp when an option is wrong, and cut what an extension prints at 1024
bytes.

libxtables prints to file descriptor 1 and ends the process on a wrong option: `Rules` belongs into a child process
that has been prepared for that (`libiptc`).
"""

import ctypes
import ctypes.util
import functools
import importlib
import importlib.util
import os
import re
import socket
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from init.errors import KernelError
from init.rules import Version

# Name that python-iptables asks for -> the library, and the Debian package that has it.
_LIBRARIES: Mapping[str, tuple[str, str]] = {
    "xtables": ("libxtables.so.12", "libxtables12"),
    "ip4tc": ("libip4tc.so.2", "libip4tc2"),
    "ip6tc": ("libip6tc.so.2", "libip6tc2"),
}
_NO_REVISION = " [unsupported revision]"  # in place of options that no library can print, as iptables-save does
_WORD = re.compile(r'(?:"(?:[^"\\]|\\.)*"|[^\s"])+')
_IN_QUOTES = re.compile(r'"((?:[^"\\]|\\.)*)"')
_ESCAPE = re.compile(r"\\(.)")

# linux/netfilter/x_tables.h, linux/netfilter_ipv4/ip_tables.h, linux/netfilter_ipv6/ip6_tables.h, xtables.h
_TRY_LOAD, _MUST_LOAD = 2, 3  # enum xtables_tryload
_INVERSE = {"-i": 0x01, "-o": 0x02, "-s": 0x08, "-d": 0x10, "-f": 0x20, "-p": 0x40}
_FRAGMENT = 0x01  # IPT_F_FRAG
_STANDARD = b"standard"


class _Family(NamedTuple):
    """What differs between ip_tables and ip6_tables; `ip` is the entry's field that holds addresses and interfaces."""

    nfproto: int
    module: str
    functions: str
    entry: str
    ip: str
    socket_family: socket.AddressFamily
    goto: int
    has_protocol: int  # flag of a rule that looks at the protocol


_FAMILIES: Mapping[Version, _Family] = {
    4: _Family(2, "ip4tc", "iptc", "ipt_entry", "ip", socket.AF_INET, 0x02, 0),
    6: _Family(10, "ip6tc", "ip6tc", "ip6t_entry", "ipv6", socket.AF_INET6, 0x04, 0x01),
}


@functools.cache
def load() -> None:
    """Import python-iptables. Raises KernelError where it or a library is not installed.

    Its own way to find libraries starts 27 processes (ldconfig, gcc, ld) and imports setuptools, 0.3 s in all: it is
    told the names instead.
    """
    for library, package in _LIBRARIES.values():
        try:
            ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            raise KernelError(f"cannot load {library}: install the package {package} ({error})") from error
    wrapper = importlib.util.find_spec("libxtwrapper")
    if wrapper is None or wrapper.origin is None:
        raise KernelError("the backend libiptc needs python-iptables: install it with `pip install pysidecar[libiptc]`")
    found = {name: library for name, (library, _) in _LIBRARIES.items()} | {"xtwrapper": wrapper.origin}
    with _import_without_search(found), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            importlib.import_module("iptc")
        except Exception as error:
            raise KernelError(f"cannot use python-iptables with the iptables libraries here: {error}") from error


@contextmanager
def _import_without_search(found: Mapping[str, str]) -> Iterator[None]:
    search = ctypes.util.find_library
    folder = os.environ.get("XTABLES_LIBDIR")
    modules: dict[str, Any] = sys.modules
    had_distutils = "distutils" in modules
    try:
        setattr(ctypes.util, "find_library", found.get)  # noqa: B010
        os.environ["XTABLES_LIBDIR"] = folder or "/"  # else ldconfig is asked; libxtables reads it again later
        modules.setdefault("distutils", None)  # not found: it does without
        yield
    finally:
        setattr(ctypes.util, "find_library", search)  # noqa: B010
        if folder is None:
            del os.environ["XTABLES_LIBDIR"]
        if not had_distutils:
            del modules["distutils"]


def split(line: str) -> list[str]:
    """The words of a line as iptables-restore reads them: double quotes group, a backslash in them escapes."""
    return [
        _IN_QUOTES.sub(lambda quoted: _ESCAPE.sub(r"\1", quoted[1]), word) if '"' in word else word
        for word in _WORD.findall(line)
    ]


@dataclass(frozen=True, slots=True)
class Encoded:
    """A rule as libiptc takes it. `target` is its chain, verdict or extension, `is_standard` if not an extension."""

    blob: bytes
    target: str
    is_standard: bool


class _Option(NamedTuple):
    name: str
    number: int
    takes_value: bool


class _Extension:
    """One use of a match or target library in a rule that is being encoded."""

    def __init__(self, libraries: Any, structure: Any, name: bytes, is_match: bool) -> None:
        self._structure = structure
        self._call = libraries.xtables_option_mpcall if is_match else libraries.xtables_option_tpcall
        self._check = libraries.xtables_option_mfcall if is_match else libraries.xtables_option_tfcall
        self._field = "m" if is_match else "t"
        head = _xtables().xt_entry_match if is_match else _xtables().xt_entry_target
        size = _aligned(ctypes.sizeof(head)) + _aligned(structure.size)
        data = ctypes.cast(libraries.xtables_calloc(1, size), ctypes.POINTER(head))
        user = data.contents.u.user
        setattr(user, "match_size" if is_match else "target_size", size)
        user.name, user.revision = structure.real_name or name, structure.revision
        setattr(structure, self._field, data)
        setattr(structure, "mflags" if is_match else "tflags", 0)
        if structure.udata_size:
            structure.udata = libraries.xtables_calloc(1, structure.udata_size)
        if structure.init:
            structure.init(data)

    def options(self) -> Iterator[_Option]:
        """What the library understands; `number` is how its parser knows the option."""
        for table, number, kind in (("x6_options", "id", "type"), ("extra_opts", "val", "has_arg")):
            entries = getattr(self._structure, table)
            at = 0
            while entries and entries[at].name is not None:
                entry = entries[at]
                yield _Option(entry.name.decode(), getattr(entry, number), bool(getattr(entry, kind)))
                at += 1

    def parse(self, option: _Option, words: Any, negated: bool, entry: Any) -> None:
        """Let the library read one option of `entry`'s rule. A wrong value ends the process."""
        self._call(option.number, words, negated, ctypes.byref(self._structure), ctypes.byref(entry))

    def finish(self) -> bytes:
        """Its part of the rule. The process ends if an option is missing."""
        self._check(ctypes.byref(self._structure))
        data = getattr(self._structure, self._field)
        return ctypes.string_at(data, ctypes.cast(data, ctypes.POINTER(ctypes.c_uint16))[0])


class Rules:
    """Encodes and prints the rules of one family."""

    def __init__(self, version: Version) -> None:
        load()
        self.family = _FAMILIES[version]
        module = importlib.import_module(f"iptc.{self.family.module}")
        self.functions: Any = getattr(module, self.family.functions)
        self._entry_type: Any = getattr(module, self.family.entry)
        self._libraries = _declared(_xtables()._lib_xtables)
        self._libc = ctypes.CDLL(None)
        settings = _xtables()._xt_globals
        settings.program_name, settings.program_version = b"libxtables", b"12"
        exit_type = _xtables()._EXIT_FN
        settings.exit_err = exit_type(ctypes.cast(self._libraries.basic_exit_err, ctypes.c_void_p).value)
        self._types = _xtables().xtables(self.family.nfproto)  # also makes it libxtables' family
        # An original is never used for encoding itself: libxtables would hand out copies that end no search.
        self._originals: dict[tuple[bytes, bool], Any] = {}

    # -- encoding

    def encode(self, words: Sequence[str], is_chain: Callable[[str], bool]) -> Encoded:
        """The rule that `words`, what stands after `-A CHAIN`, specify. Raises KernelError for words without meaning.

        What a library does not accept ends the process, after a message of libxtables on standard error.
        """
        entry = self._entry_type.from_buffer(bytearray(ctypes.sizeof(self._entry_type)))
        ip = getattr(entry, self.family.ip)
        extensions: list[_Extension] = []
        matches: list[_Extension] = []
        target: tuple[_Extension, str, bool] | None = None
        protocol = ""
        rest = list(words)
        while rest:
            negated = rest[0] == "!"
            option, value = (*rest[negated : negated + 2], "", "")[:2]
            if negated and option not in _INVERSE and not option.startswith("--"):
                raise KernelError(f"{option or 'nothing'} cannot be negated")
            if option.startswith("--"):
                extension, found = self._find(option[2:], extensions, matches, protocol)
                if extension not in extensions:
                    extensions.append(extension)
                    matches.append(extension)
                rest = self._parse(extension, found, rest[negated + 1 :], negated, entry)
                continue
            rest = rest[negated + 2 :]
            if option == "-f" and self.family.socket_family == socket.AF_INET:
                ip.flags |= _FRAGMENT
                rest = [value, *rest] if value else rest
            elif not value:
                raise KernelError(f"the option {option} has no value")
            elif option in ("-s", "-d"):
                self._address(ip, "src" if option == "-s" else "dst", "smsk" if option == "-s" else "dmsk", value)
            elif option in ("-i", "-o"):
                name, mask = (ctypes.create_string_buffer(16) for _ in range(2))
                self._libraries.xtables_parse_interface(value.encode(), name, mask)
                prefix = "iniface" if option == "-i" else "outiface"
                _copy(ip, prefix, name.raw)
                _copy(ip, f"{prefix}_mask", mask.raw)
            elif option == "-p":
                protocol = value.lower()
                ip.proto = self._libraries.xtables_parse_protocol(protocol.encode())
                ip.flags |= self.family.has_protocol if ip.proto else 0
            elif option == "-m":
                extensions.append(self._use(value.encode(), is_match=True))
                matches.append(extensions[-1])
            elif option in ("-j", "-g") and target is None:
                standard = is_chain(value) or value in ("ACCEPT", "DROP", "RETURN", "QUEUE")
                if option == "-g":
                    ip.flags |= self.family.goto
                    if not is_chain(value):
                        raise KernelError(f"there is no chain {value} to go to")
                extension = self._use(value.encode(), is_match=False, library=_STANDARD if standard else None)
                target = extension, value, standard
                extensions.append(extension)
            else:
                raise KernelError(f"the option {option} is not understood, or stands there twice")
            ip.invflags |= _INVERSE.get(option, 0) if negated else 0
        if target is None:
            target = self._use(b"", is_match=False, library=_STANDARD), "", True
        parts = [match.finish() for match in matches]
        end = target[0].finish()
        entry.target_offset = ctypes.sizeof(self._entry_type) + sum(map(len, parts))
        entry.next_offset = entry.target_offset + len(end)
        return Encoded(b"".join((bytes(entry), *parts, end)), target[1], target[2])

    def _find(
        self, name: str, extensions: Sequence[_Extension], matches: Sequence[_Extension], protocol: str
    ) -> tuple[_Extension, _Option]:
        """Whose option `name` is: of the newest extension that has it, else of the protocol's. May be abbreviated."""
        known = [(extension, option) for extension in reversed(extensions) for option in extension.options()]
        for extension, option in known:
            if option.name == name:
                return extension, option
        started = [(extension, option) for extension, option in known if option.name.startswith(name)]
        if len({option.name for _, option in started}) == 1:
            return started[0]
        if protocol and not started and self._original(protocol.encode(), is_match=True):
            implied = self._use(protocol.encode(), is_match=True)
            if any(option.name.startswith(name) for option in implied.options()):
                return self._find(name, [implied], [implied], "")
        raise KernelError(f"the option --{name} is not one of a match or target of this rule")

    def _parse(
        self, extension: _Extension, option: _Option, values: Sequence[str], negated: bool, entry: Any
    ) -> list[str]:
        """Hand over one option; what follows it and its values. Extensions read these as getopt leaves them."""
        if option.takes_value and not values:
            raise KernelError(f"the option --{option.name} has no value")
        words = (ctypes.c_char_p * (len(values) + 2))(b"", *(value.encode() for value in values), None)
        read = ctypes.c_int.in_dll(self._libc, "optind")
        read.value = 2 if option.takes_value else 1
        ctypes.c_char_p.in_dll(self._libc, "optarg").value = values[0].encode() if option.takes_value else None
        extension.parse(option, words, negated, entry)
        return list(values[read.value - 1 :])

    def _use(self, name: bytes, *, is_match: bool, library: bytes | None = None) -> _Extension:
        original = self._original(library or name, is_match=is_match, must=True)
        structure = type(original.contents).from_buffer_copy(original.contents)
        return _Extension(self._libraries, structure, name, is_match)

    def _original(self, name: bytes, *, is_match: bool, must: bool = False) -> Any:
        """The newest revision of a library that the kernel knows; a null pointer, or the end, if there is none."""
        key = name, is_match
        if not self._originals.get(key):
            how = _MUST_LOAD if must else _TRY_LOAD
            if is_match:
                found = self._libraries.xtables_find_match(name, how, None)
                kind = self._types._match_struct
            else:
                found = self._libraries.xtables_find_target(name, how)
                kind = self._types._target_struct
            self._originals[key] = ctypes.cast(found, ctypes.POINTER(kind))
        return self._originals[key]

    def _address(self, ip: Any, address: str, mask: str, value: str) -> None:
        network, slash, bits = value.partition("/")
        family = self.family.socket_family
        length = 4 if family == socket.AF_INET else 16
        try:
            packed = socket.inet_pton(family, network)
            if bits.isdecimal() and int(bits) <= 8 * length:
                mask_bits = (1 << 8 * length) - (1 << 8 * length - int(bits))
                packed_mask = mask_bits.to_bytes(length, "big")
            else:
                packed_mask = socket.inet_pton(family, bits) if slash else b"\xff" * length
        except OSError:
            raise KernelError(f"{value} is not an address of this family with a prefix length or mask") from None
        _copy(ip, address, bytes(a & b for a, b in zip(packed, packed_mask, strict=True)))
        _copy(ip, mask, packed_mask)

    # -- printing

    def show_encoded(self, rule: Encoded) -> str:
        """What iptables-save would print of it after `-A CHAIN`."""
        buffer = ctypes.create_string_buffer(rule.blob, len(rule.blob))
        return self.show(ctypes.cast(buffer, ctypes.POINTER(self._entry_type)), rule.target, rule.is_standard)

    def show_stored(self, entry: Any, target: bytes) -> str:
        """The same of a rule in libiptc's memory. `target`: what libiptc says that it is."""
        offset = entry.contents.target_offset
        user = _xtables().xt_entry_target.from_address(ctypes.addressof(entry.contents) + offset).u.user
        return self.show(entry, target.decode(), not user.name)

    def show(self, entry: Any, target: str, is_standard: bool) -> str:
        """The same of the rule that begins with `entry`. Options that no library can print: [unsupported revision]."""
        start = ctypes.addressof(entry.contents)
        ip = getattr(entry.contents, self.family.ip)
        at = ctypes.sizeof(self._entry_type)
        text = self._show_ip(ip)
        while at < entry.contents.target_offset:
            match = ctypes.cast(start + at, ctypes.POINTER(_xtables().xt_entry_match))
            text += self._show_extension(ip, "-m", match, is_match=True)
            at += match.contents.u.match_size
        if not is_standard:
            data = ctypes.cast(start + at, ctypes.POINTER(_xtables().xt_entry_target))
            text += self._show_extension(ip, "-j", data, is_match=False)
        elif target:
            text += f" {'-g' if ip.flags & self.family.goto else '-j'} {target}"
        return text[1:]

    def _show_ip(self, ip: Any) -> str:
        not_ = {option: " !" if ip.invflags & bit else "" for option, bit in _INVERSE.items()}
        text = ""
        for option, address, mask in (("-s", ip.src, ip.smsk), ("-d", ip.dst, ip.dmsk)):
            if any(bytes(mask)) or not_[option]:
                shown = socket.inet_ntop(self.family.socket_family, bytes(address))
                text += f"{not_[option]} {option} {shown}/{_prefix(bytes(mask))}"
        for option, name, mask in (("-i", ip.iniface, _raw(ip, "iniface_mask")), ("-o", ip.outiface, _raw(ip, "outiface_mask"))):
            length = len(mask.rstrip(b"\0"))
            if length:
                shown = name[:length].decode(errors="replace")
                text += f"{not_[option]} {option} {shown}{'+' if len(name[:length]) == length else ''}"
        if ip.proto:
            text += f"{not_['-p']} -p {self._protocol(ip.proto)}"
        if ip.flags & _FRAGMENT and self.family.socket_family == socket.AF_INET:
            text += f"{not_['-f']} -f"
        return text

    def _protocol(self, number: int) -> str:
        names = (_ProtocolName * 64).in_dll(self._libraries, "xtables_chain_protos")
        for known in names:
            if known.name is None:
                break
            if known.number == number:
                return str(known.name.decode())
        self._libc.getprotobynumber.restype = ctypes.POINTER(ctypes.c_char_p)  # struct protoent begins with the name
        found = self._libc.getprotobynumber(number)
        return str(found[0].decode()) if found else str(number)

    def _show_extension(self, ip: Any, option: str, data: Any, *, is_match: bool) -> str:
        name = data.contents.u.user.name
        newest = self._original(name, is_match=is_match)
        revise = self._libraries.xtables_find_match_revision if is_match else self._libraries.xtables_find_target_revision
        exact = newest and revise(name, _TRY_LOAD, newest, data.contents.u.user.revision)
        if not exact:
            return f" {option} {name.decode()}{_NO_REVISION}"
        library = ctypes.cast(exact, type(newest)).contents
        shown = library.alias(data) if library.alias else name
        return f" {option} {shown.decode()}{self._printed(library.save, ip, data) if library.save else ''}"

    def _printed(self, save: Callable[[Any, Any], None], ip: Any, data: Any) -> str:
        """What a library's function writes to standard output, which is a file of ours."""
        save(ctypes.addressof(ip), data)
        self._libc.fflush(None)
        size = os.lseek(1, 0, os.SEEK_CUR)
        text = os.pread(1, size, 0).decode(errors="replace")
        os.lseek(1, 0, os.SEEK_SET)
        return text


class _ProtocolName(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("number", ctypes.c_uint8)]


def _xtables() -> Any:
    return importlib.import_module("iptc.xtables")


def _declared(library: Any) -> Any:
    """libxtables with the types of the functions used here."""
    pointer, number, text = ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p
    parse = [ctypes.c_uint, pointer, ctypes.c_bool, pointer, pointer]
    for function, result, arguments in (
        ("xtables_calloc", pointer, [ctypes.c_size_t, ctypes.c_size_t]),
        ("xtables_find_match", pointer, [text, number, pointer]),
        ("xtables_find_target", pointer, [text, number]),
        ("xtables_find_match_revision", pointer, [text, number, pointer, number]),
        ("xtables_find_target_revision", pointer, [text, number, pointer, number]),
        ("xtables_option_mpcall", None, parse),
        ("xtables_option_tpcall", None, parse),
        ("xtables_option_mfcall", None, [pointer]),
        ("xtables_option_tfcall", None, [pointer]),
        ("xtables_parse_interface", None, [text, pointer, pointer]),
        ("xtables_parse_protocol", ctypes.c_uint16, [text]),
    ):
        declared = getattr(library, function)
        declared.restype, declared.argtypes = result, arguments
    return library


def _aligned(size: int) -> int:
    """XT_ALIGN."""
    return (size + 7) & ~7


def _copy(structure: Any, field: str, data: bytes) -> None:
    ctypes.memmove(ctypes.addressof(structure) + getattr(type(structure), field).offset, data, len(data))


def _raw(structure: Any, field: str) -> bytes:
    """A character array whole: ctypes ends it at a null byte."""
    described = getattr(type(structure), field)
    return ctypes.string_at(ctypes.addressof(structure) + described.offset, described.size)


def _prefix(mask: bytes) -> str:
    """The number of leading ones, or the mask itself when others follow."""
    bits = "".join(f"{byte:08b}" for byte in mask)
    if "01" not in bits:
        return str(bits.count("1"))
    return socket.inet_ntop(socket.AF_INET if len(mask) == 4 else socket.AF_INET6, mask)
