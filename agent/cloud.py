"""The cloud that the pod runs in, as far as variables say it: PLATFORM_METADATA of the node, and a locality.

The metadata services of clouds are not asked: where their address is not routed that would hold every start for
seconds, and locality comes from a label, or from istiod, which knows the node.
"""

from collections.abc import Mapping

from agent.settings import Identity

_FIELDS = ("gcp_project", "gcp_project_number", "gcp_gke_cluster_name", "gcp_location")
_CLUSTERS = "https://container.googleapis.com/v1/projects/{gcp_project}/locations/{gcp_location}/clusters/"


def metadata(identity: Identity, warnings: list[str]) -> dict[str, str]:
    """GCP_METADATA (project id, project number, cluster name and zone with `|` between them) and GCP_QUOTA_PROJECT.

    A value of another form is reported and left out.
    """
    if not identity.gcp_metadata or identity.cloud_platform not in ("", "gcp"):
        if identity.cloud_platform not in ("", "none"):
            warnings.append(
                f"CLOUD_PLATFORM is {identity.cloud_platform}, but its metadata service is not asked: "
                "the locality comes from a label, or from istiod"
            )
        return {}
    parts = identity.gcp_metadata.split("|")
    made: dict[str, str] = {}
    if len(parts) == len(_FIELDS):
        made.update(zip(_FIELDS, parts, strict=True))
        made["gcp_gke_cluster_url"] = _CLUSTERS.format(**made) + made["gcp_gke_cluster_name"]
    else:
        warnings.append(
            f"GCP_METADATA: {identity.gcp_metadata[:64]!r} is ignored: "
            "expected PROJECT_ID|PROJECT_NUMBER|CLUSTER_NAME|CLUSTER_ZONE"
        )
    if identity.gcp_quota_project:
        made["gcp_quota_project"] = identity.gcp_quota_project
    return made


def locality(made: Mapping[str, str]) -> dict[str, str]:
    """Region and zone of GCP's location, which is a zone (`europe-west1-b`); {} when it is unknown."""
    zone = made.get("gcp_location", "")
    region, dash, _ = zone.rpartition("-")
    return {"region": region, "zone": zone} if dash else {}
