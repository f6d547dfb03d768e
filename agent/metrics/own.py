"""What the agent counts about itself; every name begins with istio_agent_.

prometheus-client makes the text. It is imported with the first scrape, for it brings 5 MB of modules that a pod which
nobody scrapes does not need; until then values are kept here.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

PREFIX = "istio_agent_"

Labels = tuple[tuple[str, str], ...]


class OwnMetrics:
    """Counters and gauges by name. Labels are few and their values ours: no peer chooses them."""

    def __init__(self) -> None:
        self._help: dict[str, str] = {}
        self._counters: dict[str, dict[Labels, float]] = {}
        self._gauges: dict[str, dict[Labels, Callable[[], float | None]]] = {}
        self._process: CollectorRegistry | None = None

    def count(self, name: str, help: str, amount: float = 1, **labels: str) -> None:
        """Add to the counter `name`; 0 makes it visible."""
        series = self._counters.setdefault(name, {})
        key = tuple(labels.items())
        self._help.setdefault(name, help)
        series[key] = series.get(key, 0) + amount

    def set(self, name: str, help: str, value: float, **labels: str) -> None:
        """Set the gauge `name`."""
        self.watch(name, help, lambda: value, **labels)

    def watch(self, name: str, help: str, value: Callable[[], float | None], **labels: str) -> None:
        """A gauge whose value is asked for with each scrape; None leaves it out."""
        self._help.setdefault(name, help)
        self._gauges.setdefault(name, {})[tuple(labels.items())] = value

    def page(self) -> bytes:
        """All of them in the text format, and those of the process and the interpreter."""
        from prometheus_client import generate_latest

        if self._process is None:
            self._process = _process_registry()
        text = generate_latest(self)
        for name in self._counters:
            if not name.endswith("_total"):
                # The library knows no counters but those that end in _total; some of Istio's do not.
                line = f"# TYPE {PREFIX}{name} "
                text = text.replace(f"{line}untyped\n".encode(), f"{line}counter\n".encode())
        return text

    def collect(self) -> "Iterator[Metric]":
        """All metrics, for prometheus-client (this is its Collector interface)."""
        from prometheus_client.metrics_core import Metric

        for name, series in self._counters.items():
            family = Metric(PREFIX + name.removesuffix("_total"), self._help[name], _counter_kind(name))
            for labels, number in series.items():
                family.add_sample(PREFIX + name, dict(labels), number)
            yield family
        for name, gauges in self._gauges.items():
            family = Metric(PREFIX + name, self._help[name], "gauge")
            for labels, ask in gauges.items():
                value = ask()
                if value is not None:
                    family.add_sample(PREFIX + name, dict(labels), value)
            if family.samples:
                yield family
        assert self._process is not None
        for metric in self._process.collect():
            yield _prefixed(metric)


def _process_registry() -> "CollectorRegistry":
    from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector

    registry = CollectorRegistry()
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=registry)
    return registry


def _prefixed(metric: "Metric") -> "Metric":
    """The application may well be written in Python too."""
    from prometheus_client.metrics_core import Metric

    renamed = Metric(PREFIX + metric.name, metric.documentation, metric.type)
    for sample in metric.samples:
        renamed.add_sample(PREFIX + sample.name, sample.labels, sample.value)
    return renamed


def _counter_kind(name: str) -> str:
    return "counter" if name.endswith("_total") else "unknown"
