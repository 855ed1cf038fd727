"""What mkdocs is told before it builds: a page for every public module, and the guides of `experiments/docs`.

Nothing that is generated is kept in the repository, so that no page can be forgotten.
"""

from __future__ import annotations

import pathlib
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = "ssdd_jax"

# Parts of the package by the first name of their modules; what is in none of them belongs to the last.
GROUPS = {
    "From Python": "distillation defaults distilled students errors",
    "Mathematics": "decoder augment approximate krr inner pool outer storage preprocess",
    "Methods": "methods matching experts inversion post_training selection",
    "Networks and teachers": "models teacher weights precision features",
    "Images": "data photos",
    "Evaluation": "evaluate probes finetune zero_shot diff_augment",
    "Reports": "report page",
    "Sets in other forms": "formats export",
    "Speed and size": "devices streaming epochs memory",
    "A run": "",
}


def modules() -> list[str]:
    """Names of all public modules of the package, the package itself first."""
    found = []
    for file in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if not any(part.startswith("_") for part in parts):
            found.append(".".join(parts))
    return sorted(found)


def group(module: str) -> str:
    """The part of the package that a module belongs to."""
    first = [*module.split("."), ""][1]
    if not first:
        return next(iter(GROUPS))
    return next((title for title, names in GROUPS.items() if first in names.split()), list(GROUPS)[-1])


def page(module: str) -> str:
    """Where the page of a module is."""
    return f"modules/{module}.md"


def guides() -> list[str]:
    """The pages on single topics."""
    return [file.relative_to(ROOT).as_posix() for file in sorted((ROOT / "experiments" / "docs").glob("*.md"))]


def on_config(config: Any) -> Any:
    """The navigation: the guides, and the modules by the part of the package that they belong to."""
    parts: dict[str, list[Any]] = {title: [] for title in GROUPS}
    for module in modules():
        parts[group(module)].append({module.removeprefix(f"{PACKAGE}."): page(module)})
    # As in the table: from what comes first in a group's list on, not by the alphabet.
    for title, names in GROUPS.items():
        order = ["", *names.split()]
        parts[title].sort(key=lambda entry: _place(order, next(iter(entry))))
    config.nav = [
        {"Start": "index.md"},
        {"Guides": guides()},
        *({title: entries} for title, entries in parts.items() if entries),
    ]
    return config


def _place(order: list[str], name: str) -> int:
    first = name.split(".")[0]
    return order.index(first) if first in order else -1


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of the modules, and the guides with the results that they link to, where they are in the clone."""
    for module in modules():
        words = f"# {module}\n\n::: {module}\n"
        files.append(File.generated(config, page(module), content=words))
    results = (ROOT / "experiments" / "results").rglob("*")
    kept = [file.relative_to(ROOT).as_posix() for file in sorted(results) if file.suffix in (".md", ".png")]
    for name in (*guides(), *kept):
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files
