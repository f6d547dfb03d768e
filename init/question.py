"""The command line of `istio-iptables explain`: which packet is asked about."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from init.errors import UsageError, printable, shown
from init.packet import IPAddress
from init.rules import Version
from init.values import MAX_ID, unmapped

_NUMBER = re.compile(r"0|[1-9][0-9]{0,9}|0x[0-9a-fA-F]{1,8}")


@dataclass(frozen=True, slots=True)
class Option:
    """One flag; a `value` of nothing makes it a switch."""

    value: str
    help: str


OPTIONS: Mapping[str, Option] = {
    "to": Option("ADDRESS:PORT", "destination; with --inbound the address only (default: the pod's own)"),
    "uid": Option("NUMBER", "user of the process that sends"),
    "gid": Option("NUMBER", "its group (default: the number of --uid); supplementary groups do not count"),
    "udp": Option("", "a UDP packet instead of a TCP connection"),
    "from": Option("ADDRESS[:PORT]", "source (default: what the kernel chooses; with --inbound some client's)"),
    "mark": Option("NUMBER", "mark of the packet, decimal or 0x (default: 0)"),
    "inbound": Option("", "a packet that comes to the pod instead of one that leaves a process of it"),
    "port": Option("NUMBER", "destination port, with --inbound"),
    "interface": Option("NAME", "where it comes in or goes out (default: what routing says)"),
    "network-namespace": Option("PATH", "network namespace to look into [$NETWORK_NAMESPACE]"),
    "output": Option("FORMAT", "text or json"),
    "help": Option("", "print this help"),
}
_OUTBOUND_ONLY = dict.fromkeys(("uid", "gid"), "has no meaning with --inbound: no process of this pod sends the packet")
_INBOUND_ONLY = {"port": "is for --inbound: write the port behind the address of --to"}


@dataclass(frozen=True, slots=True)
class Question:
    """The packet that is asked about, as far as the command line says."""

    inbound: bool
    udp: bool
    to: IPAddress | None
    port: int
    source: IPAddress | None
    source_port: int | None
    uid: int | None
    gid: int | None
    mark: int
    interface: str
    namespace: str
    as_json: bool

    @property
    def version(self) -> Version:
        """The family that its addresses are of; IPv4 where there is none."""
        address = self.to or self.source
        return 6 if address is not None and address.version == 6 else 4


def usage() -> str:
    """The help text."""
    lines = [
        "Usage: istio-iptables explain --uid NUMBER --to ADDRESS:PORT [flags]",
        "       istio-iptables explain --inbound --port NUMBER [flags]",
        "",
        "Flags:",
        *(f"  {f'--{name} {option.value}':<28} {option.help}" for name, option in OPTIONS.items()),
    ]
    return "\n".join(lines) + "\n"


def split(argv: Sequence[str]) -> dict[str, str]:
    """Flag -> its value, the last one if it is repeated. Raises UsageError."""
    given = {}
    rest = list(argv)
    while rest:
        argument = rest.pop(0)
        name, equals, value = argument.removeprefix("--").partition("=")
        option = OPTIONS.get("help" if argument == "-h" else name)
        if not argument.startswith("-"):
            raise UsageError(f"unexpected argument: {printable(argument)}: expected flags only")
        if option is None or not (argument.startswith("--") or argument == "-h"):
            raise UsageError(f"unknown flag: {printable(argument.partition('=')[0])}")
        if not option.value:
            if equals:
                raise UsageError(f"--{name}: takes no value")
        elif not equals:
            if not rest:
                raise UsageError(f"flag needs an argument: --{name}")
            value = rest.pop(0)
        given["help" if argument == "-h" else name] = value
    return given


def read(given: Mapping[str, str], environ: Mapping[str, str]) -> Question:
    """The question that flags ask. Raises UsageError with one line for each refused value."""
    return _Reader(given, environ).question()


class _Reader:
    """Reads the values and collects what is wrong with them."""

    def __init__(self, given: Mapping[str, str], environ: Mapping[str, str]) -> None:
        self._given = given
        self._environ = environ
        self._refused: list[str] = []

    def question(self) -> Question:
        given = self._given
        inbound = "inbound" in given
        for name, reason in (_OUTBOUND_ONLY if inbound else _INBOUND_ONLY).items():
            if name in given:
                self._refuse(name, reason)
        for name in ("port",) if inbound else ("uid", "to"):
            if name not in given:
                self._refuse(name, f"is missing: expected {OPTIONS[name].value}")
        to, to_port = self._endpoint("to", port=not inbound)
        source, source_port = self._endpoint("from", port=None)
        uid = self._number("uid", 0, MAX_ID)
        question = Question(
            inbound,
            "udp" in given,
            to,
            (self._number("port", 1, 65535) if inbound else to_port) or 0,
            source,
            source_port,
            uid,
            self._number("gid", 0, MAX_ID) if "gid" in given else uid,
            self._number("mark", 0, 2**32 - 1) or 0,
            self._interface(),
            given.get("network-namespace", self._environ.get("NETWORK_NAMESPACE", "")),
            given.get("output", "text") == "json",
        )
        if given.get("output", "text") not in ("text", "json"):
            self._refuse("output", f"{shown(given['output'])} is not an output format: expected text or json")
        if to and source and to.version != source.version:
            self._refuse("from", f"{source} is not of the family of --to, IPv{to.version}")
        if self._refused:
            raise UsageError(*self._refused)
        return question

    def _refuse(self, name: str, reason: str) -> None:
        self._refused.append(f"--{name}: {reason}")

    def _number(self, name: str, least: int, most: int) -> int | None:
        text = self._given.get(name)
        if text is None:
            return None
        if _NUMBER.fullmatch(text) and (name == "mark" or not text.startswith("0x")) and least <= int(text, 0) <= most:
            return int(text, 0)
        self._refuse(name, f"{shown(text)} is refused: expected a number {least} to {most}")
        return None

    def _endpoint(self, name: str, *, port: bool | None) -> tuple[IPAddress | None, int | None]:
        """An address and a port; `port` None means that it may be left out, False that it must be."""
        text = self._given.get(name)
        if text is None:
            return None, None
        address, number = _parse_endpoint(text)
        has_port = number is not None
        if address is None or (port is not None and port != has_port):
            form = "10.0.0.5 or ::1" if port is False else "10.0.0.5:80 or [::1]:80"
            optional = ", the port optional" if port is None else ""
            self._refuse(name, f"{shown(text)} is refused: expected the form {form}{optional}")
            return None, None
        return address, number

    def _interface(self) -> str:
        name = self._given.get("interface", "")
        if "interface" in self._given and (not re.fullmatch(r"[^\s/]{1,15}", name) or name in (".", "..")):
            self._refuse("interface", f"{shown(name)} is not an interface name: expected at most 15 characters, no '/'")
        return name


def _parse_endpoint(text: str) -> tuple[IPAddress | None, int | None]:
    """`10.0.0.5`, `10.0.0.5:80`, `::1`, `[::1]` and `[::1]:80`; the address is None if it is none of these."""
    bracketed = re.fullmatch(r"\[([^\]]*)\](?::(.*))?", text)
    if bracketed:
        address, port = bracketed[1], bracketed[2]
    elif text.count(":") == 1:
        address, _, port = text.partition(":")
    else:
        address, port = text, None
    try:
        parsed = ip_address(address)
    except ValueError:
        return None, None
    number = int(port) if port is not None and re.fullmatch(r"[1-9][0-9]{0,4}", port) else None
    bad_port = port is not None and (number is None or number > 65535)
    zoned = "%" in address or (bracketed is not None and parsed.version == 4)
    return (None, None) if bad_port or zoned else (unmapped(parsed), number)
