"""Errors of a configuration, each with the path of the field that it is about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ConfigError:
    """One thing that is wrong, or not supported, with one field.

    ``path`` is written as in ``static_resources.listeners[0].filter_chains[1].name``; empty: the document itself.
    """

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class ConfigErrors(Exception):
    """Everything that is wrong with a configuration; ``str()`` has one line for each error."""

    def __init__(self, errors: Sequence[ConfigError]) -> None:
        super().__init__(errors)
        self.errors = list(errors)

    def __str__(self) -> str:
        return "\n".join(map(str, self.errors))
