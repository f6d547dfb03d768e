"""scripts/image*.py: what they tell a build of this machine, and where they start from. Nothing is built here."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
NAMES = ("setup", "image_engine", "image_settings", "image_base", "image")
# A program that knows the images in `images`, can pull those in `registry`, and writes down what it is asked to build.
ENGINE = """#!/bin/sh
cd "$(dirname "$0")"
case "$1 $2" in
    "info ") test ! -e broken ;;
    "image inspect") grep -qx "$3" images ;;
    "pull "*) echo "trying" >&2; grep -x "$2" registry >> images || { echo "no such host" >&2; exit 125; } ;;
    "build "*) for word; do echo "$word"; done > built; test ! -e failing ;;
    "images "*) echo "42 MB" ;;
    *) exit 99 ;;
esac
"""


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    for name in NAMES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield {name: importlib.import_module(name) for name in NAMES}
    for name in NAMES:
        sys.modules.pop(name, None)


@pytest.fixture
def image(scripts: dict[str, ModuleType]) -> ModuleType:
    return scripts["image"]


@pytest.fixture
def settings(scripts: dict[str, ModuleType]) -> ModuleType:
    return scripts["image_settings"]


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a program `podman`, the only one there is."""
    folder = tmp_path / "engine"
    folder.mkdir()
    (folder / "podman").write_text(ENGINE)
    (folder / "podman").chmod(0o755)
    for name in ("images", "registry"):
        (folder / name).touch()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    for name in ("BASE", "FRESH", "MIRROR", "PIP_CONF", "APT_CONF", "CA_CRT"):
        monkeypatch.delenv(name, raising=False)
    return folder


def built(engine: Path) -> dict[str, str]:
    """Build arguments by their names."""
    words = (engine / "built").read_text().splitlines()
    pairs = [word for flag, word in zip(words, words[1:], strict=False) if flag == "--build-arg"]
    return dict(pair.split("=", 1) for pair in pairs)


def test_debians_image_is_pulled(image: ModuleType, engine: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (engine / "registry").write_text(f"{image.BASE}\n")
    assert image.main(["build"]) == 0
    assert built(engine) == {"BASE": image.BASE, "VERSION": image.version()}
    words = (engine / "built").read_text().splitlines()
    assert f"pysidecar:{image.version()}" in words and "pysidecar:latest" in words
    assert "42 MB" in capfd.readouterr().err


def test_an_image_that_is_there_is_not_pulled(image: ModuleType, engine: Path) -> None:
    (engine / "images").write_text(f"{image.BASE}\n")
    assert image.main(["build"]) == 0
    assert built(engine)["BASE"] == image.BASE


def test_without_a_registry_the_local_base_serves(
    image: ModuleType, engine: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (engine / "images").write_text("pysidecar-base:bookworm\n")
    assert image.main(["build"]) == 0
    assert built(engine)["BASE"] == "pysidecar-base:bookworm"
    said = capfd.readouterr().err
    assert "debian:bookworm-slim cannot be pulled: no such host" in said and "make image-base" in said


def test_without_any_base_it_says_how_to_make_one(
    image: ModuleType, engine: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert image.main(["build"]) == 1
    assert "sudo make image-base" in capfd.readouterr().err
    assert not (engine / "built").exists()


def test_a_base_of_ones_own_is_not_replaced(image: ModuleType, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (engine / "images").write_text("pysidecar-base:bookworm\n")
    monkeypatch.setenv("BASE", "mine:1")
    assert image.main(["build"]) == 1
    (engine / "registry").write_text("mine:1\n")
    assert image.main(["build"]) == 0
    assert built(engine)["BASE"] == "mine:1"


def test_fresh_takes_nothing_from_before(image: ModuleType, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (engine / "images").write_text(f"{image.BASE}\n")
    monkeypatch.setenv("FRESH", "1")
    assert image.main(["build"]) == 0
    assert "--no-cache" in (engine / "built").read_text().splitlines()


def test_a_build_that_fails(image: ModuleType, engine: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (engine / "images").write_text(f"{image.BASE}\n")
    (engine / "failing").touch()
    assert image.main(["build"]) == 1
    assert "podman build: exit status 1" in capfd.readouterr().err


def test_without_a_program_that_works(image: ModuleType, engine: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (engine / "broken").touch()
    (engine / "docker").write_text("#!/bin/sh\nexit 1\n")
    (engine / "docker").chmod(0o755)
    (engine / "buildah").symlink_to("docker")
    assert image.main(["build"]) == 1
    assert "sudo apt-get install podman" in capfd.readouterr().err


def test_base_needs_root(image: ModuleType, engine: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert image.main(["base"]) == 1
    assert "sudo make image-base" in capfd.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["party"], ["build", "base"]])
def test_usage(image: ModuleType, arguments: list[str]) -> None:
    assert image.main(arguments) == 2


def test_pip_is_told_what_it_is_told_here(settings: ModuleType, tmp_path: Path) -> None:
    """The later source wins; sections of one command and paths of this machine stay here."""
    (tmp_path / "system.conf").write_text("[global]\nindex-url = https://one\ntimeout = 5\n[list]\nproxy = no\n")
    (tmp_path / ".config/pip").mkdir(parents=True)
    (tmp_path / ".config/pip/pip.conf").write_text("[global]\nindex_url = https://%two\nextra-index-url = a\n  b\n")
    environment = {"PIP_TIMEOUT": "9", "PIP_FIND_LINKS": "/wheels", "PIP_CERT": "/etc/cert.pem", "PIP_PROXY": ""}
    found = settings.pip_settings(environment, tmp_path, tmp_path / "system.conf")
    assert settings.pip_conf(found, own_certificates=True) == (
        "[global]\nindex-url = https://%two\nextra-index-url = a\n  b\ntimeout = 9\ncert = /run/secrets/ca.crt\n"
    )


def test_nothing_said_is_nothing_told(settings: ModuleType, tmp_path: Path) -> None:
    found = settings.pip_settings({}, tmp_path, tmp_path / "absent")
    assert settings.pip_conf(found, own_certificates=False) == "[global]\n"
    assert settings.certificates(found, {}) is None
    assert settings.apt_conf("", own_certificates=False) == "\n"


def test_configuration_of_pip_that_cannot_be_read(
    settings: ModuleType, scripts: dict[str, ModuleType], tmp_path: Path
) -> None:
    (tmp_path / "pip.conf").write_text("index-url = https://one\n")
    with pytest.raises(scripts["image_engine"].ImageError, match=r"pip\.conf"):
        settings.pip_settings({"PIP_CONFIG_FILE": str(tmp_path / "pip.conf")}, tmp_path)


def test_apt_is_told_how_to_fetch(settings: ModuleType) -> None:
    dump = (
        'Acquire "";\nAcquire::http::Proxy "http://proxy:1";\nAcquire::https::CAInfo "/etc/ca.pem";\n'
        'Acquire::Languages "none";\nAcquire::Check-Date "false";\nAcquire::httpx "no";\n'
    )
    assert settings.apt_conf(dump, own_certificates=True) == (
        'Acquire::http::Proxy "http://proxy:1";\nAcquire::Check-Date "false";\n'
        'Acquire::https::CAInfo "/run/secrets/ca.crt";\n'
    )


def test_files_of_ones_own(
    settings: ModuleType, scripts: dict[str, ModuleType], engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").write_text("[global]\n")
    monkeypatch.setenv("PIP_CONF", str(tmp_path / "mine"))
    made = settings.write(engine)
    assert made["pip.conf"] == tmp_path / "mine"
    assert made["apt.conf"] == engine / "apt.conf"
    assert made["apt.conf"].stat().st_mode & 0o777 == 0o600
    monkeypatch.setenv("APT_CONF", str(tmp_path / "absent"))
    with pytest.raises(scripts["image_engine"].ImageError, match="APT_CONF"):
        settings.write(engine)
