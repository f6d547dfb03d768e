"""Legacy tables without an iptables program, by libiptc through python-iptables.

`Libiptc` does what `iptables-legacy-save` and `iptables-legacy-restore --noflush` do, on the same text. libiptc reads
a table as a whole and writes it as a whole, so a table changes in one step or not at all; rules that are not mentioned
are written back byte for byte, whether their matches are known here or not.

Each call works in a forked child: libxtables prints to standard output, and ends its process when it does not accept
an option.
"""

import ctypes
import fcntl
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

from init.backends.process import LOCK_WAIT, TIMEOUT, hint
from init.backends.xtables import LIBXTABLES_PREFIX, Libraries, load
from init.backends.xtables_rules import encode, show_encoded, show_stored, split
from init.errors import KernelError
from init.rules import Version

_LOCK_FILE = "/run/xtables.lock"
_POLL = 0.02  # seconds between two tries to get the lock


@dataclass(frozen=True, slots=True)
class Libiptc:
    """The legacy tables of one family in this network namespace."""

    version: Version

    @property
    def name(self) -> str:
        """How messages call it."""
        return f"libiptc (IPv{self.version})"

    def save(self) -> str:
        """The tables that exist, as iptables-legacy-save prints them. Raises KernelError.

        A match or target without a library on this image is shown as `[unsupported revision]`.
        """
        return self._in_child(lambda: _save(self.version))

    def restore(self, text: str) -> None:
        """Apply restore text (-N -A -I -D -F -X) on top of what is there. Raises KernelError.

        Every line of every table is understood before the first table is written; each is written in one step.
        """
        with _xtables_lock():
            self._in_child(lambda: _restore(self.version, text))

    def _in_child(self, work: Callable[[], str]) -> str:
        load()
        with ExitStack() as files:
            output, errors, scratch = (os.memfd_create(use) for use in ("output", "errors", "scratch"))
            for file in (output, errors, scratch):
                files.callback(os.close, file)
            child = os.fork()
            if child == 0:
                _run(work, output, errors, scratch)
            try:
                _, status = os.waitpid(child, 0)
            except BaseException:
                os.kill(child, signal.SIGKILL)  # what it does later would surprise whoever repairs this
                os.waitpid(child, 0)
                raise
            if status == 0:
                return _content(output)
            if os.WIFSIGNALED(status):
                how = f"did not end within {TIMEOUT} s" if os.WTERMSIG(status) == signal.SIGALRM else "was killed"
                raise KernelError(f"{self.name} {how}")
            said = _message(_content(errors))
            raise KernelError(f"{self.name}: {said}{hint(said)}")


def tool(version: Version) -> Libiptc:
    """The tool of a family. Raises KernelError where python-iptables or its libraries are not installed."""
    load()
    return Libiptc(version)


def _run(work: Callable[[], str], output: int, errors: int, scratch: int) -> NoReturn:
    """The life of the child. Standard output takes what libraries print, standard error the messages."""
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, TIMEOUT)
        os.dup2(scratch, 1)
        os.dup2(errors, 2)
        _end_without_handlers()
        text = work().encode()
        while text:
            text = text[os.write(output, text) :]
        os._exit(0)
    except KernelError as error:
        os.write(2, str(error).encode(errors="replace"))
    except BaseException as error:
        os.write(2, repr(error).encode(errors="replace"))
    finally:
        os._exit(1)


def _end_without_handlers() -> None:
    """Have exit(3), which libxtables calls, end the process at once: exit handlers belong to our parent's life."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "on_exit"):  # glibc
        libc.on_exit(libc._exit, None)


def _content(file: int) -> str:
    return os.pread(file, os.fstat(file).st_size, 0).decode(errors="replace")


def _message(text: str) -> str:
    """What was written to standard error in one line, without how libxtables begins and ends its messages."""
    said = " ".join(text.replace(LIBXTABLES_PREFIX, "").partition("\nTry `")[0].split()).rstrip(".") or "no message"
    if "Couldn't load" in said:
        return f"{said}: copy the folder xtables of the package iptables to this image, or set XTABLES_LIBDIR to it"
    return said


@contextmanager
def _xtables_lock() -> Iterator[None]:
    """The lock that the legacy programs take for writing."""
    path = os.environ.get("XTABLES_LOCKFILE") or _LOCK_FILE
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        said = f"can't open lock file {path}: {error.strerror}"
        raise KernelError(f"{said}{hint(said)}") from error
    try:
        deadline = time.monotonic() + LOCK_WAIT
        while not _try_lock(fd):
            if time.monotonic() > deadline:
                raise KernelError(
                    f"another program has held the xtables lock ({path}) for {LOCK_WAIT} s: let it end, and run again"
                )
            time.sleep(_POLL)
        yield
    finally:
        os.close(fd)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class _Table:
    """One table, read whole; changed in memory until `commit`."""

    def __init__(self, libraries: Libraries, name: str) -> None:
        self._libraries = libraries
        self._functions = libraries.libiptc
        self.name = name
        self._handle = self._functions.iptc_init(name.encode())
        if not self._handle:
            raise KernelError(f"unable to initialize table {name}: {libraries.error()}")

    def _done(self, result: Any) -> None:
        if not result:
            raise KernelError(self._libraries.error())

    def commit(self) -> None:
        """Write it to the kernel, in one step."""
        if not self._functions.iptc_commit(self._handle):
            raise KernelError(f"cannot write table {self.name}: {self._libraries.error()}")

    def chains(self) -> list[str]:
        """All chains, the built-in ones first."""
        found = []
        chain = self._functions.iptc_first_chain(self._handle)
        while chain:
            found.append(chain.decode())
            chain = self._functions.iptc_next_chain(self._handle)
        return found

    def is_chain(self, name: str) -> bool:
        """Whether it has that chain."""
        return bool(self._functions.iptc_is_chain(name.encode(), self._handle))

    def policy(self, chain: str) -> str:
        """`POLICY [packets:bytes]` of a built-in chain, `- [0:0]` of another."""
        counters = self._libraries.counters()
        policy = self._functions.iptc_get_policy(chain.encode(), ctypes.byref(counters), self._handle)
        return f"{policy.decode() if policy else '-'} [{counters.pcnt}:{counters.bcnt}]"

    def rules(self, chain: str) -> Iterator[str]:
        """The rules of a chain, as iptables-save prints them after `-A CHAIN`."""
        entry = self._functions.iptc_first_rule(chain.encode(), self._handle)
        while entry:
            target = self._libraries.iptc_get_target(entry, self._handle)
            yield show_stored(self._libraries, entry.contents, target)
            entry = self._functions.iptc_next_rule(entry, self._handle)

    # The commands of restore text.

    def create(self, chain: str, _: Sequence[str]) -> None:
        """-N chain"""
        self._done(self._functions.iptc_create_chain(chain.encode(), self._handle))

    def flush(self, chain: str, _: Sequence[str]) -> None:
        """-F chain"""
        self._done(self._functions.iptc_flush_entries(chain.encode(), self._handle))

    def remove(self, chain: str, _: Sequence[str]) -> None:
        """-X chain"""
        self._done(self._functions.iptc_delete_chain(chain.encode(), self._handle))

    def append(self, chain: str, rule: Sequence[str]) -> None:
        """-A chain rule"""
        blob = encode(self._libraries, rule, self.is_chain).blob
        self._done(self._functions.iptc_append_entry(chain.encode(), blob, self._handle))

    def insert(self, chain: str, rule: Sequence[str]) -> None:
        """-I chain [position] rule"""
        numbered = bool(rule) and rule[0].isdecimal()
        position = int(rule[0][:9]) if numbered else 1  # beyond the chain's end: libiptc refuses it
        blob = encode(self._libraries, rule[numbered:], self.is_chain).blob
        self._done(self._functions.iptc_insert_entry(chain.encode(), blob, position - 1, self._handle))

    def delete(self, chain: str, rule: Sequence[str]) -> None:
        """-D chain rule: the first that iptables-save prints alike."""
        wanted = show_encoded(self._libraries, encode(self._libraries, rule, self.is_chain))
        for position, present in enumerate(self.rules(chain)):
            if present == wanted:
                self._done(self._functions.iptc_delete_num_entry(chain.encode(), position, self._handle))
                return
        raise KernelError("there is no such rule in that chain")


class _Command(NamedTuple):
    do: Callable[[_Table, str, Sequence[str]], None]
    takes_rule: bool


_COMMANDS: Mapping[str, _Command] = {
    "-N": _Command(_Table.create, False),
    "-A": _Command(_Table.append, True),
    "-I": _Command(_Table.insert, True),
    "-D": _Command(_Table.delete, True),
    "-F": _Command(_Table.flush, False),
    "-X": _Command(_Table.remove, False),
}


def _save(version: Version) -> str:
    libraries = Libraries(version)
    try:
        with open(libraries.table_names, encoding="ascii") as file:
            names = file.read().split()
    except FileNotFoundError:
        return ""  # the kernel module is not there, so no table is
    except OSError as error:
        raise KernelError(f"cannot read {libraries.table_names}: {error.strerror}") from error
    lines: list[str] = []
    for name in names:
        table = _Table(libraries, name)
        chains = table.chains()
        lines += [f"*{name}", *(f":{chain} {table.policy(chain)}" for chain in chains)]
        lines += [f"-A {chain} {rule}" if rule else f"-A {chain}" for chain in chains for rule in table.rules(chain)]
        lines.append("COMMIT")
    return "".join(f"{line}\n" for line in lines)


def _restore(version: Version, text: str) -> str:
    libraries = Libraries(version)
    changed: list[_Table] = []
    table: _Table | None = None
    for number, line in enumerate(text.splitlines(), 1):
        words = split(line)
        if not words or line.startswith("#"):
            continue
        _announce(f"line {number} ({line.strip()}): ")
        if line.startswith("*") and table is None:
            table = _Table(libraries, line[1:].strip())
        elif table is not None and words == ["COMMIT"]:
            changed.append(table)
            table = None
        elif table is not None and words[0] in _COMMANDS:
            command = _COMMANDS[words[0]]
            if len(words) < 2 or (len(words) > 2 and not command.takes_rule):
                raise KernelError(f"{words[0]} takes the name of a chain{' and a rule' if command.takes_rule else ''}")
            command.do(table, words[1], words[2:])
        else:
            raise KernelError(f"{words[0]} is not understood {'here' if table else 'before a line * table'}")
    _announce("")
    if table is not None:
        raise KernelError(f"the table {table.name} has no COMMIT")
    for table in changed:
        table.commit()
    return ""


def _announce(place: str) -> None:
    """What a message begins with from now on, also if libxtables writes it and ends the process."""
    os.lseek(2, 0, os.SEEK_SET)
    os.ftruncate(2, 0)
    os.write(2, place.encode())
