"""A pod as the injector makes it, of podman containers in one network namespace."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.e2e.mesh_pod import APPLICATION, CAPTURE, OUTSIDE, POD, proxy_config
from tests.image.podman import Podman
from tests.netns.netns import Namespace

PREFIX_LENGTH = 24
NO_RIGHTS = ["--cap-drop=ALL", "--security-opt=no-new-privileges"]
READ_ONLY = ["--read-only", "--read-only-tmpfs=false"]
# The security contexts of the injector's containers.
INIT = ["--user=0:0", *NO_RIGHTS, "--cap-add=NET_ADMIN,NET_RAW"]
VALIDATION = ["--user=1337:1337", *NO_RIGHTS, *READ_ONLY]
SIDECAR = ["--user=1337:1337", *NO_RIGHTS, *READ_ONLY, "--memory=1g", "--cpus=2"]
APPLICATION_RIGHTS = [
    "--user=1000:1000",
    *NO_RIGHTS,
    *READ_ONLY,
    "--mount=type=tmpfs,destination=/tmp",
    "--workdir=/tmp",
]
INIT_ARGUMENTS = ["istio-iptables", *CAPTURE[:10], "-x", "", *CAPTURE[10:], "--log_output_level=default:info"]
SIDECAR_ARGUMENTS = [
    "proxy", "sidecar", "--domain", "default.svc.cluster.local", "--proxyLogLevel=warning",
    "--proxyComponentLogLevel=misc:error", "--log_output_level=default:info",
]  # fmt: skip
ENVIRONMENT = {
    "PILOT_CERT_PROVIDER": "istiod",
    "CA_ADDR": "istiod.istio-system.svc:15012",
    "POD_NAME": "app-1",
    "POD_NAMESPACE": "default",
    "INSTANCE_IP": POD,
    "SERVICE_ACCOUNT": "default",
    "HOST_IP": OUTSIDE,
    "ISTIO_CPU_LIMIT": "2",
    "GOMEMLIMIT": "1073741824",
    "ISTIO_META_POD_PORTS": '[\n    {"containerPort":9080,"protocol":"TCP"}\n]',
    "ISTIO_META_APP_CONTAINERS": "app",
    "ISTIO_META_CLUSTER_ID": "Kubernetes",
    "ISTIO_META_NODE_NAME": "node",
    "ISTIO_META_INTERCEPTION_MODE": "REDIRECT",
    "ISTIO_META_WORKLOAD_NAME": "app",
    "ISTIO_META_OWNER": "kubernetes://apis/apps/v1/namespaces/default/deployments/app",
    "ISTIO_META_MESH_ID": "cluster.local",
    "TRUST_DOMAIN": "cluster.local",
}
# Where the injector mounts its volumes: emptyDir, which everybody may write to; what others write, read-only.
EMPTY = {
    "workload-socket": "/var/run/secrets/workload-spiffe-uds",
    "credential-socket": "/var/run/secrets/credential-uds",
    "workload-certs": "/var/run/secrets/workload-spiffe-credentials",
    "istio-data": "/var/lib/istio/data",
}
GIVEN = {
    "istiod-ca-cert": ("/var/run/secrets/istio", {"root-cert.pem": ""}),
    "istio-token": ("/var/run/secrets/tokens", {"istio-token": "token"}),
    "istio-podinfo": ("/etc/istio/pod", {"labels": 'app="app"\n', "annotations": 'a="b"\n'}),
}
CONFIG_FOLDER = "/etc/sidecar"
CONFIG = f"{CONFIG_FOLDER}/envoy.json"


class Pod:
    """`inside`: the namespace of the pod; `outside`: everything else's, joined to it."""

    def __init__(self, podman: Podman, folder: Path, inside: Namespace, outside: Namespace) -> None:
        self.podman, self.folder, self.inside, self.outside = podman, folder, inside, outside
        inside.connect(outside, "eth0", [f"{POD}/{PREFIX_LENGTH}"], [f"{OUTSIDE}/{PREFIX_LENGTH}"])
        self.config = folder / "config"
        self.config.mkdir()
        (self.config / "envoy.json").write_text(json.dumps(proxy_config()))

    @property
    def network(self) -> list[str]:
        return [f"--network=ns:/run/netns/{self.inside.name}"]

    def init(self, *more: str) -> subprocess.CompletedProcess[str]:
        """istio-init, to its end."""
        return self.podman.run([*self.network, *INIT], *INIT_ARGUMENTS, *more)

    def validation(self) -> subprocess.CompletedProcess[str]:
        """istio-validation, which takes the place of istio-init where a CNI plugin captures."""
        flags = ["--run-validation", "--skip-rule-apply"]
        return self.podman.run([*self.network, *VALIDATION], *INIT_ARGUMENTS, *flags)

    def sidecar(
        self, *arguments: str, rights: Sequence[str] = SIDECAR, **fields: Any
    ) -> subprocess.CompletedProcess[str]:
        """A proxy container to its end. `fields` are of ProxyConfig."""
        options = [*self.network, *rights, *self._mounts("own"), *self._variables(fields)]
        return self.podman.run(options, *SIDECAR_ARGUMENTS, *arguments)

    def place(self, name: str, text: str) -> str:
        """An executable file beside the proxy's configuration; its path in sidecars."""
        (self.config / name).write_text(text)
        (self.config / name).chmod(0o755)
        return f"{CONFIG_FOLDER}/{name}"

    def start_sidecar(self, **fields: Any) -> None:
        """istio-proxy, until `pilot-agent wait` in it has ended, as the postStart hook waits."""
        own = {"customConfigFile": CONFIG, "terminationDrainDuration": "1s", **fields}
        options = [*self.network, *SIDECAR, *self._mounts("istio-proxy"), *self._variables(own)]
        self.podman.start("istio-proxy", options, *SIDECAR_ARGUMENTS)
        waited = self.podman.execute("istio-proxy", "pilot-agent", "wait", "--timeoutSeconds=30", "--periodMillis=20")
        assert waited.returncode == 0, f"{waited.stderr}\n{self.podman.logs('istio-proxy')}"

    def stop_sidecar(self) -> dict[str, Any]:
        """As a kubelet stops a container; its state afterwards. Everything that it had to log is logged by then."""
        self.podman("stop", "--time=30", Podman.name("istio-proxy"))
        return self.podman.state("istio-proxy")

    def start_application(self) -> None:
        """Python of the same image; it listens when this returns."""
        self.podman.start("app", [*self.network, *APPLICATION_RIGHTS, "--entrypoint=python3"], "-c", APPLICATION)
        up = "import os, time\nwhile not os.path.exists('up'): time.sleep(0.01)"
        assert self.podman.execute("app", "python3", "-c", up).returncode == 0

    def close(self) -> None:
        for name in ("istio-proxy", "app"):
            self.podman.remove(name)

    @staticmethod
    def _variables(fields: Mapping[str, Any]) -> list[str]:
        variables = {**ENVIRONMENT, "PROXY_CONFIG": json.dumps(fields) + "\n"}
        return [f"--env={name}={value}" for name, value in variables.items()]

    def _mounts(self, container: str) -> list[str]:
        mounts = ["--mount=type=tmpfs,destination=/etc/istio/proxy,tmpfs-mode=0777",
                  f"--volume={self.config}:{CONFIG_FOLDER}:ro"]  # fmt: skip
        for name, place in EMPTY.items():
            folder = self.folder / container / name
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o777)
            mounts.append(f"--volume={folder}:{place}")
        for name, (place, files) in GIVEN.items():
            folder = self.folder / container / name
            folder.mkdir(parents=True, exist_ok=True)
            for file, text in files.items():
                (folder / file).write_text(text)
            mounts.append(f"--volume={folder}:{place}:ro")
        return mounts
