"""Hooks for mkdocs: generate a page for every public module, and build the navigation.

Generated pages are not kept in the repository, so every module has one. Links between documents are written as they
work in the repository (`../../ssdd_jax/krr.py`, `../../experiments/results/...`) and are rewritten here for the site.
"""

from __future__ import annotations

import pathlib
import re
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = "ssdd_jax"

# Sections of the navigation, by the top-level names they contain. The last section takes every name not listed here.
GROUPS = {
    "Python API": "api distilled errors",
    "Mathematics": "decoder augment approximate krr inner pool outer",
    "Methods": "methods",
    "Networks and teachers": "models teacher",
    "Data": "data",
    "Training": "training",
    "Evaluation": "evaluate",
    "Reports": "report",
    "Formats": "formats export storage",
    "Running": "",
}
# Guides in reading order; others follow in alphabetical order.
GUIDES = (
    "getting_started data teachers methods bytes evaluation sharing dry_run_and_report results speed devices "
    "large_data promises architecture adding_a_method"
).split()


def modules() -> list[str]:
    """Names of all public modules of the package, the package itself first."""
    names = []
    for file in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if not any(part.startswith("_") for part in parts):
            names.append(".".join(parts))
    return sorted(names)


def group(module: str) -> str:
    """The section of the navigation that a module belongs to."""
    first = [*module.split("."), ""][1]
    if not first:
        return next(iter(GROUPS))
    return next((title for title, names in GROUPS.items() if first in names.split()), list(GROUPS)[-1])


def page(module: str) -> str:
    """Path of a module's page in the site."""
    return f"modules/{module}.md"


def guides() -> list[str]:
    """Paths of the guides, in reading order."""
    names = [file.stem for file in (ROOT / "docs" / "guides").glob("*.md")]
    last = len(GUIDES)
    names.sort(key=lambda name: (GUIDES.index(name) if name in GUIDES else last, name))
    return [f"guides/{name}.md" for name in names]


def on_config(config: Any) -> Any:
    """Build the navigation: start page, guides, then the modules by section."""
    parts: dict[str, list[Any]] = {title: [] for title in GROUPS}
    for module in modules():
        parts[group(module)].append({module.removeprefix(f"{PACKAGE}."): page(module)})
    # Keep the order of GROUPS within a section, which follows the mathematics rather than the alphabet.
    for title, names in GROUPS.items():
        order = ["", *names.split()]
        parts[title].sort(key=lambda entry: _position(order, next(iter(entry))))
    config.nav = [
        {"Start": "index.md"},
        {"Guides": guides()},
        *({title: entries} for title, entries in parts.items() if entries),
    ]
    return config


def _position(order: list[str], name: str) -> int:
    first = name.split(".")[0]
    return order.index(first) if first in order else -1


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of the modules, and the results that the guides link to."""
    for module in modules():
        files.append(File.generated(config, page(module), content=f"# {module}\n\n::: {module}\n"))
    for file in sorted((ROOT / "experiments" / "results").rglob("*")):
        if file.suffix in (".md", ".png"):
            name = file.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(file)))
    return files


def on_page_markdown(markdown: str, /, *, page: Any, config: Any, files: Files) -> str:
    """Point links to source files at the modules' pages, and links to results at their copies in the site.

    Other files of the repository have no page: of a link to one, only its text stays.
    """
    source = page.file.src_uri
    if source != "index.md" and not source.startswith("guides/"):
        return markdown
    root = "../" * source.count("/")
    markdown = re.sub(r"\]\((?:\.\./)+experiments/results/", f"]({root}experiments/results/", markdown)
    markdown = re.sub(r"\]\((?:\.\./)+(ssdd_jax/[\w/]+)\.py\)", lambda match: _module_link(root, match[1]), markdown)
    return re.sub(r"\[([^\]]*)\]\((?:\.\./)+((?:experiments|configs|tests)/[\w./]+)\)", _kept_text, markdown)


def _kept_text(match: re.Match[str]) -> str:
    """Of a link to a file of the repository, its text, unless the file is a result, which the site has."""
    return match[0] if match[2].startswith("experiments/results/") else match[1]


def _module_link(root: str, path: str) -> str:
    module = path.removesuffix("/__init__").replace("/", ".")
    return f"]({root}modules/{module}.md)"
