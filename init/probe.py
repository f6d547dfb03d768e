"""`--run-validation`: whether the capture that is in the kernel captures, tried with real connections.

Like Istio's: listeners stand at both capture ports on loopback, and a client connects until one of them gets it or the
time is up. They differ in how much is tried: outbound too, every family that has rules, the address and not only the
port of the original destination, and as root the client takes the ids that the rules look at.
"""

import errno
import os
import selectors
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from itertools import islice

from init.errors import ValidationError
from init.log import Log
from init.netlink import local_addresses
from init.probe_plan import LISTEN, Identity, Probe, Surroundings, choose_probes, endpoint
from init.rules import Version
from init.settings import Settings
from init.values import IPAddress

PATIENCE = 0.25  # seconds for one connection; a packet that no rule took stays untaken however often it is sent again
FIRST_PAUSE, LAST_PAUSE = 0.005, 0.1  # seconds between two connections of one probe; doubles from one to the other
BACKLOG = 64
MAX_ACCEPTED = 64  # connections accepted before the clients have their turn
MAX_SOCKETS = 1 << 20  # lines read of the kernel's socket table
# Hops of an outbound packet: enough for a listener of this pod. What is not captured ends at this pod's first router.
OUTBOUND_HOPS = 1

FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
SO_ORIGINAL_DST = 80  # linux/netfilter_ipv4.h; the same number is IP6T_SO_ORIGINAL_DST
_SOCKADDR_IN = struct.Struct("!2xH4s8x")
_SOCKADDR_IN6 = struct.Struct("!2xH4x16s4x")

_NETLINK_HEADER = struct.Struct("=LHHLL")
_RTM_NEWROUTE, _RTM_GETROUTE, _NLM_F_REQUEST = 24, 26, 1
_RTMSG = struct.Struct("=BBBBBBBBI")
_RTATTR = struct.Struct("=HH")
_RTA_DST, _RTA_OIF, _RTN_UNICAST = 1, 4, 1

Name = tuple[str, int]  # address and port


def validate(settings: Settings, log: Log) -> None:
    """Try the capture of this network namespace in both directions and every family that has rules.

    Returns once every probe has arrived, which takes milliseconds when the rules are there; keeps trying for
    `probe_timeout` seconds when they are not, since a CNI plugin may still be making them. Raises ValidationError with
    one line for each probe that did not arrive, and when nothing at all can be probed.
    """
    deadline = time.monotonic() + settings.probe_timeout
    if settings.probe_timeout <= 0:
        raise ValidationError(
            f"validation: --probe-timeout {settings.probe_timeout:g}s leaves no time to probe: expected more than 0"
        )
    probes, skipped = choose_probes(settings, surroundings_of_this_process())
    if not probes:
        raise ValidationError(*(f"validation: {one}" for one in skipped))
    for one in skipped:
        (log.info if one.harmless else log.warn)(f"validation: {one}")
    with _Run(probes, log) as run:
        run.listen(settings)
        late = run.finish(deadline)
    if late:
        advice = _advice(settings)
        raise ValidationError(*(_failure(track, settings.probe_timeout, advice) for track in late))


def surroundings_of_this_process() -> Surroundings:
    """The answers of the system that this process runs on."""
    identity = Identity(os.geteuid(), os.getegid())
    return Surroundings(identity, _can_become, local_addresses(), interface_to)


def _advice(settings: Settings) -> str:
    if settings.skip_rule_apply:
        return (
            "the rules are not, or not all, in this network namespace: with the Istio CNI plugin, the pod started "
            "before its rules were made: delete the pod so that it is made anew, and read the log of istio-cni on its "
            "node"
        )
    return (
        "the rules just applied are not the first to decide: look for rules of other programs in iptables-save and "
        "'nft list ruleset'"
    )


def _failure(track: "_Track", timeout: float, advice: str) -> str:
    probe = track.probe
    if probe.address == ip_address("::6") and probe.address not in local_addresses():
        advice = f"::6 is not an address of lo, as it must be; {advice}"
    expected = endpoint(LISTEN[probe.version], probe.arrives_at)
    return (
        f"validation failed: {probe.name}: a connection to {probe.destination} as {probe.identity} must arrive at "
        f"{expected}; {track.seen} ({track.tries} tries in {timeout:g}s): {advice}"
    )


@dataclass(slots=True, eq=False)
class _Track:
    """One probe and the connection that tries it now, if there is one."""

    probe: Probe
    seen: str = "nothing was tried"  # how the last connection ended
    tries: int = 0
    pause: float = FIRST_PAUSE
    next_at: float = 0.0  # monotonic seconds: when to connect, or to give the connection up
    client: socket.socket | None = None
    name: Name = ("", 0)  # of the client, as the other side sees it
    connected: bool = False


@dataclass(slots=True, eq=False)
class _Listener:
    """One of the two capture ports of one family; `server` is None where another process has it."""

    version: Version
    port: int
    problem: str = ""
    server: socket.socket | None = None


@dataclass(slots=True)
class _Run:
    """All probes at once, in one loop."""

    probes: Sequence[Probe]
    log: Log
    selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    listeners: list[_Listener] = field(default_factory=list)
    waiting: list[_Track] = field(default_factory=list)

    def __enter__(self) -> "_Run":
        return self

    def __exit__(self, *_: object) -> None:
        for track in self.waiting:
            self._hang_up(track)
        for listener in self.listeners:
            if listener.server is not None:
                listener.server.close()
        self.selector.close()

    def finish(self, deadline: float) -> list[_Track]:
        """Try until every probe has arrived or the time is up; returns those that have not."""
        self.waiting = [_Track(probe) for probe in self.probes]
        while self.waiting:
            now = time.monotonic()
            for track in self.waiting:
                if track.client is None and track.next_at <= now:
                    self._connect(track, now)
            wake = min(deadline, *(track.next_at for track in self.waiting))
            for key, _ in self.selector.select(max(0.0, wake - time.monotonic())):
                if isinstance(key.data, _Listener):
                    self._accept(key.data)
                elif key.data.client is key.fileobj:  # not hung up by an event of the same round
                    self._connected(key.data)
            now = time.monotonic()
            if now >= deadline:
                break
            for track in list(self.waiting):
                if track.client is not None and track.next_at <= now:
                    self._give_up(track)
        return self.waiting

    def listen(self, settings: Settings) -> None:
        """Take both capture ports in every family that is probed.

        Raises ValidationError where neither can be had. One is enough: the other may be the running proxy's.
        """
        for version in sorted({probe.version for probe in self.probes}):
            pair = [_listen(version, port) for port in (settings.proxy_port, settings.inbound_capture_port)]
            self.listeners += pair
            problems = [f"{endpoint(LISTEN[version], one.port)} ({one.problem})" for one in pair if one.problem]
            if len(problems) == len(pair):
                raise ValidationError(
                    f"validation: cannot listen at {' nor at '.join(problems)}: run the validation before the proxy "
                    "starts, or free one of the ports"
                )
            for problem in problems:
                self.log.info(f"validation: cannot listen at {problem}: what arrives there is judged by the port alone")
        for listener in self.listeners:
            if listener.server is not None:
                self.selector.register(listener.server, selectors.EVENT_READ, listener)

    def _connect(self, track: _Track, now: float) -> None:
        probe = track.probe
        track.tries += 1
        track.next_at = now + PATIENCE
        try:
            # Owner matches look at who made the socket, so that is all that needs the other ids.
            with becoming(probe.identity):
                track.client = socket.socket(FAMILY[probe.version], socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            _prepare(track.client, probe)
            problem = track.client.connect_ex((str(probe.address), probe.port))
            if problem not in (0, errno.EINPROGRESS):
                raise OSError(problem, os.strerror(problem))
            track.name = track.client.getsockname()[:2]
            self.selector.register(track.client, selectors.EVENT_WRITE, track)
        except OSError as error:
            self._failed(track, f"the last one failed: {error.strerror}")

    def _connected(self, track: _Track) -> None:
        """The client's connection stands, or it was refused."""
        assert track.client is not None
        problem = track.client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if problem:
            self._failed(track, f"the last one failed: {os.strerror(problem)}")
            return
        track.connected = True
        self.selector.unregister(track.client)
        probe = track.probe
        port = server_port(probe.version, track.name)
        if port != probe.arrives_at:
            where = "was accepted by no socket of this pod" if port is None else f"arrived at port {port}"
            self._failed(track, f"the last one {where}")
        elif not self._is_ours(probe):
            self._arrived(track, "which another process has: its original destination is not known")

    def _is_ours(self, probe: Probe) -> bool:
        places = ((one.version, one.port) for one in self.listeners if one.server is not None)
        return (probe.version, probe.arrives_at) in places

    def _give_up(self, track: _Track) -> None:
        """The time of one connection is up."""
        if track.connected:  # only with port `arrives_at`: its listener stands beside ours with SO_REUSEPORT
            self._arrived(track, "at a listener of another process: its original destination is not known")
        else:
            self._failed(track, "the last one was not answered")

    def _accept(self, listener: _Listener) -> None:
        """Answer what has arrived: with the original port in digits, as Istio's does."""
        assert listener.server is not None
        for _ in range(MAX_ACCEPTED):
            try:
                connection, name = listener.server.accept()
            except OSError:  # nothing more, or the client is gone
                return
            with connection:
                connection.setblocking(False)
                original = None
                try:
                    original = original_destination(connection, listener.version)
                    connection.send(str(original[1]).encode())
                except OSError:  # not tracked, or gone already
                    pass
            for track in self.waiting:
                if track.name == name[:2] and track.probe.version == listener.version:
                    self._judge(track, listener, original)
                    break

    def _judge(self, track: _Track, listener: _Listener, original: tuple[IPAddress, int] | None) -> None:
        probe = track.probe
        if listener.port != probe.arrives_at:
            self._failed(track, f"the last one arrived at port {listener.port}")
        elif original is None:
            self._failed(track, "the last one arrived, but the kernel does not know its original destination")
        elif original != (probe.address, probe.port):
            self._failed(track, f"the last one arrived with the original destination {endpoint(*original)}")
        else:
            self._arrived(track, "")

    def _arrived(self, track: _Track, remark: str) -> None:
        probe = track.probe
        self._hang_up(track)
        self.waiting.remove(track)
        self.log.info(
            f"validation: {probe.name}: {probe.destination} as {probe.identity} arrives at port {probe.arrives_at}"
            + (f", {remark}" if remark else "")
        )

    def _failed(self, track: _Track, seen: str) -> None:
        self._hang_up(track)
        track.seen = seen
        track.next_at = time.monotonic() + track.pause
        track.pause = min(track.pause * 2, LAST_PAUSE)

    def _hang_up(self, track: _Track) -> None:
        if track.client is None:
            return
        if track.client in self.selector.get_map():
            self.selector.unregister(track.client)
        track.client.close()
        track.client, track.name, track.connected = None, ("", 0), False


def _listen(version: Version, port: int) -> _Listener:
    listener = _Listener(version, port)
    sock = None
    try:
        sock = socket.socket(FAMILY[version], socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((LISTEN[version], port))
        sock.listen(BACKLOG)
        listener.server = sock
    except OSError as error:
        if sock is not None:
            sock.close()
        listener.problem = error.strerror or str(error)
    return listener


def _prepare(client: socket.socket, probe: Probe) -> None:
    # A probe that no rule takes sends nothing but SYN, for PATIENCE seconds each and --probe-timeout in all, and does
    # not get past this pod's first router. If a neighbour accepts it, no byte follows: closing resets the connection.
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
    if probe.source:
        client.bind((probe.source, 0))
    elif probe.version == 4:
        client.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, OUTBOUND_HOPS)
    else:
        client.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, OUTBOUND_HOPS)


def original_destination(connection: socket.socket, version: Version) -> tuple[IPAddress, int]:
    """Where the client of an accepted connection wanted to go. Raises OSError: the kernel does not track it."""
    if version == 4:
        port, packed = _SOCKADDR_IN.unpack(connection.getsockopt(socket.IPPROTO_IP, SO_ORIGINAL_DST, 16))
    else:
        port, packed = _SOCKADDR_IN6.unpack(connection.getsockopt(socket.IPPROTO_IPV6, SO_ORIGINAL_DST, 28))
    return ip_address(packed), port


def server_port(version: Version, client: Name) -> int | None:
    """The local port of the socket in this network namespace whose peer is `client`, whoever owns it."""
    packed = ip_address(client[0]).packed
    remotes = {f"{_hex(packed)}:{client[1]:04X}"}
    tables = ["tcp"] if version == 4 else ["tcp6"]
    if version == 4:  # a listener of both families has it in the IPv6 table
        remotes.add(f"{_hex(bytes(10) + bytes((255, 255)) + packed)}:{client[1]:04X}")
        tables.append("tcp6")
    for table in tables:
        try:
            with open(f"/proc/thread-self/net/{table}", encoding="ascii") as lines:
                for line in islice(lines, MAX_SOCKETS):
                    _, local, remote, *_ = line.split(maxsplit=3)
                    if remote in remotes:
                        return int(local.rpartition(":")[2], 16)
        except (OSError, ValueError):
            continue
    return None


def _hex(packed: bytes) -> str:
    """An address as /proc/net/tcp prints it: words of four bytes in the machine's order."""
    return "".join(f"{word:08X}" for (word,) in struct.iter_unpack("=I", packed))


@contextmanager
def becoming(identity: Identity) -> Iterator[None]:
    """The effective ids of this process in the block. Raises OSError: it may not, or the ids do not exist here."""
    uid, gid = os.geteuid(), os.getegid()
    if identity == Identity(uid, gid):
        yield
        return
    os.setegid(identity.gid)
    try:
        os.seteuid(identity.uid)
        try:
            yield
        finally:
            os.seteuid(uid)
    finally:
        os.setegid(gid)


def _can_become(identity: Identity) -> bool:
    try:
        with becoming(identity):
            return True
    except OSError:
        return False


def interface_to(address: IPAddress) -> str | None:
    """The interface by which a packet to `address` leaves this pod; None: by none, or it stays inside."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    attribute = _RTATTR.pack(_RTATTR.size + len(address.packed), _RTA_DST) + address.packed
    body = _RTMSG.pack(family, len(address.packed) * 8, 0, 0, 0, 0, 0, 0, 0) + attribute
    header = _NETLINK_HEADER.pack(_NETLINK_HEADER.size + len(body), _RTM_GETROUTE, _NLM_F_REQUEST, 1, 0)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as sock:
            sock.settimeout(1.0)
            sock.send(header + body)
            answer = sock.recv(1 << 16)
        length, kind, _, _, _ = _NETLINK_HEADER.unpack_from(answer)
        if kind != _RTM_NEWROUTE or _RTMSG.unpack_from(answer, _NETLINK_HEADER.size)[7] != _RTN_UNICAST:
            return None
        at = _NETLINK_HEADER.size + _RTMSG.size
        while at + _RTATTR.size <= min(length, len(answer)):
            size, name = _RTATTR.unpack_from(answer, at)
            if name == _RTA_OIF:
                (index,) = struct.unpack_from("=I", answer, at + _RTATTR.size)
                return socket.if_indextoname(index)
            at += max(_RTATTR.size, (size + 3) & ~3)
    except (OSError, struct.error):
        pass
    return None
