"""Environment variables: a table of those the agent reads, and of those it knows but does not honour yet.

A malformed number, boolean or duration is reported and replaced by the default, as the real program does; a string
variable that is set to the empty string stays empty.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from agent.flags import BOOLEANS, parse_integer

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Environment:
    """What the agent takes from its environment."""

    proxy_config: str  # PROXY_CONFIG
    instance_ip: str  # INSTANCE_IP
    host_ip: str  # HOST_IP
    cpu_limit: int  # ISTIO_CPU_LIMIT: whole cores, 0 = unset
    bootstrap_override: str  # ISTIO_BOOTSTRAP_OVERRIDE: path
    skip_deprecated_logs: bool  # ENVOY_SKIP_DEPRECATED_LOGS
    enable_core_dump: bool  # ISTIO_ENVOY_ENABLE_CORE_DUMP
    # TERMINATION_DRAIN_DURATION_SECONDS: older releases and Alibaba's ASM set it; the field of ProxyConfig beats it.
    termination_drain_s: float | None
    warnings: tuple[str, ...]


def _boolean(text: str) -> bool:
    if text not in BOOLEANS:
        raise ValueError("expected true or false")
    return BOOLEANS[text]


def _count(text: str) -> int:
    value = parse_integer(text)
    if not 0 <= value <= 2**31 - 1:
        raise ValueError("expected a number of at least 0")
    return value


def _is_true(text: str) -> bool:
    return BOOLEANS.get(text, False)


def _is_set(text: str) -> bool:
    return bool(text)


# Variables that would change what the real program does with a customConfigFile: name -> (when it matters, what for).
NOT_HONOURED: Mapping[str, tuple[Callable[[str], bool], str]] = {
    "EXIT_ON_ZERO_ACTIVE_CONNECTIONS": (_is_true, "ending as soon as no connection is left"),
    "MINIMUM_DRAIN_DURATION": (_is_set, "ending as soon as no connection is left"),
    "DISABLE_ENVOY": (_is_true, "running without a proxy"),
    "ISTIO_BOOTSTRAP": (_is_set, "bootstrap generation"),
    "ISTIO_KUBE_APP_PROBERS": (_is_set, "probes of the application"),
    "ISTIO_PROMETHEUS_ANNOTATIONS": (_is_set, "merged metrics"),
    "ISTIO_META_DNS_CAPTURE": (_is_true, "the DNS server"),
    "ISTIO_META_ENABLE_DNS_SERVER": (_is_true, "the DNS server"),
    "PROXY_CONFIG_XDS_AGENT": (_is_true, "xDS"),
    "OUTPUT_CERTS": (_is_set, "certificates"),
    "FILE_MOUNTED_CERTS": (_is_true, "certificates"),
    "PROV_CERT": (_is_set, "certificates"),
    "COMPLIANCE_POLICY": (_is_set, "TLS towards the control plane"),
}


def read(variables: Mapping[str, str]) -> Environment:
    """Read the table from a mapping such as os.environ. Never raises; what it could not use stands in `warnings`."""
    warnings: list[str] = []

    def convert(name: str, parse: Callable[[str], _T], default: _T) -> _T:
        text = variables.get(name, "")
        if not text:
            return default
        try:
            return parse(text)
        except ValueError as error:
            warnings.append(f"environment variable {name}: {text[:64]!r} is ignored: {error}")
            return default

    drain = convert("TERMINATION_DRAIN_DURATION_SECONDS", _count, -1)
    environment = Environment(
        proxy_config=variables.get("PROXY_CONFIG", ""),
        instance_ip=variables.get("INSTANCE_IP", ""),
        host_ip=variables.get("HOST_IP", ""),
        cpu_limit=convert("ISTIO_CPU_LIMIT", _count, 0),
        bootstrap_override=variables.get("ISTIO_BOOTSTRAP_OVERRIDE", ""),
        skip_deprecated_logs=convert("ENVOY_SKIP_DEPRECATED_LOGS", _boolean, True),
        enable_core_dump=convert("ISTIO_ENVOY_ENABLE_CORE_DUMP", _boolean, False),
        termination_drain_s=drain if drain >= 0 else None,
        warnings=(),
    )
    for name, (matters, purpose) in NOT_HONOURED.items():
        if matters(variables.get(name, "")):
            warnings.append(f"environment variable {name} is not honoured yet ({purpose})")
    return replace(environment, warnings=tuple(warnings))
