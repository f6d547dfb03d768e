"""The recipe and its restore text against the golden cases of Istio's own tests, byte for byte."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from init_worlds import DUAL_POD, GROUPS, IPV4_POD, IPV6_POD, plan

from init.iptables_text import document, installation
from init.rules import Version

FILE = Path(__file__).with_name("golden_iptables.txt")
LOOPBACK, PASSTHROUGH = {4: "127.0.0.1/32", 6: "::1/128"}, {4: "127.0.0.6/32", 6: "::6/128"}
LINES = FILE.read_text().splitlines()
MACROS = dict(re.split(r" +=\s+", line, maxsplit=1) for line in LINES if re.match(r"[A-Z0-9]+(\(x\))? +=", line))


@dataclass
class Case:
    name: str
    wishes: str
    tables: dict[tuple[int, str], list[str]] = field(default_factory=dict)

    @property
    def ipv6(self) -> bool:
        return "EnableIPv6" in self.wishes

    @property
    def argv(self) -> list[str]:
        flags = [
            part for part in self.wishes.split(";")[0].split(" ") if part and not re.match(r"[A-Z_]+=|groups", part)
        ]
        words = shlex.split(" ".join(flags).replace("*", "'*'").partition("(base")[0])
        return [word for word in words if not word.startswith("exclude=")]

    @property
    def environ(self) -> dict[str, str]:
        found = dict(re.findall(r"(ISTIO_[A-Z0-9_]+)=(\S+)", self.wishes))
        for pattern, name in (("groups=", "GROUPS"), ("groups exclude=", "GROUPS_EXCLUDE")):
            values = re.findall(rf"(?<![A-Z_]){pattern}([^ ;]+)", self.wishes)
            found |= {f"ISTIO_OUTBOUND_OWNER_{name}": value for value in values}
        return found

    @property
    def servers(self) -> list[str]:
        return [server for group in re.findall(r"v[46]=\[([^\]]*)\]", self.wishes) for server in group.split(",")]


def cases() -> Iterator[Case]:
    case: Case | None = None
    for line in LINES:
        if head := re.match(r"\[([a-z0-9-]+)\]\s*(.*)", line):
            if case:
                yield case
            case = Case(head[1], head[2])
        elif case and (body := re.match(r"  (v4|v6|v4=v6) (\w+): (.*)", line)):
            for version in re.findall(r"\d", body[1]):
                case.tables[int(version), body[2]] = body[3].split(" ; ")
    if case:
        yield case


def expand(line: str, case: Case, version: int) -> list[str]:
    """A macro or a line as the lines that it stands for."""
    name, _, number = line.partition("(")
    if line in MACROS:
        body = MACROS[line]
    elif f"{name}(x)" in MACROS:
        body = expand_owner(name)
        body = re.sub(r"\bx\b", number.rstrip(")"), body)
    else:
        body = line
    loopback = {**LOOPBACK, 4: case.environ.get("ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR", LOOPBACK[4])}[version]
    body = re.sub(r"(?<=-d )L\b", loopback, body)
    body = re.sub(r"(?<=-s )S\b", PASSTHROUGH[version], body)
    body = body.replace("::127.0.0.53", "::7f00:35")  # Python's spelling of the same address
    for group, gid in GROUPS.items():
        body = re.sub(rf"--gid-owner {group}\b", f"--gid-owner {gid}", body)
    return body.split(" ; ")


def expand_owner(name: str) -> str:
    """The macros that are defined by others: G(x) = U(x) with gid-owner, UX(x) = first and third rule of UD(x), ..."""
    body = MACROS[f"{name}(x)"]
    if other := re.fullmatch(r"(\w+)\(x\) with gid-owner", body):
        return expand_owner(other[1]).replace("uid-owner", "gid-owner")
    if other := re.fullmatch(r"first and third rule of (\w+)\(x\)", body):
        rules = expand_owner(other[1]).split(" ; ")
        return f"{rules[0]} ; {rules[2]}"
    if other := re.fullmatch(r"first rule of (\w+)\(x\) ; (.*) ; third rule of \w+\(x\)", body):
        rules = expand_owner(other[1]).split(" ; ")
        return f"{rules[0]} ; {other[2]} ; {rules[2]}"
    return body


def golden(case: Case, version: int) -> str:
    text = ""
    for table in sorted({table for found, table in case.tables if found == version}):
        lines = [line for part in case.tables[version, table] for line in expand(part, case, version)]
        text += "".join(f"{line}\n" for line in [f"* {table}", *lines, "COMMIT"])
    return text


CASES = list(cases())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_text_is_that_of_the_real_program(case: Case) -> None:
    addresses = (DUAL_POD if case.ipv6 and not case.servers else IPV6_POD) if case.ipv6 else IPV4_POD
    argv = [*case.argv, *(["--dual-stack"] if case.ipv6 else [])]
    found = plan(*argv, environ=case.environ, addresses=addresses, servers=case.servers)
    assert found.ipv6 == case.ipv6
    versions: tuple[Version, ...] = found.versions
    for version in versions:
        assert document(installation(found.of(version))) == golden(case, version)


def test_all_golden_cases_are_there() -> None:
    assert len(CASES) == 27
