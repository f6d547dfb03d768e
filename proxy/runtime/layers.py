"""The runtime of the main process: its layers, what the admin layer overrides, and what may be overridden."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from proxy.config.runtime import why_fixed
from proxy.runtime.values import text
from proxy.stats.groups import Counter, Level, StatGroup

if TYPE_CHECKING:
    from proxy.config.model import Bootstrap

MAX_OVERRIDES = 4096
"""Keys of the admin layer."""
MAX_LENGTH = 4096
"""Characters of a key or a value."""


class NoAdminLayer(Exception):
    """There is no layer to write to; the text is Envoy's."""


class RuntimeRefused(Exception):
    """A key cannot be overridden, or not like this; the text is for the operator."""


class RuntimeStats(StatGroup):
    """``runtime``."""

    deprecated_feature_use: Counter
    load_error: Counter
    load_success: Counter
    override_dir_exists: Counter
    override_dir_not_exists: Counter
    admin_overrides_active: Level
    deprecated_feature_seen_since_process_start: Level
    num_keys: Level
    num_layers: Level
    __slots__ = tuple(__annotations__)


class RuntimeLayers:
    """All layers in order; the last one that has a key gives its value."""

    def __init__(self, bootstrap: Bootstrap) -> None:
        self._layers = [(layer.name, dict(layer.values)) for layer in bootstrap.runtime_layers]
        self._fixed = bootstrap.runtime_fixed
        self._admin: dict[str, object] | None = None
        for layer, (_, values) in zip(bootstrap.runtime_layers, self._layers, strict=True):
            if layer.admin:
                self._admin = values
        self.stats = RuntimeStats("runtime")
        # Envoy loads twice: when the runtime is made, and when layers of a server would have arrived.
        for _ in range(2):
            self._loaded()

    def _loaded(self) -> None:
        stats = self.stats
        stats.load_success += 1
        stats.override_dir_not_exists += 1
        stats.admin_overrides_active = int(bool(self._admin))
        stats.num_layers = len(self._layers)
        stats.num_keys = len(self.values())

    @property
    def changeable(self) -> bool:
        """There is an admin layer."""
        return self._admin is not None

    def values(self) -> dict[str, object]:
        """What is in force."""
        merged: dict[str, object] = {}
        for _, values in self._layers:
            merged.update(values)
        return merged

    def proposed(self, overrides: Mapping[str, str]) -> dict[str, object]:
        """What would be in force with these overrides; an empty value takes one away.

        Raises NoAdminLayer, or RuntimeRefused for what would have no effect here though it has one in Envoy.
        """
        if self._admin is None:
            raise NoAdminLayer("No admin layer specified")
        for key, value in overrides.items():
            if len(key) > MAX_LENGTH or len(value) > MAX_LENGTH:
                raise RuntimeRefused(f"{key[:64]}: at most {MAX_LENGTH} characters are expected in a key or a value")
            why = why_fixed(key, value, self._fixed)
            if why is not None:
                raise RuntimeRefused(f"{key}: {why}")
        if len(self._merged_admin(overrides)) > MAX_OVERRIDES:
            raise RuntimeRefused(f"at most {MAX_OVERRIDES} keys can be overridden")
        merged: dict[str, object] = {}
        for _, values in self._layers:
            merged.update(self._merged_admin(overrides) if values is self._admin else values)
        return merged

    def _merged_admin(self, overrides: Mapping[str, str]) -> dict[str, object]:
        merged = {**(self._admin or {}), **overrides}
        return {key: value for key, value in merged.items() if value != ""}

    def override(self, overrides: Mapping[str, str]) -> None:
        """Write to the admin layer what ``proposed`` has found good."""
        if self._admin is not None:
            merged = self._merged_admin(overrides)
            self._admin.clear()
            self._admin.update(merged)
            self._loaded()

    def document(self) -> dict[str, Any]:
        """``{"layers": [...], "entries": {key: {"layer_values": [...], "final_value": ...}}}``, values as strings."""
        layers = [{key: text(value) for key, value in values.items()} for _, values in self._layers]
        entries = {}
        for key in sorted({key for values in layers for key in values}):
            in_layers = [values.get(key, "") for values in layers]
            entries[key] = {"layer_values": in_layers, "final_value": next((v for v in reversed(in_layers) if v), "")}
        return {"layers": [name for name, _ in self._layers], "entries": entries}
