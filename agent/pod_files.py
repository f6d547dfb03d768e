"""Files that the downward API mounts: one `key="value"` a line, the value quoted as Go quotes strings."""

import re

from agent.documents import DocumentError, read_text
from agent.errors import reason

# Relative, as in the real program: the image runs with working directory /.
ANNOTATIONS = "./etc/istio/pod/annotations"
LABELS = "./etc/istio/pod/labels"
# Millicores, mounted by injectors of Istio 1.8 to 1.12 and ASM.
CPU_LIMIT = "./etc/istio/pod/cpu-limit"
CPU_REQUEST = "./etc/istio/pod/cpu-request"
_MAX_BYTES = 1024 * 1024  # Kubernetes allows 256 KiB of annotations

_LINE = re.compile(r'([^=\s"]+)="((?:[^"\\\n]|\\.)*)"')
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-7]{3})|(.)|$)")
_SINGLE = {
    "a": b"\a", "b": b"\b", "f": b"\f", "n": b"\n", "r": b"\r", "t": b"\t", "v": b"\v", "\\": b"\\", '"': b'"'
}  # fmt: skip


def unquote(text: str) -> str:
    """The string that Go's strconv.Quote turned into `text` (without its quotes). Raises ValueError."""
    parts: list[bytes] = []
    at = 0
    for escape in _ESCAPE.finditer(text):
        parts.append(text[at : escape.start()].encode())
        at = escape.end()
        byte, short, long, octal, single = escape.groups()
        if byte or octal:
            # An escaped byte, not a character: several may make one character.
            value = int(byte, 16) if byte else int(octal, 8)
            parts.append(value.to_bytes(1, "big") if value < 256 else b"\xff")
        elif short or long:
            code = int(short or long, 16)
            if code > 0x10FFFF:
                raise ValueError(f"{escape[0]} is not a character")
            parts.append(chr(code).encode(errors="replace"))
        elif single in _SINGLE:
            parts.append(_SINGLE[single])
        else:
            raise ValueError(f"unknown escape {escape[0]}")
    parts.append(text[at:].encode())
    return b"".join(parts).decode(errors="replace")


def parse(text: str) -> dict[str, str]:
    """All entries of such a file. Raises ValueError naming the line; the caller discards the file as a whole."""
    entries: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise ValueError(f'line {number} is not key="value"')
        try:
            entries[match[1]] = unquote(match[2])
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
    return entries


def read_annotations(path: str = "") -> tuple[dict[str, str], str]:
    """The pod's annotations and a warning ("" when there is nothing to say). A file that is absent is an empty one."""
    return _read("annotations", path or ANNOTATIONS)


def read_labels(path: str = "") -> tuple[dict[str, str], str]:
    """The pod's labels, likewise."""
    return _read("labels", path or LABELS)


def _read(what: str, path: str) -> tuple[dict[str, str], str]:
    try:
        return parse(read_text(path, _MAX_BYTES)), ""
    except FileNotFoundError:
        return {}, ""
    except (OSError, DocumentError, ValueError) as error:
        return {}, f"{what} file {path} is ignored: {reason(error)}"


def read_cpus(path: str) -> int:
    """CPUs, rounded up, of a file with millicores; 0 when there is no such file or no such number in it."""
    try:
        text = read_text(path, 64).strip()
    except (OSError, DocumentError):
        return 0
    return -(-int(text) // 1000) if text.isascii() and text.isdigit() and len(text) < 10 else 0
