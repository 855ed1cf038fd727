"""Sets of composed images: what is stored, whose features the targets are, and the sizes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import CHANNELS, SIZE, make_run, prepare, problem, small_config

from ssdd_jax import methods, teacher
from ssdd_jax.data import preprocess
from ssdd_jax.errors import UserError
from ssdd_jax.methods import budget, composed

pytestmark = pytest.mark.medium

LOW = 4 * 4 * CHANNELS


def config_of(**changes):
    chosen = small_config("composed")
    chosen.update_from_flattened_dict(changes)
    return chosen


def plan(**changes):
    chosen = config_of(**changes)
    return composed.plan_of(chosen, problem(chosen))


def made(folder, **changes):
    """A run and its exported set."""
    folder.mkdir(exist_ok=True)
    chosen = config_of(**changes)
    run = prepare(make_run(folder, methods.counted(chosen, problem(chosen))))
    source = run.start()
    return run, run.method.export(jax.random.key(5), jax.jit(run.method.init)(run.key("distill"), source), source)


def test_targets_are_the_teachers_features_of_the_composed_images(tmp_path):
    """With as many bases as features exactly; with fewer the best approximation of that rank."""
    for V in (16, 3):
        run, found = made(tmp_path / str(V), **{"storage.V": V, "storage.U": 4, "storage.M": 40})
        images, targets = found.pairs()
        features = jax.jit(teacher.features_of_inputs)(run.backbone(), images)
        exact = np.asarray(found.preprocessing.targets(features), np.float64)
        values = np.linalg.svd(exact - exact.mean(0)[None], compute_uv=False)
        left = np.sqrt(np.square(values[V:]).sum())
        np.testing.assert_allclose(np.linalg.norm(targets - exact), left, rtol=1e-3, atol=1e-3 * values[0])
        assert len(images) == 40 and found.numbers_stored() == sum(run.method.parts.values())
        assert (left > 0.1 * values[0]) == (V == 3)


def test_stored_images_are_those_of_the_data(tmp_path):
    run, found = made(tmp_path, **{"storage.base_size": SIZE})
    rows = run.samples().rows
    constants = preprocess.fit(run.dataset.train_images, run.features().train)
    np.testing.assert_array_equal(found.arrays["images"], constants.images(jnp.asarray(run.dataset.train_images[rows])))
    assert len(rows) == run.method.samples == len(set(rows.tolist()))


def test_every_seed_has_its_own_table(tmp_path):
    sets = [made(tmp_path / str(seed), **{"seed": seed, "storage.N": 6})[1] for seed in (0, 1)]
    assert [one.statics["seed"] for one in sets] == [0, 1]
    again = made(tmp_path / "again", **{"seed": 1, "storage.N": 6})[1]
    for one, other in zip(again.pairs(), sets[1].pairs(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(sets[0].pairs()[0], sets[1].pairs()[0])


def test_sizes_use_the_budget():
    found = plan()
    assert found.budget == 6 * (SIZE * SIZE * CHANNELS + 16)
    # One more of anything would not fit, and images keep to their share.
    assert found.budget - found.V < found.used <= found.budget
    free = found.budget - found.dim  # without the mean
    assert found.U * LOW <= composed.IMAGE_SHARE * free < (found.U + 1) * LOW
    larger = plan(**{"storage.N": 30})
    assert larger.V == composed.FEATURE_BASES and larger.M > 4 * found.M


def sizes_at(N, *, image_shape=(32, 32, 3), dim=256, **changes):
    chosen = config_of(**{"storage.N": N, "storage.base_size": 0, **changes})
    return composed.plan_of(chosen, problem(chosen)._replace(image_shape=image_shape, dim=dim, images=50_000))


def test_full_resolution_where_enough_images_fit():
    """Half of it otherwise, if that is not too small to see anything; the number that is given is enough."""
    found = {N: sizes_at(N) for N in (5, 20, 30, 100)}
    assert [one.low[0] for one in found.values()] == [16, 16, 32, 32]
    assert all((one.low[0] == 32) == (in_full(one) >= composed.LEAST_IMAGES) for one in found.values())
    # In the proportion of the images; 10 pixels would be too few.
    assert sizes_at(4, image_shape=(32, 48, 1)).low == (16, 24, 1)
    assert sizes_at(4, image_shape=(20, 20, 3)).low == (20, 20, 3)
    assert sizes_at(20, **{"storage.U": 5}).low[0] == 32 and sizes_at(20, **{"storage.U": 9}).low[0] == 16
    assert sizes_at(100, **{"storage.base_size": 8}).low[0] == 8


def test_all_images_in_full_where_there_are_few():
    chosen = config_of(**{"storage.N": 7, "storage.base_size": 0})
    few = problem(chosen)._replace(image_shape=(32, 32, 3), dim=20_000, images=7)
    found = composed.plan_of(chosen, few)
    assert found.U == 7 < composed.LEAST_IMAGES and found.low == (32, 32, 3)


def test_large_images_are_not_refused_before_their_codes_are_known():
    """As int8 a single one exceeds the budget; coded, two of them fit, and thousands of pairs."""
    chosen = config_of(**{"storage.bytes": 32_768, "storage.base_size": 0, "storage.V": 0})
    large = problem(chosen)._replace(image_shape=(224, 224, 3), dim=512, images=5000)
    methods.make(methods.counted(chosen, large), large)
    found = composed.plan_of(chosen, large, lambda low: 0.08 * low[0] * low[1] * 3)
    assert found.U > 1 and found.M > 1000
    with pytest.raises(UserError, match="feature bases need more than"):
        composed.plan_of(chosen, large, lambda low: 40_000.0)


def in_full(sizes):
    return int(composed.IMAGE_SHARE * (sizes.budget - sizes.dim)) // (32 * 32 * 3)


def test_bases_are_doubled_where_enough_pairs_are_left():
    found = [sizes_at(N) for N in (10, 20, 30, 100, 300, 10_000)]
    assert [one.V for one in found] == [12, 12, 24, 24, 48, 192]  # 384 are more than the features have numbers
    assert all(one.M >= composed.PAIRS_PER_BASE * one.V for one in found[2:])
    assert sizes_at(100, **{"storage.M": 5000}).V == 12 and sizes_at(100, **{"storage.V": 5}).V == 5


@pytest.mark.parametrize("key", ["U", "V", "M"])
def test_a_size_that_is_given_stays(key):
    given = {"U": 2, "V": 5, "M": 20}[key]
    found = plan(**{f"storage.{key}": given})
    assert getattr(found, key) == given
    assert found.used <= found.budget
    if key == "M":  # then what is left goes to the images
        assert found.U > plan().U and found.budget - found.used < LOW


def test_fewer_bases_in_a_small_budget():
    found = plan(**{"storage.N": 2})
    assert 1 <= found.V < composed.FEATURE_BASES and found.V < found.M


def test_the_constants_of_a_small_file_take_nothing_from_the_bases():
    """The header and the data set's constants are a large part of it, and every set has them."""
    found = plan(**{"storage.bytes": 1500, "storage.images": "int8"})
    assert dataclasses.replace(found, U=0, V=0, M=0).used > composed.BASES_SHARE * 1500
    assert found.V == composed.FEATURE_BASES and 10 < found.M < 500


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"storage.M": 1000}, "storage exceeds the budget: .*lower storage.M, U, V or base_size, or raise storage.N"),
        # A code is fitted to a budget in bytes only.
        ({"storage.M": 1000, "storage.images": "webp"}, "storage exceeds the budget"),
        ({"storage.bytes": 300}, "storage exceeds the budget|holds not even one"),
        ({"storage.V": 17}, "storage.V=17 is more than the 16 numbers of a feature"),
        ({"storage.U": 41, "storage.N": 40}, "storage.U=41 is more than the 40 images"),
        ({"storage.V": 16, "storage.M": 10}, "storage.V=16 feature bases need more than 16 composed images"),
    ],
)
def test_what_does_not_fit_is_refused(changes, words):
    chosen = config_of(**changes)
    if "storage.bytes" in changes:
        chosen.storage.images = "int8"
    with pytest.raises(UserError, match=words):
        methods.make(methods.counted(chosen, problem(chosen)), problem(chosen))


def test_bytes_code_the_images_and_spend_the_rest_on_pairs(tmp_path):
    """More images and pairs than in int8, in a file within the budget."""
    limit = {"storage.bytes": 6000, "storage.base_size": 0}
    run, coded = made(tmp_path / "coded", **limit)
    _, plain = made(tmp_path / "plain", **limit, **{"storage.images": "int8", "storage.targets": "int8"})
    precisions = [{name: part.precision for name, part in one.stored.items()} for one in (coded, plain)]
    assert precisions[0]["images"] == "webp" and precisions[0]["feature_coefficients"] == budget.CODED_TARGETS
    assert precisions[1]["images"] == precisions[1]["feature_coefficients"] == "int8"
    assert all(0.8 * 6000 < one.bytes_stored() <= 6000 for one in (coded, plain))
    assert len(coded.arrays["feature_coefficients"]) > len(plain.arrays["feature_coefficients"])
    # What was chosen is in the config from then on.
    chosen = run.config.storage
    assert coded.arrays["images"].shape == (chosen.U, chosen.base_size, SIZE, CHANNELS)
    assert run.method.samples == chosen.U
