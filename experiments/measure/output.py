"""Where a report goes: JSON, and its table in Markdown beside it."""

from __future__ import annotations

import argparse
import json
import pathlib
from collections.abc import Mapping
from typing import Any


def path(text: str) -> pathlib.Path:
    """The file of `--output`, whose folder must be there before anything is measured."""
    found = pathlib.Path(text)
    if not found.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{found}: there is no folder {found.parent}")
    return found


def write(file: pathlib.Path, report: Mapping[str, Any], table: str) -> None:
    """Write the report to `file` and the table beside it."""
    file.write_text(json.dumps(report, indent=1) + "\n")
    file.with_suffix(".md").write_text(table + "\n")


def plain(options: argparse.Namespace) -> dict[str, Any]:
    """The options that a report repeats: all but paths."""
    return {name: value for name, value in vars(options).items() if name not in ("output", "official")}
