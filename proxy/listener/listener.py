"""A listener of one worker: from the accepted socket to the network filter of its chain (Envoy: ActiveTcpListener).

A connection takes the shortest way that the configuration allows: without listener filters and hand-off it goes from
accept straight to its filter chain.
"""

from __future__ import annotations

from asyncio import TimerHandle
from collections.abc import Callable, Coroutine, Iterator
from socket import SocketType
from typing import TYPE_CHECKING, Any

from proxy.config.model import SocketAddress
from proxy.limits.worker import Accepted, Charged, discharge, gate, transfer
from proxy.listener.accept import Handle, ListenSocket
from proxy.listener.connection import Connection
from proxy.listener.connection_info import ConnectionInfo
from proxy.listener.drain import DrainDecision
from proxy.listener.filter_chain import ActiveFilterChain, Closable, ClosableProtocol, FilterChainManager
from proxy.listener.listener_filters import ActiveTcpSocket, ListenerFilters
from proxy.log import get
from proxy.overload.listener import reject_gate, watch_listener
from proxy.stats.groups import ListenerStats, ListenerWorkerStats, Snapshot

if TYPE_CHECKING:
    from proxy.config import model
    from proxy.context import Context
    from proxy.limits.tokens import Pool
    from proxy.stream_info import StreamInfo

log = get("conn_handler")

HandOff = Callable[[SocketAddress], "ActiveListener | None"]
"""The listener that a restored destination belongs to, if any."""

WILDCARDS = ("0.0.0.0", "::")


def refuse(sock: SocketType, _: tuple[str, int]) -> None:
    """What happens to an accepted socket before anything else was said."""
    sock.close()


class WorkerShare(ListenerWorkerStats):
    """``worker_<n>``: what this worker's listener has counted."""

    __slots__ = ("whole",)
    whole: ListenerStats

    def collect(self, out: Snapshot, flush: bool) -> None:
        self.downstream_cx_total = self.whole.downstream_cx_total
        self.downstream_cx_active = self.whole.downstream_cx_active
        super().collect(out, flush)


class ActiveListener:
    """One listener at work."""

    __slots__ = ("_close_timer", "_drain", "_filter_chains", "_find", "_hand_off", "_ids", "_listener_filters",
                 "_loggers", "_loop", "_rejects", "_sockets", "config", "connections", "context", "draining",
                 "ends_keepalive", "pending", "pools", "stat_prefix", "stats", "stopped")

    def __init__(self, config: model.Listener, context: Context, hand_off: HandOff) -> None:
        self.config = config
        self.context = context
        self._loop = context.loop
        self._ids = context.connection_ids
        self._hand_off = hand_off if config.use_original_dst else None
        self.stat_prefix = f"listener.{config.stat_prefix or config.addresses[0].text}".replace(":", "_")
        self.stats = context.registry.group(ListenerStats, self.stat_prefix)
        share = context.registry.group(WorkerShare, f"{self.stat_prefix}.worker_{context.worker}")
        share.whole = self.stats
        self._loggers = [(context.log_files.logger(c), c.flags is None) for c in config.access_logs]
        self._listener_filters = ListenerFilters(config, context) if config.listener_filters else None
        self._filter_chains = FilterChainManager(config, self, context)
        self._find = self._filter_chains.find
        self.connections: dict[Connection, Closable] = {}
        """Open connections with their network filter's side."""
        self.pending: set[ActiveTcpSocket] = set()
        """Connections whose listener filters wait for data."""
        options = context.options
        self._drain = DrainDecision(options.drain_strategy, options.drain_time, context.loop.time)
        self.draining = False
        """Some kind of drain, or overload, could end a connection with its next response."""
        self.ends_keepalive = False
        self.stopped = False
        """The listening sockets were closed."""
        self._close_timer: TimerHandle | None = None
        self._rejects = reject_gate(self)
        self.pools: tuple[Pool | None, Pool | None] = (None, None)
        """The limit of all connections, and this listener's own."""
        # The limit spreads a burst of connections over the workers; a single worker has nobody to share with.
        per_event = config.max_connections_to_accept_per_socket_event if options.concurrency > 1 else 0
        self._sockets = [ListenSocket(context.loop, address, config.tcp_backlog_size, per_event, refuse)
                         for address in config.addresses] if config.bind_to_port else []
        self.limits_changed()
        watch_listener(self)

    @property
    def chains(self) -> list[ActiveFilterChain]:
        """All filter chains, the default one included."""
        return self._filter_chains.chains

    @property
    def addresses(self) -> list[SocketAddress]:
        """Where it is reached; bound ports instead of 0 once ``bind`` was called."""
        return [s.address for s in self._sockets] or list(self.config.addresses)

    # Sockets

    def limits_changed(self) -> None:
        """Compose what happens to an accepted socket; who is accepted from now on is charged to these limits."""
        self.pools = (None, None) if self.context.limits is None else self.context.limits.of_listener(self.config)
        for listen_socket in self._sockets:
            listen_socket.accepted = self._accepting(listen_socket)

    def _accepting(self, listen_socket: ListenSocket) -> Accepted:
        everything, own = self.pools
        wildcard = listen_socket.address.host in WILDCARDS
        filters, context, loop, ids = self._listener_filters, self.context, self._loop, self._ids
        # The usual single limit is asked right here, without a call of its own (tokens.Pool.take).
        pool = everything if own is None and self._rejects is None else None
        charged_to: Charged = () if pool is None else (pool,)

        def serve(sock: SocketType, peer: tuple[str, int], charged: Charged = charged_to) -> None:
            if pool is not None:
                if pool.spare:
                    pool.spare -= 1
                elif not pool.find_place():
                    self.stats.downstream_global_cx_overflow += 1
                    sock.close()
                    return
            if wildcard:
                try:
                    local = SocketAddress(*sock.getsockname()[:2])
                except OSError:
                    for place in charged:
                        place.release()
                    sock.close()
                    return
            else:
                local = listen_socket.address
            connection = Connection(sock, SocketAddress(peer[0], peer[1]), local, self, next(ids), loop.time(), charged)
            if filters is None:
                self._new_connection(connection)
            else:
                ActiveTcpSocket(connection, self, filters, context, self._after_filters).run()

        if own is None and self._rejects is None:
            return serve
        return gate(everything, own, serve, self._rejects, self.stats)

    def bind(self) -> None:
        """Bind every address. Raises accept.BindError."""
        for listen_socket in self._sockets:
            listen_socket.bind()

    def start(self) -> None:
        """Listen and accept."""
        for listen_socket in self._sockets:
            listen_socket.start()

    def stop(self) -> None:
        """Close the listening sockets within a moment; connections that are open or begun are not touched."""
        self.stopped = True
        if self._close_timer is not None:
            self._close_timer.cancel()
            self._close_timer = None
        for listen_socket in self._sockets:
            listen_socket.stop()

    def close(self) -> None:
        """Close the listening sockets and cut every connection: the worker ends."""
        self.stop()
        for listen_socket in self._sockets:
            listen_socket.close()
        for pending in list(self.pending):
            pending.close()
        for protocol in list(self.connections.values()):
            protocol.close()

    def all_connections(self) -> Iterator[tuple[Connection, Closable | None]]:
        """Open connections with their network filter's side, which those that are still being looked at lack."""
        yield from self.connections.items()
        for pending in self.pending:
            yield pending.connection, None

    # The way of a connection

    def _after_filters(self, connection: Connection) -> None:
        """Hand the connection to the listener that its destination belongs to, or keep it."""
        if self._hand_off is not None and connection.restored:
            target = self._hand_off(connection.local)
            if target is not None and target is not self:
                target.handed_off(connection)
                return
        self._new_connection(connection)

    def handed_off(self, connection: Connection) -> None:
        """Take a connection over from another listener. Our own listener filters run now; nobody else gets it."""
        transfer(connection, connection.listener, self)
        connection.listener = self
        if self._listener_filters is None:
            self._new_connection(connection)
        else:
            ActiveTcpSocket(connection, self, self._listener_filters, self.context, self._new_connection).run()

    def _new_connection(self, connection: Connection) -> None:
        chain = self._find(connection)
        if chain is None:
            self._no_chain(connection)
            return
        connection.filter_chain = chain.config
        stats = self.stats
        stats.downstream_cx_total += 1
        stats.downstream_cx_active += 1
        if chain.limits is not None and chain.limits.refuse(connection, self):
            return
        protocol = chain.protocol(connection)
        sock = connection.sock
        opening = self._loop.connect_accepted_socket(lambda: protocol, Handle(sock))  # type: ignore[arg-type]
        try:
            # Starts the transport; what is left of the coroutine only waits for connection_made, which the loop calls
            # in its next round. A task for it would double the price of a connection.
            opening.send(None)
        except OSError as error:
            log.debug("new connection from %s: %s", connection.remote.text, error.strerror)
            sock.close()
            self.connection_closed(connection, self._loop.time())
            return
        self._loop.call_soon(self._opened, opening, connection, protocol)

    def _opened(self, opening: Coroutine[Any, Any, Any], connection: Connection, protocol: ClosableProtocol) -> None:
        # Runs right after connection_made: the coroutine has nothing left to wait for.
        try:
            opening.send(None)
        except StopIteration:
            self.connections[connection] = protocol

    def _no_chain(self, connection: Connection) -> None:
        self.stats.no_filter_chain_match += 1
        if connection.charged:
            discharge(connection)
        connection.sock.close()
        if self._loggers:
            info = ConnectionInfo(connection, self._loop.time())
            info.flags = b"NR"
            info.details = b"filter_chain_not_found"
            for write, _ in self._loggers:
                write(info)

    def connection_closed(self, connection: Connection, now: float) -> None:
        """A connection of this listener is gone; called once by its network filter."""
        for place in connection.charged:
            if place.spare < place.keep:  # place.release()
                place.spare += 1
            else:
                place.give_place()
        stats = self.stats
        stats.downstream_cx_active -= 1
        stats.downstream_cx_destroy += 1
        lengths = stats.downstream_cx_length_ms
        length = int((now - connection.accepted_at) * 1000)
        lengths[length] = lengths.get(length, 0) + 1
        for listen_socket in self._sockets:
            if listen_socket.paused:
                self._loop.call_soon(listen_socket.resume)
        self.connections.pop(connection, None)
        if self._loggers:
            self.log_end(connection, now)

    def log_end(self, connection: Connection, now: float) -> None:
        """Write the listener's own access log for a connection that has ended."""
        info: StreamInfo | None = connection.info
        for write, unfiltered in self._loggers:
            if info is None:
                if not unfiltered:
                    continue  # only tcp_proxy sets flags for a whole connection
                info = ConnectionInfo(connection, now)
            write(info)

    # Draining

    def drain_close(self) -> bool:
        """Whether a response that is being encoded now ends its connection."""
        if self.context.health_failed and not self.config.modify_only_drain:
            return True
        return self._drain.close()

    def health_changed(self) -> None:
        """``context.health_failed`` was set or cleared."""
        self.draining = (self._drain.draining or self.ends_keepalive
                         or (self.context.health_failed and not self.config.modify_only_drain))

    def end_keepalive(self, value: float) -> None:
        """Have the connection managers asked at each response whether the connection ends (disable_http_keepalive)."""
        self.ends_keepalive = value > 0
        self.health_changed()

    def suspend(self, suspended: bool) -> None:
        """Leave new connections in the kernel's queues, or take them again."""
        for listen_socket in self._sockets:
            listen_socket.suspend(suspended)

    def drain(self, close_after: float | None) -> None:
        """Ask connections to close, more and more; close the sockets after so many seconds (None: never)."""
        self._drain.start()
        self.draining = True
        if close_after is not None and self._close_timer is None and not self.stopped:
            self._close_timer = self._loop.call_later(close_after, self.stop)
