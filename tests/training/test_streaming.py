"""Data that are larger than the device or the memory: the same results as without, and nothing copied whole."""

import functools
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_runs
from helpers import bytes_and_features, dataset, make_run, prepare, small_config

from ssdd_jax import config, data
from ssdd_jax.data import cache, features, mapped, preprocess
from ssdd_jax.errors import UserError
from ssdd_jax.evaluate import extraction, training
from ssdd_jax.methods.mkdt import experts, trajectories
from ssdd_jax.models import convnet
from ssdd_jax.runtime import files
from ssdd_jax.training import streaming

LITTLE = 1e-6  # a thousand bytes
# Data that are gathered in a program and data that come to it are rounded alike by the emitters that users have.
XLA_FLAGS = " ".join(flag for flag in os.environ["XLA_FLAGS"].split() if "fusion_emitters" not in flag)


def tensors(run):
    return (run / "distilled" / "set.safetensors").read_bytes()


def losses(run, stage):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if line["stage"] == stage]


def as_npy(folder):
    """The images of `images.npz` as a folder of `.npy` files."""
    (folder / "arrays").mkdir()
    with np.load(folder / "images.npz") as archive:
        for name in archive.files:
            np.save(folder / "arrays" / f"{name}.npy", archive[name])
    return f"npy:{folder / 'arrays'}"


def run(line, folder):
    """Run a command line to its end."""
    process = tiny_runs.start(line, folder, XLA_FLAGS=XLA_FLAGS)
    _, err = process.communicate(timeout=tiny_runs.TIMEOUT)
    assert process.returncode == 0, err


@pytest.mark.medium
def test_a_streamed_distillation_has_the_same_bits(tmp_path):
    tiny_runs.write_data(tmp_path)
    for name, gigabytes in (("resident", 0.0), ("streamed", LITTLE)):
        changes = {"method": "krr_st", "distill__steps": 12, "devices__gigabytes": gigabytes}
        run([*tiny_runs.arguments(tmp_path, name, **changes), "--stage=approximate"], tmp_path)
    assert tensors(tmp_path / "streamed") == tensors(tmp_path / "resident")
    assert losses(tmp_path / "streamed", "distill") == losses(tmp_path / "resident", "distill")


@pytest.mark.slow
def test_a_killed_stream_goes_on_with_the_same_bits_from_mapped_files(tmp_path):
    """Interrupted after 20 steps of 40, from memory-mapped images and features."""
    tiny_runs.write_data(tmp_path)
    with np.load(tmp_path / "features.npz") as archive:
        np.save(tmp_path / "features.npy", archive["train"])
    changes = {"data__name": as_npy(tmp_path), "teacher__features": tmp_path / "features.npy"}
    line = [*tiny_runs.arguments(tmp_path, devices__gigabytes=LITTLE, **changes), "--stage=approximate"]
    process = tiny_runs.start(line, tmp_path, XLA_FLAGS=XLA_FLAGS)
    tiny_runs.wait_for_step(tmp_path / "run", 20, process)
    process.send_signal(signal.SIGKILL)
    _, err = process.communicate(timeout=tiny_runs.TIMEOUT)
    assert process.returncode == -signal.SIGKILL, err
    assert not (tmp_path / "run" / "distilled").exists(), "the run was over before it was interrupted"
    run(line, tmp_path)
    resident = tiny_runs.arguments(tmp_path, "resident", teacher__features=tmp_path / "features.npy")
    run([*resident, "--stage=approximate"], tmp_path)
    assert tensors(tmp_path / "run") == tensors(tmp_path / "resident")
    found = losses(tmp_path / "run", "distill")
    assert found == losses(tmp_path / "resident", "distill") and [step for step, _ in found] == list(range(5, 41, 5))


@pytest.mark.slow
def test_a_streamed_teacher_has_the_same_bits(tmp_path):
    tiny_runs.write_data(tmp_path)
    for name, gigabytes in (("resident", 0.0), ("streamed", LITTLE)):
        line = tiny_runs.taught(tmp_path, "random", name, devices__gigabytes=gigabytes, teacher__steps_per_call=4)
        run([*line[:-1], "--stage=features"], tmp_path)
    for file in ("teacher/teacher.safetensors", "features/train.npy", "features/test.npy"):
        assert (tmp_path / "streamed" / file).read_bytes() == (tmp_path / "resident" / file).read_bytes(), file


@pytest.mark.slow
def test_streamed_experts_have_the_same_bits(tmp_path):
    """Two at a time, and one; batches of 40 do not divide the 110 images."""
    images, known = bytes_and_features(110, channels=1)
    pairs = streaming.Pairs(images, known, preprocess.fit(images, known))
    chosen = trajectories.Settings(count=3, epochs=2, widths=(4,), batch_size=40, vectorize=2)
    options = {"settings": chosen, "say": lambda line: None}
    resident = experts.make(
        jax.random.key(0), tmp_path / "resident", *pairs.on_device(), pairs.preprocessing, **options
    )
    streamed = experts.make_of(jax.random.key(0), tmp_path / "streamed", pairs, **options)
    for expert in range(3):
        assert streamed.path(expert).read_bytes() == resident.path(expert).read_bytes()
    np.testing.assert_array_equal(streamed.losses(), resident.losses())


@pytest.mark.medium
def test_networks_trained_on_a_stream_are_the_same(monkeypatch):
    """The row `full_data`, to rounding: in calls of two steps, for two seeds side by side and a third."""
    images, known = bytes_and_features(50)
    pairs = streaming.Pairs(images, known, preprocess.fit(images, known))
    network = convnet.ConvNet((4, 8), known.shape[1])
    options = {"settings": training.Settings(epochs=3, batch_size=16), "together": 2}
    keys = jax.random.split(jax.random.key(1), 3)
    expected = training.train(keys, network, pairs.on_device(), preprocessing=pairs.preprocessing, **options)
    monkeypatch.setattr(streaming, "PIECE", 2 * 32 * pairs.nbytes // 50 + 1)
    found = training.train_streamed(keys, network, pairs, **options)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4)
    jax.tree.map(close, found, expected)


class Counted(np.ndarray):
    """An array that notes the most rows that were ever taken of it at once."""

    most = 0

    def __getitem__(self, index):
        found = super().__getitem__(index)
        if isinstance(found, np.ndarray) and found.ndim == self.ndim:
            Counted.most = max(Counted.most, len(found))
        return found.view(np.ndarray) if isinstance(found, np.ndarray) else found


@pytest.mark.parametrize("gigabytes", [LITTLE, 0.0])
def test_streamed_images_are_never_taken_whole(gigabytes, tmp_path):
    """Neither in memory nor on the device; the control is a run that keeps them there."""
    chosen = small_config("krr_st")
    chosen.devices.gigabytes = gigabytes
    run = prepare(make_run(tmp_path, chosen))
    run = run._replace(dataset=dataset(bytes_and_features()[0].view(Counted)))
    run.pairs()  # the moments of the images, a part at a time
    Counted.most = 0
    start, source, feed = run.start(), run.source(), run.method.feed(run)
    assert len(start.images) == chosen.storage.N
    on_device = any(array.shape == run.dataset.train_images.shape for array in jax.live_arrays())
    if gigabytes:
        item = feed(0, 2)
        assert item[0].shape == (2, 8, 8, 8, 3) and item[1].shape == (2, 8, run.problem.dim)
        assert Counted.most == chosen.distill.batch_size
        assert len(source.images) == 0 and not on_device
    else:
        assert feed is None and on_device


def test_a_feed_is_a_function_of_the_step():
    read = []

    def item(step):
        read.append(step)
        return {"step": np.int32(step), "twice": np.full(3, 2 * step)}

    feed = streaming.feed(item, steps=10)
    for done in (0, 4, 8, 4):  # the last call is whole, and a jump back starts again
        found = feed(done, 4)
        assert found["step"].tolist() == list(range(done, done + 4))
        np.testing.assert_array_equal(found["twice"], 2 * found["step"][:, None] * np.ones(3, int))
    assert max(read) == 11, "read beyond the last call"


def test_an_error_in_a_reading_thread_comes_out():
    def item(step):
        if step == 3:
            raise UserError("the disk is gone")
        return np.zeros(1)

    feed = streaming.feed(item, steps=8)
    with pytest.raises(UserError) as caught:
        feed(0, 4)
    assert str(caught.value) == "the disk is gone"


@pytest.mark.parametrize("kind", ["memory", "mapped", "part", "fortran"])
def test_gather_in_any_order(kind, tmp_path):
    """From memory, from a mapped file, and from maps whose rows do not lie one after the other from its beginning."""
    array = np.arange(60).reshape(20, 3)
    if kind != "memory":
        np.save(tmp_path / "a.npy", np.asfortranarray(array) if kind == "fortran" else array)
        array = mapped.read(tmp_path / "a.npy")
        array = array[2:] if kind == "part" else array
    rows = np.array([[7, 3, 7], [0, 17, 2]])
    found = streaming.gather(array, rows)
    np.testing.assert_array_equal(found, np.array(array)[rows])
    assert not isinstance(found, np.memmap)


def test_a_file_that_has_been_cut_short_is_noticed(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((20, 3)))
    array = mapped.read(tmp_path / "a.npy")
    with open(tmp_path / "a.npy", "r+b") as file:
        file.truncate(300)
    with pytest.raises(UserError, match="a.npy ends before its row 19"):
        streaming.gather(array, np.array([0, 19]))


def test_features_are_extracted_into_a_file(tmp_path):
    """Batch by batch, with the bits of features in memory."""
    network = convnet.ConvNet((4,), 3)
    variables = training.fresh(jax.random.split(jax.random.key(0), 1), network, (8, 8, 3))
    one = jax.tree.map(lambda leaf: leaf[0], variables)
    images, _ = bytes_and_features(extraction.EXTRACT + 50)
    constants = {"mean": np.full(3, 0.5), "std": np.ones(3)}
    expected = extraction.extract(network, one, images, **constants)
    found = extraction.extract(network, one, images, path=tmp_path / "features.npy", **constants)
    assert isinstance(found, np.memmap) and found.shape == (
        extraction.EXTRACT + 50,
        extraction.width(network, one, (8, 8, 3)),
    )
    np.testing.assert_array_equal(found, expected)


def test_what_fits(monkeypatch):
    monkeypatch.setattr(streaming, "memory_bytes", lambda: 1000)
    assert streaming.fits(500) and not streaming.fits(501)
    assert streaming.fits(2000, 2e-6) and not streaming.fits(2001, 2e-6)


def test_moments_in_parts_have_the_bits_of_numpy(monkeypatch):
    monkeypatch.setattr(preprocess, "PART", 7)
    found = np.random.default_rng(0).normal(3, 2, (40, 5)).astype(np.float32)
    mean, deviation = preprocess.column_moments(lambda: (found[part] for part in preprocess.parts(40)))
    np.testing.assert_array_equal(mean, found.mean(0, dtype=np.float64))
    np.testing.assert_array_equal(deviation, found.astype(np.float64).std(0))


def settings(name, **changes):
    chosen = config.default().data
    chosen.update(name=str(name), **changes)
    return chosen


def test_npy_images_stay_on_disk(tmp_path):
    tiny_runs.write_data(tmp_path)
    found, expected = data.load(settings(as_npy(tmp_path))), data.load(settings(f"npz:{tmp_path / 'images.npz'}"))
    for part in ("train", "test"):
        images = getattr(found, f"{part}_images")
        assert isinstance(images, np.memmap) and not images.flags.writeable
        np.testing.assert_array_equal(images, getattr(expected, f"{part}_images"))
        np.testing.assert_array_equal(getattr(found, f"{part}_labels"), getattr(expected, f"{part}_labels"))
    assert found.class_names == expected.class_names


def test_a_cache_is_mapped_and_the_same(tmp_path):
    """In blocks, resized, held out: as in memory; decoded once; and refused for other images."""
    tiny_runs.write_data(tmp_path)
    name, chosen = f"npz:{tmp_path / 'images.npz'}", {"image_size": 4, "test_split": "", "train_limit": 50}
    expected = data.load(settings(name, **chosen))
    chosen["cache_dir"] = str(tmp_path / "cache")
    for _ in range(2):
        found = data.load(settings(name, **chosen))
        assert isinstance(found.train_images, np.memmap)
        np.testing.assert_array_equal(found.train_images, expected.train_images)
        np.testing.assert_array_equal(found.test_images, expected.test_images)
    written = sorted(file.name for file in next((tmp_path / "cache").iterdir()).iterdir())
    forms = ("json", "npy", "npy.mark")
    assert written == [f"{part}_images.{form}" for part in ("test", "train") for form in forms]
    with np.load(tmp_path / "images.npz") as archive:
        arrays = dict(archive)
    np.savez(tmp_path / "images.npz", **arrays | {"train_images": arrays["train_images"][::-1]})
    with pytest.raises(UserError, match="train_images.npy holds other images than the data set has now: delete it"):
        data.load(settings(name, **chosen))


def test_a_cache_is_refused_where_labels_have_moved(tmp_path):
    """The images are the same, in the same number: only the labels say that rows mean something else now."""
    images, labels = np.zeros((20, 2, 2, 3), np.uint8), np.arange(20, dtype=np.int32) % 4
    made = cache.Cache(settings("npz:any", cache_dir=str(tmp_path)))
    part = data.source.Part(20, labels, lambda rows: images[rows])
    for _ in range(2):
        made.read("train_images", part, np.arange(20))
    with pytest.raises(UserError, match="train_images.npy holds other images"):
        made.read("train_images", part._replace(labels=labels[::-1].copy()), np.arange(20))


def test_a_cache_is_refused_where_a_file_was_replaced(tmp_path):
    """The length of its file tells, though the image is not among those that are decoded again."""
    images, lengths = np.zeros((100, 2, 2, 3), np.uint8), np.arange(100)
    made = cache.Cache(settings("folder:any", cache_dir=str(tmp_path)))
    part = data.source.Part(100, None, lambda rows: images[rows], lambda rows: lengths[rows])
    for _ in range(2):
        made.read("train_images", part, np.arange(100))
    lengths[1] += 1
    with pytest.raises(UserError, match="train_images.npy holds other images"):
        made.read("train_images", part, np.arange(100))


def test_a_cache_that_was_not_completed_is_made_again(tmp_path):
    images = np.zeros((4, 2, 2, 3), np.uint8)
    made = cache.Cache(settings("npz:any", cache_dir=str(tmp_path)))
    part = data.source.Part(4, np.zeros(4, np.int32), lambda rows: images[rows])
    made.read("train_images", part, np.arange(4))
    (made.folder / "train_images.json").unlink()
    images += 1
    np.testing.assert_array_equal(made.read("train_images", part, np.arange(4)), images)


def test_a_cache_where_nothing_can_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    made = cache.Cache(settings("npz:any", cache_dir=str(tmp_path / "file" / "below")))
    with pytest.raises(UserError, match="config.data.cache_dir: cannot write"):
        made.read(
            "train_images", data.source.Part(1, None, lambda rows: np.zeros((1, 2, 2, 3), np.uint8)), np.arange(1)
        )


def test_a_cache_is_filled_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "BLOCK", 32)
    images, asked = np.arange(100 * 12, dtype=np.uint8).reshape(100, 2, 2, 3), []

    def read(rows):
        asked.append(len(rows))
        return images[rows]

    part = data.source.Part(100, None, read)
    rows = np.arange(100)[::-1]
    found = cache.Cache(settings("made", cache_dir=str(tmp_path))).read("train_images", part, rows)
    np.testing.assert_array_equal(found, images[rows])
    assert asked == [32, 32, 32, 4, cache.CHECKED]


def test_more_images_than_memory_are_refused(tmp_path, monkeypatch):
    tiny_runs.write_data(tmp_path)
    monkeypatch.setattr(files, "machine_bytes", lambda: 100)
    with pytest.raises(UserError, match="images take 0.0 GB .* name a folder with --config.data.cache_dir"):
        data.load(settings(f"npz:{tmp_path / 'images.npz'}", image_size=4))


def test_pieces_that_do_not_come_to_the_count_leave_nothing(tmp_path):
    with pytest.raises(ValueError, match="5 rows instead of 6"):
        mapped.write(tmp_path / "a.npy", iter([np.zeros((3, 2)), np.zeros((2, 2))]), 6)
    with pytest.raises(ValueError, match="pieces of"):
        mapped.write(tmp_path / "a.npy", iter([np.zeros((3, 2)), np.zeros((3, 1))]), 6)
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="a.npy is missing"):
        mapped.read(tmp_path / "a.npy")


def test_features_are_mapped(tmp_path):
    known = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    features.save(tmp_path, features.Features(known, None), "mark")
    found = features.load(tmp_path, "mark")
    assert isinstance(found.train, np.memmap) and found.test is None
    np.testing.assert_array_equal(found.train, known)
    np.save(tmp_path / "brought.npy", known)
    brought = features.read(str(tmp_path / "brought.npy"), train=30, test=0, views=())
    assert isinstance(brought.train, np.memmap)


def test_pairs_taken_are_those_on_the_device():
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (50, 2, 2, 3), dtype=np.uint8)
    known = generator.normal(2, 3, (50, 6)).astype(np.float32)
    pairs = streaming.Pairs(images, known, preprocess.fit(images, known))
    rows, chosen = np.array([[4, 9], [4, 0]]), np.arange(10)[::-1]
    for part, count in ((pairs, 50), (pairs._replace(indices=chosen), 10)):
        found, expected = part.take(rows), part.on_device()
        assert part.size == len(expected[0]) == count and part.nbytes == count * (12 + 24)
        np.testing.assert_array_equal(found[0], expected[0][jnp.asarray(rows)])
        np.testing.assert_array_equal(found[1], expected[1][jnp.asarray(rows)])
    np.testing.assert_array_equal(expected[0], images[chosen])
