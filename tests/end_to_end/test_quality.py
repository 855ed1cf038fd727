"""Lint, format and types, as part of the tests' one command."""

import subprocess
import sys

import pytest
from tiny_runs import ROOT


@pytest.mark.medium
@pytest.mark.parametrize(
    "command", ["ruff check .", "ruff format --check .", pytest.param("mypy", marks=pytest.mark.slow)]
)
def test_is_clean(command):
    done = subprocess.run([sys.executable, "-m", *command.split()], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
