"""Experts: their training, their trajectories on disk, what is read of them."""

import collections
import functools
import shutil
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import CHANNELS, DIM, SIZE, WIDTHS, bytes_and_features

from ssdd_jax import inner
from ssdd_jax.data import preprocess
from ssdd_jax.errors import UserError
from ssdd_jax.methods.mkdt import experts, trajectories
from ssdd_jax.models import ConvNet
from ssdd_jax.runtime import files
from ssdd_jax.training import epochs, loop

pytestmark = pytest.mark.medium

SHAPE = (SIZE, SIZE, CHANNELS)
SETTINGS = trajectories.Settings(
    count=3, epochs=2, widths=WIDTHS, batch_size=16, vectorize=2, inner=inner.Settings(0.05, 0.9, 1e-4)
)
KEY = jax.random.key(5)


@pytest.fixture(scope="module")
def data():
    """uint8 images, regression targets, constants."""
    images, features = bytes_and_features()
    constants = preprocess.fit(images, features)
    return jnp.asarray(images), constants.targets(jnp.asarray(features)), constants


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A store that was made in one go."""
    return experts.make(KEY, tmp_path_factory.mktemp("whole"), *data, settings=SETTINGS, say=lambda line: None)


def make(folder, data, settings=SETTINGS, **options):
    """The store, and the lines that were said."""
    lines = []
    return experts.make(KEY, folder, *data, settings=settings, say=lines.append, **options), lines


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.npy"))}


def fresh(seed, settings=SETTINGS):
    return inner.init(
        jax.random.key(seed), SHAPE, DIM, widths=settings.widths, norm=settings.norm, settings=settings.inner
    )


def test_sizes():
    """By hand: `9 I O + O` and `2 O` per block, and the linear layer; four bytes each, one snapshot before training."""
    expected = (9 * 3 * 4 + 4 + 8) + (9 * 4 * 8 + 8 + 16) + (2 * 2 * 8 + 1) * DIM
    assert trajectories.numbers(SETTINGS, SHAPE, DIM) == expected
    assert trajectories.bytes_needed(SETTINGS, SHAPE, DIM) == 3 * 3 * expected * 4
    convolutions = 9 * 3 * 128 + 2 * 9 * 128**2 + 3 * 128 + 6 * 128
    assert trajectories.numbers(trajectories.Settings(), (32, 32, 3), 512) == convolutions + (4 * 4 * 128 + 1) * 512


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_flatten_and_back(norm):
    settings = SETTINGS._replace(norm=norm)
    params = fresh(1, settings).variables["params"]
    vector = jax.jit(trajectories.flatten)(params)
    assert vector.shape == (trajectories.numbers(settings, SHAPE, DIM),) and vector.dtype == jnp.float32
    back = jax.jit(lambda v: trajectories.unflatten(v, settings, SHAPE, DIM))(vector)
    jax.tree.map(np.testing.assert_array_equal, back, params)
    names = sorted((layer, name) for layer in params for name in params[layer])
    expected = np.concatenate([np.asarray(params[layer][name]).ravel() for layer, name in names])
    np.testing.assert_array_equal(vector, expected)
    with pytest.raises(AssertionError):
        trajectories.unflatten(vector[1:], settings, SHAPE, DIM)


def test_an_epoch_is_plain_training(data):
    """Step by step over the rows of each expert's own order, on normalised images."""
    images, targets, constants = data
    states = jax.tree.map(lambda *leaves: jnp.stack(leaves), fresh(0), fresh(1))
    keys = jax.random.split(jax.random.key(9), 2)
    found = experts.train_epoch(keys, states, *data, settings=SETTINGS)
    step = jax.jit(functools.partial(inner.step, settings=SETTINGS.inner))
    for i in range(2):
        state = fresh(i)
        rows = epochs.shuffled(jax.random.fold_in(keys[i], 0), count=40, batch_size=16)
        assert rows.shape == (3, 16)
        for row in rows:
            state, _ = step(state, constants.images(images[row]), targets[row])
        one = jax.tree.map(lambda leaf: leaf[i], found)  # noqa: B023
        for leaf, expected in zip(*map(jax.tree.leaves, (one, state)), strict=True):
            np.testing.assert_allclose(leaf, expected, rtol=1e-3, atol=1e-5)


def test_losses_of_images(data, monkeypatch):
    """One image at a time by hand; 40 images in batches of 16, the last of them not full."""
    images, targets, constants = data
    variables = fresh(0).variables
    monkeypatch.setattr(experts, "MEASURE", 16)
    found = np.asarray(experts.image_losses.__wrapped__(variables, images, targets, constants))
    _, predictions = ConvNet(WIDTHS, DIM, "instance").apply(variables, constants.images(images), train=False)
    assert found.shape == (40,)
    np.testing.assert_allclose(found, np.square(predictions - targets).mean(1), rtol=1e-4)


def test_trajectories(whole, data):
    """The start is a fresh network, every expert another one, and training lowers the loss epoch by epoch."""
    size = trajectories.numbers(SETTINGS, SHAPE, DIM)
    assert sorted(path.name for path in whole.folder.glob("*.npy")) == [
        *(f"expert_000{i}.npy" for i in range(3)),
        "losses.npy",
    ]
    assert whole.count() == 3
    assert whole.read(0, 0).shape == (size,) and whole.read(0, 0).dtype == np.float32
    means, first = [], []
    for expert in range(3):
        for epoch in range(3):
            params = trajectories.unflatten(jnp.asarray(whole.read(expert, epoch)), SETTINGS, SHAPE, DIM)
            losses = experts.image_losses({"params": params, "batch_stats": {}}, *data)
            means.append(float(losses.mean()))
            if epoch == 1:
                first.append(np.asarray(losses))
    means = np.asarray(means).reshape(3, 3)
    assert len(set(means[:, 0])) == 3 and (np.diff(means, axis=1) < 0).all()
    np.testing.assert_allclose(whole.losses(), np.mean(first, axis=0), rtol=1e-5)
    assert whole.losses().dtype == np.float32
    start = trajectories.unflatten(jnp.asarray(whole.read(1, 0)), SETTINGS, SHAPE, DIM)
    np.testing.assert_array_equal(start["in0"]["scale"], 1.0)
    assert np.abs(start["conv0"]["kernel"]).max() <= 27**-0.5


def test_resumed_with_the_same_bits(whole, data, tmp_path, monkeypatch):
    """Killed while the second group is written, and started again: the first is not trained a second time."""
    write = files.write_array

    def killed(path, array):
        if path.name == "expert_0002.npy":
            raise KeyboardInterrupt
        write(path, array)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(files, "write_array", killed)
        make(tmp_path, data)
    assert sorted(contents(tmp_path)) == ["expert_0000.npy", "expert_0001.npy", "group_0000_0001.npy"]
    calls = counted(monkeypatch)
    _, lines = make(tmp_path, data)
    assert calls["groups"] == 1 and len(lines) == 1 and "1 trajectories" in lines[0]
    assert contents(tmp_path) == contents(whole.folder)


def test_nothing_to_do(whole, data, monkeypatch):
    calls, before = counted(monkeypatch), contents(whole.folder)
    (whole.folder / "group_0000_0001.npy").write_bytes(b"left over")
    _, lines = make(whole.folder, data)
    assert (calls["groups"], lines) == (0, []) and contents(whole.folder) == before


def counted(monkeypatch):
    """How many groups are trained from here on."""
    calls, train = collections.Counter(), experts._train

    def counting(*arguments):
        calls["groups"] += 1
        return train(*arguments)

    monkeypatch.setattr(experts, "_train", counting)
    return calls


def test_losses_alone(whole, data, tmp_path):
    """The same as with trajectories, which may be made later."""
    store, lines = make(tmp_path, data, keep=False)
    assert list(contents(tmp_path)) == ["losses.npy"] and store.count() == 0
    np.testing.assert_array_equal(store.losses(), whole.losses())
    assert len(lines) == 1 and "3 networks" in lines[0]
    assert make(tmp_path, data, keep=False)[1] == []
    make(tmp_path, data)
    assert contents(tmp_path) == contents(whole.folder)


def test_a_request_to_stop(data, tmp_path, monkeypatch):
    """Nothing half-done is left."""

    class Stopping(list):
        def __bool__(self):
            return True

    monkeypatch.setattr(loop, "stop_requests", lambda: _context(Stopping()))
    with pytest.raises(loop.Stopped, match="stopped in expert 0 of 3"):
        make(tmp_path, data)
    assert contents(tmp_path) == {}


class _context:
    def __init__(self, value):
        self.value = value

    def __enter__(self):
        return self.value

    def __exit__(self, *_):
        return None


def test_divergence_is_one_line(data, tmp_path):
    wild = SETTINGS._replace(inner=inner.Settings(1e12, 0.9, 0.0))
    with pytest.raises(UserError, match="try a smaller config.experts.learning_rate") as raised:
        make(tmp_path, data, wild)
    assert "\n" not in str(raised.value) and contents(tmp_path) == {}


def test_too_small_a_disk(data, tmp_path, monkeypatch):
    """Refused before anything is trained, by a byte; without trajectories there is nothing to refuse."""
    usage = collections.namedtuple("usage", "total used free")
    needed = trajectories.bytes_needed(SETTINGS, SHAPE, DIM)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2 * needed, needed, needed - 1))
    calls = counted(monkeypatch)
    with pytest.raises(UserError, match="kB free"):
        make(tmp_path, data)
    assert calls["groups"] == 0 and contents(tmp_path) == {}
    make(tmp_path, data, keep=False)
    assert calls["groups"] == 2
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2 * needed, needed, needed))
    make(tmp_path, data)


def test_other_experts_in_the_folder(whole, data, tmp_path):
    shutil.copytree(whole.folder, tmp_path, dirs_exist_ok=True)
    with pytest.raises(UserError, match="delete"):
        make(tmp_path, data, SETTINGS._replace(epochs=3))
    (tmp_path / "expert_0001.npy").write_bytes(b"not an array")
    with pytest.raises(UserError, match="expert_0001.npy is not a file of NumPy arrays.*; delete it and start again"):
        make(tmp_path, data)


def test_only_what_is_asked_for_is_read(tmp_path):
    """Two snapshots out of a trajectory of 40 MB take the memory of two."""
    store, size = trajectories.Store(tmp_path), 250_000
    trajectory = np.arange(40 * size, dtype=np.float32).reshape(40, size)
    files.write_array(store.path(7), trajectory)
    tracemalloc.start()
    try:
        rows = [store.read(7, epoch) for epoch in (3, 39)]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    for row, epoch in zip(rows, (3, 39), strict=True):
        np.testing.assert_array_equal(row, trajectory[epoch])
        assert row.base is None  # a copy: the file may go
    assert peak < 3 * size * 4


def test_missing_trajectory(tmp_path):
    with pytest.raises(UserError, match="expert_0003.npy is missing"):
        trajectories.Store(tmp_path).read(3, 0)


class Recorded(trajectories.Store):
    """A store that answers with what it was asked for."""

    def read(self, expert, epoch):
        return np.asarray([expert, epoch], np.float32)


def test_feed(tmp_path):
    """Pure in seed and step, however the steps are cut into calls; all experts and starts come up."""
    settings = SETTINGS._replace(count=4, epochs=5)
    options = {"max_start_epoch": 3, "expert_epochs": 2}
    feed = trajectories.feed(Recorded(tmp_path), settings, seed=1, **options)
    found = feed(0, 200)
    assert found["start"].shape == found["target"].shape == (200, 2)
    np.testing.assert_array_equal(found["target"] - found["start"], [[0, 2]] * 200)
    again = trajectories.feed(Recorded(tmp_path), settings, seed=1, **options)
    for name in found:
        np.testing.assert_array_equal(again(3, 7)[name], found[name][3:10])
    assert {tuple(row) for row in found["start"].astype(int)} == {(e, s) for e in range(4) for s in range(3)}
    other = trajectories.feed(Recorded(tmp_path), settings, seed=2, **options)(0, 200)
    assert not np.array_equal(other["start"], found["start"])


def test_feed_reads_the_store(whole):
    found = trajectories.feed(whole, SETTINGS, max_start_epoch=1, expert_epochs=2, seed=0)(5, 2)
    ends = {whole.read(i, 0).tobytes(): whole.read(i, 2) for i in range(3)}
    assert found["start"].dtype == np.float32
    for start, target in zip(found["start"], found["target"], strict=True):
        np.testing.assert_array_equal(ends[start.tobytes()], target)


@pytest.mark.parametrize(("starts", "length"), [(2, 2), (0, 1), (1, 0), (1, 3)])
def test_feed_needs_long_trajectories(whole, starts, length):
    with pytest.raises(ValueError, match="epochs"):
        trajectories.feed(whole, SETTINGS, max_start_epoch=starts, expert_epochs=length, seed=0)
