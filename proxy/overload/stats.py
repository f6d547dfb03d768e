"""Statistics of the overload manager: ``overload.<resource or action or load-shed point>``."""

from __future__ import annotations

from proxy.stats.groups import Counter, Gauge, Histogram, StatGroup


class ManagerStats(StatGroup):
    """``overload``. The time between two looks at the resources, milliseconds."""

    refresh_interval_delay: Histogram
    __slots__ = tuple(__annotations__)


class ProactiveStats(StatGroup):
    """A resource that is counted all the time: what it refused are its ``failed_updates``. Pressure in percent."""

    pressure: Gauge
    failed_updates: Counter
    __slots__ = tuple(__annotations__)


class ResourceStats(ProactiveStats):
    """A resource that is looked at every refresh interval."""

    skipped_updates: Counter
    __slots__ = tuple(__annotations__)


class ActionStats(StatGroup):
    """An action, as the trigger that changed last sees it."""

    active: Gauge
    scale_percent: Gauge
    __slots__ = tuple(__annotations__)


class ShrinkStats(ActionStats):
    """``envoy.overload_actions.shrink_heap``."""

    shrink_count: Counter
    __slots__ = tuple(__annotations__)


class PointStats(StatGroup):
    """A load-shed point: main's share."""

    scale_percent: Gauge
    __slots__ = tuple(__annotations__)


class ShedStats(StatGroup):
    """A load-shed point: a worker's share."""

    shed_load_count: Counter
    __slots__ = tuple(__annotations__)


class ResetStats(StatGroup):
    """``envoy.overload_actions.reset_high_memory_stream``, for once without ``overload.``: streams reset."""

    count: Counter
    __slots__ = tuple(__annotations__)
