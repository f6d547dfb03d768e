"""One query to one server over UDP or TCP. No tasks: sockets, readers of the loop, callbacks.

Over UDP each query has a socket of its own: its port is the kernel's random choice, and a connected socket takes
datagrams of this server's address and port only. With the random id a forger has about 2^30 combinations to try while
the query is under way (RFC 5452).
"""

from __future__ import annotations

import errno
import os
import socket
from asyncio import AbstractEventLoop
from typing import TYPE_CHECKING, Protocol

from proxy.deadlines import NEVER, Deadlines
from proxy.dns.message import QR
from proxy.dns.servers import Server
from proxy.dns.stats import DnsStats
from proxy.log import get

if TYPE_CHECKING:
    from proxy.dns.query import Query

log = get("dns")

Name = tuple[object, ...]
"""Of a socket of ours: whether it is TCP, host, port."""

UDP_SIZE = 4096
"""Bytes of a datagram that are read; we tell servers less."""
READS = 16
"""Datagrams read from one socket before others get their turn."""
MAX_TCP = 64
"""TCP connections to servers."""
MAX_IDLE = 2
"""Of them idle, for each server."""
IDLE_TIMEOUT = 5.0
QUERIES_PER_CONNECTION = 1000

OUR_FAULT = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EAGAIN))
"""Errors that say nothing about the server."""


class Owner(Protocol):
    """Who wants the reply. Exactly one of the two is called, once, unless the attempt is cancelled first."""

    def on_message(self, attempt: Attempt, message: bytes) -> None:
        """A reply with the right id and question; nothing else in it has been looked at."""

    def on_failure(self, attempt: Attempt, why: str) -> None:
        """No reply will come."""


class Channel(Protocol):
    """What carries an attempt."""

    def cancel(self) -> None:
        """The reply is not wanted any more."""


class Attempt:
    """One query to one server. ``sent`` and ``expires`` (when the next server gets asked) are loop time."""

    __slots__ = ("channel", "edns", "expires", "id", "owner", "question", "sent", "server", "tcp", "unanswered")

    def __init__(self, owner: Owner, server: Server, question: bytes, number: int, tcp: bool, edns: bool,
                 sent: float, expires: float) -> None:
        self.owner = owner
        self.server = server
        self.question = question
        self.id = number
        self.tcp = tcp
        self.edns = edns
        self.sent = sent
        self.expires = expires
        self.unanswered = False
        """Its time is over; a reply is still welcome."""
        self.channel: Channel | None = None

    def cancel(self) -> None:
        """Stop waiting."""
        channel, self.channel = self.channel, None
        if channel is not None:
            channel.cancel()

    def matches(self, message: bytes) -> bool:
        """Whether it is a reply to this query: RFC 5452 section 9.1, apart from the addresses.

        A refusal without any question passes as well: servers that do not understand a query may not repeat it.
        """
        if len(message) < 12 or message[0] << 8 | message[1] != self.id or not message[2] & QR >> 8:
            return False
        if message.startswith(self.question, 12) and message[4:6] == b"\0\1":
            return True
        return message[4:10] == bytes(6) and message[3] & 15 not in (0, 3)


class RandomIds:
    """Random numbers of 16 bits from the kernel, fetched many at once."""

    __slots__ = ("_at", "_pool")

    def __init__(self) -> None:
        self._pool = b""
        self._at = 0

    def take(self) -> int:
        """The next one."""
        at = self._at
        if at >= len(self._pool):
            self._pool = os.urandom(1024)
            at = 0
        self._at = at + 2
        return self._pool[at] << 8 | self._pool[at + 1]


class Exchange:
    """All sockets to servers of one worker."""

    __slots__ = ("_idle", "_ids", "_own", "_tcp", "deadlines", "loop", "stats")

    def __init__(self, loop: AbstractEventLoop, deadlines: Deadlines, stats: DnsStats) -> None:
        self.loop = loop
        self.deadlines = deadlines
        self.stats = stats
        self._ids = RandomIds()
        self._own: dict[Name, Attempt] = {}
        self._tcp: set[TcpConnection] = set()
        self._idle: dict[Server, list[TcpConnection]] = {}

    def new_id(self) -> int:
        """A random id for a query."""
        return self._ids.take()

    def is_own(self, query: Query) -> bool:
        """Whether a client's query is one of ours, come back: from the address of one of our sockets, with its id and
        question. The address does not tell alone: other sockets on this host may share a port with ours, when they
        are TCP to other addresses.
        """
        attempt = self._own.get((query.tcp, *query.client[:2]))
        return attempt is not None and attempt.id == query.id and attempt.question == query.key + query.question[-4:]

    def send(self, attempt: Attempt, packet: bytes) -> None:
        """Send a query; its owner is called later, never before this returns. Raises OSError."""
        if attempt.tcp:
            self._send_tcp(attempt, packet)
        else:
            attempt.channel = UdpSocket(self, attempt, packet)

    def _send_tcp(self, attempt: Attempt, packet: bytes) -> None:
        framed = len(packet).to_bytes(2, "big") + packet
        idle = self._idle.get(attempt.server)
        # The one used last: the others get the chance to become too old.
        connection = idle.pop() if idle else self.new_connection(attempt.server)
        attempt.channel = connection
        connection.ask(attempt, framed)

    def new_connection(self, server: Server) -> TcpConnection:
        """Begin to connect. Raises OSError, also when there are too many connections."""
        if len(self._tcp) >= MAX_TCP:
            for idle in self._idle.values():
                if idle:
                    idle[0].close()
                    break
            else:
                raise OSError(errno.ENOBUFS, f"{MAX_TCP} TCP connections to servers already")
        connection = TcpConnection(self, server)
        self._tcp.add(connection)
        return connection

    def park(self, connection: TcpConnection) -> bool:
        """Keep an idle connection for the next query; False: there are enough."""
        idle = self._idle.setdefault(connection.server, [])
        if len(idle) >= MAX_IDLE:
            return False
        idle.append(connection)
        return True

    def forget(self, connection: TcpConnection) -> None:
        """It is closed."""
        self._tcp.discard(connection)
        idle = self._idle.get(connection.server)
        if idle is not None:
            if connection in idle:
                idle.remove(connection)
            if not idle:
                del self._idle[connection.server]

    def close(self) -> None:
        """Close idle connections; those in use are closed when their attempts are cancelled."""
        for connection in list(self._tcp):
            if connection.attempt is None:
                connection.close()


class UdpSocket:
    """A connected socket for one query. Raises OSError when the query cannot be sent."""

    __slots__ = ("_attempt", "_exchange", "_name", "_sock")

    def __init__(self, exchange: Exchange, attempt: Attempt, packet: bytes) -> None:
        destination = attempt.server.destination()
        sock = socket.socket(attempt.server.family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            sock.connect(destination)
            sock.send(packet)
            self._name: Name = (False, *sock.getsockname()[:2])
        except OSError:
            sock.close()
            raise
        self._exchange = exchange
        self._attempt = attempt
        self._sock = sock
        exchange._own[self._name] = attempt
        exchange.loop.add_reader(sock.fileno(), self._readable)

    def cancel(self) -> None:
        """Close it."""
        sock = self._sock
        if sock.fileno() >= 0:
            self._exchange._own.pop(self._name, None)
            self._exchange.loop.remove_reader(sock.fileno())
            sock.close()

    def _readable(self) -> None:
        attempt = self._attempt
        for _ in range(READS):
            try:
                message = self._sock.recv(UDP_SIZE)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                # An ICMP error: the port is closed, the host does not exist.
                self._end()
                attempt.owner.on_failure(attempt, error.strerror or str(error))
                return
            if attempt.matches(message):
                self._end()
                attempt.owner.on_message(attempt, message)
                return
            # Forged or damaged. The true reply may still come, so this ends nothing.
            self._exchange.stats.upstream_mismatched_total += 1
            if log.debug_on:
                log.debug("%d bytes from %s are no reply to what it was asked", len(message),
                          attempt.server.address.text)

    def _end(self) -> None:
        self.cancel()
        self._attempt.channel = None


class TcpConnection:
    """A connection to a server; one query at a time, several in sequence (RFC 7766 section 6.2.1)."""

    __slots__ = ("_connected", "_exchange", "_fd", "_in", "_name", "_out", "_query", "_served", "_sock", "_writing",
                 "attempt", "deadline", "server")

    def __init__(self, exchange: Exchange, server: Server) -> None:
        self._exchange = exchange
        self.server = server
        self.attempt: Attempt | None = None
        self.deadline = NEVER
        self._in = bytearray()
        self._out = b""
        self._query = b""
        self._served = 0
        self._writing = False
        self._connected = False
        destination = server.destination()
        self._sock = socket.socket(server.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            code = self._sock.connect_ex(destination)
            if code not in (0, errno.EINPROGRESS):
                raise OSError(code, os.strerror(code))
            self._name: Name = (True, *self._sock.getsockname()[:2])
        except OSError:
            self._sock.close()
            raise
        self._fd = self._sock.fileno()

    def ask(self, attempt: Attempt, framed: bytes) -> None:
        """Send a query with its length before it."""
        self.attempt = attempt
        self.deadline = NEVER
        self._exchange.deadlines.unwatch(self)
        self._query = self._out = framed
        self._exchange._own[self._name] = attempt
        if not self._connected or not self._flush():
            self._writing = True
            self._exchange.loop.add_writer(self._fd, self._writable)

    def cancel(self) -> None:
        """The reply is not wanted any more. It would be in the way of the next one, so the connection ends."""
        self.attempt = None
        self.close()

    def close(self) -> None:
        """Close it; harmless when it is closed."""
        if self._fd < 0:
            return
        loop = self._exchange.loop
        loop.remove_reader(self._fd)
        loop.remove_writer(self._fd)
        self._fd = -1
        self._sock.close()
        self._exchange._own.pop(self._name, None)
        self._exchange.deadlines.unwatch(self)
        self._exchange.forget(self)

    def on_deadline(self, now: float) -> None:
        """It was idle for too long."""
        self.close()

    def _flush(self) -> bool:
        """Send what is left; True when there is nothing left, or the connection is gone (its reader will say so)."""
        try:
            sent = self._sock.send(self._out)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            return True
        self._out = self._out[sent:]
        return not self._out

    def _writable(self) -> None:
        loop = self._exchange.loop
        if not self._connected:
            code = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                self._fail(os.strerror(code))
                return
            self._connected = True
            loop.add_reader(self._fd, self._readable)
        if self._flush():
            self._writing = False
            loop.remove_writer(self._fd)

    def _readable(self) -> None:
        try:
            data = self._sock.recv(65537 - len(self._in))
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._gone(error.strerror or str(error))
            return
        if not data:
            self._gone("connection closed by the server")
            return
        if self.attempt is None:
            # Nobody asked anything.
            self._exchange.stats.upstream_mismatched_total += 1
            self.close()
            return
        self._in += data
        size = self._in[0] << 8 | self._in[1] if len(self._in) > 1 else 65535
        if len(self._in) < 2 + size:
            return
        message = bytes(self._in[2:2 + size])
        more = len(self._in) > 2 + size
        self._in.clear()
        if not self.attempt.matches(message):
            self._exchange.stats.upstream_mismatched_total += 1
            self._fail("reply to another query")
            return
        attempt, self.attempt = self.attempt, None
        attempt.channel = None
        self._served += 1
        if more or self._writing or self._served >= QUERIES_PER_CONNECTION or not self._exchange.park(self):
            self.close()
        else:
            self.deadline = self._exchange.loop.time() + IDLE_TIMEOUT
            self._exchange.deadlines.watch(self)
        attempt.owner.on_message(attempt, message)

    def _gone(self, why: str) -> None:
        """The server ended the connection. If that crossed our query on the way, a new one gets the query."""
        attempt = self.attempt
        if attempt is None or not self._served or self._in:
            self._fail(why)
            return
        self.attempt = None
        self.close()
        try:
            connection = self._exchange.new_connection(self.server)
        except OSError as error:
            attempt.channel = None
            attempt.owner.on_failure(attempt, error.strerror or str(error))
            return
        attempt.channel = connection
        connection.ask(attempt, self._query)

    def _fail(self, why: str) -> None:
        attempt, self.attempt = self.attempt, None
        self.close()
        if attempt is not None:
            attempt.channel = None
            attempt.owner.on_failure(attempt, why)
