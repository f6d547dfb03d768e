"""type.matcher.v3 and the header and query parameter matchers of config.route.v3, compiled to predicates over bytes."""

from __future__ import annotations

import re

from proxy.config.core import header_name
from proxy.config.model import BytesPredicate, HeaderMatcher, QueryParameterMatcher
from proxy.config.reader import Reader, Skip
from proxy.config.regex import MAX_PROGRAM_SIZE, RegexError, SafeRegex, Substitution
from proxy.config.runtime import RE2_MAX_PROGRAM_SIZE

_INTEGER = re.compile(rb"\s*[-+]?[0-9]+\s*")


def regex(reader: Reader) -> SafeRegex:
    """type.matcher.v3.RegexMatcher. Raises Skip for a pattern that RE2 refuses."""
    text = reader.string("regex")
    limit = int(reader.scope.runtime_number(RE2_MAX_PROGRAM_SIZE, MAX_PROGRAM_SIZE))
    if reader.has("google_re2"):
        own = reader.sub("google_re2", lambda engine: engine.limit("max_program_size"))
        limit = limit if own is None else own
    try:
        return SafeRegex(text, limit)
    except RegexError as error:
        reader.error("regex", str(error))
        raise Skip from None


def regex_rewrite(reader: Reader) -> tuple[SafeRegex, Substitution]:
    """type.matcher.v3.RegexMatchAndSubstitute."""
    pattern = reader.need("pattern", regex)
    try:
        return pattern, Substitution.parse(reader.string("substitution"), pattern.groups)
    except RegexError as error:
        reader.error("substitution", str(error))
        raise Skip from None


def _is_match(pattern: SafeRegex) -> BytesPredicate:
    fullmatch = pattern.fullmatch
    return lambda value: fullmatch(value) is not None


def exact(wanted: bytes, ignore_case: bool = False) -> BytesPredicate:
    """A predicate for equality."""
    if ignore_case:
        folded = wanted.lower()
        return lambda value: value.lower() == folded
    return lambda value: value == wanted


def prefix(wanted: bytes, ignore_case: bool = False) -> BytesPredicate:
    """A predicate for a beginning."""
    if ignore_case:
        folded = wanted.lower()
        return lambda value: value.lower().startswith(folded)
    return lambda value: value.startswith(wanted)


def suffix(wanted: bytes, ignore_case: bool = False) -> BytesPredicate:
    """A predicate for an end."""
    if ignore_case:
        folded = wanted.lower()
        return lambda value: value.lower().endswith(folded)
    return lambda value: value.endswith(wanted)


def contains(wanted: bytes, ignore_case: bool = False) -> BytesPredicate:
    """A predicate for a part."""
    if ignore_case:
        folded = wanted.lower()
        return lambda value: folded in value.lower()
    return lambda value: wanted in value


_PATTERNS = {"exact": exact, "prefix": prefix, "suffix": suffix, "contains": contains}


def string_matcher(reader: Reader) -> BytesPredicate:
    """type.matcher.v3.StringMatcher."""
    kind = reader.chosen("match_pattern")
    ignore_case = reader.boolean("ignore_case")
    if kind == "safe_regex":
        if ignore_case:
            reader.error("ignore_case", "ignore_case has no effect for safe_regex.")
        return _is_match(reader.need("safe_regex", regex))
    if kind in _PATTERNS:
        return _PATTERNS[kind](reader.octets(kind), ignore_case)
    if kind is not None:
        reader.take(kind)
        reader.error(kind, "is not supported yet; supported: exact, prefix, suffix, contains, safe_regex")
    raise Skip


def int64_range(reader: Reader) -> BytesPredicate:
    """type.v3.Int64Range over decimal text; the end does not belong to it."""
    start, end = reader.integer("start"), reader.integer("end")

    def matches(value: bytes) -> bool:
        # 64 bits are at most 20 characters; more digits would only cost time.
        return len(value) <= 64 and _INTEGER.fullmatch(value) is not None and start <= int(value) < end

    return matches


_DEPRECATED = {"exact_match": exact, "prefix_match": prefix, "suffix_match": suffix, "contains_match": contains}


def header_matcher(reader: Reader) -> HeaderMatcher:
    """config.route.v3.HeaderMatcher; without a specifier the header has to be present."""
    name = header_name(reader, "name", reader.string("name"))
    kind = reader.chosen("header_match_specifier")
    invert = reader.boolean("invert_match")
    missing_is_empty = reader.boolean("treat_missing_header_as_empty")
    if kind is None or kind == "present_match":
        wanted = reader.boolean("present_match", True) != invert
        return HeaderMatcher(name, None, False, wanted, missing_is_empty)
    if kind == "string_match":
        matches = reader.need("string_match", string_matcher)
    elif kind == "range_match":
        matches = reader.need("range_match", int64_range)
    elif kind == "safe_regex_match":
        matches = _is_match(reader.need("safe_regex_match", regex))
    else:
        matches = _DEPRECATED[kind](reader.octets(kind))
    return HeaderMatcher(name, matches, invert, True, missing_is_empty)


def query_parameter_matcher(reader: Reader) -> QueryParameterMatcher:
    """config.route.v3.QueryParameterMatcher; without a specifier the parameter has to be present."""
    name = reader.octets("name")
    if reader.has("string_match"):
        return QueryParameterMatcher(name, reader.need("string_match", string_matcher))
    return QueryParameterMatcher(name, None, reader.boolean("present_match", True))
