"""podman with runc, as these tests need it: no infra image, no registry, limits that this process may give."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LABEL = "pysidecar-test"  # on every container; its value is the pid of the test run
LIMIT = 60.0  # seconds for one command
# podman gives its containers a million of each, which takes CAP_SYS_RESOURCE, and itself no more processes than this.
ULIMITS = {"nofile": (resource.RLIMIT_NOFILE, 1048576), "nproc": (resource.RLIMIT_NPROC, 32768)}
CONFIGURATION = """\
[containers]
default_ulimits = [{ulimits}]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
"""


class Podman:
    """Commands on one image. `close` removes every container that was made."""

    def __init__(self, image: str, folder: Path) -> None:
        assert os.geteuid() == 0, "the tests of the image need root: sudo make image-test"
        for program in ("podman", "runc"):
            assert shutil.which(program), f"the tests of the image need {program}: apt-get install podman runc"
        self.image, self.folder = image, folder
        limits = []
        for name, (which, wanted) in ULIMITS.items():
            hard = resource.getrlimit(which)[1]
            limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            limits.append(f'"{name}={limit}:{limit}"')
        configuration = folder / "containers.conf"
        configuration.write_text(CONFIGURATION.format(ulimits=", ".join(limits)))
        self._environment = {**os.environ, "CONTAINERS_CONF": str(configuration)}
        self._sweep()
        done = self("image", "inspect", image, check=False)
        assert done.returncode == 0, f"podman has no image {image} (make image, with podman or buildah): {done.stderr}"
        self.inspected: dict[str, Any] = json.loads(done.stdout)[0]

    def __call__(self, *arguments: str, check: bool = True, limit: float = LIMIT) -> subprocess.CompletedProcess[str]:
        """Run podman to the end."""
        done = subprocess.run(
            ["podman", *arguments],
            cwd=self.folder,  # conmon leaves a file `oom` where it is started
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=limit,
            check=False,
        )
        assert not check or done.returncode == 0, f"podman {' '.join(arguments)}: {done.stderr}"
        return done

    def run(self, rights: Sequence[str], *arguments: str) -> subprocess.CompletedProcess[str]:
        """A container that ends by itself, removed afterwards. `arguments`: those of the entrypoint."""
        return self("run", "--rm", f"--label={LABEL}={os.getpid()}", *rights, self.image, *arguments, check=False)

    def start(self, name: str, rights: Sequence[str], *arguments: str) -> None:
        """A container that stays, called `name` from now on."""
        self("run", "--detach", f"--name={self.name(name)}", f"--label={LABEL}={os.getpid()}", *rights, self.image,
             *arguments)  # fmt: skip

    def execute(self, name: str, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in a container, as a hook or probe of the kubelet does."""
        return self("exec", self.name(name), *command, check=False)

    def logs(self, name: str) -> str:
        done = self("logs", self.name(name))
        return done.stdout + done.stderr

    def state(self, name: str) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(self("container", "inspect", self.name(name)).stdout)[0]["State"]
        return state

    def remove(self, name: str) -> None:
        self("rm", "--force", "--time=0", "--ignore", self.name(name))

    @staticmethod
    def name(name: str) -> str:
        """Of a container, unique among test runs."""
        return f"pysc-{os.getpid()}-{name}"

    def close(self) -> None:
        self._remove(self._made(f"{LABEL}={os.getpid()}"))

    def _sweep(self) -> None:
        """Remove what test runs that were killed have left."""
        gone = [made for made in self._made(LABEL) if not Path("/proc", made["Labels"][LABEL]).exists()]
        self._remove(gone)

    def _made(self, label: str) -> list[dict[str, Any]]:
        done = self("ps", "--all", "--format=json", f"--filter=label={label}")
        made: list[dict[str, Any]] = json.loads(done.stdout) or []
        return made

    def _remove(self, containers: Sequence[dict[str, Any]]) -> None:
        if containers:
            self("rm", "--force", "--time=0", *(each["Id"] for each in containers))
