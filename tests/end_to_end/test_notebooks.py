"""The notebooks run from top to bottom, show what they say, and are kept without outputs."""

import os
import re
import subprocess
import sys

import nbformat
import pytest
from ipykernel.kernelspec import write_kernel_spec
from IPython.core.inputtransformer2 import TransformerManager
from tiny_runs import ROOT, TIMEOUT

FOLDER = ROOT / "experiments" / "notebooks"
NAMES = ("distil_digits", "pure_functions")
# Smaller networks and fewer steps than a user's.
SMALLER = {
    "STEPS = 200": "STEPS = 75",
    "(0, 25, 100, STEPS)": "(0, 25, 50, STEPS)",
    "epochs=15": "epochs=5",
    "WIDTHS = (16, 32, 64, 64)": "WIDTHS = (8, 16, 32, 32)",
}
# In a process of its own: Jupyter warns, and pytest takes warnings for errors.
EXECUTE = f"""
import sys, nbclient, nbformat
notebook = nbformat.read(sys.argv[1], as_version=4)
for cell in notebook.cells:
    for there, here in {SMALLER}.items():
        cell.source = cell.source.replace(there, here)
nbclient.NotebookClient(notebook, timeout=None, kernel_name="python3").execute()
nbformat.write(notebook, sys.argv[2])
"""


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def pictures(cell):
    return sum("image/png" in output.get("data", {}) for output in cell.outputs)


def text(cell):
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def execute(name, folder):
    """The cells of an executed copy, by their ids."""
    write_kernel_spec(folder / "jupyter" / "kernels" / "python3")  # of this interpreter, whatever kernels there are
    own = {"JUPYTER_PATH": "jupyter", "JUPYTER_RUNTIME_DIR": "runtime", "IPYTHONDIR": "ipython", "TMPDIR": "tmp"}
    (folder / "tmp").mkdir()
    # Optimised, though not as far as by a user: without it, what is learned here takes many times as long.
    clean = {key: value for key, value in os.environ.items() if key != "MPLBACKEND"}
    clean["XLA_FLAGS"] = clean["XLA_FLAGS"].replace("optimization_level=0", "optimization_level=1")
    done = subprocess.run(
        [sys.executable, "-c", EXECUTE, FOLDER / f"{name}.ipynb", folder / "executed.ipynb"],
        env=clean | {key: str(folder / value) for key, value in own.items()} | {"PYTHONPATH": str(ROOT)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return {cell.id: cell for cell in nbformat.read(folder / "executed.ipynb", as_version=4).cells}


@pytest.fixture(scope="module")
def distil_digits(tmp_path_factory):
    return execute("distil_digits", tmp_path_factory.mktemp("distil_digits"))


@pytest.fixture(scope="module")
def pure_functions(tmp_path_factory):
    return execute("pure_functions", tmp_path_factory.mktemp("pure_functions"))


@pytest.mark.parametrize("name", NAMES)
def test_is_kept_without_outputs(name):
    notebook = read(name)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.metadata and re.fullmatch(r"[a-z-]+", cell.id)  # an id that a person gave stays what it is
        assert cell.cell_type == "markdown" or (not cell.outputs and cell.execution_count is None)


def test_what_is_made_smaller_is_there():
    sources = "".join(cell.source for cell in read("distil_digits").cells)
    assert all(sources.count(there) == 1 for there in SMALLER)


def test_no_notebook_is_left_out():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(NAMES)
    assert len({cell.source for name in NAMES for cell in read(name).cells if cell.id == "install"}) == 1


@pytest.mark.parametrize(
    ("repository", "driver", "plugin", "expected"),
    [
        ("", None, "", "{clone}"),
        ("", "580.65.06", "", "{clone}[cuda13]"),
        ("", "535.104.05", "", "{clone}[cuda12]"),
        ("", "470.256.02", "", "{clone}"),
        ("", "580.65.06", "jax_cuda12_plugin", "{clone}[cuda12]"),
        ("/else/where", None, "", "/else/where"),
        ("https://host/it.git", "580.65.06", "", "ssdd_jax[cuda13] @ git+https://host/it.git"),
    ],
)
def test_installs_what_is_missing(repository, driver, plugin, expected, monkeypatch, capsys):
    """What the machine's driver can run, said before it is installed."""
    source = next(cell.source for cell in read("distil_digits").cells if cell.id == "install")
    source = source.replace('REPOSITORY = ""', f"REPOSITORY = {repository!r}")
    lines = []

    class Shell:
        def run_line_magic(self, name, line):
            lines.append((name, line))

    # The package is there once pip has installed it.
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: name == plugin or (name == "ssdd_jax" and lines) or None
    )
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/nvidia-smi" if driver else None)
    monkeypatch.setattr("subprocess.run", lambda *_, **__: subprocess.CompletedProcess([], 0, f"{driver}\n"))
    monkeypatch.setattr("glob.glob", lambda pattern: [])
    monkeypatch.chdir(FOLDER)
    names = {"get_ipython": Shell}
    exec(TransformerManager().transform_cell(source), names)
    assert lines == [("pip", 'install --quiet "{requirement}"')]
    assert names["requirement"] == expected.format(clone=ROOT)
    said = capsys.readouterr().out
    assert f"installing {names['requirement']}" in said and (driver is None or plugin or driver in said)
    # IPython goes on after a `%pip` that failed.
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="pip could not install "):
        exec(TransformerManager().transform_cell(source), {"get_ipython": Shell})


@pytest.mark.slow
def test_says_what_it_runs_on(distil_digits):
    assert re.match(r"CPU, \d+ cores|(GPU|TPU): \d+ x ", text(distil_digits["install"]))


@pytest.mark.slow
def test_distils_better_than_random_images(distil_digits):
    lines = re.findall(r"^(.+?) +(\d+\.\d) % +(\d\.\d+)$", text(distil_digits["probe"]), re.MULTILINE)
    few, r2 = ({line[0]: float(line[k]) for line in lines} for k in (1, 2))
    assert list(few) == ["distilled set", "random images", "untrained", "teacher"]
    assert r2["distilled set"] > max(r2["random images"], r2["untrained"]) + 0.01 and r2["teacher"] > 0.999
    assert all(75 < value <= 100 for value in few.values())


@pytest.mark.slow
def test_torch_decodes_and_trains_alike(distil_digits):
    pytest.importorskip("torch")
    apart = re.findall(r"(?:images|targets) (\de[+-]\d\d)", text(distil_digits["torch-decode"]))
    assert len(apart) == 2 and all(float(value) < 1e-4 for value in apart)
    there, here = re.findall(r" (\d\.\d+)$", text(distil_digits["torch-train"]), re.MULTILINE)
    assert abs(float(there) - float(here)) < 0.05


@pytest.mark.slow
def test_shows_images_and_bases_as_they_change(distil_digits):
    expected = {"data": 1, "teacher": 1, "watch": 3, "decode": 1, "results": 1}
    assert {name: pictures(distil_digits[name]) for name in expected} == expected


@pytest.mark.slow
def test_each_function_has_an_equation_and_a_picture(pure_functions):
    cells = list(pure_functions.values())
    heads = [k for k, cell in enumerate(cells) if cell.source.startswith("## ") and cell.source[3].isdigit()]
    assert len(heads) == 8
    for begin, end in zip(heads, [*heads[1:], len(cells)], strict=True):
        drawn = sum(pictures(cell) for cell in cells[begin:end] if cell.cell_type == "code")
        assert "$$" in cells[begin].source and drawn


@pytest.mark.slow
def test_what_is_computed_is_what_is_said(pure_functions):
    assert "gradient in the mean 0.0" in text(pure_functions["outer"])
    first, last = re.findall(r"20 steps (\d\.\d+), of the last 20 (\d\.\d+)", text(pure_functions["step"]))[0]
    assert float(last) < 0.8 * float(first)
