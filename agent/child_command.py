"""What the proxy is started with: program and arguments, in the order of the real program."""

import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from agent import addresses
from agent.errors import ConfigError, UsageError
from agent.options import PROXY_LOG_LEVELS, ProxyOptions
from agent.proxy_config import DEFAULT_BINARY
from agent.settings import AgentSettings

_FIPS_CIPHERS = ":".join(
    f"ECDHE-{key}-{cipher}" for cipher in ("AES128-GCM-SHA256", "AES256-GCM-SHA384") for key in ("ECDSA", "RSA")
)
OWN_PROXY = "proxy"  # the Python package that stands in where the default binaryPath does not exist


@dataclass(frozen=True, slots=True)
class ChildCommand:
    """`program` may be several words (`python -m proxy`). `environment` comes on top of the agent's own."""

    program: tuple[str, ...]
    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


def program(binary_path: str) -> tuple[str, ...]:
    """The program to supervise.

    The default of binaryPath means: Envoy in its place where the image has it, else our own proxy. Raises ConfigError
    when there is nothing to start.
    """
    if "/" not in binary_path:
        import shutil

        found = shutil.which(binary_path)  # as the real program does
        if found is None:
            raise ConfigError(f"ProxyConfig binaryPath: there is no program {binary_path!r} in PATH")
        return (found,)
    if binary_path != DEFAULT_BINARY or os.path.exists(binary_path):
        if not os.path.isfile(binary_path):
            raise ConfigError(f"ProxyConfig binaryPath: {binary_path!r} is not a file")
        if not os.access(binary_path, os.X_OK):
            raise ConfigError(f"ProxyConfig binaryPath: {binary_path!r} may not be executed by uid {os.geteuid()}")
        return (binary_path,)
    if importlib.util.find_spec(OWN_PROXY) is None:
        raise ConfigError(
            f"ProxyConfig binaryPath: {binary_path!r} does not exist, and there is no Python package {OWN_PROXY!r} "
            "to stand in for it"
        )
    return (sys.executable, "-m", OWN_PROXY)


def arguments(settings: AgentSettings, file: str, override: str = "") -> tuple[str, ...]:
    """The proxy's arguments for a configuration file; `override` is a JSON document for --config-yaml.

    Raises UsageError for a log level that does not exist.
    """
    config, launch = settings.config, settings.launch
    level, components = _log_levels(settings.options)
    words: list[str] = ["-c", file]
    words += ["--drain-time-s", str(config.drain_duration_s), "--drain-strategy", "immediate"]
    words += ["--local-address-ip-version", addresses.ip_version(settings.addresses)]
    words += ["--file-flush-interval-msec", str(round(config.file_flush_interval_s * 1000))]
    words += ["--disable-hot-restart", "--allow-unknown-static-fields"]
    if config.file_flush_min_size_kb is not None:
        words += ["--file-flush-min-size-kb", str(config.file_flush_min_size_kb)]
    if level:
        words += ["-l", level]
    if components:
        words += ["--component-log-level", components]
    if launch.skip_deprecated_logs:
        words.append("--skip-deprecated-logs")
    if launch.core_dump:
        words.append("--enable-core-dump")
    if override:
        words += ["--config-yaml", override]
    if config.concurrency:
        # An explicit 0 means one worker a CPU, which is the proxy's own default.
        words += ["--concurrency", str(config.concurrency)]
    return tuple(words)


def environment(settings: AgentSettings) -> dict[str, str]:
    """Variables of the proxy's own: for FIPS 140-2 the TLS 1.2 ciphers that are left to Envoy's google_grpc client."""
    return {"GRPC_SSL_CIPHER_SUITES": _FIPS_CIPHERS} if settings.launch.compliance_policy == "fips-140-2" else {}


def _log_levels(options: ProxyOptions) -> tuple[str, str]:
    """--proxyLogLevel may carry components; --proxyComponentLogLevel counts only when it does not."""
    parts = [part.strip() for part in options.proxy_log_level.split(",") if part.strip()]
    levels = [part for part in parts if ":" not in part]
    components = [part for part in parts if ":" in part]
    if len(levels) > 1:
        raise UsageError(f"--proxyLogLevel: {options.proxy_log_level[:64]!r} names more than one level")
    flag = "--proxyLogLevel"
    if not components:
        flag = "--proxyComponentLogLevel"
        components = [part.strip() for part in options.proxy_component_log_level.split(",") if part.strip()]
    for level in levels:
        _check_level("--proxyLogLevel", level, level)
    for component in components:
        name, _, level = component.partition(":")
        _check_level(flag, component, level if name else "")
    return (levels[0] if levels else ""), ",".join(components)


def _check_level(flag: str, item: str, level: str) -> None:
    if level not in PROXY_LOG_LEVELS:
        expected = f"expected a level ({', '.join(PROXY_LOG_LEVELS)}) or component:level"
        raise UsageError(f"{flag}: {item[:64]!r}: {expected}")


def shown(words: Sequence[str]) -> str:
    """The command as one line for the log."""
    import shlex

    return shlex.join(word if len(word) <= 256 else f"{word[:253]}..." for word in words)
