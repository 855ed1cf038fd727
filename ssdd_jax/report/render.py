"""From what a page says to one HTML file: the templates, with the style sheet inside."""

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
    """Whatever comes from a run is escaped; a name that a template lacks is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"seconds": labels.seconds, "size": labels.size}
    environment.globals |= {"version": __version__, "style": (TEMPLATES / "style.css").read_text()}
    return environment


def render(template: str, content: dict[str, Any]) -> str:
    """The text of a page."""
    return _environment().get_template(template).render(content)


def write(path: pathlib.Path, template: str, content: dict[str, Any]) -> None:
    """Write a page, whole or not at all.

    Raises:
        UserError: If it cannot be written.
    """
    files.write_bytes(path, render(template, content).encode())
