"""What the process says of itself: state, versions, command line, memory."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from envoy.config.core.v3.base_pb2 import Node
from google.protobuf.json_format import MessageToDict

from proxy import version
from proxy.admin.api import LIVE
from proxy.admin.console import Console
from proxy.admin.messages import Request, Response, as_json
from proxy.options import Options


async def handle_ready(console: Console, _request: Request) -> Response:
    """The state; 200 only when LIVE."""
    state = console.server.state
    return Response(200 if state == LIVE else 503, state + "\n")


async def handle_server_info(console: Console, _request: Request) -> Response:
    """admin.v3.ServerInfo, defaults included."""
    server = console.server
    uptime = f"{console.uptime()}s"
    return as_json({
        "version": version.BUILD,
        "state": server.state,
        "uptime_current_epoch": uptime,
        "uptime_all_epochs": uptime,
        "hot_restart_version": version.HOT_RESTART_VERSION,
        "command_line_options": command_line_options(server.options),
        "node": {
            # Printed though empty, as all of this document's fields are.
            "dynamic_parameters": {}, "client_features": [], "listening_addresses": [],
            **MessageToDict(described(server.loaded.message.node), preserving_proto_field_name=True),
        },
        "hot_restart_initializing": False,
    })


def described(node: Node) -> Node:
    """A node with what the program adds to it: the name of its API and its version."""
    result = Node()
    result.CopyFrom(node)
    sha, number, status, build, library = version.BUILD.split("/")
    result.user_agent_name = "envoy"
    result.user_agent_build_version.metadata.update({
        "revision.sha": sha, "revision.status": status, "build.type": build, "ssl.version": library})
    release = result.user_agent_build_version.version
    release.major_number, release.minor_number, release.patch = map(int, number.split("."))
    return result


_DURATIONS = ("file_flush_interval", "drain_time", "parent_shutdown_time")
_CAPITALIZED = ("mode", "drain_strategy")
_RENAMED = {"file_flush_min_size_kb": "file_flush_min_size"}


def command_line_options(options: Options) -> dict[str, Any]:
    """admin.v3.CommandLineOptions of all options."""
    document: dict[str, Any] = {}
    for name, value in asdict(options).items():
        if name == "dns":
            continue  # the message has no field for it; /dns tells
        if name in _DURATIONS:
            value = f"{value:.3f}s" if value % 1 else f"{value:.0f}s"
        elif name in _CAPITALIZED:
            value = value.capitalize()
        elif name == "log_level" and value == "warn":
            value = "warning"
        elif name == "base_id":
            value = str(value)
        elif isinstance(value, tuple):
            value = list(value)
        document[_RENAMED.get(name, name)] = value
    return document


async def handle_hot_restart_version(_console: Console, _request: Request) -> Response:
    """The version that a parent and a child must share."""
    return Response(200, version.HOT_RESTART_VERSION)


async def handle_certs(_console: Console, _request: Request) -> Response:
    """admin.v3.Certificates: none, since no transport socket that the configuration may name has any."""
    return as_json({"certificates": []})


async def handle_memory(console: Console, _request: Request) -> Response:
    """admin.v3.Memory of main and its workers. There is no page heap and no thread cache to tell about."""
    memory = console.memory()
    return as_json({
        "allocated": str(memory.allocated),
        "heap_size": str(memory.heap_size),
        "pageheap_unmapped": "0",
        "pageheap_free": "0",
        "total_thread_cache": "0",
        "total_physical_bytes": str(memory.physical_size),
    })


async def handle_contention(console: Console, _request: Request) -> Response:
    """admin.v3.MutexStats: the workers share no mutex, so there is nothing to count."""
    if not console.server.options.enable_mutex_tracing:
        return Response(200, "Mutex contention tracing is off; --enable-mutex-tracing turns it on.")
    return as_json(dict.fromkeys(("num_contentions", "current_wait_cycles", "lifetime_wait_cycles"), "0"))


async def handle_init_dump(console: Console, _request: Request) -> Response:
    """admin.v3.UnreadyTargetsDumps: what the start still waits for."""
    if console.server.workers_started:
        return as_json({})
    return as_json({"unready_targets_dumps": [{"name": "init manager Server", "target_names": ["workers"]}]})
