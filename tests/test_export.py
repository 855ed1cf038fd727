"""The command that converts a set: what it writes and says, and what it refuses."""

import re
import subprocess
import sys

import numpy as np
import pytest
import tiny_runs
from helpers import CHANNELS, DIM, SIZE, bytes_and_features
from tiny_runs import TIMEOUT

from ssdd_jax import distilled, export, formats, report


@pytest.fixture
def archive(tmp_path):
    """A set of five pairs as bytes and features, one of which is no grey level of the first's constants."""
    images, features = bytes_and_features(5)
    (tmp_path / "sets").mkdir()
    np.savez(tmp_path / "sets" / "pairs.npz", images=images, targets=features)
    return tmp_path / "sets" / "pairs.npz"


def refusal(capsys, line):
    assert export.main(line) == 2
    out, said = capsys.readouterr()
    assert not out and said.count("\n") == 1 and said.startswith("ssdd_jax: ")
    return said


def test_converts_beside_the_set(archive, capsys):
    """From bytes to pictures: two lines, and the same bytes."""
    assert export.main([f"--set={archive}", "--form=png"]) == 0
    out, err = capsys.readouterr()
    folder = archive.parent / "export-png"
    first, second = out.splitlines()
    assert not err
    assert first.startswith(f"ssdd_jax: 5 pairs ({SIZE}x{SIZE}x{CHANNELS} images, {DIM} target numbers) as png, ")
    assert first.endswith(f" bytes in {folder}")
    assert f"0 of {5 * SIZE * SIZE * CHANNELS} pixel values lay outside 0..1" in second
    assert str(folder / "constants.json") in second
    images = np.asarray(formats.read(folder).images()) * 255
    np.testing.assert_allclose(images, bytes_and_features(5)[0], atol=1e-3)


def test_from_form_to_form(archive, tmp_path, capsys):
    """What this command wrote, it reads; `--name value` works too."""
    out = tmp_path / "npz"
    assert export.main(["--set", str(archive), "--form", "npz", "--out", str(out)]) == 0
    assert "the pairs are exact; how to undo" in capsys.readouterr().out
    assert export.main([f"--set={out}", "--form=npz", f"--out={tmp_path / 'again'}"]) == 0
    for found, expected in zip(formats.read(tmp_path / "again").pairs(), formats.read(archive).pairs(), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_the_current_folder(archive, monkeypatch, capsys):
    """Beside it is not in it."""
    monkeypatch.chdir(archive.parent)
    assert export.main(["--set=.", "--form=npz"]) == 0
    assert (archive.parent.parent / "export-npz" / "pairs.npz").exists()
    assert export.main(["--set=pairs.npz", "--form=npz"]) == 0
    assert "bytes in export-npz" in capsys.readouterr().out


def test_a_packed_set_stays_a_set(tmp_path, capsys):
    """Of bases too, as `distilled.pack` packs it; the same command may be given again, with other bits."""
    out = tmp_path / "small"
    for images, targets in (("int8", "int6"), ("int5", "int8")):
        line = ["--set=digits-n20", "--form=packed", f"--images={images}", f"--targets={targets}", f"--out={out}"]
        assert export.main(line) == 0
        whole, found = formats.read(formats.locate("digits-n20")), distilled.load(out)
        expected = distilled.pack(whole, images=images, targets=targets)
        for one, other in zip(found.pairs(), expected.pairs(), strict=True):
            np.testing.assert_array_equal(one, other)
        size = (out / distilled.TENSORS).stat().st_size
        first, second = capsys.readouterr().out.splitlines()
        assert size < whole.bytes_stored() / 2
        assert f", {size:,} bytes in {out / distilled.TENSORS}, {whole.bytes_stored():,} before" in first
        lost = [float(value) for value in re.findall(r"(\S+) %", second)]
        assert len(lost) == 2 and all(0 < value < 5 for value in lost)


def test_a_packed_set_keeps_to_its_bytes(archive, tmp_path, capsys):
    line = [f"--set={archive}", "--form=packed", f"--out={tmp_path / 'small'}"]
    assert export.main([*line, "--images=webp", "--bytes=1500"]) == 0
    assert (tmp_path / "small" / distilled.TENSORS).stat().st_size <= 1500
    capsys.readouterr()
    said = refusal(capsys, [*line, "--bytes=100"])
    assert "storage exceeds the budget: " in said and "> 100 bytes; choose fewer bits" in said


def test_a_set_is_not_overwritten_by_its_packed_form(archive, tmp_path, capsys):
    assert export.main([f"--set={archive}", "--form=packed", f"--out={tmp_path / 'packed'}"]) == 0
    formats.read(archive).save(tmp_path / "whole")
    capsys.readouterr()
    before = (tmp_path / "whole" / distilled.TENSORS).read_bytes()
    for folder in ("whole", "sets"):
        line = [f"--set={archive}", "--form=packed", f"--out={tmp_path / folder}"]
        assert "holds something else than a packed set" in refusal(capsys, line)
    assert (tmp_path / "whole" / distilled.TENSORS).read_bytes() == before


REFUSED = {
    "no set": (["--form=png"], "name the set to convert: --set=PATH"),
    "no form": (
        ["--set=SET"],
        "name a form, --form=FORM: there are krr_st, npz, png, safetensors, huggingface, packed",
    ),
    "unknown form": (["--set=SET", "--form=zip"], "unknown form 'zip': there are krr_st"),
    "unknown option": (["--set=SET", "--form=png", "--fast"], "unrecognized arguments: --fast; --help"),
    "an abbreviation": (["--se=SET", "--form=png"], "unrecognized arguments: --se=SET"),
    "no value": (["--set"], "argument --set: expected one argument"),
    "nothing there": (["--set=nowhere", "--form=png"], "there is nothing at nowhere"),
    "no set there": (["--set=FOLDER", "--form=png"], "holds no distilled set"),
    "precision of pairs": (["--set=SET", "--form=png", "--images=int8"], "are for a packed set: --form=packed"),
    "unknown precision": (
        ["--set=SET", "--form=packed", "--targets=int9"],
        "unknown precision --targets=int9: there are",
    ),
    "coded bases": (["--set=digits-n20", "--form=packed", "--images=png"], "this set stores bases: choose a precision"),
    "occupied": (["--set=SET", "--form=png", "--out=FOLDER"], "is not empty, and is not overwritten"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_in_one_line(case, archive, capsys):
    line, words = REFUSED[case]
    line = [part.replace("SET", str(archive)).replace("FOLDER", str(archive.parent.parent)) for part in line]
    said = refusal(capsys, line)
    assert words.replace("SET", str(archive)) in said


def test_help_lists_the_forms(capsys):
    assert export.main(["--help"]) == 0
    page = capsys.readouterr().out
    assert all(f" {form} " in page for form in formats.WRITABLE)
    assert all(words in page for words in formats.FORMS.values())


AS_A_MODULE = """
import atexit, os, runpy, sys
atexit.register(lambda: {"torch", "datasets"} & set(sys.modules) and os._exit(9))
runpy.run_module("ssdd_jax.export", run_name="__main__", alter_sys=True)
"""


@pytest.mark.medium
def test_runs_as_a_module(archive):
    """With an exit status, and without the libraries that it does not need."""
    line = [sys.executable, "-c", AS_A_MODULE, f"--set={archive}", "--form=npz", f"--out={archive.parent.parent}"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 2 and not done.stdout, done
    assert done.stderr.startswith("ssdd_jax: ") and "is not overwritten" in done.stderr


@pytest.mark.medium
def test_the_card_of_a_run_has_its_numbers(session_folder, tmp_path, capsys):
    pytest.importorskip("datasets", reason="the extra huggingface is not installed")
    run, _ = tiny_runs.finished(session_folder)
    line = [f"--set={run / 'distilled'}", "--form=huggingface", f"--out={tmp_path / 'out'}", "--license=mit"]
    assert export.main(line) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "license: mit" in card and "Boost-SSDD" in card and "## Results" in card
    assert report.table(report.read(run).results) in card
    assert 'load_file("path/to/this/folder/pairs.safetensors")' in card
    # A file of that name beside another set belongs to something else.
    (tmp_path / "results.json").write_text("[]")
    assert export.main([f"--set={tmp_path / 'out'}", "--form=huggingface", f"--out={tmp_path / 'again'}"]) == 0
    assert "## Results" not in (tmp_path / "again" / "README.md").read_text()
