"""From the command line's files to a compiled configuration: read, parse, merge, check, compile."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from envoy.config.bootstrap.v3.bootstrap_pb2 import Bootstrap as BootstrapMessage
from google.protobuf import json_format
from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

from proxy.config import model
from proxy.config.bootstrap import bootstrap
from proxy.config.document import as_object, parse_json, parse_yaml
from proxy.config.errors import ConfigError, ConfigErrors
from proxy.config.reader import Scope, compile_message
from proxy.config.schema import PARSE_ERRORS, Checker, Invalid, import_types


class Options(Protocol):
    """What is needed of the command line (proxy.options.Options)."""

    @property
    def config_path(self) -> str: ...
    @property
    def config_yaml(self) -> str: ...
    @property
    def allow_unknown_static_fields(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration that was accepted."""

    bootstrap: model.Bootstrap
    message: Any
    """The envoy.config.bootstrap.v3.Bootstrap message, for /config_dump. Keep it out of the workers."""
    warnings: list[str]


def load_bootstrap(options: Options) -> Loaded:
    """Read ``--config-path`` and ``--config-yaml`` (merged over it) and compile them.

    Raises ConfigErrors with everything that is wrong in them.
    """
    if not options.config_path and not options.config_yaml:
        raise ConfigErrors([ConfigError("", "At least one of --config-path or --config-yaml or Options::configProto() "
                                            "should be non-empty")])
    checker = Checker(options.allow_unknown_static_fields)
    message = BootstrapMessage()
    if options.config_path:
        message.MergeFrom(_read_file(options.config_path, checker))
    if options.config_yaml:
        try:
            document = as_object(parse_yaml(options.config_yaml), "the text")
        except ConfigErrors as unread:
            raise ConfigErrors([ConfigError("", f"--config-yaml: {error}") for error in unread.errors]) from None
        message.MergeFrom(parse_document(document, checker))
    return compile_bootstrap(message, checker)


def compile_bootstrap(message: Any, checker: Checker | None = None) -> Loaded:
    """Compile a bootstrap message; ``checker`` has what was found before. Raises ConfigErrors."""
    found = checker.errors if checker is not None else []
    scope = Scope(check_references=not found)
    compiled = compile_message(message, "", scope, bootstrap)
    errors = list(dict.fromkeys((*found, *_without_consequences(found, scope.errors))))
    if errors or compiled is None:
        raise ConfigErrors(errors)
    warnings = scope.warnings if checker is None else checker.warnings + scope.warnings
    return Loaded(compiled, message, list(dict.fromkeys(warnings)))


def _without_consequences(found: Iterable[ConfigError], later: Iterable[ConfigError]) -> Iterable[ConfigError]:
    """Those of the ``later`` errors that are not about a place from which something was left out."""
    places = [error.path for error in found]
    for error in later:
        if not any(_within(place, error.path) or _within(error.path, place) for place in places):
            yield error


def _within(path: str, outer: str) -> bool:
    return path.startswith(outer) and (len(path) == len(outer) or path[len(outer)] in ".[" or not outer)


def _read_file(path: str, checker: Checker) -> Any:
    """The bootstrap in a file: .json, .yaml or .yml, .pb (binary) or .pb_text, as in Envoy by its name."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ConfigErrors([ConfigError("", f"unable to read file: {path}: {error.strerror}")]) from None
    suffix = Path(path).suffix.lower()
    if suffix == ".pb":
        return _parse_binary(data, path, checker)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigErrors([ConfigError("", f"{path} is not UTF-8: {error.reason} at byte {error.start}")]) from None
    if suffix == ".pb_text":
        return _parse_text(text, path)
    value = parse_yaml(text) if suffix in (".yaml", ".yml") else parse_json(text)
    return parse_document(as_object(value, path), checker)


def parse_document(document: dict[str, Any], checker: Checker) -> Any:
    """The bootstrap message of a parsed document; what is wrong with it is left out and goes to ``checker``."""
    import_types(document)
    try:
        cleaned = checker.message(document, BootstrapMessage.DESCRIPTOR, "")
        return json_format.ParseDict(cleaned, BootstrapMessage())
    except (Invalid, *PARSE_ERRORS) as error:
        checker.errors.append(ConfigError("", f"cannot be parsed: {error}"))
        return BootstrapMessage()


def _parse_binary(data: bytes, path: str, checker: Checker) -> Any:
    message = BootstrapMessage()
    try:
        message.ParseFromString(data)
    except DecodeError:
        raise ConfigErrors([ConfigError("", f"Unable to parse file {path!r} as a binary protobuf "
                                            "(type envoy.config.bootstrap.v3.Bootstrap)")]) from None
    for place, number in _unknown_numbers(message, ""):
        if checker.allow_unknown_fields:
            checker.warnings.append(f"{place}: unknown field number {number}, ignored")
        else:
            checker.errors.append(ConfigError(place, f"unknown field number {number}"))
    return message


def _unknown_numbers(message: Message, path: str) -> Iterable[tuple[str, int]]:
    for unknown in UnknownFieldSet(message):  # type: ignore[attr-defined]
        yield path, unknown.field_number
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        at = f"{path}.{field.name}" if path else field.name
        if field.is_repeated:
            for index, item in enumerate(value):
                yield from _unknown_numbers(item, f"{at}[{index}]")
        else:
            yield from _unknown_numbers(value, at)


def _parse_text(text: str, path: str) -> Any:
    from google.protobuf import text_format

    try:
        return text_format.Parse(text, BootstrapMessage())
    except text_format.ParseError as error:
        raise ConfigErrors([ConfigError("", f"Unable to parse file {path!r} as a text protobuf: {error}")]) from None
