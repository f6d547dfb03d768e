"""gzip for responses of the status server and for bodies that an application compressed."""

import asyncio
import zlib

_PIECE = 256 * 1024  # compressed between two turns of the event loop
_LEVEL = 4  # on metric pages as small as level 6 within a few per cent, in two thirds of the time
_GZIP = 31  # zlib's window bits: the gzip format
_GZIP_OR_ZLIB = 47


def accepts_gzip(accept_encoding: str) -> bool:
    """Whether a client with that Accept-Encoding takes gzip (RFC 9110 12.5.3: its name says more than an asterisk)."""
    taken: dict[str, bool] = {}
    for element in accept_encoding.lower().split(",")[:32]:
        coding, *parameters = (part.strip() for part in element.split(";"))
        weight = next((p[2:].strip() for p in parameters if p.startswith("q=")), "1")
        taken.setdefault(coding.removeprefix("x-"), any(digit in "123456789" for digit in weight))
    return taken.get("gzip", taken.get("*", False))


async def gzip(data: bytes) -> bytes:
    """`data` compressed; other tasks get their turns meanwhile."""
    compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP)
    parts = []
    for at in range(0, len(data), _PIECE):
        parts.append(compressor.compress(data[at : at + _PIECE]))
        await asyncio.sleep(0)
    parts.append(compressor.flush())
    return b"".join(parts)


def decompress(data: bytes, max_size: int) -> bytes:
    """The content of a gzip or zlib body. Raises ValueError: not that, cut off, or larger than `max_size` bytes."""
    decompressor = zlib.decompressobj(_GZIP_OR_ZLIB)
    try:
        plain = decompressor.decompress(data, max_size + 1)
    except zlib.error as error:
        raise ValueError(f"bad compressed body: {error}") from None
    if len(plain) > max_size:
        raise ValueError(f"compressed body is larger than {max_size} bytes")
    if not decompressor.eof:
        raise ValueError("compressed body is cut off")
    return plain
