"""Path normalization: what Envoy makes of paths, and properties that hold for all of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.config import model
from proxy.http.path import UNUSUAL, PathError, PathNormalizer
from tests.unit.http.http_world import manager

PLAIN = manager()
NORMALIZE = replace(PLAIN, normalize_path=True)
MERGE = replace(PLAIN, merge_slashes=True)
BOTH = replace(NORMALIZE, merge_slashes=True)


def slashes(action: int) -> model.HttpConnectionManager:
    return replace(BOTH, path_with_escaped_slashes_action=action)


GOLDEN = [
    (NORMALIZE, b"/", b"/"),
    (NORMALIZE, b"/a/b", b"/a/b"),
    (NORMALIZE, b"/a/./b", b"/a/b"),
    (NORMALIZE, b"/a/../b", b"/b"),
    (NORMALIZE, b"/a/b/..", b"/a/"),
    (NORMALIZE, b"/a/b/.", b"/a/b/"),
    (NORMALIZE, b"/..", b"/"),
    (NORMALIZE, b"/../../etc/passwd", b"/etc/passwd"),
    (NORMALIZE, b"/a/%2e%2e/b", b"/b"),
    (NORMALIZE, b"/%2E/b", b"/b"),
    (NORMALIZE, b"/%41%7e%2d", b"/A~-"),
    (NORMALIZE, b"/a\\b\\..\\c", b"/a/c"),
    (NORMALIZE, b"/a%2fb%5Cc", b"/a%2fb%5Cc"),
    (NORMALIZE, b"/%zz%", b"/%zz%"),
    (NORMALIZE, b"/%20%25", b"/%20%25"),
    (NORMALIZE, b"/a/..?x=/../%41", b"/?x=/../%41"),
    (NORMALIZE, b"/...", b"/..."),
    (NORMALIZE, b"/a//b", b"/a//b"),
    (NORMALIZE, b"/a//../b", b"/a/b"),
    (NORMALIZE, b"//", b"//"),
    (MERGE, b"//a///b//", b"/a/b/"),
    (MERGE, b"/a?b=//", b"/a?b=//"),
    (MERGE, b"/a/../b", b"/a/../b"),
    (BOTH, b"/a//..//b", b"/a/b"),
    (PLAIN, b"/a/../%41//\\", b"/a/../%41//\\"),
    (slashes(model.UNESCAPE_AND_FORWARD), b"/a%2f..%5cb", b"/b"),
    (slashes(model.UNESCAPE_AND_FORWARD), b"/a?%2f", b"/a?%2f"),
    (replace(PLAIN, reject_path_with_fragment=False), b"/a#b?c", b"/a"),
]


@pytest.mark.parametrize(("config", "path", "expected"), GOLDEN,
                         ids=lambda v: v.decode() if isinstance(v, bytes) else "")
def test_golden(config: model.HttpConnectionManager, path: bytes, expected: bytes) -> None:
    assert PathNormalizer(config).apply(path) == (expected, False)
    if path != expected:
        assert UNUSUAL.search(path), "the path would never be normalized"


def test_redirect() -> None:
    normalizer = PathNormalizer(slashes(model.UNESCAPE_AND_REDIRECT))
    assert normalizer.apply(b"/a%2Fb?c=%2f") == (b"/a/b?c=%2f", True)
    assert normalizer.apply(b"/a/./b?c=%2f") == (b"/a/b?c=%2f", False)


@pytest.mark.parametrize(("config", "path", "logged"), [
    (PLAIN, b"/a#b", None),
    (NORMALIZE, b"/a%00b", None),
    (slashes(model.REJECT_REQUEST), b"/a%5cb?c", b"/a\\b?c"),
    (slashes(model.REJECT_REQUEST), b"/a%2Fb", b"/a/b"),
])
def test_refused(config: model.HttpConnectionManager, path: bytes, logged: bytes | None) -> None:
    with pytest.raises(PathError) as raised:
        PathNormalizer(config).apply(path)
    assert raised.value.path == logged


PIECES = st.lists(st.sampled_from([b"/", b"/", b".", b"..", b"a", b"%2e", b"%2E%2e", b"%2f", b"%5C", b"\\", b"%41",
                                   b"%",
                                   b"%2", b"%25", b"%252e", b"~", b"x?", b"%7F"]), max_size=14)


@given(PIECES, st.sampled_from([NORMALIZE, BOTH, MERGE, slashes(model.UNESCAPE_AND_FORWARD)]))
def test_normal_form(pieces: list[bytes], config: model.HttpConnectionManager) -> None:
    normalizer = PathNormalizer(config)
    target = b"/" + b"".join(pieces)
    once, _ = normalizer.apply(target)
    path, mark, query = once.partition(b"?")
    assert path.startswith(b"/")
    assert (mark, query) == target.partition(b"?")[1:]
    if config.normalize_path:
        assert not {b".", b".."} & set(path.split(b"/")), "an application could be led out of its root"
        assert b"\\" not in path
    if config.merge_slashes:
        assert b"//" not in path
    if config.path_with_escaped_slashes_action == model.KEEP_UNCHANGED:
        # (Unescaping may uncover another escape: a second hop would unescape that, as with Envoy.)
        assert normalizer.apply(once)[0] == once
    if not UNUSUAL.search(target):
        assert once == target
