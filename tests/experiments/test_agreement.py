"""The script that runs KRR-ST's own evaluation; the repository itself is not at hand here."""

import pytest

from experiments import agreement


def test_says_what_is_missing(tmp_path, capsys):
    pytest.importorskip("torch")
    assert agreement.main([f"--repository={tmp_path}", f"--set={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("agreement: ") and "is not a clone of db-Lee/selfsup_dd" in error and error.count("\n") == 1
