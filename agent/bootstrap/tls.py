"""TLS towards tracers and remote services, and that of the listeners for metrics: certificates come over SDS."""

from collections.abc import Mapping
from typing import Any

from agent.bootstrap.facts import TYPES, Facts
from agent.errors import ConfigError

Json = Any

_TLS = "envoy.extensions.transport_sockets.tls.v3"
_NAME = "envoy.transport_sockets.tls"


def secret(name: str) -> dict[str, Json]:
    """A secret that the agent serves on the workload socket."""
    return {
        "name": name,
        "sds_config": {
            "api_config_source": {
                "api_type": "GRPC",
                "grpc_services": [{"envoy_grpc": {"cluster_name": "sds-grpc"}}],
                "set_node_on_first_message_only": True,
                "transport_api_version": "V3",
            },
            "resource_api_version": "V3",
        },
    }


def transport_socket(
    facts: Facts, settings: Mapping[str, Json] | None, default_sni: str, *, http2: bool
) -> dict[str, Json] | None:
    """The transport socket of istio's ClientTLSSettings; None = plain text.

    Files named in the node's metadata (TLS_CLIENT_*) beat those of the settings. Raises ConfigError when a mode lacks
    what it needs.
    """
    mode = None if settings is None else settings.get("mode", "DISABLE")
    if settings is None or mode == "DISABLE":
        return None
    common: dict[str, Json] = {}
    sni = settings.get("sni", "")
    root = facts.tls_files.get("TLS_CLIENT_ROOT_CERT") or settings.get("caCertificates", "")
    if mode == "ISTIO_MUTUAL":
        common["tls_certificate_sds_secret_configs"] = [secret("default")]
        root_secret, sni = "ROOTCA", sni or default_sni
        alpn = ["istio", "h2"]
    else:
        root_secret, alpn = (f"file-root:{root}" if root else ""), ["h2"]
        if mode == "MUTUAL":
            certificate = facts.tls_files.get("TLS_CLIENT_CERT_CHAIN") or settings.get("clientCertificate", "")
            key = facts.tls_files.get("TLS_CLIENT_KEY") or settings.get("privateKey", "")
            if not certificate or not key:
                raise ConfigError(
                    f"ProxyConfig tlsSettings of {default_sni}: mode MUTUAL needs clientCertificate and privateKey"
                )
            common["tls_certificate_sds_secret_configs"] = [secret(f"file-cert:{certificate}~{key}")]
    if not root_secret:
        raise ConfigError(f"ProxyConfig tlsSettings of {default_sni}: mode {mode} needs caCertificates")
    names = [{"exact": name} for name in settings.get("subjectAltNames", ())]
    common["combined_validation_context"] = {
        "default_validation_context": {"match_subject_alt_names": names} if names else {},
        "validation_context_sds_secret_config": secret(root_secret),
    }
    if http2:
        common["alpn_protocols"] = alpn
    typed: dict[str, Json] = {"@type": f"{TYPES}{_TLS}.UpstreamTlsContext", "common_tls_context": common}
    return {"name": _NAME, "typed_config": {**typed, "sni": sni} if sni else typed}


def server_socket() -> dict[str, Json]:
    """mTLS with the workload's certificate; who has none of this mesh is refused."""
    return {
        "name": _NAME,
        "typed_config": {
            "@type": f"{TYPES}{_TLS}.DownstreamTlsContext",
            "require_client_certificate": True,
            "common_tls_context": {
                "tls_certificate_sds_secret_configs": [secret("default")],
                "combined_validation_context": {
                    "default_validation_context": {},
                    "validation_context_sds_secret_config": secret("ROOTCA"),
                },
            },
        },
    }
