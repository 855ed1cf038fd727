"""Sets with a budget in bytes: the file keeps to it, and what was learned is what is stored."""

import jax
import numpy as np
import pytest
from helpers import make_run, prepare, problem, small_config

from ssdd_jax import config as configuration
from ssdd_jax import distilled, methods
from ssdd_jax.errors import UserError
from ssdd_jax.methods import boost, budget
from ssdd_jax.storage import quantize

pytestmark = pytest.mark.medium

LIMIT = 5000
LEARNED = ("boost", "krr_st")


def made(folder, name, **changes):
    """A run with a budget in bytes, its exported set, and the state that it was exported from."""
    chosen = small_config(name)
    chosen.storage.bytes = LIMIT
    chosen.update_from_flattened_dict(changes)
    run = prepare(make_run(folder, methods.counted(chosen, problem(chosen))))
    source = run.source()
    state = jax.jit(run.method.init)(jax.random.key(0), source)
    if run.method.step is not None:
        feed = run.method.feed and run.method.feed(run)
        items = (jax.tree.map(lambda leaf: leaf[0], feed(0, 1)),) if feed else ()
        state, _ = jax.jit(run.method.step)(state, source, *items)
    return run, run.method.export(jax.random.key(5), state, source), state


@pytest.mark.parametrize("name", methods.METHODS)
def test_the_file_keeps_to_the_budget(name, tmp_path):
    run, exported, _ = made(tmp_path, name)
    exported.save(tmp_path / "set")
    size = (tmp_path / "set" / "set.safetensors").stat().st_size
    assert size <= LIMIT and exported.stored is not None
    # More than in float32; most of the budget, if nothing could be shortened as smooth images can.
    raw = sum(quantize.size(p.shape, p.precision) for p in exported.stored.values() if p.precision in quantize.BITS)
    assert max(size, raw) > 0.6 * LIMIT and exported.numbers_stored() > LIMIT / 4
    back = distilled.load(tmp_path / "set")
    for one, other in zip(exported.pairs(), back.pairs(), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
    codes = {part.precision for part in exported.stored.values()}
    assert ("webp" in codes) == (name in ("composed", "subset", "rela"))


@pytest.mark.parametrize("precision", ["int8", "int4", "float16"])
@pytest.mark.parametrize("name", LEARNED)
def test_what_is_learned_is_what_is_stored(name, precision, tmp_path):
    """The images and first targets that the last step decoded are those of the set, to the bit."""
    changes = {"storage.images": precision, "storage.targets": precision}
    run, exported, state = made(tmp_path, name, **changes)
    params, plan = state.outer.params, budget.precisions(run.config)
    assert plan == (precision, precision)
    if name == "boost":
        params = boost.rounded(params, *plan)
        np.testing.assert_array_equal(np.asarray(params.image_bases), np.asarray(exported.arrays["image_bases"]))
        np.testing.assert_array_equal(
            np.asarray(params.feature_coefficients[0]), np.asarray(exported.arrays["feature_coefficients"])
        )
    else:
        assert set(exported.arrays) == {"images", "targets"}
        unequal = np.asarray(params[0]) != np.asarray(exported.arrays["images"])
        assert unequal.mean() > 0.5  # the parameters themselves are finer


@pytest.mark.parametrize("joint", [False, True])
def test_rounded_parameters_are_learned(joint, tmp_path):
    """The step's loss is that of the rounded set: with two bits it differs from the exact one, and has a gradient."""
    losses = {}
    for precision in ("float32", "int2"):
        folder = tmp_path / precision
        folder.mkdir()
        changes = {"storage.bytes": 0, "storage.images": precision, "storage.targets": precision}
        chosen = small_config("boost")
        chosen.update_from_flattened_dict(changes | {"approximate.joint": joint})
        run = prepare(make_run(folder, chosen))
        source = run.source()
        state, info = jax.jit(run.method.step)(jax.jit(run.method.init)(jax.random.key(0), source), source)
        losses[precision] = float(info.loss)
        assert float(info.gradient_norm) > 0
    assert abs(losses["int2"] - losses["float32"]) > 1e-3 * losses["float32"]


def test_a_quality_is_of_lossy_codes():
    config = configuration.default()
    config.update_from_flattened_dict({"method": "krr_st", "storage.N": 4, "storage.quality": 90})
    with pytest.raises(UserError, match="config.storage.quality=90 is of images in webp or jpeg.*stored in float32"):
        methods.make(config, methods.Problem((8, 8, 1), 12, 1000))


def test_a_subset_takes_the_quality_that_fits(tmp_path):
    coarse, fine = (made(tmp_path / f"{q}", "subset", **{"storage.quality": q})[1] for q in (5, 90))
    assert len(coarse.images()) >= len(fine.images()) and max(coarse.bytes_stored(), fine.bytes_stored()) <= LIMIT


@pytest.mark.parametrize("name", LEARNED)
def test_learned_images_are_not_coded(name, tmp_path):
    with pytest.raises(UserError, match=f"'png' codes images of the data, and config.method={name} learns others"):
        made(tmp_path, name, **{"storage.images": "png"})


@pytest.mark.parametrize("name", ["subset", "composed"])
@pytest.mark.parametrize("limit", [3000, 5000])
def test_a_code_without_a_quality_fits_too(name, limit, tmp_path):
    """A small picture has more bytes an image than a large one, and PNG no quality that could be lowered."""
    chosen = {"storage.images": "png", "storage.bytes": limit}
    _, exported, _ = made(tmp_path, name, **chosen)
    assert 0.6 * limit < exported.bytes_stored() <= limit


def test_no_method_fits_into_nothing():
    chosen = small_config("boost")
    chosen.storage.bytes = 300
    counted = methods.counted(chosen, problem(chosen))
    with pytest.raises(UserError, match=r"exceeds the budget even with .* bytes > 300 = storage.bytes"):
        methods.make(counted, problem(counted))
