"""`pilot-agent proxy --explain-config`: every effective setting, its value and where it came from."""

import json
from collections.abc import Iterator
from typing import Any

from agent import terminal
from agent.durations import format_seconds
from agent.effective import FLAGS, LOG_FLAGS
from agent.environment import DEFAULT, duration, variables_of
from agent.settings import GROUPS, AgentSettings

_MAX_VALUE = 400
# A tracer's key. It is not printed, as the log is read by more people than the pod's manifest.
_SECRET = "accessToken"


def rows(settings: AgentSettings) -> Iterator[tuple[str, str, str]]:
    """(name, value as JSON, source): flags, then ProxyConfig, then environment variables group by group."""
    yield "type", shown(settings.options.node_type), "argument"
    for flag, field in LOG_FLAGS.items():
        yield f"--{flag}", shown(getattr(settings.options.logging, field)), settings.origins[f"--{flag}"]
    for flag, field in FLAGS.items():
        yield f"--{flag}", shown(getattr(settings.options, field)), settings.origins[f"--{flag}"]
    yield "domain", shown(settings.domain), "flag" if settings.options.domain else "POD_NAMESPACE"
    yield "addresses", shown(settings.addresses), "INSTANCE_IP and interfaces"
    for name, value in sorted(settings.config.document.items()):
        yield f"ProxyConfig {name}", shown(value), settings.config.sources.get(name, DEFAULT)
    if "concurrency" not in settings.config.document:
        yield "ProxyConfig concurrency", "unset", DEFAULT
    if settings.config.status_port == 0:
        yield "ProxyConfig statusPort", "0", settings.config.sources["statusPort"]
    for group in GROUPS:
        values = getattr(settings, group.__name__.lower())
        for field, variable, _ in variables_of(group):
            value = getattr(values, field)
            if variable.parse is duration and value is not None:
                value = format_seconds(value)
            yield variable.name, shown(value), settings.origins[variable.name]
    for prefix, headers in (("CA_HEADER_", settings.ca_headers), ("XDS_HEADER_", settings.xds_headers)):
        yield from ((f"{prefix}{name}", "...", "environment") for name in headers)  # a token as often as not
    for name, value in settings.node_variables.items():
        if name not in settings.origins:
            yield name, shown(value), "environment (node metadata)"


def render(settings: AgentSettings) -> str:
    """A table of three columns, tab-separated so that `cut` and `column -t -s $'\\t'` work on it; warnings follow."""
    lines = ["\t".join(row) for row in (("SETTING", "VALUE", "SOURCE"), *rows(settings))]
    lines += (f"warning: {warning}" for warning in settings.warnings)
    return "\n".join(lines)


def shown(value: Any, most: int = _MAX_VALUE) -> str:
    """A value as JSON of at most so many characters, without secrets."""
    if value is None:
        return "unset"
    text = json.dumps(_without_secrets(value), ensure_ascii=False)
    text = text.replace("\t", " ").encode(errors="backslashreplace").decode()
    return text if len(text) <= most else f"{text[:most]}..."


def _without_secrets(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: "..." if name == _SECRET else _without_secrets(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_secrets(each) for each in value]
    return value


def print_settings(settings: AgentSettings) -> int:
    terminal.print_line(render(settings))
    return 0
