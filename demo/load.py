"""Clients that keep asking until stdin ends, as well-behaved HTTP/1.1 clients do.

    python -m demo.load URL [--clients N] [--new-connections]

Each client keeps its connection (or opens one for each request), obeys `connection: close` by opening another one, and
after the end of stdin finishes what it began and opens nothing more. Prints `started` once every client has had an
answer, and at the end one line of JSON: `requests`, `closes` (answers that said `connection: close`) and `failed` (what
went wrong, with its count).
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import threading
from collections import Counter
from urllib.parse import urlsplit

TIMEOUT = 10.0
"""Seconds that one answer may take."""


class Client(threading.Thread):
    """One client and what it counted."""

    def __init__(self, url: str, stop: threading.Event, new_connections: bool) -> None:
        super().__init__()
        parts = urlsplit(url)
        self._authority = parts.hostname or "", parts.port or 80
        self._path = parts.path or "/"
        self._stop_asking = stop
        self._new_connections = new_connections
        self.answered = threading.Event()
        self.requests = 0
        self.closes = 0
        self.failed: Counter[str] = Counter()

    def run(self) -> None:
        connection: http.client.HTTPConnection | None = None
        while not self._stop_asking.is_set():
            connection = connection or http.client.HTTPConnection(*self._authority, timeout=TIMEOUT)
            if not self._ask(connection):
                connection.close()
                connection = None
            self.answered.set()
        if connection is not None:
            connection.close()

    def _ask(self, connection: http.client.HTTPConnection) -> bool:
        """One request; whether the connection may be used again."""
        self.requests += 1
        try:
            connection.request("GET", self._path)
            response = connection.getresponse()
            response.read()
        except (OSError, http.client.HTTPException) as error:
            self.failed[f"{type(error).__name__}: {error}"] += 1
            return False
        if response.status != 200:
            self.failed[f"status {response.status}"] += 1
        closing = response.will_close
        self.closes += closing
        return not (closing or self._new_connections)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="demo.load", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("url")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--new-connections", action="store_true", help="a connection for each request")
    options = parser.parse_args(arguments)
    stop = threading.Event()
    clients = [Client(options.url, stop, options.new_connections) for _ in range(options.clients)]
    for client in clients:
        client.start()
    for client in clients:
        client.answered.wait()
    print("started", flush=True)
    sys.stdin.read()
    stop.set()
    for client in clients:
        client.join()
    result = {
        "requests": sum(client.requests for client in clients),
        "closes": sum(client.closes for client in clients),
        "failed": dict(sum((client.failed for client in clients), Counter())),
    }
    print(json.dumps(result), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
