"""The backend libiptc against the programs whose place it takes: iptables-legacy-save and iptables-legacy-restore."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from init.backends import libiptc, xtables
from init.backends.libiptc import Libiptc
from init.errors import KernelError
from init.rules import TABLES, VERSIONS, Version

from .netns import Namespace, require, shared

if importlib.util.find_spec("iptc") is None:
    pytest.skip("python-iptables is not installed", allow_module_level=True)
if shutil.which("iptables-legacy-restore") is None:
    pytest.skip("no iptables-legacy-restore in PATH", allow_module_level=True)

PROGRAMS: dict[Version, str] = {4: "iptables", 6: "ip6tables"}
# Rules as people write them. Every one is stored, printed, found and removed as by the programs.
FOREIGN: tuple[tuple[str, str], ...] = (
    ("mangle", "PREROUTING ! -i eth+ -p tcp -m tcp ! --sport 1024:65535 --tcp-flags FIN,SYN,RST,ACK SYN -j ACCEPT"),
    ("mangle", r'PREROUTING -m comment --comment "it\'s \"quoted\" and - ! strange" -j RETURN'),
    ("mangle", "PREROUTING -m limit --limit 5/min --limit-burst 7 -j DROP"),
    ("mangle", "PREROUTING -p udp -m multiport --sports 1,2:5 -m multiport ! --dports 53 -j FOREIGN"),
    ("mangle", "PREROUTING -m statistic --mode random --probability 0.5"),
    ("mangle", "PREROUTING -m mark --mark 0x1/0xff -m connmark ! --mark 0x2/0x3 -g FOREIGN"),
    ("mangle", "PREROUTING -m state --state NEW,ESTABLISHED -j CONNMARK --restore-mark --mask 0xff"),
    ("mangle", "OUTPUT -o lo -m owner ! --uid-owner 1-9 -m owner ! --gid-owner 7 -j MARK --set-mark 5/0xff"),
    ("mangle", "OUTPUT ! -p 47 -j MARK --or-mark 0x10"),
    ("mangle", "OUTPUT"),
    ("nat", "OUTPUT -p tcp --dport 81 -j REDIRECT --to-port 8000-8010 --random"),
    ("nat", "OUTPUT -p udp --sport 7 --dport 53 -j REDIRECT --to-port 15053"),
    ("raw", "PREROUTING -j NOTRACK"),
    ("raw", "PREROUTING -p udp -j CT --zone-orig 5"),
)
FOREIGN_OF_FAMILY: dict[Version, tuple[tuple[str, str], ...]] = {
    4: (
        ("mangle", "PREROUTING -s 10.1.2.3/255.0.255.0 ! -d 10.0.0.0/8 -p icmp -m icmp --icmp-type 8 -f -j ACCEPT"),
        ("nat", "PREROUTING -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.1:8080"),
    ),
    6: (
        ("mangle", "PREROUTING -s 2001:db8::1/ffff:0:ffff:: ! -d 2001:db8::/32 -p ipv6-icmp -j ACCEPT"),
        ("nat", "PREROUTING -p tcp -m tcp --dport 80 -j DNAT --to-destination [2001:db8::1]:8080"),
    ),
}


@pytest.fixture(scope="module")
def namespace() -> Iterator[Namespace]:
    """All tests of this file are in one; each begins with tables that are empty or that it fills."""
    require()
    with Namespace() as made, made.entered():
        yield made


class Programs:
    """The judge: one family's legacy programs."""

    def __init__(self, namespace: Namespace, version: Version) -> None:
        self._namespace = namespace
        self._program = f"{PROGRAMS[version]}-legacy"

    def save(self, *arguments: str) -> str:
        """The tables, without comments."""
        lines = self._run([f"{self._program}-save", *arguments]).splitlines(keepends=True)
        return "".join(line for line in lines if not line.startswith("#"))

    def restore(self, text: str, *arguments: str) -> None:
        """Apply `text`, after emptying its tables unless told not to."""
        self._run([f"{self._program}-restore", "--wait=30", *arguments], text)

    def empty(self) -> None:
        """No rules and no chains but the built-in ones."""
        self.restore("".join(f"*{table}\nCOMMIT\n" for table in TABLES))

    def _run(self, command: Sequence[str], text: str = "") -> str:
        done = self._namespace.run(command, stdin=text)
        assert done.returncode == 0, (done.stderr, text)
        return done.stdout


Tables = dict[str, list[str]]  # table -> its lines: -N CHAIN, then -A CHAIN RULE


def read(saved: Sequence[str]) -> Tables:
    """The tables of what iptables-save printed."""
    tables: Tables = {table: [] for table in TABLES}
    table = ""
    for line in saved:
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith("-A"):
            tables[table].append(line)
        elif line.startswith(":") and line.split()[1] == "-":
            tables[table].append(f"-N {line[1:].split()[0]}")
    return tables


def document(tables: Tables, before: Tables | None = None) -> str:
    """Restore text that makes `tables` out of those `before`, each in one step."""
    text: list[str] = []
    for table, lines in tables.items():
        old = (before or {}).get(table, [])
        used = dict.fromkeys(line.split()[1] for line in old)
        made = [line.split()[1] for line in old if line.startswith("-N")]
        removal = [*(f"-F {chain}" for chain in used), *(f"-X {chain}" for chain in made)]
        text += [f"* {table}", *removal, *lines, "COMMIT"]
    return "".join(f"{line}\n" for line in text)


def foreign(version: Version) -> Tables:
    """The foreign rules of a family and the chain that some jump to."""
    tables: Tables = {table: ["-N FOREIGN"] for table in TABLES}
    for table, rule in (*FOREIGN, *FOREIGN_OF_FAMILY[version]):
        tables[table].append(f"-A {rule}")
    return tables


@pytest.mark.parametrize("version", VERSIONS)
def test_no_table_is_made_by_looking(version: Version) -> None:
    require()
    with Namespace() as empty, empty.entered():
        assert Libiptc(version).save() == ""
        with pytest.raises(KernelError, match="not understood"):
            Libiptc(version).restore("-N X\n")
        assert Libiptc(version).save() == ""


@pytest.mark.parametrize("version", VERSIONS)
def test_recorded_rules_are_read_and_written_as_by_the_programs(namespace: Namespace, version: Version) -> None:
    judge, tool = Programs(namespace, version), Libiptc(version)
    key = f"{PROGRAMS[version]}-save"
    cases = json.loads(shared("istio/iptables/cases.json").read_text())
    recorded = {case["name"]: read(case[key]) for case in cases if any(line.startswith("-A") for line in case[key])}
    assert len(recorded) == {4: 38, 6: 5}[version]
    wanted = {}
    for name, tables in recorded.items():
        judge.restore(document(tables))
        wanted[name] = judge.save()
        assert tool.save() == wanted[name], name
        assert wanted[name].count("\n-") == sum(line.startswith("-A") for lines in tables.values() for line in lines)
    judge.empty()
    before: Tables | None = None
    for name, tables in recorded.items():
        tool.restore(document(tables, before))  # over the rules of the case before
        assert judge.save() == wanted[name], name
        before = tables


@pytest.mark.parametrize("version", VERSIONS)
def test_foreign_rules_are_read_written_and_found_as_by_the_programs(namespace: Namespace, version: Version) -> None:
    judge, tool = Programs(namespace, version), Libiptc(version)
    tables = foreign(version)
    judge.restore(document(tables))
    wanted = judge.save()
    assert wanted.count("\n-A") == len(FOREIGN) + len(FOREIGN_OF_FAMILY[version])
    assert tool.save() == wanted
    judge.empty()
    tool.restore(document(tables))
    assert judge.save() == wanted
    written = {table: [f"-D{line[2:]}" for line in lines if line.startswith("-A")] for table, lines in tables.items()}
    tool.restore(document(written))  # as people write them
    assert "\n-A" not in judge.save()
    judge.restore(document(tables))
    printed = read(wanted.splitlines())
    tool.restore(
        document({table: [f"-D{line[2:]}" for line in lines if line[1] == "A"] for table, lines in printed.items()})
    )
    assert "\n-A" not in judge.save()


@pytest.mark.parametrize("version", VERSIONS)
def test_rules_that_are_not_mentioned_stay_byte_for_byte(namespace: Namespace, version: Version) -> None:
    judge, tool = Programs(namespace, version), Libiptc(version)
    counted = document(foreign(version)).replace("\n-A OUTPUT", "\n[7:420] -A OUTPUT")
    judge.restore(f"*filter\n:FORWARD DROP [3:180]\nCOMMIT\n{counted}", "--counters")
    before = judge.save("--counters")
    assert "[7:420]" in before
    ours = [
        "-N ISTIO_OUTPUT",
        "-A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN",
        "-I OUTPUT -j ISTIO_OUTPUT",
        "-A OUTPUT -j ISTIO_OUTPUT",
    ]
    tool.restore(document(dict.fromkeys(TABLES, ours)))
    assert judge.save().count("-j ISTIO_OUTPUT") == 2 * len(TABLES)
    theirs = ["-D OUTPUT -j ISTIO_OUTPUT", "-D OUTPUT -j ISTIO_OUTPUT", "-F ISTIO_OUTPUT", "-X ISTIO_OUTPUT"]
    tool.restore(document(dict.fromkeys(TABLES, theirs)))
    assert judge.save("--counters") == before


def test_commands_work_as_in_the_programs(namespace: Namespace) -> None:
    judge, tool = Programs(namespace, 4), Libiptc(4)
    text = document(
        {
            "nat": [
                "# a comment",
                "-N ONE",
                "-A ONE -p tcp -j REDIRECT --to-ports 1",
                "-A ONE -p tcp -j REDIRECT --to-ports 2",
                "-I ONE -p tcp -j REDIRECT --to-ports 3",
                "-I ONE 2 -p tcp -j REDIRECT --to-ports 4",
                "-I ONE 5 -s 10.0.0.1 -j RETURN",
                "-A ONE -s 10.0.0.1 -j RETURN",
                "-D ONE -s 10.0.0.1/255.255.255.255 -j RETURN",
                "-N TWO",
                "-A TWO -j ONE",
                "-A OUTPUT -j TWO",
                "-F TWO",
                "-D OUTPUT -j TWO",
                "-X TWO",
            ]
        }
    )
    judge.empty()
    judge.restore(text, "--noflush")
    wanted = judge.save()
    assert wanted.count("\n-A ONE") == 5
    judge.empty()
    tool.restore(text)
    assert judge.save() == wanted


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "-A OUTPUT -m owner --uid-owner nobody-here -j RETURN",
            'owner: Bad value for "--uid-owner" option: "nobody-he',
        ),
        ("-A OUTPUT -p tcp --dport http-not -j RETURN", "invalid port/service `http-not' specified"),
        ("-A OUTPUT -p tcp -j REDIRECT --to-ports 1-", "Port `' not valid"),
        ("-A OUTPUT -m nowhere -j RETURN", "Couldn't load match `nowhere'"),
        ("-A OUTPUT -j NOWHERE", "Couldn't load target `NOWHERE'.*package iptables"),
        ("-A OUTPUT -p tcp --elsewhere 1 -j RETURN", "--elsewhere is no option of a match or target of this rule"),
        ("-A OUTPUT -p tcp -m tcp --d 1", "--d is ambiguous"),
        ("-A OUTPUT -d 10.0.0.0/33 -j RETURN", "10.0.0.0/33 is no address of this family"),
        ("-A OUTPUT -d ::1 -j RETURN", "::1 is no address of this family"),
        ("-A OUTPUT -o name-of-an-interface -j RETURN", "interface name `name-of-an-interface'"),
        ("-A OUTPUT -p nonsense -j RETURN", 'unknown protocol "nonsense"'),
        ("-A OUTPUT -m owner --uid-owner", "the option --uid-owner has no value"),
        ("-A OUTPUT -j RETURN -j ACCEPT", "a rule has one -j or -g"),
        ("-A OUTPUT -g NOWHERE", "there is no chain NOWHERE"),
        ("-A OUTPUT ! -j RETURN", "! -j is not understood"),
        ("-A OUTPUT !", "! nothing is not understood"),
        ("-A OUTPUT -j", "the option -j has no value"),
        ("-A NOWHERE -j RETURN", "No chain/target/match by that name"),
        ("-I OUTPUT 9 -j RETURN", "Index of insertion too big"),
        ("-D OUTPUT -j RETURN", "there is no such rule in that chain"),
        ("-D NOWHERE -j RETURN", "there is no such rule|No chain"),
        ("-N THERE", "Chain already exists"),
        ("-N", "-N takes the name of a chain"),
        ("-N ONE TWO", "-N takes the name of a chain"),
        ("-N A_NAME_THAT_IS_LONGER_THAN_A_CHAIN_MAY_HAVE", "Invalid argument|too long"),
        ("-X THERE", "Directory not empty|Chain is not empty"),
        ("-X OUTPUT", "Invalid argument"),
        ("-F NOWHERE", "No chain/target/match by that name"),
        ("-P OUTPUT DROP", "-P is not understood here"),
        ("nonsense", "nonsense is not understood here"),
    ],
)
def test_a_wrong_line_is_named_and_changes_nothing(namespace: Namespace, line: str, message: str) -> None:
    judge, tool = Programs(namespace, 4), Libiptc(4)
    judge.restore("*mangle\nCOMMIT\n*raw\nCOMMIT\n*nat\n:THERE -\n-A THERE -j RETURN\nCOMMIT\n")
    before = judge.save()
    with pytest.raises(KernelError, match=message) as raised:
        tool.restore(f"* mangle\n-A OUTPUT -j ACCEPT\nCOMMIT\n* nat\n-A OUTPUT -j ACCEPT\n{line}\nCOMMIT\n")
    assert str(raised.value).startswith(f"libiptc (IPv4): line 6 ({line}): ")
    assert "\n" not in str(raised.value)
    assert judge.save() == before


def test_what_the_kernel_refuses_is_said_and_changes_nothing(namespace: Namespace) -> None:
    judge, tool = Programs(namespace, 4), Libiptc(4)
    judge.empty()
    before = judge.save()
    for rule, message in (
        ("-A INPUT -m owner --uid-owner 1 -j RETURN", "cannot write table nat: Invalid argument"),  # output only
        ("-A OUTPUT -j LOOP", "cannot write table nat: Too many levels of symbolic links"),
    ):
        with pytest.raises(KernelError, match=message):
            tool.restore(f"* nat\n-N LOOP\n-A LOOP -j LOOP\n{rule}\nCOMMIT\n")
        assert judge.save() == before
    with pytest.raises(KernelError, match="unable to initialize table nowhere"):
        tool.restore("* nowhere\nCOMMIT\n")
    with pytest.raises(KernelError, match="the table nat has no COMMIT"):
        tool.restore("* nat\n-A OUTPUT -j ACCEPT\n")
    assert judge.save() == before


def test_the_lock_of_the_programs_is_waited_for(
    namespace: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "* nat\n-N LOCKED\n-X LOCKED\nCOMMIT\n"
    monkeypatch.setenv("XTABLES_LOCKFILE", str(tmp_path / "lock"))
    monkeypatch.setattr(libiptc, "LOCK_WAIT", 0)
    with open(tmp_path / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(KernelError, match="another program has held the xtables lock .* let it end"):
            Libiptc(4).restore(text)
        Libiptc(4).save()  # reads without it, as the programs do
    Libiptc(4).restore(text)
    monkeypatch.setenv("XTABLES_LOCKFILE", str(tmp_path / "nowhere/lock"))
    with pytest.raises(KernelError, match="can't open lock file .*: No such file or directory: make /run writable"):
        Libiptc(4).restore(text)


def test_writers_at_the_same_time_lose_nothing(namespace: Namespace) -> None:
    judge = Programs(namespace, 4)
    judge.empty()
    program = """
import sys
from init.backends.libiptc import Libiptc
for number in range(10):
    Libiptc(4).restore(f"* raw\\n-N C{sys.argv[1]}-{number}\\n-A OUTPUT -j C{sys.argv[1]}-{number}\\nCOMMIT\\n")
"""
    writers = [namespace.start([sys.executable, "-c", program, str(number)]) for number in range(4)]
    assert [writer.communicate(timeout=60)[1] for writer in writers] == [""] * 4
    names = [f"C{writer}-{number}" for writer in range(4) for number in range(10)]
    assert sorted(read(judge.save().splitlines())["raw"]) == sorted(
        line for name in names for line in (f"-N {name}", f"-A OUTPUT -j {name}")
    )


def test_a_child_that_hangs_or_dies_is_an_error(namespace: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*_: object) -> str:
        signal.pause()
        return ""

    def die(*_: object) -> str:
        os.kill(os.getpid(), signal.SIGKILL)
        return ""

    def crash(*_: object) -> str:
        raise RuntimeError("of the child")

    monkeypatch.setattr(libiptc, "TIMEOUT", 0.05)
    for work, message in ((hang, "did not end within 0.05 s"), (die, "was killed"), (crash, "of the child")):
        monkeypatch.setattr(libiptc, "_save", work)
        with pytest.raises(KernelError, match=message):
            Libiptc(4).save()


def test_rules_of_a_library_that_is_not_there_survive(
    namespace: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge, tool = Programs(namespace, 4), Libiptc(4)
    judge.empty()
    judge.restore("*mangle\n-A OUTPUT -m limit --limit 5/min -j DSCP --set-dscp 0x0a\nCOMMIT\n")
    before = judge.save()
    folders = [folder for pattern in ("xtables", "*/xtables") for folder in Path("/usr/lib").glob(pattern)]
    for library in folders[0].glob("*.so"):
        if library.name not in ("libxt_limit.so", "libxt_DSCP.so"):
            (tmp_path / library.name).symlink_to(library)
    monkeypatch.setenv("XTABLES_LIBDIR", str(tmp_path))
    assert "-A OUTPUT -m limit [unsupported revision] -j DSCP [unsupported revision]\n" in tool.save()
    tool.restore("* mangle\n-N OURS\n-A OURS -p tcp --dport 1 -j RETURN\n-I OUTPUT 1 -j OURS\nCOMMIT\n")
    tool.restore("* mangle\n-D OUTPUT -j OURS\n-F OURS\n-X OURS\nCOMMIT\n")
    monkeypatch.delenv("XTABLES_LIBDIR")
    assert judge.save() == before


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_anew() -> None:
        xtables.load.cache_clear()
        libiptc.tool(4)

    with monkeypatch.context() as patched:
        patched.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(KernelError, match="needs python-iptables: install it with `pip install pysidecar"):
            load_anew()
    with monkeypatch.context() as patched:
        patched.setattr(xtables, "_LIBRARIES", {**xtables._LIBRARIES, "ip6tc": ("libip6tc.so.9", "libip6tc9")})
        with pytest.raises(KernelError, match="cannot load libip6tc.so.9: install the package libip6tc9"):
            load_anew()
    load_anew()


def test_without_root_it_says_so(namespace: Namespace) -> None:
    program = "from init.backends.libiptc import Libiptc; Libiptc(4).restore('* nat\\nCOMMIT\\n')"
    lock = {"XTABLES_LOCKFILE": "/dev/null"}
    done = namespace.run(["setpriv", "--bounding-set=-all", "--inh-caps=-all", sys.executable, "-c", program], env=lock)
    assert "unable to initialize table nat: Permission denied (you must be root): run as root" in done.stderr


def test_no_program_is_started_but_modprobe(namespace: Namespace) -> None:
    program = """
import sys
started = []
sys.addaudithook(lambda event, args: started.append(args[0]) if event in ("subprocess.Popen", "os.exec", "os.system")
                 or event.startswith("os.posix_spawn") else None)
from init.backends.libiptc import Libiptc
Libiptc(4).restore("* nat\\n-N SEEN\\n-A SEEN -p tcp -j REDIRECT --to-ports 1\\n-F SEEN\\n-X SEEN\\nCOMMIT\\n")
assert "*nat" in Libiptc(4).save()
print([name for name in started if not name.endswith("modprobe")])
"""
    done = namespace.python("-c", program)
    assert (done.stdout, done.stderr) == ("[]\n", "")
