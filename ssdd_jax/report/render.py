"""Render templates to self-contained HTML files with an inlined style sheet."""

from __future__ import annotations

import functools
import pathlib
from typing import Any

import jinja2

from ssdd_jax.report import labels
from ssdd_jax.runtime import files
from ssdd_jax.runtime.version import __version__

TEMPLATES = pathlib.Path(__file__).parent / "templates"


@functools.cache
def _environment() -> jinja2.Environment:
    """Create the template environment, which escapes all values and rejects undefined variables."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"seconds": labels.seconds, "size": labels.size}
    environment.globals |= {"version": __version__, "style": (TEMPLATES / "style.css").read_text(encoding="utf-8")}
    return environment


def render(template: str, content: dict[str, Any]) -> str:
    """Render a template.

    Args:
        template: File name of the template.
        content: Its variables.
    """
    return _environment().get_template(template).render(content)


def write(path: pathlib.Path, template: str, content: dict[str, Any]) -> None:
    """Render a template and write the page atomically.

    Args:
        path: The HTML file.
        template: File name of the template.
        content: Its variables.

    Raises:
        UserError: If the file cannot be written.
    """
    # Names of files need not be UTF-8.
    files.write_bytes(path, render(template, content).encode(errors="backslashreplace"))
