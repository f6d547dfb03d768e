"""The gRPC health protocol, client side, as bytes: grpc.health.v1.Health/Check over HTTP/2.

Two messages of one field each; a protobuf library would cost more memory than all the rest of the agent's probes.
"""

from agent.http.exchange import Response

PATH = "/grpc.health.v1.Health/Check"
MAX_RESPONSE = 4096
HEADERS = (("content-type", "application/grpc"),)

_SERVING = 1
_STATUSES = ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")
_CODES = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
    "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip


def check_request(service: str) -> bytes:
    """A HealthCheckRequest in its gRPC frame; `service` "" asks for the server as a whole."""
    name = service.encode()
    message = b"\x0a" + _varint(len(name)) + name if name else b""
    return b"\0" + len(message).to_bytes(4, "big") + message


def complaint(response: Response) -> str:
    """Why the answer is not SERVING; "" when it is."""
    if response.status != 200:
        return f"HTTP status {response.status}"
    fields = dict(response.headers) | dict(response.trailers)
    code = fields.get(b"grpc-status", b"").decode("latin-1")
    if code != "0":
        known = _CODES[int(code)] if code.isascii() and code.isdigit() and int(code[:4]) < len(_CODES) else code
        text = fields.get(b"grpc-message", b"").decode("latin-1")[:200]
        return f"gRPC status {known or 'missing'}{': ' + text if text else ''}"
    try:
        status = _status(response.body)
    except ValueError as error:
        return f"bad HealthCheckResponse: {error}"
    if status == _SERVING:
        return ""
    return f"service is {_STATUSES[status] if status < len(_STATUSES) else status}"


def _status(body: bytes) -> int:
    """The field `status` (1) of a framed HealthCheckResponse. Raises ValueError."""
    if len(body) < 5 or len(body) != 5 + int.from_bytes(body[1:5], "big"):
        raise ValueError("expected one message")
    if body[0]:
        raise ValueError("it is compressed, which was not asked for")
    status, at = 0, 5
    while at < len(body):
        key, at = _read_varint(body, at)
        kind = key & 7
        if kind == 0:
            value, at = _read_varint(body, at)
            if key >> 3 == 1:
                status = value
        elif kind == 2:
            size, at = _read_varint(body, at)
            at += size
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")
    if at != len(body):
        raise ValueError("cut off")
    return status


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("cut off")
        value |= (data[at] & 0x7F) << shift
        at += 1
        if not data[at - 1] & 0x80:
            return value, at
    raise ValueError("number is too long")
