"""Main's watch over the name table and resolv.conf: what is read when, what workers are told, what a bad file does."""

from __future__ import annotations

import json
import marshal
import os
from pathlib import Path
from typing import Any, cast

import pytest
from dns_service_world import FakeLoop

from proxy.dns import watch as module
from proxy.dns.message import name_to_wire
from proxy.dns.settings import DnsSettings
from proxy.dns.stats import NameTableStats
from proxy.dns.table import Table
from proxy.dns.watch import DnsWatch, FileWatch

OLD = 1_000_000_000


class World:
    """``told`` is what workers are sent, ``log`` lines at warning and above (and info)."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.table_path, self.resolv_path = folder / "table.json", folder / "resolv.conf"
        self.stats = NameTableStats("dns")
        self.told: list[tuple[str, Any]] = []
        self.now = float(OLD + 1000)
        self.log: list[str] = []
        for level in ("info", "warning", "error"):
            monkeypatch.setattr(module.log.__class__, level,
                                lambda _self, text, *args, level=level: self.log.append(f"{level}: {text % args}"))
        self.loop = FakeLoop()
        settings = DnsSettings(name_table=str(self.table_path), domain="ns1.svc.cluster.local", namespace="ns1",
                               resolv_conf=str(self.resolv_path))
        self.watch = DnsWatch(cast(Any, self.loop), settings, self.stats, lambda *what: self.told.append(what),
                              lambda: self.now)

    def write(self, path: Path, text: str) -> None:
        """As Kubernetes does: another file in the old one's place."""
        new = path.with_suffix(".new")
        new.write_text(text)
        os.utime(new, (OLD, OLD))
        new.replace(path)

    def table(self, *hosts: str) -> None:
        self.write(self.table_path, json.dumps({"table": {host: {"ips": ["10.0.0.1"]} for host in hosts}}))

    def tick(self) -> list[tuple[str, Any]]:
        """One look; what was told because of it, tables as the names of their hosts."""
        self.told.clear()
        self.loop.run_timers()
        return [(name, hosts(value) if name == "dns_table" else value) for name, value in self.told]


def hosts(compiled: bytes) -> list[str]:
    return list(Table.from_wire(marshal.loads(compiled)).hosts())


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


def test_the_first_look_is_for_replay(world: World) -> None:
    world.table("a.example")
    world.write(world.resolv_path, "search ns1.svc.cluster.local\nnameserver 10.0.0.10\nnameserver fd00::10\n")
    world.watch.start()
    assert world.told == [] and [delay for delay, _ in world.loop.timers] == [module.INTERVAL]
    requests = world.watch.requests()
    assert [name for name, _ in requests] == ["dns_servers", "dns_table"]
    assert requests[0][1] == [("10.0.0.10", 53), ("fd00::10", 53)]
    table = Table.from_wire(marshal.loads(requests[1][1]))
    assert list(table.hosts()) == ["a.example"] and table.find(name_to_wire("a.example.ns1.svc.cluster.local"))
    assert world.stats.name_table_updates_total == 1
    assert world.tick() == [], "nothing has changed"
    world.watch.close()
    assert not world.loop.timers


def test_changes_are_told(world: World) -> None:
    world.table("a.example")
    world.write(world.resolv_path, "nameserver 10.0.0.10\n")
    world.watch.start()
    world.table("b.example", "c.example")
    assert world.tick() == [("dns_table", ["b.example", "c.example"])]
    world.write(world.resolv_path, "nameserver 10.0.0.11\n")
    assert world.tick() == [("dns_servers", [("10.0.0.11", 53)])]
    world.write(world.resolv_path, "search corp.example\nnameserver 10.0.0.11\n")
    assert [name for name, _ in world.tick()] == ["dns_servers", "dns_table"], "the search list is in the table"
    table = Table.from_wire(marshal.loads(world.watch.requests()[1][1]))
    assert table.find(name_to_wire("b.example.corp.example"))
    world.write(world.resolv_path, "search corp.example\nnameserver 10.0.0.12\n")
    world.table("d.example")
    assert world.tick() == [("dns_servers", [("10.0.0.12", 53)]), ("dns_table", ["d.example"])], "compiled once"
    assert world.stats.name_table_updates_total == 4


def test_a_table_that_comes_later(world: World) -> None:
    world.write(world.resolv_path, "nameserver 10.0.0.10\n")
    world.watch.start()
    assert [name for name, _ in world.watch.requests()] == ["dns_servers"]
    assert any("is not used: cannot read it: No such file or directory; all queries go to the servers" in line
               for line in world.log)
    count = len(world.log)
    assert world.tick() == [] and len(world.log) == count, "said once"
    world.table("a.example")
    assert world.tick() == [("dns_table", ["a.example"])]


@pytest.mark.parametrize(("text", "what"), [
    ("{", "JSON"), ("[]", "expected"), ('{"table": {"a.example": 5}}', "a.example"),
])
def test_a_bad_table_changes_nothing(world: World, text: str, what: str) -> None:
    world.table("a.example")
    world.write(world.resolv_path, "nameserver 10.0.0.10\n")
    world.watch.start()
    before = world.watch.requests()
    world.log.clear()
    world.write(world.table_path, text)
    assert world.tick() == [] and world.watch.requests() == before
    assert what in world.log[0] and f"name table '{world.table_path}'" in world.log[0]
    assert world.log[-1].endswith("the one before stays")
    assert world.stats.name_table_rejected_total == 1
    assert world.tick() == [] and world.stats.name_table_rejected_total == 1, "said once"
    world.table("b.example")
    assert world.tick() == [("dns_table", ["b.example"])]


def test_a_file_that_goes_away_is_kept_in_mind(world: World) -> None:
    world.table("a.example")
    world.write(world.resolv_path, "nameserver 10.0.0.10\n")
    world.watch.start()
    world.table_path.unlink()
    world.resolv_path.unlink()
    assert world.tick() == []
    assert world.watch.requests()[0] == ("dns_servers", [("10.0.0.10", 53)])
    assert any("cannot read" in line and "the servers are 10.0.0.10" in line for line in world.log)
    world.table("a.example")
    assert world.tick() == [], "the same content once more is no news"


def test_a_resolv_conf_that_is_just_being_written(world: World) -> None:
    world.write(world.resolv_path, "nameserver 10.0.0.10\n")
    world.watch.start()
    world.write(world.resolv_path, "")
    assert world.tick() == [] and world.watch.requests()[0] == ("dns_servers", [("10.0.0.10", 53)])
    assert world.log[-1].endswith("is empty; the servers are 10.0.0.10")
    world.write(world.resolv_path, "nameserver 10.0.0.11\n")
    assert world.tick() == [("dns_servers", [("10.0.0.11", 53)])]
    world.write(world.resolv_path, "# none\n")
    assert world.tick() == [("dns_servers", [])], "that is meant"


def test_content_counts_not_only_the_time_of_change(tmp_path: Path) -> None:
    """Written twice within a tick of the file system's clock, a file looks the same."""
    path = tmp_path / "file"
    path.write_text("one")
    os.utime(path, (OLD, OLD))
    watch = FileWatch(str(path), 100)
    assert watch.read(OLD + 0.5) == b"one"
    path.write_text("two")
    os.utime(path, (OLD, OLD))
    assert watch.read(OLD + 1) == b"two"
    assert watch.read(OLD + 1.5) is None, "read again, but not new"
    assert watch.read(OLD + 100) is None


@pytest.mark.parametrize("kind", ["folder", "large", "pipe"])
def test_what_is_no_such_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)  # opening it would wait for a writer
    else:
        path.write_text("x" * 101)
    watch = FileWatch(str(path), 100)
    with pytest.raises(OSError, match="it is no regular file|it has more than 100 bytes"):
        watch.read(OLD)
    assert watch.read(OLD) is None, "said once"
    if kind == "large":
        path.write_text("x")
        assert watch.read(OLD) == b"x"


def test_what_is_too_large_is_not_read_every_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    path.write_text("x" * 101)
    monkeypatch.setattr(module, "open", None, raising=False)
    with pytest.raises(OSError, match="it has more than 100 bytes"):
        FileWatch(str(path), 100).read(OLD)


def test_warnings_are_bounded(world: World) -> None:
    world.write(world.resolv_path, "".join(f"nonsense{n} x\n" for n in range(20)) + "nameserver 10.0.0.10\n")
    world.watch.start()
    warnings = [line for line in world.log if line.startswith("warning")]
    assert len(warnings) == module.MAX_TOLD + 1 and warnings[-1] == "warning: and 15 more warnings"
