"""What the tests of proxy.config share: a small base configuration, and loading of documents without files."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proxy.config.errors import ConfigErrors
from proxy.config.load import Loaded, compile_bootstrap, load_bootstrap, parse_document
from proxy.config.schema import Checker

Json = dict[str, Any]

EVERYTHING = Path(__file__).with_name("everything.yaml")
SHARED = Path(__file__).resolve().parents[4] / "shared"
EXTENSIONS = "type.googleapis.com/envoy.extensions"
HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


@dataclass(frozen=True)
class Options:
    """The part of proxy.options.Options that loading reads."""

    config_path: str = ""
    config_yaml: str = ""
    allow_unknown_static_fields: bool = False


def load(document: Json | str, *, allow_unknown: bool = False) -> Loaded:
    """Compile a document, or a text of YAML."""
    if isinstance(document, str):
        return load_bootstrap(Options(config_yaml=document, allow_unknown_static_fields=allow_unknown))
    checker = Checker(allow_unknown)
    return compile_bootstrap(parse_document(document, checker), checker)


def errors(document: Json | str, *, allow_unknown: bool = False) -> dict[str, str]:
    """What is wrong with a document: path -> message. Fails when nothing is."""
    try:
        load(document, allow_unknown=allow_unknown)
    except ConfigErrors as raised:
        return {error.path: error.message for error in raised.errors}
    raise AssertionError("the configuration was accepted")


class Case:
    """A base configuration that tests change: ``case.route["timeout"] = "1s"``."""

    def __init__(self) -> None:
        self.document: Json = copy.deepcopy(_BASE)
        resources = self.document["static_resources"]
        self.listeners: list[Json] = resources["listeners"]
        self.clusters: list[Json] = resources["clusters"]
        self.listener: Json = self.listeners[0]
        self.cluster: Json = self.clusters[0]
        self.chain: Json = self.listener["filter_chains"][0]
        self.manager: Json = self.chain["filters"][0]["typed_config"]
        self.table: Json = self.manager["route_config"]
        self.host: Json = self.table["virtual_hosts"][0]
        self.entry: Json = self.host["routes"][0]
        self.route: Json = self.entry["route"]

    def load(self) -> Loaded:
        return load(self.document)

    def errors(self) -> dict[str, str]:
        return errors(self.document)


LISTENER = "static_resources.listeners[0]"
CHAIN = f"{LISTENER}.filter_chains[0]"
MANAGER = f"{CHAIN}.filters[0].typed_config"
TABLE = f"{MANAGER}.route_config"
HOST = f"{TABLE}.virtual_hosts[0]"
ENTRY = f"{HOST}.routes[0]"
ROUTE = f"{ENTRY}.route"
CLUSTER = "static_resources.clusters[0]"

ROUTER = {"name": "envoy.filters.http.router",
          "typed_config": {"@type": f"{EXTENSIONS}.filters.http.router.v3.Router"}}


def tcp_proxy(**fields: Any) -> Json:
    """A network filter that proxies TCP to cluster c1."""
    return {"name": "envoy.filters.network.tcp_proxy",
            "typed_config": {"@type": f"{EXTENSIONS}.filters.network.tcp_proxy.v3.TcpProxy", "stat_prefix": "tcp",
                             "cluster": "c1", **fields}}


_BASE: Json = {
    "static_resources": {
        "listeners": [{
            "name": "l1",
            "address": {"socket_address": {"address": "127.0.0.1", "port_value": 10000}},
            "filter_chains": [{
                "name": "fc1",
                "filters": [{
                    "name": "envoy.filters.network.http_connection_manager",
                    "typed_config": {
                        "@type": f"{EXTENSIONS}.filters.network.http_connection_manager.v3.HttpConnectionManager",
                        "stat_prefix": "web",
                        "route_config": {
                            "name": "r",
                            "virtual_hosts": [{
                                "name": "v", "domains": ["*"],
                                "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "c1"}}],
                            }],
                        },
                        "http_filters": [ROUTER],
                    },
                }],
            }],
        }],
        "clusters": [{
            "name": "c1",
            "load_assignment": {"cluster_name": "c1", "endpoints": [{"lb_endpoints": [
                {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 8001}}}}]}]},
        }],
    },
}
