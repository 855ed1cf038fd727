"""Configuration: all keys with defaults and allowed values, and the search for config files."""

from __future__ import annotations

import importlib
import math
import os
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from ssdd_jax import augment, decoder
from ssdd_jax.errors import UserError
from ssdd_jax.models import convnet, convolution, precision

# Format of `config.devices.hosts` that names the coordinator and the index of the process.
HOSTS = re.compile(r"(?P<address>[^,\s]+:\d+),(?P<count>\d+),(?P<index>\d+)")


def default() -> ConfigDict:
    """Build the default config, with the published values of Boost-SSDD for 32x32 images where there are any."""
    config = ConfigDict()
    config.seed = 0
    config.method = "boost"  # boost | composed | krr_st | mkdt | scdd | lgm | clp_dd | subset | rela | noise

    config.precision = "auto"  # of pool, teacher and students: float32 | bfloat16 | auto (bfloat16 on accelerators)

    config.data = data = ConfigDict()
    data.name = "digits"  # digits | tfds:NAME | tiny_imagenet | aircraft | folder:PATH | npz:PATH | npy:PATH
    data.data_dir = ""  # folder of TFDS data, or of the original files of Tiny ImageNet or FGVC-Aircraft
    data.train_split = "train"
    data.test_split = "test"
    data.image_size = 0  # side in pixels; 0: the stored size
    data.train_limit = 0  # number of training images to use; 0: all
    data.test_fraction = 0.2  # share that is held out if the data have no test split
    data.cache_dir = ""  # folder for decoded images, which are memory-mapped from it; empty: images stay in memory

    config.devices = devices = ConfigDict()  # may differ between starts of the same run
    devices.pool = 0  # devices to split the models of a step over; 0: the most that divide both models and devices
    devices.data = 0  # devices to split batches of images over; 0: the remaining ones, as far as they divide these
    devices.gigabytes = 0.0  # images and features above this size are streamed from the host; 0: half of the memory
    devices.preflight = "refuse"  # refuse | warn | off: if a stage needs more memory than an accelerator has
    devices.hosts = ""  # for several processes: auto (SLURM, GKE, TPU pods), or ADDRESS:PORT,COUNT,INDEX

    config.teacher = teacher = ConfigDict()
    teacher.seed = 0  # seed of the teacher and of other outputs that runs may share
    teacher.features = ""  # .npy or .npz file of precomputed features, instead of training a teacher
    teacher.source = ""  # weights of a pretrained network, instead of training a teacher
    teacher.input_size = 0  # input side of a pretrained network in pixels; 0: as in its files, or as in its training
    teacher.preprocessing = "auto"  # auto | dataset | imagenet | half | unit | cifar10 | cifar100
    teacher.stem_padding = 2  # padding of a 3x3 stem, which weights do not reveal. solo-learn and KRR-ST: 2; others: 1
    teacher.heads = 0  # attention heads of a vision transformer; 0: as in the files, or usual for the width
    teacher.gate = "warn"  # warn | refuse | off: if its features classify no better than an untrained student's
    teacher.blocks = (2, 2, 2, 2)  # blocks in each of four stages: ResNet-18; (1, 1, 1, 1) is ResNet-10
    teacher.width = 64  # channels of the first stage; features are 8 times as long
    teacher.projector_hidden = 2048
    teacher.projector_out = 2048
    teacher.off_diagonal = 0.0051
    teacher.scale = 0.1
    teacher.epochs = 1000
    teacher.warmup_epochs = 10
    teacher.batch_size = 256
    teacher.learning_rate = 0.3
    teacher.weight_decay = 1e-4
    teacher.crop_scale = (0.08, 1.0)
    teacher.flip_probability = 0.5
    teacher.solarize_probability = 0.2  # probability for the second view
    teacher.steps_per_call = 50
    teacher.save_every = 2000

    # For Boost-SSDD only, like storage.tolerance, storage.image_weight, storage.hidden, distill.start and approximate.
    config.views = ("rot0", "rot90", "rot180", "rot270")

    config.storage = storage = ConfigDict()
    storage.N = 100  # budget: the set must fit in the storage of N images and their features
    storage.bytes = 0  # budget in bytes of the file instead, headers included; 0: the numbers of N images
    storage.images = "auto"  # precision of images: float32 | bfloat16 | float16 | int8 to int2; real images: png | webp
    # | jpeg too; auto: float32, and for a budget in bytes what is measured (Boost-SSDD), int8, or webp (real images)
    storage.targets = "auto"  # likewise of targets, without the codes; auto in bytes is int5 beside coded images
    storage.quality = 0  # of webp and jpeg, 1 to 100; 0: 80, and for a budget in bytes the highest that fits
    storage.M = 0  # decoded or composed images; 0, also for U and V: chosen so that the budget is used
    storage.U = 0  # image bases, or images that Boost-SSDD+ stores
    storage.V = 0  # feature bases
    storage.criterion = "error"  # what an M, U or V of 0 is chosen by: error, of decoded images and targets | loss, the
    # outer loss of untrained networks at the start, with the smallest M that is about as good as the best
    storage.tolerance = 0.05  # an M of 0 is as large as this much more error of decoded images and targets allows
    storage.image_weight = 1.0  # weight of the error of images relative to that of targets, where these are chosen
    storage.base_size = 0  # shorter side, in pixels, of the image bases, or of the images that Boost-SSDD+ stores
    # 0: 16, or half a side of images under 32; Boost-SSDD+ decides by the budget
    storage.hidden = 4  # hidden units of an approximation network

    config.student = student = ConfigDict()
    student.widths = (128, 256, 512)
    student.norm = "batch"  # batch | instance

    config.inner = inner = ConfigDict()
    inner.learning_rate = 0.1
    inner.momentum = 0.9
    inner.weight_decay = 1e-3

    config.pool = pool = ConfigDict()
    pool.size = 10
    pool.steps = 1000  # age in steps at which a model is reinitialized
    pool.models_per_step = 1
    pool.vectorize = 0  # models computed in parallel; 0: one on a CPU, on accelerators what is measured to be fastest
    pool.form = "auto"  # of the convolutions: lax | patches | im2col | winograd | auto, measured like vectorize

    config.distill = distill = ConfigDict()
    distill.samples = "random"  # images that a method starts from, or a subset consists of: random | kmeans | high_loss
    distill.start = "pca"  # initialization of Boost-SSDD's parameters: pca | random | samples
    distill.steps = 30_000
    distill.batch_size = 1024  # real images of an outer step
    distill.pairs_per_step = 0  # pairs of an outer step, drawn anew in each; 0: all, as published
    distill.learning_rate = 1e-3
    distill.weight_decay = 0.0
    distill.ridge_scale = 1e-6
    distill.steps_per_call = 50
    distill.save_every = 1000

    config.approximate = approximate = ConfigDict()
    approximate.steps = 3000
    approximate.learning_rate = 1e-2
    approximate.joint = False  # learn the networks with bases and coefficients, instead of afterwards (Boost-SSDD)

    config.experts = experts = ConfigDict()  # students that MKDT imitates, and whose losses high_loss uses
    experts.count = 100
    experts.widths = (128, 128, 128)
    experts.norm = "instance"  # instance | batch
    experts.start_epochs = 2  # a section of a trajectory begins after 0 to start_epochs - 1 epochs
    experts.epochs = 2  # and ends this many epochs later
    experts.batch_size = 256
    experts.learning_rate = 0.1
    experts.momentum = 0.9
    experts.weight_decay = 1e-4
    experts.vectorize = 1  # number of experts trained in parallel

    config.mkdt = mkdt = ConfigDict()
    mkdt.unroll = 40  # steps on the distilled set
    mkdt.batch_size = 256  # distilled images per step
    mkdt.image_learning_rate = 1000.0
    mkdt.target_learning_rate = 1.0
    mkdt.rate_learning_rate = 1e-4
    mkdt.momentum = 0.5
    mkdt.rate = 0.1  # initial value of the student's learned rate

    config.scdd = scdd = ConfigDict()
    scdd.images_per_class = 0  # 0: as many as fit the budget
    scdd.group_size = 100  # images recovered together, which share batch statistics
    scdd.bn_weight = 0.005
    scdd.first_bn_weight = 10.0
    scdd.jitter = 4  # largest cyclic shift in pixels
    scdd.vectorize = 1  # number of groups recovered in parallel
    scdd.post_epochs = 200  # epochs of SC-DD's post-training, with the rates of 300 or more; 0: skip it
    scdd.post_batch_size = 64
    scdd.post_learning_rate = 1e-3
    scdd.post_weight_decay = 0.01
    scdd.temperature = 30.0
    scdd.mixup = 0.8
    scdd.padding = 4  # pixels added on every side before a random crop
    scdd.flip = 0.5  # probability of a horizontal flip

    # Methods for a frozen encoder, lgm and clp_dd.
    config.encoder = encoder = ConfigDict()
    encoder.clusters = 0  # clusters of the teacher's features in place of labels; 0: labels
    encoder.copies = 10  # LGM: augmented copies of each distilled image in a step, and as many real images
    encoder.flip = 0.5  # probability of a horizontal flip of these, and of the images that heads are trained on
    encoder.crop_scale = (0.08, 1.0)  # range of the area of their crops
    encoder.extend_every = 200  # steps after which the next resolution joins
    encoder.ridge_scale = 1e-3  # CLP-DD, and the heads in closed form that test the set
    encoder.temperature = 0.1  # CLP-DD
    encoder.head_epochs = 1000  # of the published heads that test the set; 0: skip them
    encoder.label_steps = 0  # SGD steps of networks trained on the labels, for DD-Ranking's scores (300 there); 0: skip

    config.evaluate = evaluate = ConfigDict()
    evaluate.entries = ("distilled", "random_real", "random_init", "full_data", "teacher")  # rows of the results
    evaluate.seeds = 3
    evaluate.steps = 7000  # SGD steps of every network but those trained on all images
    evaluate.full_steps = 20_000  # SGD steps of the same network on all images, with cosine decay
    evaluate.batch_size = 256
    evaluate.learning_rate = 0.1
    evaluate.momentum = 0.9
    evaluate.weight_decays = (1e-4, 1e-3, 5e-3)  # one, or several to choose from on held-out training images
    evaluate.full_weight_decays = (1e-4,)  # likewise, on all images
    evaluate.cosine = False  # let the learning rate fall to 0 along a cosine, on every set; published: it is constant
    evaluate.own_rate = False  # train on the distilled set at its stored learning rate (MKDT)
    evaluate.calibrate = "untrained"  # rows with batch-norm statistics of training images: none | untrained | all
    evaluate.probe_steps = 5000  # of KRR-ST's linear probe, which SC-DD uses too
    evaluate.probe_batch_size = 512
    evaluate.probe_learning_rate = 0.2
    return config


# Changes of the edition `all_models` of the configs with the papers' hyperparameters: every outer step draws the whole
# pool, which gives the published estimate with less noise, at the cost of as many steps of one model.
ALL_MODELS: dict[str, Any] = {"pool.models_per_step": 10}
# Presets, called editions: changes to the defaults of every data set, by name. `ssdd_jax.methods` fills the table from
# the methods' definitions. A config file may add changes for its own data.
EDITIONS: dict[str, dict[str, Any]] = {}


def edit(config: ConfigDict, edition: str, own: Mapping[str, Mapping[str, Any]] = {}) -> ConfigDict:  # noqa: B006
    """Apply editions, such as `cpu,mkdt`, to a config: each in turn, and last the changes for their combination.

    Args:
        config: The config, changed in place.
        edition: Names separated by commas; may be empty.
        own: Changes of the config file's editions, dotted keys to values. They are applied after those of `EDITIONS` of
            the same name. A name such as `cpu,mkdt` applies if both editions are chosen.

    Returns:
        The config.

    Raises:
        ValueError: If an edition is unknown; the message lists all.
    """
    # The table is filled when the methods are imported; they import this module.
    importlib.import_module("ssdd_jax.methods")
    names = [name for name in edition.split(",") if name]
    available = [name for name in own if "," not in name] + [name for name in EDITIONS if name not in own]
    for name in names:
        if name not in available:
            raise ValueError(f"unknown edition {name!r}: there are {', '.join(available)}")
    chosen = [name for name in names if name in EDITIONS]
    if len(set(chosen)) > 1:
        raise ValueError(f"the editions {' and '.join(chosen)} name two methods: choose one")
    combinations = [key for key in own if "," in key and set(key.split(",")) <= set(names)]
    for name in (*names, *combinations):
        config.update_from_flattened_dict({**EDITIONS.get(name, {}), **own.get(name, {})})
    return config


def _at_least(least: float) -> tuple[Callable[[Any], bool], str]:
    return (lambda value: math.inf > value >= least), f"at least {least}"


def _between(low: float, high: float) -> tuple[Callable[[Any], bool], str]:
    return (lambda value: low <= value <= high), f"between {low} and {high}"


def _positive() -> tuple[Callable[[Any], bool], str]:
    return (lambda value: math.inf > value > 0), "above 0"


def _one_of(names: Any) -> tuple[Callable[[Any], bool], str]:
    return (lambda value: value in names), f"one of {', '.join(names)}"


def _widths(value: Any) -> bool:
    return len(value) > 0 and all(
        isinstance(width, int) and not isinstance(width, bool) and width > 0 for width in value
    )


def _decays(value: Any) -> bool:
    return len(value) > 0 and all(
        isinstance(decay, int | float) and not isinstance(decay, bool) and decay >= 0 for decay in value
    )


def _hosts(value: str) -> bool:
    match = HOSTS.fullmatch(value)
    return value in ("", "auto") or (match is not None and int(match["index"]) < int(match["count"]))


_COUNTS = (
    "teacher.width teacher.projector_hidden teacher.projector_out teacher.epochs teacher.steps_per_call "
    "teacher.save_every storage.N storage.hidden pool.size pool.models_per_step "
    "distill.steps distill.batch_size distill.steps_per_call distill.save_every approximate.steps evaluate.seeds "
    "evaluate.steps evaluate.full_steps evaluate.probe_steps evaluate.probe_batch_size "
    "experts.count experts.start_epochs experts.epochs experts.batch_size experts.vectorize mkdt.unroll "
    "mkdt.batch_size scdd.group_size scdd.vectorize scdd.post_batch_size encoder.copies encoder.extend_every"
).split()
_RATES = (
    "teacher.learning_rate teacher.off_diagonal teacher.scale inner.learning_rate distill.learning_rate "
    "distill.ridge_scale approximate.learning_rate evaluate.learning_rate evaluate.probe_learning_rate "
    "experts.learning_rate mkdt.rate scdd.post_learning_rate scdd.temperature encoder.ridge_scale "
    "encoder.temperature storage.image_weight"
).split()
_NOT_NEGATIVE = (
    "data.image_size data.train_limit teacher.warmup_epochs teacher.weight_decay storage.M storage.U "
    "storage.tolerance storage.V storage.base_size inner.weight_decay distill.pairs_per_step distill.weight_decay "
    "experts.weight_decay mkdt.image_learning_rate mkdt.target_learning_rate mkdt.rate_learning_rate "
    "scdd.images_per_class scdd.bn_weight scdd.first_bn_weight scdd.jitter scdd.mixup scdd.padding scdd.post_epochs "
    "scdd.post_weight_decay devices.gigabytes devices.pool devices.data pool.vectorize teacher.input_size "
    "teacher.stem_padding teacher.heads encoder.head_epochs encoder.label_steps storage.bytes"
).split()

# Rows with recalibrated batch norm: no row, as published; the untrained networks; every network.
CALIBRATE = ("none", "untrained", "all")
ENTRIES = ("distilled", "random_real", "random_init", "full_data", "teacher")
SAMPLES = ("random", "kmeans", "high_loss")
# JAX takes the lower 32 bits of a seed, so that larger ones would repeat the runs of smaller ones.
LARGEST_SEED = 2**32 - 1
PREPROCESSING = ("auto", "dataset", "imagenet", "half", "unit", "cifar10", "cifar100")
FEATURES = (".npy", ".npz")
# Precisions of stored arrays: see `ssdd_jax.storage.quantize`.
PRECISIONS = ("float32", "bfloat16", "float16", *(f"int{bits}" for bits in range(8, 1, -1)))
# Formats of pictures that the images of a subset may be coded in.
CODES = ("png", "webp", "jpeg")


def _shares(value: Any) -> bool:
    return len(value) == 2 and all(isinstance(v, int | float) for v in value) and 0 < value[0] <= value[1] <= 1


RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    **{key: _at_least(1) for key in _COUNTS},
    **{key: _positive() for key in _RATES},
    **{key: _at_least(0) for key in _NOT_NEGATIVE},
    **dict.fromkeys(("seed", "teacher.seed"), _between(0, LARGEST_SEED)),
    "data.test_fraction": _between(0.01, 0.9),
    "devices.hosts": (_hosts, "auto, or ADDRESS:PORT,COUNT,INDEX with INDEX below COUNT, such as node1:8476,2,0"),
    "teacher.batch_size": _at_least(2),
    "teacher.blocks": ((lambda v: len(v) == 4 and _widths(v)), "four whole numbers above 0, such as (2, 2, 2, 2)"),
    **dict.fromkeys(
        ("teacher.crop_scale", "encoder.crop_scale"),
        (_shares, "two numbers, 0 < low <= high <= 1"),
    ),
    "teacher.gate": _one_of(("warn", "refuse", "off")),
    "devices.preflight": _one_of(("refuse", "warn", "off")),
    "teacher.flip_probability": _between(0, 1),
    "scdd.flip": _between(0, 1),
    "encoder.flip": _between(0, 1),
    "encoder.clusters": ((lambda v: v == 0 or v >= 2), "0, or at least 2"),
    "teacher.solarize_probability": _between(0, 1),
    "views": (
        (lambda v: len(v) > 0 and len(set(v)) == len(v) and all(name in augment.VIEWS for name in v)),
        f"different names out of {', '.join(augment.VIEWS)}",
    ),
    "student.widths": (_widths, "whole numbers above 0, such as (128, 256, 512)"),
    "inner.momentum": _between(0, 0.9999),
    "evaluate.momentum": _between(0, 0.9999),
    "pool.steps": _at_least(2),
    "experts.widths": (_widths, "whole numbers above 0, such as (128, 128, 128)"),
    "experts.norm": _one_of(convnet.NORMS),
    "student.norm": _one_of(convnet.NORMS),
    "experts.momentum": _between(0, 0.9999),
    "mkdt.momentum": _between(0, 0.9999),
    "evaluate.entries": (
        (lambda v: v[:1] == ("distilled",) and len(set(v)) == len(v) and set(v) <= set(ENTRIES)),
        f"'distilled' and then any of {', '.join(ENTRIES[1:])}, each once",
    ),
    "evaluate.calibrate": _one_of(CALIBRATE),
    "evaluate.weight_decays": (_decays, "one or several numbers of at least 0, such as (1e-4, 1e-3)"),
    "evaluate.full_weight_decays": (_decays, "one or several numbers of at least 0, such as (1e-4,)"),
    "precision": _one_of(precision.NAMES),
    "pool.form": _one_of(("auto", *convolution.FORMS)),
    "teacher.preprocessing": _one_of(PREPROCESSING),
    "distill.samples": _one_of(SAMPLES),
    "storage.criterion": _one_of(("error", "loss")),
    "storage.images": _one_of(("auto", *PRECISIONS, *CODES)),
    "storage.targets": _one_of(("auto", *PRECISIONS)),
    "storage.quality": _between(0, 100),
    "distill.start": _one_of(tuple(decoder.STARTS)),
    "evaluate.batch_size": _at_least(2),
}


def validate(config: ConfigDict) -> None:
    """Check every value, and combinations of values. The method's name is checked by `methods.make`.

    Raises:
        UserError: If a value is not allowed; the message names the key, the value and the allowed values.
    """
    unknown = sorted(set(flatten(config)) ^ set(flatten(default())))
    if unknown:
        raise UserError(f"unknown or missing config key config.{unknown[0]}; --help_config lists them all")
    for key, (allowed, requirement) in RULES.items():
        value = get(config, key)
        if not allowed(value):
            raise UserError(f"config.{key}={value!r} is out of range: it must be {requirement}")
    if config.pool.models_per_step > config.pool.size:
        raise UserError(
            f"config.pool.models_per_step={config.pool.models_per_step} is out of range: "
            f"it must be at most pool.size={config.pool.size}"
        )
    source, features = config.teacher.source, config.teacher.features
    if source and features and source != features:
        raise UserError(
            f"config.teacher.source={source!r} and config.teacher.features={features!r} are both set: leave one empty"
        )
    if config.views[0] != "rot0":
        raise UserError(f"config.views={config.views!r} is out of range: the first view must be 'rot0'")


def resolved(config: ConfigDict) -> ConfigDict:
    """Return the config, with a `teacher.source` that is a file of features moved to `teacher.features`."""
    if not config.teacher.source.endswith(FEATURES):
        return config
    changed = config.copy_and_resolve_references()
    with changed.unlocked():
        changed.teacher.features, changed.teacher.source = config.teacher.source, ""
    return changed


def get(config: ConfigDict, key: str) -> Any:
    """Return the value of a dotted key."""
    value: Any = config
    for part in key.split("."):
        value = value[part]
    return value


def flatten(config: ConfigDict) -> dict[str, Any]:
    """Flatten a config to a dictionary of dotted keys; tuples become lists, as in JSON."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            flat |= {f"{key}.{inner}": v for inner, v in flatten(value).items()}
        else:
            flat[key] = list(value) if isinstance(value, tuple) else value
    return flat


def find(name: str) -> str:
    """Find the config file of `name[:argument]`: first as a path, then among the files of the package.

    Args:
        name: A name such as `configs/cifar10.py:cpu`.

    Returns:
        `path[:argument]` with an existing path.

    Raises:
        UserError: If there is no such file; the message lists those of the package.
    """
    path_text, colon, argument = name.partition(":")
    path = pathlib.Path(path_text).expanduser()
    candidates = [path, *(folder / path.name for folder in shipped_folders() if path.parent.name in ("", "configs"))]
    for candidate in candidates:
        if candidate.is_file():
            return f"{candidate}{colon}{argument}"
    shipped = sorted({file.name for folder in shipped_folders() for file in folder.glob("*.py")})
    raise UserError(f"no config file {path_text}: the package contains configs/{', configs/'.join(shipped)}")


def shipped_folders() -> list[pathlib.Path]:
    """Return the folders of the package's config files."""
    package = pathlib.Path(__file__).parent
    # Next to the package in a checkout, inside it in a wheel.
    return [folder for folder in (package.parent / "configs", package / "configs") if folder.is_dir()]


def folder_argument(argument: str) -> tuple[pathlib.Path, str]:
    """Split the argument of configs/folder.py, `PATH` or `PATH,EDITION`, into folder and edition.

    A path may hold commas.

    Raises:
        UserError: If there is no path.
    """
    path, edition = argument, ""
    first, comma, last = argument.rpartition(",")
    if comma and last in EDITIONS:
        path, edition = first, last
    if not path:
        raise UserError("configs/folder.py needs a folder of images: --config=configs/folder.py:PATH")
    # As an absolute path, so that a run can be continued from another directory.
    return pathlib.Path(os.path.abspath(pathlib.Path(path).expanduser())), edition
