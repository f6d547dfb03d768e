"""`pilot-agent request METHOD PATH [BODY]`: one HTTP call to this host, its answer on standard output and nothing else.

istioctl runs it in the container and parses what it prints, so a body goes out as it comes in, whatever its size.
"""

import contextlib
import socket
import time

import h11

from agent import terminal
from agent.errors import AgentError
from agent.flags import Parsed
from agent.options import RequestOptions, request_options

_TIMEOUT_S = 60.0
_MAX_HEAD = 64 * 1024
_MAX_ERROR = 64 * 1024  # of an error's body, for the message
_READ = 256 * 1024
# Literals: a resolver that is not up yet must not get in the way, and an admin may listen on one family only.
_LOOPBACKS = ("127.0.0.1", "::1")
_FIRST_ERROR = 400
_NOT_FOUND = 404  # the real program prints such an answer like any other


def run(parsed: Parsed) -> int:
    options = request_options(parsed)
    Call(options, time.monotonic() + _TIMEOUT_S).run()
    return 0


class Call:
    """One request and its response, until a deadline on time.monotonic's clock."""

    def __init__(self, options: RequestOptions, deadline: float) -> None:
        self._options = options
        self._deadline = deadline
        self._protocol = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD)

    def run(self) -> None:
        """Raises AgentError: nobody there, no answer in time, or a status above 399 other than 404 (with its body)."""
        try:
            with self._connect() as connection:
                with contextlib.suppress(
                    ConnectionError
                ):  # whoever does not read it all may have answered all the same
                    connection.sendall(self._request())
                self._print(connection)
        except TimeoutError:
            raise AgentError(f"{self}: no complete answer in {_TIMEOUT_S:g}s") from None
        except h11.RemoteProtocolError as error:
            raise AgentError(f"{self}: bad response: {error}") from None

    def __str__(self) -> str:
        return f"{self._options.method} http://localhost:{self._options.port}{self._options.target}"

    def _request(self) -> bytes:
        options = self._options
        headers = [("host", f"localhost:{options.port}"), ("user-agent", "pilot-agent"), ("connection", "close")]
        body = options.body.encode(errors="surrogateescape")
        if body or options.method not in ("GET", "HEAD"):
            headers.append(("content-length", str(len(body))))
        events = [h11.Request(method=options.method, target=options.target, headers=headers)]
        parts = [self._protocol.send(event) for event in events]
        if body:
            parts.append(self._protocol.send(h11.Data(data=body)))
        parts.append(self._protocol.send(h11.EndOfMessage()))
        return b"".join(part or b"" for part in parts)

    def _connect(self) -> socket.socket:
        failures: list[str] = []
        for address in _LOOPBACKS:
            try:
                return socket.create_connection((address, self._options.port), timeout=self._left())
            except TimeoutError:
                raise
            except OSError as error:
                failures.append(f"connect to {address} port {self._options.port}: {error.strerror or error}")
        raise AgentError(f"{self}: {failures[0]}")

    def _print(self, connection: socket.socket) -> None:
        status, error_body = 0, b""
        while True:
            event = self._protocol.next_event()
            if event is h11.NEED_DATA:
                connection.settimeout(self._left())
                try:
                    received = connection.recv(_READ)
                except TimeoutError:
                    raise
                except OSError as error:
                    raise AgentError(f"{self}: connection lost: {error.strerror}") from None
                if not (received or status):
                    raise AgentError(f"{self}: the connection ended without an answer")
                self._protocol.receive_data(received)
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                if self._failed(status):
                    error_body += bytes(event.data)[: _MAX_ERROR - len(error_body)]
                else:
                    terminal.write(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                break
            elif not isinstance(event, h11.InformationalResponse):
                raise AgentError(f"{self}: bad response: the connection ended too early")
        if self._failed(status):
            said = error_body.decode(errors="replace").strip()
            raise AgentError(f"{self}: status {status}: {said}")
        terminal.write(b"\n")

    @staticmethod
    def _failed(status: int) -> bool:
        return status >= _FIRST_ERROR and status != _NOT_FOUND

    def _left(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left
