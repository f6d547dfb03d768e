"""Flags and environment -> one frozen `Settings`; every bad value is refused here, before anything is touched."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from init.errors import shown
from init.flags import FLAGS, Value
from init.rules import SELF_CALL_MARK, Version
from init.values import ALL, Cidr, IPAddress, Reader, parse_cidr, unmapped

DEFAULT_PROXY_UID = 1337  # when the account $ENVOY_USER does not exist
MAX_OWNER_GROUPS = 64  # that one rule can name, as in Istio
LOOPBACK_V6 = "::1/128"
LOOPBACK_FORM = "an IPv4 range inside 127.0.0.0/8, prefix length 8 to 32"
BACKENDS = ("iptables-nft", "iptables-legacy", "nftables", "libiptc")
# Routing tables of the kernel's own: a default route in one of them would swallow the pod's traffic.
RESERVED_TABLES = {253: "default", 254: "main", 255: "local"}


@dataclass(frozen=True, slots=True)
class Settings:
    """What to capture, in Istio's words. Port lists hold decimal ports or ranges `first:last`, or are `ALL`."""

    proxy_port: int
    inbound_capture_port: int
    inbound_tunnel_port: int
    proxy_uids: tuple[int, ...]
    proxy_gids: tuple[int, ...]
    tproxy: bool
    tproxy_mark: int
    tproxy_table: int
    inbound_ports: tuple[str, ...]
    inbound_ports_exclude: tuple[str, ...]
    outbound_ranges: tuple[Cidr, ...] | None  # None: all of them (`*`)
    outbound_ranges_exclude: tuple[Cidr, ...]
    outbound_ports: tuple[str, ...]
    outbound_ports_exclude: tuple[str, ...]
    exclude_interfaces: tuple[str, ...]
    virtual_interfaces: tuple[str, ...]
    owner_groups: tuple[int, ...] | None  # None: all of them (`*`)
    owner_groups_exclude: tuple[int, ...]
    drop_invalid: bool
    redirect_dns: bool
    capture_all_dns: bool
    dns_servers: tuple[IPAddress, ...]
    loopback_cidr: str
    ipv6: bool
    backend: str  # one of BACKENDS, or empty: an iptables binary, chosen by what is there
    cni_mode: bool
    network_namespace: str
    dry_run: bool
    dry_run_file: str
    output: str  # "text" or "json"
    skip_rule_apply: bool
    run_validation: bool
    probe_port: int
    probe_timeout: float  # seconds
    cleanup_only: bool
    reconcile: bool
    force_apply: bool
    warnings: tuple[str, ...]

    @property
    def captures_dns(self) -> bool:
        """Whether DNS rules are made: asked for, and there is something to capture."""
        return self.redirect_dns and (self.capture_all_dns or bool(self.dns_servers))

    @property
    def routes_inbound(self) -> bool:
        """Whether captured inbound packets need a policy rule and a local route (TPROXY with ports to capture)."""
        return self.tproxy and bool(self.inbound_ports)

    def loopback(self, version: Version) -> str:
        """The range that counts as this host itself."""
        return self.loopback_cidr if version == 4 else LOOPBACK_V6


@dataclass(frozen=True, slots=True)
class Machine:
    """What the machine answers: the uid and gid of a name or None, the addresses of the network namespace in the
    kernel's order, the text of resolv.conf."""

    uid_of: Callable[[str], int | None]
    gid_of: Callable[[str], int | None]
    addresses: Callable[[], Sequence[IPAddress]]
    resolv_conf: Callable[[], str]


def load(values: Mapping[str, Value], machine: Machine, *, cleanup_only: bool = False) -> Settings:
    """Settings from `values` (`flags.resolve`) and from what the machine answers.

    A cleanup checks the form of every value but asks the machine nothing: it goes by what is in the kernel. Raises
    SettingsError with one line for each refused value.
    """
    reader = Reader(values)
    cleanup = reader.boolean("cleanup-only") or cleanup_only
    apart = cleanup or reader.boolean("skip-rule-apply")  # no rule is made
    probes = reader.boolean("run-validation") and not cleanup
    uids = reader.ids("proxy-uid", "uid")
    if not reader.text("proxy-uid"):
        found = machine.uid_of(reader.text("ENVOY_USER"))
        uids = (DEFAULT_PROXY_UID if found is None else found,)
    redirect_dns = reader.boolean("redirect-dns")
    capture_all_dns = reader.boolean("capture-all-dns") and redirect_dns
    ask_servers = redirect_dns and not capture_all_dns and not apart
    settings = Settings(
        proxy_port=reader.port("envoy-port"),
        inbound_capture_port=reader.port("inbound-capture-port"),
        inbound_tunnel_port=reader.port("inbound-tunnel-port"),
        proxy_uids=uids,
        proxy_gids=reader.ids("proxy-gid", "gid") if reader.text("proxy-gid") else uids,
        tproxy=_mode(reader) == "TPROXY",
        tproxy_mark=reader.number32("istio-inbound-tproxy-mark", "packet mark"),
        tproxy_table=_route_table(reader),
        inbound_ports=reader.ports("istio-inbound-ports", wildcard=True),
        inbound_ports_exclude=reader.ports("istio-local-exclude-ports"),
        outbound_ranges=_outbound_ranges(reader),
        outbound_ranges_exclude=reader.cidrs("istio-service-exclude-cidr"),
        outbound_ports=reader.ports("istio-outbound-ports"),
        outbound_ports_exclude=reader.ports("istio-local-outbound-ports-exclude"),
        exclude_interfaces=reader.interfaces("istio-exclude-interfaces"),
        virtual_interfaces=reader.interfaces("kube-virt-interfaces"),
        owner_groups=_owner_groups(reader, machine),
        owner_groups_exclude=_groups(reader, "ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE", machine),
        drop_invalid=reader.boolean("drop-invalid"),
        redirect_dns=redirect_dns,
        capture_all_dns=capture_all_dns,
        dns_servers=_dns_servers(reader, machine) if ask_servers else (),
        loopback_cidr=_loopback(reader),
        ipv6=(probes or not apart) and _enables_ipv6(reader, machine),
        backend=_backend(reader),
        cni_mode=reader.boolean("cni-mode"),
        network_namespace=reader.text("network-namespace"),
        dry_run=reader.boolean("dry-run"),
        dry_run_file=reader.text("DRY_RUN_FILE_PATH"),
        output=reader.choice("output", ("text", "json"), "an output format") or "text",
        skip_rule_apply=reader.boolean("skip-rule-apply"),
        run_validation=reader.boolean("run-validation"),
        probe_port=reader.uint16("iptables-probe-port"),
        probe_timeout=reader.seconds("probe-timeout"),
        cleanup_only=cleanup,
        reconcile=reader.boolean("reconcile"),
        force_apply=reader.boolean("force-apply"),
        warnings=(),
    )
    for flag in FLAGS:  # also those that nothing above reads, or only where a mode asks for them
        if flag.kind == "bool":
            reader.boolean(flag.name)
    if not reader.refused:
        _check_together(reader, settings)
    reader.check()
    if not apart:
        _warn(reader, settings)
    return _with_warnings(settings, reader.warnings)


def _with_warnings(settings: Settings, warnings: Sequence[str]) -> Settings:
    from dataclasses import replace

    return replace(settings, warnings=tuple(dict.fromkeys(warnings)))


def _mode(reader: Reader) -> str:
    return reader.choice("istio-inbound-interception-mode", ("REDIRECT", "TPROXY"), "an interception mode")


def _route_table(reader: Reader) -> int:
    name = "istio-inbound-tproxy-route-table"
    table = reader.number32(name, "routing table")
    if table in RESERVED_TABLES:
        reader.refuse(name, f"{table} is the kernel's table {RESERVED_TABLES[table]}: expected a table of its own")
    return table


def _outbound_ranges(reader: Reader) -> tuple[Cidr, ...] | None:
    if reader.text("istio-service-cidr") == "*":
        return None
    return reader.cidrs("istio-service-cidr", wildcard=True)


def _groups(reader: Reader, name: str, machine: Machine) -> tuple[int, ...]:
    # In CNI mode the account files are the host's, not the pod's: a name would mean another group.
    return reader.ids(name, "group", None if reader.boolean("cni-mode") else machine.gid_of)


def _owner_groups(reader: Reader, machine: Machine) -> tuple[int, ...] | None:
    name = "ISTIO_OUTBOUND_OWNER_GROUPS"
    if reader.text(name) == "*":
        return None
    if not reader.text(name):
        reader.refuse(name, "is set but empty, which would exempt every process from capture: unset it or name groups")
        return ()
    groups = _groups(reader, name, machine)
    if len(groups) > MAX_OWNER_GROUPS:
        reader.refuse(name, f"has {len(groups)} groups: expected at most {MAX_OWNER_GROUPS}")
    return groups


def _loopback(reader: Reader) -> str:
    name = "ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR"
    text = reader.text(name)
    try:
        cidr = parse_cidr(text)
    except ValueError as error:
        reader.refuse(name, f"{shown(text)} is not an address range ({error}): expected {LOOPBACK_FORM}")
        return text
    if cidr.version != 4 or not cidr.address.is_loopback or cidr.bits < 8:
        reader.refuse(name, f"{shown(text)} is refused: expected {LOOPBACK_FORM}")
    return text


def _backend(reader: Reader) -> str:
    """The one backend that up to three flags ask for."""
    forced = reader.choice("force-iptables-binary", ("legacy", "nft"), "supported")
    wishes = {
        "backend": reader.choice("backend", BACKENDS, "a backend"),
        "native-nftables": "nftables" if reader.boolean("native-nftables") else "",
        "force-iptables-binary": f"iptables-{forced}" if forced else "",
    }
    asked = {name: wish for name, wish in wishes.items() if wish}
    if len(set(asked.values())) > 1:
        name = next(iter(asked))
        others = " and ".join(reader.values[other].origin for other in list(asked)[1:])
        reader.refuse(name, f"asks for another backend than {others}: give one of them")
    return next(iter(asked.values()), "")


def _dns_servers(reader: Reader, machine: Machine) -> tuple[IPAddress, ...]:
    """Every name server of resolv.conf, IPv4 first."""
    try:
        text = machine.resolv_conf()
    except OSError as error:
        reader.refuse(
            "redirect-dns", f"cannot read /etc/resolv.conf: {error.strerror}: mount it or use --capture-all-dns"
        )
        return ()
    servers: list[IPAddress] = []
    for line in text.splitlines():
        words = line.split()
        if len(words) < 2 or words[0] != "nameserver":
            continue
        try:
            servers.append(unmapped(ip_address(words[1].strip())))
        except ValueError:
            reader.warn("redirect-dns", f"/etc/resolv.conf: name server {shown(words[1])} is not an address: ignored")
    plain = [server for server in servers if not getattr(server, "scope_id", None)]
    for server in servers:
        if server not in plain:
            reader.warn("redirect-dns", f"/etc/resolv.conf: name server {server} has a zone: its DNS is not captured")
    if not plain:
        reader.warn("redirect-dns", "/etc/resolv.conf names no name server: DNS is not captured")
    return tuple(sorted(plain, key=lambda server: server.version))


def _enables_ipv6(reader: Reader, machine: Machine) -> bool:
    """Whether IPv6 rules are made: the first usable address decides, with dual stack any of them."""
    usable = [
        address
        for address in map(unmapped, machine.addresses())
        if not (
            address.is_loopback or address.is_link_local or (address.is_multicast and _is_link_local_group(address))
        )
    ]
    if not usable:
        reader.refuse_all(
            "no valid local IP address found: give the pod's interface an address before this program runs"
        )
        return False
    any_ipv6 = any(address.version == 6 for address in usable)
    if reader.boolean("dual-stack"):
        return any_ipv6
    if any_ipv6 and usable[0].version == 4:
        reader.warnings.append("this pod also has IPv6 addresses: IPv6 traffic is not captured without --dual-stack")
    return usable[0].version == 6


def _is_link_local_group(address: IPAddress) -> bool:
    return str(address).startswith("224.0.0.") if address.version == 4 else str(address).startswith(("ff02:", "ff12:"))


def _check_together(reader: Reader, settings: Settings) -> None:
    """Ports that must differ: one listener cannot be two, and captured traffic must not look like a tunnel's."""
    ports = {
        "envoy-port": settings.proxy_port,
        "inbound-capture-port": settings.inbound_capture_port,
        "inbound-tunnel-port": settings.inbound_tunnel_port,
    }
    names = list(ports)
    for at, name in enumerate(names):
        for other in names[:at]:
            if ports[name] == ports[other]:
                origin = reader.values[other].origin
                reader.refuse(name, f"{ports[name]} is also the value of {origin}: expected different ports")


def _warn(reader: Reader, settings: Settings) -> None:
    """Say which values have no effect, or one that is easily not meant."""
    if settings.inbound_ports_exclude and settings.inbound_ports != ALL:
        reader.warn("istio-local-exclude-ports", "has no effect: it excludes ports only when -b is '*'")
    for name, cidrs in (
        ("istio-service-cidr", settings.outbound_ranges or ()),
        ("istio-service-exclude-cidr", settings.outbound_ranges_exclude),
    ):
        if any(cidr.version == 6 for cidr in cidrs) and not settings.ipv6:
            reader.warn(name, "IPv6 ranges have no effect without IPv6 capture")
    if any(cidr.is_loopback for cidr in settings.outbound_ranges or ()):
        reader.warn(
            "istio-service-cidr",
            "a loopback range is captured: applications that call their own pod through lo are no longer exempt",
        )
    captured = settings.outbound_ranges is None or settings.outbound_ranges or settings.outbound_ports
    if not settings.inbound_ports and captured:
        reader.warn(
            "istio-inbound-ports",
            "no inbound port is captured, but calls of the proxy to its own pod still go to port "
            f"{settings.inbound_capture_port}",
        )
    if len(settings.proxy_uids) > 1:
        reader.warn(
            "proxy-uid", f"only the first uid, {settings.proxy_uids[0]}, can call its own pod through the proxy"
        )
    if settings.owner_groups is not None and settings.owner_groups_exclude:
        reader.warn("ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE", "has no effect: ISTIO_OUTBOUND_OWNER_GROUPS names groups")
    if settings.tproxy and settings.tproxy_mark == SELF_CALL_MARK:
        reader.warn(
            "istio-inbound-tproxy-mark",
            f"{SELF_CALL_MARK} is also the fixed mark of the proxy's calls to its own pod: those are not captured",
        )
    if reader.boolean("capture-all-dns") and not settings.redirect_dns:
        reader.warn("capture-all-dns", "has no effect without --redirect-dns")
    servers = settings.dns_servers
    if servers and not settings.capture_all_dns and not settings.ipv6 and all(s.version == 6 for s in servers):
        reader.warn("redirect-dns", "all name servers are IPv6, which is not captured: DNS is not captured")
    if 53 in _single_ports(settings.outbound_ports_exclude) and settings.captures_dns:
        reader.warn("istio-local-outbound-ports-exclude", "excludes port 53: DNS is not captured")


def _single_ports(ports: Sequence[str]) -> set[int]:
    return {int(port) for port in ports if port.isdigit()}


def machine_of_this_process() -> Machine:
    """The answers of the system that this process runs on."""
    return Machine(_uid_of, _gid_of, _addresses, _resolv_conf)


def _uid_of(user: str) -> int | None:
    import pwd

    try:
        return pwd.getpwnam(user).pw_uid
    except (KeyError, ValueError):
        return None


def _gid_of(group: str) -> int | None:
    import grp

    try:
        return grp.getgrnam(group).gr_gid
    except (KeyError, ValueError):
        return None


def _addresses() -> Sequence[IPAddress]:
    from init.netlink import local_addresses

    return local_addresses()


def _resolv_conf() -> str:
    with open("/etc/resolv.conf", encoding="utf-8", errors="replace") as file:
        return file.read(1 << 20)
