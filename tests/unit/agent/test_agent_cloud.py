"""Facts about the cloud: PLATFORM_METADATA and locality of the node."""

from typing import Any

import pytest
from agent_loading import bootstrap

POD = {"POD_NAME": "a", "POD_NAMESPACE": "b", "INSTANCE_IP": "10.0.0.1"}
FACTS = "shop|12345|mesh|europe-west1-b"
MADE = {
    "gcp_project": "shop",
    "gcp_project_number": "12345",
    "gcp_gke_cluster_name": "mesh",
    "gcp_location": "europe-west1-b",
    "gcp_gke_cluster_url": "https://container.googleapis.com/v1/projects/shop/locations/europe-west1-b/clusters/mesh",
}


def node(**variables: Any) -> tuple[Any, Any, list[str]]:
    made, warnings = bootstrap({}, **POD, **variables)
    return made["node"]["metadata"].get("PLATFORM_METADATA"), made["node"]["locality"], warnings


def test_gcp_metadata() -> None:
    zone = {"region": "europe-west1", "zone": "europe-west1-b"}
    assert node(GCP_METADATA=FACTS) == (MADE, zone, [])
    assert node(GCP_METADATA=FACTS, CLOUD_PLATFORM="GCP", GCP_QUOTA_PROJECT="other")[0] == {
        **MADE, "gcp_quota_project": "other"
    }  # fmt: skip


def test_a_label_beats_the_cloud() -> None:
    made = node(GCP_METADATA=FACTS, labels={"istio-locality": "r.z"})
    assert made[1] == {"region": "r", "zone": "z"}


@pytest.mark.parametrize("location", ["", "global"])
def test_a_location_that_is_no_zone(location: str) -> None:
    assert node(GCP_METADATA=f"p|1|c|{location}")[1] == {}


def test_another_form() -> None:
    made, locality, warnings = node(GCP_METADATA="a|b")
    assert (made, locality) == (None, {})
    assert warnings == ["GCP_METADATA: 'a|b' is ignored: expected PROJECT_ID|PROJECT_NUMBER|CLUSTER_NAME|CLUSTER_ZONE"]


@pytest.mark.parametrize(("platform", "said"), [("", 0), ("none", 0), ("aws", 1), ("AZURE", 1), ("gcp", 1)])
def test_metadata_services_are_not_asked(platform: str, said: int) -> None:
    made, locality, warnings = node(CLOUD_PLATFORM=platform)
    assert (made, locality, len(warnings)) == (None, {}, said)
    assert all("its metadata service is not asked" in warning for warning in warnings)


def test_facts_about_another_cloud_are_no_facts() -> None:
    assert node(GCP_METADATA=FACTS, CLOUD_PLATFORM="none") == (None, {}, [])
