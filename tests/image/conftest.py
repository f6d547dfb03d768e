"""Tests of the built image. They run in `make image-test` only, which names the image in PYSIDECAR_IMAGE."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.image.podman import Podman

IMAGE = os.environ.get("PYSIDECAR_IMAGE", "")
collect_ignore_glob = [] if IMAGE else ["test_*.py"]


@pytest.fixture(scope="session")
def podman() -> Iterator[Podman]:
    with tempfile.TemporaryDirectory(prefix="pysidecar-test-", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        made = Podman(IMAGE, Path(folder))
        yield made
        made.close()
