"""TFDS folders and Tiny ImageNet; nothing here needs TensorFlow or a network."""

import importlib
import io
import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from tiny_runs import TIMEOUT

from ssdd_jax.data import load
from ssdd_jax.data.tfds_source import prepare_command
from ssdd_jax.errors import UserError

DEFAULTS = {
    "train_split": "train",
    "test_split": "test",
    "image_size": 0,
    "train_limit": 0,
    "test_fraction": 0.2,
    "cache_dir": "",
}
WNIDS = ("n3", "n1", "n2")
CHECKOUT = pathlib.Path(__file__).resolve().parents[2]
DATASETS = pathlib.Path(os.environ.get("SSDD_DATASETS", CHECKOUT.parent / "shared" / "datasets"))


def read(name, data_dir, **changes):
    return load(ConfigDict(DEFAULTS | {"name": name, "data_dir": str(data_dir)} | changes))


def refused(text, name, data_dir, **changes):
    with pytest.raises(UserError, match=text) as caught:
        read(name, data_dir, **changes)
    assert "\n" not in str(caught.value)


def encoded(value, mode="RGB", size=64, file_format="JPEG"):
    buffer = io.BytesIO()
    Image.new(mode, (size, size), value).save(buffer, file_format)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with small data sets, prepared by TFDS itself."""
    tfds = importlib.import_module("tensorflow_datasets")
    features = tfds.features

    def store(name, splits, image, **others):
        def info(self):
            contents = features.FeaturesDict({"image": image, **others})
            return tfds.core.DatasetInfo(builder=self, features=contents, disable_shuffling=True)

        members = {
            "VERSION": tfds.core.Version("1.0.0"),
            "_info": info,
            "_split_generators": lambda self, manager: {
                split: self._generate_examples(rows) for split, rows in splits.items()
            },
            "_generate_examples": lambda self, rows: enumerate(rows),
        }
        builder = type(name.capitalize(), (tfds.core.GeneratorBasedBuilder,), members)
        builder(data_dir=folder, file_format="array_record").download_and_prepare()

    folder = tmp_path_factory.mktemp("tfds")
    colour = features.Image(shape=(8, 8, 3))
    label = features.ClassLabel(names=["cat", "dog"])
    rows = [{"image": encoded((20 * i, 0, 0), size=8, file_format="PNG"), "label": i % 2} for i in range(10)]
    store("both", {"train": rows, "validation": rows[:4]}, colour, label=label)
    store("alone", {"train": rows}, colour, label=label)
    store("odd", {"train": rows, "extra": rows}, colour, label=label)
    mixed = [{"image": encoded(9, "L", size, "PNG")} for size in (8, 9)]
    store("grey", {"train": mixed, "test": mixed}, features.Image(shape=(None, None, 1)))
    store("broken", {"train": [{"image": b"no image"}], "test": mixed}, colour)
    unlabelled = [row | {"label": -1} for row in rows]
    store("hidden", {"train": rows, "test": unlabelled}, colour, label=label)
    numbered = [row | {"label": 10**12 + 5 * (i % 3)} for i, row in enumerate(rows)]
    store("numbers", {"train": numbered, "test": numbered[:3]}, colour, label=features.Scalar(np.int64))
    named = [row | {"label": ("wasp", "ant")[i % 2]} for i, row in enumerate(rows)]
    store("words", {"train": named, "test": named[:3]}, colour, label=features.Text())
    two = [{"left": row["image"], "image2": row["image"], "image": 1} for row in rows]
    store("two", {"train": two}, features.Scalar(np.int64), left=colour, image2=colour)
    return folder


@pytest.mark.parametrize("inside", ["both", "both/1.0.0"])
def test_the_folder_may_be_that_of_the_data_set(inside, prepared, monkeypatch):
    """Or of one of its versions, absolute or relative."""
    wanted = read("tfds:both", prepared)
    for data_dir in (prepared / inside, inside):
        monkeypatch.chdir(prepared)
        np.testing.assert_array_equal(read("tfds:both", data_dir).train_images, wanted.train_images)
    refused("tfds:alone is not|no data set 'alone'", "tfds:alone", prepared / inside)


def test_prepared_folder(prepared):
    dataset = read("tfds:both", prepared)
    assert dataset.train_images[:, 0, 0, 0].tolist() == [20 * i for i in range(10)]
    assert dataset.train_labels.tolist() == [0, 1] * 5 and dataset.class_names == ("cat", "dog")
    assert len(dataset.test_images) == 4, "the validation split stands in for the missing test split"
    assert read("tfds:both:1.0.0", prepared, image_size=4, train_limit=3).train_images.shape == (3, 4, 4, 3)
    sliced = read("tfds:both", prepared, train_split="train[:50%]", test_split="train[50%:]")
    assert sliced.test_images[0, 0, 0, 0] == 100


def test_labels_that_are_no_class_labels(prepared):
    """Whole numbers, as identifiers, and texts."""
    dataset = read("tfds:numbers", prepared)
    assert dataset.class_names == ("1000000000000", "1000000000005", "1000000000010")
    assert dataset.train_labels.tolist() == [0, 1, 2] * 3 + [0] and dataset.test_labels.tolist() == [0, 1, 2]
    dataset = read("tfds:words", prepared)
    assert dataset.class_names == ("ant", "wasp") and dataset.train_labels.tolist() == [1, 0] * 5


def test_held_out_where_there_is_one_split(prepared):
    dataset = read("tfds:alone", prepared)
    assert len(dataset.train_images) == 8 and sorted(dataset.test_labels.tolist()) == [0, 1]
    assert len(read("tfds:both", prepared, test_split="").test_images) == 2


def test_grey_unlabelled_images_of_mixed_size(prepared):
    refused("image 0 of the split 'train' of tfds:grey is 8x8 and .* 9x9 .*image_size", "tfds:grey", prepared)
    dataset = read("tfds:grey", prepared, image_size=8)
    assert dataset.image_shape == (8, 8, 1) and dataset.train_labels is None


@pytest.mark.parametrize(
    ("name", "changes", "text"),
    [
        ("odd", {}, "no split 'test', only extra, train: choose one with --config.data.test_split"),
        ("both", {"test_split": "tset"}, "no split 'tset'.*it has train, validation"),
        ("both", {"train_split": "train["}, r"no split 'train\['"),
        ("broken", {}, "image 0 of the split 'train' of tfds:broken is not an image"),
        ("hidden", {}, "-1 marks a split without labels"),
        ("two", {}, "no feature that is clearly its image, only"),
        ("cifra10", {}, "knows no data set 'cifra10'.*did you mean tfds:cifar10"),
        ("huggingface:mnist", {}, "is not a data set's name"),
        ("imagenet_resized/9x9", {}, "no configuration '9x9', only 8x8"),
        ("tiny_imagenet", {}, "prepare it with ssdd_jax.data.tiny_imagenet.TinyImagenet"),
        (
            "imagenet_resized/64x64",
            {"test_split": "validation"},
            r"pip install 'ssdd_jax\[prepare\]' && python -c",
        ),
    ],
)
def test_refused(prepared, name, changes, text):
    refused(text, f"tfds:{name}", prepared, **changes)


def test_damaged_folder(prepared, tmp_path):
    copy = tmp_path / "both" / "1.0.0"
    shutil.copytree(prepared / "both" / "1.0.0", copy)
    info = json.loads((copy / "dataset_info.json").read_text())
    (copy / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    refused("prepared as tfrecord, which only TensorFlow reads; prepare it", "tfds:both", tmp_path)
    (copy / "dataset_info.json").write_text(json.dumps(info))
    for records in copy.glob("*train*"):
        records.write_bytes(records.read_bytes()[:100])
    refused("files of tfds:both are missing or damaged", "tfds:both", tmp_path)
    for records in copy.glob("*train*"):
        records.unlink()
    refused("files of tfds:both are missing or damaged", "tfds:both", tmp_path)
    (copy / "dataset_info.json").write_text("{")
    refused("prepared folder of tfds:both cannot be read", "tfds:both", tmp_path)


def test_prepare_command_is_a_command():
    command = prepare_command("cifar10", "/data/it's here")
    install, _, run = command.partition(" && ")
    assert shlex.split(install) == ["pip", "install", "ssdd_jax[prepare]"]
    program, option, code = shlex.split(run)
    assert (program, option) == ("python", "-c")
    compile(code, "command", "exec")
    assert 'tfds.builder("cifar10", data_dir="/data/it\'s here", file_format="array_record")' in code


@pytest.mark.medium
def test_unprepared_fails_soon_without_network_or_tensorflow(tmp_path):
    """In a fresh process, whose sockets are disabled."""
    code = f"""
import socket, sys
def no_network(*arguments): raise SystemExit("a connection was tried")
socket.socket.connect = socket.getaddrinfo = no_network
from ssdd_jax.data.tfds_source import open_tfds
from ssdd_jax.errors import UserError
assert "tensorflow_datasets" not in sys.modules
try:
    open_tfds("cifar100", {str(tmp_path)!r}, train_split="train", test_split="test", image_size=0)
except UserError as error:
    assert "is not prepared" in str(error)
assert "tensorflow" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=CHECKOUT, capture_output=True, text=True, timeout=TIMEOUT
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.fixture
def tiny(tmp_path):
    """A Tiny ImageNet of three classes, two of which share a name; one image is grey."""
    root = tmp_path / "tiny-imagenet-200"
    for label, wnid in enumerate(WNIDS):
        (root / "train" / wnid / "images").mkdir(parents=True)
        for index in range(4):
            content = encoded(99, "L") if (label, index) == (0, 0) else encoded((50 * label, 10 * index, 0))
            (root / "train" / wnid / "images" / f"{wnid}_{index}.JPEG").write_bytes(content)
    (root / "val" / "images").mkdir(parents=True)
    for index in range(3):
        (root / "val" / "images" / f"val_{index}.JPEG").write_bytes(encoded((0, 0, 100 * index)))
    rows = [f"val_{index}.JPEG\t{WNIDS[2 - index]}\t0\t0\t9\t9\n" for index in (2, 0, 1)]
    (root / "val" / "val_annotations.txt").write_text("".join(rows))
    (root / "wnids.txt").write_text("\n".join(WNIDS))
    (root / "words.txt").write_text("n1\tcrane\nn2\tcrane\nn3\tgoldfish, Carassius auratus\nn4\tother\n")
    return root


def check_tiny(dataset):
    assert dataset.class_names == ("goldfish, Carassius auratus", "crane (n1)", "crane (n2)")
    order = np.argsort(dataset.train_labels, kind="stable")
    assert dataset.train_labels[order].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert set(dataset.train_images[dataset.train_labels == 1][:, 0, 0, 0].tolist()) <= {49, 50, 51}
    assert [99, 99, 99] in dataset.train_images[:, 0, 0].tolist(), "the grey image is not RGB"
    by_label = dataset.test_images[np.argsort(dataset.test_labels), 0, 0, 2]
    assert np.abs(by_label.astype(int) - [200, 100, 0]).max() < 4
    assert dataset.image_shape == (64, 64, 3)


def zipped(root, target):
    with zipfile.ZipFile(target, "w") as archive:
        for file in sorted(root.rglob("*")):
            archive.write(file, file.relative_to(root.parent))


def test_tiny_imagenet_folder_and_archive(tiny, tmp_path):
    check_tiny(read("tiny_imagenet", tiny))
    check_tiny(read("tiny_imagenet", tmp_path))
    elsewhere = tmp_path / "archive"
    elsewhere.mkdir()
    zipped(tiny, elsewhere / "tiny-imagenet-200.zip")
    check_tiny(read("tiny_imagenet", elsewhere))
    check_tiny(read("tiny_imagenet", elsewhere / "tiny-imagenet-200.zip"))
    assert [path.name for path in elsewhere.iterdir()] == ["tiny-imagenet-200.zip"], "the archive was unpacked"
    (tiny / "words.txt").unlink()
    assert read("tiny_imagenet", tmp_path, image_size=8).class_names == WNIDS


def test_classes_of_tiny_imagenet_that_are_links(tiny, tmp_path):
    """As in a copy that takes some classes of another."""
    (tiny / "train" / "n1").rename(tmp_path / "n1")
    (tiny / "train" / "n1").symlink_to(tmp_path / "n1")
    (tiny / "train" / "again").symlink_to(tiny / "train")
    check_tiny(read("tiny_imagenet", tiny))


def test_tiny_imagenet_refused(tiny, tmp_path):
    refused("holds no Tiny ImageNet: point --config.data.data_dir", "tiny_imagenet", tmp_path / "missing")
    (tiny / "train" / "n1" / "images" / "n1_0.JPEG").write_bytes(b"")
    refused("n1_0.JPEG is not an image", "tiny_imagenet", tiny)
    (tiny / "val" / "images" / "val_1.JPEG").unlink()
    refused("names 'val_1.JPEG'", "tiny_imagenet", tiny)
    (tiny / "val" / "val_annotations.txt").unlink()
    refused("lacks a readable val/val_annotations.txt", "tiny_imagenet", tiny)
    archive = tmp_path / "tiny-imagenet-200.zip"
    archive.write_bytes(b"not an archive")
    refused("is not a zip archive", "tiny_imagenet", archive)
    shutil.rmtree(tiny / "train")
    zipped(tiny, archive)
    refused("lacks a readable", "tiny_imagenet", archive)


def test_tiny_imagenet_builder(tiny, tmp_path):
    """TFDS prepares it without TensorFlow, and both names read what it prepared."""
    tfds = importlib.import_module("tensorflow_datasets")
    builder_class = importlib.import_module("ssdd_jax.data.tiny_imagenet").TinyImagenet
    prepared = tmp_path / "prepared"
    builder = builder_class(data_dir=prepared, file_format="array_record")
    manual = tfds.download.DownloadConfig(manual_dir=tmp_path)
    builder.download_and_prepare(download_config=manual)
    assert "tensorflow" not in sys.modules
    check_tiny(read("tfds:tiny_imagenet", prepared))
    check_tiny(read("tiny_imagenet", prepared))
    shutil.rmtree(tiny)
    other = builder_class(data_dir=tmp_path / "other", file_format="array_record")
    with pytest.raises(UserError, match="holds no Tiny ImageNet"):
        other.download_and_prepare(download_config=manual)


@pytest.mark.skipif(not (DATASETS / "cifar10").is_dir(), reason=f"no prepared CIFAR-10 in {DATASETS}")
def test_cifar10():
    dataset = read("tfds:cifar10", DATASETS, train_split="train[:1000]", test_split="test[:500]", train_limit=100)
    assert dataset.train_images.shape == (100, 32, 32, 3) and dataset.test_images.shape == (500, 32, 32, 3)
    assert dataset.class_names[0] == "airplane" and dataset.classes == 10
    assert min(np.bincount(dataset.test_labels, minlength=10)) > 30
    assert 110 < dataset.test_images.mean() < 130
