"""Path normalization as Envoy's (RFC 3986 section 6, with backslashes taken for slashes)."""

from __future__ import annotations

import re

from proxy.config import model

UNUSUAL = re.compile(rb"/\.|%|\\|//|#")
"""A path without any of these is normal already."""

_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})")
_ESCAPED_SLASH = re.compile(rb"%(2[Ff]|5[Cc])")
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


class PathError(Exception):
    """The path is refused: 400 path_normalization_failed. ``path`` is as far as it was rewritten, for the log."""

    def __init__(self, path: bytes | None = None) -> None:
        super().__init__(path)
        self.path = path


def _decode_unreserved(match: re.Match[bytes]) -> bytes:
    value = int(match[1], 16)
    if value == 0:
        raise PathError
    return bytes((value,)) if value in _UNRESERVED else match[0]


def _remove_dots(path: bytes) -> bytes:
    """RFC 3986 section 5.2.4 for an absolute path."""
    out: list[bytes] = []
    segments = path.split(b"/")[1:]
    for segment in segments:
        if segment == b"..":
            if out:
                out.pop()
        elif segment != b".":
            out.append(segment)
    if segments[-1] in (b".", b".."):
        out.append(b"")
    return b"/" + b"/".join(out)


class PathNormalizer:
    """normalize_path, merge_slashes and path_with_escaped_slashes_action of one connection manager."""

    __slots__ = ("_action", "_merge", "_normalize", "_reject_fragment")

    def __init__(self, config: model.HttpConnectionManager) -> None:
        self._normalize = config.normalize_path
        self._merge = config.merge_slashes
        self._action = config.path_with_escaped_slashes_action
        self._reject_fragment = config.reject_path_with_fragment

    def apply(self, target: bytes) -> tuple[bytes, bool]:
        """The normal form of path and query, and whether the client shall be redirected to it; raises PathError."""
        if b"#" in target:
            if self._reject_fragment:
                raise PathError
            target = target.partition(b"#")[0]
        path, mark, query = target.partition(b"?")
        redirect = False
        if self._action != model.KEEP_UNCHANGED and _ESCAPED_SLASH.search(path):
            path = _ESCAPED_SLASH.sub(lambda m: b"/" if m[1] in (b"2F", b"2f") else b"\\", path)
            if self._action == model.REJECT_REQUEST:
                raise PathError(path + mark + query)
            redirect = self._action == model.UNESCAPE_AND_REDIRECT
        if self._normalize:
            path = _remove_dots(_ESCAPE.sub(_decode_unreserved, path).replace(b"\\", b"/"))
        if self._merge:
            path = re.sub(rb"/{2,}", b"/", path)
        return path + mark + query, redirect
