"""The status server (15020): readiness, merged metrics, the application's probes, and what changes the proxy's life.

It answers until the proxy has ended, also while it drains (readiness is 503 then). The real program closes the port
with the first SIGTERM, which fails the probes of a pod that is only draining.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from agent import log
from agent.errors import AgentError
from agent.metrics.annotations import parse_targets
from agent.metrics.own import OwnMetrics
from agent.metrics.page import TIMEOUT_HEADER, Ask, Busy, MetricsPage
from agent.status.app_probes import PREFIXES, AppProbes
from agent.status.debug import DebugPages
from agent.status.http_server import HttpServer, Reply, Request
from agent.status.options import StatusOptions
from agent.status.probe_documents import parse_app_probers
from agent.status.prober import Prober
from agent.status.readiness import Readiness

_SIDECAR = "sidecar"

_log = log.scope()

_Answer = Callable[[Request], Awaitable[Reply]]


def _not_draining() -> Mapping[str, object]:
    return {"draining": False}


@dataclass(frozen=True, slots=True)
class Hooks:
    """What the status server asks of whoever supervises the proxy."""

    quit: Callable[[], None]  # POST /quitquitquit: end without a drain
    drain: Callable[[], Awaitable[None]]  # POST /drain: back when the proxy has begun; AgentError when it could not
    drain_report: Callable[[], Mapping[str, object]] = _not_draining  # GET /debug/drain, as JSON
    name_table: Callable[[], str | None] | None = None  # GET /debug/ndsz: JSON text


class StatusServer:
    """Port `statusPort` on all addresses. Paths that change or tell something are for loopback peers only."""

    def __init__(self, options: StatusOptions, readiness: Readiness, hooks: Hooks) -> None:
        """Raises ConfigError for ISTIO_KUBE_APP_PROBERS and ISTIO_PROMETHEUS_ANNOTATIONS."""
        self._options = options
        self._readiness = readiness
        self._hooks = hooks
        self.metrics = OwnMetrics()
        self.metrics.watch(
            "startup_duration_seconds",
            "The time from the agent's start to its being marked ready.",
            lambda: readiness.ready_after_s,
        )
        self._server = HttpServer(self._answer)
        self._prober = Prober(keepalive=options.probe_keepalive, http2=options.http2_probing)
        self._probes = AppProbes(
            parse_app_probers(options.app_probers),
            self._prober,
            host="localhost" if options.legacy_localhost else options.instance_ip,
            status_port=lambda: options.port or self.port,
        )
        targets = parse_targets(options.prometheus_annotations, options.port) if options.node_type == _SIDECAR else ()
        self._page = MetricsPage(
            self.metrics,
            proxy_port=options.prometheus_port if options.merge_proxy_stats else None,
            targets=targets,
        )
        self._debug = DebugPages(
            profiling=options.profiling, drain_report=hooks.drain_report, name_table=hooks.name_table
        )
        self._routes: Mapping[str, _Answer] = {
            "/healthz/ready": self._ready,
            "/stats/prometheus": self._metrics,
            "/metrics": self._metrics,
            "/quitquitquit": self._quitquitquit,
            "/drain": self._drain,
        }

    async def start(self) -> None:
        """Raises AgentError naming the port when it cannot be had."""
        port = self._options.port
        _log.info(f"Opening status port {port}")
        try:
            await self._server.start(port)
        except OSError as error:
            raise AgentError(f"the status server cannot listen on port {port} (statusPort): {error.strerror}") from None

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self._server.port

    async def close(self) -> None:
        """Answers that are under way get a few seconds to leave."""
        await self._server.close()
        self._prober.close()

    async def _answer(self, request: Request) -> Reply:
        route = self._routes.get(request.path)
        if route is not None:
            return await route(request)
        if request.path.startswith(PREFIXES):
            return await self._probes.answer(request)
        if request.path.startswith("/debug/"):
            return await self._debug.answer(request) if request.from_loopback else _local_only()
        return Reply(404, b"404 page not found\n")

    async def _ready(self, _request: Request) -> Reply:
        return Reply(200 if await self._readiness.check() else 503)

    async def _metrics(self, request: Request) -> Reply:
        if self._options.metrics_localhost_only and not request.from_loopback:
            return Reply(403, b"only requests from localhost are allowed (METRICS_LOCALHOST_ACCESS_ONLY)\n")
        ask = Ask(
            request.query,
            request.header("accept"),
            request.header("user-agent"),
            request.header(TIMEOUT_HEADER),
        )
        try:
            page = await self._page.page(ask)
        except Busy as error:
            return Reply(503, f"{error}\n".encode())
        return Reply(200, page.body, page.content_type)

    async def _quitquitquit(self, request: Request) -> Reply:
        refused = _refused(request)
        if refused is not None:
            return refused
        _log.info("received /quitquitquit: the proxy ends now, without a drain")
        self._hooks.quit()
        return Reply(200, b"OK")

    async def _drain(self, request: Request) -> Reply:
        refused = _refused(request)
        if refused is not None:
            return refused
        _log.info("received /drain: the proxy is to drain")
        try:
            await self._hooks.drain()
        except AgentError as error:
            _log.error(f"/drain: {error}")
            return Reply(503, f"the drain could not be started: {error}\n".encode())
        return Reply(200, b"OK")


def _local_only() -> Reply:
    return Reply(403, b"only requests from localhost are allowed\n")


def _refused(request: Request) -> Reply | None:
    if not request.from_loopback:
        return _local_only()
    if request.method != "POST":
        return Reply(405, b"only POST is allowed\n", headers={"allow": "POST"})
    return None
