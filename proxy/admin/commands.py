"""The table of admin commands: `/help` and the home page are made from it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from proxy.admin import config_dump, connections, control, dns, info, limits, runtime, stats, status
from proxy.admin.console import Console
from proxy.admin.messages import Request, Response

Handler = Callable[[Console, Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A query parameter. With ``choices`` it takes one of them, a ``flag`` counts by being there."""

    name: str
    text: str
    choices: tuple[str, ...] = ()
    flag: bool = False


@dataclass(frozen=True, slots=True)
class Command:
    """One path. ``post``: it changes something, so nothing but POST will do."""

    path: str
    text: str
    handler: Handler
    parameters: tuple[Parameter, ...] = ()
    post: bool = False


_FILTER = Parameter("filter", "only names in which this regular expression (RE2) is found")
_USED = Parameter("usedonly", "only statistics that were written since the start", flag=True)
_INVERT = Parameter("invert_filter", "only names in which the filter is not found", flag=True)
_FORMAT = Parameter("format", "the form of the answer", ("text", "json"))

COMMANDS = (
    Command("/certs", "certificates in use", info.handle_certs),
    Command("/clusters", "clusters, their hosts and the hosts' statistics", status.handle_clusters, (
        _FILTER, _FORMAT)),
    Command("/config_dump", "the configuration in force", config_dump.handle_config_dump, (
        Parameter("resource", "only this list, for instance static_listeners or static_clusters"),
        Parameter("mask", "only these fields (comma-separated FieldMask); with resource: of each entry"),
        Parameter("name_regex", "only resources whose whole name matches this regular expression (RE2)"),
        Parameter("include_eds", "endpoints as well", flag=True))),
    Command("/connections", "open downstream connections, the oldest first (not in Envoy)",
            connections.handle_connections, (
                _FORMAT, Parameter("limit", f"at most so many (default {connections.DEFAULT_LIMIT})"))),
    Command("/contention", "waiting for locks (with --enable-mutex-tracing)", info.handle_contention),
    Command("/dns", "what a DNS query would be answered with, and why (not in Envoy)", dns.handle_dns, (
        Parameter("name", "the name that is asked for; without: the name table and the servers"),
        Parameter("type", "the type of records (default A)"), _FORMAT)),
    Command("/drain_listeners", "stop listening", control.handle_drain_listeners, (
        Parameter("graceful", "keep listening for the drain time while connections are asked to close", flag=True),
        Parameter("skip_exit", "ask connections to close, but never stop listening", flag=True),
        Parameter("inboundonly", "only listeners whose traffic_direction is INBOUND", flag=True)), post=True),
    Command("/healthcheck/fail", "fail health checks: /ready says so, responses close their connections",
            control.handle_healthcheck_fail, post=True),
    Command("/healthcheck/ok", "pass health checks again", control.handle_healthcheck_ok, post=True),
    Command("/hot_restart_version", "the version that a parent and a child process must share",
            info.handle_hot_restart_version),
    Command("/init_dump", "what the start still waits for", info.handle_init_dump),
    Command("/listeners", "listeners and their addresses", status.handle_listeners, (_FORMAT,)),
    Command("/limits", "connection limits, how near they are, and who holds the connections (not in Envoy)",
            limits.handle_limits, (_FORMAT,)),
    Command("/logging", "show or change log levels (?<logger>=<level>)", control.handle_logging, (
        Parameter("paths", "change several loggers: <logger1>:<level1>,<logger2>:<level2>"),
        Parameter("level", "change all loggers", ("", *control.LEVELS))), post=True),
    Command("/memory", "memory of the main process and its workers", info.handle_memory),
    Command("/quitquitquit", "end the process", control.handle_quit, post=True),
    Command("/ready", "the state, with status 200 when LIVE and 503 when not", info.handle_ready),
    Command("/reopen_logs", "open access logs anew", control.handle_reopen_logs, post=True),
    Command("/reset_counters", "set all counters to 0", control.handle_reset_counters, post=True),
    Command("/runtime", "runtime keys and the layers that their values come from", runtime.handle_runtime),
    Command("/runtime_modify", "override runtime keys (?key=value; an empty value takes an override away)",
            runtime.handle_runtime_modify, post=True),
    Command("/server_info", "version, state, uptime, command line", info.handle_server_info),
    Command("/stats", "statistics", stats.handle_stats, (
        _USED, _FILTER, _INVERT,
        Parameter("format", "the form of the answer", ("text", "json", "html", "active-html", "prometheus")),
        Parameter("type", "only statistics of this type", tuple(stats.TYPES)),
        Parameter("histogram_buckets", "how histograms are shown", ("summary", "cumulative", "disjoint", "detailed")))),
    Command("/stats/prometheus", "statistics in Prometheus' text format", stats.handle_prometheus, (
        _USED, _FILTER, _INVERT,
        Parameter("type", "only statistics of this type", tuple(stats.TYPES)),
        Parameter("histogram_buckets", "how histograms are shown", ("cumulative", "summary")))),
)


def help_text(commands: Iterable[Command], heading: str = "") -> str:
    """The list of commands, as Envoy lays it out."""
    lines = [f"{heading}admin commands are:"]
    for command in commands:
        lines.append(f"  {command.path}{' (POST)' if command.post else ''}: {command.text}")
        for parameter in command.parameters:
            choices = f"; One of ({', '.join(parameter.choices)})" if parameter.choices else ""
            lines.append(f"      {parameter.name}: {parameter.text}{choices}")
    return "".join(line + "\n" for line in lines)
