"""What is started, and from what: program, arguments, configuration file. Nothing happens before `write` is called."""

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agent import child_command, custom_config, dns
from agent.bootstrap import clusters, document, grpc, template
from agent.bootstrap.facts import Facts, Sockets
from agent.child_command import ChildCommand
from agent.documents import DocumentError, to_json
from agent.environment import DEFAULT
from agent.errors import ConfigError, reason
from agent.settings import AgentSettings

_PROXY_ID = 1337  # uid and gid that traffic capture leaves alone
_FILE = "envoy-rev.json"
_MAX_BOOTSTRAP = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Launched:
    """`write` makes `made_files`, which whoever ends the proxy removes. Raises ConfigError. `run_as`: uid and gid."""

    command: ChildCommand | None  # None: DISABLE_ENVOY
    awaits: tuple[str, ...]  # which of cds and lds the proxy will receive
    run_as: int | None  # None = as the agent
    write: Callable[[], None]
    made_files: tuple[str, ...]
    warnings: tuple[str, ...]
    grpc_bootstrap: str  # path of the file for proxyless gRPC, "" = none. `write` makes it; it stays


def plan(settings: AgentSettings, sockets: Sockets | None = None) -> Launched:
    """Raises AgentError naming the setting that cannot be. `sockets` are looked for unless given."""
    config, warnings = settings.config, list[str]()
    proxyless, custom = settings.launch.disable_proxy, config.custom_config_file
    run_as = None if proxyless else proxy_user(settings)
    grpc_file = grpc_bootstrap_file(settings)
    files: list[_File] = []
    if grpc_file or not (proxyless or custom):
        facts = document.facts_of(settings, sockets)
        warnings = facts.warnings
    if grpc_file:
        files.append(_File(grpc_file, _json("GRPC_XDS_BOOTSTRAP", grpc.bootstrap(facts)), "GRPC_XDS_BOOTSTRAP", 0o644))
    if proxyless:
        return Launched(None, (), None, _writer(files, run_as), (), tuple(dict.fromkeys(warnings)), grpc_file)

    override, overriding = "", dict[str, Any]()
    if settings.launch.bootstrap_override:
        override, overriding = custom_config.read_override(
            settings.launch.bootstrap_override, settings.identity.host_ip
        )
    own: list[_File] = []
    if custom:
        file = custom
        found = custom_config.inspect(file, overriding, warnings)
    else:
        file = os.path.join(config.config_path, _FILE)
        bootstrap = made_bootstrap(facts)
        found = custom_config.inspect_documents([bootstrap, overriding])
        own = _own_files(file, bootstrap, facts)
    if found.admin_port not in (None, config.proxy_admin_port):
        which = "customConfigFile" if custom else "the bootstrap"
        warnings.append(
            f"{which} has its admin on port {found.admin_port}, but ProxyConfig proxyAdminPort is "
            f"{config.proxy_admin_port}: readiness and the drain will not reach it"
        )
    command = ChildCommand(
        child_command.program(config.binary_path),
        child_command.arguments(settings, file, override),
        {**child_command.environment(settings), **dns.environment(settings, warnings)},
    )
    return Launched(
        command,
        found.awaits,
        run_as,
        _writer([*files, *own], run_as),
        tuple(each.path for each in own),
        tuple(dict.fromkeys(warnings)),
        grpc_file,
    )


def grpc_bootstrap_file(settings: AgentSettings) -> str:
    """Where the bootstrap of proxyless gRPC goes; "" = nowhere.

    It has a default, so a pod always has the file. Elsewhere nobody wants it: unless it was asked for, its
    directory must be there already, or be made for the proxy's own bootstrap anyway.
    """
    path = settings.xds.grpc_bootstrap
    if not path or settings.origins["GRPC_XDS_BOOTSTRAP"] != DEFAULT:
        return path
    directory = os.path.dirname(path)
    config = settings.config
    made_anyway = not (settings.launch.disable_proxy or config.custom_config_file)
    if made_anyway and os.path.abspath(directory) == os.path.abspath(config.config_path):
        return path
    return path if os.path.isdir(directory) and os.access(directory, os.W_OK | os.X_OK) else ""


def made_bootstrap(facts: Facts) -> dict[str, Any]:
    """The bootstrap, through the operator's template if there is one. Raises ConfigError."""
    settings = facts.settings
    built_in = document.bootstrap(facts)
    path = settings.launch.bootstrap_template or settings.config.bootstrap_template
    if not path:
        return built_in
    try:
        return template.apply(path, {"bootstrap": built_in, "config": settings.config.document})
    except FileNotFoundError:
        if path in template.STANDARD:
            return built_in
        source = settings.config.sources.get("proxyBootstrapTemplatePath", "")
        name = (
            "ISTIO_BOOTSTRAP"
            if settings.launch.bootstrap_template
            else f"ProxyConfig proxyBootstrapTemplatePath ({source})"
        )
        raise ConfigError(f"{name}: bootstrap template {path!r} does not exist") from None


def proxy_user(settings: AgentSettings) -> int | None:
    """A DNS server on port 53 needs an agent that is root; the proxy is never run as root then."""
    return _PROXY_ID if os.geteuid() == 0 and settings.dns.address.endswith(f":{dns.PRIVILEGED_PORT}") else None


@dataclass(frozen=True, slots=True)
class _File:
    path: str
    text: str
    setting: str  # that says where
    mode: int = 0o600


def _json(what: str, made: Mapping[str, Any]) -> str:
    try:
        return to_json(made, _MAX_BOOTSTRAP) + "\n"
    except DocumentError as error:
        raise ConfigError(f"{what}: cannot be written: {error}") from None


def _own_files(file: str, bootstrap: Mapping[str, Any], facts: Facts) -> list[_File]:
    """The proxy's files in the configuration directory."""
    files = [_File(file, _json("the bootstrap", bootstrap), "ProxyConfig configPath")]
    token = facts.proxy_config.get("tracing", {}).get("lightstep", {}).get("accessToken")
    if token is not None:
        path = os.path.join(facts.settings.config.config_path, clusters.LIGHTSTEP_TOKEN)
        files.append(_File(path, token, "ProxyConfig configPath"))
    return files


def _writer(files: Sequence[_File], owner: int | None) -> Callable[[], None]:
    def write() -> None:
        for file in files:
            _write_file(file, owner)

    return write


def _write_file(file: _File, owner: int | None) -> None:
    """Whole or not at all, in place of whatever a former container left there. Raises ConfigError naming the path."""
    path = file.path
    directory = os.path.dirname(path)
    temporary = os.path.join(directory, f".{os.path.basename(path)}.{os.getpid()}")
    try:
        if directory and not os.path.isdir(directory):
            os.makedirs(directory, 0o700)
            if owner is not None:
                os.chown(directory, owner, owner)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)  # of a former container, whose process had the same number
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.fchmod(descriptor, file.mode)
        with open(descriptor, "w", encoding="utf-8", errors="replace") as made:
            made.write(file.text)
            if owner is not None:
                os.fchown(descriptor, owner, owner)
        os.replace(temporary, path)
    except (OSError, ValueError) as error:  # ValueError: no file can have such a name
        with contextlib.suppress(OSError, ValueError):
            os.unlink(temporary)
        raise ConfigError(f"{file.setting}: cannot write {path!r} as uid {os.geteuid()}: {reason(error)}") from None
