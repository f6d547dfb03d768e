"""Settings of a pod that exists on paper: documents, flags, annotations and variables in, the tree of settings out."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from agent import cli, effective, pod_files
from agent.bootstrap import document
from agent.bootstrap.facts import Sockets
from agent.flags import parse
from agent.options import PROXY_FLAGS, ProxyOptions, proxy_options
from agent.settings import AgentSettings

RECORDED = Path(cli.__file__).parents[2] / "shared/istio/bootstrap/cases.json"


def options(*arguments: str) -> ProxyOptions:
    return proxy_options(parse(PROXY_FLAGS, ["--meshConfig", "/nonexistent", *arguments], tolerate_unknown=True))


def load(
    proxy_config: Any = None,
    *arguments: str,
    annotations: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None,
    interfaces: Sequence[str] = ("10.0.0.9",),
    resolve_host: Any = None,
    **variables: str,
) -> AgentSettings:
    """`proxy_config` is PROXY_CONFIG, as a document or as text; `variables` are the environment."""
    written = proxy_config if isinstance(proxy_config, str) else json.dumps(proxy_config or {})
    with (
        mock.patch.object(pod_files, "read_annotations", lambda: (dict(annotations or {}), "")),
        mock.patch.object(pod_files, "read_labels", lambda: (dict(labels or {}), "")),
    ):
        return effective.load(
            options(*arguments),
            {"PROXY_CONFIG": written, **variables},
            interfaces=lambda _excluded: interfaces,
            resolve_host=resolve_host,
        )


def bootstrap(*given: Any, **variables: Any) -> tuple[dict[str, Any], list[str]]:
    """The bootstrap of such a pod, and what was left out of it."""
    facts = document.facts_of(load(*given, **variables), Sockets())
    return document.bootstrap(facts), facts.warnings


def recorded_cases() -> list[Any]:
    """The recorded runs of the real program."""
    if RECORDED.exists():
        return list(json.loads(RECORDED.read_text()))
    return [pytest.param(None, marks=pytest.mark.skip(reason=f"no recorded data at {RECORDED}"))]
