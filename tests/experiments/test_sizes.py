"""The comparison of sizes that shapes and that data choose."""

import json

import pytest
import tiny_runs

from experiments import sizes

pytestmark = pytest.mark.medium


def command(folder, *last):
    changes = [line for line in tiny_runs.arguments(folder) if line.startswith("--config.") and "storage.N" not in line]
    return [*changes, f"--workdir={folder / 'sizes'}", *last]


def test_rows_and_the_choice(tmp_path, capsys):
    """The data's choice never has the larger error, every plan of the table fits, and one M of each N is used."""
    tiny_runs.write_data(tmp_path)
    assert sizes.main(command(tmp_path, "--N=4,8")) == 0
    rows = json.loads((tmp_path / "sizes" / "sizes.json").read_text())["rows"]
    assert {row["N"] for row in rows} == {4, 8}
    for row in rows:
        errors = {name: row[name]["images"] + row[name]["targets"] for name in ("shapes", "data")}
        assert errors["data"] <= errors["shapes"] + 1e-6
    for N in (4, 8):
        of_N = [row for row in rows if row["N"] == N]
        (used,) = [row for row in of_N if row["used"]]
        least = of_N[0]["data"]["images"] + of_N[0]["data"]["targets"]
        assert used["data"]["images"] + used["data"]["targets"] <= least + 0.05 + 1e-6
    text = (tmp_path / "sizes" / "sizes.md").read_text()
    assert text.count("**") == 4 and text in capsys.readouterr().out


def test_the_folder_is_bound_to_its_config(tmp_path, capsys):
    tiny_runs.write_data(tmp_path)
    assert sizes.main(command(tmp_path, "--N=4")) == 0
    # Other budgets use the teacher and the features that are there; those of another config would be wrong.
    assert sizes.main(command(tmp_path, "--N=8")) == 0
    assert sizes.main(command(tmp_path, "--N=4", "--config.teacher.seed=9")) == 2
    said = capsys.readouterr().err
    assert "was made with another config: teacher.seed (0 there, 9 now); choose another --workdir" in said


def test_other_arguments_are_refused(tmp_path, capsys):
    assert sizes.main(["--M=3"]) == 2
    assert "cannot read '--M=3'" in capsys.readouterr().err
