"""DNS over TCP (RFC 7766): several queries a connection, answered as their answers come.

A message is two bytes of length and the message. Everything is bounded: connections, queries under way and bytes a
connection, and the time in which nothing is completed.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop
from socket import SocketType
from typing import TYPE_CHECKING

from proxy.config.model import SocketAddress
from proxy.deadlines import NEVER
from proxy.dns.query import Address
from proxy.dns.service import LATER, DnsService, log
from proxy.dns.udp import is_loopback
from proxy.listener.accept import BindError, ListenSocket

if TYPE_CHECKING:
    from proxy.deadlines import Deadlines

MAX_CONNECTIONS = 256
"""Of one worker. One more takes the place of the one that has been idle for longest, or else has waited for longest."""
MAX_UNDER_WAY = 64
"""Queries of one connection that wait for their answers; no more is read until some are answered."""
MAX_QUERY = 4096
"""Bytes; a question has about 300 with every EDNS option in use. A longer one ends the connection."""
MAX_UNSENT = 64 * 1024
"""Bytes of replies that wait for the client to read; no more queries are taken until they are fewer."""
MAX_UNSENT_AT_ALL = 1024 * 1024
"""The same with the answers that then still come: beyond it the connection is cut."""
SLICE = 16
"""Queries of all connections that are answered before all else in this worker has its turn again."""
LARGE = 2048
"""Bytes of a reply that count as one query more."""
READ = 16 * 1024
"""Bytes taken at once."""
IDLE = 10.0
"""Seconds in which a connection must complete a query or take some bytes of a reply (RFC 7766 section 6.2.3: a few)."""


class Turns:
    """Who may answer in this round of the loop. A client that sends much, over however many connections, must not keep
    others waiting, least of all those of UDP: connections for which there is no time any more stand in a line.
    """

    __slots__ = ("_left", "_line", "_loop", "_next")

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self._left = SLICE
        self._line: dict[TcpConnection, None] = {}
        self._next = False
        """The next round is on the loop's list."""

    def may(self, connection: TcpConnection) -> bool:
        """Whether it may answer a query now; otherwise it is called when it may."""
        if self._left > 0:
            return True
        self._line[connection] = None
        return False

    def took(self, size: int) -> None:
        """One answer, of so many bytes, was made."""
        self._left -= 1 + size // LARGE
        if not self._next:
            self._next = True
            self._loop.call_soon(self._round)

    def waits(self, connection: TcpConnection) -> bool:
        """Whether it stands in the line."""
        return connection in self._line

    def leave(self, connection: TcpConnection) -> None:
        """It ends."""
        self._line.pop(connection, None)

    def _round(self) -> None:
        self._left = SLICE
        self._next = False
        while self._line and self._left > 0:
            connection = next(iter(self._line))
            del self._line[connection]
            connection.take()


class TcpListener:
    """One address with its connections."""

    def __init__(self, loop: AbstractEventLoop, deadlines: Deadlines, address: SocketAddress, service: DnsService,
                 connections: dict[TcpConnection, None]) -> None:
        self._loop = loop
        self._deadlines = deadlines
        self._service = service
        self._connections = connections
        self._turns = Turns(loop)
        self._listen = ListenSocket(loop, address, None, 0, self._accepted, loopback_only=is_loopback(address.host))

    @property
    def address(self) -> SocketAddress:
        """With the bound port once ``bind`` was called."""
        return self._listen.address

    def bind(self) -> None:
        """Bind the socket. Raises BindError."""
        try:
            self._listen.bind()
        except BindError as error:
            raise BindError(str(error).replace("': ", "' for DNS over TCP: ", 1)) from error.__cause__

    def start(self) -> None:
        """Accept. Raises BindError."""
        self._listen.start()

    def close(self) -> None:
        """Close the listening socket and every connection."""
        self._listen.close()
        for connection in list(self._connections):
            connection.close()

    def _accepted(self, sock: SocketType, peer: Address) -> None:
        connections, stats = self._connections, self._service.stats
        if len(connections) >= MAX_CONNECTIONS:
            # Who holds them all, with questions that take long, must not keep others from answers that are known.
            oldest = min(connections, key=_least_needed)
            stats.tcp_connections_cut_total += not oldest.idle
            log.debug("%d connections: the one without progress for longest is closed, idle ones first",
                      len(connections))
            oldest.close()
        sock.setblocking(False)
        connection = TcpConnection(self._loop, self._deadlines, sock, peer, self._service, connections,
                                   self._turns)
        connections[connection] = None
        stats.tcp_connections_total += 1
        stats.tcp_connections_active += 1
        connection.start()


class TcpConnection:
    """One client."""

    __slots__ = ("_buffer", "_connections", "_deadlines", "_ended", "_loop", "_peer", "_reading", "_service", "_sock",
                 "_taking", "_turns", "_under_way", "_unsent", "_writing", "deadline")

    def __init__(self, loop: AbstractEventLoop, deadlines: Deadlines, sock: SocketType, peer: Address,
                 service: DnsService, connections: dict[TcpConnection, None], turns: Turns) -> None:
        self._loop = loop
        self._deadlines = deadlines
        self._turns = turns
        self._sock: SocketType | None = sock
        self._peer = peer
        self._service = service
        self._connections = connections
        self._buffer = bytearray()
        self._unsent = bytearray()
        self._under_way = 0
        self._reading = self._writing = self._taking = False
        self._ended = False
        """The client will send nothing more; what it asked is still answered."""
        self.deadline = NEVER

    @property
    def idle(self) -> bool:
        """Nothing is owed to the client."""
        return not self._under_way and not self._unsent and not self._turns.waits(self)

    def start(self) -> None:
        """Read."""
        self.deadline = self._loop.time() + IDLE
        self._deadlines.watch(self)
        self._watch()

    def close(self) -> None:
        """Close the socket; answers that are still to come are dropped."""
        sock = self._sock
        if sock is None:
            return
        self._sock = None
        if self._reading:
            self._loop.remove_reader(sock)
        if self._writing:
            self._loop.remove_writer(sock)
        self._deadlines.unwatch(self)
        self._turns.leave(self)
        del self._connections[self]
        self._service.stats.tcp_connections_active -= 1
        sock.close()
        self._buffer.clear()
        self._unsent.clear()

    def on_deadline(self, now: float) -> None:
        """Nothing was completed for IDLE seconds."""
        if self._under_way and not self._unsent:
            self.deadline = now + IDLE  # it is the servers' turn, and theirs is bounded
            return
        self._service.stats.tcp_idle_timeouts_total += 1
        self.close()

    # --- reading --------------------------------------------------------------------------------------------------

    def _readable(self) -> None:
        sock = self._sock
        if sock is None:
            return
        try:
            data = sock.recv(READ)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.close()
            return
        if data:
            self._buffer += data
        else:
            self._ended = True
        self.take()

    def take(self) -> None:
        """Answer what was read, as far as the bounds allow."""
        while True:
            self._taking = True
            try:
                replies = self._answers()
            finally:
                self._taking = False
            if self._sock is None:
                return
            if not replies:
                break
            if not self._send(b"".join(replies)):
                return
            # What was too much to answer at once may go on where the kernel took all of it.
        self._watch()

    def _answers(self) -> list[bytes]:
        """The answers that are there at once, each with its length; closes the connection of who speaks no DNS."""
        buffer = self._buffer
        at = 0
        replies: list[bytes] = []
        unsent = len(self._unsent)
        turns = self._turns
        while self._under_way < MAX_UNDER_WAY and unsent < MAX_UNSENT and len(buffer) - at >= 2:
            size = buffer[at] << 8 | buffer[at + 1]
            if size > MAX_QUERY:
                log.debug("TCP client %s announces a query of %d bytes, at most %d are taken", self._peer, size,
                          MAX_QUERY)
                self.close()
                break
            end = at + 2 + size
            if end > len(buffer) or not turns.may(self):
                break
            # Counted before the answer, which may come at once.
            self._under_way += 1
            reply = self._service.answer(bytes(buffer[at + 2:end]), True, self._peer, self._respond)
            turns.took(len(reply or b""))
            if self._sock is None:
                break
            at = end
            if reply is LATER:
                continue
            self._under_way -= 1
            if reply is None:
                self.close()
                break
            replies.append(len(reply).to_bytes(2, "big") + reply)
            unsent += 2 + len(reply)
        if at:
            del buffer[:at]
            self.deadline = self._loop.time() + IDLE
        return replies

    def _respond(self, reply: bytes | None, _client: Address) -> None:
        """An answer that came later."""
        if self._sock is None:
            return
        self._under_way -= 1
        if reply is not None and not self._send(len(reply).to_bytes(2, "big") + reply):
            return
        self.deadline = self._loop.time() + IDLE
        if not self._taking:
            self._resume()

    # --- writing --------------------------------------------------------------------------------------------------

    def _send(self, data: bytes) -> bool:
        """Send now or keep; whether the connection is still open."""
        sock = self._sock
        assert sock is not None
        sent = 0
        if not self._unsent:
            try:
                sent = sock.send(data)
            except (BlockingIOError, InterruptedError):
                pass
            except OSError:
                self._service.stats.send_failed_total += 1
                self.close()
                return False
        if sent < len(data):
            self._unsent += data[sent:]
            if len(self._unsent) > MAX_UNSENT_AT_ALL:
                log.debug("TCP client %s does not read its answers: it is cut off", self._peer)
                self.close()
                return False
            self._watch()
        return True

    def _writable(self) -> None:
        sock = self._sock
        if sock is None:
            return
        try:
            sent = sock.send(self._unsent)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._service.stats.send_failed_total += 1
            self.close()
            return
        del self._unsent[:sent]
        self.deadline = self._loop.time() + IDLE
        self._resume()

    def _resume(self) -> None:
        """There may be room again for queries that were read already."""
        if self._buffer:
            self.take()
        else:
            self._watch()

    def _watch(self) -> None:
        """Have the loop look at what is wanted now; close when there is nothing left to do."""
        sock = self._sock
        assert sock is not None
        if self._ended and self.idle:
            self.close()  # an incomplete query in the buffer never becomes whole
            return
        reading = not self._ended and self._under_way < MAX_UNDER_WAY and len(self._unsent) < MAX_UNSENT \
            and not self._turns.waits(self)
        writing = bool(self._unsent)
        if reading != self._reading:
            self._reading = reading
            if reading:
                self._loop.add_reader(sock, self._readable)
            else:
                self._loop.remove_reader(sock)
        if writing != self._writing:
            self._writing = writing
            if writing:
                self._loop.add_writer(sock, self._writable)
            else:
                self._loop.remove_writer(sock)


def _least_needed(connection: TcpConnection) -> tuple[bool, float]:
    return not connection.idle, connection.deadline
