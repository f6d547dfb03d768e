"""Holds connections open: `python -m bench.holder PORT COUNT HOST PATH`. Prints "held" when all are; ends with stdin.

With a PATH each connection makes one request and reads its response first; with "-" nothing is ever sent on it. They
come from several loopback addresses: one has too few ports for more than 28,000, and fewer when others use it.
"""

from __future__ import annotations

import resource
import socket
import sys

ADDRESSES = 4
SPARE = 50
"""Descriptors for everything else."""
IP_BIND_ADDRESS_NO_PORT = 24
"""linux/in.h: the port is chosen by connect, among those that are free towards this destination."""


def hold(port: int, count: int, host: str, path: str) -> list[socket.socket]:
    """Raises OSError when a connection is refused or the response is not the expected one."""
    request = b"" if path == "-" else f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
    held = []
    for number in range(count):
        sock = socket.socket()
        sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        sock.bind((f"127.0.0.{2 + number % ADDRESSES}", 0))
        sock.settimeout(10)
        sock.connect(("127.0.0.1", port))
        if request:
            sock.sendall(request)
            read_response(sock)
        held.append(sock)
    return held


def read_response(sock: socket.socket) -> None:
    """One whole response with content-length."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = sock.recv(65536)
        if not piece:
            raise OSError(f"the connection ended in a head: {data[:200]!r}")
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    length = next((line[15:] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), None)
    if not head.startswith(b"HTTP/1.1 200") or length is None:
        raise OSError(f"not the expected response: {head[:200]!r}")
    while len(body) < int(length):
        piece = sock.recv(65536)
        if not piece:
            raise OSError("the connection ended in a body")
        body += piece


def main(arguments: list[str]) -> int:
    port, count, host, path = int(arguments[0]), int(arguments[1]), arguments[2], arguments[3]
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count + SPARE:
        print(f"{count} connections need a hard limit of {count + SPARE} descriptors; it is {hard}", file=sys.stderr)
        return 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        held = hold(port, count, host, path)
    except OSError as error:
        print(f"connection refused or broken: {error}", file=sys.stderr)
        return 1
    print("held", flush=True)
    sys.stdin.read()
    for sock in held:
        sock.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
