"""Make the image of the project, or a base for it.

    scripts/run scripts/image.py build     pysidecar:<version> and pysidecar:latest
    scripts/run scripts/image.py base      pysidecar-base:bookworm, made with debootstrap

Variables: BASE (image to start from), FRESH=1 (take no step from an earlier build, pull the base again), MIRROR (of
Debian's packages, for the base), PIP_CONF, APT_CONF, CA_CRT (files that the build reads; default: what this machine's
pip and apt are told about proxies, indexes and certificates). Standard library only.
"""

from __future__ import annotations

import os
import sys
import tempfile
import tomllib
from pathlib import Path

import image_base
import image_settings
import setup
from image_engine import Engine, ImageError, choose, say

NAME = "pysidecar"
BASE = "debian:bookworm-slim"
ROOT = setup.ROOT


def version() -> str:
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"])


def base_of(engine: Engine, wanted: str = "", fresh: bool = False) -> str:
    """The image to start from: `wanted`, else Debian's, else the one of `make image-base`. Raises ImageError."""
    image = wanted or BASE
    if not fresh and engine.has(image):
        return image
    problem = engine.pull(image)
    if not problem:
        return image
    say(f"{image} cannot be pulled: {problem}")
    if engine.has(image):
        return image
    if not wanted and engine.has(image_base.NAME):
        say(f"starting from {image_base.NAME}, the work of `make image-base`")
        return image_base.NAME
    raise ImageError(
        f"no image to start from: `sudo make image-base image` makes {image_base.NAME}, BASE=... names another"
    )


def build(engine: Engine) -> None:
    fresh = os.environ.get("FRESH", "") not in ("", "0")
    base = base_of(engine, os.environ.get("BASE", ""), fresh)
    tags = [f"{NAME}:{version()}", f"{NAME}:latest"]
    with tempfile.TemporaryDirectory(prefix="pysidecar-image-") as folder:
        secrets = image_settings.write(Path(folder))
        engine.make(ROOT, tags, {"BASE": base, "VERSION": version()}, secrets, fresh)
    say(f"{', '.join(tags)}: {engine.size(tags[0])}, from {base}, by {engine.name}")


def main(arguments: list[str]) -> int:
    if arguments not in (["build"], ["base"]):
        print("usage: scripts/run scripts/image.py build|base", file=sys.stderr)
        return 2
    try:
        engine = choose()
        if arguments == ["build"]:
            build(engine)
        else:
            image_base.make(engine, os.environ.get("MIRROR", ""))
    except (ImageError, OSError) as error:
        print(f"[image] error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
