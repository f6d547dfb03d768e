"""Flags and environment -> one frozen `Settings`; every bad value is refused here, before anything is touched.

Values are read by small functions that know which flag or variable they read, so that each refusal names it. All
refusals of a run are reported together.
"""

import ipaddress
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from init.errors import SettingsError, shown
from init.flags import FALSE, FLAGS, TRUE, Value

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

ALL = ("*",)  # a list that is exactly `*`: everything
DEFAULT_PROXY_UID = 1337  # when the account $ENVOY_USER does not exist
MAX_ITEMS = 4096  # elements of one comma list; the rule count, and so the cost of a packet, grows with it
MAX_REFUSALS = 50  # lines of one error
MAX_ID = 2**32 - 2  # 2**32 - 1 means "no id" to the kernel
_NUMBER = re.compile(r"0|[1-9][0-9]{0,9}")
_DURATION = re.compile(r"[+-]?(0|(([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h))+)")
_UINT16 = re.compile(r"0[xX][0-9a-fA-F]+|0[oO]?[0-7]+|0[bB][01]+|[1-9][0-9]*|0")


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
    def is_loopback(self) -> bool:
        """Whether the address as written is a loopback address."""
        return unmapped(self.address).is_loopback


@dataclass(frozen=True, slots=True)
class Settings:
    """What to capture, in Istio's words. Port lists hold decimal ports or ranges `first:last`, or are `ALL`."""

    proxy_port: int
    inbound_capture_port: int
    inbound_tunnel_port: int
    proxy_uids: tuple[int, ...]
    proxy_gids: tuple[int, ...]
    inbound_ports: tuple[str, ...]
    inbound_ports_exclude: tuple[str, ...]
    outbound_ranges: tuple[Cidr, ...] | None  # None: all of them (`*`)
    outbound_ranges_exclude: tuple[Cidr, ...]
    outbound_ports: tuple[str, ...]
    outbound_ports_exclude: tuple[str, ...]
    loopback_cidr: str
    force_binary: str  # "", "legacy" or "nft"
    dry_run: bool
    dry_run_file: str
    cleanup_only: bool
    reconcile: bool
    force_apply: bool
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Unsupported:
    """A value of the real program that this one does not honour yet."""

    name: str
    active: Callable[[str], bool]
    what: str
    in_cleanup: bool = False  # whether it would also change what a cleanup does


def _is_true(text: str) -> bool:
    return text in TRUE


def _is_tproxy(text: str) -> bool:
    return text == "TPROXY"


def _is_set(text: str) -> bool:
    return any(text.split(","))


def _is_duration(text: str) -> bool:
    return _DURATION.fullmatch(text) is not None


def _is_uint16(text: str) -> bool:
    """Whether Go reads it as one: decimal, 0x, 0o, 0b, and octal by a leading zero."""
    if len(text) > 20 or not _UINT16.fullmatch(text):
        return False
    octal = text.startswith("0") and text.isdigit()
    return int(text, 8 if octal else 0) <= 65535


def _is_number32(text: str) -> bool:
    return _NUMBER.fullmatch(text) is not None and 1 <= int(text) < 2**32


_UNSUPPORTED = (
    _Unsupported("istio-inbound-interception-mode", _is_tproxy, "TPROXY mode"),
    _Unsupported("istio-exclude-interfaces", _is_set, "excluding interfaces"),
    _Unsupported("kube-virt-interfaces", _is_set, "rerouting virtual interfaces"),
    _Unsupported("skip-rule-apply", _is_true, "running without applying rules", in_cleanup=True),
    _Unsupported("run-validation", _is_true, "probing the installed capture", in_cleanup=True),
    _Unsupported("redirect-dns", _is_true, "DNS capture"),
    _Unsupported("capture-all-dns", _is_true, "DNS capture"),
    _Unsupported("drop-invalid", _is_true, "dropping INVALID packets"),
    _Unsupported("dual-stack", _is_true, "IPv6 capture"),
    _Unsupported("network-namespace", bool, "entering a network namespace", in_cleanup=True),
    _Unsupported("cni-mode", _is_true, "CNI mode", in_cleanup=True),
    _Unsupported("native-nftables", _is_true, "the nft backend", in_cleanup=True),
    _Unsupported("ISTIO_OUTBOUND_OWNER_GROUPS", lambda text: text != "*", "capture by owner group"),
    _Unsupported("ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE", _is_set, "capture by owner group"),
    _Unsupported("ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR", lambda text: text != "127.0.0.1/32", "another loopback range"),
)


class _Reader:
    """Reads values by name and collects what is wrong with them."""

    def __init__(self, values: Mapping[str, Value]) -> None:
        self.values = values
        self.refused: list[tuple[str, bool]] = []
        self.warnings: list[str] = []

    def refuse(self, value: Value, reason: str) -> None:
        self.refused.append((f"{value.origin}: {reason}", value.from_flag))

    def text(self, name: str) -> str:
        return self.values[name].text

    def boolean(self, name: str) -> bool:
        value = self.values[name]
        # An empty variable means false, as in the real program: charts render unset values that way.
        if value.text in TRUE or value.text in FALSE or (value.text == "" and not value.from_flag):
            return value.text in TRUE
        self.refuse(value, f"{shown(value.text)} is not a boolean: expected true or false")
        return False

    def port(self, name: str) -> int:
        value = self.values[name]
        if _NUMBER.fullmatch(value.text) and 1 <= int(value.text) <= 65535:
            return int(value.text)
        self.refuse(value, f"{shown(value.text)} is not a port: expected a decimal number 1 to 65535")
        return 0

    def form(self, name: str, is_valid: Callable[[str], bool], expected: str) -> None:
        """Check a value that nothing reads here. An empty variable is as good as none."""
        value = self.values[name]
        if not is_valid(value.text) and (value.text or value.from_flag):
            self.refuse(value, f"{shown(value.text)} is refused: expected {expected}")

    def items(self, name: str) -> list[str]:
        """The elements of a comma list; empty ones are dropped (`6000,7000,` has two)."""
        value = self.values[name]
        items = [item for item in value.text.split(",") if item]
        if value.text and not items:
            self.refuse(value, f"{shown(value.text)} has no element: leave the value empty to mean none")
        if len(items) > MAX_ITEMS:
            self.refuse(value, f"has {len(items)} elements: expected at most {MAX_ITEMS}")
            return []
        return items

    def ports(self, name: str, *, wildcard: bool = False) -> tuple[str, ...]:
        if wildcard and self.text(name) == "*":
            return ALL
        ports = []
        for item in self.items(name):
            port = _dport(item.strip(" "))
            if port is None:
                also = " or the single word '*'" if wildcard else ""
                self.refuse(
                    self.values[name],
                    f"{shown(item)} is not a port: expected decimal numbers 1 to 65535 or ranges first:last{also}",
                )
            else:
                ports.append(port)
        return tuple(ports)

    def ids(self, name: str, what: str) -> tuple[int, ...]:
        ids = []
        for item in self.items(name):
            number = item.strip(" ")
            if _NUMBER.fullmatch(number) and int(number) <= MAX_ID:
                ids.append(int(number))
            else:
                self.refuse(self.values[name], f"{shown(item)} is not a {what}: expected decimal numbers 0 to {MAX_ID}")
        return tuple(ids)

    def cidrs(self, name: str, *, wildcard: bool = False) -> tuple[Cidr, ...]:
        cidrs = []
        for item in self.items(name):
            try:
                cidrs.append(parse_cidr(item))
            except ValueError as error:
                also = " or the single word '*'" if wildcard else ""
                self.refuse(
                    self.values[name],
                    f"{shown(item)} is not an address range ({error}): expected CIDRs such as 10.0.0.0/8{also}",
                )
        return tuple(cidrs)


def _dport(text: str) -> str | None:
    """A port or a range as iptables' --dport takes it, or None. A range of one port is that port."""
    first, colon, last = text.partition(":")
    if not all(_NUMBER.fullmatch(part) and 1 <= int(part) <= 65535 for part in ((first, last) if colon else (first,))):
        return None
    if not colon or first == last:
        return first
    return text if int(first) < int(last) else None


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


def load(
    values: Mapping[str, Value],
    account: Callable[[str], int | None],
    addresses: Callable[[], Sequence[IPAddress]],
    *,
    cleanup_only: bool = False,
) -> Settings:
    """Settings from `values` (`flags.resolve`) and from what the machine answers.

    `account` gives the uid of a user name or None; `addresses` the addresses of the network namespace in the kernel's
    order. With `cleanup_only` what merely decides which rules to install is checked for form, and need not be
    supported. Raises SettingsError with one line for each refused value.
    """
    reader = _Reader(values)
    cleanup = reader.boolean("cleanup-only") or cleanup_only
    _check_unused_here(reader)
    _check_mode(reader)
    for entry in _UNSUPPORTED:
        value = values[entry.name]
        if entry.active(value.text) and (entry.in_cleanup or not cleanup):
            reader.refuse(value, f"{shown(value.text)} asks for {entry.what}, which is not supported yet")
    uids = reader.ids("proxy-uid", "uid")
    if not reader.text("proxy-uid"):
        found = account(reader.text("ENVOY_USER"))
        uids = (DEFAULT_PROXY_UID if found is None else found,)
    gids = reader.ids("proxy-gid", "gid") if reader.text("proxy-gid") else uids
    everything = reader.text("istio-service-cidr") == "*"
    settings = Settings(
        proxy_port=reader.port("envoy-port"),
        inbound_capture_port=reader.port("inbound-capture-port"),
        inbound_tunnel_port=reader.port("inbound-tunnel-port"),
        proxy_uids=uids,
        proxy_gids=gids,
        inbound_ports=reader.ports("istio-inbound-ports", wildcard=True),
        inbound_ports_exclude=reader.ports("istio-local-exclude-ports"),
        outbound_ranges=None if everything else reader.cidrs("istio-service-cidr", wildcard=True),
        outbound_ranges_exclude=reader.cidrs("istio-service-exclude-cidr"),
        outbound_ports=reader.ports("istio-outbound-ports"),
        outbound_ports_exclude=reader.ports("istio-local-outbound-ports-exclude"),
        loopback_cidr=reader.text("ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR"),
        force_binary=reader.text("force-iptables-binary"),
        dry_run=reader.boolean("dry-run"),
        dry_run_file=reader.text("DRY_RUN_FILE_PATH"),
        cleanup_only=cleanup,
        reconcile=reader.boolean("reconcile"),
        force_apply=reader.boolean("force-apply"),
        warnings=(),
    )
    if not reader.refused:
        _check_together(reader, settings)
    if not reader.refused and not cleanup:
        _check_addresses(reader, addresses())
    if reader.refused:
        lines = list(dict.fromkeys(line for line, _ in reader.refused))
        if len(lines) > MAX_REFUSALS:
            lines[MAX_REFUSALS:] = [f"and {len(lines) - MAX_REFUSALS} more values are refused"]
        raise SettingsError(lines, from_flag=any(from_flag for _, from_flag in reader.refused))
    return _with_warnings(reader, settings)


def _check_unused_here(reader: _Reader) -> None:
    """The form of every value that only a mode which is off would use."""
    for flag in FLAGS:
        if flag.kind == "bool":
            reader.boolean(flag.name)
    reader.form("istio-inbound-tproxy-mark", _is_number32, f"a decimal packet mark 1 to {2**32 - 1}")
    reader.form("istio-inbound-tproxy-route-table", _is_number32, f"a decimal table number 1 to {2**32 - 1}")
    reader.form("probe-timeout", _is_duration, "a duration such as 5s or 1m30s")
    reader.form("iptables-probe-port", _is_uint16, "a number 0 to 65535")
    if reader.text("force-iptables-binary") not in ("", "legacy", "nft"):
        value = reader.values["force-iptables-binary"]
        reader.refuse(value, f"{shown(value.text)} is not supported: expected legacy or nft")


def _check_mode(reader: _Reader) -> None:
    value = reader.values["istio-inbound-interception-mode"]
    if value.text not in ("", "REDIRECT", "TPROXY"):
        reader.refuse(value, f"{shown(value.text)} is not an interception mode: expected REDIRECT or TPROXY")


def _check_together(reader: _Reader, settings: Settings) -> None:
    """Ports that must differ: one listener cannot be two, and captured traffic must not look like a tunnel's."""
    names = ("envoy-port", "inbound-capture-port", "inbound-tunnel-port")
    ports = (settings.proxy_port, settings.inbound_capture_port, settings.inbound_tunnel_port)
    for at, (name, port) in enumerate(zip(names, ports, strict=True)):
        for other, other_port in list(zip(names, ports, strict=True))[:at]:
            if port == other_port:
                one, two = reader.values[name], reader.values[other]
                refused = Value(one.text, one.origin, one.from_flag or two.from_flag)
                reader.refuse(refused, f"{port} is also the value of {two.origin}: expected different ports")


def _check_addresses(reader: _Reader, addresses: Sequence[IPAddress]) -> None:
    """The first usable address decides which family is captured, as in the real program without dual stack."""
    usable = [a for a in map(unmapped, addresses) if not (a.is_loopback or a.is_link_local or a.is_multicast)]
    if not usable:
        reader.refused.append(
            ("no valid local IP address found: give the pod's interface an address before this program runs", False)
        )
    elif usable[0].version == 6:
        reader.refused.append(
            (f"the first local address, {usable[0]}, asks for IPv6 capture, which is not supported yet", False)
        )
    elif any(address.version == 6 for address in usable):
        reader.warnings.append("this pod also has IPv6 addresses: IPv6 traffic is not captured")


def unmapped(address: IPAddress) -> IPAddress:
    """The IPv4 address inside an IPv4-mapped IPv6 address, any other address as it is."""
    return getattr(address, "ipv4_mapped", None) or address


def _with_warnings(reader: _Reader, settings: Settings) -> Settings:
    """Values that are well-formed but have no effect are said to have none."""
    if settings.inbound_ports_exclude and settings.inbound_ports != ALL:
        origin = reader.values["istio-local-exclude-ports"].origin
        reader.warnings.append(f"{origin} has no effect: it excludes ports only when -b is '*'")
    for name, cidrs in (
        ("istio-service-cidr", settings.outbound_ranges or ()),
        ("istio-service-exclude-cidr", settings.outbound_ranges_exclude),
    ):
        if any(cidr.address.version == 6 for cidr in cidrs):
            reader.warnings.append(f"{reader.values[name].origin}: IPv6 ranges have no effect without IPv6 capture")
    return replace(settings, warnings=tuple(reader.warnings))
