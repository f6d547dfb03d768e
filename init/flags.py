"""The command line and environment of `istio-iptables`, as a table, with the parsing rules of pflag.

pflag and argparse differ where it matters here: values may be empty or begin with `*` or `-`, short options may be
glued to their value (`-p15001`), long names are never abbreviated, positional arguments are accepted and ignored.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from init.errors import UsageError, printable, shown

TRUE = ("1", "t", "T", "TRUE", "true", "True")
FALSE = ("0", "f", "F", "FALSE", "false", "False")

Kind = Literal["string", "bool", "uint16", "duration", "int", "strings"]


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag; `variables` are its environment names, a later one overriding an earlier one."""

    name: str
    short: str
    kind: Kind
    default: str
    help: str
    variables: tuple[str, ...] = ()


def _flag(
    name: str, short: str, kind: Kind, default: str, help_: str, alias: str | None = None, own_variable: bool = True
) -> Flag:
    own = (name.upper().replace("-", "_"),) if own_variable else ()
    return Flag(name, short, kind, default, help_, own + ((alias,) if alias else ()))


FLAGS: tuple[Flag, ...] = (
    _flag("envoy-port", "p", "string", "15001", "port that captured outbound traffic goes to", own_variable=False),
    _flag("inbound-capture-port", "z", "string", "15006", "port that captured inbound traffic goes to"),
    _flag("inbound-tunnel-port", "e", "string", "15008", "HBONE port, never captured"),
    _flag("proxy-uid", "u", "string", "", "comma list of uids that are the proxy (default: account $ENVOY_USER)"),
    _flag("proxy-gid", "g", "string", "", "comma list of gids that are the proxy (default: those of --proxy-uid)"),
    _flag("istio-inbound-interception-mode", "m", "string", "", "REDIRECT or TPROXY"),
    _flag("istio-inbound-ports", "b", "string", "", "inbound TCP ports to capture: '*', a comma list, or none"),
    _flag("istio-local-exclude-ports", "d", "string", "", "inbound TCP ports not captured, with -b '*'"),
    _flag("istio-exclude-interfaces", "c", "string", "", "comma list of interfaces exempt in both directions"),
    _flag("istio-service-cidr", "i", "string", "", "outbound ranges to capture: '*', a comma list of CIDRs, or none"),
    _flag("istio-service-exclude-cidr", "x", "string", "", "comma list of CIDRs never captured"),
    _flag("istio-outbound-ports", "q", "string", "", "outbound TCP ports to capture in addition to -i"),
    _flag("istio-local-outbound-ports-exclude", "o", "string", "", "outbound ports never captured"),
    _flag("kube-virt-interfaces", "k", "string", "", "interfaces whose incoming traffic is treated as outbound"),
    _flag("istio-inbound-tproxy-mark", "t", "string", "1337", "packet mark of TPROXY mode"),
    _flag("istio-inbound-tproxy-route-table", "r", "string", "133", "routing table of TPROXY mode"),
    _flag("dry-run", "n", "bool", "false", "print the iptables-restore text and change nothing"),
    _flag("iptables-probe-port", "", "uint16", "15002", "destination port of the --run-validation probe"),
    _flag("probe-timeout", "", "duration", "5s", "time limit of the --run-validation probe"),
    _flag("skip-rule-apply", "", "bool", "false", "apply no rules"),
    _flag("run-validation", "", "bool", "false", "probe the capture afterwards"),
    _flag("redirect-dns", "", "bool", "false", "capture DNS", alias="ISTIO_META_DNS_CAPTURE"),
    _flag("capture-all-dns", "", "bool", "false", "capture DNS to every resolver, with --redirect-dns"),
    _flag("drop-invalid", "", "bool", "false", "drop packets that conntrack calls INVALID", alias="INVALID_DROP"),
    _flag("dual-stack", "", "bool", "false", "capture IPv6 beside IPv4", alias="ISTIO_DUAL_STACK"),
    _flag("network-namespace", "", "string", "", "path of the network namespace to work in"),
    _flag("cni-mode", "", "bool", "false", "run from the host's file system in a pod's network namespace"),
    _flag("reconcile", "", "bool", "false", "replace rules that an earlier run with other flags left"),
    _flag("cleanup-only", "", "bool", "false", "remove what earlier runs installed"),
    _flag("force-apply", "", "bool", "false", "write the rules again even if they already match"),
    _flag("native-nftables", "", "bool", "false", "write the rules with nft instead of iptables"),
    _flag("force-iptables-binary", "", "string", "", "legacy or nft (default: detected)"),
    Flag(
        "backend", "", "string", "", "iptables-nft, iptables-legacy, nftables or libiptc", ("ISTIO_IPTABLES_BACKEND",)
    ),
    Flag("output", "", "string", "text", "text, or json: print the rules as data"),
    Flag("log_output_level", "", "string", "default:info", "comma list of scope:level"),
    Flag("log_as_json", "", "bool", "false", "log one JSON object a line"),
    Flag("log_target", "", "strings", "stderr", "stdout, stderr or a file to append to; repeatable"),
    Flag("log_stacktrace_level", "", "string", "default:none", "scope:level from which a stack is logged"),
    Flag("log_caller", "", "string", "", "comma list of scopes that log their caller"),
    Flag("vklog", "", "int", "0", "verbosity of the Kubernetes client; there is none here"),
    Flag("help", "h", "bool", "false", "print this help"),
)

# Environment without a flag: name -> value when unset. An empty value counts as set.
VARIABLES: Mapping[str, str] = {
    "ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR": "127.0.0.1/32",
    "ISTIO_OUTBOUND_OWNER_GROUPS": "*",
    "ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE": "",
    "ENVOY_USER": "istio-proxy",
    "DRY_RUN_FILE_PATH": "",
}

_BY_NAME = {flag.name: flag for flag in FLAGS}
_BY_SHORT = {flag.short: flag for flag in FLAGS if flag.short}


@dataclass(frozen=True, slots=True)
class Value:
    """What a flag or variable holds and who said so: `origin` is how an error names it."""

    text: str
    origin: str
    from_flag: bool = False
    all: tuple[str, ...] = ()  # every occurrence of a repeatable flag, in order


def label(flag: Flag) -> str:
    """A flag as errors name it."""
    return f"--{flag.name} (-{flag.short})" if flag.short else f"--{flag.name}"


def resolve(argv: Sequence[str], environ: Mapping[str, str]) -> dict[str, Value]:
    """Every flag and variable with its effective value: default < own variable < alias variable < command line.

    Raises UsageError when the command line cannot be split into flags.
    """
    values = {}
    for flag in FLAGS:
        value = Value(flag.default, label(flag), all=(flag.default,))
        for variable in flag.variables:
            if variable in environ:
                value = Value(environ[variable], variable)
        values[flag.name] = value
    for name, default in VARIABLES.items():
        values[name] = Value(environ.get(name, default), name)
    for flag, texts in _parse(argv).items():
        values[flag.name] = Value(texts[-1], label(flag), from_flag=True, all=tuple(texts))
    return values


def _parse(argv: Sequence[str]) -> dict[Flag, list[str]]:
    given: dict[Flag, list[str]] = {}
    rest = list(argv)
    while rest:
        argument = rest.pop(0)
        if argument == "--":
            break
        if argument.startswith("--"):
            _parse_long(argument, rest, given)
        elif argument.startswith("-") and argument != "-":
            _parse_short(argument, rest, given)
        # anything else is a positional argument: ignored (the VM start script passes the word `init`)
    return given


def _parse_long(argument: str, rest: list[str], given: dict[Flag, list[str]]) -> None:
    name, equals, value = argument[2:].partition("=")
    if not name or name.startswith("-"):
        raise UsageError(f"bad flag syntax: {shown(argument)}")
    flag = _BY_NAME.get(name)
    if flag is None:
        raise UsageError(f"unknown flag: {printable(f'--{name}')}")
    if not equals:
        value = _default_or_next(flag, f"--{name}", rest)
    given.setdefault(flag, []).append(value)


def _parse_short(argument: str, rest: list[str], given: dict[Flag, list[str]]) -> None:
    letters = argument[1:]
    while letters:
        letter, letters = letters[0], letters[1:]
        flag = _BY_SHORT.get(letter)
        if flag is None:
            raise UsageError(f"unknown shorthand flag: {letter!r} in {printable(argument)}")
        if letters.startswith("=") and len(letters) > 1:
            value, letters = letters[1:], ""
        elif flag.kind == "bool":
            value = "true"
        elif letters:
            value, letters = letters, ""
        else:
            value = _default_or_next(flag, f"{letter!r} in {printable(argument)}", rest)
        given.setdefault(flag, []).append(value)


def _default_or_next(flag: Flag, named: str, rest: list[str]) -> str:
    if flag.kind == "bool":
        return "true"  # `--flag false` sets true and leaves a positional argument, as pflag does
    if not rest:
        raise UsageError(f"flag needs an argument: {named}")
    return rest.pop(0)


def usage(program: str) -> str:
    """The help text: one line a flag, its default and its environment variables."""
    lines = [f"Usage: {program} [flags]"]
    if program == "istio-iptables":
        lines.append("       istio-iptables explain --help: what the rules in the kernel do to a packet")
    lines += ["", "Flags:"]
    for flag in FLAGS:
        name = f"  {'-' + flag.short + ',' if flag.short else '   '} --{flag.name}"
        if flag.kind != "bool":
            name += f" {flag.kind.removesuffix('s')}"
        notes = [f"default {flag.default!r}"] if flag.kind != "bool" and flag.default else []
        notes += [f"${variable}" for variable in flag.variables]
        lines.append(f"{name:<52} {flag.help}{' [' + ', '.join(notes) + ']' if notes else ''}")
    lines += ["", "Variables without a flag: " + ", ".join(f"{k} ({v!r})" for k, v in VARIABLES.items())]
    return "\n".join(lines)
