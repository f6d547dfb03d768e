"""Derive `examples/sidecar.json` from the configuration that istiod sent to one recorded sidecar.

    python scripts/derive_example.py [STATIC_JSON] [--check]

The tables below say what is taken and what is left out, and why. Nothing is rewritten, except where CHANGED says so.
`--check` writes nothing and fails when the committed file is not what the recording gives. On stderr: each cut and
how often it was made.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

Json = dict[str, Any]

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT.parent / "shared/istio/config/plain-productpage-v1/static.json"
RESULT = ROOT / "examples/sidecar.json"

HTTP_LISTENERS = ("0.0.0.0_80", "0.0.0.0_9080")
PLAIN_LISTENERS = ("virtualOutbound", "virtualInbound", "0.0.0.0_15021", "0.0.0.0_15090")
"""Taken beside every listener that is nothing but a tcp_proxy."""

ROUTER = "envoy.filters.http.router"

CUTS = {
    "typed_per_filter_config": "settings of the fault and cors filters, which come later",
    "request_mirror_policies": "mirroring comes later",
    "ring_hash_lb_config": "consistent hashing comes later",
    "outlier_detection": "passive health checks come later",
    "respect_dns_ttl": "name resolution uses dns_refresh_rate until the proxy has a resolver of its own",
    "dns_jitter": "name resolution uses dns_refresh_rate until the proxy has a resolver of its own",
}
"""Fields that are left out wherever they stand, with the reason."""


class Change(NamedTuple):
    """A scalar field that gets another value."""

    field: str
    old: Any
    new: Any
    reason: str


CHANGED = (Change("lb_policy", "RING_HASH", "LEAST_REQUEST", "consistent hashing comes later"),)

FILTERS_REASON = "HTTP filters other than the router come later"
LISTENER_REASON = "other ports of the mesh; TLS inspection and HTTP/2 upstreams come later"
CLUSTER_REASON = "cluster of a listener that was left out"


class Derivation:
    """One run: `document` is what is kept, `made` counts each cut by what was cut and why."""

    def __init__(self, static: Json) -> None:
        self.made: Counter[tuple[str, str]] = Counter()
        resources = static["static_resources"]
        listeners = [listener for listener in resources["listeners"] if self._wanted(listener)]
        ports = {str(listener["address"]["socket_address"]["port_value"]) for listener in listeners}
        clusters = [cluster for cluster in resources["clusters"] if self._served(cluster["name"], ports)]
        document = {**static, "static_resources": {"listeners": listeners, "clusters": clusters}}
        self.document: Json = self._reduced(document)

    def _wanted(self, listener: Json) -> bool:
        name = listener["name"]
        if name in HTTP_LISTENERS or name in PLAIN_LISTENERS or only_tcp_proxy(listener):
            return True
        self.made[f"listener {name}", LISTENER_REASON] += 1
        return False

    def _served(self, cluster: str, ports: set[str]) -> bool:
        """Whether a cluster belongs to a kept listener; Istio names outbound ones `outbound|PORT|SUBSET|HOST`."""
        if not cluster.startswith("outbound|") or cluster.split("|")[1] in ports:
            return True
        self.made[f"cluster {cluster}", CLUSTER_REASON] += 1
        return False

    def _reduced(self, node: Any) -> Any:
        if isinstance(node, list):
            return [self._reduced(item) for item in node]
        if not isinstance(node, dict):
            return node
        for field in node.keys() & CUTS.keys():
            self.made[field, CUTS[field]] += 1
        return {field: self._value(field, value) for field, value in node.items() if field not in CUTS}

    def _value(self, field: str, value: Any) -> Any:
        if field == "http_filters":
            for http_filter in value:
                if http_filter["name"] != ROUTER:
                    self.made[f"http_filters {http_filter['name']}", FILTERS_REASON] += 1
            return [http_filter for http_filter in value if http_filter["name"] == ROUTER]
        for change in CHANGED:
            if change.field == field and change.old == value:
                self.made[f"{field} {change.old} -> {change.new}", change.reason] += 1
                return change.new
        return self._reduced(value)


def only_tcp_proxy(listener: Json) -> bool:
    """A listener of one filter chain that is a TCP proxy and looks at nothing first."""
    filters = list(filters_of(listener))
    return filters == ["envoy.filters.network.tcp_proxy"] and not listener.get("listener_filters")


def filters_of(listener: Json) -> Iterator[str]:
    default = listener.get("default_filter_chain")
    for chain in [*listener["filter_chains"], *([default] if default else [])]:
        for network_filter in chain["filters"]:
            yield network_filter["name"]


def rendered(document: Json) -> str:
    """The committed form."""
    return json.dumps(document, indent=1) + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="derive_example.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("source", nargs="?", type=Path, default=SOURCE, help="static.json of the recorded sidecar")
    parser.add_argument("--check", action="store_true", help="compare with the committed file, write nothing")
    options = parser.parse_args(arguments)
    try:
        static = json.loads(options.source.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        print(f"derive_example.py: {options.source}: {error}", file=sys.stderr)
        return 1
    derivation = Derivation(static)
    text = rendered(derivation.document)
    if options.check:
        if RESULT.read_text(encoding="utf-8") == text:
            return 0
        print(f"{RESULT} is not what {options.source} gives; run scripts/derive_example.py", file=sys.stderr)
        return 1
    RESULT.write_text(text, encoding="utf-8")
    for (what, reason), count in sorted(derivation.made.items()):
        print(f"{count:3} x {what}: {reason}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
