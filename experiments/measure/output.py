"""Output of reports: JSON, with the table in Markdown beside it."""

from __future__ import annotations

import argparse
import json
import pathlib
from collections.abc import Mapping
from typing import Any


def path(text: str) -> pathlib.Path:
    """Parse the file of `--output`; its folder must exist before anything is measured."""
    file = pathlib.Path(text)
    if not file.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{file}: there is no folder {file.parent}")
    return file


def write(file: pathlib.Path, report: Mapping[str, Any], table: str) -> None:
    """Write the report to `file` and the table beside it."""
    file.write_text(json.dumps(report, indent=1) + "\n")
    file.with_suffix(".md").write_text(table + "\n")


def plain(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options that a report repeats: all except paths."""
    return {name: value for name, value in vars(options).items() if name not in ("output", "official")}
