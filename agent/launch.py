"""What is started, and from what: program, arguments, configuration file. Nothing happens before `write` is called."""

import contextlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from agent import child_command, custom_config, dns
from agent.bootstrap import clusters, document, template
from agent.bootstrap.facts import Facts, Sockets
from agent.child_command import ChildCommand
from agent.documents import DocumentError, to_json
from agent.errors import ConfigError
from agent.settings import AgentSettings

_PROXY_ID = 1337  # uid and gid that traffic capture leaves alone
_FILE = "envoy-rev.json"
_MAX_BOOTSTRAP = 16 * 1024 * 1024


def _write_nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class Launched:
    """`write` makes `made_files`, which whoever ends the proxy removes. Raises ConfigError. `run_as`: uid and gid."""

    command: ChildCommand | None  # None: DISABLE_ENVOY
    awaits: tuple[str, ...]  # which of cds and lds the proxy will receive
    run_as: int | None  # None = as the agent
    write: Callable[[], None]
    made_files: tuple[str, ...]
    warnings: tuple[str, ...]


def plan(settings: AgentSettings, sockets: Sockets | None = None) -> Launched:
    """Raises AgentError naming the setting that cannot be. `sockets` are looked for unless given."""
    if settings.launch.disable_proxy:
        return Launched(None, (), None, _write_nothing, (), ())
    config, warnings = settings.config, list[str]()
    override, overriding = "", dict[str, Any]()
    if settings.launch.bootstrap_override:
        override, overriding = custom_config.read_override(
            settings.launch.bootstrap_override, settings.identity.host_ip
        )
    run_as = proxy_user(settings)
    write, made_files = _write_nothing, tuple[str, ...]()
    if config.custom_config_file:
        file = config.custom_config_file
        found = custom_config.inspect(file, overriding, warnings)
    else:
        file = os.path.join(config.config_path, _FILE)
        facts = document.facts_of(settings, sockets)
        bootstrap = made_bootstrap(facts)
        warnings += facts.warnings
        found = custom_config.inspect_documents([bootstrap, overriding])
        write, made_files = _writer(file, bootstrap, facts, run_as)
    if found.admin_port not in (None, config.proxy_admin_port):
        which = "customConfigFile" if config.custom_config_file else "the bootstrap"
        warnings.append(
            f"{which} has its admin on port {found.admin_port}, but ProxyConfig proxyAdminPort is "
            f"{config.proxy_admin_port}: readiness and the drain will not reach it"
        )
    command = ChildCommand(
        child_command.program(config.binary_path),
        child_command.arguments(settings, file, override),
        dns.environment(settings, warnings),
    )
    return Launched(command, found.awaits, run_as, write, made_files, tuple(warnings))


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
        name = "ISTIO_BOOTSTRAP" if settings.launch.bootstrap_template else "ProxyConfig proxyBootstrapTemplatePath"
        raise ConfigError(f"{name}: bootstrap template {path!r} does not exist") from None


def proxy_user(settings: AgentSettings) -> int | None:
    """A DNS server on port 53 needs an agent that is root; the proxy is never run as root then."""
    return _PROXY_ID if os.geteuid() == 0 and settings.dns.address.endswith(f":{dns.PRIVILEGED_PORT}") else None


def _writer(
    file: str, bootstrap: Mapping[str, Any], facts: Facts, owner: int | None
) -> tuple[Callable[[], None], tuple[str, ...]]:
    """What writes the files of the configuration directory, and their names."""
    try:
        files = {file: to_json(bootstrap, _MAX_BOOTSTRAP) + "\n"}
    except DocumentError as error:
        raise ConfigError(f"the bootstrap cannot be written: {error}") from None
    token = facts.proxy_config.get("tracing", {}).get("lightstep", {}).get("accessToken")
    if token is not None:
        files[os.path.join(facts.settings.config.config_path, clusters.LIGHTSTEP_TOKEN)] = token

    def write() -> None:
        for path, text in files.items():
            _write_file(path, text, owner)

    return write, tuple(files)


def _write_file(path: str, text: str, owner: int | None) -> None:
    """Whole or not at all, in place of whatever a former container left there. Raises ConfigError naming the path."""
    directory = os.path.dirname(path)
    temporary = os.path.join(directory, f".{os.path.basename(path)}.{os.getpid()}")
    try:
        if not os.path.isdir(directory):
            os.makedirs(directory, 0o700)
            if owner is not None:
                os.chown(directory, owner, owner)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)  # of a former container, whose process had the same number
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "w", encoding="utf-8", errors="replace") as made:
            made.write(text)
            if owner is not None:
                os.fchown(descriptor, owner, owner)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise ConfigError(
            f"ProxyConfig configPath: cannot write {path!r} as uid {os.geteuid()}: {error.strerror}"
        ) from None
