"""RE2 patterns: RE2 itself is the judge of what matches, also where Python's ``re`` does the matching."""

from __future__ import annotations

import pytest
import re2
from hypothesis import example, given, settings
from hypothesis import strategies as st

from proxy.config import regex
from proxy.config.regex import RegexError, SafeRegex, Substitution

LATIN1 = re2.Options()
LATIN1.encoding = re2.Options.Encoding.LATIN1
LATIN1.log_errors = False


def uses_re(pattern: SafeRegex) -> bool:
    return type(getattr(pattern.fullmatch, "__self__", None)).__module__ == "re"


@pytest.mark.parametrize("text", [
    "/beta/.*", "/api/v[0-9]+/users/[^/]+/orders", "^/exact$", r".*\.png", "/a/?", r"\d{1,3}\.\d{1,3}", "[^]x]*", "é+",
])
def test_patterns_that_cannot_backtrack_are_matched_by_re(text: str) -> None:
    assert uses_re(SafeRegex(text))


@pytest.mark.parametrize("text", [
    ".*/ns/evil/.*", "(a+)+$", "a*a*b", "(a|aa)+", "a?a?a?aaa", r"x*[^y]*z", "(?i)abc", r"\pL+", "[[:alpha:]]+", "a|b",
    "a*?", r"\bword\b", r".*x.{1,30}", "x{0,5}x{0,5}y",
])
def test_patterns_that_could_backtrack_are_matched_by_re2(text: str) -> None:
    assert not uses_re(SafeRegex(text))


@pytest.mark.parametrize("text", [".*a.*b.*c.*d", "(a+)+b", "(a|aa)+b", ".*.*.*=x", r"^(([a-z])+.)+[A-Z]([a-z])+$"])
def test_hostile_values_take_linear_time(text: str) -> None:
    # With a backtracking matcher none of these would end.
    assert SafeRegex(text).fullmatch(b"a" * 60_000) is None


@pytest.mark.parametrize(("text", "value", "matches"), [
    (".", b"\xe9", True), ("..", "é".encode(), True), (".", "é".encode(), False), ("é", "é".encode(), True),
    ("[é]", b"\xc3", True), (r"\w", b"\xe9", False), (r"\W", b"\xe9", True), (".", b"\n", False),
    (r"\s", b"\x0b", False),
    ("a$", b"a", True), ("a$", b"a\n", False), (r"\$", b"$", True), ("x{2}", b"xx", True), ("x{2,}", b"xxx", True),
    (r"[\d-]+", b"1-2", True), ("[a-]+", b"a-", True), ("[]a]+", b"]a", True), (r"[\]]", b"]", True),
])
def test_values_are_bytes(text: str, value: bytes, matches: bool) -> None:
    assert (SafeRegex(text).fullmatch(value) is not None) is matches
    assert (re2.compile(text.encode(), LATIN1).fullmatch(value) is not None) is matches


ATOMS = st.sampled_from(["a", "b", "/", ".", r"\.", r"\d", r"\w", r"\S", "[ab]", "[^a]", "[a-c]", "[^/]", "é", r"\-",
                         "[.]"])
REPEATS = st.sampled_from(["", "", "*", "+", "?", "{2}", "{1,2}", "{0,}", "{,2}", "*?"])
PATTERNS = st.lists(st.tuples(ATOMS, REPEATS), max_size=5).map(lambda items: "".join(a + r for a, r in items))
ANCHORED = st.tuples(st.sampled_from(["", "^"]), PATTERNS, st.sampled_from(["", "$"])).map("".join)
VALUES = st.lists(st.sampled_from([b"a", b"b", b"c", b"/", b".", b"1", b"-", b"\n", b"\xc3", b"\xe9", "é".encode()]),
                  max_size=8).map(b"".join)


@settings(max_examples=500, deadline=None)
@given(ANCHORED, st.lists(VALUES, min_size=1, max_size=5))
@example("[^a]+a", [b"ba", b"bba", b"a"])
@example("a+a", [b"aa", b"aaa", b"a"])
def test_re_and_re2_agree(text: str, values: list[bytes]) -> None:
    try:
        judge = re2.compile(text.encode(), LATIN1)
    except re2.error:
        with pytest.raises(RegexError):
            SafeRegex(text)
        return
    pattern = SafeRegex(text, max_program_size=10_000)
    for value in values:
        assert (pattern.fullmatch(value) is not None) == (judge.fullmatch(value) is not None), (text, value)


@pytest.mark.parametrize(("text", "problem"), [
    ("(?=a)", "invalid perl operator: (?="), ("(?<!a)b", "invalid perl operator"),
    (r"(a)\1", "invalid escape sequence"),
    ("a++", "bad repetition operator"), ("(", "missing )"), ("[a", "missing ]"), ("a{1001}", "invalid repetition size"),
    ("(abc[a-z0-9]{3,50}[a-z]{1,40}){1,3}", "RE2 program size of 699 > max program size of 100"),
])
def test_what_re2_refuses_is_refused(text: str, problem: str) -> None:
    with pytest.raises(RegexError) as raised:
        SafeRegex(text)
    assert problem in str(raised.value)


def test_the_largest_program_is_a_setting() -> None:
    text = "(abc[a-z0-9]{3,50}[a-z]{1,40}){1,3}"
    assert SafeRegex(text, 699).fullmatch(b"abc" + b"z" * 40) is not None
    with pytest.raises(RegexError):
        SafeRegex(text, 698)


@pytest.mark.parametrize(("text", "substitution", "value", "result"), [
    ("^/service/([^/]+)(/.*)$", r"\2/instance/\1", b"/service/foo/v1/api", b"/v1/api/instance/foo"),
    ("one", "two", b"/xxx/one/yyy/one/zzz", b"/xxx/two/yyy/two/zzz"),
    ("(?i)/xxx/", "/yyy/", b"/aaa/XxX/bbb", b"/aaa/yyy/bbb"),
    ("^(.*?)one(.*)$", r"\1two\2", b"/xxx/one/yyy/one/zzz", b"/xxx/two/yyy/one/zzz"),
    ("a*", "x", b"baac", b"xbxcx"), ("", "-", b"ab", b"-a-b-"), ("a", r"[\0]", b"aa", b"[a][a]"),
    ("a", r"\\", b"a", b"\\"),
    ("(a)|b", r"<\1>", b"ab", b"<a><>"), ("x", "y", b"", b""), ("é", "e", "né".encode(), b"ne"),
])
def test_substitutions(text: str, substitution: str, value: bytes, result: bytes) -> None:
    pattern = SafeRegex(text)
    assert pattern.sub(Substitution.parse(substitution, pattern.groups), value) == result


@pytest.mark.parametrize(("text", "problem"), [
    (r"\2", "names group 2, the pattern has 1"), (r"\x", "a backslash must be followed by"),
    ("\\", "a backslash must be"),
])
def test_bad_substitutions(text: str, problem: str) -> None:
    with pytest.raises(RegexError, match=problem):
        Substitution.parse(text, SafeRegex("(a)").groups)


def test_what_may_be_given_back_is_bounded() -> None:
    assert regex._linear(".*" + "x" * 256) is not None
    assert regex._linear(".*" + "x" * 257) is None
