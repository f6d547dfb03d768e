"""The status server: readiness and the request to quit.

It answers until the proxy has ended, also while it drains (readiness is 503 then). The real program closes the port
with the first SIGTERM, which fails the probes of a pod that is only draining.
"""

from collections.abc import Awaitable, Callable, Mapping

from agent import log
from agent.errors import AgentError
from agent.status.http_server import HttpServer, Reply, Request
from agent.status.readiness import Readiness

_log = log.scope()


class StatusServer:
    """Port `statusPort` on all addresses. Paths that change something are for loopback peers only."""

    def __init__(self, readiness: Readiness, quit: Callable[[], None]) -> None:
        """`quit` ends the agent without a drain."""
        self._readiness = readiness
        self._quit = quit
        self._server = HttpServer(self._answer)
        self._routes: Mapping[str, Callable[[Request], Awaitable[Reply]]] = {
            "/healthz/ready": self._ready,
            "/quitquitquit": self._quitquitquit,
        }

    async def start(self, port: int) -> None:
        """Raises AgentError naming the port when it cannot be had."""
        try:
            await self._server.start(port)
        except OSError as error:
            raise AgentError(f"the status server cannot listen on port {port} (statusPort): {error.strerror}") from None

    async def close(self) -> None:
        await self._server.close()

    async def _answer(self, request: Request) -> Reply:
        route = self._routes.get(request.path)
        return Reply(404, b"404 page not found\n") if route is None else await route(request)

    async def _ready(self, _request: Request) -> Reply:
        return Reply(200 if await self._readiness.check() else 503)

    async def _quitquitquit(self, request: Request) -> Reply:
        if not _is_loopback(request.peer):
            return Reply(403, b"only requests from localhost are allowed\n")
        if request.method != "POST":
            return Reply(405, b"only POST is allowed\n")
        _log.info("received /quitquitquit: the proxy ends now, without a drain")
        self._quit()
        return Reply(200, b"OK")


def _is_loopback(peer: str) -> bool:
    return peer == "::1" or peer.startswith("127.")
