"""GRPC_XDS_BOOTSTRAP: what an application needs that speaks xDS itself (proxyless gRPC) through the agent's socket."""

import os
from typing import Any

from agent.bootstrap import node
from agent.bootstrap.facts import Facts

Json = Any

_GENERATOR = "grpc"  # istiod makes resources of gRPC's kind for such a node
_LISTENERS = "xds.istio.io/grpc/lds/inbound/%s"
_REFRESH = "900s"


def bootstrap(facts: Facts) -> dict[str, Json]:
    """The file as JSON data, in the format of gRPC's xDS clients (gRFC A27). Raises ConfigError as `node.node` does.

    Unlike the proxy's node, this one has the metadata alone that istiod knows.
    """
    settings = facts.settings
    metadata = {**node.typed_metadata(facts), "GENERATOR": _GENERATOR}
    made: dict[str, Json] = {
        "xds_servers": [
            {
                # Three slashes and a relative path, as the real program writes it: right with working directory /.
                "server_uri": f"unix:///{os.path.normpath(os.path.join(settings.config.config_path, 'XDS'))}",
                "channel_creds": [{"type": "insecure"}],
                "server_features": ["xds_v3"],
            }
        ],
        "node": {
            "id": node.node_id(settings),
            "locality": node.locality(facts, metadata),
            "metadata": metadata,
        },
        "server_listener_resource_name_template": _LISTENERS,
    }
    directory = settings.security.output
    if directory:
        files = {
            "certificate_file": "cert-chain.pem",
            "private_key_file": "key.pem",
            "ca_certificate_file": "root-cert.pem",
        }
        paths = {name: os.path.normpath(os.path.join(directory, file)) for name, file in files.items()}
        provider = {"plugin_name": "file_watcher", "config": {**paths, "refresh_interval": _REFRESH}}
        made["certificate_providers"] = {"default": provider}
    return made
