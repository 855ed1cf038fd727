"""The imports of the package run downwards only: from the commands through the stages to the mathematics."""

import ast
import graphlib
import pathlib

import pytest
from tiny_runs import ROOT

PACKAGE = ROOT / "ssdd_jax"
# A name is a module at the root or a folder; each may import what stands before it.
ORDER = (
    *(
        "errors",
        "models",
        "augment",
        "compose",
        "approximate",
        "krr",
        "inner",
        "decoder",
        "config",
        "runtime",
        "data",
        "storage",
        "distilled",
    ),
    *("outer", "pool", "training", "formats", "teacher", "cli", "report", "export", "evaluate", "methods", "stages"),
    *("api", "dry_run", "pipeline", "main", "__init__", "__main__"),
)


def module_files():
    """Files by dotted name; a package's name is its folder's."""
    named = {}
    for file in PACKAGE.rglob("*.py"):
        parts = file.relative_to(ROOT).with_suffix("").parts
        named[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return named


FILES = module_files()


def imports(file: pathlib.Path):
    """Modules of the package that a file imports, wherever in the file, for type checkers too."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in FILES)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "ssdd_jax":
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                yield submodule if submodule in FILES else node.module


GRAPH = {name: set(imports(file)) for name, file in FILES.items()}


def place(module: str) -> str:
    """The folder of a module, or the module itself at the root."""
    return module.split(".")[1] if "." in module else "__init__"


def test_no_circle_of_imports():
    tuple(graphlib.TopologicalSorter(GRAPH).static_order())  # raises CycleError with the modules in it


@pytest.mark.parametrize("name", sorted({place(module) for module in GRAPH}))
def test_imports_run_downwards(name):
    upwards = [
        f"{module} imports {target}"
        for module, targets in GRAPH.items()
        for target in targets
        if place(module) == name and place(target) != name and ORDER.index(place(target)) >= ORDER.index(name)
    ]
    assert not upwards


def test_a_circle_would_be_found():
    with pytest.raises(graphlib.CycleError):
        tuple(graphlib.TopologicalSorter(GRAPH | {"ssdd_jax.krr": {"ssdd_jax.pipeline"}}).static_order())


def test_the_root_holds_the_mathematics_and_the_contract():
    root = "approximate augment compose config decoder distilled errors export inner krr main outer pipeline pool"
    assert sorted(file.stem for file in PACKAGE.glob("*.py") if not file.stem.startswith("__")) == root.split()


def _catches_value_errors(handler: ast.ExceptHandler) -> bool:
    """Whether a handler catches a UserError, which is a ValueError, beside other errors."""
    names = (
        {node.id for node in ast.walk(handler.type) if isinstance(node, ast.Name)} if handler.type else {"Exception"}
    )
    return bool(names & {"ValueError", "Exception"}) or any(name.endswith("DAMAGE") for name in names)


@pytest.mark.parametrize("file", [file for file in FILES.values() if "UserError(" in file.read_text()], ids=str)
def test_no_error_for_the_user_is_caught_where_it_is_raised(file):
    """A UserError raised within a `try` that catches ValueErrors would lose its message, or gain another's."""
    for block in (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Try)):
        raised = [node for part in block.body for node in ast.walk(part) if isinstance(node, ast.Raise)]
        direct = [node for node in raised if "UserError(" in ast.unparse(node)]
        first = next((handler for handler in block.handlers if _catches_value_errors(handler)), None)
        before = block.handlers[: block.handlers.index(first)] if first else []
        passed_on = any(handler.type and ast.unparse(handler.type) == "UserError" for handler in before)
        assert not direct or first is None or passed_on, f"line {block.lineno}"
