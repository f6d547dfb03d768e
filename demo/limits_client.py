"""A client of `demo.limits`: several connections at once that come, are served, and end in every way, until killed.

    python -m demo.limits_client PORT CONNECTIONS SEED

Served means: the far side's lines arrive and are sent back. Now and then the whole process ends without a word.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import struct
import sys

RESET = struct.pack("ii", 1, 0)
"""SO_LINGER that makes close send RST."""
STAY = 0.08
"""Seconds that a connection is served at most."""
PAUSE = 0.02
"""Seconds between two attempts of one client at most."""
CRASH = 0.01
"""Chance that a process ends where a connection would have ended."""


async def serve(port: int, chance: random.Random) -> None:
    """One connection from its beginning to its end."""
    loop = asyncio.get_running_loop()
    with socket.socket() as sock:
        sock.setblocking(False)
        try:
            await loop.sock_connect(sock, ("127.0.0.1", port))
            await loop.sock_sendall(sock, b"hello\n")
            end = loop.time() + chance.random() * STAY
            while loop.time() < end:
                data = await loop.sock_recv(sock, 4096)
                if not data:
                    return
                await loop.sock_sendall(sock, data)
        except OSError:
            return
        if chance.random() < CRASH:
            os._exit(0)
        ending = chance.randrange(3)
        if ending == 0:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        elif ending == 1:
            try:
                sock.shutdown(socket.SHUT_WR)
                await asyncio.sleep(chance.random() * PAUSE)
            except OSError:
                pass


async def keep_coming(port: int, chance: random.Random) -> None:
    while True:
        await serve(port, chance)
        await asyncio.sleep(chance.random() * PAUSE)


async def run(port: int, connections: int, seed: int) -> None:
    chance = random.Random(seed)
    await asyncio.gather(*(keep_coming(port, random.Random(chance.randrange(1 << 30))) for _ in range(connections)))


if __name__ == "__main__":
    asyncio.run(run(*map(int, sys.argv[1:4])))
