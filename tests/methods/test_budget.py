"""The plan of a parameterized set and its budget."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from helpers import params
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ssdd_jax import approximate, decoder, distilled, methods
from ssdd_jax import config as configuration
from ssdd_jax.data import preprocess
from ssdd_jax.errors import UserError
from ssdd_jax.methods import boost, budget
from ssdd_jax.methods.base import Problem
from ssdd_jax.storage import packing

CIFAR = {"image_shape": (32, 32, 3), "dim": 512, "base_size": (16, 16), "views": 4, "hidden": 4, "images": 50_000}


@st.composite
def problems(draw):
    side = draw(st.sampled_from((8, 12, 16, 32)))
    return {
        "N": draw(st.integers(1, 300)),
        "image_shape": (side, side, draw(st.sampled_from((1, 3)))),
        "dim": draw(st.integers(2, 700)),
        "base_size": (draw(st.integers(2, side)),) * 2,
        "views": draw(st.integers(1, 8)),
        "hidden": draw(st.integers(1, 16)),
        "images": draw(st.integers(300, 5000)),
    }


def fits(plan):
    height, width, channels = plan.image_shape
    return plan.numbers <= plan.N * (height * width * channels + plan.dim) == plan.budget


def tried(**options):
    """The plan, or None where it is refused for the budget."""
    try:
        return budget.plan(**options)
    except UserError as error:
        assert "exceeds the budget" in str(error)
        return None


@settings(deadline=None, max_examples=150)
@given(problem=problems())
def test_open_plans_use_the_budget(problem):
    plan = tried(**problem)
    height, width, channels = problem["image_shape"]
    one = height * width * channels + problem["dim"]
    least = sum(budget.Sizes(M=1, U=1, V=1, **{k: v for k, v in problem.items() if k != "images"}).parts.values())
    if plan is None:
        assert least > problem["N"] * one
        return
    assert fits(plan)
    assert 1 <= plan.U <= min(math.prod(plan.base_size) * channels, problem["images"] - 1)
    assert 1 <= plan.V <= min(plan.dim, problem["images"] - 1) and 1 <= plan.M <= problem["images"]
    # Where the smallest plan is a small part of the budget, and there are images left to decode into.
    assume(20 * least < plan.budget and plan.M < problem["images"])
    assert plan.numbers > 0.9 * plan.budget


@settings(deadline=None, max_examples=100)
@given(problem=problems(), M=st.integers(0, 40), U=st.integers(0, 30), V=st.integers(0, 30))
def test_given_sizes_are_kept(problem, M, U, V):
    low = math.prod(problem["base_size"]) * problem["image_shape"][-1]
    assume(low >= U and problem["dim"] >= V)
    plan = tried(**problem, M=M, U=U, V=V)
    if plan is not None:
        assert fits(plan)
        assert all(given in (0, chosen) for given, chosen in ((M, plan.M), (U, plan.U), (V, plan.V)))


@settings(deadline=None, max_examples=10)
@given(N=st.integers(5, 9), views=st.sampled_from((("rot0",), ("rot0", "rot90", "flip"))), hidden=st.integers(1, 3))
def test_numbers_are_those_of_the_set(N, views, hidden):
    plan = budget.plan(N=N, image_shape=(8, 8, 3), dim=6, base_size=(4, 4), views=len(views), hidden=hidden, images=60)
    made = params(M=plan.M, U=plan.U, V=plan.V, views=views)
    assert isinstance(made, decoder.Params)
    shapes = {
        "hidden_kernel": (plan.V, hidden), "hidden_bias": (hidden,),
        "out_kernel": (hidden, plan.V), "out_bias": (plan.V,),
    }  # fmt: skip
    empty = np.zeros
    networks = approximate.Networks(**{name: empty((len(views) - 1, *shape)) for name, shape in shapes.items()})
    constants = preprocess.Preprocessing(*(empty(n) for n in (3, 3, 6)), empty(()))
    stored = distilled.from_params(made, networks, constants).numbers_stored()
    assert stored == plan.numbers == sum(plan.parts.values())
    assert stored <= N * (8 * 8 * 3 + 6)


def test_more_images_than_the_budget_holds():
    """What parameterization is for: 100 images' storage decodes into several times as many."""
    plan = budget.plan(N=100, **CIFAR)
    assert plan.M >= 100 * budget.IMAGES_PER_N >= 200
    assert plan.numbers > 0.99 * plan.budget == 0.99 * 100 * (32 * 32 * 3 + 512)


def errors(most, decay):
    """An error that falls by a constant factor with every base."""
    return decay ** np.arange(most + 1.0)


def test_bases_are_spent_where_they_save_most():
    """Of all pairs that fit, the one with the least sum: images that need few bases leave the budget to targets."""
    start = budget.plan(N=10, M=20, **CIFAR)
    for image_decay, feature_decay in ((0.7, 0.97), (0.97, 0.9), (0.9, 0.9)):
        images, targets = errors(768, image_decay), errors(512, feature_decay)
        found = budget.fit(start, images, targets, free=("U", "V"), most=50_000)
        sizes = [dataclasses.replace(start, U=U, V=V) for U in range(1, 40) for V in range(1, 60)]
        least = min(images[one.U] + targets[one.V] for one in sizes if fits_sizes(one))
        assert fits_sizes(found) and found.M == 20
        assert images[found.U] + targets[found.V] <= least + 1e-12


def test_weighted_images_get_more_bases():
    """And the weighted sum is the least of all sizes that fit."""
    start, images, targets = budget.plan(N=10, M=20, **CIFAR), errors(768, 0.95), errors(512, 0.95)
    plain, weighted = (
        budget.fit(start, images, targets, free=("U", "V"), most=50_000, image_weight=weight) for weight in (1.0, 8.0)
    )
    assert weighted.U > plain.U and weighted.V < plain.V and fits_sizes(weighted)
    sizes = [dataclasses.replace(start, U=U, V=V) for U in range(1, 40) for V in range(1, 60)]
    least = min(8 * images[one.U] + targets[one.V] for one in sizes if fits_sizes(one))
    assert 8 * images[weighted.U] + targets[weighted.V] <= least + 1e-12


def fits_sizes(sizes):
    return sizes.numbers <= sizes.budget


def test_as_many_images_as_cost_little_error():
    """M grows while the error stays within the tolerance of that of M = N, and no further."""
    start = budget.plan(N=100, **CIFAR)
    easy = budget.fit(start, errors(768, 0.8), errors(512, 0.8), free=("M", "U", "V"), most=50_000)
    assert easy.M == 100 * budget.MULTIPLES[-1] and fits_sizes(easy)
    hard = budget.fit(start, errors(768, 0.99), errors(512, 0.99), free=("M", "U", "V"), most=50_000)
    assert 100 <= hard.M < easy.M
    errors_of = []
    for M in (100, hard.M, 100 * budget.MULTIPLES[budget.MULTIPLES.index(hard.M // 100) + 1]):
        one = budget.fit(dataclasses.replace(start, M=M), errors(768, 0.99), errors(512, 0.99), free=("U", "V"), most=M)
        errors_of.append(0.99**one.U + 0.99**one.V)
    assert errors_of[1] <= errors_of[0] + 0.05 < errors_of[2]
    more = budget.fit(start, errors(768, 0.99), errors(512, 0.99), free=("M", "U", "V"), most=50_000, tolerance=0.3)
    assert hard.M < more.M and fits_sizes(more)
    few = budget.fit(start, errors(768, 0.8), errors(512, 0.8), free=("M", "U", "V"), most=250)
    assert few.M == 250


def test_what_is_given_stays():
    start = budget.plan(N=100, M=150, U=80, **CIFAR)
    found = budget.fit(start, errors(768, 0.9), errors(512, 0.9), free=("V",), most=50_000)
    assert (found.M, found.U) == (150, 80) and fits_sizes(found)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"N": 60_000}, "storage.N=60000 asks for more images than the 50000 there are"),
        ({"N": 10, "U": 769}, "storage.U=769 is too many for the 768 numbers of a base.*at most 768"),
        ({"N": 10, "V": 513}, "storage.V=513 is too many for the 512 numbers of a feature.*at most 512"),
        ({"N": 10, "M": 50_001}, "storage.M=50001 is too many for the images: at most 50000"),
        ({"N": 10, "U": 400}, "even with M, V as small as possible"),
    ],
)
def test_refusals(changes, message):
    with pytest.raises(UserError, match=message):
        budget.plan(**(CIFAR | changes))


def test_refusal_writes_out_the_sum():
    with pytest.raises(UserError) as caught:
        budget.plan(N=2, M=10, U=8, V=4, **CIFAR)
    text = str(caught.value)
    parts = budget.Sizes(2, 10, 8, 4, 4, 4, (32, 32, 3), (16, 16), 512).parts
    assert parts["image bases"] == 8 * 16 * 16 * 3 and parts["image coefficients"] == 80
    assert parts["feature bases"] == 4 * 512 and parts["feature coefficients"] == 40
    assert parts["image mean"] == 768 and parts["feature mean"] == 512
    assert parts["approximation networks"] == 3 * (4 * 4 + 4 + 4 * 4 + 4)
    for part, count in parts.items():
        assert f"{count:,} ({part})" in text
    assert f"= {sum(parts.values()):,} > {2 * 3584:,} = N (HWC + D) with N=2" in text


@pytest.mark.parametrize("count", [1, 39, 40])
def test_pairs_that_are_there(count):
    assert budget.check_pairs(count, 40) == count


def test_more_pairs_than_images():
    """As many as there are would do."""
    with pytest.raises(UserError, match="storage.N=41 asks for more images than the 40 there are: .* at most 40$"):
        budget.check_pairs(41, 40)


@settings(deadline=None, max_examples=30)
@given(
    problem=problems(),
    limit=st.integers(3000, 400_000),
    images=st.sampled_from(("float16", "int8", "int5")),
    targets=st.sampled_from(("float32", "int8", "int6")),
)
def test_a_plan_in_bytes_bounds_the_file(problem, limit, images, targets):
    """The file of a set of the planned sizes, written with numbers that mean nothing."""
    assume(problem["dim"] * problem["image_shape"][0] < 6000)
    stored = {"bytes": limit, "image_precision": images, "target_precision": targets}
    plan = tried(**problem, stored=stored)
    if plan is None:
        return
    assert plan.fits and plan.budget == limit
    generator = np.random.default_rng(0)
    others, low = plan.views - 1, (*plan.base_size, plan.image_shape[2])
    shapes = jax.eval_shape(lambda: approximate.init(jax.random.key(0), plan.views, plan.V, plan.hidden))
    networks = jax.tree.map(lambda leaf: generator.normal(size=leaf.shape), shapes)
    made = distilled.from_params(
        decoder.Params(
            generator.normal(size=(plan.U, *low)),
            generator.normal(size=(plan.M, plan.U)),
            generator.normal(size=low),
            generator.normal(size=(plan.V, plan.dim)),
            generator.normal(size=(plan.views, plan.M, plan.V)),
            generator.normal(size=plan.dim),
            image_size=plan.image_shape[:2],
            views=tuple(f"view{k}" for k in range(plan.views)),
        ),
        networks,
        preprocess.Preprocessing(
            np.ones(low[2], np.float32),
            np.ones(low[2], np.float32),
            np.float32(generator.normal(size=plan.dim)),
            np.float32(1),
        ),
    )
    assert made.arrays["networks.out_bias"].shape == (others, plan.V)
    size = distilled.pack(made, images=images, targets=targets).bytes_stored()
    assert 0.7 * plan.file_size - 300 <= size <= plan.file_size


def test_precisions_are_chosen_by_what_they_lose():
    sizes = budget.Sizes(4, 8, 4, 4, 4, 2, (16, 16, 3), (8, 8), 32, bytes=20_000)
    errors = np.linspace(1, 0, 60) ** 2
    exact, coarse, useless = ("int8", "int8"), ("int4", "int4"), ("int3", "int3")

    def chosen(lost):
        return budget.fit(sizes, errors, errors[:32], free=("M", "U", "V"), most=1000, lost=lost)

    fine = chosen({exact: (0.0, 0.0)})
    # Half the bits hold more bases, and are taken where they lose less than those win.
    more = chosen({exact: (0.0, 0.0), coarse: (0.001, 0.001)})
    assert (more.image_precision, more.target_precision) == coarse
    assert more.fits and fine.fits and (more.M, more.U) > (fine.M, fine.U)
    again = chosen({exact: (0.0, 0.0), useless: (0.9, 0.9)})
    assert (again.image_precision, again.target_precision) == exact and again == fine


@pytest.mark.parametrize(("images", "targets"), [("int8", "int8"), ("float16", "int4"), ("float32", "float32")])
def test_as_many_pairs_as_the_bytes_hold(images, targets):
    problem = Problem((8, 8, 1), 16, 5000)
    config = configuration.default()
    config.storage.update(bytes=9000, images=images, targets=targets)
    count = budget.pairs(config, problem)
    sizes = [
        packing.size({"images": (k, 8, 8, 1), "targets": (k, 16)}, images=images, targets=targets, channels=1, dim=16)
        for k in (count, count + 1)
    ]
    assert sizes[0] <= 9000 < sizes[1] and count > 10
    # Coded images take what they are said to.
    config.storage.images = "webp"
    assert budget.pairs(config, problem, coded=10.0) > budget.pairs(config, problem, coded=30.0) > 50


def test_bytes_that_hold_nothing_are_refused():
    config = configuration.default()
    problem = Problem((32, 32, 3), 16, 5000, network=True)
    config.storage.bytes = 400
    with pytest.raises(UserError, match="storage.bytes=400 holds not even one image with its target"):
        budget.counted(config, problem)
    # How many coded ones there is room for is known once they are coded, but that there is none before.
    assert budget.counted(config, problem, coded=True).storage.N == 1
    for code in ("webp", "png", "jpeg"):
        config.storage.update(bytes=200, images=code)
        with pytest.raises(UserError, match="storage.bytes=200 holds not even one image with its target"):
            budget.counted(config, problem, coded=True)


def test_bytes_that_hold_no_composed_set_are_refused_before_any_work():
    """A basis and the mean of the features are as long as these, and the data can say nothing else."""
    config = configuration.edit(configuration.default(), "boost_plus")
    config.storage.bytes, problem = 2400, Problem((32, 32, 3), 512, 5000, network=True)
    with pytest.raises(UserError, match=r"storage.bytes=2,400 holds no set: .* take about 2,\d\d\d bytes; raise it"):
        methods.make(methods.counted(config, problem), problem)
    config.storage.bytes = 2800
    assert methods.make(methods.counted(config, problem), problem).shapes


def test_bases_may_fit_where_no_image_does():
    """Also in a precision that is coarser than the one that is planned with, if the data are to decide it."""
    config, problem = configuration.default(), Problem((64, 64, 3), 512, 5000)
    config.storage.update(bytes=8192, M=8, U=2, V=2)
    assert methods.make(methods.counted(config, problem), problem).shapes
    config.method = "krr_st"
    with pytest.raises(UserError, match="holds not even one image"):
        methods.counted(config, problem)
    config.method, problem = "boost", Problem((32, 32, 3), 256, 5000)
    config.storage.update(bytes=20_000, M=240, U=20, V=16)
    assert boost.plan_of(methods.counted(config, problem), problem).image_precision != "int8"
    config.storage.update(images="int8", targets="int8")
    with pytest.raises(UserError, match="storage exceeds the budget"):
        boost.plan_of(methods.counted(config, problem), problem)
    with pytest.raises(UserError, match="needs at least two training images"):
        boost.plan_of(configuration.edit(default_of(1), "boost"), problem._replace(images=1))


def default_of(count):
    config = configuration.default()
    config.storage.N = count
    return config


def test_the_start_takes_fewer_of_larger_images():
    for side, count in ((32, 50_000), (64, 50_000), (224, 4081)):
        config, problem = default_of(10), Problem((side, side, 3), 64, 60_000)
        config.storage.update(M=20, U=8, V=8)
        look = methods.make(config, problem).look
        assert jax.eval_shape(lambda key, look=look: look(key, 60_000), jax.random.key(0)).shape == (count,)


@pytest.mark.parametrize(
    ("shape", "side", "low"), [((32, 64), 16, (16, 32)), ((3, 100), 2, (2, 67)), ((8, 8), 9, (8, 8))]
)
def test_a_low_resolution_keeps_the_proportion(shape, side, low):
    assert budget.low_size((*shape, 3), side) == low


def test_random_images_that_a_budget_holds():
    """The baseline does not depend on the method or its precisions: WebP where that is smaller, else int8."""
    config, problem = configuration.default(), Problem((32, 32, 3), 16, 500)
    images = np.tile(np.arange(32, dtype=np.uint8)[None, :, None, None], (100, 1, 32, 3))
    assert budget.random_images(config, problem, images) == config.storage.N
    config.storage.bytes = 40_000
    found = budget.random_images(config, problem, images)
    assert found == 500 > budget.pairs(config, problem)  # all there are
    noise = np.random.default_rng(0).integers(0, 256, (100, 32, 32, 3), np.uint8)
    assert budget.pairs(config, problem) < budget.random_images(config, problem, noise) < 500
    config.storage.update(images="float32", targets="float32", quality=100)
    assert budget.random_images(config, problem, images) == found
    two = problem._replace(image_shape=(32, 32, 2))
    config.storage.update(images="auto", targets="auto")
    assert budget.random_images(config, two, images[..., :2]) == budget.pairs(config, two)  # which no picture holds


@pytest.mark.parametrize(
    ("side", "given", "low"), [(64, 0, 16), (32, 0, 16), (28, 0, 14), (8, 0, 4), (32, 20, 20), (8, 16, 8)]
)
def test_resolution_of_the_image_bases(side, given, low):
    """As published at 32x32 and 64x64, half a side below; never more than the images have."""
    config = configuration.default()
    config.storage.base_size = given
    assert boost.plan_of(config, Problem((side, side, 3), 64, 5000, 10, network=True)).base_size == (low, low)
