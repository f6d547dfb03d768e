"""Text of configuration files: YAML as Envoy reads it, JSON without ambiguity."""

from __future__ import annotations

import pytest

from proxy.config import yaml_document
from proxy.config.document import parse_json, parse_yaml
from proxy.config.errors import ConfigErrors


@pytest.mark.parametrize(("text", "value"), [
    ("true", True), ("True", True), ("TRUE", True), ("yes", True), ("on", True), ("y", True), ("Y", True),
    ("false", False), ("no", False), ("Off", False), ("n", False), ("N", False),
    ("tRue", "tRue"), ("oN", "oN"),
    ("~", None), ("null", None), ("", None),
    ("0", 0), ("10", 10), ("-7", -7), ("+7", 7), ("0x1F", 31), ("010", 8), ("08", "08"), ("1_000", "1_000"),
    ("4294967295", 4294967295),
    ("1.5", "1.5"), ("1e3", "1e3"), (".inf", ".inf"), ("1:30", "1:30"), ("12:30:45", "12:30:45"),
    ("2001-01-01", "2001-01-01"), ("2001-12-14t21:59:43.10-05:00", "2001-12-14t21:59:43.10-05:00"), ("0b11", "0b11"),
    ("=", "="), ("plain text", "plain text"),
])
def test_plain_scalars_mean_what_they_mean_to_envoy(text: str, value: object) -> None:
    parsed = parse_yaml(f"key: {text}\n")["key"]
    assert (type(parsed), parsed) == (type(value), value)


@pytest.mark.parametrize("text", ['"true"', "'on'", '"10"', "'~'", "''"])
def test_quoted_scalars_are_strings(text: str) -> None:
    assert parse_yaml(f"key: {text}") == {"key": text[1:-1]}
    assert parse_yaml(f"{{key: [{text}]}}") == {"key": [text[1:-1]]}


def test_block_scalars_are_strings() -> None:
    assert parse_yaml("a: |\n  on\nb: >-\n  10\n") == {"a": "on\n", "b": "10"}


def test_collections_aliases_and_ignored_keys() -> None:
    text = "!ignore shared: &one {a: 1}\nb: *one\nc: [*one, {d: *one}]\n"
    assert parse_yaml(text) == {"b": {"a": 1}, "c": [{"a": 1}, {"d": {"a": 1}}]}


def test_a_merge_key_is_an_ordinary_key() -> None:
    assert parse_yaml("<<: 1") == {"<<": 1}


def test_json_is_yaml() -> None:
    text = '{"a": [1, true, null, "x", {"b": "on"}]}'
    assert parse_yaml(text) == parse_json(text)


@pytest.mark.parametrize(("text", "problem"), [
    ("a: 1\nb: 2\na: 3\n", "YAML: duplicate key 'a' at line 3, column 1"),
    ("{x: {a: 1, a: 1}}", "YAML: duplicate key 'a' at line 1, column 12"),
    ("a: [1, 2\n", "YAML: "),
    ("a: b: c\n", "YAML: mapping values are not allowed in this context at line 1, column 5"),
    ("? [a]\n: 1\n", "YAML: a key must be a scalar at line 1, column 3"),
    ("a: 1\n---\nb: 2\n", "YAML: but found another document at line 2, column 1"),
    ("a: *nothing\n", "YAML: found undefined alias at line 1, column 4"),
    ("a: \x00\n", "YAML: "),
    ("[" * 200 + "]" * 200, "YAML: nested more than 100 deep"),
])
def test_bad_yaml_says_what_and_where(text: str, problem: str) -> None:
    with pytest.raises(ConfigErrors) as raised:
        parse_yaml(text)
    assert str(raised.value).startswith(problem)


@pytest.mark.parametrize(("text", "problem"), [
    ('{"a": 1, "b": {"c": 1, "c": 2}}', "JSON: duplicate key 'c'"),
    ('{"a": }', "JSON: Expecting value at line 1, column 7"),
    ('{"a": NaN}', "JSON: NaN is not a JSON value"),
    ("[" * 100_000, "JSON: nested too deep"),
    ("", "JSON: Expecting value at line 1, column 1"),
])
def test_bad_json_says_what_and_where(text: str, problem: str) -> None:
    with pytest.raises(ConfigErrors) as raised:
        parse_json(text)
    assert str(raised.value) == problem


def test_aliases_cannot_grow_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml_document, "MAX_NODES", 10_000)
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    with pytest.raises(ConfigErrors, match="more than 10000 values"):
        parse_yaml("\n".join(lines))


def test_an_alias_of_itself_is_refused() -> None:
    with pytest.raises(ConfigErrors, match="nested more than 100 deep"):
        parse_yaml("a: &a [*a]")
