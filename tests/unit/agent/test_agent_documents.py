"""Documents, downward-API files and environment variables: read, bounded, complained about by name."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent import pod_files
from agent.documents import DocumentError, describe, parse, parse_mapping, read_text, to_json

ROOT = Path(pod_files.__file__).parents[1]


@pytest.mark.parametrize(
    ("text", "document"),
    [
        ('{"a": 1, "b": [true, null]}', {"a": 1, "b": [True, None]}),
        ("{a: 1, b: [x]}", {"a": 1, "b": ["x"]}),  # flow style, which is not JSON
        ("a: 1\nb: {c: 2.5}\n", {"a": 1, "b": {"c": 2.5}}),
        ("d: 2024-01-01\n", {"d": "2024-01-01"}),
        ("a: &x {k: 1}\nb: {<<: *x, l: 2}\n", {"a": {"k": 1}, "b": {"k": 1, "l": 2}}),
        ("", None),
    ],
)
def test_parse(text: str, document: object) -> None:
    assert parse(text) == document


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 2}', "duplicate key 'a'"),
        ("a: 1\na: 2\n", "duplicate key 'a' at line 2, column 1"),
        ("a: [", "at line 2, column 1"),
        ("a: !!python/object:os.system x", "could not determine a constructor"),
        ('{"a": NaN}', "NaN is not a JSON value"),
        ("- 1", "expected a mapping of field names to values, not [1]"),
        ("1: x", "expected a mapping"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("a: \x00", "malformed YAML"),
        ("a: &a [*a]", "recursive"),
    ],
)
def test_refused(text: str, message: str) -> None:
    with pytest.raises(DocumentError) as error:
        parse_mapping(text)
    assert message in str(error.value)
    assert len(str(error.value)) < 300


def test_files(tmp_path: Path) -> None:
    (tmp_path / "long").write_bytes(b"x" * 11)
    (tmp_path / "binary").write_bytes(b"\xff")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(DocumentError, match="larger than 10 bytes"):
        read_text(str(tmp_path / "long"), 10)
    assert read_text(str(tmp_path / "long"), 11) == "x" * 11
    with pytest.raises(DocumentError, match="not UTF-8"):
        read_text(str(tmp_path / "binary"))
    for odd in ("fifo", "."):
        with pytest.raises((DocumentError, IsADirectoryError)):
            read_text(str(tmp_path / odd))


def test_json_is_bounded() -> None:
    laughs = parse("a: &a [x,x,x,x]\nb: &b [*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b]\nd: [*c,*c,*c,*c]\n")
    assert to_json({"a": [1, "ü"]}, 100) == '{"a":[1,"\\u00fc"]}'
    with pytest.raises(DocumentError, match="larger than 100 characters"):
        to_json(laughs, 100)
    assert describe(laughs) == "a dict"
    with pytest.raises(DocumentError, match="cannot be written as JSON"):
        to_json({1, 2}, 100)


def test_describe_is_short() -> None:
    assert describe({"a": [1, None]}) == '{"a":[1,null]}'
    assert describe("x" * 1000) == f'"{"x" * 40}"...'
    assert len(describe("\0" * 1000)) < 300


@pytest.mark.parametrize(
    ("text", "entries"),
    [
        ('a/b.c="x"\nd="1=2"\n\n', {"a/b.c": "x", "d": "1=2"}),
        (r'k="line\nquote\" tab\t back\\"', {"k": 'line\nquote" tab\t back\\'}),
        (r'k="\u00fc\U0001f600\xc3\xbc\303\274"', {"k": "ü😀üü"}),
        ("", {}),
    ],
)
def test_downward_api(text: str, entries: dict[str, str]) -> None:
    assert pod_files.parse(text) == entries


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a", 'line 1 is not key="value"'),
        ('a="x"\nb="y', "line 2"),
        (r'a="\q"', r"line 1: unknown escape \q"),
        (r'a="\UFFFFFFFF"', "is not a character"),
    ],
)
def test_one_bad_line_discards_the_file(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "annotations"
    path.write_text(text)
    entries, warning = pod_files.read_annotations(str(path))
    assert entries == {}
    assert message in warning
    assert str(path) in warning


def test_no_annotations_file_is_no_warning(tmp_path: Path) -> None:
    assert pod_files.read_annotations(str(tmp_path / "none")) == ({}, "")


def test_an_empty_document_does_not_import_yaml() -> None:
    code = "import sys; from agent.documents import parse; print(parse(' \\n'), 'yaml' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.stdout == "None False\n"


@pytest.mark.parametrize(
    ("content", "cpus"),
    [("2500", 3), ("1000\n", 1), ("1", 1), ("0", 0), ("", 0), ("2.5", 0), ("x" * 100, 0), (None, 0)],
)
def test_cpus_of_the_container(tmp_path: Path, content: str | None, cpus: int) -> None:
    if content is not None:
        (tmp_path / "cpu").write_text(content)
    assert pod_files.read_cpus(str(tmp_path / "cpu")) == cpus
