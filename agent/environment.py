"""Environment variables as fields of dataclasses: name, type and default of a variable stand where its value will.

A group of settings is a frozen dataclass whose fields are made by `variable`; a `Reader` fills it. Every variable may
also stand in `proxyMetadata` of ProxyConfig: injectors copy that into the container's environment, and where nobody
did, it works all the same. The environment wins.

A malformed number, boolean or duration is reported and replaced by the default, as the real program does; a text
variable that is set to the empty string stays empty.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from agent.durations import parse_go_duration
from agent.flags import BOOLEANS, parse_integer

DEFAULT = "default"
METADATA = "ProxyConfig proxyMetadata"
_Group = TypeVar("_Group")


class Variable(NamedTuple):
    """One environment variable. `pending` says what a value other than the default would need that is not there."""

    name: str
    parse: Callable[[str], Any]
    pending: str
    help: str


def variable(name: str, parse: Callable[[str], Any], default: Any, help: str = "", *, pending: str = "") -> Any:
    """A dataclass field that is read from the environment variable `name`."""
    metadata = {"variable": Variable(name, parse, pending, help)}
    return dataclasses.field(default=default, metadata=metadata)


def variables_of(group: type[Any]) -> list[tuple[str, Variable, Any]]:
    """(field, variable, default) of each field that comes from the environment."""
    return [
        (each.name, each.metadata["variable"], each.default)
        for each in dataclasses.fields(group)
        if "variable" in each.metadata
    ]


# --- parsers: text -> value; ValueError says what was expected ----------------------------------------------------


def text(value: str) -> str:
    return value


def boolean(value: str) -> bool:
    """Go's strconv.ParseBool."""
    if value not in BOOLEANS:
        raise ValueError("expected true or false")
    return BOOLEANS[value]


def natural(value: str) -> int:
    number = parse_integer(value)
    if not 0 <= number <= 2**31 - 1:
        raise ValueError("expected a number of at least 0")
    return number


def port(value: str) -> int:
    number = parse_integer(value)
    if not 0 <= number <= 65535:
        raise ValueError("expected a port number from 0 to 65535")
    return number


def listening_port(value: str) -> int:
    if port(value) == 0:
        raise ValueError("expected a port number from 1 to 65535")
    return port(value)


def rsa_bits(value: str) -> int:
    number = natural(value)
    if not 2048 <= number <= 16384:
        raise ValueError("expected a number of bits from 2048 to 16384")
    return number


def file_name(value: str) -> str:
    if not value or "/" in value or value in (".", ".."):
        raise ValueError("expected a file name without a path")
    return value


def exit_status(value: str) -> int:
    number = parse_integer(value)
    if not 0 <= number <= 255:
        raise ValueError("expected an exit status from 0 to 255")
    return number


def ratio(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        raise ValueError("expected a number from 0 to 1") from None
    if not 0 <= number <= 1:
        raise ValueError("expected a number from 0 to 1")
    return number


def duration(value: str) -> float:
    """Go's duration syntax, as seconds."""
    seconds = parse_go_duration(value)
    if seconds < 0:
        raise ValueError("expected a duration of at least 0s")
    return seconds


def choice(*names: str, any_case: bool = False) -> Callable[[str], str]:
    def parse(value: str) -> str:
        value = value.lower() if any_case else value
        if value not in names:
            raise ValueError(f"expected {', '.join(name for name in names if name)}")
        return value

    return parse


# ------------------------------------------------------------------------------------------------------------------


class Reader:
    """Fills groups, and remembers where each value came from and what could not be used."""

    def __init__(self, variables: Mapping[str, str], proxy_metadata: Mapping[str, str] | None = None) -> None:
        self._variables = variables
        self._metadata: Mapping[str, str] = proxy_metadata or {}
        self.origins: dict[str, str] = {}  # variable -> source
        self.warnings: list[str] = []
        self._pending: dict[str, list[str]] = {}  # purpose -> variables

    def fill(self, group: type[_Group]) -> _Group:
        """The group with its values. Never raises for a value; what could not be used stands in `warnings`."""
        values = {field: self._value(each, default) for field, each, default in variables_of(group)}
        return group(**values)

    def _value(self, each: Variable, default: Any) -> Any:
        for source, place in (("environment", self._variables), (METADATA, self._metadata)):
            written = place.get(each.name)
            if written is None or (written == "" and each.parse is not text):
                continue
            try:
                value = each.parse(written)
            except ValueError as error:
                where = "environment variable" if place is self._variables else METADATA
                self.warnings.append(f"{where} {each.name}: {written[:64]!r} is ignored: {error}")
                continue
            self.origins[each.name] = source
            if each.pending and value != default:
                self._pending.setdefault(each.pending, []).append(each.name)
            return value
        self.origins[each.name] = DEFAULT
        return default

    def pending_warnings(self) -> list[str]:
        """One line a purpose, so that a pod's usual environment does not fill the log."""
        return [
            f"not honoured yet ({purpose}): environment variable{'s' if len(names) > 1 else ''} {', '.join(names)}"
            for purpose, names in self._pending.items()
        ]
