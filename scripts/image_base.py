"""A base image made with debootstrap, for machines that reach Debian's packages but no registry of images."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import image_settings
import setup
from image_engine import Engine, ImageError, say

NAME = "pysidecar-base:bookworm"
SUITE = "bookworm"
KEYS = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
# As in Debian's own slim images: packages are installed without these.
NOT_UNPACKED = """\
path-exclude /usr/share/doc/*
path-include /usr/share/doc/*/copyright
path-exclude /usr/share/groff/*
path-exclude /usr/share/info/*
path-exclude /usr/share/linda/*
path-exclude /usr/share/lintian/*
path-exclude /usr/share/locale/*
path-exclude /usr/share/man/*
"""
DOCKERFILE = 'FROM scratch\nADD root.tar /\nCMD ["sh"]\n'
# Inside of the new root. Updates of the base system are not in the suite itself.
FINISH = r"""
set -eu
. /etc/os-release
mirror=$(awk '$1 == "deb" { print $2; exit }' /etc/apt/sources.list)
{
    echo "deb $mirror $VERSION_CODENAME main"
    echo "deb $mirror $VERSION_CODENAME-updates main"
    echo "deb ${mirror%/}-security $VERSION_CODENAME-security main"
} > /etc/apt/sources.list
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get dist-upgrade -qq -y
apt-get clean
find /usr/share/doc -mindepth 2 ! -name copyright ! -type d -delete
rm -rf /usr/share/groff /usr/share/info /usr/share/linda /usr/share/lintian /usr/share/locale /usr/share/man
rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/*-old /var/log/*.log /var/log/apt/* /tmp/* /run/secrets
rm -f /etc/hostname /etc/resolv.conf
: > /etc/machine-id
"""


def make(engine: Engine, mirror: str = "") -> None:
    """Make NAME. `mirror`: of Debian's packages, default debootstrap's. Raises ImageError."""
    if os.geteuid() != 0:
        raise ImageError("debootstrap needs root: sudo make image-base image")
    _ensure_debootstrap()
    # In a mount namespace of its own nothing that is mounted in the new root outlives the work there.
    private = ["unshare", "--mount", "--propagation", "private"]
    with tempfile.TemporaryDirectory(prefix="pysidecar-base-", dir="/var/tmp") as name:
        context, root = Path(name), Path(name, "root")
        say(f"debootstrap {SUITE} (about a minute)")
        _run([*private, "debootstrap", "--variant=minbase", SUITE, str(root), *([mirror] if mirror else [])])
        (root / "etc/dpkg/dpkg.cfg.d/slim").write_text(NOT_UNPACKED, encoding="ascii")
        (root / "run/secrets").mkdir()
        settings = image_settings.write(context)
        for file, path in settings.items():
            shutil.copyfile(path, root / "run/secrets" / file)
        say("its updates")
        _run([*private, "chroot", str(root), "env", "APT_CONFIG=/run/secrets/apt.conf", "sh", "-c", FINISH])
        # dev: a container gets one of its own.
        _run(["tar", "-C", str(root), "--one-file-system", "--exclude=./dev/*", "-cf", f"{context}/root.tar", "."])
        shutil.rmtree(root)
        for path in settings.values():
            if path.parent == context:
                path.unlink()
        (context / "Dockerfile").write_text(DOCKERFILE, encoding="ascii")
        engine.make(context, [NAME], {}, {}, fresh=True)
    say(f"{NAME}: {engine.size(NAME)}")


def _ensure_debootstrap() -> None:
    if shutil.which("debootstrap") and KEYS.exists():
        return
    try:
        setup.apt_install(["debootstrap", "debian-archive-keyring"])
    except setup.SetupError as error:
        raise ImageError(str(error)) from None


def _run(command: list[str]) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        tail = "\n".join(done.stdout.decode(errors="replace").splitlines()[-20:])
        raise ImageError(f"{tail}\n{' '.join(command[:6])} ...: exit status {done.returncode}")
