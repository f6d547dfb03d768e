"""/debug on the status port: what the real program has there for Go, as far as it makes sense for this one."""

import asyncio
import json
import sys
import traceback
from collections.abc import Callable, Mapping

from agent.status.http_server import Reply, Request

_PPROF = "/debug/pprof/"
_ABSENT = ("profile", "symbol", "trace", "heap", "allocs", "block", "mutex", "threadcreate")
_MAX_TASKS = 1000

_INDEX = b"""/debug/pprof/

cmdline      command line of the agent, arguments separated by NUL
goroutine    every task and thread of the agent with its stack (also at /debug/tasks)
"""


class DebugPages:
    """Answers requests from this host for paths that begin with /debug/."""

    def __init__(
        self,
        *,
        profiling: bool,
        drain_report: Callable[[], Mapping[str, object]],
        name_table: Callable[[], str | None] | None,
    ) -> None:
        self._profiling = profiling
        self._drain_report = drain_report
        self._name_table = name_table

    async def answer(self, request: Request) -> Reply:
        path = request.path
        if path == "/debug/drain":
            return _json(json.dumps(self._drain_report(), indent=2))
        if path == "/debug/ndsz":
            table = self._name_table() if self._name_table is not None else None
            return Reply(404, b"{}\n", "application/json") if table is None else _json(table)
        if path in ("/debug/pprof", _PPROF, "/debug/tasks") or path.startswith(_PPROF):
            if not self._profiling:
                return Reply(404, b"switched off by --profiling=false\n")
            return _pprof("goroutine" if path == "/debug/tasks" else path.removeprefix("/debug/pprof").strip("/"))
        return Reply(404, b"404 page not found\n")


def _json(text: str) -> Reply:
    return Reply(200, text.rstrip("\n").encode() + b"\n", "application/json")


def _pprof(name: str) -> Reply:
    if name == "":
        return Reply(200, _INDEX)
    if name == "cmdline":
        return Reply(200, "\0".join(sys.orig_argv).encode("utf-8", "surrogateescape"))
    if name == "goroutine":
        return Reply(200, _stacks().encode())
    if name in _ABSENT:
        return Reply(404, f"{name}: not there, this agent is no Go program; see {_PPROF} for what is\n".encode())
    return Reply(404, b"404 page not found\n")


def _stacks() -> str:
    parts = []
    tasks = sorted(asyncio.all_tasks(), key=lambda task: task.get_name())
    for task in tasks[:_MAX_TASKS]:
        frames = [frame for top in task.get_stack(limit=32) for frame in traceback.extract_stack(top, limit=1)]
        parts.append(f"task {task.get_name()}\n" + "".join(traceback.format_list(frames)))
    if len(tasks) > _MAX_TASKS:
        parts.append(f"and {len(tasks) - _MAX_TASKS} more tasks\n")
    for ident, frame in sys._current_frames().items():
        parts.append(f"thread {ident}\n" + "".join(traceback.format_stack(frame, limit=32)))
    return "\n".join(parts)
