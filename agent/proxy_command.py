"""`pilot-agent proxy`: reads everything that configures the pod, then hands over to the supervisor."""

import os
import signal
import time
from typing import TYPE_CHECKING

from agent import addresses, effective, launch, log
from agent.drain import DrainSettings
from agent.durations import format_seconds
from agent.flags import Parsed
from agent.lifecycle.crash import ProxyCrashed
from agent.options import proxy_options
from agent.settings import AgentSettings
from agent.status.options import StatusOptions
from agent.supervisor import Plan, Supervisor

if TYPE_CHECKING:
    from agent.status.workload_health import WorkloadProbe

_log = log.scope()


def run(parsed: Parsed) -> int:
    started_at = time.monotonic()
    _open_standard_streams()
    options = proxy_options(parsed)
    settings = effective.load(options, os.environ)
    if options.explain_config:
        from agent import explain

        return explain.print_settings(settings)
    launched = launch.plan(settings)
    for warning in (*settings.warnings, *launched.warnings):
        _log.warn(warning)
    _log.info(f"Proxy role: type={options.node_type} ips={','.join(settings.addresses)} domain={settings.domain}")
    _log.info(f"Effective config: {_summary(settings)}")

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


def _open_standard_streams() -> None:
    """Whoever started us without them: the next descriptors that are opened would be taken for standard ones."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one


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


def _summary(settings: AgentSettings) -> str:
    config = settings.config
    values = (
        ("customConfigFile", config.custom_config_file),
        ("binaryPath", config.binary_path),
        ("concurrency", "unset" if config.concurrency is None else config.concurrency),
        ("drainDuration", format_seconds(config.drain_duration_s)),
        ("terminationDrainDuration", format_seconds(config.termination_drain_duration_s)),
        ("statusPort", config.status_port),
        ("proxyAdminPort", config.proxy_admin_port),
    )
    return ", ".join(f"{name}={value}" for name, value in values)
