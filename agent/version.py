"""`pilot-agent version`: build information in the shape of the real program."""

import contextlib
import json
import os
import sys

from agent import terminal
from agent.flags import Parsed
from agent.options import VersionOptions, version_options

_PROJECT = "pysidecar"
_INSTALLED = ".dist-info"
_UNKNOWN = "unknown"  # what the real program prints for a build without stamps


def build_info() -> dict[str, str]:
    """The keys of the real program. `golang_version` is what was built with: here the Python version."""
    version = _version()
    return {
        "version": version,
        "revision": _UNKNOWN,
        "golang_version": f"python{sys.version.split(maxsplit=1)[0]}",
        "status": _UNKNOWN,
        "tag": version,
    }


def _version() -> str:
    # What importlib.metadata does, without the 15 ms of its import: every start of a pod says the version.
    for directory in sys.path:
        with contextlib.suppress(OSError):
            for name in os.listdir(directory or "."):
                if name.startswith(f"{_PROJECT}-") and name.endswith(_INSTALLED):
                    return name.removeprefix(f"{_PROJECT}-").removesuffix(_INSTALLED)
    # Runs from a source tree that was never installed.
    import tomllib

    try:
        with open(os.path.join(os.path.dirname(os.path.dirname(__file__)), "pyproject.toml"), "rb") as file:
            project = tomllib.load(file).get("project", {})
    except (OSError, tomllib.TOMLDecodeError):
        return _UNKNOWN
    return str(project.get("version", _UNKNOWN)) if project.get("name") == _PROJECT else _UNKNOWN


def render(options: VersionOptions, info: dict[str, str]) -> str:
    document = {"clientVersion": info}
    if options.output == "json":
        return json.dumps(document, indent=2)
    if options.output == "yaml":
        import yaml

        return yaml.safe_dump(document, sort_keys=False).rstrip()
    if options.short:
        return info["version"]
    return f"client version: {', '.join(f'{key}={value}' for key, value in info.items())}"


def run(parsed: Parsed) -> int:
    terminal.print_line(render(version_options(parsed), build_info()))
    return 0
