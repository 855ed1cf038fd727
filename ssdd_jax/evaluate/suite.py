"""The evaluation: every set and reference point, architecture, target and protocol, for several seeds.

Networks are trained once per architecture and seed and shared by all targets and protocols; features are computed once
per network and target. What was computed before is found by its content and not computed again.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ssdd_jax.distilled import DistilledSet
from ssdd_jax.errors import UserError
from ssdd_jax.evaluate import entries, statistics, training
from ssdd_jax.evaluate.entries import Entry, SourceData, Target
from ssdd_jax.evaluate.protocols import table
from ssdd_jax.evaluate.protocols.table import PROTOCOLS, Frozen, Networks, Seed
from ssdd_jax.evaluate.store import Store, Values, mark
from ssdd_jax.models import architectures

Array = jax.Array
Say = Callable[[str], None]

# A stream apart from the networks' keys: `fold_in` with a small number is a key of `split`.
SUPERVISED = np.uint32(zlib.crc32(b"supervised"))


class Request(NamedTuple):
    """What is to be evaluated.

    Attributes:
        sets: Distilled sets by the name of their row, all of one image shape.
        counts: The N of each set, by its name: how many random real images it is compared with.
        models: Names of architectures.
        targets: Labelled data sets of that image shape.
        protocols: Names in `PROTOCOLS`.
        references: Which of `entries.REFERENCES`.
        source: What the sets were distilled from, or None.
        seeds: Networks per row.
        seed: Of the whole evaluation; the same seed gives every row the same initial networks and labels.
        training: How networks are trained.
        judging: How they are judged.
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


def run(request: Request, store: Store, *, say: Say = print) -> list[dict[str, Any]]:
    """Compute what is missing.

    Args:
        request: What is to be evaluated.
        store: Where results are kept and found again.
        say: Told what a user should know, a line at a time.

    Returns:
        Rows, ordered by target, architecture and entry: `target`, `model` (None where it does not matter, for the
        teacher and chance), `entry`, `protocol`, `measure`, `mean`, `std`, `seeds`, `values`.

    Raises:
        UserError: If the parts do not fit together, or a network diverges.
    """
    found = _Run(request, store, say).rows() + _chance(request)
    targets, models = [target.name for target in request.targets], [*request.models, None]
    names = [*request.sets, *entries.REFERENCES, "chance"]

    def place(row: dict[str, Any]) -> tuple[int, ...]:
        entry = "random_real" if row["entry"].startswith("random_real") else row["entry"]
        protocol = list(request.protocols).index(row["protocol"])
        return targets.index(row["target"]), models.index(row["model"]), names.index(entry), protocol

    return sorted(found, key=place)


def check(request: Request) -> dict[str, nn.Module]:
    """The architectures by name, once everything is known to fit together.

    Raises:
        UserError: If something is unknown, or does not fit.
    """
    unknown = [name for name in request.protocols if name not in PROTOCOLS]
    if unknown:
        raise UserError(f"unknown protocol {unknown[0]!r}: there are {', '.join(PROTOCOLS)}")
    shapes = {name: (tuple(x.shape[1:]), y.shape[-1]) for name, (x, y) in _pairs(request)}
    first, (shape, dim) = next(iter(shapes.items()))
    for name, (other, _) in shapes.items():
        if other != shape:
            raise UserError(
                f"the images of {first} are {_size(shape)} and those of {name} {_size(other)}: evaluate them one by one"
            )
    names = [target.name for target in request.targets]
    for target in request.targets:
        if names.count(target.name) > 1:
            raise UserError(f"two targets are called {target.name}: give each a name of its own")
        if target.dataset.image_shape != shape:
            raise UserError(
                f"{target.name} has images of {_size(target.dataset.image_shape)}, the set of {_size(shape)}"
            )
    if request.source is not None:
        known = request.source.features.train.shape[1]
        for name, (_, own) in shapes.items():
            if own != known and not request.sets[name].statics.get("soft_labels"):
                raise UserError(
                    f"the targets of {name} have {own} numbers and the teacher's features {known}: "
                    "they do not belong together; give another --source, or none"
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
    return [(name, one.pairs()) for name, one in request.sets.items()]


def _size(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _entries(request: Request) -> list[Entry]:
    like, options = next(iter(request.sets.values())), request.training
    found: list[Entry | None] = [entries.of_set(name, one, options) for name, one in request.sets.items()]
    sizes = sorted(set(request.counts.values()))
    for reference in request.references:
        for count in sizes if reference == "random_real" else sizes[:1]:
            name = f"random_real_{count}" if reference == "random_real" and len(sizes) > 1 else reference
            found.append(entries.of_reference(name, request.source, like, count, options))
    return [entry for entry in found if entry is not None]


def _chance(request: Request) -> list[dict[str, Any]]:
    """What guessing among the classes comes to."""
    return [
        _line(target.name, None, "chance", (protocol, measure), [100.0 / target.dataset.classes])
        for target in request.targets
        if target.dataset.classes
        for protocol in request.protocols
        for measure in PROTOCOLS[protocol].columns
        if not PROTOCOLS[protocol].teacher
    ]


def _line(target: str, model: str | None, entry: str, measure: tuple[str, str], values: list[float]) -> dict[str, Any]:
    names = {"target": target, "model": model, "entry": entry, "protocol": measure[0], "measure": measure[1]}
    return names | statistics.summary(values)


class _Row(NamedTuple):
    """A row in the making: the entry, its architecture by name (None for the teacher), and what its networks are."""

    entry: Entry
    model: str | None
    what: dict[str, Any]


class _Run:
    """One evaluation at work, with what its rows share."""

    def __init__(self, request: Request, store: Store, say: Say):
        self.request, self.store, self.say = request, store, say
        self.modules = check(request)
        self.keys = jax.random.split(jax.random.key(request.seed), request.seeds)
        self.teachers: dict[str, tuple[np.ndarray, np.ndarray] | None] = {}
        self.loaded: tuple[Any, Any] = (None, None)

    def rows(self) -> list[dict[str, Any]]:
        found = []
        for entry in _entries(self.request):
            for model in self.modules if entry.train is not None else [None]:
                row = _Row(entry, model, {**entry.what, "model": model, "seed_of_all": self.request.seed})
                for target in self.request.targets:
                    lines = self._lines(row, target)
                    words = ", ".join(f"{x['measure']} {x['mean']:.4g} ± {x['std']:.2g}" for x in lines)
                    name = " ".join(filter(None, (model, entry.name)))
                    self.say(f"evaluate: {name} on {target.name}: {words or 'nothing to measure'}")
                    found += lines
        return found

    def _lines(self, row: _Row, target: Target) -> list[dict[str, Any]]:
        lines = []
        for protocol, by_seed in self._values(row, target).items():
            known = [by_seed[seed] for seed in range(self.request.seeds)]
            for measure in PROTOCOLS[protocol].columns:
                if measure in known[0]:
                    values = [one[measure] for one in known]
                    lines.append(_line(target.name, row.model, row.entry.name, (protocol, measure), values))
        return lines

    def _values(self, row: _Row, target: Target) -> dict[str, Values]:
        """Per protocol and seed a value per measure; what is missing is computed and kept."""
        judging = self.request.judging
        what = {name: self._what(row, target, name) for name in self.request.protocols}
        known = {name: self.store.values(what[name]) for name in what}
        missing = {name: [s for s in range(self.request.seeds) if s not in known[name]] for name in what}
        for seed in range(self.request.seeds):
            wanted = [name for name in what if seed in missing[name] and PROTOCOLS[name].frozen is not None]
            frozen = self._frozen(row, seed, target) if wanted else None
            for name in wanted:
                judge, number = PROTOCOLS[name].frozen, Seed(self.request.seed, seed, self.keys[seed])
                found = {} if frozen is None or judge is None else judge(number, frozen, judging)
                # What cannot be had may come to hand later, a teacher above all: that is not kept.
                known[name] |= self.store.add_values(what[name], {seed: found}) if found else {seed: {}}
        for name, seeds in missing.items():
            if seeds and PROTOCOLS[name].whole is not None:
                whole = self._whole(row, name, seeds, target)
                known[name] |= self.store.add_values(what[name], whole) if whole else dict.fromkeys(seeds, {})
        return known

    def _what(self, row: _Row, target: Target, name: str) -> dict[str, Any]:
        """All that a value depends on, but for the seed's number."""
        protocol = PROTOCOLS[name]
        uses = protocol.uses(self.request.judging, target, row.entry)
        teacher = self._teacher(target) if protocol.teacher else None
        own = {} if teacher is None else {"teacher": mark(*teacher)}
        return {**row.what, "target": target.mark, "protocol": name, "uses": uses, **own}

    def _module(self, row: _Row) -> nn.Module:
        """The architecture, as wide at its end as the entry's targets are long."""
        assert row.model is not None
        module: Any = self.modules[row.model]
        return module.clone(dim=row.entry.dim)

    def _networks(self, row: _Row) -> Any:
        """Variables of all seeds' networks; those that are not there are trained together."""
        if self.loaded[0] == row.what:
            return self.loaded[1]
        assert row.entry.train is not None
        new = [seed for seed in range(self.request.seeds) if not self.store.has_network(row.what, seed)]
        if new:
            trained = jax.device_get(row.entry.train(self.keys[np.asarray(new)], self._module(row)))
            for place, seed in enumerate(new):
                one = jax.tree.map(lambda leaf: leaf[place], trained)  # noqa: B023, used at once
                if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(one)):
                    raise UserError(
                        f"evaluate: {row.model} diverged on {row.entry.name}: try a smaller learning_rate, or leave it "
                        "out"
                    )
                self.store.add_network(row.what, seed, one)
        self.loaded = row.what, self.store.networks(row.what, range(self.request.seeds))
        return self.loaded[1]

    def _frozen(self, row: _Row, seed: int, target: Target) -> Frozen | None:
        """Features of one network on a target; None for a teacher that is not at hand."""
        dataset, teacher = target.dataset, None
        if row.model is None or any(PROTOCOLS[name].teacher for name in self.request.protocols):
            teacher = self._teacher(target)
        if row.model is None:
            features = teacher
        else:
            variables = jax.tree.map(lambda leaf: leaf[seed], self._networks(row))
            features = _extract((self._module(row), variables), target)
        if features is None:
            return None
        train, test = (jnp.asarray(part) for part in features)  # to the device once for all protocols
        return Frozen(train, test, dataset.train_labels, dataset.test_labels, dataset.classes, teacher)

    def _teacher(self, target: Target) -> tuple[np.ndarray, np.ndarray] | None:
        """The teacher's features of a target: as they are kept if it is the source, else computed once."""
        source = self.request.source
        if source is None:
            return None
        if target.mark not in self.teachers:
            if source.features.test is not None and entries.content(source.dataset) == entries.content(target.dataset):
                self.teachers[target.mark] = source.features.train, source.features.test
            else:
                own = _for_teacher(target, source)
                self.teachers[target.mark] = _extract(source.teacher, own) if source.teacher is not None else None
        return self.teachers[target.mark]

    def _whole(self, row: _Row, protocol: str, seeds: Sequence[int], target: Target) -> Values:
        """What a protocol that needs whole networks finds, by seed; nothing where something is wanting."""
        judge = PROTOCOLS[protocol].whole
        assert judge is not None
        chosen, source = np.asarray(seeds), self.request.source
        module: nn.Module | None = None
        variables: Any = None
        if row.model is not None:
            module, variables = self._module(row), jax.tree.map(lambda leaf: leaf[chosen], self._networks(row))
        elif source is not None and source.teacher is not None:
            (module, one), target = source.teacher, _for_teacher(target, source)
            variables = jax.tree.map(lambda leaf: np.broadcast_to(leaf, (len(seeds), *np.shape(leaf))), one)
        networks = Networks(self.keys[chosen], module, variables, row.entry)
        found = judge(networks, target, self.request.judging, lambda: self._supervised(target))
        return dict(zip(seeds, found, strict=True)) if found else {}

    def _supervised(self, target: Target) -> tuple[nn.Module, Any]:
        """The supervised network that target data-free distillation learns from, trained once per target."""
        judging, seed = self.request.judging, self.request.seed
        uses = table.supervised_uses(target, judging)
        what = {"supervised": uses, "target": target.mark, "seed_of_all": seed}
        if not self.store.has_network(what, 0):
            self.say(f"evaluate: training {judging.supervised_model} on the labels of {target.name}")
            key = jax.random.fold_in(jax.random.key(seed), SUPERVISED)
            self.store.add_network(what, 0, table.train_supervised(key, target, judging))
        variables = jax.tree.map(lambda leaf: leaf[0], self.store.networks(what, [0]))
        return table.supervised_network(target, judging), variables


def _for_teacher(target: Target, source: entries.SourceData) -> Target:
    """The target with its images normalised as the teacher's own were, if that is known."""
    if source.moments is None:
        return target
    mean, std = source.moments
    return target._replace(mean=mean, std=std)


def _extract(network: tuple[nn.Module, Any], target: Target) -> tuple[np.ndarray, np.ndarray]:
    dataset = target.dataset
    assert dataset.test_images is not None
    images = dataset.train_images, dataset.test_images
    train, test = (training.extract(*network, part, mean=target.mean, std=target.std) for part in images)
    return train, test
