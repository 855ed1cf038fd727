"""Cost of the evaluation of a run on this machine: training of networks, extraction of features, and probes."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ssdd_jax import models
from ssdd_jax.dry_run.contents import pairs_of
from ssdd_jax.dry_run.standins import StandIns
from ssdd_jax.dry_run.timing import Cost, measure, once, program, warm
from ssdd_jax.evaluate import entries as evaluated_entries
from ssdd_jax.evaluate import extraction, training
from ssdd_jax.evaluate.protocols import probes
from ssdd_jax.evaluate.protocols.probes import pieces
from ssdd_jax.methods import trials
from ssdd_jax.methods.base import Run
from ssdd_jax.models import architectures
from ssdd_jax.stages import evaluate
from ssdd_jax.training import epochs, streaming

# Regressions of more operations than this are timed on smaller data and scaled by the number of operations.
OPERATIONS = 2e10
# Number of batches of the full data, and of iterations of the linear probe, that are timed.
TRIED = 4
# Iterations of the linear probe for all penalties together, about the mean on the features of CIFAR-10.
TYPICAL = 150
# Trainings whose batch sizes differ by at most this factor are assumed to cost the same per image.
NEAR = 1.3


class _Evaluated(NamedTuple):
    """Number of networks and of teachers to evaluate, and the length of a network's features."""

    networks: int
    teachers: int
    width: int


def of_evaluate(stand: StandIns) -> list[Cost]:
    """Measure the evaluation of every entry for every seed."""
    config = stand.run.config
    entries, seeds = config.evaluate.entries, config.evaluate.seeds
    network = network_of(stand.run)
    costs: list[Cost] = []
    measured: dict[int, Cost] = {}
    for entry in _trainings(stand.run):
        costs.append(_training(stand, network, entry, measured))
    # The teacher is evaluated without training, once per seed of the probes.
    networks = seeds * sum(name != "teacher" for name in entries)
    cost, width = _extraction(stand, network, networks)
    evaluated = _Evaluated(networks, seeds * ("teacher" in entries), width)
    return [*costs, cost, *_probes(stand, evaluated)]


def sizes(run: Run) -> list[int]:
    """Return upper bounds of the bytes on the device of the evaluation's trainings and probes; nothing is computed."""
    network, problem, settings = network_of(run), run.problem, evaluate.training_of(run.config)
    trainings = [_training_bytes(run, network, entry) for entry in _trainings(run)]
    variables = jax.eval_shape(lambda key: models.initialize(key, network, problem.image_shape), jax.random.key(0))
    width = extraction.width(network, variables, problem.image_shape)
    assert run.dataset.test_images is not None
    return [*trainings, _probe_bytes(problem.images + len(run.dataset.test_images), width, problem.dim, settings)]


def _probe_bytes(count: int, width: int, dim: int, settings: evaluated_entries.Settings) -> int:
    """Bytes of the largest probe on features of `count` images: features with copies, or pieces, and matrices."""
    features = pieces.COPIES * 4 * count * (width + dim)
    # Covariances with their factors, of the features and of these beside the teacher's.
    return min(features, streaming.limit(settings.gigabytes)) + pieces.MATRICES * 4 * (width + dim) ** 2


def network_of(run: Run) -> nn.Module:
    """Return the architecture that is evaluated, with the targets of the set."""
    _, dim = pairs_of(run)
    return architectures.make(evaluate.student_name(run.config), dim, run.problem.image_shape)


def _trainings(run: Run) -> list[_Entry]:
    """The trainings of the entries that a config asks for."""
    config, problem = run.config, run.problem
    pairs, dim = pairs_of(run)
    settings = evaluate.training_of(config)
    real = settings.pairs._replace(rates=evaluated_entries.with_published(settings.pairs.rates))
    own = real if config.method in evaluated_entries.REAL_IMAGES else settings.pairs
    trainings = [
        _Entry("distilled", pairs, dim, own, own=False),
        _Entry("random_real", min(config.storage.N, problem.images), problem.dim, real, own=True),
        _Entry("full_data", problem.images, problem.dim, settings.full, own=False),
    ]
    return [entry for entry in trainings if entry.name in config.evaluate.entries]


class _Entry(NamedTuple):
    """Training of an entry's networks on `count` pairs with targets of length `dim`; `own`: each has its own pairs."""

    name: str
    count: int  # type: ignore[assignment]  # instead of the tuple's method
    dim: int
    settings: training.Settings
    own: bool


def _training(stand: StandIns, network: nn.Module, entry: _Entry, measured: dict[int, Cost]) -> Cost:
    """Measure the training of an entry's networks; `measured` caches the cost of a step by its batch size."""
    problem, seeds = stand.run.problem, stand.run.config.evaluate.seeds
    size, _ = epochs.batch_of(entry.count, entry.settings.batch_size)
    # One of the networks that the rate is chosen with is that of the first seed, unless it lacks the held-out images.
    candidates = len(entry.settings.rates)
    tried = 0 if candidates == 1 else candidates if entry.name == "full_data" else candidates - 1
    together = min(seeds, training.group_size(network, (size, *problem.image_shape)))
    # Entries often have similar batches; measuring one of them saves a compilation.
    near = next((other for other in measured if 1 / NEAR <= size / other <= NEAR), None)
    step = _step(stand, network, entry, together) if near is None else measured[near]
    measured[size] = step
    return step._replace(
        what=f"steps on {entry.name}",
        count=entry.settings.steps * -(-(seeds + tried) // together),
        seconds=step.seconds * size / (near or size),
        measured=step.measured if near is None else 0,
        memory=_training_bytes(stand.run, network, entry),
    )


def _training_bytes(run: Run, network: nn.Module, entry: _Entry) -> int:
    """Bytes of an entry's training: activations of the networks side by side, and the pairs if they are resident."""
    problem, batch = run.problem, epochs.batch_of(entry.count, entry.settings.batch_size)[0]
    shape = (batch, *problem.image_shape)
    together = min(run.config.evaluate.seeds, training.group_size(network, shape))
    # Images of the full data stay uint8.
    whole = entry.count * (problem.image_numbers * (4 if entry.name != "full_data" else 1) + 4 * entry.dim)
    streamed = entry.name == "full_data" and not run.resident()
    return together * training.activation_bytes(network, shape) + (2 * streaming.PIECE if streamed else whole)


def _step(stand: StandIns, network: nn.Module, entry: _Entry, together: int) -> Cost:
    """Measure a step of `together` networks side by side."""
    size, per_epoch = epochs.batch_of(entry.count, entry.settings.batch_size)
    tried, shape = min(per_epoch, TRIED), stand.run.problem.image_shape
    # Networks with their own pairs have an additional leading axis.
    lead, rows = (together,) if entry.own else (), min(entry.count, size * tried)
    images, targets = (jnp.asarray(stand.normal(*lead, rows, *shape_)) for shape_ in (shape, (entry.dim,)))
    keys, constants = jax.random.split(jax.random.key(0), together), stand.job.preprocessing()
    module: Any = network

    def train(times: int) -> None:
        options: dict[str, Any] = {"preprocessing": constants, "settings": entry.settings._replace(steps=times * tried)}
        trained = training.train(keys, module.clone(dim=entry.dim), (images, targets), together=together, **options)
        jax.block_until_ready(trained)

    cost = warm(train, what="", count=1, most=10)
    return cost._replace(seconds=cost.seconds / tried, measured=cost.measured * tried)


def _extraction(stand: StandIns, network: nn.Module, networks: int) -> tuple[Cost, int]:
    """Measure the extraction of all features by `networks` networks; also return the length of a feature."""
    dataset, problem = stand.run.dataset, stand.run.problem
    assert dataset.test_images is not None
    images = dataset.train_images[np.arange(extraction.EXTRACT) % problem.images]
    mean = np.full(problem.image_shape[-1], 0.5)
    fresh = training.fresh(jax.random.split(jax.random.key(0), 1), network, problem.image_shape)
    variables = jax.tree.map(lambda leaf: leaf[0], fresh)
    widths = []

    def extract(times: int) -> None:
        for _ in range(times):
            widths.append(extraction.extract(network, variables, images, mean=mean, std=mean).shape[1])

    count = sum(-(-len(part) // extraction.EXTRACT) for part in (dataset.train_images, dataset.test_images))
    return warm(extract, what="batches", count=networks * count, most=10), widths[-1]


def _probes(stand: StandIns, evaluated: _Evaluated) -> list[Cost]:
    run, costs = stand.run, []
    assert run.dataset.test_images is not None
    sizes = run.problem.images, len(run.dataset.test_images)
    if run.problem.classes:
        costs.append(_linear(stand, evaluated, sizes[0]))
        probe = measure(trials.linear(stand, evaluated.width, times=evaluated.networks))
        # The teacher's probe has the width of its own features, and counts as a share of the others.
        share = 1 + evaluated.teachers * run.problem.dim / max(1, evaluated.networks * evaluated.width)
        costs.append(
            probe._replace(count=probe.count * share, compiling=probe.compiling * (1 + bool(evaluated.teachers)))
        )
        assert run.dataset.train_labels is not None
        shots = probes.draw_shots(run.config.seed, np.asarray(run.dataset.train_labels), run.problem.classes)
        if shots is not None:
            costs.append(_few_shot(stand, evaluated, shots.shape[1], sizes))
    return [*costs, _feature_r2(stand, evaluated, sizes)]


def _linear(stand: StandIns, evaluated: _Evaluated, count: int) -> Cost:
    """Measure the scale-free linear probe with the iterations that it takes at most for one penalty."""
    settings, classes = probes.LinearSettings(), stand.run.problem.classes
    one = settings._replace(penalties=settings.penalties[:1], tolerance=0.0, steps=TRIED)
    # An iteration is linear in the number of images.
    tried = min(count, max(64, int(OPERATIONS / (TRIED * 8.0 * evaluated.width * classes))))
    parts = jnp.asarray(stand.normal(tried, evaluated.width)), jnp.arange(tried, dtype=jnp.int32) % classes
    compiled = program(jax.jit(probes.fit_linear, static_argnames=("classes", "settings")), parts, classes=classes,
                       settings=one)  # fmt: skip
    compiled.call(parts)
    # The program fits once to a part of the labels and once to all.
    seconds = once(lambda: compiled.call(parts)) / (2 * TRIED) * (count / tried)
    memory = _probe_bytes(count, evaluated.width, 0, evaluate.training_of(stand.run.config))
    return _for_all(evaluated, "linear probes", seconds * TYPICAL, compiled.compiling, memory)


def _few_shot(stand: StandIns, evaluated: _Evaluated, count: int, sizes: tuple[int, int]) -> Cost:
    """Measure ridge regression on a few labels."""
    labels, classes = count, stand.run.problem.classes
    # The solve is cubic in the number of labels: time fewer, and scale by the cube.
    shrink = min(1.0, (OPERATIONS / (4.0 * probes.DRAWS * len(probes.RIDGES) * count**3)) ** (1 / 3))
    tried = max(2, int(shrink * labels))
    train, test = (min(size, 4000) for size in sizes)
    parts = [
        (jnp.asarray(stand.normal(rows, evaluated.width)), jnp.arange(rows, dtype=jnp.int32) % classes)
        for rows in (train, test)
    ]
    shots = jnp.asarray(np.resize(np.arange(train, dtype=np.int32), (probes.DRAWS, tried)))
    compiled = program(jax.jit(probes.few_shot, static_argnames="classes"), *parts, shots, classes=classes)
    compiled.call(*parts, shots)
    seconds = once(lambda: compiled.call(*parts, shots)) * (labels / tried) ** 3 * max(1.0, sizes[0] / train)
    return _for_all(evaluated, "few-label regressions", seconds, compiled.compiling, compiled.memory)


def _feature_r2(stand: StandIns, evaluated: _Evaluated, sizes: tuple[int, int]) -> Cost:
    """Measure the regression of the teacher's features."""
    dim, ridges = stand.run.problem.dim, len(probes.RIDGES)

    def operations(rows: int, held: int, width: int) -> float:
        moments = 2.0 * 2 * rows * width * (width + dim)
        solves = (ridges + 1) * (width**3 / 3 + 2 * width**2 * dim)
        return moments + solves + 2 * (ridges * rows / 10 + held) * width * dim

    rows, held, width = *sizes, evaluated.width
    # Data and width shrink together down to a width of 256, then the data alone.
    while operations(rows, held, width) > OPERATIONS and width > 256:
        rows, held, width = max(rows // 2, 64), max(held // 2, 16), width // 2
    while operations(rows, held, width) > OPERATIONS and rows > 512:
        rows, held = rows // 2, max(held // 2, 16)
    parts = [
        (jnp.asarray(stand.normal(number, width)), jnp.asarray(stand.normal(number, dim))) for number in (rows, held)
    ]
    compiled = program(jax.jit(probes.feature_r2), *parts)
    compiled.call(*parts)
    seconds = once(lambda: compiled.call(*parts)) * operations(*sizes, evaluated.width) / operations(rows, held, width)
    memory = _probe_bytes(sum(sizes), evaluated.width, dim, evaluate.training_of(stand.run.config))
    return _for_all(evaluated, "regressions", seconds, compiled.compiling, memory)


def _for_all(evaluated: _Evaluated, what: str, seconds: float, compiling: float, memory: int) -> Cost:
    """Scale the cost of a probe to all networks and teachers; the teacher needs a second program."""
    count = evaluated.networks + evaluated.teachers
    if math.isnan(seconds) or not count:
        return Cost(what, count, seconds, 0, compiling, memory)
    return Cost(what, count, seconds, 1, compiling * (1 + bool(evaluated.teachers)), memory)
