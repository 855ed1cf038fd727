"""The command that damages files: it finds what it should, and the readers stand it."""

import json

import numpy as np
import pytest

from experiments import fuzz
from experiments.measure import damage, readers
from ssdd_jax.errors import UserError


def test_a_mutant_is_made_again_from_its_seed(tmp_path):
    contents = []
    for folder in ("a", "b", "c"):
        path = tmp_path / folder
        path.mkdir()
        for name in ("one", "two"):
            (path / name).write_bytes(bytes(range(256)) * 8)
        said = damage.mutate(np.random.default_rng([0, 0 if folder == "c" else 7]), path)
        contents.append((said, [(path / name).read_bytes() for name in ("one", "two")]))
    assert contents[0] == contents[1] != contents[2]
    assert sum(part != bytes(range(256)) * 8 for part in contents[0][1]) == 1


def test_every_mutation_changes_something():
    for name, change in damage.MUTATIONS.items():
        results = set()
        for seed in range(8):
            content = bytearray(b"header 12 " + bytes(range(256)) * 20)
            change(np.random.default_rng(seed), content)
            results.add(bytes(content))
        assert results != {b"header 12 " + bytes(range(256)) * 20}, name


def answer(read, tmp_path, *, exact=False):
    path = tmp_path / "file"
    path.write_bytes(b"x")
    return fuzz.answer_to(readers.Reader(lambda folder: folder, read, (), exact), path, {"a": np.zeros(2)})


def test_what_is_a_finding(tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, "SECONDS", 1)

    def refuse(words):
        def read(path):
            raise UserError(words)

        return read

    def endless(path):
        while True:
            try:
                for _ in range(10**9):
                    pass
            except Exception:
                pass

    assert answer(refuse("one line"), tmp_path) == ""
    assert answer(refuse("two\nlines"), tmp_path) == "a message of several lines"
    assert answer(lambda path: {}["x"], tmp_path).startswith("KeyError at ")
    assert answer(endless, tmp_path) == "no answer within 1 seconds"
    assert answer(lambda path: {"a": np.ones(2)}, tmp_path) == ""
    assert answer(lambda path: {"a": np.ones(2)}, tmp_path, exact=True) == "another set than the one that was written"
    assert answer(lambda path: {"a": np.zeros(2)}, tmp_path, exact=True) == ""


@pytest.mark.parametrize(
    ("argument", "words"), [("--readers=set,other", "unknown reader 'other'"), ("--mutants=some", "cannot read")]
)
def test_mistakes(argument, words, capsys):
    assert fuzz.main([argument]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.slow
def test_readers_stand_mutants(tmp_path, capsys):
    names = ["set_of_bases", "npz", "weights_pt"]
    status = fuzz.main([f"--readers={','.join(names)}", "--mutants=15", f"--workdir={tmp_path}"])
    assert status == 0, capsys.readouterr().out
    found = json.loads((tmp_path / "fuzz.json").read_text())
    assert list(found["files"]) == names and all(count > 15 for count in found["files"].values())
