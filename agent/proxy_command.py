"""`pilot-agent proxy`: reads everything that configures the pod, then hands over to the supervisor."""

import os
import signal
import time
from collections.abc import Mapping, Sequence

from agent import addresses, child_command, custom_config, environment, log, pod_files, proxy_config
from agent.durations import format_seconds
from agent.environment import Environment
from agent.errors import ConfigError
from agent.flags import Parsed
from agent.options import ProxyOptions, proxy_options
from agent.proxy_config import ProxyConfig
from agent.supervisor import Plan, Supervisor

_PROXY_ID = 1337  # uid and gid that traffic capture leaves alone
_EXCLUDE_INTERFACES = "traffic.sidecar.istio.io/excludeInterfaces"

_log = log.scope()


def run(parsed: Parsed) -> int:
    started_at = time.monotonic()
    plan = prepare(proxy_options(parsed), os.environ, started_at)

    import asyncio

    async def supervise() -> None:
        try:
            await Supervisor(plan).run()
        finally:
            # The loop takes its handlers away now; a late signal must not turn an orderly end into a death by it.
            signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))

    asyncio.run(supervise())
    return 0


def prepare(options: ProxyOptions, variables: Mapping[str, str], started_at: float) -> Plan:
    """Read the environment and the files. Raises AgentError for whatever is wrong with them.

    What is set and not honoured is logged as a warning, never passed over.
    """
    warnings: list[str] = []
    env = environment.read(variables)
    annotations, complaint = pod_files.read_annotations()
    warnings += filter(None, (complaint, *env.warnings))
    warnings += (f"unknown flag {flag} is ignored" for flag in options.unknown)
    if options.not_honoured:
        warnings.append(f"flags not honoured yet: {', '.join(options.not_honoured)}")
    try:
        config = effective_config(options, env, annotations, warnings)
        override, inspected = _configuration_file(config, env, warnings)
    finally:
        for warning in warnings:  # an error may well be explained by one of them
            _log.warn(warning)
    excluded = [name.strip() for name in annotations.get(_EXCLUDE_INTERFACES, "").split(",")]
    ips = addresses.node_addresses(env.instance_ip, addresses.interface_addresses(excluded))
    _log.info(f"Proxy role: type={options.node_type} ips={','.join(ips)}")
    _log.info(f"Effective config: {_summary(config)}")
    if inspected.admin_port not in (None, config.proxy_admin_port):
        _log.warn(
            f"customConfigFile has its admin on port {inspected.admin_port}, but ProxyConfig proxyAdminPort is "
            f"{config.proxy_admin_port}: readiness and the drain will not reach it"
        )
    return Plan(
        command=child_command.ChildCommand(
            child_command.program(config.binary_path),
            child_command.arguments(config, options, env, addresses.ip_version(ips), override),
        ),
        run_as=_proxy_user(variables),
        status_port=config.status_port,
        admin_hosts=addresses.loopbacks(ips),
        admin_port=config.proxy_admin_port,
        awaits=inspected.awaits,
        # Other node types have nothing but inbound listeners.
        inbound_only_drain=options.node_type == "sidecar",
        termination_drain_s=config.termination_drain_duration_s,
        started_at=started_at,
    )


def effective_config(
    options: ProxyOptions, env: Environment, annotations: Mapping[str, str], warnings: list[str]
) -> ProxyConfig:
    """ProxyConfig from all its sources. Raises ConfigError naming source, field, value and what was expected."""
    layers = [
        proxy_config.mesh_layer(options.mesh_config, warnings),
        proxy_config.parse_layer("PROXY_CONFIG", env.proxy_config, warnings),
        proxy_config.parse_layer(
            f"annotation {proxy_config.CONFIG_ANNOTATION}",
            annotations.get(proxy_config.CONFIG_ANNOTATION, ""),
            warnings,
        ),
        proxy_config.layer("flag", options.config_flags, warnings),
    ]
    return proxy_config.resolve(
        [layer for layer in layers if layer is not None],
        warnings,
        cpu_limit=env.cpu_limit,
        concurrency_flag=options.concurrency,
        termination_drain_s=env.termination_drain_s,
        annotations=annotations,
    )


def _configuration_file(
    config: ProxyConfig, env: Environment, warnings: list[str]
) -> tuple[str, custom_config.CustomConfig]:
    """The override as JSON for --config-yaml ("" = none), and what the configuration file says."""
    if not config.custom_config_file:
        raise ConfigError(
            "ProxyConfig customConfigFile is not set: writing a bootstrap and xDS come later, so the proxy can only be "
            "started from a configuration file of yours; set it for instance with PROXY_CONFIG="
            '\'{"customConfigFile": "/etc/istio/custom-bootstrap/envoy.yaml"}\''
        )
    if not env.bootstrap_override:
        return "", custom_config.inspect(config.custom_config_file, None, warnings)
    text, document = custom_config.read_override(env.bootstrap_override, env.host_ip)
    return text, custom_config.inspect(config.custom_config_file, document, warnings)


def _proxy_user(variables: Mapping[str, str]) -> int | None:
    """A DNS server on port 53 needs an agent that is root; the proxy is never run as root then."""
    if os.geteuid() == 0 and variables.get("DNS_PROXY_ADDR", "").endswith(":53"):
        return _PROXY_ID
    return None


def _summary(config: ProxyConfig) -> str:
    values: Sequence[tuple[str, object]] = (
        ("customConfigFile", config.custom_config_file),
        ("binaryPath", config.binary_path),
        ("concurrency", "unset" if config.concurrency is None else config.concurrency),
        ("drainDuration", format_seconds(config.drain_duration_s)),
        ("terminationDrainDuration", format_seconds(config.termination_drain_duration_s)),
        ("statusPort", config.status_port),
        ("proxyAdminPort", config.proxy_admin_port),
    )
    return ", ".join(f"{name}={value}" for name, value in values)
