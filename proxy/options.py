"""The command line: every option of Envoy 1.40, one table that says what each does here; DNS has options of our own.

An option is honoured, without effect (accepted, because what it tunes does not exist here; --help gives the reason),
or not supported yet (an error when it is used). Nothing is parsed and dropped. The syntax is that of Envoy's parser:
``--name value`` with a blank between, switches without a value, ``-c`` and ``-l`` as the only short forms.
"""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from proxy import log
from proxy.dns import settings as dns
from proxy.log_pattern import compile_pattern
from proxy.version import BUILD, HOT_RESTART_VERSION

UINT32_MAX = 4294967295
MAX_CONCURRENCY = 1024
"""Workers are processes; Envoy would take any number of threads."""


class OptionError(Exception):
    """A command line that cannot be used; the text is for stderr and the exit code is 1."""


class Exit(Exception):
    """The command line asks for a text (--help, --version, ...) and the end of the program with code 0."""

    def __init__(self, text: str, to_stderr: bool = False) -> None:
        super().__init__(text)
        self.text = text
        self.to_stderr = to_stderr


def _processors() -> int:
    return os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class Options:
    """Names are those of envoy.admin.v3.CommandLineOptions; times are seconds."""

    base_id: int = 0
    use_dynamic_base_id: bool = False
    skip_hot_restart_on_no_parent: bool = False
    skip_hot_restart_parent_stats: bool = False
    base_id_path: str = ""
    concurrency: int = field(default_factory=_processors)
    """Number of workers, at least 1."""
    config_path: str = ""
    config_yaml: str = ""
    allow_unknown_static_fields: bool = False
    reject_unknown_dynamic_fields: bool = False
    ignore_unknown_dynamic_fields: bool = False
    skip_deprecated_logs: bool = False
    admin_address_path: str = ""
    local_address_ip_version: str = "v4"
    log_level: str = "info"
    component_log_level: str = ""
    log_format: str = log.DEFAULT_PATTERN
    log_format_escaped: bool = False
    log_stacktrace_single_entry: bool = False
    log_path: str = ""
    service_cluster: str = ""
    service_node: str = ""
    service_zone: str = ""
    file_flush_interval: float = 10.0
    file_flush_min_size_kb: int = 64
    drain_time: float = 600.0
    drain_strategy: str = "gradual"
    parent_shutdown_time: float = 900.0
    mode: str = "serve"
    disable_hot_restart: bool = False
    enable_mutex_tracing: bool = False
    restart_epoch: int = 0
    cpuset_threads: bool = False
    disabled_extensions: tuple[str, ...] = ()
    enable_fine_grain_logging: bool = False
    socket_path: str = "@envoy_domain_socket"
    socket_mode: int = 0
    enable_core_dump: bool = False
    stats_tag: tuple[str, ...] = ()
    dns: dns.DnsSettings = dns.DnsSettings()
    """Not Envoy's."""


# --- values -------------------------------------------------------------------------------------------------------


class _BadNumber(Exception):
    pass


def _uint32(text: str) -> int:
    if not re.fullmatch("[0-9]{1,10}", text) or int(text) > UINT32_MAX:
        raise _BadNumber
    return int(text)


def _seconds(text: str) -> float:
    return float(_uint32(text))


def _milliseconds(text: str) -> float:
    milliseconds = _uint32(text)
    if milliseconds == 0:
        raise OptionError("error: --file-flush-interval-msec '0': expected at least 1")
    return milliseconds / 1000


def _concurrency(text: str) -> int:
    number = _uint32(text)
    if number > MAX_CONCURRENCY:
        raise OptionError(f"error: --concurrency '{text}': expected at most {MAX_CONCURRENCY} workers")
    return max(1, number)


def _level(text: str) -> str:
    log.parse_level(text)
    return text


def _component_levels(text: str) -> str:
    log.parse_component_levels(text)
    return text


def _pattern(text: str) -> str:
    compile_pattern(text)
    return text


def _one_of(what: str, *choices: str) -> Callable[[str], str]:
    def check(text: str) -> str:
        if text not in choices:
            raise OptionError(f"error: unknown {what} '{text}'")
        return text
    return check


def _octal(text: str) -> int:
    if not re.fullmatch("[0-7]{1,4}", text):
        raise OptionError(f"error: invalid socket-mode '{text}': expected octal digits")
    return int(text, 8)


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(",")) if text else ()


def _stats_tag(text: str) -> str:
    name, colon, value = text.partition(":")
    if not colon:
        raise OptionError(f"error: misformatted stats-tag '{text}'")
    for part, allowed in ((name, r"[A-Za-z0-9]*"), (value, r"[^.]*")):
        if not re.fullmatch(allowed, part):
            raise OptionError(f"error: misformatted stats-tag '{text}' contains invalid char in '{part}'")
    return text


# --- the table ----------------------------------------------------------------------------------------------------

_NO_HOT_RESTART = "there is no hot restart yet, so no second process shares anything with this one"
_NO_DYNAMIC = "no configuration is fetched at run time yet"


@dataclass(frozen=True, slots=True)
class Flag:
    """One option. ``convert`` None: a switch. ``repeated``: may occur several times, the field is a tuple."""

    name: str
    target: str
    convert: Callable[[str], Any] | None
    help: str
    no_effect: str = ""
    """Why the option changes nothing here; empty: it is honoured."""
    unsupported: str = ""
    """Why using the option is an error."""
    type: str = "<string>"
    repeated: bool = False
    short: str = ""


_UINT = "<uint32_t>"

FLAGS = (
    Flag("config-path", "config_path", str, "Path to the configuration file (YAML or JSON).", short="c"),
    Flag("config-yaml", "config_yaml", str, "YAML text that is merged over the configuration file."),
    Flag("mode", "mode", _one_of("mode", "serve", "validate"),
         "'serve' (default), or 'validate': check the configuration, open no socket and exit."),
    Flag("concurrency", "concurrency", _concurrency, "Number of workers (default: one a processor).", type=_UINT),
    Flag("cpuset-threads", "cpuset_threads", None,
         "Count only the processors that this process may use when --concurrency is not given."),
    Flag("log-level", "log_level", _level,
         "trace, debug, info (default), warning (warn), error, critical, off.", short="l"),
    Flag("component-log-level", "component_log_level", _component_levels,
         "Levels of single components: upstream:debug,config:trace."),
    Flag("log-format", "log_format", _pattern,
         f"Pattern of a log line in spdlog's syntax (default: {log.DEFAULT_PATTERN})."),
    Flag("log-format-escaped", "log_format_escaped", None, "Write control characters and quotes as C escapes."),
    Flag("log-stacktrace-single-entry", "log_stacktrace_single_entry", None,
         "Write a stack trace as one log entry, not as one a line."),
    Flag("log-path", "log_path", str, "File for the log (default: stderr); SIGUSR1 opens it anew."),
    Flag("enable-fine-grain-logging", "enable_fine_grain_logging", None, "Log levels by source file.",
         unsupported="levels exist by component only"),
    Flag("allow-unknown-static-fields", "allow_unknown_static_fields", None,
         "Warn about unknown field names in the configuration, do not refuse them."),
    Flag("allow-unknown-fields", "allow_unknown_static_fields", None, "Old name of --allow-unknown-static-fields."),
    Flag("reject-unknown-dynamic-fields", "reject_unknown_dynamic_fields", None,
         "Refuse unknown fields in dynamic configuration.", no_effect=_NO_DYNAMIC),
    Flag("ignore-unknown-dynamic-fields", "ignore_unknown_dynamic_fields", None,
         "Do not warn about unknown fields in dynamic configuration.", no_effect=_NO_DYNAMIC),
    Flag("skip-deprecated-logs", "skip_deprecated_logs", None, "Do not warn about deprecated fields.",
         no_effect="no such warnings are written"),
    Flag("service-cluster", "service_cluster", str, "node.cluster where the configuration has none."),
    Flag("service-node", "service_node", str, "node.id where the configuration has none."),
    Flag("service-zone", "service_zone", str, "node.locality.zone where the configuration has none."),
    Flag("local-address-ip-version", "local_address_ip_version", _one_of("IP address version", "v4", "v6"),
         "Address family of the local address: v4 (default) or v6."),
    Flag("stats-tag", "stats_tag", _stats_tag, "A tag name:value for every statistic; may be repeated.", repeated=True),
    Flag("admin-address-path", "admin_address_path", str, "File to write the admin listener's address to."),
    Flag("file-flush-interval-msec", "file_flush_interval", _milliseconds,
         "Longest time that access-log lines wait in memory, ms (default 10000).", type=_UINT),
    Flag("file-flush-min-size-kb", "file_flush_min_size_kb", _uint32,
         "Size at which waiting access-log lines are written, KiB (default 64).", type=_UINT),
    Flag("drain-time-s", "drain_time", _seconds,
         "Time over which a graceful drain asks connections to close (default 600).", type=_UINT),
    Flag("drain-strategy", "drain_strategy", _one_of("drain-strategy", "gradual", "immediate"),
         "gradual (default): more and more responses close their connection; immediate: every one does."),
    Flag("enable-core-dump", "enable_core_dump", None, "Let the kernel write a core file."),
    Flag("base-id", "base_id", _uint32, "Tells proxies of one machine apart.", no_effect=_NO_HOT_RESTART, type=_UINT),
    Flag("use-dynamic-base-id", "use_dynamic_base_id", None, "Choose a free base id.", no_effect=_NO_HOT_RESTART),
    Flag("base-id-path", "base_id_path", str, "File to write the base id to."),
    Flag("restart-epoch", "restart_epoch", _uint32, "0 (default) for a first start.", type=_UINT),
    Flag("disable-hot-restart", "disable_hot_restart", None, "Work without hot restart.", no_effect=_NO_HOT_RESTART),
    Flag("parent-shutdown-time-s", "parent_shutdown_time", _seconds, "When a new process ends the old one.",
         no_effect=_NO_HOT_RESTART, type=_UINT),
    Flag("skip-hot-restart-on-no-parent", "skip_hot_restart_on_no_parent", None,
         "Start although the parent cannot be reached.", no_effect=_NO_HOT_RESTART),
    Flag("skip-hot-restart-parent-stats", "skip_hot_restart_parent_stats", None,
         "Do not take over the parent's statistics.", no_effect=_NO_HOT_RESTART),
    Flag("socket-path", "socket_path", str, "Socket between old and new process.", no_effect=_NO_HOT_RESTART),
    Flag("socket-mode", "socket_mode", _octal, "Permissions of that socket.", no_effect=_NO_HOT_RESTART),
    Flag("enable-mutex-tracing", "enable_mutex_tracing", None, "Measure waiting for locks.",
         no_effect="workers are processes and share no lock"),
    Flag("disable-extensions", "disabled_extensions", _names, "Extensions to leave out, separated by commas.",
         unsupported="extensions cannot be left out one by one"),
    *(Flag(s.flag, "dns", str, f"{s.help} In the environment: {s.variable}.", type=s.type) for s in dns.SETTINGS),
)

_SWITCHES: Mapping[str, str] = {
    "--version": "Print the version.",
    "--hot-restart-version": "Print the version of the hot-restart protocol.",
    "--help": "Print this text (also -h).",
}


def _parse_error(argument: str, text: str) -> OptionError:
    return OptionError(f"PARSE ERROR: Argument: {argument}\n             {text}\n\n"
                       f"For complete USAGE and HELP type: --help")


def _label(flag: Flag) -> str:
    return f"-{flag.short} (--{flag.name})" if flag.short else f"(--{flag.name})"


def parse(argv: Sequence[str], program: str = "pysidecar-proxy",
          environment: Mapping[str, str] = MappingProxyType({})) -> Options:
    """Options of a command line without the program's name. Those of DNS may also stand in the environment.

    Raises OptionError (bad or unsupported argument) and Exit (--help, --version, --hot-restart-version).
    """
    by_argument = {f"--{flag.name}": flag for flag in FLAGS} | {f"-{flag.short}": flag for flag in FLAGS if flag.short}
    texts: dict[str, list[str]] = {}
    given: dict[str, Flag] = {}
    rest = iter(argv)
    for argument in rest:
        if argument in ("--", "--ignore_rest"):
            break
        if argument in ("-h", "--help"):
            raise Exit(usage(program))
        if argument == "--version":
            raise Exit(f"\n{program}  version: {BUILD}\n\n")
        if argument == "--hot-restart-version":
            raise Exit(HOT_RESTART_VERSION, to_stderr=True)
        flag = by_argument.get(argument)
        if flag is None:
            raise _parse_error(argument, "Couldn't find match for argument")
        if flag.name in given and not flag.repeated:
            raise _parse_error(_label(flag), "Argument already set!")
        given[flag.name] = flag
        if flag.convert is not None:
            value = next(rest, None)
            if value is None:
                raise _parse_error(_label(flag), "Missing a value for this argument!")
            texts.setdefault(flag.name, []).append(value)
    values = _values({name: flag for name, flag in given.items() if flag.target != "dns"}, texts)
    try:
        values["dns"] = dns.build({name: texts[name][0] for name, flag in given.items() if flag.target == "dns"},
                                  environment)
    except dns.SettingsError as error:
        raise OptionError(f"error: {error}") from None
    return Options(**values)


def _values(given: Mapping[str, Flag], texts: Mapping[str, list[str]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, flag in given.items():
        if flag.unsupported:
            raise OptionError(f"error: --{name} is not supported: {flag.unsupported}")
        if flag.convert is None:
            values[flag.target] = True
            continue
        for text in texts[name]:
            try:
                value = flag.convert(text)
            except _BadNumber:
                raise _parse_error(_label(flag), f"Couldn't read argument value from string '{text}'") from None
            except ValueError as error:
                raise OptionError(f"error: {error}") from None
            values[flag.target] = (*values.get(flag.target, ()), value) if flag.repeated else value
    if values.get("restart_epoch"):
        raise OptionError(f"error: --restart-epoch {values['restart_epoch']}: hot restart is not supported yet, "
                          f"expected 0")
    if values.get("cpuset_threads") and "concurrency" not in values:
        values["concurrency"] = len(os.sched_getaffinity(0))
    return values


def usage(program: str) -> str:
    """The text of --help: what is honoured, then what is accepted without effect or refused, each with its reason."""
    groups = (
        ("Options", [f for f in FLAGS if not f.no_effect and not f.unsupported], lambda f: f.help),
        ("Accepted without effect", [f for f in FLAGS if f.no_effect], lambda f: f"{f.help} No effect: {f.no_effect}."),
        ("Not supported", [f for f in FLAGS if f.unsupported], lambda f: f"{f.help} Refused: {f.unsupported}."),
    )
    out = [f"USAGE: {program} -c FILE [options]", ""]
    for title, flags, describe in groups:
        out += [f"{title}:", ""]
        for flag in flags:
            value = f" {flag.type}" if flag.convert is not None else ""
            short = f"-{flag.short}{value}, " if flag.short else ""
            out += [f"  {short}--{flag.name}{value}", textwrap.indent(textwrap.fill(describe(flag), 90), " " * 6)]
        out.append("")
    out.append("Others:\n")
    for name, text in _SWITCHES.items():
        out += [f"  {name}", f"      {text}"]
    return "\n".join(out) + "\n"
