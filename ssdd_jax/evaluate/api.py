"""One call from sets to a table: `ssdd_jax.evaluate`."""

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
from ssdd_jax.errors import UserError
from ssdd_jax.evaluate import entries, options, sources, suite, tables
from ssdd_jax.evaluate.store import Store
from ssdd_jax.models import architectures
from ssdd_jax.runtime import files
from ssdd_jax.runtime.version import __version__
from ssdd_jax.runtime.workdir import Workdir, held

Path = str | os.PathLike[str]
SCHEMA = 1
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
    """Train networks on distilled sets and on what they are compared with, and judge them.

    What has been computed in the same work dir is not computed again: asking for one more target costs one target.

    Args:
        sets: A distilled set or its path, several paths, or sets or paths by name. A path is whatever
            `ssdd_jax.load` reads: a run's `distilled`, KRR-ST's `x_syn.pt` and `y_syn.pt`, images with features, an
            `.npz`.
        models: Architectures (`ssdd_jax.models.architectures`); those of the edition if left out.
        targets: Labelled data: names such as `cifar10`, `stanford_dogs`, `folder:PATH`, or data sets; or, by the names
            they are to have, arrays in memory: `{"mine": (train_images, train_labels, test_images, test_labels)}`,
            images uint8 `(n,H,W,C)` and labels integers `(n,)`. The data that the first set was distilled from if left
            out.
        protocols: Names in `PROTOCOLS`; those of the edition if left out.
        references: What the sets are read beside, of `REFERENCES`.
        seeds: Networks per row; the edition's number if left out.
        source: The folder of the run that made the sets, which has their data and teacher; found beside the first set
            where a run left it there, unless this is "none". Or the name of a data set, with `features=FILE`; or images
            and features in memory, uint8 `(n,H,W,C)` and floats `(n,D)`. Without a source only an untrained network is
            to be had as a reference.
        edition: A name in `EDITIONS`; if left out `digits` for sets of scikit-learn's digits, `paper` for all others.
            `cpu` trains narrower networks for fewer epochs.
        workdir: Where results are kept.
        say: Told what a user should know, a line at a time.
        **settings: Changes to `Options`, such as `epochs=100`.

    Returns:
        A plain structure, the same as `evaluation.json`: `rows` (each with `target`, `model`, `entry`, `protocol`,
        `measure`, `mean`, `std`, `seeds`, `values`; model None for the teacher and chance), `differences` (paired by
        seed, with confidence intervals), `sets`, `models`, `settings`, `seeds`, `seconds`, `machine`, `version`.

    Raises:
        UserError: For whatever a user can mend.
    """
    began = time.monotonic()
    given = sources.name_sets(sets)
    named = {key: one if isinstance(one, DistilledSet) else formats.read(one) for key, one in given.items()}
    first = next(iter(named.values()))
    name = edition or ("digits" if first.about.get("dataset") == "digits" else "paper")
    chosen = options.edition(name)
    made = options.make(chosen, settings)
    models, protocols, references = map(_listed, (models, protocols, references))
    _check(references, seeds)
    height, width, channels = first.pairs()[0].shape[1:]
    shape = (height, width, channels)
    run = _run_of(next(iter(given.values())))
    known = _source(source, run, made, shape, say)
    _warn(named, say)
    asked = _targets(targets) or [_own_target(known)]
    request = suite.Request(
        sets=named,
        counts={key: sources.count_of(one) for key, one in named.items()},
        models=tuple(dict.fromkeys(models or chosen.models)),
        targets=[sources.target(one, known, data_dir=made.data_dir, image_shape=shape) for one in asked],
        protocols=tuple(dict.fromkeys(protocols or chosen.protocols)),
        references=tuple(dict.fromkeys(references)),
        source=known,
        seeds=seeds or chosen.seeds,
        seed=made.seed,
        training=options.for_training(made),
        judging=options.for_judging(made),
    )
    # What the run itself has trained and measured need not be done again.
    place = pathlib.Path(workdir).expanduser()
    store = Store(place / "store", also=run and Workdir(run).evaluation)
    with held(place), threadpool_limits(1, "blas"):  # LAPACK's own threads stand in XLA's way
        rows = suite.run(request, store, say=say)
    settled = {"edition": name, "settings": made._asdict(), "seconds": round(time.monotonic() - began, 1)}
    return _result(request, rows) | settled


def _listed(given: Any) -> Any:
    return [given] if isinstance(given, str) else given


def _targets(
    given: str | data.Dataset | Sequence[str | data.Dataset] | Mapping[str, Sequence[Any]],
) -> list[str | data.Dataset]:
    if isinstance(given, Mapping):
        return [sources.of_arrays(name, arrays) for name, arrays in given.items()]
    return [given] if isinstance(given, str | data.Dataset) else list(given)


def _warn(named: Mapping[str, DistilledSet], say: Callable[[str], None]) -> None:
    """Say where sets do not share what they are compared by."""
    for key in ("dataset", "teacher"):
        known = {name: one.about[key] for name, one in named.items() if key in one.about}
        if len(set(known.values())) > 1:
            words = ", ".join(f"{name}: {value}" for name, value in known.items())
            say(f"evaluate: the sets differ in their {key} ({words}); the reference points are the first's")


def _check(references: Sequence[str], seeds: int) -> None:
    unknown = [one for one in references if one not in entries.REFERENCES]
    if unknown:
        raise UserError(f"unknown reference {unknown[0]!r}: there are {', '.join(entries.REFERENCES)}")
    if seeds < 0:
        raise UserError(f"seeds={seeds} is out of range: it must be at least 1")


def _result(request: suite.Request, rows: list[dict[str, Any]]) -> dict[str, Any]:
    first = next(iter(request.sets.values()))
    return {
        "schema": SCHEMA,
        "sets": [_about(key, one, request.counts[key]) for key, one in request.sets.items()],
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
    """Write `evaluation.json`, `evaluation.md` and `evaluation.png` into a folder; returns the Markdown."""
    from ssdd_jax.evaluate import figures  # Matplotlib is slow to load

    place = pathlib.Path(folder).expanduser()
    words = tables.markdown(result)
    files.write_json(place / "evaluation.json", dict(result))
    files.write_bytes(place / "evaluation.md", (words + "\n").encode())
    figures.draw(place / "evaluation.png", result)
    return words


def _source(
    given: Path | entries.SourceData | tuple[Any, Any] | None,
    run: pathlib.Path | None,
    made: options.Options,
    shape: tuple[int, int, int],
    say: Callable[[str], None],
) -> entries.SourceData | None:
    """The data and the teacher that the sets come from, if they are known; `run` is the run that the first lies in."""
    if isinstance(given, entries.SourceData):
        return given
    if isinstance(given, tuple):
        return sources.of_features_in_memory(*given)
    if given == "none":
        return None
    if made.features and given is None:
        raise UserError("features are of the images of a data set: name it too, as in --source=tfds:cifar100")
    if made.features:
        return sources.of_features(str(given), made.features, data_dir=made.data_dir, image_shape=shape)
    if given is not None or run is not None:
        return sources.of_run(given or run, shared=made.shared or None, data_dir=made.data_dir)  # type: ignore[arg-type]
    say(
        "evaluate: it is not known what the set was distilled from: of the reference points only the untrained network "
        "is to be had; --source names the run that made it"
    )
    return None


def _run_of(given: DistilledSet | Path) -> pathlib.Path | None:
    """The folder of the run that a set lies in."""
    if isinstance(given, DistilledSet):
        return None
    folder = pathlib.Path(given).expanduser().resolve().parent
    return folder if (folder / "config.json").exists() else None


def _own_target(source: entries.SourceData | None) -> str | data.Dataset:
    if source is None:
        raise UserError("no target is given: name one, as in --targets=cifar10")
    if not source.whole:  # a part of the data set that its name stands for
        return source.dataset
    short = {name: key for key, name in data.targets.NAMES.items()}
    return short.get(source.dataset.name, source.dataset.name)


def _about(name: str, distilled: DistilledSet, count: int) -> dict[str, Any]:
    sizes = {
        "N": count,
        "pairs": len(distilled.pairs()[0]),
        "images": len(distilled.images()),
        "numbers": distilled.numbers_stored(),
    }
    known = {key: distilled.about[key] for key in ("method", "dataset", "teacher", "seed") if key in distilled.about}
    return {"name": name, **sizes, **known}


def _size(model: str, like: DistilledSet) -> dict[str, Any]:
    images, targets = like.pairs()
    shape = tuple(images.shape[1:])
    network = architectures.make(model, targets.shape[-1], shape)
    return {"name": model, "parameters": architectures.count(network, shape)}
