"""Values in, Settings out; every refusal names the flag or variable, the value and what was expected."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from init.errors import InitError, SettingsError
from init.flags import FLAGS, resolve
from init.plan import make_plan
from init.render import document, installation
from init.settings import ALL, MAX_ITEMS, IPAddress, Settings, load

V4 = [ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("10.10.0.41")]


def settings(
    *argv: str,
    environ: dict[str, str] | None = None,
    account: int | None = None,
    addresses: list[IPAddress] | None = None,
    cleanup_only: bool = False,
) -> Settings:
    return load(
        resolve(argv, environ or {}),
        lambda name: account,
        lambda: V4 if addresses is None else addresses,
        cleanup_only=cleanup_only,
    )


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
    asked = []
    load(resolve([], {"ENVOY_USER": "mesh"}), asked.append, lambda: V4)  # type: ignore[arg-type,func-returns-value]
    assert asked == ["mesh"]


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
    assert error.exit_code == 255
    (line,) = error.lines
    assert line.startswith(PORT_FLAGS[flag]) and repr(value) in line and "expected a decimal number 1 to 65535" in line


@pytest.mark.parametrize("value", [*BAD_PORTS, "80;90", ",", "80,*"])
@pytest.mark.parametrize("flag", LIST_FLAGS)
def test_a_bad_port_in_a_list_is_refused(flag: str, value: str) -> None:
    error = refusal(flag, value)
    assert error.exit_code == 255
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
    assert error.exit_code == 255
    assert error.lines[0].startswith(name)


@pytest.mark.parametrize("value", ["proxy", "-1", "4294967295", "99999999999", "1337x", "0x1", "1:2", ","])
@pytest.mark.parametrize(("flag", "name"), [("-u", "--proxy-uid (-u)"), ("-g", "--proxy-gid (-g)")])
def test_a_bad_id_is_refused(flag: str, name: str, value: str) -> None:
    error = refusal(flag, value)
    assert error.exit_code == 255
    assert error.lines[0].startswith(name)


@pytest.mark.parametrize("mode", ["FOO", "redirect", "tproxy", "NONE", " REDIRECT"])
def test_a_bad_mode_is_refused(mode: str) -> None:
    (line,) = refusal("-m", mode).lines
    assert repr(mode) in line and "expected REDIRECT or TPROXY" in line


def test_a_bad_variable_ends_with_1() -> None:
    error = refusal(environ={"ISTIO_INBOUND_PORTS": "http", "ISTIO_SERVICE_CIDR": "10.0.0.0/33"})
    assert error.exit_code == 1
    assert [line.split(":")[0] for line in error.lines] == ["ISTIO_INBOUND_PORTS", "ISTIO_SERVICE_CIDR"]


def test_all_refusals_are_told_at_once_and_a_flag_among_them_decides_the_exit_code() -> None:
    error = refusal("-b", "http,ftp", environ={"ISTIO_SERVICE_CIDR": "x"})
    assert error.exit_code == 255
    assert len(error.lines) == 3


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
    assert error.exit_code == 255
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


UNSUPPORTED = [
    ["-m", "TPROXY"],
    ["-c", "eth0"],
    ["-k", "eth0"],
    ["--skip-rule-apply"],
    ["--run-validation"],
    ["--redirect-dns"],
    ["--capture-all-dns"],
    ["--drop-invalid"],
    ["--dual-stack"],
    ["--network-namespace=/x"],
    ["--cni-mode"],
    ["--native-nftables"],
]


@pytest.mark.parametrize("argv", UNSUPPORTED, ids=" ".join)
def test_what_is_not_there_yet_is_said(argv: list[str]) -> None:
    error = refusal(*argv)
    assert error.exit_code == 255
    (line,) = error.lines
    assert argv[0].split("=")[0] in line and "not supported yet" in line


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("ISTIO_META_DNS_CAPTURE", "true"),
        ("INVALID_DROP", "1"),
        ("ISTIO_DUAL_STACK", "T"),
        ("ISTIO_OUTBOUND_OWNER_GROUPS", "java,202"),
        ("ISTIO_OUTBOUND_OWNER_GROUPS", ""),
        ("ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE", "888"),
        ("ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR", "127.0.0.1/8"),
        ("ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR", ""),
    ],
)
def test_an_unsupported_variable_is_said(variable: str, value: str) -> None:
    error = refusal(environ={variable: value})
    assert error.exit_code == 1
    (line,) = error.lines
    assert line.startswith(f"{variable}: ") and "not supported yet" in line


def test_inactive_values_of_what_is_not_there_yet_are_accepted() -> None:
    argv = ["-c", "", "-k", "", "-t", "1338", "-r", "134", "--probe-timeout=1m30s", "--iptables-probe-port=0x3a9a"]
    off = [f"--{flag.name}=false" for flag in FLAGS if flag.kind == "bool"]
    settings(*argv, *off, environ={"ISTIO_OUTBOUND_OWNER_GROUPS": "*", "PROBE_TIMEOUT": "", "NETWORK_NAMESPACE": ""})


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        (["-t", "0x539"], "--istio-inbound-tproxy-mark (-t)"),
        (["-r", "main"], "--istio-inbound-tproxy-route-table (-r)"),
        (["--probe-timeout=5"], "--probe-timeout"),
        (["--iptables-probe-port=65536"], "--iptables-probe-port"),
        (["--iptables-probe-port=09"], "--iptables-probe-port"),
        (["--force-iptables-binary=nftables"], "--force-iptables-binary"),
    ],
)
def test_values_that_nothing_reads_are_checked_all_the_same(argv: list[str], name: str) -> None:
    error = refusal(*argv)
    assert error.exit_code == 255
    assert error.lines[0].startswith(name)


def test_cleanup_does_not_ask_what_to_install() -> None:
    assert settings(*UNSUPPORTED[0], "--redirect-dns", addresses=[], cleanup_only=True).cleanup_only
    assert settings("--cleanup-only", "--dual-stack", addresses=[]).cleanup_only
    assert "not supported yet" in refusal("--cleanup-only", "--native-nftables").lines[0]


@pytest.mark.parametrize(
    ("addresses", "said"),
    [
        ([], "no valid local IP address found"),
        (["127.0.0.1", "169.254.1.1", "::1", "fe80::1"], "no valid local IP address found"),
        (["fd00::1", "10.0.0.1"], "fd00::1, asks for IPv6 capture, which is not supported yet"),
    ],
)
def test_the_first_address_decides(addresses: list[str], said: str) -> None:
    error = refusal(addresses=[ipaddress.ip_address(a) for a in addresses])
    assert error.exit_code == 1
    assert said in error.lines[0]


@pytest.mark.parametrize(
    ("argv", "addresses", "said"),
    [
        (("-b", "80", "-d", "81"), ["10.0.0.1"], "-d) has no effect"),
        (("-i", "10.0.0.0/8,fd00::/8"), ["10.0.0.1"], "-i): IPv6 ranges have no effect"),
        (("-x", "fd00::/8"), ["10.0.0.1"], "-x): IPv6 ranges have no effect"),
        ((), ["10.0.0.1", "fd00::1"], "IPv6 traffic is not captured"),
        (("-i", "10.0.0.0/8"), ["::ffff:10.0.0.1"], ""),
    ],
)
def test_what_has_no_effect_is_said(argv: tuple[str, ...], addresses: list[str], said: str) -> None:
    warnings = settings(*argv, addresses=[ipaddress.ip_address(a) for a in addresses]).warnings
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
    words = set(document(installation(make_plan(found).rules)).split())
    fixed = set(document(installation(make_plan(settings("-b", "*", "-o", "1", "-i", "*")).rules)).split())
    assert all(set(word) <= set("0123456789.:/") for word in words - fixed)
