"""Run an evaluation: all sets, baselines, architectures, targets and protocols, for several seeds.

Networks are trained once per architecture and seed and shared by all targets and protocols; features are computed once
per network and target. Networks and metrics are cached in a `Store`.
"""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from ssdd_jax import config as configuration
from ssdd_jax.distilled import DistilledSet
from ssdd_jax.errors import UserError
from ssdd_jax.evaluate import entries, extraction, rates, training
from ssdd_jax.evaluate.entries import Entry, SourceData, Target
from ssdd_jax.evaluate.protocols import table
from ssdd_jax.evaluate.protocols.probes.pieces import Placing
from ssdd_jax.evaluate.protocols.table import PROTOCOLS, Frozen, Networks, Seed
from ssdd_jax.evaluate.store import Store, Values, mark
from ssdd_jax.evaluate.training import Rate
from ssdd_jax.models import architectures
from ssdd_jax.report import statistics
from ssdd_jax.runtime import files
from ssdd_jax.runtime.memory import readable
from ssdd_jax.training import streaming

Array = jax.Array
Say = Callable[[str], None]

# Separates this key from the networks' keys: `fold_in` with a small number could repeat a key that `split` returns.
SUPERVISED = np.uint32(zlib.crc32(b"supervised"))

# Training images of the target that batch norm is calibrated on.
CALIBRATION_IMAGES = 256

# Folder in the store for features that are too large for the memory, and the name of those of the current network.
SCRATCH, NETWORK = "scratch", "network"


class Request(NamedTuple):
    """Description of an evaluation.

    Attributes:
        sets: Distilled sets by the name of their row, all of one image shape.
        counts: N of each set, by its name: the number of images of its random baseline.
        models: Names of architectures.
        targets: Labelled data sets of that image shape.
        protocols: Names in `PROTOCOLS`.
        references: Baselines, names in `entries.REFERENCES`.
        source: Data and teacher that the sets were distilled from, or None.
        seeds: Networks per row.
        seed: Seed of the evaluation; all rows share their initial networks and labels.
        training: Training settings.
        judging: Settings of the protocols.
        calibrate: Networks whose batch norm gets the statistics of training images of the target before their features
            are extracted: those of no row (`none`), of the `untrained` ones, or of `all` rows.
    """

    sets: Mapping[str, DistilledSet]
    counts: Mapping[str, int]
    models: Sequence[str]
    targets: Sequence[Target]
    protocols: Sequence[str]
    references: Sequence[str]
    source: SourceData | None
    seeds: int
    seed: int
    training: entries.Settings
    judging: table.Settings
    calibrate: str = "untrained"


def run(request: Request, store: Store, *, say: Say = print) -> list[dict[str, Any]]:
    """Run an evaluation, computing only results that are not cached.

    Args:
        request: Description of the evaluation.
        store: Cache of networks and metrics.
        say: Called with each message for the user.

    Returns:
        Rows, ordered by target, architecture and entry: `target`, `model` (None for the teacher and chance, which have
        no architecture), `entry`, `protocol`, `measure`, `mean`, `std`, `seeds`, `values`, and for trained networks
        `learning_rate` and `weight_decay`.

    Raises:
        UserError: If the parts of the request do not fit together, or a network diverges.
    """
    rows = _Run(request, store, say).rows()
    rows += _chance(request, {(row["target"], row["measure"]) for row in rows})
    # Rows are computed network by network, to train each once; readers compare entries on the same target.
    targets, models = [target.name for target in request.targets], [*request.models, None]
    names = [*request.sets, *entries.REFERENCES, "chance"]

    def position(row: dict[str, Any]) -> tuple[int, ...]:
        entry = "random_real" if row["entry"].startswith("random_real") else row["entry"]
        protocol = list(request.protocols).index(row["protocol"])
        return targets.index(row["target"]), models.index(row["model"]), names.index(entry), protocol

    return sorted(rows, key=position)


def check(request: Request) -> dict[str, nn.Module]:
    """Validate a request before anything is trained.

    Args:
        request: Description of the evaluation.

    Returns:
        Modules of the architectures by name.

    Raises:
        UserError: If a name is unknown, or shapes do not fit together.
    """
    unknown = [name for name in request.protocols if name not in PROTOCOLS]
    if unknown:
        raise UserError(f"unknown protocol {unknown[0]!r}: there are {', '.join(PROTOCOLS)}")
    shapes = {name: (tuple(x.shape[1:]), y.shape[-1]) for name, (x, y) in _pairs(request)}
    first, (shape, dim) = next(iter(shapes.items()))
    # All rows share the targets, and those have one image shape.
    for name, (other, _) in shapes.items():
        if other != shape:
            raise UserError(
                f"the images of {first} are {_size(shape)} and those of {name} {_size(other)}: evaluate them one by one"
            )
    names = [target.name for target in request.targets]
    for target in request.targets:
        if names.count(target.name) > 1:
            raise UserError(f"two targets are called {target.name}: give each target a different name")
        if target.dataset.image_shape != shape:
            raise UserError(
                f"{target.name} has images of {_size(target.dataset.image_shape)}, the set of {_size(shape)}"
            )
    if request.calibrate not in configuration.CALIBRATE:
        raise UserError(f"calibrate={request.calibrate!r} is unknown: there are {', '.join(configuration.CALIBRATE)}")
    if request.source is not None:
        features = request.source.features.train.shape[1]
        # Soft labels are class logits (SC-DD), whose length is not that of the features.
        for name, (_, length) in shapes.items():
            if length != features and not request.sets[name].statics.get("soft_labels"):
                raise UserError(
                    f"the targets of {name} have {length} dimensions and the teacher's features {features}: "
                    "the source is not that of the set; give another --source, or none"
                )
        if request.source.dataset.image_shape != shape:
            raise UserError(
                f"the images of the source {request.source.dataset.name} are "
                f"{_size(request.source.dataset.image_shape)}, those of {first} {_size(shape)}: give another --source"
            )
    try:
        if "zero_shot_kd" in request.protocols:
            for target in request.targets:
                table.supervised_network(target, request.judging)
        return {name: architectures.make(name, dim, shape) for name in request.models}
    except ValueError as error:
        raise UserError(str(error)) from None


def _pairs(request: Request) -> list[tuple[str, tuple[Array, Array]]]:
    return [(name, distilled.pairs()) for name, distilled in request.sets.items()]


def _size(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _entries(request: Request) -> list[Entry]:
    like, options = next(iter(request.sets.values())), request.training
    rows: list[Entry | None] = [
        entries.of_set(name, distilled, request.source, options) for name, distilled in request.sets.items()
    ]
    # Sets of several sizes need a random baseline for each size, distinguished by its name.
    sizes = sorted(set(request.counts.values()))
    for reference in request.references:
        for count in sizes if reference == "random_real" else sizes[:1]:
            name = f"random_real_{count}" if reference == "random_real" and len(sizes) > 1 else reference
            rows.append(entries.of_reference(name, request.source, like, count, options))
    return [entry for entry in rows if entry is not None]


def _chance(request: Request, measured: set[tuple[str, str]]) -> list[dict[str, Any]]:
    """Rows of chance: the accuracy of guessing, for protocols that predict classes; `measured` are target, measure."""
    return [
        _line(target.name, None, "chance", (protocol, measure), [100.0 / target.dataset.classes])
        for target in request.targets
        if target.dataset.classes
        for protocol in request.protocols
        for measure in PROTOCOLS[protocol].columns
        if not PROTOCOLS[protocol].teacher and (target.name, measure) in measured
    ]


def _line(target: str, model: str | None, entry: str, measure: tuple[str, str], values: list[float]) -> dict[str, Any]:
    names = {"target": target, "model": model, "entry": entry, "protocol": measure[0], "measure": measure[1]}
    return names | statistics.summary(values)


class _Row(NamedTuple):
    """An entry, the name of its architecture (None for the teacher), the cache key of its networks, and their rate."""

    entry: Entry
    model: str | None
    what: dict[str, Any]
    rate: Rate | None = None


class _Run:
    """State of an evaluation that is shared by its rows."""

    def __init__(self, request: Request, store: Store, say: Say):
        self.request, self.store, self.say = request, store, say
        self.modules = check(request)
        self.keys = jax.random.split(jax.random.key(request.seed), request.seeds)
        # The teacher's features by the target's mark, and the networks that were used last with their cache key.
        self.teachers: dict[str, tuple[np.ndarray, np.ndarray] | None] = {}
        self.loaded: tuple[Any, Any] = (None, None)
        self.placing = Placing(request.training.gigabytes)
        self.scratch = store.folder / SCRATCH

    def rows(self) -> list[dict[str, Any]]:
        # Also at the start: a run that was killed leaves its files.
        self._clear()
        try:
            return self._rows()
        finally:
            self.placing.close()
            self._clear()

    def _clear(self, name: str = "") -> None:
        """Delete the features on the disk, all or those of one name."""
        shutil.rmtree(self.scratch / name, ignore_errors=True)

    def _rows(self) -> list[dict[str, Any]]:
        results = []
        # Targets are the inner loop, so that networks are loaded once.
        for entry in _entries(self.request):
            for model in self.modules if entry.train is not None else [None]:
                row = self._with_rate(
                    _Row(entry, model, {**entry.what, "model": model, "seed_of_all": self.request.seed})
                )
                for target in self.request.targets:
                    lines = self._lines(row, target)
                    words = ", ".join(f"{x['measure']} {statistics.brief(x)}" for x in lines)
                    name = " ".join(filter(None, (model, entry.name)))
                    self.say(f"evaluate: {name} on {target.name}: {words or 'nothing to measure'}")
                    results += lines
        return results

    def _lines(self, row: _Row, target: Target) -> list[dict[str, Any]]:
        lines = []
        for protocol, by_seed in self._values(row, target).items():
            columns = [by_seed[seed] for seed in range(self.request.seeds)]
            for measure in PROTOCOLS[protocol].columns:
                if measure in columns[0]:
                    values = [of_seed[measure] for of_seed in columns]
                    line = _line(target.name, row.model, row.entry.name, (protocol, measure), values)
                    lines.append(line | (row.rate._asdict() if row.rate else {}))
        return lines

    def _values(self, row: _Row, target: Target) -> dict[str, Values]:
        """Values per protocol, seed and measure; missing ones are computed and cached."""
        settings = self.request.judging
        what = {name: self._what(row, target, name) for name in self.request.protocols}
        values = {name: self.store.values(what[name]) for name in what}
        missing = {name: [s for s in range(self.request.seeds) if s not in values[name]] for name in what}
        # Protocols on frozen features: the features of a network are extracted once for all of them.
        for seed in range(self.request.seeds):
            names = [name for name in what if seed in missing[name] and PROTOCOLS[name].frozen is not None]
            frozen = self._frozen(row, seed, target) if names else None
            for name in names:
                evaluate, number = PROTOCOLS[name].frozen, Seed(self.request.seed, seed, self.keys[seed])
                measured = {} if frozen is None or evaluate is None else evaluate(number, frozen, settings)
                # An empty result is not cached: it may become available later, for example with a teacher.
                values[name] |= self.store.add_values(what[name], {seed: measured}) if measured else {seed: {}}
        # Protocols on whole networks evaluate all missing seeds at once, side by side.
        for name, seeds in missing.items():
            if seeds and PROTOCOLS[name].whole is not None:
                whole = self._whole(row, name, seeds, target)
                values[name] |= self.store.add_values(what[name], whole) if whole else dict.fromkeys(seeds, {})
        return values

    def _what(self, row: _Row, target: Target, name: str) -> dict[str, Any]:
        """Cache key of a protocol's values: everything that they depend on besides the number of the seed."""
        protocol = PROTOCOLS[name]
        uses = protocol.uses(self.request.judging, target, row.entry)
        teacher = self._teacher(target) if protocol.teacher else None
        teacher_mark = {} if teacher is None else {"teacher": mark(*teacher)}
        calibrated = {"calibrated": CALIBRATION_IMAGES} if self._is_calibrated(row) else {}
        return {**row.what, "target": target.mark, "protocol": name, "uses": uses, **teacher_mark, **calibrated}

    def _is_calibrated(self, row: _Row) -> bool:
        untrained = self.request.calibrate == "untrained" and row.entry.name == "random_init"
        return row.model is not None and (self.request.calibrate == "all" or untrained)

    def _with_rate(self, row: _Row) -> _Row:
        """Choose the learning rate and weight decay of a row, on training images that its networks have not seen."""
        candidates = row.entry.rates
        if not candidates:
            return row
        rate = candidates[0] if len(candidates) == 1 else self._chosen(row)
        return row._replace(rate=rate, what={**row.what, "rate": list(rate)})

    def _chosen(self, row: _Row) -> Rate:
        """The candidate whose network, that of the first seed, explains the teacher's features best."""
        candidates, source, name = row.entry.rates, self.request.source, f"{row.model} {row.entry.name}"
        if source is None or row.entry.trial is None:
            rate = rates.usual(candidates)
            self.say(f"evaluate: {name}: {rates.words(rate)}; there are no images of the source to choose it on")
            return rate
        what = {**row.what, "candidates": [list(rate) for rate in candidates]}
        what |= {"held_out": entries.of_source(source), "calibrated": self.request.calibrate == "all"}
        values = self.store.values(what).get(0) or self._try(row, source, what)
        rate = rates.best(candidates, values)
        tried = ", ".join(f"{candidate}: {value:.4f}" for candidate, value in values.items())
        self.say(f"evaluate: {name}: {rates.words(rate)}, by R2 on held-out training images ({tried})")
        return rate

    def _try(self, row: _Row, source: entries.SourceData, what: Mapping[str, Any]) -> dict[str, float]:
        """R2 of the teacher's features of held-out images by candidate; a network of the row itself is kept."""
        assert row.entry.trial is not None
        module, candidates = self._module(row), row.entry.rates
        trial = row.entry.trial(self.keys[0], module)
        networks = [jax.tree.map(lambda leaf: leaf[i], trial.variables) for i in range(len(candidates))]  # noqa: B023
        calibrated = CALIBRATION_IMAGES if self.request.calibrate == "all" else 0
        options: dict[str, Any] = {"placing": self.placing, "calibrated": calibrated}
        explained = [rates.explained((module, one), source, trial.held, **options) for one in networks]
        values = {rates.words(rate): value for rate, value in zip(candidates, explained, strict=True)}
        values = {name: value for name, value in values.items() if np.isfinite(value)}
        if not values:
            raise _diverged(row)
        if trial.final:
            rate = rates.best(candidates, values)
            self.store.add_network({**row.what, "rate": list(rate)}, 0, networks[candidates.index(rate)])
        self.store.add_values(what, {0: values})
        return values

    def _module(self, row: _Row) -> nn.Module:
        """The architecture, with as many outputs as the entry's targets have dimensions."""
        assert row.model is not None
        module: Any = self.modules[row.model]
        return module.clone(dim=row.entry.dim)

    def _networks(self, row: _Row) -> Any:
        """Variables of the networks of all seeds; those that are not cached are trained, side by side."""
        if self.loaded[0] == row.what:
            return self.loaded[1]
        assert row.entry.train is not None
        new = [seed for seed in range(self.request.seeds) if not self.store.has_network(row.what, seed)]
        if new:
            same = [row.rate or training.PUBLISHED] * len(new)
            trained = jax.device_get(row.entry.train(self.keys[np.asarray(new)], self._module(row), same))
            # Checked before it is cached: a network that diverged must not be found by the next run.
            for place, seed in enumerate(new):
                variables = jax.tree.map(lambda leaf: leaf[place], trained)  # noqa: B023, used at once
                if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables)):
                    raise _diverged(row)
                self.store.add_network(row.what, seed, variables)
        self.loaded = row.what, self.store.networks(row.what, range(self.request.seeds))
        return self.loaded[1]

    def _frozen(self, row: _Row, seed: int, target: Target) -> Frozen | None:
        """Features of one network on a target; None for a teacher that is unavailable."""
        dataset, teacher = target.dataset, None
        # Extracting the teacher's features is slow on large targets: only if a protocol reads them.
        explained = any(PROTOCOLS[name].teacher for name in self.request.protocols)
        if row.model is None or explained:
            teacher = self._teacher(target)
        if row.model is None:
            features = teacher
        else:
            variables = jax.tree.map(lambda leaf: leaf[seed], self._networks(row))
            network = self._module(row), variables
            calibrated = _calibrated(network, target) if self._is_calibrated(row) else network
            features = self._extract(calibrated, target, NETWORK)
        if features is None:
            return None
        # To the device once for all protocols, or as tables that these read in pieces.
        arrays = {"train": features[0], "test": features[1]}
        # Equal features, such as those of a single test image, leave nothing to explain.
        if teacher is not None and explained and (teacher[1] != teacher[1][:1]).any():
            arrays |= {"teacher_train": teacher[0], "teacher_test": teacher[1]}
        placed = self.placing.place(classes=dataset.classes, **arrays)
        known = (placed["teacher_train"], placed["teacher_test"]) if "teacher_train" in placed else None
        return Frozen(
            placed["train"], placed["test"], dataset.train_labels, dataset.test_labels, dataset.classes, known
        )

    def _extract(self, network: tuple[nn.Module, Any], target: Target, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Features of both splits: in memory, or in files called `name` if the device or the host cannot hold them."""
        dataset, constants = target.dataset, {"mean": target.mean, "std": target.std}
        module, variables = network
        assert dataset.test_images is not None
        splits = {"train": dataset.train_images, "test": dataset.test_images}
        size = 4 * extraction.width(*network, dataset.image_shape) * sum(map(len, splits.values()))
        in_memory = self.placing.fits(size) and size <= streaming.SHARE * files.machine_bytes()
        self._clear(name)
        if not in_memory:
            self.say(f"evaluate: features of {readable(size)} are written to {self.scratch / name} and read in pieces")
        train, test = (
            extraction.extract(
                module,
                variables,
                images,
                path=None if in_memory else self.scratch / name / f"{split}.npy",
                **constants,
            )
            for split, images in splits.items()
        )
        return train, test

    def _teacher(self, target: Target) -> tuple[np.ndarray, np.ndarray] | None:
        """The teacher's features of a target: precomputed if the target is the source, else extracted once."""
        source = self.request.source
        if source is None:
            return None
        if target.mark not in self.teachers:
            found = _known_features(source, target)
            if found is None and source.teacher is not None:
                adapted = _for_teacher(target, source)
                found = self._extract(source.teacher, adapted, f"teacher-{target.mark[:16]}")
            self.teachers[target.mark] = found
        return self.teachers[target.mark]

    def _whole(self, row: _Row, protocol: str, seeds: Sequence[int], target: Target) -> Values:
        """Values by seed of a protocol on whole networks; empty if something that it needs is unavailable."""
        evaluate = PROTOCOLS[protocol].whole
        assert evaluate is not None
        indices, source = np.asarray(seeds), self.request.source
        module: nn.Module | None = None
        variables: Any = None
        if row.model is not None:
            module, variables = self._module(row), jax.tree.map(lambda leaf: leaf[indices], self._networks(row))
        elif source is not None and source.teacher is not None:
            # One teacher serves all seeds, which differ in the randomness of the protocol.
            (module, teacher), target = source.teacher, _for_teacher(target, source)
            variables = jax.tree.map(lambda leaf: np.broadcast_to(leaf, (len(seeds), *np.shape(leaf))), teacher)
        networks = Networks(self.keys[indices], module, variables, row.entry)
        values = evaluate(networks, target, self.request.judging, lambda: self._supervised(target))
        return dict(zip(seeds, values, strict=True)) if values else {}

    def _supervised(self, target: Target) -> tuple[nn.Module, Any]:
        """The supervised teacher of target data-free distillation, trained once per target."""
        settings, seed = self.request.judging, self.request.seed
        uses = table.supervised_uses(target, settings)
        what = {"supervised": uses, "target": target.mark, "seed_of_all": seed}
        if not self.store.has_network(what, 0):
            self.say(f"evaluate: training {settings.supervised_model} on the labels of {target.name}")
            key = jax.random.fold_in(jax.random.key(seed), SUPERVISED)
            self.store.add_network(what, 0, table.train_supervised(key, target, settings))
        variables = jax.tree.map(lambda leaf: leaf[0], self.store.networks(what, [0]))
        return table.supervised_network(target, settings), variables


def _diverged(row: _Row) -> UserError:
    return UserError(
        f"evaluate: {row.model} diverged on {row.entry.name}: try a smaller learning_rate, or leave it out"
    )


def _calibrated(network: tuple[nn.Module, Any], target: Target) -> tuple[nn.Module, Any]:
    """A network with the batch-norm statistics of training images of the target."""
    images = target.dataset.train_images
    # Drawn, because data may be sorted by class; the same images for every network.
    drawn = images[np.sort(np.random.default_rng(0).permutation(len(images))[:CALIBRATION_IMAGES])]
    return network[0], extraction.calibrate(*network, drawn, mean=target.mean, std=target.std)


def has_teacher(request: Request, target: Target) -> bool:
    """Return whether the teacher's features of a target are known, or can be computed."""
    source = request.source
    return source is not None and (source.teacher is not None or _known_features(source, target) is not None)


def _known_features(source: entries.SourceData, target: Target) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the source's features of both splits if it is the target, and has them."""
    train, test = source.features.train, source.features.test
    is_target = test is not None and entries.content(source.dataset) == entries.content(target.dataset)
    return (train, test) if test is not None and is_target else None


def _for_teacher(target: Target, source: entries.SourceData) -> Target:
    """The target with the teacher's input normalisation, if the teacher has its own."""
    if source.moments is None:
        return target
    mean, std = source.moments
    return target._replace(mean=mean, std=std)
