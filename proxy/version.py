"""What this proxy calls itself where Envoy shows its version: --version, /server_info, the server.version statistic."""

from __future__ import annotations

import hashlib

VERSION = "0.1.0"
"""Version of this project, as in pyproject.toml."""

ENVOY_VERSION = "1.40.0"
"""The Envoy release whose configuration and behaviour this proxy follows."""

SHA = hashlib.sha1(f"pysidecar {VERSION}".encode(), usedforsecurity=False).hexdigest()
"""Stands where Envoy has the commit it was built from: 40 hex digits that identify a release."""

BUILD = f"{SHA}/{ENVOY_VERSION}/Clean/RELEASE/pysidecar-{VERSION}"
"""Envoy's ``<sha>/<version>/<status>/<build type>/<TLS library>``."""

HOT_RESTART_VERSION = "disabled"
"""As Envoy prints it with --disable-hot-restart."""
