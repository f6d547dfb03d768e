"""What the agent makes of the answers of the proxy's admin port, good ones and others."""

import asyncio
import json
from typing import Any

import pytest

from agent import admin as module
from agent.admin import Admin, AdminError
from agent.http.exchange import HttpError, Response
from agent.lifecycle.connections import Holder


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Target -> body, status with body, or an error. What was asked stands under "asked"."""
    table: dict[str, Any] = {"asked": []}

    async def request(method: str, hosts: Any, port: int, target: str, *, timeout_s: float, max_body: int) -> Response:
        table["asked"].append(f"{method} {target}")
        answer = table[target]
        if isinstance(answer, Exception):
            raise answer
        status, body = answer if isinstance(answer, tuple) else (200, answer)
        return Response(status, body.encode() if isinstance(body, str) else body)

    monkeypatch.setattr(module, "request", request)
    return table


def ask(name: str, *arguments: Any, **named: Any) -> Any:
    return asyncio.run(getattr(Admin(["127.0.0.1"], 15000), name)(*arguments, **named))


CONNECTIONS = "/connections?format=json&limit=100"
ROW = {
    "listener": "virtualInbound", "direction": "INBOUND", "peer": "10.0.0.9:5", "local": "10.0.0.1:80", "age": 1.5,
    "requests": 3, "active": 1,
}  # fmt: skip


def test_statistics(answers: dict[str, Any]) -> None:
    answers["/stats?usedonly&filter=x"] = (
        "server.state: 0\nlistener.[__]_80.downstream_cx_active: 7\nno number: x\nhistogram: P0(1,1)\n\n: 5\n"
        f"large: {'9' * 30}\nbad \xff: 1\nnegative: -1\n"
    ).encode("latin-1") + "square: \N{SUPERSCRIPT TWO}\n".encode()
    found = ask("stats", "x", 1.0)
    assert found["server.state"] == 0
    assert found["listener.[__]_80.downstream_cx_active"] == 7
    assert found.keys() - {"", "large", "bad \N{REPLACEMENT CHARACTER}"} == {
        "server.state", "listener.[__]_80.downstream_cx_active",
    }  # fmt: skip


def test_who_is_connected(answers: dict[str, Any]) -> None:
    answers[CONNECTIONS] = json.dumps({"total": 1, "connections": [ROW]})
    assert ask("connections", 1.0) == (
        Holder("virtualInbound", "INBOUND", "10.0.0.9:5", "10.0.0.1:80", 1.5, 3, 1),
    )  # fmt: skip
    answers[CONNECTIONS] = (404, "invalid path. admin commands are:")  # Envoy
    assert ask("connections", 1.0) is None


@pytest.mark.parametrize(
    "body",
    ["", "no json", "[]", "{}", '{"connections": 5}', '{"connections": [{}]}', '{"connections": [5]}', "[" * 100_000,
     json.dumps({"connections": [{**ROW, "age": "x"}]}), b"\xff\xfe",
     json.dumps({"connections": [{**ROW, "age": float("nan")}]}),
     json.dumps({"connections": [{**ROW, "requests": float("inf")}]})],
)  # fmt: skip
def test_nonsense_is_an_error_that_says_so(answers: dict[str, Any], body: str | bytes) -> None:
    answers[CONNECTIONS] = body
    with pytest.raises(AdminError, match="GET /connections on admin port 15000: unexpected answer"):
        ask("connections", 1.0)
    answers["/config_dump?resource=static_listeners"] = body
    answers["/config_dump?resource=dynamic_listeners"] = "{}"
    if body not in ("{}",) and b"connections" not in (body if isinstance(body, bytes) else body.encode()):
        with pytest.raises(AdminError, match="GET /config_dump on admin port 15000: unexpected answer"):
            ask("listener_directions", 1.0)


def test_answers_are_bounded_and_of_the_types_that_are_expected(answers: dict[str, Any]) -> None:
    answers[CONNECTIONS] = json.dumps({"connections": [{**ROW, "peer": "p" * 100_000, "direction": 5}] * 200})
    found = ask("connections", 1.0)
    assert len(found) == 100
    assert found[0].peer == "p" * 256 and found[0].direction == "5"
    address = {"socket_address": {"address": "::", "port_value": 80}}
    for resource in ("static", "dynamic"):
        answers[f"/config_dump?resource={resource}_listeners"] = json.dumps(
            {"configs": [{"listener": {"address": address, "traffic_direction": 7}}]}
        )
    assert ask("listener_directions", 1.0) == {"[__]_80": "7"}


def test_directions_by_the_names_of_statistics(answers: dict[str, Any]) -> None:
    """As Envoy dumps them: static ones, and dynamic ones in each of their states."""

    def listener(host: str, port: int, **more: Any) -> dict[str, Any]:
        return {"name": "n", "address": {"socket_address": {"address": host, "port_value": port}}, **more}

    answers["/config_dump?resource=static_listeners"] = json.dumps(
        {"configs": [{"listener": listener("0.0.0.0", 15021)}, {"listener": {"name": "internal", "address": {}}}]}
    )
    answers["/config_dump?resource=dynamic_listeners"] = json.dumps(
        {"configs": [
            {"name": "a", "active_state": {"listener": listener("0.0.0.0", 15006, traffic_direction="INBOUND")}},
            {"name": "b", "warming_state": {"listener": listener("::", 80, traffic_direction="OUTBOUND")}},
            {"name": "c", "draining_state": {
                "listener": listener("::1", 1, stat_prefix="p", traffic_direction="INBOUND")}},
            {"name": "d", "error_state": {"details": "x"}},
        ]}
    )  # fmt: skip
    assert ask("listener_directions", 1.0) == {
        "0.0.0.0_15021": "UNSPECIFIED", "0.0.0.0_15006": "INBOUND", "[__]_80": "OUTBOUND", "p": "INBOUND",
    }  # fmt: skip


def test_requests_that_change_something(answers: dict[str, Any]) -> None:
    targets = ["/drain_listeners?inboundonly&graceful", "/drain_listeners?graceful&skip_exit", "/quitquitquit"]
    answers.update(dict.fromkeys(targets, "OK\n"))
    ask("drain_listeners", inbound_only=True, timeout_s=1.0)
    ask("drain_listeners", inbound_only=False, skip_exit=True, timeout_s=1.0)
    ask("quit", 1.0)
    assert answers["asked"] == [f"POST {target}" for target in targets]


def test_failures_name_what_was_asked(answers: dict[str, Any]) -> None:
    answers["/quitquitquit"] = HttpError("no answer within 1s")
    with pytest.raises(AdminError, match="^POST /quitquitquit on admin port 15000: no answer within 1s$"):
        ask("quit", 1.0)
    answers["/quitquitquit"] = (503, "x" * 1000)
    with pytest.raises(AdminError, match="^POST /quitquitquit on admin port 15000: status 503: x{200}$"):
        ask("quit", 1.0)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ('{"table": {"loaded": true}}', True),
        ('{"table": {"loaded": false}}', False),
        ((404, "invalid path"), None),
    ],
)
def test_name_table(answers: dict[str, Any], answer: Any, expected: bool | None) -> None:
    answers["/dns?format=json"] = answer
    assert ask("name_table", 1.0) is expected


def test_a_name_table_that_is_nonsense(answers: dict[str, Any]) -> None:
    answers["/dns?format=json"] = "[]"
    with pytest.raises(AdminError, match="GET /dns on admin port 15000: unexpected answer"):
        ask("name_table", 1.0)
