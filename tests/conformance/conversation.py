"""One case run against one proxy: the client's script, the upstreams' scripts, and what everyone saw."""

from __future__ import annotations

import socket
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.conformance.dsl import OK, Case, Op, Turn, request, send
from tests.conformance.ports import free_port
from tests.conformance.wire import Ended, Stuck, Wire

if TYPE_CHECKING:
    from tests.conformance.proxies import Proxy

_DEFAULT_TURN: tuple[Op, ...] = (request(), send(OK))


@dataclass(slots=True)
class Accepted:
    """A connection that a scripted upstream accepted."""

    group: str
    member: str
    source: tuple[str, int]
    wire: Wire
    used: bool = False
    """A turn was taken on it. (A proxy may open a connection and find that it needs none: that is not compared.)"""


@dataclass(slots=True)
class Seen:
    """What everyone saw, as it was; `normalise.lines` makes it comparable."""

    clients: dict[str, Wire] = field(default_factory=dict)
    client_ports: dict[int, str] = field(default_factory=dict)
    accepted: list[Accepted] = field(default_factory=list)
    unused: dict[str, int] = field(default_factory=dict)
    admin: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    stats: dict[str, int] = field(default_factory=dict)
    stuck: list[str] = field(default_factory=list)


class Conversation:
    """Runs `case` against `proxy`. Each upstream connection has a thread; the client's script runs in the caller's."""

    def __init__(self, case: Case, proxy: Proxy, patience: float) -> None:
        self.case = case
        self.proxy = proxy
        self.patience = patience
        self.seen = Seen()
        self._lock = threading.Condition()
        self._signals: set[str] = set()
        self._over = False
        self._busy = 0
        self._threads: list[threading.Thread] = []
        self._turns = {name: deque(turns) for name, turns in case.scripts().items()}
        self._before: dict[str, int] = {}
        self._current: dict[str, Wire] = {}

    def run(self) -> Seen:
        """The whole conversation, from a quiet proxy to a quiet proxy."""
        proxy, seen, case = self.proxy, self.seen, self.case
        watched = sorted(set(case.stats) | {op.data[0] for op in self._all_ops() if op.kind == "stat"})
        self._before = proxy.statistics(watched)
        log_start = proxy.log_size()
        proxy.conversation = self
        try:
            self._run_client()
            self._await_turns()
            for wire in seen.clients.values():
                wire.surplus()
                wire.close()
            self._await_log(log_start)
            self._quiet("downstream")
        finally:
            with self._lock:
                self._over = True
                self._lock.notify_all()
            for accepted in list(seen.accepted):
                accepted.wire.hang_up()
            for thread in list(self._threads):
                thread.join(self.patience)
            for wire in seen.clients.values():
                wire.close()
        seen.accepted = [accepted for accepted in seen.accepted if accepted.used]
        self._quiet("upstream")
        proxy.conversation = None
        seen.log = proxy.log_lines(log_start)
        after = proxy.statistics(watched)
        seen.stats = {name: after[name] - self._before[name] for name in case.stats}
        seen.unused = {name: len(turns) for name, turns in self._turns.items() if turns}
        return seen

    # --- the client ---

    def _run_client(self) -> None:
        for number, op in enumerate(self.case.ops(), 1):
            try:
                self._client_op(op)
            except Ended:
                continue
            except Stuck:
                self._stuck(f"client {op.peer} at step {number}: {op.kind} {op.data!r:.60}")
                return

    def _client_op(self, op: Op) -> None:
        if op.kind == "connect" or (op.peer not in self._current and op.kind not in _ANYWHERE):
            self._connect(op.peer, op.data if op.kind == "connect" else "main")
        if op.kind == "connect" or self.perform(op):
            return
        self._current[op.peer].do(op)

    def _connect(self, peer: str, listener: str) -> None:
        opened = 1 + sum(1 for key in self.seen.clients if key.split("#")[0] == peer)
        key = peer if opened == 1 else f"{peer}#{opened}"
        # A port of our own: one that the kernel picks may also be picked for a connection of the proxy.
        source = ("127.0.0.1", free_port())
        sock = socket.create_connection(("127.0.0.1", self.proxy.ports[listener]), self.patience, source)
        self._current[peer] = self.seen.clients[key] = Wire(sock, self.patience)
        self.seen.client_ports[sock.getsockname()[1]] = key

    # --- the upstreams ---

    def accepted(self, group: str, member: str, sock: socket.socket, source: tuple[str, int]) -> None:
        """A scripted upstream has accepted a connection (called by its accepting thread)."""
        accepted = Accepted(group, member, source, Wire(sock, self.patience))
        with self._lock:
            if self._over:
                sock.close()
                return
            self.seen.accepted.append(accepted)
            turns = self._turns.get(group)
            at_once: Turn | None = None
            if turns and isinstance(turns[0], tuple) and turns[0][0].kind == "accept":
                at_once = turns.popleft()
                self._busy += 1
            thread = threading.Thread(target=self._serve, args=(accepted, at_once), daemon=True)
            self._threads.append(thread)
        thread.start()

    def _serve(self, accepted: Accepted, turn: Turn | None) -> None:
        try:
            self._take_turns(accepted, turn)
        finally:
            accepted.wire.close()

    def _take_turns(self, accepted: Accepted, turn: Turn | None) -> None:
        wire = accepted.wire
        while not wire.ended:
            if turn is None:
                if not wire.readable():
                    return
                turn = self._next_turn(accepted.group)
            accepted.used = True
            try:
                self._run_turn(accepted, turn)
            finally:
                with self._lock:
                    self._busy -= 1
                    self._lock.notify_all()
            turn = None

    def _next_turn(self, group: str) -> Turn:
        with self._lock:
            self._busy += 1
            turns = self._turns.get(group)
            return turns.popleft() if turns else _DEFAULT_TURN

    def _run_turn(self, accepted: Accepted, turn: Turn) -> None:
        ops = (request(), send(turn)) if isinstance(turn, bytes) else turn
        for op in ops:
            if op.kind == "accept":
                continue
            try:
                if not self.perform(op):
                    accepted.wire.do(op)
            except Ended:
                return
            except Stuck:
                self._stuck(f"upstream {accepted.group} at {op.kind} {op.data!r:.60}")
                return
            except OSError:
                if not self._over:
                    raise
                return

    def _await_turns(self) -> None:
        with self._lock:
            if not self._lock.wait_for(lambda: self._busy == 0, self.patience):
                self.seen.stuck.append("an upstream's turn did not end")

    # --- what belongs to no connection ---

    def perform(self, op: Op) -> bool:
        """Do an operation that belongs to no connection; False if `op` is none of these. Raises Stuck."""
        if op.kind == "signal":
            with self._lock:
                self._signals.add(op.data)
                self._lock.notify_all()
        elif op.kind == "wait":
            with self._lock:
                if not self._lock.wait_for(lambda: op.data in self._signals or self._over, self.patience):
                    raise Stuck
        elif op.kind == "stat":
            name, growth = op.data
            self.proxy.wait_until(
                lambda: self.proxy.statistics([name])[name] - self._before[name] == growth, self.patience
            )
        elif op.kind == "pressure":
            self.proxy.press(*op.data, self.patience)
        elif op.kind == "admin":
            status, body = self.proxy.admin(*op.data)
            self.seen.admin.append(f"{op.data[0]} {op.data[1]}: {status} {body.strip()}")
        else:
            return False
        return True

    def _all_ops(self) -> list[Op]:
        ops = self.case.ops()
        for turns in self.case.scripts().values():
            for turn in turns:
                ops += () if isinstance(turn, bytes) else turn
        return ops

    def _await_log(self, start: int) -> None:
        try:
            self.proxy.wait_until(lambda: len(self.proxy.log_lines(start)) >= self.case.log, self.patience)
        except Stuck:
            self._stuck(f"the access log: {self.case.log} lines were expected")

    def _quiet(self, side: str) -> None:
        try:
            self.proxy.wait_until(lambda: not self.proxy.open_connections(side), self.patience)
        except Stuck:
            self._stuck(f"the proxy still holds {', '.join(self.proxy.open_connections(side))}")

    def _stuck(self, what: str) -> None:
        with self._lock:
            self.seen.stuck.append(what)


_ANYWHERE = frozenset({"signal", "wait", "stat", "admin", "pressure"})

