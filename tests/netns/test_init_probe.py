"""`--run-validation` against rules that the real program made: what it finds in the kernel, what it leaves alone."""

from __future__ import annotations

import ipaddress
import json
import re
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from init.errors import ValidationError
from init.flags import resolve
from init.iptables_text import document, installation
from init.log import Log, LogOptions
from init.probe import interface_to, validate
from init.recipe import make_plan
from init.rules import Version
from init.settings import Machine, Settings, load

from .netns import DEADLINE, Namespace, require, shared

pytestmark = pytest.mark.netns

POD, OUTSIDE = {4: "10.10.0.41", 6: "fd00:10::41"}, {4: "10.10.0.1", 6: "fd00:10::1"}
BITS = {4: 24, 6: 64}
FULL = ("-u", "1337", "-b", "*", "-i", "*")
OUT, IN = 15001, 15006
# With these the real program captures nothing outbound.
INBOUND_ONLY = {"defaults", "outbound-none", "env-inbound-ports"}
GROUPS = {"daemon": 1, "mail": 8}
RESOLV_CONF = "nameserver 10.96.0.10\nnameserver 169.254.20.10\n"

# Settings as root, then the ids for good, then the validation: so that they need no access to the interpreter's files.
AS_ANOTHER = """
import os, sys
from init.errors import InitError
from init.flags import resolve
from init.log import Log, log_options
from init.probe import validate
from init.settings import load, machine_of_this_process
uid, gid = int(sys.argv[1]), int(sys.argv[2])
values = resolve(sys.argv[3:], {})
settings, log = load(values, machine_of_this_process()), Log(log_options(values))
if (uid, gid) != (0, 0):
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
try:
    validate(settings, log)
except InitError as error:
    log.errors(error.lines)
    sys.exit(error.exit_code)
finally:
    assert (os.getresuid(), os.getresgid()) == ((uid, uid, uid), (gid, gid, gid)), "ids were not restored"
"""


@dataclass
class Pod:
    """A pod with `versions` of addresses and a default route to `outside`, where `wire` sees its packets."""

    versions: tuple[Version, ...]
    namespace: Namespace = field(default_factory=Namespace)
    outside: Namespace = field(default_factory=Namespace)

    def __enter__(self) -> Pod:
        self.namespace.connect(
            self.outside,
            "eth0",
            [f"{POD[version]}/{BITS[version]}" for version in self.versions],
            [f"{OUTSIDE[version]}/{BITS[version]}" for version in self.versions],
        )
        for version in self.versions:
            self.namespace.ip(f"-{version}", "route", "add", "default", "via", OUTSIDE[version])
        self.namespace.ip("address", "add", "::6/128", "dev", "lo", "nodad")
        with self.outside.entered():
            every_protocol = socket.htons(3)
            self.wire = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, every_protocol)
            self.wire.setblocking(False)
        return self

    def __exit__(self, *_: object) -> None:
        self.wire.close()
        self.namespace.close()
        self.outside.close()

    @property
    def addresses(self) -> list[str]:
        return [f"{POD[version]}/{BITS[version]}" for version in self.versions]

    def rules(self, *texts: str) -> None:
        """These rules, of IPv4 and then of IPv6, and no others."""
        self.namespace.run(["nft", "flush", "ruleset"])
        for program, text in zip(("iptables-nft-restore", "ip6tables-nft-restore"), texts, strict=False):
            done = self.namespace.run([program], stdin=text)
            assert done.returncode == 0, done.stderr

    def recorded(self, name: str) -> None:
        case = cases()[name]
        self.rules(*("\n".join(case[key]) + "\n" for key in ("iptables-save", "ip6tables-save")))

    def planned(self, settings: Settings) -> None:
        plan = make_plan(settings)
        self.rules(*(document(installation(plan.of(version))) for version in plan.versions))

    def table(self, *arguments: str, program: str = "iptables-nft") -> None:
        done = self.namespace.run([program, "-t", "nat", *arguments])
        assert done.returncode == 0, done.stderr

    def packets(self) -> list[bytes]:
        """The IP packets that came out of the pod since it was asked last."""
        found: list[bytes] = []
        while True:
            try:
                packet, (_, protocol, kind, *_) = self.wire.recvfrom(65536)
            except BlockingIOError:
                return found
            if kind != socket.PACKET_OUTGOING and protocol in (0x0800, 0x86DD):
                found.append(packet)

    def settings(self, *argv: str, env: Mapping[str, str] | None = None) -> Settings:
        machine = Machine(
            uid_of=lambda _: None,
            gid_of=GROUPS.get,
            addresses=lambda: [ipaddress.ip_interface(address).ip for address in self.addresses],
            resolv_conf=lambda: RESOLV_CONF,
        )
        return load(resolve(argv, env or {}), machine)

    def validated(self, log: Path, *argv: str, env: Mapping[str, str] | None = None) -> tuple[list[str], list[str]]:
        """By this process, as root: what is logged, and the lines of a failure."""
        return self.validated_settings(log, self.settings(*argv, env=env))

    def validated_settings(self, path: Path, settings: Settings) -> tuple[list[str], list[str]]:
        path.write_text("")
        log = Log(LogOptions("debug", False, (str(path),), "none", False))
        try:
            with self.namespace.entered():
                validate(settings, log)
        except ValidationError as error:
            assert error.exit_code == 126
            return messages(path.read_text()), list(error.lines)
        finally:
            log.close()
        return messages(path.read_text()), []

    def start_as(self, uid: int, gid: int, *argv: str) -> subprocess.Popen[str]:
        return self.namespace.start([sys.executable, "-c", AS_ANOTHER, str(uid), str(gid), *argv])

    def validated_as(self, uid: int, gid: int, *argv: str) -> tuple[int, list[str]]:
        """By a process of these ids: exit code and log."""
        return ended(self.start_as(uid, gid, *argv))


def ended(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    _, errors = process.communicate(timeout=60)
    assert "Traceback" not in errors, errors
    return process.returncode, messages(errors)


def messages(text: str) -> list[str]:
    """Lines of log without the time: `level message`."""
    return [" ".join(line.split("\t")[1:]) for line in text.splitlines()]


def arrivals(log: Sequence[str]) -> list[tuple[str, int]]:
    """Direction and family of every probe that arrived, and where."""
    found = (re.match(r"info validation: (\S+ IPv[46]): .* arrives at port (\d+)$", line) for line in log)
    return [(match[1], int(match[2])) for match in found if match]


def cases() -> dict[str, Any]:
    return {case["name"]: case for case in json.loads(shared("istio/iptables/cases.json").read_text())}


@pytest.fixture(scope="module")
def pods() -> Iterator[dict[tuple[int, ...], Pod]]:
    require()
    with ExitStack() as stack:
        versions: list[tuple[Version, ...]] = [(4,), (6,), (4, 6)]
        yield {one: stack.enter_context(Pod(one)) for one in versions}


@pytest.fixture
def pod(pods: dict[tuple[int, ...], Pod]) -> Pod:
    """One of both families without any rule."""
    found = pods[4, 6]
    found.rules()
    found.packets()
    return found


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def test_every_rule_set_of_the_real_program_is_valid(pods: dict[tuple[int, ...], Pod], log: Path) -> None:
    count = 0
    for name, case in cases().items():
        if name.startswith("bad-"):  # refused before anything is touched
            continue
        versions = tuple(ipaddress.ip_interface(address).version for address in case["addresses"])
        pod = pods[versions]
        pod.recorded(name)
        pod.packets()
        settings = pod.settings(*case["args"], "--probe-timeout", "30s", env=case["env"])
        families = [4, 6] if settings.ipv6 else [4]
        expected = {(f"inbound IPv{version}", settings.inbound_capture_port) for version in families}
        if name not in INBOUND_ONLY:
            routed = [version for version in families if version in versions]
            expected |= {(f"outbound IPv{version}", settings.proxy_port) for version in routed}
        lines, failures = pod.validated_settings(log, settings)
        assert (failures, sorted(arrivals(lines))) == ([], sorted(expected)), name
        assert not any(is_tcp(packet) for packet in pod.packets()), f"{name}: a captured probe left the pod"
        count += 1
    assert count >= 35


@pytest.mark.parametrize("arguments", [(), ("-m", "TPROXY")])
def test_native_nftables_rules_are_seen_too(pod: Pod, log: Path, arguments: tuple[str, ...]) -> None:
    """Only that owner matches of nftables look at the same ids: the smallest rules of facts."""
    rules = """
        table inet istio-proxy-nat {
            chain output {
                type nat hook output priority -100;
                oifname lo meta l4proto tcp ip daddr != 127.0.0.1 tcp dport != 15008 skuid 1337 redirect to :15006
                oifname lo meta l4proto tcp ip6 daddr != ::1 tcp dport != 15008 skuid 1337 redirect to :15006
                oifname lo skuid != 1337 return
                skuid 1337 return
                skgid 1337 return
                meta l4proto tcp redirect to :15001
            }
        }"""
    done = pod.namespace.run(["nft", "-f", "-"], stdin=rules)
    assert done.returncode == 0, done.stderr
    lines, failures = pod.validated(log, *FULL, *arguments, "--dual-stack", "--probe-timeout", "30s")
    assert failures == []
    assert sorted(arrivals(lines)) == [
        ("inbound IPv4", IN),
        ("inbound IPv6", IN),
        ("outbound IPv4", OUT),
        ("outbound IPv6", OUT),
    ]


@pytest.mark.parametrize("name", ["dual-stack", "dual-stack-tproxy", "dual-stack-dns"])
def test_by_the_proxy_and_by_an_application(pod: Pod, name: str) -> None:
    pod.recorded(name)
    argv = (*cases()[name]["args"], "--capture-all-dns", "--probe-timeout", "30s")
    code, lines = pod.validated_as(1337, 1337, *argv)
    assert (code, sorted(arrivals(lines))) == (0, [("inbound IPv4", IN), ("inbound IPv6", IN)]), lines
    assert sum("outbound IPv" in line and "what uid 1337 gid 1337 sends is not captured" in line for line in lines) == 2

    code, lines = pod.validated_as(1000, 1000, *argv)
    assert (code, sorted(arrivals(lines))) == (0, [("outbound IPv4", OUT), ("outbound IPv6", OUT)]), lines
    assert sum(line.startswith("warn validation: inbound IPv") and "uid 1337" in line for line in lines) == 2


def test_by_root_and_by_the_second_uid(pod: Pod) -> None:
    pod.recorded("uid-gid")
    argv = (*cases()["uid-gid"]["args"], "--probe-timeout", "30s")
    code, lines = pod.validated_as(0, 0, *argv)
    assert (code, sorted(arrivals(lines))) == (0, [("inbound IPv4", IN), ("outbound IPv4", OUT)]), lines
    code, lines = pod.validated_as(2000, 2000, *argv)
    assert (code, arrivals(lines)) == (126, []), lines
    assert any("inbound IPv4 is not probed: uid 2000 gid 2000 is not the proxy" in line for line in lines)


def test_by_root_that_may_not_take_other_ids(pod: Pod) -> None:
    pod.recorded("injected-sidecar")
    program = [sys.executable, "-c", AS_ANOTHER, "0", "0", *FULL]
    done = pod.namespace.run(["setpriv", "--bounding-set=-setuid,-setgid", "--inh-caps=-all", *program])
    assert done.returncode == 0, done.stderr
    assert arrivals(messages(done.stderr)) == [("outbound IPv4", OUT)]
    assert "inbound IPv4 is not probed: uid 0 gid 0 is not the proxy" in done.stderr


def failed(lines: Sequence[str]) -> list[str]:
    """Direction and family of every probe that failed."""
    found = [re.match(r"validation failed: (\S+ IPv[46]): ", line) for line in lines]
    assert all(found), lines
    return [match[1] for match in found if match]


BRIEFLY = ("--probe-timeout", "300ms")
ALL_FOUR = ["inbound IPv4", "outbound IPv4", "inbound IPv6", "outbound IPv6"]


def test_without_rules(pod: Pod, log: Path) -> None:
    lines, failures = pod.validated(log, *FULL, "--dual-stack", *BRIEFLY)
    assert (arrivals(lines), failed(failures)) == ([], ALL_FOUR)
    assert "127.0.0.6:15002 as uid 1337 gid 1337 must arrive at 127.0.0.1:15006" in failures[0]
    assert "192.0.2.1:15002 as uid 0 gid 0 must arrive at 127.0.0.1:15001" in failures[1]
    assert "[::6]:15002 as uid 1337 gid 1337 must arrive at [::1]:15006" in failures[2]
    assert "Connection refused" in failures[0] and "look for rules of other programs" in failures[0]
    _, failures = pod.validated(log, *FULL, "--skip-rule-apply", *BRIEFLY)
    assert "istio-cni" in failures[0]
    code, lines = pod.validated_as(1337, 1337, *FULL, *BRIEFLY)
    assert code == 126
    assert sum(line.startswith("error validation failed: inbound IPv4: ") for line in lines) == 1


def test_what_is_not_captured_leaves_as_syn_for_one_hop(pod: Pod, log: Path) -> None:
    with pod.outside.entered(), socket.create_server((OUTSIDE[4], 15002)) as outsider:
        outsider.setblocking(False)
        # One probe that nobody answers, and one that a neighbour does.
        assert failed(pod.validated(log, *FULL, "--dual-stack", *BRIEFLY)[1]) == ALL_FOUR
        narrow = ("-u", "1337", "-i", f"{OUTSIDE[4]}/32", *BRIEFLY)
        failures = pod.validated(log, *narrow)[1]
        assert "the last one was accepted by no socket of this pod" in failures[1]
        packets = [packet for packet in pod.packets() if is_tcp(packet)]
        assert {packet[0] >> 4 for packet in packets} == {4, 6}
        for packet in packets:
            header = packet[20:] if packet[0] >> 4 == 4 else packet[40:]
            assert (packet[8] if packet[0] >> 4 == 4 else packet[7]) == 1 or header[13] & 4, "more than one hop"
            if packet[16:20] != socket.inet_aton(OUTSIDE[4]):
                assert header[13] == 0x02, "a packet other than SYN"
            assert len(header) == (header[12] >> 4) * 4, "data"
        while True:
            try:
                accepted, _ = outsider.accept()
            except BlockingIOError:
                break
            with accepted, pytest.raises(ConnectionResetError):
                accepted.recv(1)


def is_tcp(packet: bytes) -> bool:
    return packet[9 if packet[0] >> 4 == 4 else 6] == socket.IPPROTO_TCP


def test_one_direction_or_family_missing(pod: Pod, log: Path) -> None:
    argv = (*FULL, "--dual-stack", *BRIEFLY)
    pod.recorded("dual-stack")
    pod.table("-D", "ISTIO_OUTPUT", "-j", "ISTIO_REDIRECT")
    lines, failures = pod.validated(log, *argv)
    assert failed(failures) == ["outbound IPv4"]
    assert sorted(arrivals(lines)) == [("inbound IPv4", IN), ("inbound IPv6", IN), ("outbound IPv6", OUT)]

    pod.recorded("dual-stack")
    pod.table("-F", "ISTIO_IN_REDIRECT", program="ip6tables-nft")
    lines, failures = pod.validated(log, *argv)
    assert failed(failures) == ["inbound IPv6"]
    assert sorted(arrivals(lines)) == [("inbound IPv4", IN), ("outbound IPv4", OUT), ("outbound IPv6", OUT)]

    pod.rules("\n".join(cases()["dual-stack"]["iptables-save"]) + "\n")
    lines, failures = pod.validated(log, *argv)
    assert failed(failures) == ["inbound IPv6", "outbound IPv6"]
    assert sorted(arrivals(lines)) == [("inbound IPv4", IN), ("outbound IPv4", OUT)]


def test_rules_that_send_it_elsewhere(pod: Pod, log: Path) -> None:
    pod.recorded("injected-sidecar")
    _, failures = pod.validated(log, *FULL, "-p", str(IN), "-z", str(OUT), *BRIEFLY)
    assert failed(failures) == ["inbound IPv4", "outbound IPv4"]
    assert f"arrived at port {IN}" in failures[0] and f"arrived at port {OUT}" in failures[1]


def test_without_the_passthrough_address(pod: Pod, log: Path) -> None:
    pod.recorded("dual-stack")
    pod.namespace.ip("address", "del", "::6/128", "dev", "lo")
    try:
        _, failures = pod.validated(log, *FULL, "--dual-stack", *BRIEFLY)
    finally:
        pod.namespace.ip("address", "add", "::6/128", "dev", "lo", "nodad")
    assert failed(failures) == ["inbound IPv6"]
    assert "::6 is not an address of lo" in failures[0]


def test_a_loopback_range_that_covers_the_passthrough_address(pod: Pod, log: Path) -> None:
    env = {"ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR": "127.0.0.1/8"}
    pod.planned(pod.settings(*FULL, env=env))
    lines, failures = pod.validated(log, *FULL, "--probe-timeout", "30s", env=env)
    assert failures == []
    assert any(f"inbound IPv4: {POD[4]}:15002 as uid 1337 gid 1337 arrives" in line for line in lines)


def test_rules_that_come_late(pod: Pod) -> None:
    """The CNI plugin is still at work when the validation starts."""
    process = pod.start_as(0, 0, *FULL, "--probe-timeout", "60s")
    deadline = time.monotonic() + DEADLINE
    while not any(is_tcp(packet) for packet in pod.packets()):  # an attempt that nothing captured
        select.select([pod.wire], [], [], deadline - time.monotonic())
        assert time.monotonic() < deadline
    pod.recorded("injected-sidecar")
    code, lines = ended(process)
    assert (code, sorted(arrivals(lines))) == (0, [("inbound IPv4", IN), ("outbound IPv4", OUT)]), lines


def connect(pod: Pod, address: str, port: int, deadline: float) -> socket.socket:
    """As root, once somebody listens."""
    while True:
        assert time.monotonic() < deadline, "nobody listens"
        with pod.namespace.entered():
            client = socket.socket()
        client.settimeout(DEADLINE)
        try:
            client.connect((address, port))
            return client
        except ConnectionRefusedError:
            client.close()


def test_others_are_answered_with_their_port_as_by_the_real_program(pod: Pod) -> None:
    pod.recorded("injected-sidecar")
    pod.table("-F", "ISTIO_IN_REDIRECT")  # keeps the validation waiting
    process = pod.start_as(1337, 1337, *FULL, "--probe-timeout", "60s")
    deadline = time.monotonic() + DEADLINE
    for address, port, answer in (("10.10.0.77", 1234, b"1234"), ("127.0.0.1", IN, b"15006")):
        with connect(pod, address, port, deadline) as client:
            assert client.makefile("rb").read() == answer
    assert process.poll() is None, "a stranger's connection ended the validation"
    pod.recorded("injected-sidecar")
    assert ended(process)[0] == 0


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")])
def test_a_port_of_the_running_proxy(pod: Pod, log: Path, family: socket.AddressFamily, address: str) -> None:
    argv = (*FULL, "--probe-timeout", "30s")
    both = family == socket.AF_INET6
    for port, name in ((OUT, "outbound IPv4"), (IN, "inbound IPv4")):
        pod.recorded("injected-sidecar")
        with (
            pod.namespace.entered(),
            socket.create_server((address, port), family=family, dualstack_ipv6=both) as running,
        ):
            lines, failures = pod.validated(log, *argv)
            assert failures == []
            assert [one for one, _ in arrivals(lines)] == ["inbound IPv4" if port == OUT else "outbound IPv4"]
            other = f"info validation: {name}: "
            assert any(
                line.startswith(other) and f"arrives at port {port}, which another process has" in line
                for line in lines
            )
            accepted, _ = running.accept()
            accepted.close()
            pod.rules()
            lines, failures = pod.validated(log, *FULL, *BRIEFLY)
            assert failed(failures) == ["inbound IPv4", "outbound IPv4"]


def test_both_ports_in_use(pod: Pod, log: Path) -> None:
    pod.recorded("injected-sidecar")
    with (
        pod.namespace.entered(),
        socket.create_server(("0.0.0.0", OUT)),
        socket.create_server(("0.0.0.0", IN)),
    ):
        _, (failure,) = pod.validated(log, *FULL)
    assert "cannot listen at 127.0.0.1:15001 (Address already in use) nor at 127.0.0.1:15006" in failure


def test_a_proxy_can_listen_right_afterwards(log: Path) -> None:
    """Even one that shares its port, and one that does not set SO_REUSEADDR: no connection of a probe lingers."""
    with Pod((4,)) as pod:
        pod.recorded("injected-sidecar")
        with pod.namespace.entered(), socket.socket() as running:
            running.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            running.bind(("0.0.0.0", OUT))
            running.listen()
            lines, failures = pod.validated(log, *FULL, "--probe-timeout", "30s")
            assert (failures, len(arrivals(lines))) == ([], 2)
        for port in (OUT, IN):
            with pod.namespace.entered(), socket.socket() as plain:
                plain.bind(("127.0.0.1", port))


def test_interfaces_by_which_packets_leave(pods: dict[tuple[int, ...], Pod]) -> None:
    expected = {
        "10.10.0.42": "eth0",
        "192.0.2.1": "eth0",
        "10.10.0.255": None,  # broadcast
        "10.10.0.41": None,
        "127.0.0.6": None,
        "fd00:10::42": "eth0",
        "2001:db8::1": "eth0",
        "fd00:10::41": None,
        "::6": None,
    }
    with pods[4, 6].namespace.entered():
        assert {address: interface_to(ipaddress.ip_address(address)) for address in expected} == expected
    with pods[4,].namespace.entered():
        assert interface_to(ipaddress.ip_address("2001:db8::1")) is None


def test_the_program_validates_what_it_made(pod: Pod) -> None:
    argv = (*FULL, "--dual-stack", "--run-validation")
    done = pod.namespace.python("-m", "init", *argv, "--probe-timeout", "30s")
    assert (done.returncode, len(arrivals(messages(done.stderr)))) == (0, 4), done.stderr
    done = pod.namespace.python("-m", "init", *argv, "--skip-rule-apply", "--probe-timeout", "30s")
    assert (done.returncode, len(arrivals(messages(done.stderr)))) == (0, 4), done.stderr
    pod.rules()
    done = pod.namespace.python("-m", "init", *argv, "--skip-rule-apply", *BRIEFLY)
    assert (done.returncode, done.stderr.count("validation failed: ")) == (126, 4), done.stderr
    assert pod.namespace.run(["nft", "list", "ruleset"]).stdout == ""
