"""Versions of the installed libraries, as a constraints file for pip: what a result was computed with."""

from __future__ import annotations

import pathlib
import platform
import re
import tomllib
from importlib import metadata

from ssdd_jax.runtime import files
from ssdd_jax.runtime.version import __version__

PACKAGE = "ssdd_jax"
NAME = "constraints.txt"


def write(folder: pathlib.Path) -> None:
    """Write `constraints.txt` into a folder; `pip install -c constraints.txt .` installs the same versions again.

    Raises:
        UserError: If the disk is full or cannot be written to.
    """
    head = f"# {PACKAGE} {__version__} on Python {platform.python_version()}: pip install -c {NAME} ."
    files.write_bytes(folder / NAME, "".join(f"{line}\n" for line in (head, *pins())).encode())


def pins() -> list[str]:
    """Return `name==version` of every installed library that the package needs, directly or through another."""
    versions: dict[str, str] = {}
    remaining = _requirements()
    while remaining:
        name = _name(remaining.pop())
        if name in versions:
            continue
        # Requirements of other platforms and versions of Python are not installed.
        try:
            library = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        versions[name] = library.version
        remaining += [text for text in library.requires or () if "extra ==" not in text]
    return [f"{name}=={version}" for name, version in sorted(versions.items())]


def _requirements() -> list[str]:
    """Return the requirements of the package, also of a checkout that is not installed."""
    project = pathlib.Path(__file__).parents[2] / "pyproject.toml"
    if project.is_file():
        # Beside an installed package lies whatever another one has put there.
        about = tomllib.loads(project.read_text(encoding="utf-8")).get("project", {})
        if _name(about.get("name", "-")) == _name(PACKAGE):
            return list(about["dependencies"])
    return [text for text in metadata.requires(PACKAGE) or () if "extra ==" not in text]


def _name(requirement: str) -> str:
    """Return the normalised name of a requirement such as `Pillow>=11; python_version < "3.14"`."""
    match = re.match(r"[\w.-]+", requirement)
    assert match is not None
    return re.sub(r"[-_.]+", "-", match[0]).lower()
