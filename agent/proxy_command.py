"""`pilot-agent proxy`: reads everything that configures the pod, then hands over to the supervisor."""

import os
import resource
import signal
import time
from typing import TYPE_CHECKING

from agent import addresses, dns, effective, explain, launch, log, version
from agent.drain import DrainSettings
from agent.flags import HELP, Parsed
from agent.lifecycle.crash import ProxyCrashed
from agent.options import proxy_options
from agent.settings import AgentSettings
from agent.status.options import StatusOptions
from agent.supervisor import Plan, Supervisor

if TYPE_CHECKING:
    from agent.status.workload_health import WorkloadProbe

_log = log.scope()
_MAX_FLAG = 1024
_MAX_SHOWN = 64 * 1024


def run(parsed: Parsed) -> int:
    started_at = time.monotonic()
    options = proxy_options(parsed)
    settings = effective.load(options, os.environ)
    if options.explain_config:
        return explain.print_settings(settings)
    _report_start(parsed, settings)
    _raise_file_limit()
    for warning in (*_log_warnings(), *settings.warnings):
        _log.warn(warning)  # before what may fail because of it
    launched = launch.plan(settings)
    for warning in launched.warnings:
        _log.warn(warning)

    plan = plan_of(settings, launched, started_at)

    import asyncio

    async def supervise() -> None:
        try:
            await Supervisor(plan).run()
        finally:
            # The loop takes its handlers away now; a late signal must not turn an orderly end into a death by it.
            signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))

    try:
        asyncio.run(supervise())
    except ProxyCrashed as error:
        log.print_error(error)
        return settings.drain.crash_exit_code
    return 0


def _log_warnings() -> list[str]:
    return [f"logging flags: there is no scope {name!r}" for name in log.unknown_scopes()]


def plan_of(settings: AgentSettings, launched: launch.Launched, started_at: float) -> Plan:
    """Everything that the supervisor needs."""
    options, config, ports = settings.options, settings.config, settings.ports
    return Plan(
        command=launched.command,
        run_as=launched.run_as,
        status=StatusOptions(
            port=config.status_port,
            node_type=options.node_type,
            instance_ip=settings.identity.instance_ip,
            app_probers=settings.status.app_probers,
            prometheus_annotations=settings.status.prometheus_annotations,
            legacy_localhost=settings.status.legacy_localhost_probes,
            probe_keepalive=settings.status.probe_keepalive,
            http2_probing=settings.status.http2_probing,
            merge_proxy_stats=settings.status.merge_proxy_stats,
            metrics_localhost_only=settings.status.metrics_localhost_only,
            prometheus_port=ports.prometheus,
            profiling=options.profiling,
        ),
        admin_hosts=addresses.loopbacks(settings.addresses),
        admin_port=config.proxy_admin_port,
        awaits=launched.awaits,
        awaits_name_table=dns.is_served(settings),
        drain=DrainSettings(
            # Other node types have nothing but inbound listeners.
            inbound_only=options.node_type == "sidecar",
            termination_drain_s=config.termination_drain_duration_s,
            exit_on_zero=settings.drain.exit_on_zero,
            minimum_s=settings.drain.minimum_s,
            count=settings.drain.count,
            maximum_s=settings.drain.maximum_s,
            own_ports=frozenset(
                {ports.status, ports.prometheus, ports.secure_metrics, ports.secure_merged_metrics} - {0}
            ),
        ),
        started_at=started_at,
        write_bootstrap=launched.write,
        made_files=launched.made_files,
        grpc_bootstrap=launched.grpc_bootstrap,
        workload_probe=_workload_probe(settings),
        instance_ip=settings.identity.instance_ip,
    )


def _workload_probe(settings: AgentSettings) -> "WorkloadProbe | None":
    """Raises ConfigError naming the field of ProxyConfig readinessProbe that is wrong."""
    document = settings.config.document.get("readinessProbe")
    if document is None:
        return None
    from agent.status.workload_health import parse_probe

    return parse_probe(document)


def _report_start(parsed: Parsed, settings: AgentSettings) -> None:
    """What the log says first, as that of the real program: flags, version, role and the effective ProxyConfig."""
    for name, value in parsed.values.items():
        if name != HELP.name:
            shown = ",".join(value) if isinstance(value, tuple) else str(value)
            shown = shown.lower() if isinstance(value, bool) else shown
            _log.info(f'FLAG: --{name}="{shown[:_MAX_FLAG]}"')
    _log.info(f"Version {version.build_info()['version']}")
    options = settings.options
    _log.info(f"Proxy role: type={options.node_type} ips={','.join(settings.addresses)} domain={settings.domain}")
    # On one line: JSON is YAML too.
    _log.info(f"Effective config: {explain.shown(settings.config.document, _MAX_SHOWN)}")


def _raise_file_limit() -> None:
    """The proxy inherits it: container runtimes start with as few as 1024 files, which are 500 connections."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        _log.info(f"Set max file descriptors (ulimit -n) to: {most}")
    except (OSError, ValueError) as error:
        _log.warn(f"the limit of open files cannot be raised to {most}: {error}")
