"""Errors of every command: one line, status 2, nothing that a terminal cannot print."""

import io
import os
import subprocess
import sys

import pytest
from tiny_runs import ROOT, TIMEOUT

from ssdd_jax import export, main
from ssdd_jax.cli import console


@pytest.mark.medium
@pytest.mark.parametrize("name", ["cuda", "gpu", "nonsense"])
def test_a_backend_that_is_not_there(name, tmp_path):
    """JAX has another error for each: of a plugin that is missing, of an alias, of an unknown name."""
    line = [sys.executable, "-m", "ssdd_jax.main", "--dry_run", f"--workdir={tmp_path / 'run'}"]
    variables = os.environ | {"JAX_PLATFORMS": name, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, env=variables, cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT)
    if name in ("cuda", "gpu") and done.returncode == 0:
        pytest.skip("this machine has that backend")
    said = done.stderr.splitlines()
    assert done.returncode == 2 and len(said) == 1
    assert f"JAX_PLATFORMS={name} names a backend that JAX cannot start here" in said[0] and "unset it" in said[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.medium
def test_a_backend_that_is_not_there_in_a_call(tmp_path):
    code = """
import numpy, ssdd_jax
images, features = numpy.zeros((4, 8, 8, 3), numpy.uint8), numpy.zeros((4, 3))
try:
    ssdd_jax.distill(images, features, method="random")
except ssdd_jax.UserError as error:
    print(error)
"""
    variables = os.environ | {"JAX_PLATFORMS": "nonsense", "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, env=variables, cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.stdout.startswith("JAX_PLATFORMS=nonsense names a backend") and done.stdout.count("\n") == 1


def test_other_errors_keep_their_traceback():
    def fail():
        raise AssertionError("of our own")

    with pytest.raises(AssertionError, match="of our own"):
        console.answer(fail, memory="")


def test_what_a_terminal_cannot_print_is_escaped(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert console.answer(lambda: print("3 ± 1, caf\udce9"), memory="") == 0
    sys.stdout.flush()
    assert raw.getvalue() == b"3 \\xb1 1, caf\\udce9\n"


def test_a_home_that_is_nobodys(capsys):
    assert main.main(["--config=~nobody_of_this_name/config.py"]) == 2
    assert export.main(["--set=~nobody_of_this_name/set", "--form=npz"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and all("begins with ~ and a name that is no user's" in line for line in said)


@pytest.mark.medium
def test_a_reader_that_leaves():
    """As in `--help | head -1`: no traceback, neither then nor at the end of the process."""
    code = "import sys; from ssdd_jax.cli import console; sys.exit(console.answer(lambda: print('x' * {}), memory=''))"
    for length in (10, 1_000_000):
        process = subprocess.Popen(
            [sys.executable, "-c", code.format(length)],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        process.stdout.close()
        assert process.stderr.read() == "" and process.wait(TIMEOUT) == 1


@pytest.mark.medium
def test_a_locale_without_utf8(tmp_path):
    """Files are read and written as UTF-8 in any locale."""
    variables = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)}
    code = f"""
import locale, pathlib
assert locale.getpreferredencoding(False) != "utf-8"
from ssdd_jax.cli import arguments
from ssdd_jax.report import render
from ssdd_jax.runtime import files
folder = pathlib.Path({str(tmp_path)!r})
(folder / "a.json").write_bytes('{{"name": "caf\\u00e9"}}'.encode())
assert files.read_json(folder / "a.json") == {{"name": "caf\\u00e9"}}
assert "digits.py" in arguments.shipped_configs()
render._environment()
"""
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, env=os.environ | variables, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(os.name == "nt", reason="names are text there")
def test_a_work_dir_that_is_not_utf8(tmp_path, capsys):
    """It is refused at once, because the library of the checkpoints would fail later."""
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    for line in ([f"--workdir={folder}"], [f"--workdir={tmp_path / 'run'}", f"--shared={folder}"]):
        assert main.main(line) == 2
        assert "is not UTF-8, which checkpoints need: choose another --workdir" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
