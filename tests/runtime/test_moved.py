"""A run whose data lie elsewhere on the next start: the same content is the same run, other content another one."""

import shutil

import numpy as np
import pytest
from PIL import Image
from tiny_runs import arguments, write_data

from ssdd_jax import config as configuration
from ssdd_jax import main
from ssdd_jax.errors import UserError
from ssdd_jax.evaluate import sources
from ssdd_jax.runtime import files, marks
from ssdd_jax.runtime.inputs import hashes, without_folders
from ssdd_jax.runtime.workdir import Workdir


def start(capsys, place, run, *, stage="data", **changes):
    """The status of a run on the data in a folder, and its last line on standard error."""
    line = arguments(place, run, data__name=f"npz:{place / 'images.npz'}", **changes)
    status = main.main([*line, f"--stage={stage}"])
    return status, capsys.readouterr().err.strip().splitlines()[-1]


def change(path, **changes):
    """Replaces an entry of an array in an archive: `name=(place, value)`."""
    with np.load(path) as archive:
        arrays = dict(archive)
    for name, (place, value) in changes.items():
        arrays[name][place] = value
    np.savez(path, **arrays)


@pytest.fixture
def moved(tmp_path, capsys):
    """A run begun on data in one folder, which were then moved to another."""
    first, second = tmp_path / "job1", tmp_path / "job2"
    first.mkdir()
    write_data(first)
    assert start(capsys, first, tmp_path / "run")[0] == 0
    first.rename(second)
    return second


def test_the_same_command_goes_on(moved, tmp_path, capsys):
    assert start(capsys, moved, tmp_path / "run")[0] == 0
    stored = files.read_json(tmp_path / "run" / "config.json")
    assert stored["data.name"] == f"npz:{moved / 'images.npz'}"
    assert stored["teacher.features"] == str(moved / "features.npz")


@pytest.mark.parametrize(
    ("file", "name", "entry", "words"),
    [
        ("images", "train_images", ((60, 0, 0, 0), 3), "other training images"),
        ("images", "test_images", ((7, 1, 1, 0), 3), "other test images"),
        ("images", "train_labels", (7, 2), "other labels"),
        ("features", "train", ((60, 0), 3.0), "other features"),
        ("features", "test", ((7, 0), 3.0), "other features"),
    ],
)
def test_other_content_is_refused(file, name, entry, words, moved, tmp_path, capsys):
    assert (entry[1] != np.load(moved / f"{file}.npz")[name][entry[0]]).any()
    change(moved / f"{file}.npz", **{name: entry})
    status, said = start(capsys, moved, tmp_path / "run")
    assert status == 2 and f"was made with {words} than there are now: choose another --workdir" in said
    assert start(capsys, moved, tmp_path / "other")[0] == 0


def test_another_form_of_the_same_images(moved, tmp_path, capsys):
    """A folder of arrays has the content of the archive, and another source by name does not."""
    with np.load(moved / "images.npz") as archive:
        for name in archive.files:
            np.save(moved / f"{name}.npy", archive[name])
    line = arguments(moved, tmp_path / "run", data__name=f"npy:{moved}")
    assert main.main([*line, "--stage=data"]) == 0
    line = arguments(moved, tmp_path / "run", data__name="digits", teacher__features="")
    assert main.main([*line, "--stage=data"]) == 2
    assert "data.name" in capsys.readouterr().err


def test_settings_still_count(moved, tmp_path, capsys):
    status, said = start(capsys, moved, tmp_path / "run", storage__N=5)
    assert status == 2 and "storage.N (4 there, 5 now)" in said and "data.name" not in said


def test_a_folder_without_a_record_is_bound_to_its_paths(moved, tmp_path, capsys):
    """Such as one of an older version; once it is started at its place, it has the record."""
    (tmp_path / "run" / "inputs.json").unlink()
    status, said = start(capsys, moved, tmp_path / "run")
    assert status == 2 and "data.name" in said and "teacher.features" in said
    moved.rename(tmp_path / "job1")
    assert start(capsys, tmp_path / "job1", tmp_path / "run")[0] == 0
    (tmp_path / "job1").rename(moved)
    assert start(capsys, moved, tmp_path / "run")[0] == 0


def test_a_folder_of_photographs_and_a_cache_move(tmp_path, capsys):
    generator = np.random.default_rng(0)
    for name in ("ant", "bee"):
        (tmp_path / "job1" / name).mkdir(parents=True)
        for index in range(20):
            pixels = generator.integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "job1" / name / f"{index:02}.png")
    np.save(tmp_path / "features.npy", generator.normal(size=(32, 6)))

    def on(place, cache):
        own = {"teacher__features": tmp_path / "features.npy", "data__cache_dir": tmp_path / cache, "storage__M": 8}
        return main.main([*arguments(tmp_path, "run", data__name=f"folder:{place}", **own), "--stage=data"])

    assert on(tmp_path / "job1", "one") == 0
    shutil.copytree(tmp_path / "job1", tmp_path / "job2")
    assert on(tmp_path / "job2", "two") == 0
    (tmp_path / "job2" / "ant" / "07.png").rename(tmp_path / "job2" / "bee" / "07b.png")
    assert on(tmp_path / "job2", "three") == 2
    assert "was made with other" in capsys.readouterr().err


@pytest.mark.medium
def test_shared_outputs_and_the_source_of_an_evaluation(moved, tmp_path, capsys):
    """What runs share is found again, an evaluation finds the data, and other images are refused there too."""
    shared = [f"--shared={tmp_path / 'shared'}", "--stage=features"]

    def on(place, run):
        return main.main([*arguments(place, tmp_path / run, data__name=f"npz:{place / 'images.npz'}"), *shared])

    assert on(moved, "one") == 0
    moved.rename(tmp_path / "job3")
    assert on(tmp_path / "job3", "two") == 0 and on(tmp_path / "job3", "one") == 0
    source = sources.of_run(tmp_path / "one", shared=tmp_path / "shared")
    assert source.dataset.name == f"npz:{tmp_path / 'job3' / 'images.npz'}"
    change(tmp_path / "job3" / "images.npz", train_images=((60, 0, 0, 0), 3))
    assert on(tmp_path / "job3", "three") == 2
    assert "shared/features was made with other training images" in capsys.readouterr().err


def test_large_arrays_are_sampled(monkeypatch):
    array = np.arange(4000.0).reshape(1000, 4)
    whole = hashes(features=array)
    monkeypatch.setattr(marks, "HASHED", 100)
    monkeypatch.setattr(marks, "SAMPLE", 11)
    sampled = hashes(features=array)
    assert sampled != whole and sampled == hashes(features=np.asfortranarray(array))
    array[999] = 0
    assert hashes(features=array) != sampled


def test_hashes():
    one, two = np.arange(12.0).reshape(3, 4), np.arange(4)
    found = hashes(training_images=one, labels=(two, None), weights="mark", features=None)
    assert set(found) == {"training images", "labels", "weights"} and found["weights"] == "mark"
    assert found["training images"] != hashes(training_images=one.astype(np.float32))["training images"]
    assert found["training images"] != hashes(training_images=one.reshape(4, 3))["training images"]
    for other in ((None, two), (two, two), (two,)):
        assert hashes(labels=other)["labels"] != found["labels"]


def test_a_source_that_moved_has_to_exist(tmp_path):
    old, new = configuration.default(), configuration.default()
    old.teacher.source, new.teacher.source = str(tmp_path / "old.pt"), str(tmp_path / "new.pt")
    work = Workdir(tmp_path / "run")
    work.check_inputs({"training images": "1", "weights": "2"})
    work.record(old)
    work.check(old)
    with pytest.raises(UserError, match="teacher.source"):
        work.check(new)
    (tmp_path / "new.pt").touch()
    work.check(new)
    with pytest.raises(UserError, match="was made with other weights"):
        work.check_inputs({"training images": "1", "weights": "3"})
    work.check_inputs({"training images": "1"})


def test_a_set_does_not_name_folders():
    places = {"data.data_dir": "/home/me/data", "teacher.source": "~/nets/resnet.pt", "storage.N": 3}
    short = {"data.data_dir": "data", "teacher.source": "resnet.pt", "storage.N": 3}
    for name, expected in (
        ("folder:/a/photos", "folder:photos"),
        ("npz:a/b.npz", "npz:b.npz"),
        ("tfds:a/b", "tfds:a/b"),
    ):
        assert without_folders(places | {"data.name": name}) == short | {"data.name": expected}
