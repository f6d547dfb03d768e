"""Reading one flag or variable at a time: each function knows what it reads, so that a refusal names it.

All refusals of a run are collected and reported together.
"""

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from init.errors import SettingsError, shown
from init.flags import FALSE, TRUE, Value
from init.rules import Version

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

ALL = ("*",)  # a list that is exactly `*`: everything
MAX_ITEMS = 4096  # elements of one comma list; the rule count, and so the cost of a packet, grows with it
MAX_REFUSALS = 50  # lines of one error
MAX_ID = 2**32 - 2  # 2**32 - 1 means "no id" to the kernel
_NUMBER = re.compile(r"0|[1-9][0-9]{0,9}")
_DURATION = re.compile(r"[+-]?(0|(([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h))+)")
_DURATION_PART = re.compile(r"([0-9.]+)(ns|us|µs|μs|ms|s|m|h)")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_UINT16 = re.compile(r"0[xX][0-9a-fA-F]+|0[oO]?[0-7]+|0[bB][01]+|[1-9][0-9]*|0")
_INTERFACE = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,14}")  # as Istio's injector requires of its annotations


@dataclass(frozen=True, slots=True)
class Cidr:
    """One address range as the operator wrote it: host bits are kept, the kernel masks them."""

    address: IPAddress
    bits: int

    @property
    def text(self) -> str:
        """`address/bits`."""
        return f"{self.address}/{self.bits}"

    @property
    def version(self) -> Version:
        """The family whose rules it belongs to; an IPv4-mapped address is IPv6 here, as in Istio."""
        return 4 if self.address.version == 4 else 6

    @property
    def is_loopback(self) -> bool:
        """Whether the address as written is a loopback address."""
        return unmapped(self.address).is_loopback


def unmapped(address: IPAddress) -> IPAddress:
    """The IPv4 address inside an IPv4-mapped IPv6 address, any other address as it is."""
    return getattr(address, "ipv4_mapped", None) or address


def parse_cidr(text: str) -> Cidr:
    """`address/bits`, the bits required, host bits allowed. Raises ValueError with the reason."""
    address, slash, bits = text.partition("/")
    if "%" in address:
        raise ValueError("a zone is not allowed")
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        raise ValueError("the address is neither IPv4 nor IPv6") from None
    if not slash:
        raise ValueError("the prefix length is missing")
    if not _NUMBER.fullmatch(bits) or int(bits) > parsed.max_prefixlen:
        raise ValueError(f"the prefix length must be 0 to {parsed.max_prefixlen}")
    return Cidr(parsed, int(bits))


class Reader:
    """Reads values by name and collects what is wrong with them."""

    def __init__(self, values: Mapping[str, Value]) -> None:
        self.values = values
        self.warnings: list[str] = []
        self._refused: list[str] = []
        self._usage = False

    @property
    def refused(self) -> bool:
        """Whether anything was refused so far."""
        return bool(self._refused)

    def check(self) -> None:
        """Raise SettingsError with one line for each refused value, if there is one."""
        if self._refused:
            lines = list(dict.fromkeys(self._refused))
            if len(lines) > MAX_REFUSALS:
                lines[MAX_REFUSALS:] = [f"and {len(lines) - MAX_REFUSALS} more values are refused"]
            raise SettingsError(lines, usage=self._usage)

    def refuse(self, name: str, reason: str, *, malformed: bool = False) -> None:
        """`malformed`: not of the flag's own type (a boolean, a number, a duration), which is an error of usage on
        the command line."""
        value = self.values[name]
        self._refused.append(f"{value.origin}: {reason}")
        self._usage |= malformed and value.from_flag

    def refuse_all(self, reason: str) -> None:
        """Refuse the run for a reason that is not one value's."""
        self._refused.append(reason)

    def warn(self, name: str, text: str) -> None:
        """Say something about a value that is kept."""
        self.warnings.append(f"{self.values[name].origin}: {text}")

    def text(self, name: str) -> str:
        """The value as it is."""
        return self.values[name].text

    def boolean(self, name: str) -> bool:
        """A boolean literal of Go. An empty variable means false: charts render unset values that way."""
        value = self.values[name]
        if value.text in TRUE or value.text in FALSE or (value.text == "" and not value.from_flag):
            return value.text in TRUE
        self.refuse(name, f"{shown(value.text)} is not a boolean: expected true or false", malformed=True)
        return False

    def port(self, name: str) -> int:
        """One port, 1 to 65535."""
        text = self.text(name)
        if _NUMBER.fullmatch(text) and 1 <= int(text) <= 65535:
            return int(text)
        self.refuse(name, f"{shown(text)} is not a port: expected a decimal number 1 to 65535")
        return 0

    def uint16(self, name: str) -> int:
        """What Go reads as one: decimal, 0x, 0o, 0b, and octal by a leading zero; an empty variable is 0."""
        value = self.values[name]
        if not value.text and not value.from_flag:
            return 0
        if len(value.text) <= 20 and _UINT16.fullmatch(value.text):
            octal = value.text.startswith("0") and value.text.isdigit()
            number = int(value.text, 8 if octal else 0)
            if number <= 65535:
                return number
        self.refuse(name, f"{shown(value.text)} is not a port: expected a number 0 to 65535", malformed=True)
        return 0

    def seconds(self, name: str) -> float:
        """A Go duration, in seconds; an empty variable is 0."""
        value = self.values[name]
        if not value.text and not value.from_flag:
            return 0.0
        if not _DURATION.fullmatch(value.text):
            expected = "expected a duration such as 5s or 1m30s"
            self.refuse(name, f"{shown(value.text)} is not a duration: {expected}", malformed=True)
            return 0.0
        parts = _DURATION_PART.findall(value.text)
        seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
        return -seconds if value.text.startswith("-") else seconds

    def number32(self, name: str, what: str) -> int:
        """A decimal number 1 to 2**32 - 1."""
        text = self.text(name)
        if _NUMBER.fullmatch(text) and 1 <= int(text) < 2**32:
            return int(text)
        self.refuse(name, f"{shown(text)} is not a {what}: expected a decimal number 1 to {2**32 - 1}")
        return 0

    def choice(self, name: str, allowed: tuple[str, ...], what: str) -> str:
        """One of `allowed`, or the empty string for none."""
        text = self.text(name)
        if text and text not in allowed:
            self.refuse(name, f"{shown(text)} is not {what}: expected {' or '.join(allowed)}")
        return text

    def items(self, name: str) -> list[str]:
        """The elements of a comma list; empty ones are dropped (`6000,7000,` has two)."""
        text = self.text(name)
        items = [item for item in text.split(",") if item]
        if text and not items:
            self.refuse(name, f"{shown(text)} has no element: leave the value empty to mean none")
        if len(items) > MAX_ITEMS:
            self.refuse(name, f"has {len(items)} elements: expected at most {MAX_ITEMS}")
            return []
        return items

    def ports(self, name: str, *, wildcard: bool = False) -> tuple[str, ...]:
        """Ports and ranges `first:last`, or ALL where a wildcard is allowed."""
        if wildcard and self.text(name) == "*":
            return ALL
        ports = []
        for item in self.items(name):
            port = _port_or_range(item.strip(" "))
            if port is None:
                also = " or the single word '*'" if wildcard else ""
                expected = f"expected decimal numbers 1 to 65535 or ranges first:last{also}"
                self.refuse(name, f"{shown(item)} is not a port: {expected}")
            else:
                ports.append(port)
        return tuple(ports)

    def ids(self, name: str, what: str, lookup: Callable[[str], int | None] | None = None) -> tuple[int, ...]:
        """Numeric ids; names too where `lookup` finds their number."""
        ids = []
        for item in self.items(name):
            text = item.strip(" ")
            if _NUMBER.fullmatch(text) and int(text) <= MAX_ID:
                ids.append(int(text))
            elif lookup and not text.isdigit() and (found := lookup(text)) is not None:
                ids.append(found)
            else:
                known = " or names of this machine" if lookup else ""
                self.refuse(name, f"{shown(item)} is not a {what}: expected decimal numbers 0 to {MAX_ID}{known}")
        return tuple(ids)

    def cidrs(self, name: str, *, wildcard: bool = False) -> tuple[Cidr, ...]:
        """Address ranges of both families."""
        cidrs = []
        for item in self.items(name):
            try:
                cidrs.append(parse_cidr(item))
            except ValueError as error:
                also = " or the single word '*'" if wildcard else ""
                expected = f"expected CIDRs such as 10.0.0.0/8{also}"
                self.refuse(name, f"{shown(item)} is not an address range ({error}): {expected}")
        return tuple(cidrs)

    def interfaces(self, name: str) -> tuple[str, ...]:
        """Names of network interfaces; they need not exist yet."""
        names = []
        for item in self.items(name):
            if _INTERFACE.fullmatch(item):
                names.append(item)
            else:
                expected = "expected a letter, then letters, digits, '.', '_' or '-', at most 15 in all"
                self.refuse(name, f"{shown(item)} is not an interface name: {expected}")
        return tuple(names)


def _port_or_range(text: str) -> str | None:
    """A port or a range as iptables' --dport takes it, or None. A range of one port is that port."""
    first, colon, last = text.partition(":")
    if not all(_NUMBER.fullmatch(part) and 1 <= int(part) <= 65535 for part in ((first, last) if colon else (first,))):
        return None
    if not colon or first == last:
        return first
    return text if int(first) < int(last) else None
