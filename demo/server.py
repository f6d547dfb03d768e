"""The servers of the demo: an HTTP server that says who it is and who asked, and one that answers raw TCP lines.

    python -m demo.server NAME [--http HOST:PORT] [--tcp HOST:PORT] [--delay SECONDS]

HTTP: every path is answered 200 with one line (`NAME METHOD PATH from PEER`); a path that ends in /headers gets the
request's headers too. TCP: the server greets first, then says back each line it hears. Prints `ready` once it listens.
"""

from __future__ import annotations

import argparse
import signal
import socketserver
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import FrameType
from typing import ClassVar


class Application(BaseHTTPRequestHandler):
    """One connection of the HTTP server."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    name: ClassVar[str]
    delay: ClassVar[float] = 0.0

    def do_GET(self) -> None:
        if self.delay:
            time.sleep(self.delay)
        body = f"{self.name} {self.command} {self.path} from {self.client_address[0]}\n"
        if self.path.endswith("/headers"):
            body += "".join(f"{name}: {value}\n" for name, value in self.headers.items())
        content = body.encode("utf-8", "surrogateescape")
        self.send_response(200)
        self.send_header("content-type", "text/plain")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.do_GET()

    def log_message(self, format: str, *args: object) -> None:
        """The sidecar writes the access log."""


class HttpServer(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # HTTPServer's own looks its name up in DNS

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away in the middle is nothing to report."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class Lines(socketserver.StreamRequestHandler):
    """One connection of the TCP server."""

    name: ClassVar[str]

    def handle(self) -> None:
        self.wfile.write(f"+{self.name} greets {self.client_address[0]}\r\n".encode())
        while line := self.rfile.readline(4096):
            self.wfile.write(f"+{self.name} heard {line.strip().decode('utf-8', 'replace')}\r\n".encode())


class TcpServer(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


def address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="demo.server", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("name")
    parser.add_argument("--http", type=address, metavar="HOST:PORT")
    parser.add_argument("--tcp", type=address, metavar="HOST:PORT")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds that each HTTP answer takes")
    options = parser.parse_args(arguments)
    Application.name = Lines.name = options.name
    Application.delay = options.delay
    servers: list[socketserver.BaseServer] = []
    if options.http:
        servers.append(HttpServer(options.http, Application))
    if options.tcp:
        servers.append(TcpServer(options.tcp, Lines))
    stop = threading.Event()

    def terminate(_signal: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, terminate)
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    print("ready", flush=True)
    stop.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
