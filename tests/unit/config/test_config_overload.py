"""The overload manager: what it compiles to, and what is refused, in Envoy's words where it has any."""

from __future__ import annotations

from typing import Any

import pytest
from config_cases import EXTENSIONS, Json, errors, load

from proxy.config import overload_model as model
from proxy.config.overload_model import OverloadManager, Reaction, ScaledTimer, Trigger

INJECTED = "envoy.resource_monitors.injected_resource"
GLOBAL = model.GLOBAL_CONNECTIONS
TIMERS = "type.googleapis.com/envoy.config.overload.v3.ScaleTimersOverloadActionConfig"
MONITORS = {
    "downstream_connections": "DownstreamConnectionsConfig", "fixed_heap": "FixedHeapConfig",
    "cgroup_memory": "CgroupMemoryConfig", "cpu_utilization": "CpuUtilizationConfig",
    "injected_resource": "InjectedResourceConfig",
}


def monitor(kind: str, name: str = "", **fields: Any) -> Json:
    name = name or f"envoy.resource_monitors.{kind}"
    return {"name": name, "typed_config": {"@type": f"{EXTENSIONS}.resource_monitors.{kind}.v3.{MONITORS[kind]}",
                                           **fields}}


def injected(name: str = "") -> Json:
    return monitor("injected_resource", name, filename="/tmp/pressure")


def threshold(value: float = 0.9, name: str = INJECTED) -> Json:
    return {"name": name, "threshold": {"value": value}}


def scaled(start: float, end: float) -> Json:
    return {"name": INJECTED, "scaled": {"scaling_threshold": start, "saturation_threshold": end}}


def action(name: str, *triggers: Json, **fields: Any) -> Json:
    return {"name": f"envoy.overload_actions.{name}", "triggers": list(triggers or [threshold()]), **fields}


def point(name: str, *triggers: Json) -> Json:
    return {"name": f"envoy.load_shed_points.{name}", "triggers": list(triggers or [threshold()])}


def timers(*entries: Json) -> Json:
    return action("reduce_timeouts", typed_config={"@type": TIMERS, "timer_scale_factors": list(entries)})


def manager(**fields: Any) -> Json:
    fields.setdefault("resource_monitors", [injected()])
    return {"overload_manager": fields}


def compiled(**fields: Any) -> OverloadManager:
    result = load(manager(**fields)).bootstrap.overload
    assert result is not None
    return result


def refused(**fields: Any) -> dict[str, str]:
    return {path.removeprefix("overload_manager."): text for path, text in errors(manager(**fields)).items()}


def test_none_is_configured() -> None:
    assert load({}).bootstrap.overload is None


def test_monitors() -> None:
    connections = monitor("downstream_connections", GLOBAL, max_active_downstream_connections="5")
    result = compiled(resource_monitors=[
        monitor("fixed_heap", max_heap_size_bytes=7), monitor("cgroup_memory"), monitor("cpu_utilization"),
        monitor("cpu_utilization", "mine", mode="CONTAINER"), connections, injected()])
    assert [kind for _, kind in result.monitors] == [
        model.FixedHeap(7), model.CgroupMemory(0), model.CpuUtilization(), model.CpuUtilization(container=True),
        model.DownstreamConnections(5), model.InjectedResource("/tmp/pressure")]
    assert result.max_active_downstream_connections == 5
    assert result.refresh_interval == 1.0
    assert compiled().max_active_downstream_connections is None


def test_actions_points_and_timers() -> None:
    result = compiled(
        refresh_interval="0.25s", buffer_factory_config={"minimum_account_to_track_power_of_two": 20},
        actions=[action("shrink_heap", scaled(0.5, 0.75)), action("reset_high_memory_stream"),
                 timers({"timer": "HTTP_DOWNSTREAM_CONNECTION_IDLE", "min_timeout": "2s"},
                        {"timer": "HTTP_DOWNSTREAM_STREAM_IDLE", "min_scale": {"value": 25}})],
        loadshed_points=[point("tcp_listener_accept"), point("http3_server_go_away_on_dispatch")])
    assert result.actions[0] == Reaction(model.SHRINK_HEAP, (Trigger(INJECTED, 0.5, 0.75),))
    assert result.load_shed_points[0] == Reaction(model.TCP_ACCEPT, (Trigger(INJECTED, 0.9),))
    assert (result.refresh_interval, result.account_power) == (0.25, 20)
    idle, stream = result.timers
    assert (idle, stream) == (ScaledTimer(model.CONNECTION_IDLE, 2.0, 0.0), ScaledTimer(model.STREAM_IDLE, None, 0.25))
    assert (idle.minimum(10.0), idle.minimum(1.0), stream.minimum(10.0)) == (2.0, 1.0, 2.5)


REFUSED: dict[str, tuple[Json, str, str]] = {
    "no monitor": ({"resource_monitors": []}, "resource_monitors", "value must contain at least 1 item(s)"),
    "two of one name": ({"resource_monitors": [injected(), injected()]}, "resource_monitors",
                        f"Duplicate resource monitor {INJECTED}"),
    "unknown action": ({"actions": [action("x")]}, "actions[0].name",
                       "Unknown Overload Manager Action envoy.overload_actions.x; supported: "),
    "action twice": ({"actions": [action("shrink_heap"), action("shrink_heap")]}, "actions",
                     "Duplicate overload action envoy.overload_actions.shrink_heap"),
    "unknown resource": ({"actions": [action("shrink_heap", threshold(name="z"))]}, "actions[0].triggers",
                         "Unknown trigger resource z for overload action envoy.overload_actions.shrink_heap"),
    "resource twice": ({"actions": [action("shrink_heap", threshold(), threshold())]}, "actions[0].triggers",
                       "Duplicate trigger resource for overload action envoy.overload_actions.shrink_heap"),
    "no trigger": ({"actions": [{"name": model.SHRINK_HEAP}]}, "actions[0].triggers",
                   "value must contain at least 1 item(s)"),
    "trigger of no kind": ({"actions": [action("shrink_heap", {"name": INJECTED})]}, "actions[0].triggers[0]",
                           "reason: is required"),
    "thresholds the wrong way round": (
        {"actions": [action("shrink_heap", scaled(0.9, 0.9))]}, "actions[0].triggers[0].scaled.scaling_threshold",
        "scaling_threshold must be less than saturation_threshold"),
    "threshold above 1": ({"actions": [action("shrink_heap", threshold(1.5))]},
                          "actions[0].triggers[0].threshold.value", "value must be less than or equal to 1"),
    "timeouts without settings": ({"actions": [action("reduce_timeouts")]}, "actions[0].typed_config",
                                  f'Overload action "{model.REDUCE_TIMEOUTS}" requires typed_config'),
    "timer twice": (
        {"actions": [timers(*[{"timer": "HTTP_DOWNSTREAM_CONNECTION_IDLE", "min_timeout": "2s"}] * 2)]},
        "actions[0].typed_config.timer_scale_factors",
        "Found duplicate entry for timer type HTTP_DOWNSTREAM_CONNECTION_IDLE"),
    "timer without minimum": ({"actions": [timers({"timer": "HTTP_DOWNSTREAM_CONNECTION_IDLE"})]},
                              "actions[0].typed_config.timer_scale_factors[0]", "reason: is required"),
    "settings of an action that has none": (
        {"actions": [action("stop_accepting_requests", typed_config={"@type": TIMERS, "timer_scale_factors": [
            {"timer": "HTTP_DOWNSTREAM_CONNECTION_IDLE", "min_timeout": "2s"}]})]}, "actions[0].typed_config",
        f'Overload action "{model.STOP_ACCEPTING_REQUESTS}" has an unexpected value for the typed_config field'),
    "resets without accounts": ({"actions": [action("reset_high_memory_stream")]}, "actions[0].name",
                                f'Overload action "{model.RESET_STREAMS}" requires buffer_factory_config.'),
    "account power": ({"buffer_factory_config": {"minimum_account_to_track_power_of_two": 9}},
                      "buffer_factory_config.minimum_account_to_track_power_of_two",
                      "value must be greater than or equal to 10"),
    "unknown point": ({"loadshed_points": [point("x")]}, "loadshed_points[0].name",
                      "Unknown load shed point envoy.load_shed_points.x; supported: "),
    "point twice": ({"loadshed_points": [point("tcp_listener_accept"), point("tcp_listener_accept")]},
                    "loadshed_points", f"Duplicate loadshed point {model.TCP_ACCEPT}"),
    "unknown resource of a point": ({"loadshed_points": [point("tcp_listener_accept", threshold(name="z"))]},
                                    "loadshed_points[0].triggers",
                                    f"Unknown trigger resource z for loadshed point {model.TCP_ACCEPT}"),
    "connections trigger no point": (
        {"resource_monitors": [injected(), monitor("downstream_connections", GLOBAL,
                                                   max_active_downstream_connections=5)],
         "loadshed_points": [point("tcp_listener_accept", threshold(name=GLOBAL))]}, "loadshed_points[0].triggers",
        f"Unknown trigger resource {GLOBAL} for loadshed point {model.TCP_ACCEPT}"),
    "point with the name of an action": (
        {"loadshed_points": [{"name": model.SHRINK_HEAP, "triggers": [threshold()]}]}, "loadshed_points[0].name",
        f'Load shed point "{model.SHRINK_HEAP}" conflicts with an overload action of the same name'),
    "connections under another name": (
        {"resource_monitors": [monitor("downstream_connections", "foo", max_active_downstream_connections=5)]},
        "resource_monitors[0].name", "Didn't find a registered implementation for 'foo'"),
    "something else under the name of connections": (
        {"resource_monitors": [injected(name=GLOBAL)]}, "resource_monitors[0].name",
        f"Didn't find a registered implementation for '{GLOBAL}'"),
    "no heap": ({"resource_monitors": [monitor("fixed_heap")]},
                "resource_monitors[0].typed_config.max_heap_size_bytes", "value must be greater than 0"),
    "no connections": (
        {"resource_monitors": [monitor("downstream_connections", GLOBAL, max_active_downstream_connections=0)]},
        "resource_monitors[0].typed_config.max_active_downstream_connections", "value must be greater than 0"),
    "no path": ({"resource_monitors": [monitor("injected_resource", filename="/tmp/a\0b")]},
                "resource_monitors[0].typed_config.filename", "a path without NUL is expected"),
    "no slash": ({"resource_monitors": [monitor("injected_resource", filename="pressure")]},
                 "resource_monitors[0].typed_config.filename", "invalid file path pressure"),
    "no directory": (
        {"resource_monitors": [monitor("injected_resource", filename="/nonexistent/file")]},
        "resource_monitors[0].typed_config.filename",
        "unable to add filesystem watch for file /nonexistent/file: No such file or directory"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    fields, path, text = REFUSED[name]
    found = refused(**fields)
    assert set(found) == {path}
    assert text in found[path]


def test_a_trigger_that_never_fires_is_worth_a_warning() -> None:
    loaded = load(manager(actions=[action("shrink_heap", threshold(name=GLOBAL))]))
    assert any("the trigger never fires" in warning for warning in loaded.warnings)


def test_an_interval_of_nothing_is_not_taken() -> None:
    loaded = load(manager(refresh_interval="0s"))
    assert loaded.bootstrap.overload is not None
    assert loaded.bootstrap.overload.refresh_interval == 0.01
    assert any("is too short" in warning for warning in loaded.warnings)
