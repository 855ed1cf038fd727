"""Table of the evaluation protocols: probes of frozen features, fine-tuning, and target data-free distillation.

`PROTOCOLS` registers all protocols. Their settings name the sources of the defaults.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ssdd_jax.errors import UserError
from ssdd_jax.evaluate import training
from ssdd_jax.evaluate.entries import Entry, Target
from ssdd_jax.evaluate.protocols import finetune, probes, zero_shot
from ssdd_jax.evaluate.protocols.probes import compiled
from ssdd_jax.evaluate.protocols.probes.compiled import Features, Labelled
from ssdd_jax.models import architectures

Array = jax.Array
Supervised = Callable[[], tuple[nn.Module, Any]]

# Data sets without horizontal flips, which could change the class (KRR-ST's `get_aug` does so for SVHN).
UNFLIPPED = ("digits", "tfds:svhn_cropped", "tfds:mnist", "tfds:emnist", "tfds:kmnist")
# Data sets that KRR-ST fine-tunes on for 10,000 iterations instead of 5,000 (test.py).
LONG = ("cifar10", "cifar100", "tiny_imagenet", "tfds:cifar10", "tfds:cifar100", "tfds:tiny_imagenet")


class Settings(NamedTuple):
    """Settings of the protocols.

    Attributes:
        linear: The scale-free linear probe.
        linear_krr_st: SGD of KRR-ST's linear probe (algorithms/linear_eval.py and train.py).
        tuning: Fine-tuning (KRR-ST, test.py); 0 steps: 10,000 on CIFAR and Tiny ImageNet, 5,000 elsewhere.
        distilling: Target data-free distillation (KRR-ST, test_kd.py).
        supervised: Training of the supervised teacher of that distillation (KRR-ST, algorithms/scratch.py).
        supervised_model: Architecture of the supervised teacher.
        neighbours: Neighbours of k-NN (solo-learn).
        fractions: Fractions of the labels of `few_labels`, out of `probes.FRACTIONS` (MKDT).
        together: Networks trained side by side; 0: chosen by the device and its memory.
    """

    linear: probes.LinearSettings = probes.LinearSettings()
    linear_krr_st: probes.SgdSettings = probes.SgdSettings()
    tuning: finetune.Settings = finetune.Settings(steps=0)
    distilling: zero_shot.Settings = zero_shot.Settings()
    supervised: finetune.Settings = finetune.Settings(steps=0)
    supervised_model: str = "resnet18"
    neighbours: int = 20
    fractions: tuple[float, ...] = probes.FRACTIONS
    together: int = 0


class Frozen(NamedTuple):
    """Input of a protocol on frozen features: features, labels and the teacher's features of a target.

    Attributes:
        train: Features of the training images `(n,F)`, on the device, or a table of them.
        test: Features of the test images `(m,F)`, likewise.
        train_labels: Labels of the training images int32 `(n,)`, or None.
        test_labels: Labels of the test images int32 `(m,)`, or None.
        classes: Number of classes.
        teacher: The teacher's features of both splits, `(n,D)` and `(m,D)`, likewise; None if unavailable, or the same
            for all test images.
    """

    train: Features
    test: Features
    train_labels: np.ndarray | None
    test_labels: np.ndarray | None
    classes: int
    teacher: tuple[Features | np.ndarray, Features | np.ndarray] | None


class Seed(NamedTuple):
    """A seed of an evaluation.

    Attributes:
        base: Seed of the whole evaluation.
        number: Number of this seed, from 0 on.
        key: PRNG key of this seed.
    """

    base: int
    number: int
    key: Array


class Networks(NamedTuple):
    """Trained networks of several seeds, or the teacher.

    Attributes:
        keys: PRNG keys `(seeds,)`.
        module: The architecture; None for a teacher that is unavailable.
        variables: Variables with a leading axis of seeds; None for a teacher that is unavailable.
        entry: The distilled set or baseline that they were trained on.
    """

    keys: Array
    module: nn.Module | None
    variables: Any
    entry: Entry


class Protocol(NamedTuple):
    """An evaluation protocol, which has either a function `frozen` or a function `whole`.

    Attributes:
        columns: Heading of each measure, by name.
        uses: Part of the cache key besides the networks and the target's data; JSON values.
        frozen: Maps a seed, frozen features and settings to a value per measure; empty if the target lacks labels or
            other data that the protocol needs.
        whole: Maps networks, a target, settings, and a function that returns a network trained on the target's labels,
            to values per seed; empty if networks or images that the protocol needs are unavailable.
        teacher: Whether the protocol needs the teacher's features of the target.
    """

    columns: dict[str, str]
    uses: Callable[[Settings, Target, Entry], Any]
    frozen: Callable[[Seed, Frozen, Settings], dict[str, float]] | None = None
    whole: Callable[[Networks, Target, Settings, Supervised], list[dict[str, float]]] | None = None
    teacher: bool = False


def _labelled(frozen: Frozen) -> tuple[Labelled, Labelled] | None:
    if frozen.train_labels is None or frozen.test_labels is None:
        return None
    return (frozen.train, jnp.asarray(frozen.train_labels)), (frozen.test, jnp.asarray(frozen.test_labels))


def _by_linear(seed: Seed, frozen: Frozen, settings: Settings) -> dict[str, float]:
    parts = _labelled(frozen)
    if parts is None:
        return {}
    return {"linear": float(compiled.linear(*parts, classes=frozen.classes, settings=settings.linear))}


def _by_linear_krr_st(seed: Seed, frozen: Frozen, settings: Settings) -> dict[str, float]:
    parts = _labelled(frozen)
    if parts is None:
        return {}
    key = jax.random.fold_in(seed.key, 2)  # each protocol folds in another number: no key is used twice
    value = compiled.linear_krr_st(key, *parts, classes=frozen.classes, settings=settings.linear_krr_st)
    return {"linear_krr_st": float(value)}


def _by_lbfgs(seed: Seed, frozen: Frozen, settings: Settings) -> dict[str, float]:
    parts = _labelled(frozen)
    return {} if parts is None else {"lbfgs": float(compiled.lbfgs(*parts, classes=frozen.classes))}


def _by_few_labels(seed: Seed, frozen: Frozen, settings: Settings) -> dict[str, float]:
    parts = _labelled(frozen)
    if parts is None:
        return {}
    values = {}
    # The labels depend on the seed but not on the entry, so that differences between entries are paired.
    for fraction in settings.fractions:
        indices = probes.draw_fraction(1000 * seed.base + seed.number, np.asarray(frozen.train_labels), fraction)
        values[_column(fraction)] = float(compiled.few_labels(*parts, indices, classes=frozen.classes))
    return values


def _by_few_shot(seed: Seed, frozen: Frozen, settings: Settings) -> dict[str, float]:
    parts = _labelled(frozen)
    # All seeds share the few labels, since the probe already averages over several draws.
    shots = parts and probes.draw_shots(seed.base, np.asarray(frozen.train_labels), frozen.classes)
    if parts is None or shots is None:
        return {}
    return {"few_shot": float(compiled.few_shot(*parts, shots, classes=frozen.classes))}


def _by_knn(seed: Seed, frozen: Frozen, settings: Settings) -> dict[str, float]:
    parts = _labelled(frozen)
    if parts is None:
        return {}
    return {"knn": float(compiled.knn(*parts, classes=frozen.classes, neighbours=settings.neighbours))}


def _by_feature_r2(seed: Seed, frozen: Frozen, settings: Settings) -> dict[str, float]:
    if frozen.teacher is None:
        return {}
    train, test = frozen.teacher
    explained = compiled.feature_r2((frozen.train, train), (frozen.test, test))
    if not np.isfinite(explained).all():
        raise UserError("feature_r2 is not finite, as the network's features are not: choose a smaller learning rate")
    return {"feature_r2": float(explained.plain), "feature_r2_whitened": float(explained.whitened)}


def _images_and_labels(target: Target) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Images and labels of the training and the test split."""
    data = target.dataset
    assert data.train_labels is not None and data.test_images is not None and data.test_labels is not None
    return (data.train_images, data.train_labels), (data.test_images, data.test_labels)


def _with_steps(chosen: finetune.Settings, target: Target) -> finetune.Settings:
    # A target may be known by a short name or by that of its loader.
    names = (target.name, target.dataset.name)
    steps = chosen.steps or (10_000 if any(name in LONG for name in names) else 5_000)
    return chosen._replace(steps=steps, flip=0.0 if any(name in UNFLIPPED for name in names) else chosen.flip)


def _together(module: nn.Module, target: Target, batch_size: int, settings: Settings) -> int | None:
    """Number of networks trained side by side; None for all."""
    return settings.together or training.side_by_side(module, (batch_size, *target.dataset.image_shape))


def _by_finetune(
    networks: Networks, target: Target, settings: Settings, supervised: Supervised
) -> list[dict[str, float]]:
    if networks.module is None:
        return []
    chosen = _with_steps(settings.tuning, target)
    data = target.dataset
    accuracies = finetune.run(
        jax.vmap(jax.random.fold_in, (0, None))(networks.keys, 3),
        networks.module,
        networks.variables,
        *_images_and_labels(target),
        classes=data.classes,
        mean=jnp.asarray(target.mean),
        std=jnp.asarray(target.std),
        settings=chosen,
        together=_together(networks.module, target, chosen.batch_size, settings),
        name=f"finetune {networks.entry.name}",
    )
    return [{"finetune": float(value)} for value in accuracies]


def supervised_network(target: Target, settings: Settings) -> nn.Module:
    """Create the supervised teacher of target data-free distillation, a classifier of the target's classes."""
    return architectures.make(settings.supervised_model, target.dataset.classes, target.dataset.image_shape)


def supervised_uses(target: Target, settings: Settings) -> list[Any]:
    """Return the cache key of the supervised teacher besides the target; JSON values."""
    return [settings.supervised_model, *_with_steps(settings.supervised, target)]


def train_supervised(key: Array, target: Target, settings: Settings) -> Any:
    """Train the supervised teacher on the target's labels and return its variables."""
    return zero_shot.train_teacher(
        key,
        supervised_network(target, settings),
        _images_and_labels(target)[0],
        mean=target.mean,
        std=target.std,
        settings=_with_steps(settings.supervised, target),
    )


def _by_zero_shot(
    networks: Networks, target: Target, settings: Settings, supervised: Supervised
) -> list[dict[str, float]]:
    data, seeds = target.dataset, len(networks.keys)
    test, constants = _images_and_labels(target)[1], {"mean": target.mean, "std": target.std}
    if networks.entry.train is None:  # the row of the teacher reports the supervised teacher of the distillation
        stacked = jax.tree.map(lambda leaf: leaf[None], supervised()[1])
        running = settings.distilling._replace(batch_statistics=False)
        value = zero_shot.accuracy(supervised_network(target, settings), stacked, test, settings=running, **constants)
        return [{"zero_shot_kd": float(value[0])}] * seeds
    module = networks.module
    if networks.entry.images is None or module is None:
        return []
    images = networks.entry.images(networks.keys)
    keys = jax.vmap(jax.random.fold_in, (0, None))(networks.keys, 5)
    key_head, key_train = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)

    # Pre-trained networks predict features; a student needs a head for the target's classes.
    def with_head(key: Array, variables: Any) -> Any:
        return finetune.with_head(key, module, variables, data.classes, data.image_shape)[1]

    students = jax.vmap(with_head)(key_head, networks.variables)
    accuracies = zero_shot.run(
        key_train,
        (module.clone(dim=data.classes), students),
        supervised(),
        images.inputs,
        test,
        settings=settings.distilling,
        noise=images.noise,
        together=_together(module, target, settings.distilling.batch_size, settings),
        name=f"zero_shot_kd {networks.entry.name}",
        **constants,
    )
    return [{"zero_shot_kd": float(value)} for value in accuracies]


def _column(fraction: float) -> str:
    """Name of a measure of `few_labels`, such as `few_labels_1` for 1 % of the labels."""
    return f"few_labels_{100 * fraction:g}"


PROTOCOLS: dict[str, Protocol] = {
    "linear": Protocol({"linear": "linear probe (%)"}, lambda s, t, e: list(s.linear), _by_linear),
    "linear_krr_st": Protocol(
        {"linear_krr_st": "KRR-ST's linear probe (%)"}, lambda s, t, e: list(s.linear_krr_st), _by_linear_krr_st
    ),
    "lbfgs": Protocol({"lbfgs": "MKDT's linear probe (%)"}, lambda s, t, e: [], _by_lbfgs),
    "few_labels": Protocol(
        {_column(fraction): f"{100 * fraction:g} % of labels (%)" for fraction in probes.FRACTIONS},
        lambda s, t, e: list(s.fractions),
        _by_few_labels,
    ),
    "few_shot": Protocol({"few_shot": "10 labels per class (%)"}, lambda s, t, e: [], _by_few_shot),
    "knn": Protocol({"knn": "k-NN (%)"}, lambda s, t, e: s.neighbours, _by_knn),
    "feature_r2": Protocol(
        {"feature_r2": "teacher's features (R2)", "feature_r2_whitened": "whitened features (R2)"},
        lambda s, t, e: [],
        _by_feature_r2,
        teacher=True,
    ),
    "finetune": Protocol(
        {"finetune": "fine-tuning (%)"}, lambda s, t, e: list(_with_steps(s.tuning, t)), whole=_by_finetune
    ),
    "zero_shot_kd": Protocol(
        {"zero_shot_kd": "distillation without target data (%)"},
        lambda s, t, e: [list(s.distilling), supervised_uses(t, s), e.offered],
        whole=_by_zero_shot,
    ),
}
