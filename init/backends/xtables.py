"""libxtables, libip4tc and libip6tc, through python-iptables.

It gives the libraries, their structures and the functions of libiptc. Its Rule, Match and Target are not used: they
open (which creates) every table of the kernel to look up a target, leave Python frames by longjmp when an option is
wrong, cut what an extension prints at 1024 bytes, and know neither abbreviated nor protocol-implied options.

libxtables prints to file descriptor 1 and ends the process on a wrong option: `Libraries` belongs into a child process
that has been prepared for that (`libiptc`).
"""

import ctypes
import ctypes.util
import functools
import importlib
import importlib.util
import os
import socket
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from init.errors import KernelError
from init.rules import Version

_XTABLES = "libxtables.so.12"
# Name that python-iptables asks for -> the library, and the Debian package that has it.
_LIBRARIES: Mapping[str, tuple[str, str]] = {
    "xtables": (_XTABLES, "libxtables12"),
    "ip4tc": ("libip4tc.so.2", "libip4tc2"),
    "ip6tc": ("libip6tc.so.2", "libip6tc2"),
}
_PROGRAM, _VERSION = "libxtables", "12"
LIBXTABLES_PREFIX = f"{_PROGRAM} v{_VERSION}: "  # what messages of libxtables begin with
_TRY_LOAD, _MUST_LOAD = 2, 3  # enum xtables_tryload


class _Family(NamedTuple):
    nfproto: int
    module: str
    functions: str
    entry: str
    ip: str
    socket_family: socket.AddressFamily
    goto: int
    looks_at_protocol: int
    names: str


_FAMILIES: Mapping[Version, _Family] = {
    4: _Family(2, "ip4tc", "iptc", "ipt_entry", "ip", socket.AF_INET, 0x02, 0, "/proc/net/ip_tables_names"),
    6: _Family(10, "ip6tc", "ip6tc", "ip6t_entry", "ipv6", socket.AF_INET6, 0x04, 0x01, "/proc/net/ip6_tables_names"),
}


@functools.cache
def load() -> None:
    """Import python-iptables. Raises KernelError where it or a library is not installed.

    Its own search for libraries starts 27 processes (ldconfig, gcc, ld) and it imports setuptools where that is
    installed, 0.3 s in all: it is told the names instead.
    """
    for library, package in _LIBRARIES.values():
        try:
            ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            raise KernelError(f"the backend libiptc cannot load {library}: install the package {package}") from error
    wrapper = importlib.util.find_spec("libxtwrapper")
    if wrapper is None or wrapper.origin is None:
        raise KernelError("the backend libiptc needs python-iptables: install it with `pip install pysidecar[libiptc]`")
    found = {name: library for name, (library, _) in _LIBRARIES.items()} | {"xtwrapper": wrapper.origin}
    with _import_without_search(found), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            importlib.import_module("iptc")
        except Exception as error:
            raise KernelError(f"python-iptables does not work with the iptables libraries here: {error}") from error


@contextmanager
def _import_without_search(found: Mapping[str, str]) -> Iterator[None]:
    modules: dict[str, Any] = sys.modules  # None as value: not found
    search, folder, had_distutils = ctypes.util.find_library, os.environ.get("XTABLES_LIBDIR"), "distutils" in modules
    try:
        setattr(ctypes.util, "find_library", found.get)  # noqa: B010
        # Without it ldconfig is asked. libxtables reads it again when `Libraries` are made.
        os.environ["XTABLES_LIBDIR"] = folder or "/"
        modules.setdefault("distutils", None)  # "not found": it does without
        yield
    finally:
        ctypes.util.find_library = search
        if folder is None:
            del os.environ["XTABLES_LIBDIR"]
        if not had_distutils:
            del modules["distutils"]


class Libraries:
    """The libraries, set up for one family.

    `libiptc` has the functions of libip4tc or libip6tc under the names of the former. `ip` names the field of an
    `entry_type` that holds addresses and interfaces. `goto` and `looks_at_protocol` are flags in it.
    """

    def __init__(self, version: Version) -> None:
        load()
        family = _FAMILIES[version]
        module = importlib.import_module(f"iptc.{family.module}")
        shared = importlib.import_module("iptc.xtables")
        self.libiptc: Any = getattr(module, family.functions)
        self.entry_type: Any = getattr(module, family.entry)
        self.match_head: Any = shared.xt_entry_match
        self.target_head: Any = shared.xt_entry_target
        self.counters: Any = shared.xt_counters
        self.ip = family.ip
        self.socket_family = family.socket_family
        self.goto = family.goto
        self.looks_at_protocol = family.looks_at_protocol
        self.table_names = family.names
        # Declared anew: where the name stands tells an extension's from a chain's.
        self.iptc_get_target = ctypes.CDLL(_LIBRARIES[family.module][0])[self.libiptc.iptc_get_target.__name__]
        self.iptc_get_target.restype = ctypes.c_void_p
        self.libxtables = _declared(ctypes.CDLL(_XTABLES))
        self.libc = ctypes.CDLL(None)
        self.libc.getprotobynumber.restype = ctypes.POINTER(ctypes.c_char_p)  # struct protoent begins with the name
        self._errno = module._get_errno_loc if version == 4 else importlib.import_module("iptc.ip4tc")._get_errno_loc
        shared._xt_globals.program_name, shared._xt_globals.program_version = _PROGRAM.encode(), _VERSION.encode()
        # The library's own end instead of python-iptables' jump: a message on standard error, then exit.
        end = ctypes.cast(self.libxtables.basic_exit_err, ctypes.c_void_p).value
        shared._xt_globals.exit_err = shared._EXIT_FN(end)
        self._set_up = shared.xtables(family.nfproto)
        self._found: dict[tuple[bytes, bool], Any] = {}

    def extension(self, name: bytes, *, is_match: bool, must: bool = False) -> Any:
        """A pointer to the newest revision of a library that the kernel knows.

        Without it: a null pointer, or the end of the process if it `must` be there. Not to be written to: libxtables
        answers the next search with a copy of what is in use, and its search for revisions never ends in one.
        """
        key = name, is_match
        if not self._found.get(key):
            how = _MUST_LOAD if must else _TRY_LOAD
            find = self.libxtables.xtables_find_match if is_match else self.libxtables.xtables_find_target
            found = find(name, how, None) if is_match else find(name, how)
            structure = self._set_up._match_struct if is_match else self._set_up._target_struct
            self._found[key] = ctypes.cast(found, ctypes.POINTER(structure))
        return self._found[key]

    def revision(self, name: bytes, number: int, *, is_match: bool) -> Any:
        """A library in the revision that a rule of the kernel has, or None."""
        newest = self.extension(name, is_match=is_match)
        find = self.libxtables.xtables_find_match_revision if is_match else self.libxtables.xtables_find_target_revision
        found = find(name, _TRY_LOAD, newest, number) if newest else None
        return ctypes.cast(found, type(newest)).contents if found else None

    def protocol(self, number: int) -> str:
        """A protocol's name as iptables-save prints it, or the number."""
        for known in (_ProtocolName * 64).in_dll(self.libxtables, "xtables_chain_protos"):
            if known.name is None:
                break
            if known.number == number:
                return str(known.name.decode())
        found = self.libc.getprotobynumber(number)
        return str(found[0].decode()) if found else str(number)

    def error(self) -> str:
        """What the last failure of libiptc means."""
        number = self._errno()[0]
        return str(self.libiptc.iptc_strerror(number).decode()) if number else "incompatible with this kernel"


class _ProtocolName(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("number", ctypes.c_uint8)]


def _declared(library: Any) -> Any:
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
