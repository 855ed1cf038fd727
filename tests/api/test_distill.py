"""`ssdd_jax.distill`, `load` and `evaluate` from arrays in memory."""

import jax
import numpy as np
import pytest
import tiny_runs
from helpers import bytes_and_features

import ssdd_jax
from ssdd_jax import config as configuration
from ssdd_jax import main, methods
from ssdd_jax.api import defaults
from ssdd_jax.errors import UserError
from ssdd_jax.runtime import files

IMAGES, FEATURES = bytes_and_features(60)
SMALL = {
    "storage.base_size": 4,
    "storage.hidden": 2,
    "storage.M": 8,
    "student.widths": (4, 8),
    "pool.size": 2,
    "pool.steps": 4,
    "distill.batch_size": 16,
    "distill.steps_per_call": 2,
    "approximate.steps": 10,
    "experts.widths": (4, 4),
    "experts.count": 2,
    "experts.batch_size": 16,
    "mkdt.unroll": 2,
    "mkdt.batch_size": 4,
    "mkdt.image_learning_rate": 1.0,
    "mkdt.target_learning_rate": 1.0,
}


def small(features=FEATURES, images=IMAGES, *, N=6, steps=3, config=None, **options):
    options.setdefault("say", lambda line: None)
    return ssdd_jax.distill(images, features, N=N, steps=steps, config={**SMALL, **(config or {})}, **options)


def same(one, other):
    assert one.kind == other.kind and dict(one.statics) == dict(other.statics)
    assert set(one.arrays) == set(other.arrays)
    for name, array in one.arrays.items():
        np.testing.assert_array_equal(array, other.arrays[name], err_msg=name)
    jax.tree.map(np.testing.assert_array_equal, one.preprocessing, other.preprocessing)


@pytest.mark.medium
@pytest.mark.parametrize("method", [pytest.param("boost", marks=pytest.mark.slow), "kmeans"])
def test_the_set_of_a_run_in_a_folder_bit_by_bit(tmp_path, method):
    """And whoever watches changes nothing, nor does the number of steps per call."""
    tiny_runs.write_data(tmp_path)
    line = tiny_runs.arguments(tmp_path, distill__steps=20)
    line[0] += f":{method}"
    assert main.main([*line, "--stage=approximate"]) == 0
    run = tmp_path / "run"
    flat = files.read_json(run / "config.json")
    config = configuration.default()
    config.update_from_flattened_dict({k: tuple(v) if isinstance(v, list) else v for k, v in flat.items()})
    config.distill.steps_per_call = 8
    images = np.load(tmp_path / "images.npz")["train_images"]
    with np.load(tmp_path / "features.npz") as archive:
        features = {name: archive[name] for name in archive.files if name != "test"}
    seen, lines = [], []

    def watch(now):
        seen.append((now.step, len(now.loss), now.make()))

    found = ssdd_jax.distill(images[..., 0], features, config=config, watch=watch, say=lines.append)
    same(found, ssdd_jax.load(run / "distilled"))
    assert config.data.name != "arrays"  # the caller's config is left as it was
    assert found.about["images"] == ssdd_jax.load(run / "distilled").about["images"]
    if method == "boost":
        assert "chosen by the data: storage.M=" in " ".join(lines)
        assert [(step, losses) for step, losses, _ in seen] == [(0, 0), (8, 8), (16, 8), (20, 4)]
        same(seen[-1][2], found)
        moved = [np.abs(one.arrays["image_bases"] - found.arrays["image_bases"]).max() for _, _, one in seen[:-1]]
        assert sorted(moved, reverse=True) == moved and moved[-1] > 0
    else:
        assert seen == []


@pytest.mark.medium
def test_views_without_features_are_left_out():
    """The features of the upright images would be wrong targets for the turned ones."""
    lines = []
    found = small({"train": FEATURES, "rot180": FEATURES}, say=lines.append)
    assert list(found.statics["views"]) == ["rot0", "rot180"]
    assert "there are none of the views rot90, rot270: distilling rot0, rot180 only" in " ".join(lines)


@pytest.mark.slow
def test_a_teacher_is_run_on_the_views_that_are_needed():
    """A function, and the features of all views that it would give, make the same set."""

    def teacher(images):
        counts.append(len(images))
        return np.tanh(images.reshape(len(images), -1)[:, :6] / 100.0)

    counts = []
    config = {"views": ["rot0", "rot90"]}
    by_function = small(teacher, config=config)
    # All images, the turned ones by which the sizes are chosen (here all), and those of the samples.
    assert sum(counts) == 60 + 60 + by_function.statics["images"]
    turned = np.rot90(IMAGES, axes=(1, 2))
    by_array = small({"train": teacher(IMAGES), "rot90": teacher(turned)}, config=config)
    same(by_function, by_array)


@pytest.mark.medium
@pytest.mark.parametrize(
    "method", ["random", "high_loss", *(pytest.param(name, marks=pytest.mark.slow) for name in ("krr_st", "mkdt"))]
)
def test_methods(method):
    found = small(method=method, N=5)
    images, targets = found.pairs()
    assert images.shape == (5, 8, 8, 3) and targets.shape == (5, 6)
    assert np.isfinite(images).all() and np.isfinite(targets).all()
    distance = np.abs(np.asarray(found.images())[:, None] * 255 - IMAGES[None]).max((2, 3, 4))
    rows = distance.argmin(1)
    if method in ("random", "high_loss"):
        assert (distance.min(1) < 1e-2).all() and len(set(rows)) == 5
        np.testing.assert_allclose(found.preprocessing.features(targets), FEATURES[rows], atol=1e-5)
    else:
        assert distance.min(1).max() > 1e-2
    assert found.about["method"] == {"random": "subset", "high_loss": "subset"}.get(method, method)


def test_seeds_differ():
    one, two, again = (small(method="random", seed=seed).images() for seed in (0, 1, 0))
    np.testing.assert_array_equal(one, again)
    assert (np.asarray(one) != np.asarray(two)).any()


def bad(array, row):
    copy = array.copy()
    copy[row, 0] = np.nan
    return copy


@pytest.mark.parametrize("method", ["boost_plus", "noise"])
def test_a_function_sees_the_images_that_are_made(method):
    """Their targets are its features of them, as they are decoded, up to 256 levels; the same again."""
    seen = []

    def mean_and_corner(images):
        assert images.dtype == np.uint8 and images.shape[1:] == IMAGES.shape[1:]
        seen.append(images)
        return np.concatenate([images.mean((1, 2)), images[:, 0, 0]], 1).astype(np.float32) / 255

    chosen = {"method": method, "config": {"storage.V": 6, "storage.U": 3}}
    distilled = small(mean_and_corner, **chosen)
    pairs = distilled.pairs()
    pixels = np.asarray(distilled.preprocessing.pixels(pairs[0]))
    expected = mean_and_corner(np.rint(255 * pixels).astype(np.uint8))
    assert np.abs(np.asarray(distilled.preprocessing.features(pairs[1])) - expected).max() < 3 / 255
    # All images of the data, and all that are made.
    assert sum(map(len, seen[:-1])) >= len(IMAGES) + len(pixels)
    for one, other in zip(pairs, small(mean_and_corner, **chosen).pairs(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_batch_of_equal_features_is_no_collapse():
    """The last composed images may look alike to the teacher; that all images of the data do would be one."""

    def only_of_many(images):
        return (FEATURES[:, :2] if len(images) == len(IMAGES) else np.ones((len(images), 2))).astype(np.float32)

    assert len(small(only_of_many, method="boost_plus", config={"storage.V": 1, "storage.U": 3}).pairs()[0]) > 3


def test_an_error_of_the_function_is_not_buried():
    """Not even where JAX calls it."""

    def fails(images):
        if len(images) < len(IMAGES):
            raise OSError("the weights are gone")
        return FEATURES

    with pytest.raises(OSError, match="the weights are gone"):
        small(fails, method="boost_plus", config={"storage.V": 1, "storage.U": 3})
    with pytest.raises(UserError, match=r"returned an array \(7,\)|features of views"):
        small(
            lambda images: FEATURES if len(images) == len(IMAGES) else np.full((len(images), 6), np.nan, np.float32),
            method="boost_plus",
            config={"storage.V": 1, "storage.U": 3},
        )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": IMAGES / 127.5 - 1}, r"images must be uint8, 0 to 255, not float64 from -1 to 1: .*127\.5"),
        ({"images": IMAGES[0, 0]}, r"images must have the shape .* not \(8, 3\)"),
        ({"images": IMAGES[..., :2]}, "with 1 or 3 channels last"),
        ({"images": IMAGES[:, :7]}, "7x8 .* cannot be halved"),
        ({"images": IMAGES[:40]}, "features of 60 images, the data set has 40"),
        ({"features": bad(FEATURES, 7)}, "not finite in float32, first at index 7"),
        ({"features": FEATURES.astype(int)}, r"must be floats of shape \(n, D\), not int64"),
        ({"features": FEATURES[:, 0]}, r"must be floats of shape \(n, D\)"),
        ({"features": {"rot90": FEATURES}}, "no array named train"),
        ({"features": {"train": FEATURES, "turned": FEATURES}}, "'turned'.* is neither train nor a view"),
        ({"features": {"train": FEATURES, "rot90": FEATURES[:, :3]}}, "6 dimensions in train and 3 in rot90"),
        ({"features": lambda images: images.mean((1, 2, 3))}, r"returned an array \(60,\) for 60 images"),
        ({"features": lambda images: np.zeros((3, 2))}, r"returned an array \(3, 2\) for 60 images"),
        ({"N": 61}, "storage.N=61 asks for more images than the 60"),
        ({"config": {"storage.bytes": 4000}}, "N and config storage.bytes are two budgets"),
        ({"N": "ten"}, "N='ten' is not an int"),
        ({"N": True}, "N=True is not an int"),
        ({"seed": True}, "seed=True is not an int"),
        ({"steps": -1}, "distill.steps=-1 is out of range"),
        ({"method": "magic"}, "method='magic' is out of range"),
        ({"method": "scdd"}, "method='scdd' runs the teacher's network, but only its features"),
        ({"method": "boost_plus"}, "method='composed' runs the teacher's network.*, or pass the teacher as a function"),
        ({"config": {"pool.sise": 4}}, "unknown config key 'pool.sise': did you mean 'pool.size'"),
        ({"config": {"pool.size": "four"}}, "pool.size='four' is not an int"),
        ({"config": {"storage.N": 4}}, "pass it as the argument N="),
        ({"config": {"data.name": "digits"}}, "'data.name' has no effect here"),
        ({"config": {"student.widths": (4,) * 4}}, "cannot be halved 4 times"),
    ],
)
def test_refusals(changes, words):
    with pytest.raises(UserError, match=words) as error:
        small(**changes)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_loss_that_is_no_number_says_what_to_try_here():
    with pytest.raises(UserError, match=r"not a number at step \d+; try a smaller config.distill.*ridge_scale$"):
        small(steps=6, config={"inner.learning_rate": 1e30})


def test_published_settings_on_an_accelerator():
    at_32 = defaults.choose((32, 32, 3), 50_000)
    assert tuple(at_32.student.widths) == (128, 256, 512)
    assert (at_32.storage.N, at_32.storage.M, at_32.storage.base_size, at_32.storage.hidden) == (100, 0, 0, 4)
    assert (at_32.distill.steps, at_32.distill.learning_rate, at_32.distill.batch_size) == (30_000, 1e-3, 1024)
    at_64 = defaults.choose((64, 64, 3), 100_000)
    assert tuple(at_64.student.widths) == (64, 128, 256, 512)
    assert (at_64.storage.base_size, at_64.storage.hidden) == (0, 16)
    assert defaults.choose((32, 32, 3), 50_000, method="krr_st").distill.learning_rate == 1e-4


def test_few_steps_are_larger_ones():
    rates = [defaults.choose((32, 32, 3), 5000, steps=steps).distill.learning_rate for steps in (100, 5000, 20_000)]
    assert rates[0] > rates[1] > rates[2] == 1e-3


@pytest.mark.parametrize("accelerator", [True, False])
@pytest.mark.parametrize("method", ["boost", "krr_st", "mkdt", "random", "kmeans", "high_loss", "subset"])
@pytest.mark.parametrize("shape", [(8, 8, 1), (16, 16, 1), (28, 28, 1), (32, 32, 3), (48, 96, 3), (224, 224, 3)])
def test_what_is_chosen_works(shape, method, accelerator):
    for images in (12, 3000):
        config = defaults.choose(shape, images, method=method, accelerator=accelerator)
        configuration.validate(config)
        made = methods.make(config, methods.Problem(shape, 64, images))
        assert made.steps == 0 or made.steps == config.distill.steps
        assert config.storage.N <= images and made.samples <= images


@pytest.mark.slow
def test_evaluation_of_arrays(tmp_path):
    """Three lines from arrays to a table; what is kept by content is that of the arrays."""
    labels = np.arange(60) % 3
    distilled = small(method="random")
    target = {"mine": (IMAGES[:40], labels[:40], IMAGES[40:], labels[40:])}
    options = {"models": ["convnet_4_8_bn"], "seeds": 2, "steps": 2, "full_steps": 1, "weight_decays": 1e-3}
    options |= {"workdir": tmp_path, "say": lambda line: None}
    found = ssdd_jax.evaluate(distilled, targets=target, source=(IMAGES, FEATURES), **options)
    rows = {row["entry"]: row for row in found["rows"]}
    assert {"distilled", "random_real", "random_init", "full_data", "chance"} <= set(rows)
    assert {row["target"] for row in found["rows"]} == {"mine"}
    assert rows["chance"]["mean"] == 33.3333
    for arrays, words in [
        (target["mine"][:3], "give training images, their labels"),
        ((IMAGES, labels / 2, IMAGES, labels), "target mine holds labels as float64 .* one whole number or name"),
        ((IMAGES, labels[:5], IMAGES, labels), "target mine holds 5 labels for 60 images"),
        ((IMAGES / 255 - 1, labels, IMAGES, labels), "target mine: images must be uint8, 0 to 255, not float64"),
    ]:
        with pytest.raises(UserError, match=words):
            ssdd_jax.evaluate(distilled, targets={"mine": arrays}, **options)


def test_saved_and_loaded(tmp_path):
    distilled = small(method="random")
    distilled.save(tmp_path / "set")
    same(ssdd_jax.load(tmp_path / "set"), distilled)


@pytest.mark.medium
def test_a_student_learns_the_pairs():
    """Its predictions, undone by the set's preprocessing, come near the teacher's features; seeds and rates matter."""
    distilled = small(method="random", N=20)
    options = {"model": "convnet_4_8_bn", "batch_size": 20}
    trained, fresh = (ssdd_jax.train(distilled, epochs=epochs, **options) for epochs in (60, 1))
    inputs, targets = distilled.pairs()

    def error(student):
        _, predicted = student.network.apply(student.variables, inputs, train=False)
        return float(np.square(np.asarray(predicted - targets)).mean())

    assert error(trained) < 0.5 * error(fresh)
    features = trained.features(IMAGES)
    assert features.shape == (60, 2 * 2 * 8)
    rows = np.abs(np.asarray(distilled.images())[:, None] * 255 - IMAGES[None]).max((2, 3, 4)).argmin(1)
    known, _ = trained.network.apply(trained.variables, inputs, train=False)
    np.testing.assert_allclose(features[rows], known, atol=1e-4)
    other = ssdd_jax.train(distilled, epochs=1, seed=1, **options)
    assert np.abs(other.features(IMAGES[:5]) - fresh.features(IMAGES[:5])).max() > 1e-3
    for shape in ((2, 9, 8, 3), (2, 8, 8, 1)):
        with pytest.raises(UserError, match="and the network was trained on 8x8x3"):
            trained.features(np.zeros(shape, np.uint8))
    for changes, words in [
        ({"model": "resnet99"}, "resnet99"),
        ({"model": None}, "None"),
        ({"epochs": 0}, "epochs=0 is out of range: it must be a whole number of at least 1"),
        ({"epochs": 1.5}, r"epochs=1\.5 is out of range"),
        ({"batch_size": 1}, "batch_size=1 is out of range: it must be a whole number of at least 2"),
        ({"learning_rate": 1e20}, "diverged at the learning_rate 1e"),
        ({"learning_rate": float("nan")}, "learning_rate=nan is out of range: it must be a number above 0"),
        ({"learning_rate": "a"}, "learning_rate='a' is out of range"),
    ]:
        with pytest.raises(UserError, match=words):
            ssdd_jax.train(distilled, **{**options, "epochs": 2, **changes})
    np.testing.assert_array_equal(trained.features(IMAGES / 255), features)
    with pytest.raises(UserError, match="images must be uint8"):
        trained.features(IMAGES / 255 - 0.5)
