"""The program that builds images here: podman, buildah or docker."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import setup

PULL_LIMIT = 90.0  # seconds, for a registry that never answers


class ImageError(Exception):
    """The image cannot be made; the text says why and what to do."""


@dataclass(frozen=True)
class Engine:
    """One program; `inspect` succeeds for an image that is on this machine."""

    name: str
    inspect: Sequence[str] = ("image", "inspect")
    build: Sequence[str] = ("build",)

    def works(self) -> bool:
        """Docker without its daemon does not."""
        return shutil.which(self.name) is not None and self._quietly("info") == 0

    def has(self, image: str) -> bool:
        return self._quietly(*self.inspect, image) == 0

    def pull(self, image: str) -> str:
        """Why it cannot be pulled; empty when it was."""
        try:
            done = subprocess.run(
                [self.name, "pull", image], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PULL_LIMIT
            )
        except subprocess.TimeoutExpired:
            return f"no answer within {PULL_LIMIT:g} s"
        return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no reason given"])[-1]

    def make(
        self,
        context: Path,
        tags: Sequence[str],
        arguments: Mapping[str, str],
        secrets: Mapping[str, Path],
        fresh: bool = False,
    ) -> None:
        """Build the Dockerfile of a folder. `fresh`: no step is taken from an earlier build. Raises ImageError."""
        command = [self.name, *self.build, "--network", "host", *(["--no-cache"] if fresh else [])]
        command += [word for tag in tags for word in ("--tag", tag)]
        command += [word for name, value in arguments.items() for word in ("--build-arg", f"{name}={value}")]
        command += [word for name, path in secrets.items() for word in ("--secret", f"id={name},src={path}")]
        environment = {**os.environ, "DOCKER_BUILDKIT": "1"}
        done = subprocess.run([*command, str(context)], stdin=subprocess.DEVNULL, stdout=sys.stderr, env=environment)
        if done.returncode:
            raise ImageError(f"{self.name} build: exit status {done.returncode}; the reason is above")

    def size(self, image: str) -> str:
        """Unpacked, as people read it."""
        command = [self.name, "images", "--format", "{{.Size}}", image]
        return (subprocess.run(command, capture_output=True, text=True).stdout.splitlines() or ["size unknown"])[0]

    def _quietly(self, *arguments: str) -> int:
        return subprocess.run([self.name, *arguments], stdin=subprocess.DEVNULL, capture_output=True).returncode


ENGINES = (
    Engine("podman"),
    Engine("buildah", ("inspect", "--type", "image"), ("build", "--layers")),
    Engine("docker"),
)


def choose() -> Engine:
    """The first that works; as root one is installed where none does. Raises ImageError."""
    found = next(filter(Engine.works, ENGINES), None)
    if found is None and os.geteuid() == 0:
        try:
            setup.apt_install(["podman", "runc"])
        except setup.SetupError as error:
            raise ImageError(f"nothing here builds images (podman, buildah, docker), and {error}") from None
        found = next(filter(Engine.works, ENGINES), None)
    if found is None:
        names = ", ".join(engine.name for engine in ENGINES)
        raise ImageError(
            f"nothing that works here builds images ({names}): sudo make image, or ask for\n"
            "  sudo apt-get install podman runc uidmap"
        )
    return found


def say(text: str) -> None:
    print(f"[image] {text}", file=sys.stderr, flush=True)
