"""The artefact on disk: what comes back, what is refused, what survives a failure."""

import hashlib
import json
import os
import pickle
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import DIM, normal, pairs, params
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_runs import ROOT

from ssdd_jax import approximate, distilled
from ssdd_jax.data import preprocess
from ssdd_jax.errors import UserError
from ssdd_jax.runtime import files

CONSTANTS = preprocess.Preprocessing(
    jnp.array([0.5, 0.4, 0.3]), jnp.array([0.2, 0.25, 0.3]), normal(9, DIM), jnp.float32(1.7)
)


def constants(channels, dim):
    return preprocess.Preprocessing(normal(1, channels), 1 + normal(2, channels) ** 2, normal(3, dim), jnp.float32(2))


def bases(seed=0, views=("rot0", "rot90"), hidden=2, V=3, **sizes):
    shapes = ((V, hidden), (hidden,), (hidden, V), (V,))
    networks = approximate.Networks(*(normal(k, len(views) - 1, *shape) for k, shape in enumerate(shapes)))
    made = params(seed=seed, views=views, V=V, **sizes)
    preprocessing = constants(made.image_bases.shape[-1], made.feature_bases.shape[-1])
    return distilled.from_params(made, networks, preprocessing, method="boost", seed=seed)


def plain(seed=0, count=4):
    return distilled.from_pairs(*pairs(seed, count), CONSTANTS, method="random", classes=["a", "b"])


def same(one, other):
    assert (one.kind, dict(one.statics), dict(one.about)) == (other.kind, dict(other.statics), dict(other.about))
    trees = (({**s.arrays, **s.preprocessing._asdict()}) for s in (one, other))
    first, second = trees
    assert first.keys() == second.keys()
    for name, array in first.items():
        assert np.shape(array) == np.shape(second[name]) and array.dtype == second[name].dtype
        assert np.asarray(array).tobytes() == np.asarray(second[name]).tobytes(), name


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A new empty folder at each call."""
    return lambda: tmp_path_factory.mktemp("distilled")


@settings(deadline=None, max_examples=12)
@given(
    M=st.integers(1, 4), U=st.integers(1, 3), V=st.integers(1, 3), base=st.sampled_from((1, 2, 4)),
    channels=st.sampled_from((1, 3)), dim=st.integers(1, 5), views=st.integers(1, 3),
)  # fmt: skip
def test_bases_come_back_bit_by_bit(folders, M, U, V, base, channels, dim, views):
    names = ("rot0", "rot90", "flip")[:views]
    made = bases(views=names, M=M, U=U, V=V, base=base, channels=channels, dim=dim)
    folder = folders()
    size = made.save(folder)
    same(made, distilled.load(folder))
    assert size == sum(file.stat().st_size for file in folder.iterdir()) and len(list(folder.iterdir())) == 2


@settings(deadline=None, max_examples=8)
@given(count=st.integers(1, 4), side=st.integers(1, 4), channels=st.sampled_from((1, 3)), dim=st.integers(1, 5))
def test_pairs_come_back_bit_by_bit(folders, count, side, channels, dim):
    arrays = normal(0, count, side, side, channels), normal(1, count, dim)
    made, folder = distilled.from_pairs(*arrays, constants(channels, dim)), folders()
    made.save(folder)
    loaded = distilled.load(folder)
    same(made, loaded)
    assert loaded.numbers_stored() == count * (side * side * channels + dim)
    for found, expected in zip(loaded.pairs(), arrays, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_learned_rate_comes_back_and_is_not_counted(tmp_path):
    """The same number, in JSON; a set without one says so."""
    rate = float(np.float32(0.0317))
    made = distilled.from_pairs(*pairs(0, 4), CONSTANTS, learning_rate=rate, method="mkdt")
    made.save(tmp_path)
    loaded = distilled.load(tmp_path)
    same(made, loaded)
    assert loaded.statics["learning_rate"] == rate and loaded.about == {"method": "mkdt"}
    assert loaded.numbers_stored() == plain().numbers_stored() == 4 * (8 * 8 * 3 + DIM)
    assert "learning_rate" not in plain().statics
    np.testing.assert_array_equal(loaded.pairs()[1], plain().pairs()[1])


def test_targets_need_not_be_features(tmp_path):
    """Soft labels of three classes, with constants of their own."""
    images, labels = normal(0, 4, 8, 8, 3), normal(1, 4, 3)
    made = distilled.from_pairs(images, labels, constants(3, 3))
    made.save(tmp_path)
    loaded = distilled.load(tmp_path)
    assert loaded.numbers_stored() == 4 * (8 * 8 * 3 + 3) and loaded.preprocessing.target_mean.shape == (3,)
    np.testing.assert_array_equal(loaded.pairs()[1], labels)


def test_decoded_pairs_come_back_bit_by_bit(tmp_path):
    made = bases()
    made.save(tmp_path)
    loaded = distilled.load(tmp_path)
    for found, expected in zip(loaded.pairs(), made.pairs(), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert loaded.pairs()[0].shape == (10, 8, 8, 3) and loaded.pairs()[1].shape == (10, DIM)
    recomputed = distilled.params_of(loaded).feature_coefficients
    np.testing.assert_array_equal(recomputed[0], made.arrays["feature_coefficients"])
    assert loaded.images().shape == (5, 8, 8, 3)
    assert 0 <= loaded.images().min() and loaded.images().max() <= 1


def test_constants_work_after_loading(tmp_path):
    """The scale is a scalar again, so that nothing broadcasts that should not."""
    plain().save(tmp_path)
    found = distilled.load(tmp_path).preprocessing
    features = normal(4, 2, 3, DIM)
    np.testing.assert_allclose(found.features(found.targets(features)), features, rtol=1e-4, atol=1e-5)


def test_nothing_is_decoded_before_it_is_asked_for(tmp_path, monkeypatch):
    bases().save(tmp_path)
    calls, decode = [], distilled.KINDS["bases"]
    monkeypatch.setitem(distilled.KINDS, "bases", lambda *a: calls.append(1) or decode(*a))
    loaded = distilled.load(tmp_path)
    loaded.numbers_stored()
    assert not calls
    loaded.pairs(), loaded.pairs(), loaded.images()
    assert len(calls) == 1


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("something was unpickled",)


def overwrite(folder, content):
    """Other bytes with a checksum that matches them."""
    (folder / distilled.TENSORS).write_bytes(content)
    describe(folder, sha256=hashlib.sha256(content).hexdigest())


def describe(folder, **changes):
    path = folder / distilled.DESCRIPTION
    description = json.loads(path.read_text()) | {"own_sha256": None} | changes
    path.write_text(json.dumps({key: value for key, value in description.items() if value is not None}))


def npz(folder):
    np.savez(folder / "file.npz", arrays=np.array([Bomb()], dtype=object))
    overwrite(folder, (folder / "file.npz").read_bytes())


def cut(name):
    def damage(folder):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return damage


def flip_a_bit(folder):
    content = bytearray((folder / distilled.TENSORS).read_bytes())
    content[-3] ^= 1
    (folder / distilled.TENSORS).write_bytes(content)


DAMAGES = {
    "cut tensors": (cut(distilled.TENSORS), "damaged: its checksum"),
    "cut description": (cut(distilled.DESCRIPTION), "cannot be read as JSON"),
    "a bit": (flip_a_bit, "damaged: its checksum"),
    "no tensors": (lambda folder: (folder / distilled.TENSORS).unlink(), "set.safetensors cannot be read"),
    "no description": (lambda folder: (folder / distilled.DESCRIPTION).unlink(), "holds no distilled set"),
    "newer schema": (lambda folder: describe(folder, schema=4), "schema 4, this version reads up to 3: update"),
    "unknown kind": (
        lambda folder: describe(folder, kind="zip"),
        "unknown kind 'zip': known are bases, composed, pairs",
    ),
    "no checksum": (lambda folder: describe(folder, sha256=None), "not the description of a distilled set"),
    "a list": (lambda folder: (folder / distilled.DESCRIPTION).write_text("[1]"), "no JSON object"),
    "pickle": (lambda folder: overwrite(folder, pickle.dumps(Bomb())), "not a safetensors file"),
    "npz": (npz, "not a safetensors file"),
    "empty": (lambda folder: overwrite(folder, b""), "not a safetensors file"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_refused(tmp_path, damage):
    plain().save(tmp_path)
    apply, message = DAMAGES[damage]
    apply(tmp_path)
    with pytest.raises(UserError, match=message):
        distilled.load(tmp_path)


def test_nothing_there_is_refused(tmp_path):
    with pytest.raises(UserError, match="nowhere holds no distilled set"):
        distilled.load(tmp_path / "nowhere")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), PermissionError(13, "denied")])
def test_a_failed_save_leaves_the_old_set(tmp_path, monkeypatch, error):
    old = plain(0)
    old.save(tmp_path)

    def fail(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(UserError, match="no space left|cannot write"):
            plain(5).save(tmp_path)
    same(old, distilled.load(tmp_path))
    assert sorted(file.name for file in tmp_path.iterdir()) == [distilled.DESCRIPTION, distilled.TENSORS]
    plain(5).save(tmp_path)
    same(plain(5), distilled.load(tmp_path))


def test_a_description_that_was_changed_is_refused(tmp_path):
    """Views and sizes decide on what is decoded, so the description has a checksum of its own."""
    bases().save(tmp_path)
    content = (tmp_path / distilled.DESCRIPTION).read_text()
    (tmp_path / distilled.DESCRIPTION).write_text(content.replace("rot90", "rot270"))
    with pytest.raises(UserError, match="set.json is damaged: its checksum"):
        distilled.load(tmp_path)
    # Another layout of the same JSON is the same description.
    (tmp_path / distilled.DESCRIPTION).write_text(json.dumps(json.loads(content)))
    same(distilled.load(tmp_path), bases())


@pytest.mark.parametrize("written", [distilled.PREVIOUS, distilled.TENSORS, distilled.DESCRIPTION])
def test_a_set_that_is_overwritten_is_the_old_or_the_new_one(written, tmp_path, monkeypatch):
    """Whatever was written last before the process ended."""
    plain(0).save(tmp_path)
    own = {name: getattr(files, name) for name in ("keep", "write_tensors", "write_json")}
    last = {distilled.PREVIOUS: "keep", distilled.TENSORS: "write_tensors", distilled.DESCRIPTION: "write_json"}[
        written
    ]

    def end(*arguments, **options):
        own[last](*arguments, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(files, last, end)
        plain(1).save(tmp_path)
    same(distilled.load(tmp_path), plain(1 if written == distilled.DESCRIPTION else 0))
    # Also when the next attempt ends at the same place.
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(files, last, end)
        plain(3).save(tmp_path)
    same(distilled.load(tmp_path), plain(3 if written == distilled.DESCRIPTION else 0))
    plain(2).save(tmp_path)
    same(distilled.load(tmp_path), plain(2))
    assert sorted(file.name for file in tmp_path.iterdir()) == [distilled.DESCRIPTION, distilled.TENSORS]


@pytest.mark.parametrize("images", ["float16", "bfloat16", "int8", "int5"])
@pytest.mark.parametrize("targets", ["float32", "int8", "int6"])
def test_a_packed_set_comes_back_as_it_was(images, targets, tmp_path):
    for made in (bases(M=5, U=3, V=3), plain()):
        packed = distilled.pack(made, images=images, targets=targets)
        packed.save(tmp_path)
        assert (tmp_path / "set.safetensors").stat().st_size == packed.bytes_stored() < made.bytes_stored() + 1000
        back = distilled.load(tmp_path)
        same(packed, back)
        assert json.loads((tmp_path / "set.json").read_text())["schema"] == 3
        # What is read and written again has the same bytes.
        content = (tmp_path / "set.safetensors").read_bytes()
        back.save(tmp_path / "again")
        assert (tmp_path / "again" / "set.safetensors").read_bytes() == content
        for one, other in zip(made.pairs(), back.pairs(), strict=True):
            assert np.abs(np.asarray(one) - np.asarray(other)).max() < 0.3 * np.abs(np.asarray(one)).max()


@pytest.mark.parametrize("code", ["png", "webp", "jpeg"])
def test_images_of_pairs_are_coded_as_one_picture(code, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 2, 2, 3)).astype(np.uint8).repeat(8, 1).repeat(8, 2)
    made = distilled.from_pairs(CONSTANTS.images(jnp.asarray(pixels)), pairs(0, 30)[1], CONSTANTS)
    packed = distilled.pack(made, images=code, targets="int8")
    packed.save(tmp_path)
    back = distilled.load(tmp_path)
    same(packed, back)
    error = np.abs(255 * np.asarray(back.images()) - pixels).mean()
    assert error < (0.01 if code == "png" else 12) and back.stored["images"].precision == code


def test_the_highest_quality_that_fits():
    pixels = np.random.default_rng(0).integers(0, 256, (60, 16, 16, 3)).astype(np.uint8)
    made = distilled.from_pairs(CONSTANTS.images(jnp.asarray(pixels)), pairs(0, 60)[1], CONSTANTS)
    limits = [distilled.pack(made, images="webp", targets="int8", quality=q).bytes_stored() for q in (20, 60)]
    for quality, limit in zip((20, 60), limits, strict=True):
        fitted = distilled.pack(made, images="webp", targets="int8", limit=limit)
        assert fitted.bytes_stored() <= limit
        above = distilled.pack(made, images="webp", targets="int8", quality=quality + 2).bytes_stored()
        assert above > limit
    # A quality that is asked for is lowered where it does not fit, and never raised.
    assert distilled.pack(made, images="webp", targets="int8", quality=90, limit=limits[0]).bytes_stored() <= limits[0]
    asked = distilled.pack(made, images="webp", targets="int8", quality=20, limit=limits[1])
    assert asked.bytes_stored() == limits[0]
    with pytest.raises(UserError, match="not even with the lowest quality"):
        distilled.pack(made, images="webp", targets="int8", limit=1000)
    with pytest.raises(UserError, match=r"exceeds the budget: [\d,]+ > 1,000 bytes"):
        distilled.pack(made, images="int8", targets="int8", limit=1000)


def test_features_beyond_float16_keep_their_mean(tmp_path):
    large = CONSTANTS._replace(target_mean=CONSTANTS.target_mean + 1e6)
    packed = distilled.pack(distilled.from_pairs(*pairs(0, 4), large), images="int8", targets="int8")
    packed.save(tmp_path)
    same(packed, distilled.load(tmp_path))
    np.testing.assert_array_equal(distilled.load(tmp_path).preprocessing.target_mean, large.target_mean)


def test_a_mean_far_above_the_deviation_keeps_its_digits():
    """Except where the bytes are counted: plans for them reckon with 16 bits."""
    far = CONSTANTS._replace(target_mean=CONSTANTS.target_mean + 1000.3, target_scale=jnp.float32(0.05))
    made = distilled.from_pairs(*pairs(0, 4), far)
    packed = distilled.pack(made, images="int8", targets="int8")
    np.testing.assert_array_equal(packed.preprocessing.target_mean, far.target_mean)
    limited = distilled.pack(made, images="int8", targets="int8", limit=packed.bytes_stored() - 1)
    assert limited.bytes_stored() < packed.bytes_stored()
    near = CONSTANTS._replace(target_scale=jnp.float32(100))
    rounded = distilled.pack(distilled.from_pairs(*pairs(0, 4), near), images="int8", targets="int8")
    assert rounded.bytes_stored() == limited.bytes_stored()


def test_bases_are_not_coded_as_a_picture():
    with pytest.raises(UserError, match="codes images, and this set stores bases"):
        distilled.pack(bases(), images="webp")


def test_what_is_not_packed_is_written_as_before():
    made = plain()
    assert distilled.pack(made) is made


@pytest.mark.parametrize(
    "damage",
    [
        lambda facts: facts["targets"].update(precision="int9"),
        lambda facts: facts["targets"].update(precision="int5"),
        lambda facts: facts["targets"].update(shape=[2**40, 2**20]),
        lambda facts: facts["targets"].update(shape="much"),
        lambda facts: facts["images"].update(precision="int8"),
        lambda facts: facts["images"].update(shape=[10, 32, 32, 3]),
        lambda facts: facts.update(more={"precision": "int8", "shape": [3]}),
        lambda facts: facts["targets"].pop("shape"),
    ],
)
def test_a_description_of_other_arrays_is_refused(damage, tmp_path):
    """Sets of schema 2 describe their arrays in set.json."""
    published = ROOT / "experiments/results/compare-cifar10-b65536/sets/random"
    shutil.copytree(published, tmp_path, dirs_exist_ok=True)
    description = files.read_sealed(tmp_path / "set.json")
    assert description["schema"] == 2
    damage(description["statics"]["packed"])
    files.write_sealed(tmp_path / "set.json", description)
    with pytest.raises(UserError, match="not the description of a distilled set|are a picture of"):
        distilled.load(tmp_path)
