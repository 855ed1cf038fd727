"""Labels as people have them: identifiers, from 1 on, names, columns of a table. Classes are the labels that occur."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from ml_collections import ConfigDict
from tiny_runs import arguments, write_data

from ssdd_jax import config, main
from ssdd_jax.data import labels, load, loading
from ssdd_jax.data.source import ImageSource, Part
from ssdd_jax.errors import UserError
from ssdd_jax.runtime import files

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 4, 4, 3), np.uint8)
PATTERN = np.tile([0, 1, 2], 4)


def settings(name):
    chosen: ConfigDict = config.default().data
    chosen.update(name=name)
    return chosen


def read(folder, form="npz", **arrays):
    """The data set of arrays on disk: the last third is the test part."""
    if form == "npz":
        np.savez(folder / "a.npz", **arrays)
        return load(settings(f"npz:{folder / 'a.npz'}"))
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return load(settings(f"npy:{folder}"))


def parts(given):
    return {
        "train_images": IMAGES[:8], "train_labels": given[:8], "test_images": IMAGES[8:], "test_labels": given[8:]
    }  # fmt: skip


@pytest.mark.parametrize("form", ["npz", "npy"])
@pytest.mark.parametrize(
    ("given", "names"),
    [
        (np.array([1, 2, 3]), ("1", "2", "3")),
        (np.array([0, 4, 7], np.uint8), ("0", "4", "7")),
        (np.array([29_999_993, 29_999_997, 30_000_000]), ("29999993", "29999997", "30000000")),
        (np.array([5, 2**40, 2**63 + 1], np.uint64), ("5", str(2**40), str(2**63 + 1))),
        (np.array([1.0, 2.0, 9.0]), ("1", "2", "9")),
        (np.array(["ant", "bee", "wasp"]), ("ant", "bee", "wasp")),
        (np.array([b"ant", b"bee", b"wasp"]), ("ant", "bee", "wasp")),
    ],
    ids=lambda value: str(value.dtype) if isinstance(value, np.ndarray) else "",
)
def test_classes_are_the_labels_that_occur(form, given, names, tmp_path):
    dataset = read(tmp_path, form, **parts(given[PATTERN][:, None] if form == "npz" else given[PATTERN]))
    assert dataset.class_names == names
    assert dataset.train_labels.dtype == np.int32
    np.testing.assert_array_equal(dataset.train_labels, PATTERN[:8])
    np.testing.assert_array_equal(dataset.test_labels, PATTERN[8:])
    said = any("3 labels that occur" in note for note in dataset.notes)
    assert said == (given.dtype.kind not in "US")


@pytest.mark.parametrize("given", [np.array([False, True]), np.array([-1, 1])])
def test_two_classes(given, tmp_path):
    dataset = read(tmp_path, **parts(given[PATTERN % 2]))
    assert dataset.classes == 2
    np.testing.assert_array_equal(dataset.train_labels, PATTERN[:8] % 2)


def test_a_label_of_the_test_images_alone_is_a_class(tmp_path):
    given = np.where(np.arange(12) == 11, 40, 10 * PATTERN)
    dataset = read(tmp_path, **parts(given))
    assert dataset.class_names == ("0", "10", "20", "40") and dataset.test_labels[-1] == 3


NAMES = ("zebra", "ant", "bee", "cow")


def test_names_are_kept(tmp_path):
    """By number, by order if the labels do not count from 0, and of text in the order of the names."""
    for given, names, found in (
        (np.array([0, 1, 3]), NAMES, ("zebra", "ant", "cow")),
        (np.array([1, 2, 3]), NAMES[:3], ("zebra", "ant", "bee")),
        (np.array([0, 1, 2]), NAMES[:3], ("zebra", "ant", "bee")),
        (np.array(["bee", "ant", "zebra"]), NAMES, ("zebra", "ant", "bee")),
    ):
        dataset = read(tmp_path, **parts(given[PATTERN]), class_names=np.array(names))
        assert dataset.class_names == found
        wanted = [names.index(one) for one in given[PATTERN]] if given.dtype.kind == "U" else PATTERN
        np.testing.assert_array_equal(dataset.train_labels, wanted[:8])
        missing = set(names) - set(found)
        assert ("no class, as it has no images: " + "".join(missing) in dataset.notes) == bool(missing)
    with pytest.raises(UserError, match="the label 'fly', which is not among the class names"):
        read(tmp_path, **parts(np.array(["bee", "ant", "fly"])[PATTERN]), class_names=np.array(NAMES))


@hypothesis.given(given=hnp.arrays(np.int64, st.integers(1, 30), elements=st.integers(0, 2**62)))
def test_labels_can_be_recovered(given):
    found = labels.classes("here", [given, None, given[:1]])
    assert found.parts[1] is None
    recovered = [int(found.names[label]) for label in found.parts[0]]
    assert recovered == given.tolist()
    assert sorted(set(found.parts[0].tolist())) == list(range(len(found.names)))


def test_names_of_bytes(tmp_path):
    names = np.array([b"ant", "caf\u00e9".encode(), b"caf\xe9"])
    assert read(tmp_path, **parts(PATTERN), class_names=names).class_names == ("ant", "caf\u00e9", "caf\\xe9")


def test_labels_that_count_from_0_stay_as_they_are():
    found = labels.classes("here", [PATTERN], NAMES[:3])
    np.testing.assert_array_equal(found.parts[0], PATTERN)
    assert found.names == NAMES[:3] and found.notes == ()


def test_identifiers_of_images_are_doubted():
    found = labels.classes("here", [np.arange(200) // 1])
    assert "200 labels of 200 images: they may be no classes but identifiers" in found.notes[-1]
    assert not labels.classes("here", [np.arange(200) // 2]).notes


def test_classes_with_few_images():
    assert labels.rare(np.array([0, 2, 2, 0, 3], np.int32), NAMES, 2) == ["ant", "cow"]
    assert labels.rare(np.array([0, 1, 2, 3], np.int32), NAMES, 1) == []


def test_every_source_leaves_out_classes_without_images(monkeypatch):
    """Such as EMNIST's letters in TFDS, 1 to 26 of 37 classes."""
    given = (PATTERN + 1).astype(np.int32)
    part = Part(12, given, lambda rows: IMAGES[rows])
    monkeypatch.setattr(loading, "_open", lambda settings: ImageSource(part, part, NAMES))
    dataset = load(settings("digits"))
    assert dataset.class_names == NAMES[1:] and "zebra" in dataset.notes[0]
    np.testing.assert_array_equal(dataset.train_labels, PATTERN)
    # Labels that are not public are still refused.
    hidden = part._replace(labels=np.full(12, -1, np.int32))
    monkeypatch.setattr(loading, "_open", lambda settings: ImageSource(part, hidden, NAMES))
    with pytest.raises(UserError, match="-1 marks a split without labels"):
        load(settings("digits"))


@pytest.mark.slow
def test_no_measure_is_left_out_unsaid(tmp_path, capsys):
    """A run on identifiers has every measure, and one with few images of a class says which it has not."""
    write_data(tmp_path)
    with np.load(tmp_path / "images.npz") as archive:
        arrays = dict(archive)
    ids = np.array([1_000_001, 1_000_500, 2_000_000])
    for name, last in (("many", 2), ("few", 3)):
        train = ids[arrays["train_labels"]].copy()
        train[:last] = 7 if last == 3 else train[:last]
        np.savez(
            tmp_path / f"{name}.npz", **{**arrays, "train_labels": train, "test_labels": ids[arrays["test_labels"]]}
        )
        small = {"evaluate__entries": "('distilled',)", "evaluate__seeds": 1}
        line = arguments(tmp_path, name, data__name=f"npz:{tmp_path / name}.npz", **small)
        assert main.main(line) == 0
        out, results = capsys.readouterr().out, files.read_json(tmp_path / name / "results.json")
        assert results["data"]["classes"] == (3 if name == "many" else 4)
        assert ("few_shot" in results) == (name == "many")
        assert ("few_shot is left out" in out and "1 of 4 classes have fewer, such as '7'" in out) == (name == "few")
