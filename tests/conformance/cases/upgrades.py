"""WebSocket and other upgrades, 100-continue in both modes, interim responses."""

from __future__ import annotations

from tests.conformance.dsl import (
    OK,
    Case,
    bad,
    close,
    connect,
    end,
    get,
    head,
    msg,
    on,
    post,
    recv,
    reply,
    request,
    response,
    send,
    shut,
    signal,
    until,
    wait,
)
from tests.conformance.snippets import BASIC, QUICK_CLOSE, A, bootstrap, http

UPGRADES = bootstrap(
    http(extra=f"{QUICK_CLOSE}\nupgrade_configs: [{{upgrade_type: websocket}}]"),
    http("disabled", extra=f"{QUICK_CLOSE}\nupgrade_configs: [{{upgrade_type: websocket, enabled: false}}]"),
    http("by_route", """
- {match: {path: /off}, route: {cluster: a, upgrade_configs: [{upgrade_type: websocket, enabled: false}]}}
- {match: {path: /other}, route: {cluster: a, upgrade_configs: [{upgrade_type: other}]}}
- {match: {prefix: /}, route: {cluster: a, timeout: 0.2s}}
""", extra=f"{QUICK_CLOSE}\nupgrade_configs: [{{upgrade_type: websocket}}]"),
    http("idle", extra=f"{QUICK_CLOSE}\nstream_idle_timeout: 0.2s\nupgrade_configs: [{{upgrade_type: websocket}}]"),
    A,
)
RELAYED = bootstrap(http(extra=f"{QUICK_CLOSE}\nproxy_100_continue: true"), A)

WANTS = get("/chat", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: abc", "Sec-WebSocket-Version: 13")
SWITCHES = msg("HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade", "X-Up: 1")
OPEN = (head(), send(SWITCHES))
STATS = (
    "http.main.downstream_cx_upgrades_total", "http.main.downstream_rq_1xx", "http.main.downstream_rq_completed",
    "cluster.a.upstream_rq_101", "cluster.a.upstream_rq_1xx", "cluster.a.upstream_rq_completed",
    "cluster.a.upstream_rq_200", "http.main.downstream_rq_4xx", "http.main.downstream_rq_ws_on_non_ws_route",
)  # fmt: skip

EXPECTS = msg("POST /up HTTP/1.1", "Host: x.com", "Expect: 100-continue", "Content-Length: 5")
CONTINUE = msg("HTTP/1.1 100 Continue")
INTERIM = ("cluster.a.upstream_rq_100", "cluster.a.upstream_rq_103", "cluster.a.upstream_rq_1xx",
           "cluster.a.upstream_rq_completed", "cluster.a.upstream_rq_200", "http.main.downstream_rq_1xx",
           "http.main.downstream_rq_completed", "http.main.downstream_rq_2xx")  # fmt: skip

WEBSOCKETS = [
    Case("websocket", UPGRADES, [send(WANTS), head(), send(b"\x81\x02hi"), recv(5), close()],
         [(*OPEN, recv(4), send(b"\x81\x03you"), end())], stats=STATS),
    Case("websocket-upstream-closes", UPGRADES, [send(WANTS), head(), recv(4), end()],
         [(*OPEN, send(b"\x81\x02hi"), close())], stats=STATS),
    Case("websocket-client-half-closes", UPGRADES,
         [send(WANTS), head(), send(b"\x81\x02hi"), wait("got"), shut(), end()],
         [(*OPEN, recv(4), signal("got"), end())], stats=STATS),
    Case("websocket-bytes-right-behind", UPGRADES, [send(WANTS, b"\x81\x02hi"), head(), recv(4), close()],
         [(head(), send(SWITCHES + b"\x81\x02yo"), recv(4), end())], stats=STATS),
    Case("websocket-refused-by-upstream", UPGRADES, [send(WANTS), response(), end()],
         [(head(), send(reply(400, b"no", "x-why: because")), end())], stats=STATS),
    Case("websocket-answered-with-200", UPGRADES, [send(WANTS), response(), end()], [(head(), send(OK), end())],
         stats=STATS),
    Case("websocket-disabled", UPGRADES, [connect("disabled"), *bad(WANTS)]),
    Case("websocket-disabled-by-route", UPGRADES, [connect("by_route"), *bad(WANTS.replace(b"/chat", b"/off"))]),
    Case("upgrade-enabled-by-route", UPGRADES,
         [connect("by_route"), send(get("/other", "Connection: upgrade", "Upgrade: other")), head(), send(b"hi"),
          recv(2), close()],
         [(head(), send(SWITCHES.replace(b"websocket", b"other")), recv(2), send(b"yo"), end())]),
    Case("websocket-other-case", UPGRADES,
         [send(get("/", "connection: keep-alive, upgrade", "upgrade: WebSocket")), head(), close()], [(*OPEN, end())]),
    Case("websocket-outlives-the-route-timeout", UPGRADES,
         [connect("by_route"), send(WANTS), head(), on("other", connect("by_route"), get("/times-out")),
          signal("later"), recv(4), close()],
         [(*OPEN, wait("later"), send(b"\x81\x02hi"), end()), (request(), end())], log=2),
    Case("websocket-idle", UPGRADES, [connect("idle"), send(WANTS), head(), end()], [(*OPEN, end())]),
    Case("websocket-not-answered", UPGRADES, [connect("by_route"), send(WANTS), response(), end()], [(head(), end())]),
    Case("websocket-post", UPGRADES,
         [send(WANTS.replace(b"GET", b"POST")), head(), send(b"hi"), recv(2), close()],
         [(*OPEN, recv(2), send(b"yo"), end())]),
    Case("websocket-with-length", UPGRADES,
         [send(get("/", "Connection: Upgrade", "Upgrade: websocket", "Content-Length: 2") + b"ab"), head(), close()],
         [(*OPEN, end())]),
    Case("unknown-upgrade-on-websocket-listener", UPGRADES, bad(get("/", "Connection: upgrade", "Upgrade: foo"))),
]  # fmt: skip

CONTINUES = [
    Case("continue-by-the-proxy", BASIC, [send(EXPECTS), head(), send(b"hello"), response()], stats=INTERIM),
    Case("continue-with-the-body-at-once", BASIC, [send(EXPECTS, b"hello"), response(), response()], stats=INTERIM),
    Case("continue-without-route", bootstrap(http(routes="- {match: {path: /x}, route: {cluster: a}}"), A),
         [send(EXPECTS), head(), response(), end()]),
    Case("continue-in-capitals", BASIC,
         [send(EXPECTS.replace(b"100-continue", b"100-Continue")), head(), send(b"hello"), response()]),
    Case("continue-relayed", RELAYED, [send(EXPECTS), head(), send(b"hello"), response()],
         [(head(), send(CONTINUE), recv(5), send(OK))], stats=INTERIM),
    Case("continue-relayed-refusal", RELAYED, [send(EXPECTS), response(), end()],
         [(head(), send(reply(417, b"no")), end())], stats=INTERIM),
    Case("continue-relayed-twice", RELAYED, [send(EXPECTS), head(), send(b"hello"), response()],
         [(head(), send(CONTINUE), recv(5), send(CONTINUE + OK))], stats=INTERIM),
    Case("continue-relayed-with-headers", RELAYED, [send(EXPECTS), head(), send(b"hello"), response()],
         [(head(), send(msg("HTTP/1.1 100 Continue", "x-a: b")), recv(5), send(OK))], stats=INTERIM),
    Case("unasked-continue-is-swallowed", BASIC, [post("/", b"hello")], [CONTINUE + OK], stats=INTERIM),
    Case("early-hints-are-swallowed", BASIC, [get("/")], [msg("HTTP/1.1 103 Early Hints", "link: </a>") * 2 + OK],
         stats=INTERIM),
    Case("early-hints-before-the-rest", BASIC, [get("/")],
         [(request(), send(msg("HTTP/1.1 103 Early Hints", "link: </a>")), send(reply(404, b"no")))], stats=INTERIM),
    Case("expect-and-length-zero", BASIC, [send(get("/", "Expect: 100-continue")), until(b"ok")], stats=INTERIM),
]  # fmt: skip

CASES = WEBSOCKETS + CONTINUES
