"""What this machine says about fetching packages, as files that a build gets to read and that stay out of the image.

Without them a build behind a proxy, a mirror or a private certificate authority would fail where the machine does not.
"""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from image_engine import ImageError

# Settings that mean the same inside of a container; paths of this machine (find-links, cache-dir) mean nothing there.
PIP_SETTINGS = (
    "index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "default-timeout", "retries"
)  # fmt: skip
PIP_SECTIONS = ("global", "install")
APT_SETTINGS = re.compile(r"Acquire::(https?::|Retries|Check-Valid-Until|Check-Date)")
CERTIFICATES = "/run/secrets/ca.crt"  # where a build finds ca.crt


def pip_settings(environment: Mapping[str, str], home: Path, system: Path = Path("/etc/pip.conf")) -> dict[str, str]:
    """pip's settings from all of its files and variables, the later ones winning as in pip. Raises ImageError."""
    config_home = Path(environment.get("XDG_CONFIG_HOME") or home / ".config")
    files = [system, home / ".pip/pip.conf", config_home / "pip/pip.conf"]
    if own := environment.get("PIP_CONFIG_FILE"):
        files = [Path(own)] if own != os.devnull else []
    parser = configparser.RawConfigParser()
    try:
        parser.read(files, encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError) as error:
        raise ImageError(f"the configuration of pip: {error}") from None
    found: dict[str, str] = {}
    for section in PIP_SECTIONS:
        if parser.has_section(section):
            found.update({name.replace("_", "-"): value for name, value in parser.items(section)})
    for name, value in environment.items():
        if name.startswith("PIP_") and value:
            found[name.removeprefix("PIP_").lower().replace("_", "-")] = value
    return found


def certificates(settings: Mapping[str, str], environment: Mapping[str, str]) -> Path | None:
    """The file of certificate authorities that this machine trusts instead of the usual ones."""
    path = settings.get("cert") or environment.get("SSL_CERT_FILE") or environment.get("REQUESTS_CA_BUNDLE")
    return Path(path) if path and Path(path).is_file() else None


def pip_conf(settings: Mapping[str, str], own_certificates: bool) -> str:
    kept = {name: settings[name] for name in PIP_SETTINGS if name in settings}
    if own_certificates:
        kept["cert"] = CERTIFICATES
    lines = [f"{name} = {value.strip().replace(chr(10), chr(10) + '  ')}" for name, value in kept.items()]
    return "\n".join(["[global]", *lines]) + "\n"


def apt_conf(dump: str, own_certificates: bool) -> str:
    """From what `apt-config dump` prints."""
    lines = [line for line in dump.splitlines() if APT_SETTINGS.match(line) and "CAInfo" not in line]
    if own_certificates:
        lines.append(f'Acquire::https::CAInfo "{CERTIFICATES}";')
    return "\n".join(lines) + "\n"


def apt_dump() -> str:
    if shutil.which("apt-config") is None:
        return ""
    return subprocess.run(["apt-config", "dump", "Acquire"], capture_output=True, text=True, check=True).stdout


def write(folder: Path) -> dict[str, Path]:
    """The files by their names in the Dockerfile. PIP_CONF, APT_CONF and CA_CRT name files to take instead.

    Raises ImageError.
    """
    environment = os.environ
    settings = pip_settings(environment, Path.home())
    trusted = given("CA_CRT", environment) or certificates(settings, environment)
    texts = {
        "pip.conf": pip_conf(settings, trusted is not None),
        "apt.conf": apt_conf(apt_dump(), trusted is not None),
    }
    files: dict[str, Path] = {} if trusted is None else {"ca.crt": trusted}
    for name, text in texts.items():
        files[name] = given(name.upper().replace(".", "_"), environment) or folder / name
        if files[name].parent == folder:
            files[name].touch(mode=0o600)  # an index or a proxy may be named with a password
            files[name].write_text(text, encoding="utf-8")
    return files


def given(variable: str, environment: Mapping[str, str]) -> Path | None:
    """The file that a variable names. Raises ImageError where there is none."""
    path = environment.get(variable)
    if not path:
        return None
    if not Path(path).is_file():
        raise ImageError(f"{variable}: {path!r} is not a file")
    return Path(path).resolve()
