"""Configurations of an overload manager with one injected resource."""

from __future__ import annotations

from typing import Any

from proxy.config.overload_model import InjectedResource, OverloadManager, Reaction, Trigger

RESOURCE = "injected"


def reactions(*names: str) -> tuple[Reaction, ...]:
    """Each with a scaled trigger from 0 to 1, so that what a resource says is what they do."""
    return tuple(Reaction(name, (Trigger(RESOURCE, 0.0, 1.0),)) for name in names)


def configured(*actions: str, points: tuple[str, ...] = (), **fields: Any) -> OverloadManager:
    return OverloadManager(((RESOURCE, InjectedResource("/nonexistent")),), reactions(*actions), reactions(*points),
                           **fields)
