"""Distilled sets in the form of others: what comes back, bit for bit where it can, and what is refused."""

import dataclasses
import json
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import CHANNELS, DIM, SIZE, bytes_and_features, normal, params
from PIL import Image

from ssdd_jax import approximate, distilled, formats
from ssdd_jax.data import preprocess
from ssdd_jax.errors import UserError
from ssdd_jax.runtime import files

COUNT = 6
NEEDS = {"krr_st": "torch", "huggingface": "datasets"}
NOTHING_KNOWN = ([0.0] * CHANNELS, [1.0] * CHANNELS, [0.0] * DIM, 1.0)


def plain(seed=0, count=COUNT, channels=CHANNELS, **about):
    """Pairs whose pixels are bytes."""
    images, features = bytes_and_features(count, seed, channels=channels)
    constants = preprocess.fit(images, features)
    pairs = constants.images(jnp.asarray(images)), constants.targets(jnp.asarray(features))
    return distilled.from_pairs(*pairs, constants, **about)


def bases(std=0.02):
    """Five images in two views, at the default with all pixels in 0..1 but none a byte."""
    networks = approximate.Networks(*(normal(k, 1, *shape) for k, shape in enumerate(((3, 2), (2,), (2, 3), (3,)))))
    constants = preprocess.Preprocessing(
        jnp.array([0.5, 0.45, 0.55]), std * jnp.array([1.0, 1.1, 0.9]), normal(3, DIM), jnp.float32(1.7)
    )
    return distilled.from_params(params(), networks, constants, method="boost", class_names=["a", "b"], teacher="mine")


SETS = {
    "pairs": lambda: plain(learning_rate=0.0317, method="mkdt", dataset="digits", class_names=["a", "b"]),
    "grey": lambda: plain(channels=1, method="random"),
    "bases": bases,
}


def write(form, made, folder):
    """Written in a form, where the library that it needs is installed."""
    if form in NEEDS:
        pytest.importorskip(NEEDS[form])
    return formats.write(made, folder, form)


class Bomb:
    """Fails the test when it is unpickled."""

    def __reduce__(self):
        return pytest.fail, ("something was unpickled",)


def equal(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype == np.float32
        np.testing.assert_array_equal(one, other)


def refused(words, path):
    with pytest.raises(UserError, match=words) as refusal:
        formats.read(path)
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 700
    return str(refusal.value)


@pytest.mark.medium
@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("form", formats.WRITABLE)
def test_what_is_written_comes_back(form, name, tmp_path):
    """Pairs, constants and facts; a `pairs` set whose pixels are bytes survives even as PNG."""
    made = SETS[name]()
    summary = write(form, made, tmp_path / "out")
    found = formats.read(tmp_path / "out")
    (images, targets), (kept_images, kept_targets) = made.pairs(), found.pairs()
    equal([kept_targets], [targets])
    equal(found.preprocessing, made.preprocessing)
    if form == "png":
        away = np.abs(np.asarray(kept_images - images) * np.asarray(made.preprocessing.image_std))
        assert away.max() <= (0.5 / 255 + 1e-6 if name == "bases" else 1e-6)
    else:
        equal([kept_images], [images])
    assert found.kind == "pairs" and found.statics == ({"learning_rate": 0.0317} if name == "pairs" else {})
    assert found.about == {"version": found.about["version"], **made.about, "from": form}
    listed = [file for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert summary == formats.Summary(
        folder=tmp_path / "out",
        form=form,
        pairs=len(images),
        size=sum(file.stat().st_size for file in listed),
        clipped=0 if form in ("png", "huggingface") else None,
        pixels=images.size,
    )
    assert not any(file.name.startswith(".") for file in listed)


def test_constants_say_how_to_undo_the_normalisation(tmp_path):
    """Whoever has only the files gets the bytes back."""
    made = plain(method="random")
    formats.write(made, tmp_path, "npz")
    facts = json.loads((tmp_path / "constants.json").read_text())
    assert {"pairs": COUNT, "image_shape": [SIZE, SIZE, CHANNELS], "target_length": DIM}.items() <= facts.items()
    assert "images * image_std + image_mean" in facts["undo"] and facts["method"] == "random" and facts["version"]
    images, features = bytes_and_features(COUNT)
    with np.load(tmp_path / "pairs.npz") as pairs:
        undone = pairs["images"] * facts["image_std"] + facts["image_mean"]
        np.testing.assert_allclose(undone * 255, images, atol=1e-3)
        undone = pairs["targets"] * facts["target_scale"] + facts["target_mean"]
        np.testing.assert_allclose(undone, features, atol=1e-5)


def test_pictures_are_named_by_row_and_view(tmp_path):
    formats.write(bases(), tmp_path, "png")
    names = sorted(file.name for file in tmp_path.glob("*.png"))
    assert names == [f"{row:04d}_{'rot0' if row < 5 else 'rot90'}.png" for row in range(10)]
    pixels = [np.asarray(Image.open(tmp_path / name)) for name in names]
    np.testing.assert_array_equal(pixels[7], np.rot90(pixels[2]))
    assert np.abs(pixels[2] / 255.0 - np.asarray(bases().images()[2])).max() <= 0.5 / 255 + 1e-6


def test_pictures_say_what_was_clipped(tmp_path):
    made = bases(std=0.2)
    pixels = np.asarray(made.pairs()[0], np.float64) * np.asarray(made.preprocessing.image_std)
    pixels = 255 * (pixels + np.asarray(made.preprocessing.image_mean))
    expected = int(((pixels < -0.5) | (pixels > 255.5)).sum())
    assert formats.write(made, tmp_path, "png").clipped == expected > 20
    found, images = formats.read(tmp_path), made.pairs()[0]
    inside = (pixels > 0) & (pixels < 255)
    away = np.abs(np.asarray(found.pairs()[0] - images) * np.asarray(made.preprocessing.image_std))
    assert away[inside].max() <= 0.5 / 255 + 1e-5 < away.max()
    np.testing.assert_allclose(found.images(), made.preprocessing.pixels(images), atol=0.5 / 255 + 1e-5)


def test_an_earlier_export_is_replaced_whole(tmp_path):
    """Fewer pairs leave no file of the longer set behind; what is not of the export stays."""
    formats.write(plain(0, 6), tmp_path, "png")
    (tmp_path / "notes.txt").write_text("mine")
    formats.write(plain(1, 4), tmp_path, "png")
    assert len(list(tmp_path.glob("*.png"))) == 4 and (tmp_path / "notes.txt").exists()
    equal(formats.read(tmp_path).pairs()[1:], plain(1, 4).pairs()[1:])


@pytest.mark.parametrize("when", ["while writing", "while replacing"])
def test_a_cut_export_is_never_mixed(tmp_path, monkeypatch, when):
    formats.write(plain(0, 6), tmp_path, "png")
    with monkeypatch.context() as patch:
        if when == "while writing":
            patch.setattr(np, "save", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        else:
            patch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(UserError, match="no space left on the disk"):
            formats.write(plain(1, 6), tmp_path, "png")
    equal(formats.read(tmp_path).pairs()[1:], plain(0, 6).pairs()[1:])
    formats.write(plain(1, 6), tmp_path, "png")
    equal(formats.read(tmp_path).pairs()[1:], plain(1, 6).pairs()[1:])


def test_the_exchange_leaves_no_half_of_the_old(tmp_path, monkeypatch):
    """Cut when the old files are gone: refused when read, and may be written again."""
    formats.write(plain(0, 6), tmp_path, "npz")
    replace = files.os.replace
    with monkeypatch.context() as patch:
        stop = lambda source, place: replace(source, place) if ".partial" in str(place) else sys.exit(1)  # noqa: E731
        patch.setattr("os.replace", stop)
        with pytest.raises(SystemExit):
            formats.write(plain(1, 6), tmp_path, "npz")
    refused("holds no distilled set", tmp_path)
    formats.write(plain(1, 6), tmp_path, "npz")
    equal(formats.read(tmp_path).pairs(), plain(1, 6).pairs())


def test_nothing_else_is_overwritten(tmp_path):
    def refuse(words, folder, form="npz"):
        with pytest.raises(UserError, match=words):
            formats.write(plain(), folder, form)

    (tmp_path / "file").write_text("mine")
    refuse("is a file: choose another folder", tmp_path / "file")
    refuse("is not empty, and is not overwritten", tmp_path)
    refuse("cannot write .*choose another folder", tmp_path / "file" / "below")
    refuse("unknown form 'zip': there are krr_st, npz, png, safetensors, huggingface", tmp_path / "new", "zip")
    formats.write(plain(), tmp_path / "npz", "npz")
    refuse("is an export of the form npz, and is not overwritten", tmp_path / "npz", "png")
    plain().save(tmp_path / "native")
    refuse("is not empty, and is not overwritten", tmp_path / "native")
    assert not (tmp_path / "new").exists() and (tmp_path / "file").read_text() == "mine"
    assert sorted(file.name for file in (tmp_path / "npz").iterdir()) == ["constants.json", "pairs.npz"]


def test_a_diverged_set_is_not_written(tmp_path):
    images, targets = plain().pairs()
    made = distilled.from_pairs(images, targets.at[0, 0].set(jnp.nan), plain().preprocessing)
    with pytest.raises(UserError, match="the set's targets holds values that are not finite"):
        formats.write(made, tmp_path / "new", "npz")
    assert not (tmp_path / "new").exists()


def test_the_own_form_is_read_as_it_is(tmp_path):
    bases().save(tmp_path)
    found = formats.read(str(tmp_path))
    assert found.kind == "bases" and found.about == bases().about
    equal(found.pairs(), bases().pairs())


def test_load_dataset_reads_it(tmp_path):
    """By its own default rules, offline: inputs and targets exactly, images to look at."""
    datasets = pytest.importorskip("datasets")
    made = dataclasses.replace(bases(), about={**bases().about, "title": "Boost-SSDD"})
    formats.write(made, tmp_path / "out", "huggingface")
    found = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert found.column_names == ["image", "pixel_values", "target"] and len(found) == 10
    pixels = np.asarray(found[3]["image"])
    assert np.abs(pixels / 255.0 - np.asarray(made.images()[3])).max() <= 0.5 / 255 + 1e-6
    arrays = found.with_format("numpy")
    equal((arrays["pixel_values"][:], arrays["target"][:]), map(np.asarray, made.pairs()))
    card = (tmp_path / "out" / "README.md").read_text()
    assert (
        "10 pairs of an image" in card
        and "| Method | Boost-SSDD |" in card
        and "8 x 8 x 3" in card
        and "pixel_values * image_std" in card
    )


@pytest.mark.parametrize(
    ("form", "library", "extra"), [("krr_st", "torch", "torch"), ("huggingface", "datasets", "huggingface")]
)
def test_a_missing_library_is_named(tmp_path, monkeypatch, form, library, extra):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError, match=rf"needs {library}, .*: pip install 'ssdd_jax\[{extra}\]'"):
        formats.write(plain(), tmp_path / "new", form)
    assert not (tmp_path / "new").exists()
    (tmp_path / "x_syn.pt").touch(), (tmp_path / "y_syn.pt").touch()
    if library == "torch":
        refused(r"\(.pt\) needs torch, which is missing: pip install 'ssdd_jax\[torch\]'", tmp_path)


def test_the_forms_are_listed(tmp_path):
    said = refused("holds no distilled set", tmp_path)
    assert all(words in said for words in formats.FORMS.values()) and len(formats.FORMS) == 7
    (tmp_path / "file.txt").touch()
    refused("file.txt holds no distilled set", tmp_path / "file.txt")
    refused("there is nothing at .*nowhere: check the path", tmp_path / "nowhere")
    plain().save(tmp_path / "distilled")
    refused("did you mean .*distilled[?]", tmp_path)
