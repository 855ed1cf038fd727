"""What every command does with errors: one line, status 2, nothing that a terminal cannot print."""

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
