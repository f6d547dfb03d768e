"""Whether the proxy is ready: what `/healthz/ready` on the status port answers from."""

import asyncio
import json
import os
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any

from agent import log
from agent.admin import Admin, AdminError

_CONFIG_TIMEOUT_S = 1.0
_LIVE_TIMEOUT_S = 3.0
_REPEAT_S = 30.0  # an unchanged reason is logged again after this time
KEPT_S = 0.05  # a "not ready" is the answer for this long: however many ask, the proxy is asked 20 times a second
_MAX_BOOTSTRAP = 1024 * 1024

_STATE = "server.state"
_WORKERS = "listener_manager.workers_started"
_STATES = ("LIVE", "DRAINING", "PRE_INITIALIZING", "INITIALIZING")
_LIVE = 0

# Resource type -> statistics that tell of its updates.
_UPDATES = {"cds": "cluster_manager.cds", "lds": "listener_manager.lds"}
_PLUGIN = "file_watcher"
_PEM_FILES = ("certificate_file", "private_key_file", "ca_certificate_file")

_log = log.scope()


class NotReady(Exception):
    """The proxy is not ready; the text says why."""


class Readiness:
    """The checks in their order; each passes once and for all, as in the real program: a proxy that has taken its
    configuration and started its workers stays ready although its control plane goes away. From `shut_down` on the
    answer is no.

    1. Configuration: cds and lds have had an update that was accepted.
    2. The proxy is live and its workers have started.
    3. The gRPC bootstrap can be read, and the certificate files that it names exist.
    4. With DNS capture: a name table has arrived.
    """

    def __init__(
        self,
        admin: Admin,
        awaits: Collection[str],
        started_at: float,
        *,
        grpc_bootstrap: str = "",
        awaits_name_table: bool = False,
        proxyless: bool = False,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`awaits`: which of cds and lds must have had an update. `started_at`: the agent's start, time.monotonic.
        `grpc_bootstrap`: path, "" = no check 3. Without `awaits_name_table` there is no check 4.
        `proxyless` (DISABLE_ENVOY): there is no proxy for checks 1 and 2.
        """
        self._admin = admin
        self._awaits = tuple(awaits)
        self._started_at = started_at
        self._grpc_bootstrap = grpc_bootstrap
        self._awaits_name_table = awaits_name_table
        self._now = now
        self._config_seen = proxyless or not self._awaits
        self._live = proxyless
        self._ready_after_s: float | None = None
        self._shutting_down = False
        self._checking: asyncio.Task[str] | None = None
        self._failed_at = float("-inf")
        self._logged = ("", 0.0)

    @property
    def was_ready(self) -> bool:
        """Whether all checks have passed once."""
        return self._ready_after_s is not None

    @property
    def ready_after_s(self) -> float | None:
        """Seconds from the agent's start to the first success (Istio: istio_agent_startup_duration_seconds)."""
        return self._ready_after_s

    def shut_down(self) -> None:
        self._shutting_down = True

    async def check(self) -> bool:
        """Whether the proxy is ready now. Failures are logged with their reason, the first success too."""
        if self._shutting_down:
            return False
        if self.was_ready:
            return True
        if self._checking is None and self._now() - self._failed_at < KEPT_S:
            return False
        # One check at a time however many ask, so that a flood of probes is not passed on to the admin port.
        if self._checking is None:
            loop = asyncio.get_running_loop()
            self._checking = loop.create_task(self._check(), name="readiness")
            self._checking.add_done_callback(self._checked)
        why = await asyncio.shield(self._checking)
        return not why and not self._shutting_down

    async def close(self) -> None:
        """Stop a check that is under way."""
        if self._checking is not None:
            self._checking.cancel()
            await asyncio.wait({self._checking})

    def _checked(self, task: "asyncio.Task[str]") -> None:
        self._checking = None
        if task.cancelled() or self._shutting_down:
            return  # nobody is told "ready" any more
        why, now = task.result(), self._now()
        if not why:
            self._ready_after_s = now - self._started_at
            _log.info(f"Readiness succeeded in {self._ready_after_s:.3f}s")
            _log.info("Envoy proxy is ready")
            return
        self._failed_at = now
        if why != self._logged[0] or now - self._logged[1] >= _REPEAT_S:
            self._logged = (why, now)
            _log.warn(f"Envoy proxy is NOT ready: {why}")

    async def _check(self) -> str:
        try:
            if not self._config_seen:
                await self._check_config()
                self._config_seen = True
            if not self._live:
                await self._check_live()
                self._live = True
            if self._grpc_bootstrap:
                _check_grpc_bootstrap(self._grpc_bootstrap)
            if self._awaits_name_table:
                await self._check_name_table()
        except (NotReady, AdminError) as error:
            return str(error)
        return ""

    async def _check_config(self) -> None:
        names = [_UPDATES[kind] for kind in self._awaits]
        pattern = rf"^({'|'.join(name.replace('.', '[.]') for name in names)})[.]update_(success|rejected)$"
        stats = await self._admin.stats(pattern, _CONFIG_TIMEOUT_S)
        accepted = {kind: stats.get(f"{_UPDATES[kind]}.update_success", 0) for kind in self._awaits}
        rejected = {kind: stats.get(f"{_UPDATES[kind]}.update_rejected", 0) for kind in self._awaits}
        if all(accepted.values()):
            return
        counts = "; ".join(
            f"{kind} updates: {accepted[kind]} successful, {rejected[kind]} rejected" for kind in self._awaits
        )
        if any(rejected.values()):
            what = "config received from XDS server, but was rejected"
        elif any(accepted.values()):
            what = "config not fully received from XDS server"
        else:
            what = "config not received from XDS server (is Istiod running?)"
        raise NotReady(f"{what}: {counts}")

    async def _check_live(self) -> None:
        pattern = rf"^({_STATE}|{_WORKERS})$".replace(".", "[.]")
        stats = await self._admin.stats(pattern, _LIVE_TIMEOUT_S)
        if _STATE not in stats or _WORKERS not in stats:
            # The file's stats_config leaves them out: `/ready` tells the same state without them.
            if not await self._admin.is_live(_LIVE_TIMEOUT_S):
                raise NotReady("its admin port does not answer /ready with 200")
        elif stats[_STATE] != _LIVE:
            number = stats[_STATE]
            raise NotReady(f"server is not live, current state is: {_STATES[number] if number < 4 else number}")
        elif stats[_WORKERS] != 1:
            raise NotReady("workers have not yet started")

    async def _check_name_table(self) -> None:
        names = await self._admin.name_table(_CONFIG_TIMEOUT_S)
        if names is None:
            raise NotReady("DNS is to be served, but this proxy has no DNS (its admin port has no /dns)")
        if not names:
            raise NotReady("DNS lookup table is not ready yet")
        self._awaits_name_table = False


def _check_grpc_bootstrap(path: str) -> None:
    """Raises NotReady: the file cannot be read, or a PEM file of a certificate provider in it does not exist."""
    try:
        with open(path, "rb") as file:
            document = json.loads(file.read(_MAX_BOOTSTRAP))
    except OSError as error:
        raise NotReady(f"gRPC bootstrap {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise NotReady(f"gRPC bootstrap {path} is not JSON: {error}") from None
    for provider, name, file_name in _provider_files(document):
        if not os.path.exists(file_name):
            raise NotReady(f"gRPC bootstrap {path}: certificate provider {provider}: {name} {file_name} does not exist")


def _provider_files(document: Any) -> Iterator[tuple[str, str, str]]:
    """Provider, name of the field and PEM file of every file-watching certificate provider."""
    for provider, entry in _object(document, "certificate_providers").items():
        if isinstance(entry, dict) and entry.get("plugin_name") == _PLUGIN:
            config = _object(entry, "config")
            yield from ((str(provider), name, config[name]) for name in _PEM_FILES if isinstance(config.get(name), str))


def _object(document: Any, field: str) -> dict[str, Any]:
    value = document.get(field) if isinstance(document, dict) else None
    return value if isinstance(value, dict) else {}
