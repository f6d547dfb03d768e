"""A pod's manifest as the kubelet of the tests reads it: commands, environment, the downward API, volumes."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Spec = Mapping[str, Any]


@dataclass(frozen=True)
class Image:
    """What an image brings: entrypoint and environment."""

    entrypoint: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)


class Manifest:
    """One pod. Volumes are folders in `folder`; `ips` are its addresses, the primary one first."""

    def __init__(self, document: Spec, images: Mapping[str, Image], folder: Path, ips: Sequence[str]) -> None:
        self.metadata: Spec = document["metadata"]
        self.spec: Spec = document["spec"]
        self.folder, self.ips = folder, tuple(ips)
        self._images = images

    @property
    def grace(self) -> float:
        """Seconds from the deletion to SIGKILL."""
        return float(self.spec.get("terminationGracePeriodSeconds", 30))

    def restart_policy(self, container: Spec, is_init: bool) -> str:
        """Of one container: native sidecars run always, other init containers until they have succeeded."""
        if is_init and container.get("restartPolicy") == "Always":
            return "Always"
        policy = str(self.spec.get("restartPolicy", "Always"))
        return "OnFailure" if is_init and policy == "Always" else policy

    def user(self, container: Spec, default: int) -> int:
        contexts = (container.get("securityContext"), self.spec.get("securityContext"))
        found = [context["runAsUser"] for context in contexts if context and "runAsUser" in context]
        return int(found[0]) if found else default

    def command(self, container: Spec) -> list[str]:
        """Command and arguments, with $(VAR) replaced."""
        words = [*(container.get("command") or self._image(container).entrypoint), *container.get("args", ())]
        env = self.env(container)
        return [re.sub(r"\$\((\w+)\)", lambda match: env.get(match[1], match[0]), str(word)) for word in words]

    def env(self, container: Spec) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        values = {**kept, "HOME": "/tmp", **self._image(container).env}
        for entry in container.get("env", ()):
            value = str(entry.get("value", "")) if "valueFrom" not in entry else self._from(container, entry)
            values[entry["name"]] = value
        return values

    def _image(self, container: Spec) -> Image:
        return self._images[container["image"]]

    def _from(self, container: Spec, entry: Spec) -> str:
        source = entry["valueFrom"]
        if "fieldRef" in source:
            return self.field(source["fieldRef"]["fieldPath"])
        resource = source["resourceFieldRef"]["resource"]
        kind, _, name = resource.partition(".")
        quantity = str(container.get("resources", {}).get(kind, {}).get(name, os.cpu_count() if name == "cpu" else 0))
        number = float(quantity.removesuffix("m")) / 1000 if quantity.endswith("m") else quantity
        return str(math.ceil(float(number))) if name == "cpu" else str(number)

    def field(self, path: str) -> str:
        """The downward API."""
        if match := re.fullmatch(r"metadata\.(labels|annotations)\['(.+)'\]", path):
            return str(self.metadata.get(match[1], {}).get(match[2], ""))
        if path in ("metadata.labels", "metadata.annotations"):
            pairs = self.metadata.get(path.partition(".")[2], {})
            return "".join(f'{key}="{_quoted(str(value))}"\n' for key, value in pairs.items())
        known = {
            "metadata.name": self.metadata.get("name", "pod"),
            "metadata.namespace": self.metadata.get("namespace", "default"),
            "metadata.uid": self.metadata.get("uid", "00000000-0000-0000-0000-000000000000"),
            "spec.serviceAccountName": self.spec.get("serviceAccountName", "default"),
            "spec.nodeName": self.spec.get("nodeName", "node"),
            "status.podIP": self.ips[0],
            "status.podIPs": ",".join(self.ips),
            "status.hostIP": "127.0.0.1",
        }
        return str(known[path])

    def volume(self, name: str) -> Path | None:
        """The folder of an emptyDir or downwardAPI volume; None for kinds that have no place here."""
        volume = next(each for each in self.spec.get("volumes", ()) if each["name"] == name)
        folder = self.folder / "volumes" / name
        if not folder.exists():
            folder.mkdir(parents=True)
            folder.chmod(0o777)
        if "downwardAPI" in volume:
            for item in volume["downwardAPI"].get("items", ()):
                if "fieldRef" in item:
                    (folder / item["path"]).write_text(self.field(item["fieldRef"]["fieldPath"]))
            return folder
        return folder if "emptyDir" in volume else None


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
