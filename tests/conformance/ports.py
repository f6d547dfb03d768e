"""Free ports for proxies, upstreams and clients."""

from __future__ import annotations

import random
import socket
import threading

_ports_given: set[int] = set()
"""Ports are chosen before the proxy binds them: none is given twice."""
_ports_lock = threading.Lock()


def free_port() -> int:
    """A port that nobody uses, below the range from which the kernel picks ports of outgoing connections."""
    while True:
        port = random.randint(10000, 32000)
        with _ports_lock:
            if port in _ports_given:
                continue
            _ports_given.add(port)
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
