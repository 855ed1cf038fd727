"""A finished run for the tests of reports."""

import pytest
import tiny_runs

from ssdd_jax import report


@pytest.fixture(scope="module")
def finished(session_folder):
    """The folder of a tiny run."""
    return tiny_runs.finished(session_folder)[0]


@pytest.fixture(scope="module")
def record(finished):
    return report.read(finished)
