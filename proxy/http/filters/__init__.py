"""HTTP filters: one file a filter, found by the message type of its configuration.

To add one: write its file, add its line to ``FILTERS`` (and its compiler to proxy.config's registry). The router is
not listed: it ends every chain and is called directly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from proxy.http.filters.base import HttpFilter

if TYPE_CHECKING:
    from proxy.config.model import HttpFilterConfig
    from proxy.context import Context

ROUTER = "envoy.extensions.filters.http.router.v3.Router"

FILTERS: dict[str, Callable[[HttpFilterConfig, Context], HttpFilter]] = {}
