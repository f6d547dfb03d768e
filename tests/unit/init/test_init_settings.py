"""Values in, Settings out; every refusal names the flag or variable, the value and what was expected."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from init_worlds import DUAL_POD, IPV6_POD, plan, settings

from init.errors import InitError, SettingsError
from init.flags import FLAGS
from init.iptables_text import document, installation
from init.recipe import make_plan
from init.values import ALL, MAX_ITEMS


def refusal(*argv: str, **arguments: object) -> SettingsError:
    with pytest.raises(SettingsError) as error:
        settings(*argv, **arguments)  # type: ignore[arg-type]
    return error.value


def test_defaults() -> None:
    found = settings()
    assert (found.proxy_port, found.inbound_capture_port, found.inbound_tunnel_port) == (15001, 15006, 15008)
    assert (found.proxy_uids, found.proxy_gids) == ((1337,), (1337,))
    assert (found.inbound_ports, found.outbound_ranges, found.warnings) == ((), (), ())


@pytest.mark.parametrize(
    ("argv", "environ", "uids", "gids"),
    [
        ((), {}, (101,), (101,)),
        (("-u", ""), {"PROXY_UID": "5"}, (101,), (101,)),
        ((), {"PROXY_UID": "5"}, (5,), (5,)),
        (("-u", "3, 4"), {"PROXY_UID": "5"}, (3, 4), (3, 4)),
        (("-u", "3,4", "-g", "0,4294967294"), {}, (3, 4), (0, 4294967294)),
    ],
)
def test_ids_are_derived(argv: tuple[str, ...], environ: dict[str, str], uids: object, gids: object) -> None:
    found = settings(*argv, environ=environ, account=101)
    assert (found.proxy_uids, found.proxy_gids) == (uids, gids)


def test_the_account_is_the_one_of_the_variable() -> None:
    found = settings(environ={"ENVOY_USER": "mesh"}, account=lambda name: {"mesh": 77}.get(name))
    assert found.proxy_uids == (77,)


def test_lists() -> None:
    found = settings("-b", "*", "-d", "15090, 22,,80:90,443:443,", "-q", "", "-i", "*")
    assert found.inbound_ports == ALL
    assert found.inbound_ports_exclude == ("15090", "22", "80:90", "443")
    assert (found.outbound_ports, found.outbound_ranges) == ((), None)


def test_ranges_keep_their_host_bits() -> None:
    found = settings("-i", "10.1.2.3/8,2001:DB8:0::/32,0.0.0.0/0")
    assert found.outbound_ranges is not None
    assert [cidr.text for cidr in found.outbound_ranges] == ["10.1.2.3/8", "2001:db8::/32", "0.0.0.0/0"]


PORT_FLAGS = {
    "-p": "--envoy-port (-p)",
    "-z": "--inbound-capture-port (-z)",
    "-e": "--inbound-tunnel-port (-e)",
}
LIST_FLAGS = {
    "-b": "--istio-inbound-ports (-b)",
    "-d": "--istio-local-exclude-ports (-d)",
    "-q": "--istio-outbound-ports (-q)",
    "-o": "--istio-local-outbound-ports-exclude (-o)",
}
BAD_PORTS = [
    "0",
    "65536",
    "-1",
    "+1",
    "http",
    "0x50",
    "017",
    "1e3",
    "１",
    "80-90",
    "90:80",
    ":80",
    "80:",
    "8 0",
    "*,80",
]


@pytest.mark.parametrize("value", [*BAD_PORTS, "", " 80", "80,81"])
@pytest.mark.parametrize("flag", PORT_FLAGS)
def test_a_bad_port_is_refused(flag: str, value: str) -> None:
    error = refusal(flag, value)
    assert error.exit_code == 1
    (line,) = error.lines
    assert line.startswith(PORT_FLAGS[flag]) and repr(value) in line and "expected a decimal number 1 to 65535" in line


@pytest.mark.parametrize("value", [*BAD_PORTS, "80;90", ",", "80,*"])
@pytest.mark.parametrize("flag", LIST_FLAGS)
def test_a_bad_port_in_a_list_is_refused(flag: str, value: str) -> None:
    error = refusal(flag, value)
    assert error.exit_code == 1
    assert all(line.startswith(LIST_FLAGS[flag]) for line in error.lines)


@pytest.mark.parametrize("flag", ["-d", "-q", "-o"])
def test_only_inbound_ports_may_be_everything(flag: str) -> None:
    assert "'*' is not a port" in refusal(flag, "*").lines[0]


@pytest.mark.parametrize(
    "value",
    ["10.0.0.0/33", "10.0.0.0/40", "10.0.0.0", "10.0.0.0/255.0.0.0", "10.0.0.0/08", "10.0.0/8", "010.0.0.0/8"]
    + ["::/129", "fe80::1%eth0/64", " 10.0.0.0/8", "10.0.0.0/8 ", "10.0.0.0/", "/8", "any", "*,10.0.0.0/8", "1/8", ","],
)
@pytest.mark.parametrize(
    ("flag", "name"), [("-i", "--istio-service-cidr (-i)"), ("-x", "--istio-service-exclude-cidr (-x)")]
)
def test_a_bad_range_is_refused(flag: str, name: str, value: str) -> None:
    error = refusal(flag, value)
    assert error.exit_code == 1
    assert error.lines[0].startswith(name)


@pytest.mark.parametrize("value", ["proxy", "-1", "4294967295", "99999999999", "1337x", "0x1", "1:2", ","])
@pytest.mark.parametrize(("flag", "name"), [("-u", "--proxy-uid (-u)"), ("-g", "--proxy-gid (-g)")])
def test_a_bad_id_is_refused(flag: str, name: str, value: str) -> None:
    error = refusal(flag, value)
    assert error.exit_code == 1
    assert error.lines[0].startswith(name)


@pytest.mark.parametrize("mode", ["FOO", "redirect", "tproxy", "NONE", " REDIRECT"])
def test_a_bad_mode_is_refused(mode: str) -> None:
    (line,) = refusal("-m", mode).lines
    assert repr(mode) in line and "expected REDIRECT or TPROXY" in line


def test_a_bad_variable_ends_with_1() -> None:
    error = refusal(environ={"ISTIO_INBOUND_PORTS": "http", "ISTIO_SERVICE_CIDR": "10.0.0.0/33"})
    assert error.exit_code == 1
    assert [line.split(":")[0] for line in error.lines] == ["ISTIO_INBOUND_PORTS", "ISTIO_SERVICE_CIDR"]


def test_all_refusals_are_told_at_once_and_a_malformed_flag_among_them_decides_the_exit_code() -> None:
    error = refusal("-b", "http,ftp", environ={"ISTIO_SERVICE_CIDR": "x"})
    assert (error.exit_code, len(error.lines)) == (1, 3)
    error = refusal("-b", "http,ftp", "--reconcile=maybe", environ={"ISTIO_SERVICE_CIDR": "x"})
    assert (error.exit_code, len(error.lines)) == (255, 4)


def test_a_flag_hides_a_bad_variable() -> None:
    assert settings("-b", "80", environ={"ISTIO_INBOUND_PORTS": "http"}).inbound_ports == ("80",)


@pytest.mark.parametrize(
    ("argv", "names"),
    [
        (("-z", "15001"), ("--inbound-capture-port (-z)", "--envoy-port (-p)")),
        (("-p", "15008"), ("--inbound-tunnel-port (-e)", "--envoy-port (-p)")),
        (("-z", "9", "-e", "9"), ("--inbound-tunnel-port (-e)", "--inbound-capture-port (-z)")),
    ],
)
def test_ports_that_must_differ(argv: tuple[str, ...], names: tuple[str, str]) -> None:
    error = refusal(*argv)
    (line,) = error.lines
    assert error.exit_code == 1
    assert all(name in line for name in names)


def test_a_list_has_a_limit() -> None:
    ports = ",".join(map(str, range(1, MAX_ITEMS + 1)))
    assert len(settings("-q", ports).outbound_ports) == MAX_ITEMS
    assert f"{MAX_ITEMS + 1} elements" in refusal("-q", f"{ports},9").lines[0]


@pytest.mark.parametrize("value", ["yes", "", "2", "TrUe"])
def test_a_bad_boolean_flag_is_refused(value: str) -> None:
    error = refusal(f"--reconcile={value}")
    assert error.lines == (f"--reconcile: {value!r} is not a boolean: expected true or false",)


def test_an_empty_boolean_variable_is_false() -> None:
    assert settings(environ={"RECONCILE": "", "ISTIO_META_DNS_CAPTURE": ""}).reconcile is False
    assert refusal(environ={"RECONCILE": "yes"}).exit_code == 1


@pytest.mark.parametrize(
    ("argv", "name", "code"),
    [
        (["-t", "0x539"], "--istio-inbound-tproxy-mark (-t)", 1),
        (["-t", "0"], "--istio-inbound-tproxy-mark (-t)", 1),
        (["-r", "main"], "--istio-inbound-tproxy-route-table (-r)", 1),
        (["-r", "254"], "--istio-inbound-tproxy-route-table (-r)", 1),
        (["--probe-timeout=5"], "--probe-timeout", 255),
        (["--iptables-probe-port=65536"], "--iptables-probe-port", 255),
        (["--iptables-probe-port=09"], "--iptables-probe-port", 255),
        (["--force-iptables-binary=nftables"], "--force-iptables-binary", 1),
        (["--backend=iptables"], "--backend", 1),
        (["--output=yaml"], "--output", 1),
        (["-c", "eth0,0eth"], "--istio-exclude-interfaces (-c)", 1),
        (["-k", "averyveryverylongname"], "--kube-virt-interfaces (-k)", 1),
        (["-c", "eth0 -j ACCEPT"], "--istio-exclude-interfaces (-c)", 1),
    ],
)
def test_other_values_are_checked(argv: list[str], name: str, code: int) -> None:
    error = refusal(*argv)
    assert error.exit_code == code
    assert error.lines[0].startswith(name)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5s", 5), ("500ms", 0.5), ("1m30s", 90), ("0", 0), ("1.5h", 5400), ("-1s", -1), ("2us", 2e-6), (".5s", 0.5)],
)
def test_durations(text: str, seconds: float) -> None:
    assert settings("--probe-timeout", text).probe_timeout == pytest.approx(seconds)


def test_numbers_of_go() -> None:
    for text in ("15002", "0x3a9a", "035232", "0o35232", "0b11101010011010"):
        assert settings("--iptables-probe-port", text).probe_port == 15002
    assert settings(environ={"IPTABLES_PROBE_PORT": "", "PROBE_TIMEOUT": ""}).probe_port == 0


@pytest.mark.parametrize(
    ("argv", "backend"),
    [
        ([], ""),
        (["--native-nftables"], "nftables"),
        (["--force-iptables-binary=legacy"], "iptables-legacy"),
        (["--force-iptables-binary", "nft", "--backend", "iptables-nft"], "iptables-nft"),
        (["--backend=libiptc"], "libiptc"),
    ],
)
def test_one_backend_from_three_flags(argv: list[str], backend: str) -> None:
    assert settings(*argv).backend == backend


def test_flags_that_ask_for_different_backends_are_refused() -> None:
    (line,) = refusal("--native-nftables", "--force-iptables-binary=nft").lines
    assert "--native-nftables" in line and "--force-iptables-binary" in line


def test_owner_groups() -> None:
    include, exclude = "ISTIO_OUTBOUND_OWNER_GROUPS", "ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE"
    assert settings().owner_groups is None
    assert settings(environ={include: "java, 202"}).owner_groups == (3001, 202)
    assert settings(environ={exclude: "888,ftp"}).owner_groups_exclude == (888, 3002)
    assert "is set but empty" in refusal(environ={include: ""}).lines[0]
    assert "'nobody-knows' is not a group" in refusal(environ={exclude: "nobody-knows"}).lines[0]
    assert "'java' is not a group" in refusal("--cni-mode", environ={include: "java"}).lines[0]
    assert "65 groups" in refusal(environ={include: ",".join(map(str, range(65)))}).lines[0]
    assert len(settings(environ={exclude: ",".join(map(str, range(65)))}).owner_groups_exclude) == 65


@pytest.mark.parametrize("value", ["", "127.0.0.1", "128.0.0.0/8", "127.0.0.0/7", "::1/128", "127.0.0.1/33"])
def test_a_bad_loopback_range_is_refused(value: str) -> None:
    (line,) = refusal(environ={"ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR": value}).lines
    assert line.startswith("ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR: ")
    assert settings(environ={"ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR": "127.0.0.1/8"}).loopback(4) == "127.0.0.1/8"


@pytest.mark.parametrize(
    ("addresses", "dual", "ipv6"),
    [
        (["127.0.0.1", "10.0.0.1"], False, False),
        (["10.0.0.1", "fd00::1"], False, False),
        (["10.0.0.1", "fd00::1"], True, True),
        (["fd00::1", "10.0.0.1"], False, True),
        (["127.0.0.1", "::1", "fe80::1", "fd00::1"], False, True),
        (["::ffff:10.0.0.1", "fe80::1"], True, False),
    ],
)
def test_which_families_are_captured(addresses: list[str], dual: bool, ipv6: bool) -> None:
    assert settings(*(["--dual-stack"] if dual else []), addresses=addresses).ipv6 is ipv6


@pytest.mark.parametrize("addresses", [[], ["127.0.0.1", "169.254.1.1", "::1", "fe80::1", "224.0.0.5", "ff02::1"]])
def test_without_an_address_nothing_is_done(addresses: list[str]) -> None:
    error = refusal(addresses=addresses)
    assert error.exit_code == 1
    assert "no valid local IP address found" in error.lines[0]
    assert settings("--cleanup-only", "--dual-stack", addresses=addresses).cleanup_only
    assert settings("--skip-rule-apply", addresses=addresses).skip_rule_apply


def test_name_servers() -> None:
    text = (
        "search x\nnameserver 10.0.0.1 extra\n nameserver fd00::a\nnameserver\nnameserver x\nnameserver fe80::1%eth0\n"
    )
    found = settings("--redirect-dns", resolv_conf=text, addresses=DUAL_POD)
    assert [str(server) for server in found.dns_servers] == ["10.0.0.1", "fd00::a"]
    assert any("'x' is not an address" in warning for warning in found.warnings)
    assert any("fe80::1%eth0 has a zone" in warning for warning in found.warnings)
    assert settings("--redirect-dns", "--capture-all-dns", resolv_conf=OSError(2, "x")).captures_dns
    assert "cannot read /etc/resolv.conf" in refusal("--redirect-dns", resolv_conf=OSError(2, "gone")).lines[0]
    assert settings("--redirect-dns", "--cleanup-only", resolv_conf=OSError(2, "x")).dns_servers == ()
    none = settings("--redirect-dns", resolv_conf="")
    assert not none.captures_dns and "names no name server" in "".join(none.warnings)


@pytest.mark.parametrize(
    ("argv", "world", "said"),
    [
        (("-b", "80", "-d", "81"), {}, "-d): has no effect"),
        (("-b", "*", "-i", "10.0.0.0/8,fd00::/8"), {}, "-i): IPv6 ranges have no effect"),
        (("-x", "fd00::/8"), {}, "-x): IPv6 ranges have no effect"),
        ((), {"addresses": DUAL_POD}, "IPv6 traffic is not captured"),
        (("-b", "*", "-i", "10.0.0.0/8"), {"addresses": ["::ffff:10.0.0.1"]}, ""),
        (("-b", "*", "-i", "127.1.2.3/32"), {}, "a loopback range is captured"),
        (("-i", "*"), {}, "no inbound port is captured"),
        (("-u", "3,4"), {}, "only the first uid, 3,"),
        (("--redirect-dns",), {"servers": ["fd00::a"]}, "all name servers are IPv6"),
        (("--redirect-dns",), {"servers": ["fd00::a"], "addresses": IPV6_POD}, ""),
        (("--redirect-dns", "-o", "53"), {}, "excludes port 53"),
        (("--capture-all-dns",), {}, "has no effect without --redirect-dns"),
        (("-m", "TPROXY", "-t", "1338"), {}, "1338 is also the fixed mark"),
        (
            (),
            {"environ": {"ISTIO_OUTBOUND_OWNER_GROUPS": "1", "ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE": "2"}},
            "no effect",
        ),
    ],
)
def test_what_is_easily_not_meant_is_said(argv: tuple[str, ...], world: dict[str, object], said: str) -> None:
    warnings = settings(*argv, **world).warnings  # type: ignore[arg-type]
    assert len(warnings) == bool(said)
    assert said in "".join(warnings)


def test_a_long_value_is_cut_in_the_error() -> None:
    (line,) = refusal("-b", "x" * 10_000).lines
    assert len(line) < 300 and "(10000 characters)" in line
    (line,) = refusal("-i", "1" * 10_000 + "/8").lines
    assert len(line) < 300


def test_many_refusals_are_cut() -> None:
    lines = refusal("-b", ",".join(f"p{n}" for n in range(1000))).lines
    assert len(lines) == 51 and lines[-1] == "and 950 more values are refused"


hostile = st.text(alphabet="0123456789*,:./- \n\t'\"!-jACEPTx\x00é", max_size=12)


@given(
    st.dictionaries(st.sampled_from("pzeugbdixqomctr"), hostile),
    st.dictionaries(st.sampled_from([variable for flag in FLAGS for variable in flag.variables]), hostile),
)
def test_whatever_is_asked_no_word_reaches_the_rules_unchecked(flags: dict[str, str], environ: dict[str, str]) -> None:
    argv = [word for flag, value in flags.items() for word in (f"-{flag}", value)]
    try:
        found = settings(*argv, environ=environ)
    except InitError as error:
        assert all(line.isprintable() for line in error.lines)
        return
    words = {word for v in (4, 6) for word in document(installation(make_plan(found).of(v))).split()}  # type: ignore[arg-type]
    everything = ["-b", "*", "-o", "1", "-i", "*", "-m", "TPROXY", "--redirect-dns", "--drop-invalid"]
    fixed = {
        word
        for argv in (everything, [*everything, "--capture-all-dns"], ["-b", "*"], ["-c", "x", "-k", "y", "-q", "1"])
        for v in (4, 6)
        for word in document(installation(plan(*argv, addresses=DUAL_POD).of(v))).split()  # type: ignore[arg-type]
    }
    interfaces = {*found.exclude_interfaces, *found.virtual_interfaces}
    assert all(set(word) <= set("0123456789abcdef.,:/x") for word in words - fixed - interfaces)
