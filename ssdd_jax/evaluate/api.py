"""The Python interface of the evaluation: `ssdd_jax.evaluate` and the files that it writes."""

from __future__ import annotations

import os
import pathlib
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from threadpoolctl import threadpool_limits

from ssdd_jax import data, formats
from ssdd_jax.distilled import DistilledSet
from ssdd_jax.errors import UserError, whole
from ssdd_jax.evaluate import entries, options, sources, suite, tables
from ssdd_jax.evaluate.protocols.probes import too_few
from ssdd_jax.evaluate.protocols.table import PROTOCOLS
from ssdd_jax.evaluate.store import Store
from ssdd_jax.models import architectures
from ssdd_jax.runtime import constraints, devices, files, inputs
from ssdd_jax.runtime.version import __version__
from ssdd_jax.runtime.workdir import Workdir, held

Path = str | os.PathLike[str]
SCHEMA = 2  # 1: the measure `linear` is KRR-ST's, and untrained networks are not calibrated
WORKDIR = "runs/evaluate"


def evaluate(
    sets: DistilledSet | Path | Sequence[Path] | Mapping[str, DistilledSet | Path],
    *,
    models: Sequence[str] = (),
    targets: str | data.Dataset | Sequence[str | data.Dataset] | Mapping[str, Sequence[Any]] = (),
    protocols: Sequence[str] = (),
    references: Sequence[str] = entries.REFERENCES,
    seeds: int = 0,
    source: Path | entries.SourceData | tuple[Any, Any] | None = None,
    edition: str = "",
    workdir: Path = WORKDIR,
    say: Callable[[str], None] = print,
    **settings: Any,
) -> dict[str, Any]:
    """Train networks on distilled sets and on their baselines, and evaluate them.

    Results are cached in the work dir: a further target only costs the evaluation on that target.

    Args:
        sets: A distilled set or its path, several paths, or sets or paths by name. A path is anything that
            `ssdd_jax.load` reads: a run's `distilled`, the name of a ready-made set, `hf://OWNER/NAME`, KRR-ST's
            `x_syn.pt` and `y_syn.pt`, images with features, or an `.npz`.
        models: Architectures (`ssdd_jax.models.architectures`). Default: those of the edition.
        targets: Labelled data: names such as `cifar10`, `stanford_dogs`, `folder:PATH`, or data sets; or arrays in
            memory, by name: `{"mine": (train_images, train_labels, test_images, test_labels)}`, images uint8
            `(n,H,W,C)` and labels integers `(n,)`. Default: the data that the first set was distilled from.
        protocols: Names in `PROTOCOLS`. Default: those of the edition.
        references: Baselines reported alongside the sets, names in `REFERENCES`.
        seeds: Networks per row. Default: the number of the edition.
        source: The folder of the run that distilled the sets, from which their data and teacher are loaded. Default:
            the run folder that contains the first set; "none" disables this. Or the name of a data set, with
            `features=FILE`; or images and features in memory, uint8 `(n,H,W,C)` and floats `(n,D)`. Without a source
            the only baseline is an untrained network.
        edition: The preset of default values, a name in `EDITIONS`. Default: `digits` for sets of scikit-learn's
            digits; for all others `paper`, the published settings, on an accelerator, and `cpu`, with narrower networks
            and fewer steps, on a CPU. `mkdt` is MKDT's protocol.
        workdir: Folder of the cached results.
        say: Called with each message for the user.
        **settings: Changes to `Options`, such as `steps=1000` or `weight_decays=1e-3`.

    Returns:
        The content of `evaluation.json`: `rows` (each with `target`, `model`, `entry`, `protocol`,
        `measure`, `mean`, `std`, `seeds`, `values`; model None for the teacher and chance; trained networks also have
        `learning_rate` and `weight_decay`, as chosen on held-out training images), `differences` (paired by
        seed, with confidence intervals), `sets`, `models`, `settings`, `seeds`, `seconds`, `machine`, `version`.

    Raises:
        UserError: If an argument is invalid, a file is missing, the sets, targets and source do not fit together, or a
            network diverges.
    """
    began = time.monotonic()
    devices.check_backend()
    named_sets = sources.name_sets(sets)
    distilled_sets = {
        key: item if isinstance(item, DistilledSet) else formats.read(item) for key, item in named_sets.items()
    }
    # The first set determines the default edition, the source and the image shape; `suite.check` compares the others.
    first = next(iter(distilled_sets.values()))
    name = edition or _default_edition(first, say)
    preset = options.edition(name)
    resolved = options.make(preset, settings)
    models, protocols, references = map(_as_list, (models, protocols, references))
    _check(references)
    seeds = whole("seeds", seeds, 0)
    height, width, channels = first.pairs()[0].shape[1:]
    shape = (height, width, channels)
    run = _run_of(next(iter(named_sets.values())))
    source_data = _source(source, run, resolved, shape, say)
    _warn(distilled_sets, say)
    target_list = _targets(targets) or [_default_target(source_data, first)]
    # Repeated names would repeat rows, so each is evaluated once, in the order of the arguments.
    request = suite.Request(
        sets=distilled_sets,
        counts={key: sources.count_of(item) for key, item in distilled_sets.items()},
        models=tuple(dict.fromkeys(models or preset.models)),
        targets=[
            sources.target(item, source_data, data_dir=resolved.data_dir, image_shape=shape) for item in target_list
        ],
        protocols=tuple(dict.fromkeys(protocols or preset.protocols)),
        references=tuple(dict.fromkeys(references)),
        source=source_data,
        seeds=seeds or preset.seeds,
        seed=resolved.seed,
        training=options.for_training(resolved),
        judging=options.for_judging(resolved),
        calibrate=resolved.calibrate,
    )
    for note in _notes(request):
        say(f"evaluate: {note}")
    # Networks and metrics of the run's own evaluation are reused.
    folder = pathlib.Path(workdir).expanduser()
    store = Store(folder / "store", also=run and Workdir(run).evaluation)
    with held(folder), threadpool_limits(1, "blas"):  # LAPACK's threads would compete with XLA's
        rows = suite.run(request, store, say=say)
    details = {"edition": name, "settings": resolved._asdict(), "seconds": round(time.monotonic() - began, 1)}
    return _result(request, rows) | details


def _default_edition(distilled: DistilledSet, say: Callable[[str], None]) -> str:
    """Choose the preset that suits a set and the machine."""
    if distilled.about.get("dataset") == "digits":
        return "digits"
    if jax.default_backend() != "cpu":
        return "paper"
    say("evaluate: settings of the edition cpu, as there is no accelerator; the edition paper has the published ones")
    return "cpu"


def _notes(request: suite.Request) -> list[str]:
    """Say what a user should know about the targets, and which measures are left out."""
    notes = [f"{target.name}: {note}" for target in request.targets for note in target.dataset.notes]
    for target in request.targets if "few_shot" in request.protocols else ():
        dataset = target.dataset
        if dataset.train_labels is not None:
            few = too_few(dataset.train_labels, dataset.class_names)
            if few:
                notes.append(f"few_shot is left out on {target.name}: {few}")
    notes += [
        f"{name} is left out on {target.name}: the teacher's features of its images are not known"
        for target in request.targets
        for name in request.protocols
        if name in PROTOCOLS and PROTOCOLS[name].teacher and not suite.has_teacher(request, target)
    ]
    return notes


def _as_list(names: Any) -> Any:
    return [names] if isinstance(names, str) else names


def _targets(
    requested: str | data.Dataset | Sequence[str | data.Dataset] | Mapping[str, Sequence[Any]],
) -> list[str | data.Dataset]:
    if isinstance(requested, Mapping):
        return [sources.of_arrays(name, arrays) for name, arrays in requested.items()]
    given = [requested] if isinstance(requested, str | data.Dataset) else list(requested)
    if not all(isinstance(one, str | data.Dataset) for one in given):
        raise UserError("targets are names of data sets, or arrays by name: {NAME: (images, labels, images, labels)}")
    return given


def _warn(distilled_sets: Mapping[str, DistilledSet], say: Callable[[str], None]) -> None:
    """Warn if sets were distilled from different data or with different teachers."""
    for key in ("dataset", "teacher"):
        recorded = {name: item.about[key] for name, item in distilled_sets.items() if key in item.about}
        if len(set(recorded.values())) > 1:
            words = ", ".join(f"{name}: {value}" for name, value in recorded.items())
            say(f"evaluate: the sets differ in their {key} ({words}); the baselines are those of the first set")


def _check(references: Sequence[str]) -> None:
    unknown = [name for name in references if name not in entries.REFERENCES]
    if unknown:
        raise UserError(f"unknown reference {unknown[0]!r}: there are {', '.join(entries.REFERENCES)}")


def _result(request: suite.Request, rows: list[dict[str, Any]]) -> dict[str, Any]:
    first = next(iter(request.sets.values()))
    return {
        "schema": SCHEMA,
        "sets": [_about(key, item, request.counts[key]) for key, item in request.sets.items()],
        "models": [_size(model, first) for model in request.models],
        "targets": [target.name for target in request.targets],
        "protocols": list(request.protocols),
        "seeds": request.seeds,
        "rows": rows,
        "differences": tables.differences(rows, list(request.sets)),
        "machine": f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, {platform.machine()}",
        "version": __version__,
    }


def write(result: Mapping[str, Any], folder: Path) -> str:
    """Write a result into a folder: `evaluation.json`, `.md` and `.png`, and `constraints.txt` with the versions.

    Args:
        result: Output of `evaluate`.
        folder: The folder.

    Returns:
        The Markdown.
    """
    from ssdd_jax.evaluate import figures  # Matplotlib is slow to load

    output = pathlib.Path(folder).expanduser()
    words = tables.markdown(result)
    files.write_json(output / "evaluation.json", dict(result))
    # Names of files need not be UTF-8.
    files.write_bytes(output / "evaluation.md", (words + "\n").encode(errors="backslashreplace"))
    figures.draw(output / "evaluation.png", result)
    constraints.write(output)
    return words


def _source(
    requested: Path | entries.SourceData | tuple[Any, Any] | None,
    run: pathlib.Path | None,
    resolved: options.Options,
    shape: tuple[int, int, int],
    say: Callable[[str], None],
) -> entries.SourceData | None:
    """Load the data and the teacher of the sets; None if unknown. `run` is the run folder that contains the first."""
    if isinstance(requested, entries.SourceData):
        return requested
    if isinstance(requested, tuple):
        if len(requested) != 2:
            raise UserError("a source in memory is a pair: images and the teacher's features of them")
        return sources.of_features_in_memory(*requested)
    if requested == "none":
        return None
    if resolved.features and requested is None:
        raise UserError("features need the data set of their images: name it too, as in --source=tfds:cifar100")
    if resolved.features:
        return sources.of_features(str(requested), resolved.features, data_dir=resolved.data_dir, image_shape=shape)
    if requested is not None or run is not None:
        return sources.of_run(requested or run, shared=resolved.shared or None, data_dir=resolved.data_dir)  # type: ignore[arg-type]
    say(
        "evaluate: the source of the set is unknown, so that the only baseline is the untrained network: "
        "name the run that distilled it, as in --source=RUN"
    )
    return None


def _run_of(item: DistilledSet | Path) -> pathlib.Path | None:
    """The run folder that contains a set; None for a set in memory or outside of a run."""
    # Names of ready-made sets and addresses are not paths.
    if isinstance(item, DistilledSet) or not pathlib.Path(item).expanduser().exists():
        return None
    folder = pathlib.Path(item).expanduser().resolve().parent
    return folder if (folder / "config.json").exists() else None


def _default_target(source: entries.SourceData | None, first: DistilledSet) -> str | data.Dataset:
    """Choose the data that a set was distilled from: those of its source, or those that the set names."""
    if source is not None and not source.whole:  # a subset: loading the data set by its name would give other images
        return source.dataset
    name = source.dataset.name if source is not None else str(first.about.get("dataset", ""))
    # Of a folder or a file, a set has only the last part of the path.
    if source is None and (not data.targets.is_name(name) or name.startswith(inputs.PATHS)):
        raise UserError("no target is given: name one, as in --targets=cifar10")
    short = {full: key for key, full in data.targets.NAMES.items()}
    return short.get(name, name)


def _about(name: str, distilled: DistilledSet, count: int) -> dict[str, Any]:
    sizes = {
        "N": count,
        "pairs": len(distilled.pairs()[0]),
        "images": len(distilled.images()),
        "numbers": distilled.numbers_stored(),
    }
    origin = {key: distilled.about[key] for key in ("method", "dataset", "teacher", "seed") if key in distilled.about}
    return {"name": name, **sizes, **origin}


def _size(model: str, like: DistilledSet) -> dict[str, Any]:
    images, targets = like.pairs()
    shape = tuple(images.shape[1:])
    network = architectures.make(model, targets.shape[-1], shape)
    return {"name": model, "parameters": architectures.count(network, shape)}
