"""All methods at equal storage: the same data, teacher and evaluator, several seeds and sizes, one table and one plot.

    python -m experiments.compare [--config=configs/digits.py] [--methods=boost,krr_st,...] [--N=10,20] [--seeds=3]
                                  [--workdir=runs/compare-digits] [--config.KEY=VALUE ...]

Every run is a folder of its own in the work dir; the teacher, its features, MKDT's experts and SC-DD's probe are made
once for all. The same command continues where it stopped, and adds what a longer list of methods, sizes or seeds asks
for. A method that refuses, say because a size is too small for it, is listed under the table.
In the end it writes comparison.json, comparison.md, comparison.png and report.html into the work dir.

Where the config names M, the number of decoded images, it grows with N.
"""

from __future__ import annotations

import os
import pathlib
import shlex
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.measure.comparison import MEASURES, REFERENCES, Comparison, Row, draw, label, table
from ssdd_jax import config as configuration
from ssdd_jax import methods, pipeline, report
from ssdd_jax.cli import arguments as commandline
from ssdd_jax.cli import console
from ssdd_jax.errors import UserError
from ssdd_jax.runtime import files

USAGE = "--config=FILE --methods=A,B --N=10,20 --seeds=3 --workdir=DIR and --config.KEY=VALUE are understood"
# What tells the runs apart cannot be changed for all of them.
OWNED = {
    "method": "--methods",
    "storage.N": "--N",
    "seed": "--seeds",
    "distill.samples": "--methods",
    "evaluate.entries": "nothing: the comparison",
}


class Options(NamedTuple):
    """What to compare: config file, methods (editions of it), sizes N, seeds, the folder, and further changes."""

    config: str = commandline.DEFAULT
    methods: tuple[str, ...] = tuple(configuration.EDITIONS)
    sizes: tuple[int, ...] = (10, 20)
    seeds: int = 3
    workdir: str = ""
    changes: tuple[str, ...] = ()

    @property
    def folder(self) -> pathlib.Path:
        path, _, edition = self.config.partition(":")
        name = "-".join(filter(None, (pathlib.Path(path).stem, edition)))
        return pathlib.Path(self.workdir or f"runs/compare-{name}").expanduser()


def parse(arguments: Sequence[str]) -> Options:
    """Read the command line; every mistake is a UserError."""
    found: dict[str, Any] = {}
    changes = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name.startswith("--config.") and equals:
            changes.append(argument)
        elif name in ("--config", "--workdir") and value:
            found[name[2:]] = value
        elif name == "--methods" and value:
            found["methods"] = tuple(dict.fromkeys(filter(None, value.split(","))))
        elif name == "--N" and all(part.isdecimal() and int(part) for part in value.split(",")):
            found["sizes"] = tuple(sorted({int(part) for part in value.split(",")}))
        elif name == "--seeds" and value.isdecimal() and int(value):
            found["seeds"] = int(value)
        else:
            raise UserError(f"cannot read {argument!r}: {USAGE}")
    options = Options(**found, changes=tuple(changes))
    _check(options)
    return options


def _check(options: Options) -> None:
    unknown = [name for name in options.methods if name not in configuration.EDITIONS]
    if unknown or not options.methods:
        wrong = f"unknown method {unknown[0]!r}" if unknown else "no method is named"
        raise UserError(f"{wrong}: there are {', '.join(configuration.EDITIONS)}")
    for change in options.changes:
        key = change.partition("=")[0].removeprefix("--config.")
        owner = "--N" if key in _size_keys() else OWNED.get(key)
        if owner is not None:
            raise UserError(f"config.{key} differs between the runs of a comparison: {owner} chooses it")
    named = set(options.config.partition(":")[2].split(",")) & set(configuration.EDITIONS)
    if named:
        raise UserError(f"{options.config} names a method: name it with --methods={named.pop()}")
    for method in options.methods:
        config_of(options, method, options.sizes[0], 0)


def config_of(options: Options, method: str, N: int, seed: int) -> Any:
    """The config of one run: its edition, with M in proportion to N."""
    path, _, edition = options.config.partition(":")
    line = [f"--config={path}:{','.join(filter(None, (edition, method)))}", *options.changes]
    config = commandline.parse(line).config
    if config.storage.M:
        config.storage.M = max(1, config.storage.M * N // config.storage.N)
    config.storage.N, config.seed = N, seed
    config.update_from_flattened_dict(dict.fromkeys(_size_keys(), 0))
    return config


def _size_keys() -> list[str]:
    """Config keys beside `storage.N` by which methods choose how many images they store."""
    return [key for definition in methods.METHODS.values() for key in definition.size_keys]


def run_all(options: Options) -> Comparison:
    """Run what is missing.

    Raises:
        UserError: If nothing can run.
    """
    # What depends neither on a method nor on N is measured beside one cheap set; it comes first, so that a mistake in
    # the data or the teacher is told before anything else.
    seeds = range(options.seeds)
    references = [_run(options, "references", "random", 1, seed, REFERENCES) for seed in seeds]
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    refused = []
    for N in options.sizes:
        for method in options.methods:
            try:
                found[method, N] = [_run(options, f"{method}-N{N}", method, N, seed) for seed in seeds]
            except UserError as error:
                refused.append(f"{label(method)} at N = {N}: {' '.join(str(error).split())}")
                print(f"compare: {refused[-1]}", flush=True)
    if not found:
        raise UserError(f"no method could run: {refused[0]}")
    spent = [one["seconds"] for results in (references, *found.values()) for one in results]
    # Whichever run came first has made what the others use.
    own = {stage for seconds in spent for stage in seconds if stage not in pipeline.STAGES}
    shared = sorted(stage for stage in own if (options.folder / "shared" / stage).is_dir())
    prepared = {stage: max(seconds.get(stage, 0.0) for seconds in spent) for stage in shared}
    return Comparison(
        [_row(method, N, results, prepared) for (method, N), results in found.items()],
        {name: _values(references, name) for name in REFERENCES},
        refused,
        options.seeds,
        max(seconds["teacher"] + seconds["features"] for seconds in spent),
    )


def _run(options: Options, name: str, method: str, N: int, seed: int, entries: tuple[str, ...] = ()) -> dict[str, Any]:
    config = config_of(options, method, N, seed)
    config.evaluate.entries = ("distilled", *entries)
    folder = _folder(options, name, seed)
    results = _finished(folder, config)
    if results is None:
        print(f"compare: {name}, seed {seed}", flush=True)
        results = pipeline.run(config, folder, shared=options.folder / "shared", say=lambda line: None)
    assert results is not None
    return results


def _folder(options: Options, name: str, seed: int) -> pathlib.Path:
    return options.folder / f"{name}-seed{seed}"


def _finished(folder: pathlib.Path, config: Any) -> dict[str, Any] | None:
    """What a run of this config found, if it has come to its end: its report is its last work."""
    ends = (folder / "results.json", folder / "config.json", folder / "report.html")
    if not all(path.exists() for path in ends) or files.read_json(ends[1]) != configuration.flatten(config):
        return None
    return files.read_json(ends[0])


def _values(results: list[dict[str, Any]], entry: str) -> dict[str, list[float]]:
    return {
        measure: [value for one in results for value in one[measure][entry]["values"]]
        for measure in MEASURES
        if entry in results[0].get(measure, {})
    }


def _row(method: str, N: int, results: list[dict[str, Any]], prepared: dict[str, float]) -> Row:
    spent = [one["seconds"] for one in results]
    return Row(
        method,
        N,
        int(np.mean([one["storage"]["numbers"] for one in results])),
        results[0]["storage"]["budget"],
        _values(results, "distilled"),
        [value for one in results for value in one.get("post_training", {}).get("top1", {}).get("values", [])],
        round(float(np.mean([s["samples"] + s["distill"] + s["approximate"] for s in spent])), 1),
        round(sum(value for stage, value in prepared.items() if stage in spent[0]), 1),
    )


def write(options: Options, found: Comparison) -> str:
    """Write comparison.json, .md and .png; returns the table."""
    content = {
        "config": options.config,
        "changes": list(options.changes),
        "seeds": options.seeds,
        "rows": [row._asdict() for row in found.rows],
        "references": found.references,
        "refused": found.refused,
        "teacher_seconds": found.teacher_seconds,
    }
    files.write_json(options.folder / "comparison.json", content)
    words = table(found)
    files.write_bytes(options.folder / "comparison.md", (words + "\n").encode())
    draw(options.folder / "comparison.png", found)
    return words


def write_page(options: Options, found: Comparison, arguments: Sequence[str]) -> None:
    """Write report.html: the sets side by side, with the images of the first seed."""
    sides = [
        report.side_of(
            f"{label(row.method)}, N = {row.N}",
            [report.read(_folder(options, f"{row.method}-N{row.N}", seed)) for seed in range(options.seeds)],
        )
        for row in found.rows
    ]
    sets = f"{found.seeds} set{'s' * (found.seeds > 1)} of each kind; images and stored numbers are those of the first."
    teacher = f"The teacher and its features, which all share, took {found.teacher_seconds:.0f} seconds."
    report.compare(
        options.folder / "report.html",
        sides,
        beside=found.references,
        title="Methods at equal storage",
        command=shlex.join(["python", "-m", "experiments.compare", *arguments]),
        notes=[sets, teacher, *(f"Not measured: {line}" for line in found.refused)],
    )


def main(arguments: Sequence[str]) -> int:
    """Run the command line; the exit status."""
    if "--help" in arguments or "-h" in arguments:
        print(__doc__)
        return 0
    return console.answer(lambda: _compare(arguments), memory="the batch sizes and vectorize", name="compare")


def _compare(arguments: Sequence[str]) -> None:
    options = parse(arguments)
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        # The runs of a method differ in seed and size only: what is compiled for one serves the next.
        jax.config.update("jax_compilation_cache_dir", str((options.folder / "compiled").absolute()))
    found = run_all(options)
    words = write(options, found)
    write_page(options, found, arguments)
    print(f"\n{words}\n\ncomparison.json, .md and .png and report.html are in {options.folder}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
