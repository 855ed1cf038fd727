"""Folders as people have them: splits under other names, folders in folders, links, names that are not UTF-8."""

import os

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from ssdd_jax import config, main
from ssdd_jax.api import photos
from ssdd_jax.cli import arguments
from ssdd_jax.data import folder, load, splits, walk
from ssdd_jax.errors import UserError
from ssdd_jax.formats import pictures

CLASSES = ("daisy", "rose")


def settings(path, **changes):
    chosen: ConfigDict = config.default().data
    chosen.update(name=f"folder:{path}", test_fraction=0.0, **changes)
    return chosen


def write(path, count=2, level=0):
    """Images of one grey level in a folder."""
    path.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        Image.new("RGB", (4, 4), (level, level, index)).save(path / f"{index}.png")


def refused(text, path, **changes):
    with pytest.raises(UserError, match=text) as caught:
        load(settings(path, **changes))
    assert "\n" not in str(caught.value)


def counts(dataset):
    return len(dataset.train_images), 0 if dataset.test_images is None else len(dataset.test_images)


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Training", "Testing"),
        ("TRAIN", "TEST"),
        ("train", "valid"),
        ("training_set", "test_set"),
        ("train2017", "val2017"),
        ("train_images", "eval"),
        ("seg_train", "seg_test"),
        ("flowers-train", "flowers-valid"),
    ],
)
def test_splits_under_other_names(tmp_path, train, test):
    for part, level, count in ((train, 1, 3), (test, 2, 2)):
        for name in CLASSES:
            write(tmp_path / part / name, count, level)
    dataset = load(settings(tmp_path))
    assert dataset.class_names == CLASSES and counts(dataset) == (6, 4)
    assert set(dataset.train_images[..., 0].ravel()) == {1} and set(dataset.test_images[..., 0].ravel()) == {2}
    assert any(f"{train} holds the training images, {test} the test images" in note for note in dataset.notes)
    by_name = load(settings(tmp_path, train_split=train, test_split=test.lower()))
    np.testing.assert_array_equal(by_name.test_images, dataset.test_images)


@pytest.mark.parametrize(
    "name", ["trains", "contest", "latest", "vale", "train station", "roses_train", "data", "2019"]
)
def test_names_that_are_no_splits(name, tmp_path):
    assert splits.kind_of(name) is None
    for one in (name, "daisy"):
        write(tmp_path / one)
    assert set(load(settings(tmp_path)).class_names) == {name, "daisy"}


def test_what_is_not_read_is_said(tmp_path):
    for part in ("train", "test", "val", "unlabeled"):
        for name in CLASSES:
            write(tmp_path / part / name)
    write(tmp_path / "train", 0)
    (tmp_path / "train" / "tulip").mkdir()
    (tmp_path / "annotations").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "cover.png")
    notes = load(settings(tmp_path)).notes
    assert f"not read: unlabeled, val, cover.png, beside train and test in {tmp_path}" in notes
    assert f"no class, as there are no images in it: tulip in {tmp_path / 'train'}" in notes
    assert len(notes) == 2
    held = load(settings(tmp_path, test_split=""))
    assert any("not read: test, unlabeled, val" in note for note in held.notes)


def test_an_image_beside_the_classes_takes_the_labels_and_it_is_said(tmp_path):
    for name in CLASSES:
        write(tmp_path / name)
    Image.new("RGB", (4, 4)).save(tmp_path / "cover.png")
    dataset = load(settings(tmp_path))
    assert dataset.train_labels is None
    assert dataset.notes == (f"no labels: cover.png and others lie in {tmp_path}, beside its subfolders daisy, rose",)


def test_splits_inside_of_classes_are_read_together_and_it_is_said(tmp_path):
    for name in CLASSES:
        for part in ("train", "test"):
            write(tmp_path / name / part)
    dataset = load(settings(tmp_path))
    assert dataset.class_names == CLASSES and counts(dataset) == (8, 0)
    assert dataset.notes[0].startswith("read together, as splits inside of classes are not told apart: test, train in")


def test_a_choice_is_asked_for(tmp_path):
    for part in ("test", "val"):
        write(tmp_path / part)
    refused("has a folder 'test' but none that is named as training images.*train_split", tmp_path)
    assert load(settings(tmp_path, train_split="")).class_names == ("test", "val")
    for part in ("train_a", "train1", "train2"):
        write(tmp_path / part)
    refused("has the folders train1, train2: choose one with --config.data.train_split", tmp_path)
    assert counts(load(settings(tmp_path, train_split="train2"))) == (2, 2)
    write(tmp_path / "train")
    assert counts(load(settings(tmp_path))) == (2, 2)


def test_a_choice_can_be_made_with_the_config_for_photographs(tmp_path, capsys):
    """Which looks at the folder before its keys are changed."""
    for part in ("test", "val"):
        write(tmp_path / "photos" / part, 24)
    line = [f"--config=configs/folder.py:{tmp_path / 'photos'}", f"--workdir={tmp_path / 'run'}", "--dry_run"]
    with pytest.raises(UserError, match="none that is named as training images"):
        folder.survey(tmp_path / "photos", train_split="train")
    assert main.main([*line, "--stage=data"]) == 2
    assert "set that to '' if all subfolders are classes" in capsys.readouterr().err
    chosen = arguments.parse([*line[:2], "--config.data.train_split="]).config
    assert "2 classes by subfolder" in photos.describe(chosen, accelerator=False)[0]
    assert load(chosen.data).class_names == ("test", "val")


def test_a_folder_in_a_folder_stands_for_its_only_subfolder(tmp_path):
    for name in CLASSES:
        write(tmp_path / "a" / "images" / name)
        for part, count in (("train", 3), ("test", 1)):
            write(tmp_path / "b" / "data" / "data" / part / part / name, count)
    one, two = (load(settings(tmp_path / name)) for name in "ab")
    assert one.class_names == two.class_names == CLASSES
    assert counts(one) == (4, 0) and counts(two) == (6, 2)
    assert one.notes == (f"the classes are the subfolders of {tmp_path / 'a' / 'images'}",)


def test_links_around_a_folder_are_not_followed(tmp_path):
    (tmp_path / "beside").mkdir()
    write(tmp_path / "beside")
    photos_ = tmp_path / "photos"
    for name in CLASSES:
        write(photos_ / name)
    os.symlink(photos_, photos_ / "photos")
    os.symlink("..", photos_ / "rose" / "all")
    os.symlink(tmp_path, photos_ / "daisy" / "everything")
    os.symlink("loop", photos_ / "loop")
    dataset = load(settings(photos_))
    assert counts(dataset) == (4, 0) and dataset.class_names == CLASSES
    assert dataset.notes == ("links that are left out, as they lead to files or folders that are read already: 3",)
    assert folder.survey(photos_).train == 4


def test_every_real_file_is_read_once(tmp_path):
    write(tmp_path / "elsewhere" / "tulip", level=3)
    for name in CLASSES:
        write(tmp_path / "photos" / name)
    os.symlink(tmp_path / "elsewhere" / "tulip", tmp_path / "photos" / "tulip")
    os.symlink(tmp_path / "elsewhere", tmp_path / "photos" / "rose" / "more")
    os.symlink("../rose/0.png", tmp_path / "photos" / "daisy" / "a rose.png")
    dataset = load(settings(tmp_path / "photos"))
    assert counts(dataset) == (6, 0)
    # The first link by path gives a linked folder its place, and a real file keeps its own.
    assert dataset.train_labels.tolist() == [0, 0, 1, 1, 1, 1] and "2" in dataset.notes[-1]


def test_links_to_files_elsewhere_are_read(tmp_path):
    """As in the caches of hubs and annexes, where names are links to files without an extension."""
    for name in CLASSES:
        write(tmp_path / "files" / name)
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(2):
            (tmp_path / "files" / name / f"{index}.png").rename(tmp_path / "files" / f"{name}{index}")
            os.symlink(f"../../files/{name}{index}", tmp_path / "photos" / name / f"{index}.png")
    assert counts(load(settings(tmp_path / "photos"))) == (4, 0)
    os.symlink("nowhere", tmp_path / "photos" / "rose" / "broken.png")
    refused(r"broken\.png cannot be read", tmp_path / "photos")


def test_training_images_under_the_name_of_the_test(tmp_path):
    for name in CLASSES:
        write(tmp_path / "train" / name)
    os.symlink("train", tmp_path / "val")
    refused("4 files are in train and in val through a link: .*test_split=''", tmp_path)


def test_the_walk_of_exported_images_has_no_memory_of_links_either(tmp_path):
    write(tmp_path, 3)
    np.save(tmp_path / "features.npy", np.zeros((3, 2), np.float32))
    os.symlink(tmp_path, tmp_path / "again")
    assert len(pictures.read(tmp_path).images) == 3


def test_a_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    write(tmp_path)

    def fail(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(walk.os, "scandir", fail)
    refused("cannot be read: Permission denied", tmp_path)


def test_what_is_there_instead_of_images(tmp_path):
    for index in range(3):
        (tmp_path / f"{index}.HEIC").write_bytes(b"")
    refused("holds no images .*; there are 3 .heic, to be converted first", tmp_path)
    refused("is a file, not a folder: unpack it", tmp_path / "0.HEIC")


def test_tiny_imagenet_is_no_folder_of_classes(tmp_path):
    for name in CLASSES:
        write(tmp_path / "train" / name / "images")
    write(tmp_path / "val" / "images")
    refused("the training images have not", tmp_path)
    (tmp_path / "wnids.txt").write_text("\n".join(CLASSES))
    refused("is Tiny ImageNet.*--config.data.name=tiny_imagenet and --config.data.data_dir=", tmp_path)
    assert load(settings(tmp_path, test_split="")).classes == 2


def test_an_image_that_is_too_large_is_called_that(tmp_path, monkeypatch):
    write(tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 7)
    refused("0.png is too large to be decoded safely: it has 16 pixels, and 14 are the most: reduce it", tmp_path)


ODD = os.fsdecode(b"caf\xe9")


@pytest.mark.skipif(os.name == "nt", reason="names are text there")
def test_names_that_are_not_utf8(tmp_path):
    for name in (ODD, "tea"):
        write(tmp_path / ODD / name, 12)
    dataset = load(settings(tmp_path / ODD))
    assert dataset.class_names == ("caf\\xe9", "tea")
    chosen = config.default()
    chosen.data = settings(tmp_path / ODD)
    for line in (*dataset.notes, *photos.describe(chosen, accelerator=False)):
        line.encode(errors="strict" if ODD not in line else "backslashreplace")


@pytest.mark.parametrize("ending", ["pgm", "jfif", "JPE", "avif"])
def test_further_formats(tmp_path, ending):
    kind = {"pgm": "PPM", "avif": "AVIF"}.get(ending, "JPEG")
    if kind == "AVIF" and kind not in Image.registered_extensions().values():
        pytest.skip("this Pillow has no AVIF")
    Image.new("L" if kind == "PPM" else "RGB", (8, 8)).save(tmp_path / f"a.{ending}", kind)
    assert load(settings(tmp_path)).train_images.shape == (1, 8, 8, 3)
