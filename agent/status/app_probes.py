"""/app-health and /app-lifecycle: probes and lifecycle hooks of the application, which the injector points at the
status port because kubelet has no certificate of the mesh (Istio: ISTIO_KUBE_APP_PROBERS).
"""

import asyncio
import time
from collections.abc import Callable, Mapping

from agent import log
from agent.http.exchange import HttpError
from agent.http.redirect import Place
from agent.status.http_server import Reply, Request
from agent.status.probe_documents import AppProbe, Grpc, HttpGet
from agent.status.prober import Prober, literal

PREFIXES = ("/app-health/", "/app-lifecycle/")
LONGEST_S = 3600.0  # for probes without a limit: longer than any sensible grace period
MAX_AT_ONCE = 8  # of one probe: kubelet runs one at a time, so more come from somebody else
_REPEAT_S = 30.0

# Hop-by-hop, or about a body that is not passed on. Everything else that kubelet sends reaches the application.
_NOT_COPIED = {
    "host", "connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
    "content-length", "expect",
}  # fmt: skip

_log = log.scope("probes")


class AppProbes:
    """Answers requests for the configured paths with what the application says."""

    def __init__(
        self,
        probes: Mapping[str, AppProbe],
        prober: Prober,
        *,
        host: str,
        status_port: Callable[[], int],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`host`: where the application listens, an address, `localhost` or "" (both: this host)."""
        self._probes = probes
        self._prober = prober
        self._host = host
        self._status_port = status_port
        self._now = now
        self._running: dict[str, int] = {}
        self._logged: dict[str, tuple[str, float]] = {}

    async def answer(self, request: Request) -> Reply:
        """200 or 500 for TCP and gRPC; for HTTP the application's status and the beginning of its body, 500 when there
        is no response, 200 in place of a redirect to elsewhere. 400 for a path that no probe has.
        """
        probe = self._probes.get(request.path)
        if probe is None:
            return Reply(400, b"no probe is configured for this path\n")
        if self._running.get(request.path, 0) >= MAX_AT_ONCE:
            return Reply(503, b"this probe is running too many times\n")
        self._running[request.path] = self._running.get(request.path, 0) + 1
        try:
            async with asyncio.timeout(probe.timeout_s or LONGEST_S):
                reply, complaint = await self._run(probe, request)
        except HttpError as error:
            reply, complaint = Reply(500), str(error)
        except TimeoutError:
            reply, complaint = Reply(500), f"no answer within {probe.timeout_s or LONGEST_S:g}s"
        finally:
            self._running[request.path] -= 1
        self._note(request.path, complaint)
        return reply

    async def _run(self, probe: AppProbe, request: Request) -> tuple[Reply, str]:
        action = probe.action
        if isinstance(action, HttpGet):
            return await self._get(action, request)
        if isinstance(action, Grpc):
            complaint = await self._prober.grpc(self._host, action.port, action.service, request.header("user-agent"))
            return Reply(500 if complaint else 200), complaint
        await self._prober.connect(self._host, action.port)
        return Reply(200), ""

    async def _get(self, action: HttpGet, request: Request) -> tuple[Reply, str]:
        host = host_header(request.header("host"), self._status_port(), action.port)
        place = Place(
            action.tls,
            self._host or "localhost",
            action.port,
            action.path,
            host or f"{literal(self._host or 'localhost')}:{action.port}",
        )
        response = await self._prober.get(request.path, place, copied_headers(request))
        if 300 <= response.status < 400:
            return Reply(200), ""  # a 3xx without a Location would be a broken response
        body = b"" if response.status in (204, 205) else response.body
        complaint = f"status {response.status}" if response.status >= 400 else ""
        return Reply(response.status, body), complaint

    def _note(self, path: str, complaint: str) -> None:
        """Log a failure when it is new, or again after _REPEAT_S."""
        if not complaint:
            if self._logged.pop(path, None) is not None:
                _log.info(f"probe {path} succeeds again")
            return
        before, at = self._logged.get(path, ("", 0.0))
        if complaint != before or self._now() - at >= _REPEAT_S:
            self._logged[path] = (complaint, self._now())
            _log.error(f"probe {path} failed: {complaint}")


def host_header(host: str, status_port: int, app_port: int) -> str:
    """The Host header for the application: the one that came, with its port in place of the status port."""
    name, colon, port = host.rpartition(":")
    return f"{name}:{app_port}" if colon and port == str(status_port) else host


def copied_headers(request: Request) -> list[tuple[str, str]]:
    """The headers of `request` that the application gets."""
    named = {name.strip() for name in request.header("connection").lower().split(",")}
    return [(name, value) for name, value in request.headers if name not in _NOT_COPIED and name not in named]
