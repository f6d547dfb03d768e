"""Draining: what a client notices of /healthcheck/fail and /drain_listeners."""

from __future__ import annotations

from tests.conformance.dsl import OK, Case, admin, bad, connect, end, get, on, request, response, send, signal, wait
from tests.conformance.snippets import QUICK_CLOSE, A, bootstrap, chain, hcm, http, listener

DRAIN_TIMEOUT = f"{QUICK_CLOSE}\ndrain_timeout: 0.2s"
LISTENERS = (
    http(extra=DRAIN_TIMEOUT),
    listener("inbound", chain(hcm(prefix="inbound", extra=DRAIN_TIMEOUT)), extra="traffic_direction: INBOUND"),
    listener("modify_only", chain(hcm(prefix="modify_only", extra=DRAIN_TIMEOUT)), extra="drain_type: MODIFY_ONLY"),
    A,
)
FAIL_CHECK = bootstrap(*LISTENERS)
STOP = bootstrap(*LISTENERS, extra="# stopped for good\n")
STOP_INBOUND = bootstrap(*LISTENERS, extra="# inbound stopped for good\n")
GRACEFUL = bootstrap(*LISTENERS, flags=("--drain-time-s", "1", "--drain-strategy", "immediate"))
SKIP_EXIT = bootstrap(*LISTENERS, extra="# keeps accepting\n", flags=("--drain-strategy", "immediate"))

FAIL, HEALTHY = admin("POST", "/healthcheck/fail"), admin("POST", "/healthcheck/ok")
READY = admin("GET", "/ready")


def counted(prefix: str) -> tuple[str, ...]:
    """Statistics of a connection manager that drains."""
    return tuple(f"http.{prefix}.{name}" for name in (
        "downstream_cx_drain_close", "downstream_cx_destroy_local", "downstream_rq_2xx",
        "downstream_cx_delayed_close_timeout",
    ))  # fmt: skip



CASES = [
    Case("failed-health-check-closes", FAIL_CHECK,
         [READY, get("/1"), FAIL, READY, get("/2"), end(), HEALTHY, READY], log=2, stats=counted("main")),
    Case("failed-health-check-still-serves", FAIL_CHECK, [FAIL, get("/1"), get("/2"), end(), HEALTHY], log=2,
         stats=counted("main")),
    Case("failed-health-check-during-a-request", FAIL_CHECK,
         [send(get("/1")), wait("held"), FAIL, signal("go"), response(), end(), HEALTHY],
         [(request(), signal("held"), wait("go"), send(OK))], stats=counted("main")),
    Case("failed-health-check-local-reply", FAIL_CHECK, [FAIL, *bad(b"NONSENSE\r\n\r\n"), HEALTHY],
         stats=counted("main")),
    Case("failed-health-check-modify-only", FAIL_CHECK,
         [connect("modify_only"), FAIL, get("/1"), get("/2"), HEALTHY, get("/3")], log=3, stats=counted("modify_only")),
    Case("failed-health-check-idle-connection", FAIL_CHECK,
         [get("/1"), FAIL, HEALTHY, get("/2")], log=2, stats=counted("main")),
    Case("failed-health-check-client-closes", FAIL_CHECK, [FAIL, get("/", "Connection: close"), end(), HEALTHY],
         stats=counted("main")),
    Case("drain-listeners", STOP, [get("/1"), admin("POST", "/drain_listeners"), READY, get("/2")], log=2,
         stats=(*counted("main"), "listener_manager.listener_stopped")),
    Case("drain-inbound-listeners", STOP_INBOUND,
         [on("in", connect("inbound"), get("/1")), admin("POST", "/drain_listeners?inboundonly"), get("/2"),
          on("in", get("/3"))], log=3, stats=(*counted("inbound"), "listener_manager.listener_stopped")),
    Case("drain-gracefully", GRACEFUL, [admin("POST", "/drain_listeners?graceful"), get("/1"), end()],
         stats=counted("main")),
    Case("drain-skip-exit", SKIP_EXIT,
         [admin("POST", "/drain_listeners?graceful&skip_exit"), get("/1"), end(), connect(), get("/2"), end()], log=2,
         stats=(*counted("main"), "listener_manager.listener_stopped")),
    Case("drain-skip-exit-needs-graceful", SKIP_EXIT, [admin("POST", "/drain_listeners?skip_exit")], log=0),
]  # fmt: skip
