"""config.accesslog.v3: access loggers that write text to a file or a standard stream."""

from __future__ import annotations

from proxy.config.core import data_source
from proxy.config.extensions import Registry
from proxy.config.formats import check_format
from proxy.config.model import AccessLog
from proxy.config.reader import Reader, Skip

DEFAULT_FORMAT = (
    '[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" %RESPONSE_CODE% %RESPONSE_FLAGS% '
    "%BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% "
    '"%REQ(X-FORWARDED-FOR)%" "%REQ(USER-AGENT)%" "%REQ(X-REQUEST-ID)%" "%REQ(:AUTHORITY)%" "%UPSTREAM_HOST%"\n'
)
"""Envoy's format where none is configured."""

_JSON = "JSON formats are not supported yet; supported: text_format_source, text_format"


def _substitution_format(reader: Reader) -> str:
    """core.v3.SubstitutionFormatString with a text format."""
    kind = reader.chosen("format")
    if kind == "text_format":
        text = reader.string(kind)
    elif kind == "text_format_source":
        data = reader.need(kind, data_source)
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            reader.error(kind, f"is not UTF-8: {error.reason} at byte {error.start}")
            raise Skip from None
    else:
        if kind is None:
            reader.error("", "one of text_format_source, text_format is required")
        else:
            reader.take(kind)
            reader.error(kind, _JSON)
        raise Skip
    check_format(reader, kind, text)
    return text


def _file(reader: Reader) -> tuple[str, str]:
    """access_loggers.file.v3.FileAccessLog as path and format."""
    path = reader.string("path")
    kind = reader.chosen("access_log_format")
    if kind is None:
        return path, DEFAULT_FORMAT
    if kind == "log_format":
        return path, reader.need(kind, _substitution_format)
    if kind == "format":
        text = reader.string(kind) or DEFAULT_FORMAT
        check_format(reader, kind, text)
        return path, text
    reader.take(kind)
    reader.error(kind, _JSON)
    raise Skip


def _stream(path: str, reader: Reader) -> tuple[str, str]:
    if reader.has("log_format"):
        return path, reader.need("log_format", _substitution_format)
    return path, DEFAULT_FORMAT


ACCESS_LOGGERS: Registry[tuple[str, str]] = Registry(
    "access logger",
    ("envoy.config.accesslog.v3.AccessLog.typed_config",),
    {
        "envoy.extensions.access_loggers.file.v3.FileAccessLog": _file,
        "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog": lambda reader: _stream("/dev/stdout", reader),
        "envoy.extensions.access_loggers.stream.v3.StderrAccessLog": lambda reader: _stream("/dev/stderr", reader),
    },
)


def _filter(reader: Reader) -> frozenset[str] | None:
    """config.accesslog.v3.AccessLogFilter; of its kinds only response_flag_filter."""
    kind = reader.chosen("filter_specifier")
    if kind == "response_flag_filter":
        return frozenset(reader.need(kind, lambda flags: flags.strings("flags")))
    if kind is not None:
        reader.take(kind)
        reader.error(kind, "is not supported yet; supported: response_flag_filter")
    return None


def access_log(reader: Reader) -> AccessLog:
    """config.accesslog.v3.AccessLog."""
    flags = reader.sub("filter", _filter)
    path, text = reader.extension("typed_config", ACCESS_LOGGERS)
    return AccessLog(path, text, flags)
