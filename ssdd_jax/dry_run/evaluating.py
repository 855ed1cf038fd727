"""What the evaluation of a run costs on this machine: networks trained, features extracted, probes."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ssdd_jax.dry_run.contents import pairs_of
from ssdd_jax.dry_run.standins import StandIns
from ssdd_jax.dry_run.timing import Cost, measure, once, program, warm
from ssdd_jax.evaluate import training
from ssdd_jax.evaluate.protocols import probes
from ssdd_jax.methods import trials
from ssdd_jax.models import architectures
from ssdd_jax.stages import evaluate
from ssdd_jax.training import epochs

# Regressions of more operations than this are timed on less and scaled by the operations.
OPERATIONS = 2e10
# Batches of the full data that are tried.
TRIED = 4
# A training whose batches are so near in size to those of one that was measured is taken to cost the same per image.
NEAR = 1.3


class _Judged(NamedTuple):
    """Networks to be judged, and evaluations of the teacher; numbers in a network's features."""

    networks: int
    teachers: int
    width: int


def of_evaluate(stand: StandIns) -> list[Cost]:
    """Every entry, for every seed."""
    config, problem = stand.run.config, stand.run.problem
    entries, seeds = config.evaluate.entries, config.evaluate.seeds
    pairs, dim = pairs_of(stand.run)
    settings = evaluate.training_of(config)
    network = architectures.make(evaluate.student_name(config), dim, problem.image_shape)
    works = [
        _Work("distilled", pairs, dim, settings.pairs, own=False),
        _Work("random_real", min(config.storage.N, problem.images), problem.dim, settings.pairs, own=True),
        _Work("full_data", problem.images, problem.dim, settings.full, own=False),
    ]
    found: list[Cost] = []
    known: dict[int, Cost] = {}
    for work in works:
        if work.name in entries:
            found.append(_training(stand, network, work, known))
    networks = seeds * sum(name != "teacher" for name in entries)
    cost, width = _extraction(stand, network, networks)
    judged = _Judged(networks, seeds * ("teacher" in entries), width)
    return [*found, cost, *_probes(stand, judged)]


class _Work(NamedTuple):
    """The training of an entry's networks: on `count` pairs with targets of `dim` numbers, each on its own or all on
    the same."""

    name: str
    count: int  # type: ignore[assignment]  # instead of the tuple's method
    dim: int
    settings: training.Settings
    own: bool


def _training(stand: StandIns, network: nn.Module, work: _Work, known: dict[int, Cost]) -> Cost:
    """All seeds' networks of an entry; `known` has what a step was found to cost, by the size of its batch."""
    problem, seeds = stand.run.problem, stand.run.config.evaluate.seeds
    size, per_epoch = epochs.batch_of(work.count, work.settings.batch_size)
    together = min(seeds, training.side_by_side(network, (size, *problem.image_shape)))
    near = next((other for other in known if 1 / NEAR <= size / other <= NEAR), None)
    step = _step(stand, network, work, together) if near is None else known[near]
    known[size] = step
    held = together * training.activation_bytes(network, (size, *problem.image_shape))
    whole = work.count * (problem.image_numbers * (4 if work.name != "full_data" else 1) + 4 * work.dim)
    return step._replace(
        what=f"steps on {work.name}",
        count=work.settings.epochs * per_epoch * -(-seeds // together),
        seconds=step.seconds * size / (near or size),
        measured=step.measured if near is None else 0,
        memory=held + whole,
    )


def _step(stand: StandIns, network: nn.Module, work: _Work, together: int) -> Cost:
    """A step of so many networks side by side."""
    size, per_epoch = epochs.batch_of(work.count, work.settings.batch_size)
    tried, shape = min(per_epoch, TRIED), stand.run.problem.image_shape
    lead, rows = (together,) if work.own else (), min(work.count, size * tried)
    images, targets = (jnp.asarray(stand.normal(*lead, rows, *one)) for one in (shape, (work.dim,)))
    keys, constants = jax.random.split(jax.random.key(0), together), stand.job.preprocessing()
    module: Any = network

    def train(times: int) -> None:
        options: dict[str, Any] = {"preprocessing": constants, "settings": work.settings._replace(epochs=times)}
        trained = training.train(keys, module.clone(dim=work.dim), (images, targets), together=together, **options)
        jax.block_until_ready(trained)

    found = warm(train, what="", count=1, most=10)
    return found._replace(seconds=found.seconds / tried, measured=found.measured * tried)


def _extraction(stand: StandIns, network: nn.Module, networks: int) -> tuple[Cost, int]:
    """The features of all images by so many networks, and how many numbers a feature has."""
    dataset, problem = stand.run.dataset, stand.run.problem
    assert dataset.test_images is not None
    images = dataset.train_images[np.arange(training.EXTRACT) % problem.images]
    mean = np.full(problem.image_shape[-1], 0.5)
    fresh = training.fresh(jax.random.split(jax.random.key(0), 1), network, problem.image_shape)
    variables = jax.tree.map(lambda leaf: leaf[0], fresh)
    widths = []

    def extract(times: int) -> None:
        for _ in range(times):
            widths.append(training.extract(network, variables, images, mean=mean, std=mean).shape[1])

    count = sum(-(-len(part) // training.EXTRACT) for part in (dataset.train_images, dataset.test_images))
    return warm(extract, what="batches", count=networks * count, most=10), widths[-1]


def _probes(stand: StandIns, judged: _Judged) -> list[Cost]:
    run, found = stand.run, []
    assert run.dataset.test_images is not None
    sizes = run.problem.images, len(run.dataset.test_images)
    if run.problem.classes:
        probe = measure(trials.linear(stand, judged.width, times=judged.networks))
        share = 1 + judged.teachers * run.problem.dim / max(1, judged.networks * judged.width)
        found.append(probe._replace(count=probe.count * share, compiling=probe.compiling * (1 + bool(judged.teachers))))
        assert run.dataset.train_labels is not None
        shots = probes.draw_shots(run.config.seed, np.asarray(run.dataset.train_labels), run.problem.classes)
        if shots is not None:
            found.append(_few_shot(stand, judged, shots.shape[1], sizes))
    return [*found, _feature_r2(stand, judged, sizes)]


def _few_shot(stand: StandIns, judged: _Judged, count: int, sizes: tuple[int, int]) -> Cost:
    """Ridge regression on a few labels."""
    labels, classes = count, stand.run.problem.classes
    shrink = min(1.0, (OPERATIONS / (4.0 * probes.DRAWS * len(probes.RIDGES) * count**3)) ** (1 / 3))
    tried = max(2, int(shrink * labels))
    train, test = (min(size, 4000) for size in sizes)
    parts = [
        (jnp.asarray(stand.normal(rows, judged.width)), jnp.arange(rows, dtype=jnp.int32) % classes)
        for rows in (train, test)
    ]
    shots = jnp.asarray(np.resize(np.arange(train, dtype=np.int32), (probes.DRAWS, tried)))
    found = program(jax.jit(probes.few_shot, static_argnames="classes"), *parts, shots, classes=classes)
    found.call(*parts, shots)
    seconds = once(lambda: found.call(*parts, shots)) * (labels / tried) ** 3 * max(1.0, sizes[0] / train)
    return _for_all(judged, "few-label regressions", seconds, found.compiling, found.memory)


def _feature_r2(stand: StandIns, judged: _Judged, sizes: tuple[int, int]) -> Cost:
    """The teacher's features regressed."""
    dim, ridges = stand.run.problem.dim, len(probes.RIDGES)

    def operations(rows: int, held: int, width: int) -> float:
        moments = 2.0 * 2 * rows * width * (width + dim)
        solves = (ridges + 1) * (width**3 / 3 + 2 * width**2 * dim)
        return moments + solves + 2 * (ridges * rows / 10 + held) * width * dim

    rows, held, width = *sizes, judged.width
    while operations(rows, held, width) > OPERATIONS and width > 256:
        rows, held, width = max(rows // 2, 64), max(held // 2, 16), width // 2
    while operations(rows, held, width) > OPERATIONS and rows > 512:
        rows, held = rows // 2, max(held // 2, 16)
    parts = [
        (jnp.asarray(stand.normal(number, width)), jnp.asarray(stand.normal(number, dim))) for number in (rows, held)
    ]
    found = program(jax.jit(probes.feature_r2), *parts)
    found.call(*parts)
    seconds = once(lambda: found.call(*parts)) * operations(*sizes, judged.width) / operations(rows, held, width)
    memory = 3 * 4 * sum(sizes) * (judged.width + dim) + 4 * 4 * judged.width**2
    return _for_all(judged, "regressions", seconds, found.compiling, memory)


def _for_all(judged: _Judged, what: str, seconds: float, compiling: float, memory: int) -> Cost:
    """A probe of every network and of the teacher, whose features have another length and a program of their own."""
    count = judged.networks + judged.teachers
    if math.isnan(seconds) or not count:
        return Cost(what, count, seconds, 0, compiling, memory)
    return Cost(what, count, seconds, 1, compiling * (1 + bool(judged.teachers)), memory)
