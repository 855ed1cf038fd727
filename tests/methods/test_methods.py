"""The contract that every distillation method keeps, and what each is on its own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import CHANNELS, CLASSES, SIZE, make_run, prepare, problem, relative, small_config

from ssdd_jax import distilled, methods, teacher
from ssdd_jax.data import preprocess
from ssdd_jax.errors import UserError
from ssdd_jax.methods import rela
from ssdd_jax.methods.mkdt import trajectories
from ssdd_jax.methods.scdd import inversion
from ssdd_jax.methods.scdd import method as scdd

pytestmark = pytest.mark.medium

NOTHING_TO_LEARN = ("composed", "subset", "rela", "noise")
HWC = SIZE * SIZE * CHANNELS
close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)


class Made:
    """A method ready for its first step: everything compiled once."""

    def __init__(self, name, folder):
        self.config = small_config(name)
        self.run = prepare(make_run(folder, self.config))
        self.method, self.problem = self.run.method, self.run.problem
        self.data = self.run.source()
        self.init = jax.jit(self.method.init)
        self.compiled = self.method.step and jax.jit(self.method.step, donate_argnums=0)
        feed = self.method.feed and self.method.feed(self.run)
        self.items = [(jax.tree.map(lambda leaf: leaf[k], feed(0, 2)),) if feed else () for k in range(2)]  # noqa: B023

    def start(self, seed=0):
        return self.init(jax.random.key(seed), self.data)

    def step(self, state, number=0):
        return self.compiled(state, self.data, *self.items[number])

    def two_steps(self, seed=0):
        """The state after two steps, or the first where there are none, and the infos."""
        state, infos = self.start(seed), []
        for number in range(2 if self.compiled else 0):
            state, info = self.step(state, number)
            infos.append(info)
        return state, infos

    @functools.cached_property
    def trained(self):
        return self.two_steps()

    @functools.cached_property
    def exported(self):
        return self.method.export(jax.random.key(5), self.trained[0], self.data)


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """`make(name)`: each method once for all tests."""
    return functools.cache(lambda name: Made(name, tmp_path_factory.mktemp(name)))


@pytest.fixture(params=methods.METHODS)
def made(make, request):
    return make(request.param)


def bits(tree):
    """Leaves as bytes, PRNG keys included."""
    leaves = jax.tree.leaves(tree)
    raw = (jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf for leaf in leaves)
    return [np.asarray(leaf).tobytes() for leaf in raw]


def test_what_it_declares(made):
    method = made.method
    assert isinstance(method, methods.Method)
    assert (method.step is None) == (made.config.method in NOTHING_TO_LEARN)
    assert isinstance(method.steps, int) and method.steps == (made.config.distill.steps if method.step else 0)
    assert 0 <= method.samples <= made.problem.images
    assert method.views[0] == "rot0" and set(method.views) <= set(made.config.views)
    assert made.data.samples.shape == (method.samples,)
    assert made.data.view_targets.shape == (len(method.views), method.samples, made.problem.dim)


def test_state_and_info(made):
    state, infos = made.trained
    assert state.step.shape == () and state.step.dtype == jnp.int32 and int(state.step) == len(infos)
    assert jnp.issubdtype(state.key.dtype, jax.dtypes.prng_key)
    for info in infos:
        assert hasattr(info, "_asdict") and all(np.shape(value) == () for value in info._asdict().values())
        assert np.isfinite(info.loss)
    # One structure throughout: a state that is loaded from a checkpoint is like a fresh one.
    fresh = jax.eval_shape(made.init, jax.random.key(0), made.data)
    assert jax.tree.structure(fresh) == jax.tree.structure(state)
    like = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), (fresh, state))
    assert like[0] == like[1]


def test_what_can_be_seen(made):
    """The images that are learned, as they are exported; bases where a set is made of them."""
    if made.method.step is None:
        assert made.method.show is None
        return
    seen, found = made.method.show(made.trained[0]), made.exported
    pixels = seen["pixels"] if "pixels" in seen else found.preprocessing.pixels(seen["images"])
    close(pixels, found.images())
    assert ("bases" in seen) == ("image_bases" in found.arrays)
    if "bases" in seen:
        close(seen["bases"], found.arrays["image_bases"])


@pytest.mark.parametrize("made", [name for name in methods.METHODS if name not in NOTHING_TO_LEARN], indirect=True)
def test_donated_state_is_gone(made):
    """Every buffer of the old state is used for the new one, or at least given back."""
    state = made.start(3)
    made.step(state)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state) if leaf.size > 1)


def test_same_key_same_bits(made):
    assert bits(made.two_steps(0)) == bits(made.trained)
    assert bits(made.two_steps(1)[0]) != bits(made.trained[0])


def test_export(made, tmp_path):
    """Within the budget, bit-identical after a round trip, and pairs of the shapes that networks are trained on."""
    export = made.exported
    assert isinstance(export, distilled.DistilledSet)
    assert 0 < export.numbers_stored() <= made.config.storage.N * (HWC + made.problem.dim)
    images, targets = export.pairs()
    length = CLASSES if made.config.method == "scdd" else made.problem.dim
    assert images.shape == (len(targets), SIZE, SIZE, CHANNELS) and targets.shape[1:] == (length,)
    assert images.dtype == targets.dtype == jnp.float32
    assert np.isfinite(images).all() and np.isfinite(targets).all()
    assert 1 <= len(export.images()) <= len(images)
    export.save(tmp_path)
    loaded = distilled.load(tmp_path)
    assert bits(dict(loaded.arrays)) == bits(dict(export.arrays))
    assert bits(loaded.pairs()) == bits(export.pairs())
    assert loaded.numbers_stored() == export.numbers_stored() and dict(loaded.statics) == dict(export.statics)
    again = made.method.export(jax.random.key(5), made.trained[0], made.data)
    assert bits(dict(again.arrays)) == bits(dict(export.arrays))


def test_preparations_are_made_once(made):
    """A second run of the stages writes nothing."""

    def written():
        return {file: file.stat().st_mtime_ns for file in made.run.work.folder.rglob("*") if file.is_file()}

    before = written()
    prepare(made.run)
    assert written() == before


def test_boost_learns_the_bases_and_leaves_the_means(make):
    """Bases and coefficients move, the means do not, whatever the weight decay."""
    made = make("boost")
    assert made.config.distill.weight_decay > 0
    start = made.start()
    before, ages = jax.tree.map(np.array, (start.outer.params, start.pool.ages))
    after, _ = made.step(start)
    for name in ("image_bases", "image_coefficients", "feature_bases", "feature_coefficients"):
        assert not np.array_equal(getattr(before, name), getattr(after.outer.params, name))
    for name in ("image_mean", "feature_mean"):
        np.testing.assert_array_equal(getattr(before, name), getattr(after.outer.params, name))
    assert int((after.pool.ages != ages).sum()) == made.config.pool.models_per_step == 1


def chosen_pairs(made):
    """The images that the method starts from, and the teacher's features of them, from the run's own files."""
    rows = np.asarray(made.data.samples)
    constants = preprocess.fit(made.run.dataset.train_images, made.run.features().train)
    assert len(set(rows)) == len(rows) == made.config.storage.N
    return constants.images(jnp.asarray(made.run.dataset.train_images[rows])), constants.targets(
        jnp.asarray(made.run.features().train[rows])
    )


@pytest.mark.medium
def test_joint_networks_are_learned_and_stored_as_they_are(tmp_path):
    """What is stored decodes to what was trained, and the networks have moved from their first fit."""
    chosen = small_config()
    chosen.approximate.joint = True
    run = prepare(make_run(tmp_path, chosen))
    source = run.source()
    state = jax.jit(run.method.init)(jax.random.key(0), source)
    after, _ = jax.jit(run.method.step)(state, source)
    stored = run.method.export(jax.random.key(1), after, source)
    for found, expected in zip(stored.pairs(), after.outer.params.pairs(), strict=True):
        close(found, expected)
    assert all(
        not np.array_equal(one, other)
        for one, other in zip(state.outer.params.networks, after.outer.params.networks, strict=True)
    )
    assert after.outer.params.params.feature_coefficients.shape[0] == 1
    close(after.outer.params.params.image_mean, state.outer.params.params.image_mean)
    assert stored.numbers_stored() == sum(run.method.parts.values())


def test_krr_st_moves_pixels_and_targets_and_both_decay(make):
    """Decay takes `rate * weight_decay` of each off; everything else of a step is the same without it."""
    made = make("krr_st")
    before = jax.tree.map(np.array, made.start().outer.params)
    for found, expected in zip(before, chosen_pairs(made), strict=True):
        np.testing.assert_array_equal(found, expected)
    decayed = jax.tree.map(np.array, made.step(made.start())[0].outer.params)
    config = small_config("krr_st")
    rate, share = config.distill.learning_rate, config.distill.weight_decay
    config.distill.weight_decay = 0.0
    plain = jax.jit(methods.make(config, made.problem).step)(made.start(), made.data)[0].outer.params
    assert share > 0
    for was, with_decay, without in zip(before, decayed, plain, strict=True):
        assert np.abs(without - was).mean() > 0.3 * rate  # of AdamW's first step
        assert relative(with_decay - without, -rate * share * was) < 1e-2


def test_mkdt_learns_images_targets_and_the_rate(make):
    """From the chosen pairs; the set carries the rate, and does not count it."""
    made = make("mkdt")
    before = jax.tree.map(np.array, made.start().matching.params)
    for found, expected in zip(before[:2], chosen_pairs(made), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert float(before.rate) == pytest.approx(made.config.mkdt.rate)
    after = made.trained[0].matching.params
    assert all(not np.array_equal(was, now) for was, now in zip(before, after, strict=True))
    assert made.exported.statics["learning_rate"] == float(after.rate)
    assert made.exported.numbers_stored() == made.config.storage.N * (HWC + made.problem.dim)
    for found, expected in zip(made.exported.pairs(), after[:2], strict=True):
        np.testing.assert_array_equal(found, expected)


def test_mkdt_stops_at_a_rate_that_is_not_positive(make):
    """Where no student could be trained at it, though the loss that was measured before it is finite."""
    made = make("mkdt")
    state, item = made.start(), jax.tree.map(lambda leaf: leaf[0], made.method.feed(made.run)(0, 1))
    assert np.isfinite(made.method.step(state, made.data, item)[1].loss)
    params = state.matching.params._replace(rate=jnp.float32(-0.5))
    state = state._replace(matching=state.matching._replace(params=params))
    assert np.isnan(made.method.step(state, made.data, item)[1].loss)


def test_losses_alone_do_not_make_mkdts_experts_done(make):
    """High-loss subsets share the folder and leave no trajectories."""
    (experts,) = [stage for stage in make("mkdt").method.stages if stage.name == "experts"]
    assert experts.output == f"experts/expert_{make('mkdt').config.experts.count - 1:04d}.npy"


def test_mkdt_is_fed_its_experts(make):
    """Pieces of the stored trajectories, `experts.epochs` apart; a resumed run sees the same items."""
    made = make("mkdt")
    store = trajectories.Store(made.run.work.own("experts", shared=True))
    options = made.config.experts
    assert store.count() == options.count
    last = options.start_epochs - 1 + options.epochs
    pieces = {
        (store.read(expert, epoch).tobytes(), store.read(expert, epoch + options.epochs).tobytes())
        for expert in range(options.count)
        for epoch in range(last + 1 - options.epochs)
    }
    assert len(pieces) == options.count * options.start_epochs
    feed = made.method.feed(made.run)
    whole, later = feed(0, 12), feed(7, 5)
    found = {(start.tobytes(), target.tobytes()) for start, target in zip(whole["start"], whole["target"], strict=True)}
    assert found <= pieces and len(found) > 1
    for end in ("start", "target"):
        np.testing.assert_array_equal(whole[end][7:], later[end])


def test_subset_is_the_chosen_images_with_their_features(make):
    made = make("subset")
    for found, expected in zip(made.exported.pairs(), chosen_pairs(made), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert made.exported.numbers_stored() == made.config.storage.N * (HWC + made.problem.dim)


def test_rela_is_a_subset_with_whitened_targets(make):
    """The distances between targets are Mahalanobis distances of the teacher's features."""
    made = make("rela")
    images, targets = made.exported.pairs()
    np.testing.assert_array_equal(images, chosen_pairs(made)[0])
    features = np.asarray(made.run.features().train, np.float64)
    inverse = np.linalg.pinv(np.cov(features.T, bias=True), rcond=rela.LEAST_SHARE, hermitian=True)
    apart = features[np.asarray(made.data.samples)]
    apart = apart[:, None] - apart[None]
    expected = np.einsum("ijd,de,ije->ij", apart, inverse, apart)
    targets = np.asarray(targets)
    found = np.square(targets[:, None] - targets[None]).sum(-1)
    close(found, expected, atol=1e-3, rtol=1e-3)
    # What is left to undo is nothing: these are the targets themselves.
    np.testing.assert_array_equal(made.exported.preprocessing.features(targets), targets)


def test_rela_whitens_what_varies():
    """Unit variance over all images, no covariance, and zeros where features depend on each other."""
    generator = np.random.default_rng(0)
    features = generator.normal(size=(300, 6)) @ generator.normal(size=(6, 6))
    features = np.concatenate([features, features[:, :2] - features[:, 2:4], np.zeros((300, 1))], 1)
    features -= features.mean(0)[None]
    blocks = (features[begin : begin + 128].astype(np.float32) for begin in range(0, 300, 128))
    white = features @ rela.whitening(blocks)
    close(white.T @ white / 300, np.diag([1.0] * 6 + [0.0] * 3), atol=1e-4)
    assert not rela.whitening([np.zeros((4, 3), np.float32)]).any()


def teacher_features(made, images):
    return jax.jit(teacher.features_of_inputs)(made.run.backbone(), images)


def test_noise_comes_with_the_teachers_features_of_it(make):
    made = make("noise")
    images, targets = made.exported.pairs()
    assert abs(float(images.mean())) < 0.1 and abs(float(images.std()) - 1) < 0.1
    close(made.run.preprocessing().features(targets), teacher_features(made, images))
    assert len(images) == made.config.storage.N
    # Not the same noise in every channel, image or run.
    assert len(np.unique(images)) > 0.99 * images.size
    other = made.method.export(jax.random.key(5), made.start(1), made.data)
    assert not np.any(other.pairs()[0] == images)


def test_scdd_images_are_valid_pixels(make):
    made = make("scdd")
    constants, images = made.run.preprocessing(), made.exported.pairs()[0]
    pixels = np.asarray(images) * np.asarray(constants.image_std) + np.asarray(constants.image_mean)
    assert -1e-6 <= pixels.min() < 0.01 and 0.99 < pixels.max() <= 1 + 1e-6


def test_scdd_targets_are_logits_centred_and_scaled(make):
    """By the mean and the deviation of the training images' logits."""
    made = make("scdd")
    images, targets = made.exported.pairs()
    weights = np.load(made.run.work.own("probe", shared=True) / "weights.npy")
    assert weights.shape == (made.problem.dim + 1, CLASSES)

    def logits(features):
        return np.asarray(features) @ weights[:-1] + weights[-1]

    known = logits(made.run.features().train)
    expected = (logits(teacher_features(made, images)) - known.mean(0)) / known.std(0).mean()
    close(targets, expected)
    close(made.exported.preprocessing.features(targets), logits(teacher_features(made, images)))


def test_scdd_labels_come_in_turn(make):
    """Six images of three classes: 0, 1, 2, 0, 1, 2, in one group."""
    made = make("scdd")
    assert made.config.scdd.jitter == 0
    start = made.start()
    images = np.array(start.recovery.images)
    assert images.shape == (1, 6, SIZE, SIZE, CHANNELS)
    network = inversion.Network(made.run.backbone(), made.data.prepared.weights)
    found = jax.jit(inversion.logits)(network, jnp.asarray(images[0]))

    def cross_entropy(*labels):
        return float(optax.softmax_cross_entropy_with_integer_labels(found, jnp.array(labels)).mean())

    expected = cross_entropy(0, 1, 2, 0, 1, 2)
    close(made.step(start)[1].cross_entropy, expected)
    assert abs(cross_entropy(0, 0, 1, 1, 2, 2) - expected) > 1e-3


def test_scdd_fills_the_budget():
    config = small_config("scdd")
    asked = problem(config)
    budget, each = 6 * (HWC + asked.dim), HWC + CLASSES
    assert scdd.images_per_class(config, asked) == 2
    assert 2 * CLASSES * each <= budget < 3 * CLASSES * each
    config.scdd.images_per_class = 1
    assert scdd.images_per_class(config, asked) == 1
    config.scdd.images_per_class = 3
    with pytest.raises(UserError) as caught:
        methods.make(config, asked)
    needed = 3 * CLASSES * each
    least = next(N for N in range(1, 99) if N * (HWC + asked.dim) >= needed)
    text = str(caught.value)
    assert text.startswith("storage exceeds the budget: ")
    assert f" {needed:,} numbers > {budget:,} = N (HWC + D) with N=6; raise storage.N to {least} or " in text
    config.storage.N = least
    assert scdd.images_per_class(config, asked) == 3


def test_scdd_refuses_a_budget_below_one_image_per_class():
    config = small_config("scdd")
    config.storage.N = 2
    with pytest.raises(UserError, match="storage exceeds the budget.* 585 numbers > 416 = .*raise storage.N to 3"):
        methods.make(config, problem(config))


def test_scdd_leaves_its_post_training_out():
    config = small_config("scdd")
    assert [stage.name for stage in methods.make(config, problem(config)).after] == ["post_training"]
    config.scdd.post_epochs = 0
    assert methods.make(config, problem(config)).after == ()


def refused(config, asked):
    """The one line that `make` says no with."""
    with pytest.raises(UserError) as caught:
        methods.make(config, asked)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("name", ["boost", "krr_st", "mkdt", "subset"])
def test_too_large_a_budget_is_refused(name):
    config = small_config(name)
    config.storage.N = 41
    assert refused(config, problem(config)).startswith("storage.N=41 asks for more images than the 40 there are: ")
    config.storage.N = 40
    methods.make(config, problem(config))


def test_scdd_without_labels_is_refused():
    config = small_config("scdd")
    assert "scdd needs labels, and the data set has none" in refused(config, problem(config)._replace(classes=0))


@pytest.mark.parametrize("name", [name for name, found in methods.METHODS.items() if found.network])
def test_what_runs_the_teacher_is_refused_with_features_alone(name):
    config = small_config(name)
    text = refused(config, problem(config)._replace(network=False))
    assert text.startswith(f"config.method={name} ") and "leave config.teacher.features empty" in text


def test_experts_that_cannot_halve_the_images_are_refused():
    config = small_config("mkdt")
    config.experts.widths = (4, 4, 4, 4)
    assert refused(config, problem(config)).startswith("config.experts.widths: ")
    config.experts.widths = (4, 4, 4)
    assert methods.make(config, problem(config)).samples == config.storage.N


@pytest.mark.parametrize("name", ["boost", "krr_st"])
def test_a_batch_beyond_the_data_is_refused(name):
    config = small_config(name)
    config.distill.batch_size = 41
    assert refused(config, problem(config)) == "config.distill.batch_size=41 is more than the 40 images"


def test_an_impossible_view_is_refused():
    config = small_config("boost")
    assert "rot90" in config.views
    wide = problem(config)._replace(image_shape=(SIZE, 2 * SIZE, CHANNELS))
    assert refused(config, wide).endswith("; choose other config.views")
