"""Input that somebody made to break the agent: it ends in an error that names its place, or is left out with one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from agent_loading import bootstrap, load

from agent import custom_config, pod_files, proxy_config
from agent.documents import DocumentError, parse, read_text, to_json
from agent.errors import ConfigError

ROOT = Path(pod_files.__file__).parents[1]
POD = {"POD_NAME": "a", "POD_NAMESPACE": "b", "INSTANCE_IP": "10.0.0.1"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f'{{"statNameLength": {"9" * 6000}}}', "a number with too many digits"),
        (f"statNameLength: {'9' * 6000}", "a number with too many digits"),
        ('a: "\udcff"', "not UTF-8 text"),
        ("a: !!bool x", "does not fit its tag"),
        ("a: !!timestamp x", "does not fit its tag"),
        ('a: !!int ""', "does not fit its tag"),
        ("!!map x", "does not fit its tag"),
        ("--- {}\n--- {}\n", "another document"),
        ("? [a]\n: b", "unhashable key"),
    ],
)
def test_documents(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^PROXY_CONFIG is not a ProxyConfig document: .*{message}"):
        load(text)


def test_unknown_fields_do_not_fill_the_log() -> None:
    warnings = load(dict.fromkeys((f"f{n}" for n in range(5000)), 1)).warnings
    assert len(warnings) == 17
    assert warnings[15:] == (
        "PROXY_CONFIG: unknown ProxyConfig field 'f15' is ignored",
        "PROXY_CONFIG: 4984 more unknown ProxyConfig fields are ignored",
    )
    nested = load({"tracing": dict.fromkeys((f"f{n}" for n in range(100)), 1)}).warnings
    assert nested[16] == "PROXY_CONFIG: 84 more unknown ProxyConfig fields are ignored"


def test_aliases_do_not_multiply() -> None:
    """200 KB of YAML that stands for 100 million fields."""
    many = ", ".join(f"u{n}: 1" for n in range(9999))
    tags = ", ".join(f"a{n}: *m" for n in range(9999))
    with pytest.raises(ConfigError, match="expected at most 100000 values in all"):
        load(f"tracing: {{customTags: {{m: &m {{{many}}}, {tags}}}}}")
    laughs = "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12))
    with pytest.raises(ConfigError, match=r"extraStatTags.*expected a string"):
        load(f"a0: &a0 [x, x]\n{laughs}\nextraStatTags: *a11\n")


@pytest.mark.parametrize("path", ["", "a\0b", "\ud800"])
@pytest.mark.parametrize("name", ["configPath", "binaryPath", "customConfigFile", "proxyBootstrapTemplatePath"])
def test_names_that_no_file_can_have(name: str, path: str) -> None:
    if path == "" and name in ("customConfigFile", "proxyBootstrapTemplatePath"):
        assert name not in load({name: path}).config.document
        return
    with pytest.raises(ConfigError, match=f"PROXY_CONFIG: {name}: .*: expected a path"):
        load({name: path})


@pytest.mark.parametrize("path", ["a\0b", "\ud800"])
def test_names_that_no_file_can_have_elsewhere(path: str) -> None:
    with pytest.raises(DocumentError, match="no file can have such a name"):
        read_text(path)


def test_a_byte_that_is_no_character_does_not_spoil_the_bootstrap() -> None:
    """Environment variables and labels may have one; a reader of the bootstrap that insists on UTF-8 refuses it all."""
    variables = {"ISTIO_META_X": "a\udcff", "ISTIO_METAJSON_Y": r'{"Y": "\ud800 \\ud800 \ud83d\ude00"}'}
    metadata = bootstrap({}, **POD, **variables)[0]["node"]["metadata"]
    read = json.loads(to_json(metadata, 100_000))
    assert (read["X"], read["Y"]) == ("a\ufffd", "\ufffd \\ud800 \U0001f600")
    read["Y"].encode()


def test_numbers_beyond_json_in_metadata() -> None:
    with pytest.raises(DocumentError, match="cannot be written as JSON"):
        to_json(bootstrap({}, **POD, ISTIO_METAJSON_X='{"X": 1e999}')[0], 100_000)


def test_ten_megabytes_of_annotations(tmp_path: Path) -> None:
    file = tmp_path / "annotations"
    file.write_text(f'a="{"x" * 10_000_000}"\n')
    assert pod_files.read_annotations(str(file)) == (
        {}, f"annotations file {file} is ignored: larger than 1048576 bytes"
    )  # fmt: skip


@pytest.mark.parametrize("what", [proxy_config.CONFIG_ANNOTATION, "PROXY_CONFIG"])
def test_the_source_is_named(what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        load("{") if what == "PROXY_CONFIG" else load({}, annotations={what: "{"})


def test_a_flag_is_named_as_it_was_written() -> None:
    with pytest.raises(
        ConfigError, match=r"^flag --statusPort: statusPort: 99999: expected an integer from 1 to 65535$"
    ):
        load({}, "--statusPort=99999")
    with pytest.raises(ConfigError, match=r"^flag --zipkinAddress: zipkinAddress: "):
        load({}, "--zipkinAddress=nowhere")


def test_a_directory_as_custom_config_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="customConfigFile: '.*' is a directory"):
        custom_config.inspect(str(tmp_path), None, [])


def test_the_program_ends_with_255_and_no_traceback(tmp_path: Path) -> None:
    """One process for all: what went wrong once reached the shell as a traceback and status 1."""
    given = {"PROXY_CONFIG": f'{{"statNameLength": {"9" * 6000}}}', "PATH": os.environ["PATH"]}
    result = subprocess.run(
        [sys.executable, "-m", "agent", "proxy"], env={**given, "PYTHONPATH": str(ROOT)}, cwd=tmp_path,
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (result.returncode, "Traceback" in result.stderr) == (255, False)
    assert result.stderr.startswith("Error: PROXY_CONFIG is not a ProxyConfig document")
    assert os.listdir(tmp_path) == []


def test_yaml_that_is_no_mapping_at_all() -> None:
    assert parse("") is None
    with pytest.raises(ConfigError, match="expected a mapping of field names to values"):
        load("just text")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("LABELS", '"x"', "an object of strings"),
        ("LABELS", '{"a": 1}', "an object of strings"),
        ("ANNOTATIONS", "[]", "an object of strings"),
        ("PLATFORM_METADATA", '"x"', "an object of strings"),
        ("PROXY_CONFIG", '"x"', "an object"),
        ("PILOT_SAN", '"x"', "a list"),
        ("ENVOY_STATUS_PORT", '"15021"', "a number"),
        ("ENVOY_STATUS_PORT", "true", "a number"),
        ("METADATA_DISCOVERY", '"maybe"', "true or false"),
        ("EXIT_ON_ZERO_ACTIVE_CONNECTIONS", "true", "true or false"),
        ("INSTANCE_IPS", "5", "a string"),
        ("STS_PORT", "5", "a string"),
    ],
)
def test_metadata_of_another_type_than_istiods(name: str, value: str, expected: str) -> None:
    """Also where the agent has a value of its own: the real program decodes all of it first, and ends there."""
    with pytest.raises(ConfigError, match=rf"^node metadata {name} \(ISTIO_META_{name}\): .*: expected {expected}$"):
        bootstrap({}, **POD, ISTIO_METAJSON_X=f'{{"{name}": {value}}}')
    bootstrap({}, **POD, ISTIO_METAJSON_X=f'{{"{name}": null}}')


def test_headers_under_both_of_their_names() -> None:
    """One source wrote requestId, a later one request_id: the same field, not one that is given twice."""
    given = {"proxyHeaders": {"requestId": {"disabled": True}, "server": {}}}
    annotation = {proxy_config.CONFIG_ANNOTATION: "proxyHeaders: {request_id: {}}"}
    assert load(given, annotations=annotation).config.document["proxyHeaders"] == {"requestId": {}, "server": {}}
    with pytest.raises(ConfigError, match="requestId: .*: the field is given twice"):
        load({"proxyHeaders": {"requestId": {}, "request_id": {}}})
    metadata = {proxy_config.CONFIG_ANNOTATION: "proxyMetadata: {a_b: '2'}"}
    names = load({"proxyMetadata": {"aB": "1"}}, annotations=metadata).config.proxy_metadata
    assert names == {"aB": "1", "a_b": "2"}, "these are names of variables"


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_host_name_that_no_resolver_takes() -> None:
    settings = load({"statsdUdpAddress": f"{'a' * 70}:8125"})
    assert settings.config.statsd_udp_address == ""
    assert "statsdUdpAddress" not in settings.config.document
    (warning,) = settings.warnings
    assert warning.startswith(f"PROXY_CONFIG: statsdUdpAddress '{'a' * 70}' is left out: ")
    assert "no answer" not in warning
