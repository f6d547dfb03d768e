"""Format strings (access logs, header values) are checked when the configuration is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.access_log.format import FormatError, compile_format

if TYPE_CHECKING:
    from proxy.config.reader import Reader


def check_format(reader: Reader, field: str, text: str) -> None:
    """Note an error about ``field`` when ``text`` has bad syntax or an operator that is not known."""
    try:
        compile_format(text)
    except FormatError as error:
        reader.error(field, str(error))
