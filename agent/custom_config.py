"""What the agent must know of the proxy's configuration file. The file itself goes to the proxy untouched."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agent.documents import DocumentError, parse_mapping, read_text, to_json
from agent.errors import ConfigError, reason

# A process argument on Linux holds at most 128 KiB (MAX_ARG_STRLEN); the override travels as one.
MAX_OVERRIDE = 128 * 1024 - 1

# Resources that the proxy subscribes to when the file says so; readiness waits for the first update of each.
_SUBSCRIPTIONS = (("cds", "cds_config", "cdsConfig"), ("lds", "lds_config", "ldsConfig"))


@dataclass(frozen=True, slots=True)
class CustomConfig:
    """`awaits`: which of `cds` and `lds` the proxy will receive; none for a file that is static altogether."""

    awaits: tuple[str, ...]
    admin_port: int | None  # as the file says; None when it does not


def inspect(path: str, override: Mapping[str, Any] | None, warnings: list[str]) -> CustomConfig:
    """Read the file, and the override that the proxy will merge over it.

    A file that is neither YAML nor JSON is left to the proxy to judge, with a warning: readiness then waits for both.
    Raises ConfigError when it cannot be read at all.
    """
    if os.path.isdir(path):
        raise ConfigError(f"ProxyConfig customConfigFile: {path!r} is a directory")
    try:
        documents = [parse_mapping(read_text(path))]
    except OSError as error:
        raise ConfigError(f"ProxyConfig customConfigFile: cannot read {path!r}: {error.strerror}") from None
    except DocumentError as error:
        warnings.append(f"ProxyConfig customConfigFile: {path!r} is not readable as YAML or JSON here: {error}")
        return CustomConfig(("cds", "lds"), None)
    return inspect_documents([*documents, dict(override)] if override else documents)


def inspect_documents(documents: Sequence[Mapping[str, Any]]) -> CustomConfig:
    """The same for documents that have been read; the proxy merges the later over the earlier."""
    awaits = tuple(
        name
        for name, snake, camel in _SUBSCRIPTIONS
        if any(_member(_member(d, "dynamic_resources", "dynamicResources"), snake, camel) for d in documents)
    )
    ports = [_admin_port(document) for document in documents]
    return CustomConfig(awaits, next((port for port in reversed(ports) if port is not None), None))


def read_override(path: str, host_ip: str) -> tuple[str, dict[str, Any]]:
    """ISTIO_BOOTSTRAP_OVERRIDE: a YAML or JSON file that the proxy merges over its configuration.

    Returns it as JSON for --config-yaml ("" when it is empty) and as a document. The literal `$(HOST_IP)` in a string
    stands for the node's address, and is replaced in the JSON only. Raises ConfigError naming the file.
    """
    try:
        document = parse_mapping(read_text(path))
        text = to_json(document, MAX_OVERRIDE) if document else ""
        if host_ip:
            address = f"[{host_ip}]" if ":" in host_ip else host_ip
            address = to_json(address, MAX_OVERRIDE)[1:-1]
            # Whoever put the brackets there already is not to get them twice.
            text = text.replace("[$(HOST_IP)]", address if ":" in host_ip else f"[{address}]")
            text = text.replace("$(HOST_IP)", address)
        if len(text) > MAX_OVERRIDE:
            raise DocumentError(f"larger than {MAX_OVERRIDE} characters as JSON")
        return text, document
    except (OSError, DocumentError) as error:
        raise ConfigError(f"ISTIO_BOOTSTRAP_OVERRIDE: cannot use {path!r}: {reason(error)}") from None


def _admin_port(document: Mapping[str, Any]) -> int | None:
    address = _member(_member(document, "admin", "admin"), "address", "address")
    port = _member(_member(address, "socket_address", "socketAddress"), "port_value", "portValue")
    return port if isinstance(port, int) else None


def _member(message: Any, snake: str, camel: str) -> Any:
    """A field of a message under either of its names; None when the message is none or lacks it."""
    if not isinstance(message, Mapping):
        return None
    return message.get(snake, message.get(camel))
