"""Settings of an evaluation, with the source of every default, and their presets (called editions)."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from ssdd_jax import config
from ssdd_jax.errors import UserError
from ssdd_jax.evaluate import entries, training
from ssdd_jax.evaluate.protocols import finetune, probes, table, zero_shot
from ssdd_jax.models import precision


class Options(NamedTuple):
    """All settings with their defaults; a default from a publication names its source."""

    seed: int = 0  # every row of one seed starts from the same initial networks and uses the same labels
    data_dir: str = ""  # folder of the TFDS data sets, or of the targets' original files
    shared: str = ""  # the --shared folder of the run that distilled the sets, if it had one
    features: str = ""  # a .npy or .npz with the teacher's features, if --source names a data set instead of a run
    together: int = 0  # networks trained side by side in one program; 0: chosen by the device and its memory

    precision: str = "auto"  # of the layers in training: float32, bfloat16, or auto, bfloat16 on an accelerator
    steps: int = 7000  # SGD steps on a set and on real images; about 1,000 epochs of KRR-ST's and Boost-SSDD's sets
    epochs: int = 0  # passes over a set instead of a number of steps; 0: steps
    batch_size: int = 256  # pairs per step (KRR-ST test.py)
    learning_rate: float = 0.1  # learning rate of SGD (KRR-ST test.py)
    momentum: float = 0.9  # momentum of SGD (KRR-ST)
    weight_decays: tuple[float, ...] = (1e-4, 1e-3, 5e-3)  # one, or several to choose from (KRR-ST test.py: 1e-3)
    cosine: bool = False  # let the learning rate fall to 0 along a cosine, on every set (published: it is constant)
    own_rate: bool = False  # use the learning rate stored with a set (MKDT)
    full_steps: int = 20_000  # SGD steps on the full source set, with cosine decay
    full_epochs: int = 0  # passes over it at a constant rate instead, as MKDT; 0: full_steps
    full_weight_decays: tuple[float, ...] = (1e-4,)  # on the full source set (MKDT eval.py)
    calibrate: str = "untrained"  # rows with batch-norm statistics of target images: none, untrained or all

    linear_steps: int = 5000  # SGD steps of linear_krr_st (KRR-ST train.py)
    linear_batch_size: int = 512  # of linear_krr_st (KRR-ST train.py)
    linear_learning_rate: float = 0.2  # of linear_krr_st (KRR-ST train.py); cosine decay, no weight decay
    fractions: tuple[float, ...] = (0.01, 0.05, 0.1, 0.5)  # shares of the labels in few_labels (MKDT)
    neighbours: int = 20  # neighbours of k-NN (solo-learn)
    finetune_steps: int = 0  # 0: 10,000 on CIFAR and Tiny ImageNet, 5,000 elsewhere (KRR-ST test.py)
    finetune_batch_size: int = 256  # (KRR-ST test.py)
    finetune_learning_rate: float = 0.01  # (KRR-ST test.py)
    finetune_weight_decay: float = 5e-4  # (KRR-ST test.py)
    kd_epochs: int = 1000  # epochs of zero_shot_kd (KRR-ST test_kd.py)
    kd_batch_size: int = 512  # (KRR-ST test_kd.py)
    kd_learning_rate: float = 1e-4  # learning rate of AdamW; ten times as high on noise (KRR-ST test_kd.py)
    kd_teacher: str = "resnet18"  # architecture of the supervised teacher of zero_shot_kd (KRR-ST test_kd.py)
    kd_teacher_steps: int = 0  # steps of that teacher's supervised training; 0: as finetune_steps (KRR-ST scratch.py)


class Edition(NamedTuple):
    """A preset of an evaluation.

    Attributes:
        models: Default architectures.
        protocols: Default protocols.
        seeds: Default number of networks per row.
        changes: Settings that differ from the defaults of `Options`.
    """

    models: tuple[str, ...]
    protocols: tuple[str, ...]
    seeds: int
    changes: Mapping[str, Any]


EDITIONS: dict[str, Edition] = {
    "paper": Edition(("convnet",), ("linear", "linear_krr_st"), 3, {}),
    # MKDT's published evaluation (eval.py, evaluation/linear_evaluation.py): 20 epochs, few labels.
    "mkdt": Edition(
        ("convnet3_in",),
        ("few_labels",),
        3,
        {
            "epochs": 20,
            "weight_decays": (1e-4,),
            "own_rate": True,
            "full_epochs": 20,
            "calibrate": "none",
            "fractions": (0.01, 0.05),
        },
    ),
    # For two CPU cores and 32x32 images: the settings of the edition cpu in the config files.
    "cpu": Edition(
        ("convnet_32_64_128_bn",),
        ("linear", "few_shot"),
        3,
        {
            "steps": 1000,
            "full_steps": 2000,
            "linear_steps": 2000,
            "finetune_steps": 200,
            "kd_epochs": 50,
            "kd_teacher": "convnet_32_64_128_bn",
            "kd_teacher_steps": 400,
        },
    ),
    # For scikit-learn's digits at 16x16, as in configs/digits.py.
    "digits": Edition(
        ("convnet_16_32_64_64_bn", "resnet10_4"),
        ("linear", "few_shot"),
        3,
        {
            "steps": 1000,
            "batch_size": 64,
            "weight_decays": (1e-4, 1e-3),
            "full_steps": 1500,
            "linear_steps": 1000,
            "finetune_steps": 200,
            "kd_epochs": 100,
            "kd_learning_rate": 3e-3,
            "kd_teacher": "convnet_16_32_64_64_bn",
            "kd_teacher_steps": 200,
        },
    ),
}


def edition(name: str) -> Edition:
    """Look up an edition by name.

    Args:
        name: A name in `EDITIONS`.

    Raises:
        UserError: If the name is unknown; the message lists all names.
    """
    if name not in EDITIONS:
        raise UserError(f"unknown edition {name!r}: there are {', '.join(EDITIONS)}")
    return EDITIONS[name]


def make(chosen: Edition, changes: Mapping[str, Any]) -> Options:
    """Combine the defaults, the settings of an edition, and further changes.

    Args:
        chosen: The edition.
        changes: Values by the name of the setting; they override the edition's.

    Raises:
        UserError: If a name is unknown, or a value has the wrong type or is out of range.
    """
    defaults = Options._field_defaults
    for name, value in changes.items():
        if name not in defaults:
            raise UserError(f"unknown setting {name!r}: there are {', '.join(defaults)}")
        kind = type(defaults[name])
        if kind is tuple:
            changes = {**changes, name: _numbers(name, value)}
            continue
        # bool is a subclass of int, and an int is accepted where a float is expected.
        if not isinstance(value, (int, float) if kind is float else kind) or (kind is int and isinstance(value, bool)):
            raise UserError(f"{name}={value!r} is not {'an' if kind is int else 'a'} {kind.__name__}")
        if name == "precision" and value not in precision.NAMES:
            raise UserError(f"precision={value!r} is out of range: it must be one of {', '.join(precision.NAMES)}")
        if name == "seed" and value > config.LARGEST_SEED:
            raise UserError(f"seed={value} is out of range: it must be at most {config.LARGEST_SEED}")
        least = 0 if name in _FROM_ZERO else 1 if kind is int else None
        if least is not None and kind in (int, float) and value < least:
            raise UserError(f"{name}={value!r} is out of range: it must be at least {least}")
        if kind is float and name not in _FROM_ZERO and value <= 0:
            raise UserError(f"{name}={value!r} is out of range: it must be above 0")
        if kind is float and not value < _BELOW.get(name, math.inf):  # also NaN
            raise UserError(f"{name}={value!r} is out of range: it must be below {_BELOW.get(name, math.inf):g}")
    return Options(**{**chosen.changes, **changes})


# Settings that may be 0; all other integers are at least 1, all other floats positive.
_FROM_ZERO = {
    "seed", "together", "epochs", "full_epochs", "momentum", "finetune_steps", "finetune_weight_decay",
    "kd_teacher_steps",
}  # fmt: skip


# Settings with an upper limit.
_BELOW = {"momentum": 1.0}


def _numbers(name: str, value: Any) -> tuple[float, ...]:
    """Check a setting that holds several numbers; a single number stands for itself."""
    values = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    if not values or not all(isinstance(one, (int, float)) and 0 <= one < math.inf for one in values):
        raise UserError(f"{name}={value!r} is out of range: it must be one or several numbers of at least 0")
    if name == "fractions" and not set(values) <= set(probes.FRACTIONS):
        raise UserError(f"{name}={value!r}: there are {', '.join(map(str, probes.FRACTIONS))}")
    return values


def for_training(options: Options) -> entries.Settings:
    """Return the training settings."""
    rates, full_rates = (
        tuple(training.Rate(options.learning_rate, decay) for decay in decays)
        for decays in (options.weight_decays, options.full_weight_decays)
    )
    pairs = training.Settings(
        options.steps,
        options.epochs,
        options.batch_size,
        rates,
        options.momentum,
        options.cosine,
        precision=precision.resolve(options.precision, jax.default_backend()),
    )
    # Full data is trained until the loss has converged, which takes a decaying rate; MKDT's epochs have none.
    full = pairs._replace(
        steps=options.full_steps, epochs=options.full_epochs, rates=full_rates, cosine=not options.full_epochs
    )
    return entries.Settings(
        pairs=pairs,
        full=full,
        own_rate=options.own_rate,
        together=options.together,
    )


def for_judging(options: Options) -> table.Settings:
    """Return the settings of the protocols."""
    tuning = finetune.Settings(
        steps=options.finetune_steps,
        batch_size=options.finetune_batch_size,
        learning_rate=options.finetune_learning_rate,
        weight_decay=options.finetune_weight_decay,
    )
    return table.Settings(
        linear_krr_st=probes.SgdSettings(options.linear_steps, options.linear_batch_size, options.linear_learning_rate),
        tuning=tuning,
        distilling=zero_shot.Settings(
            epochs=options.kd_epochs,
            batch_size=options.kd_batch_size,
            learning_rate=options.kd_learning_rate,
            noise_learning_rate=10 * options.kd_learning_rate,
        ),
        supervised=finetune.Settings(steps=options.kd_teacher_steps or options.finetune_steps),
        supervised_model=options.kd_teacher,
        neighbours=options.neighbours,
        fractions=options.fractions,
        together=options.together,
    )


def page() -> str:
    """Format all settings for the help text, with their defaults and the comments in the source of `Options`."""
    # Reading the source keeps the help text and the comments of the fields the same.
    lines = inspect.getsource(Options).splitlines()
    begin = next(i for i, line in enumerate(lines) if line.strip().startswith("seed:"))
    formatted = []
    for line in lines[begin:]:
        name, _, rest = line.strip().partition(":")
        default, _, words = rest.partition("=")[2].partition("  # ")
        # Several numbers are separated by commas on the command line.
        default = default.strip().strip("()").rstrip(",").replace(", ", ",")
        formatted.append(f"  --{name + '=' + default:<32} {words}" if name else "")
    return "\n".join(formatted)
