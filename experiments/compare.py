"""Compare all methods at equal storage: same data, teacher and evaluator, several seeds and sizes, one table and plot.

    python -m experiments.compare [--config=configs/digits.py] [--methods=boost,krr_st,...]
                                  [--N=10,20 | --bytes=8192,16384] [--seeds=5] [--references=K]
                                  [--workdir=runs/compare-digits] [--equal_seconds] [--beside=FILE]
                                  [--config.KEY=VALUE ...]

A seed is a distillation: its set, and the networks trained on it. Differences between methods are paired by seed.

Every run has its own folder in the work dir; the teacher, its features, MKDT's experts and SC-DD's probe are computed
once and shared. The rows that need no set (untrained, all images, teacher) are measured for all seeds, or for the first
K with --references=K, since training on all images may take longest. The same command resumes an interrupted
comparison; with more methods, sizes or seeds it adds the missing runs. A method that cannot run, for example because a
size is too small for it, is listed below the table.

Finally comparison.json, comparison.md, comparison.png, report.html and constraints.txt (versions of the libraries) are
written to the work dir.

With --equal_seconds a second table compares the first method with the others that learn against the model pool, each
with as many outer steps as take the first one's time on this machine. Their numbers of steps are kept in steps.json.

With --beside=comparison.json the other rows of an earlier comparison stand in the table too, and its references in
place of new ones: it must be of the same data, teacher, config, changes and seeds, by which the differences are paired,
and have at least one of the sizes.

With --bytes the budget is the size of the file instead of N images in numbers: methods store in the precisions that
serve them best, and subsets code their images (docs/guides/bytes.md).

If the config sets M, the number of decoded images, M is scaled in proportion to N. With --bytes the plan chooses it.
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

from experiments.measure import command_line, comparison
from experiments.measure.comparison import REFERENCES, SETS, Comparison, Row, draw, label, table
from ssdd_jax import config as configuration
from ssdd_jax import methods, pipeline, report
from ssdd_jax.cli import arguments as commandline
from ssdd_jax.errors import StoredError, UserError
from ssdd_jax.report import storage
from ssdd_jax.runtime import constraints, files, workdir

_say = command_line.warnings_once()
SCHEMA = 2  # of comparison.json; without the number the measure `linear` is KRR-ST's
# Options by another name than their field.
RENAMED = {"N": "sizes"}
USAGE = (
    "--config=FILE --methods=A,B --N=10,20 --bytes=8192 --seeds=5 --references=K --workdir=DIR --equal_seconds "
    "--beside=FILE and --config.KEY=VALUE are known"
)
# Config keys that distinguish the runs, and the options that set them: they cannot be changed for all runs.
OWNED = {
    "method": "--methods",
    "storage.N": "--N",
    "storage.bytes": "--bytes",
    "seed": "--seeds",
    "distill.samples": "--methods",
    "evaluate.entries": "nothing: the comparison",
}


class Options(NamedTuple):
    """Options of a comparison: config file, methods (its editions), sizes N, seeds, folder, further changes, whether
    methods are also compared at equal seconds, the seeds of the rows without a set, 0 for all, sizes in bytes that
    replace N, and the file of an earlier comparison."""

    config: str = commandline.DEFAULT
    methods: tuple[str, ...] = tuple(configuration.EDITIONS)
    sizes: tuple[int, ...] = (10, 20)
    seeds: int = SETS
    workdir: str = ""
    changes: tuple[str, ...] = ()
    equal_seconds: bool = False
    references: int = 0
    bytes: tuple[int, ...] = ()
    beside: str = ""

    @property
    def folder(self) -> pathlib.Path:
        return command_line.folder(self.workdir, "compare", self.config)


def parse(arguments: Sequence[str]) -> Options:
    """Parse the command line; raises a UserError for every mistake."""
    kinds = {
        "config": command_line.text,
        "workdir": command_line.text,
        "methods": command_line.names(configuration.EDITIONS, "method"),
        "N": command_line.counts,
        "bytes": command_line.counts,
        "seeds": command_line.count,
        "references": command_line.count,
        "beside": command_line.text,
        "equal_seconds": None,
    }
    values, changes = command_line.read(arguments, kinds, USAGE, config=True)
    if "N" in values and "bytes" in values:
        raise UserError("--N and --bytes are two budgets: give one of them")
    chosen = Options(**{RENAMED.get(name, name): value for name, value in values.items()}, changes=tuple(changes))
    _check(chosen)
    return chosen


def _check(options: Options) -> None:
    for key in command_line.by_key(options.changes):
        owner = "--N" if key in _size_keys() else OWNED.get(key)
        if key == "storage.M" and options.bytes:
            owner = "the plan for --bytes"
        if owner is not None:
            raise UserError(f"config.{key} differs between the runs of a comparison: {owner} chooses it")
    editions = set(options.config.partition(":")[2].split(",")) & set(configuration.EDITIONS)
    if editions:
        raise UserError(f"{options.config} names a method: name it with --methods={editions.pop()}")
    for method in options.methods:
        config_of(options, method, _sizes(options)[0], 0)


def _sizes(options: Options) -> tuple[int, ...]:
    """Return the budgets, in bytes or in images."""
    return options.bytes or options.sizes


def _unit(options: Options) -> str:
    """Return the unit of the budgets, as rows name it."""
    return "bytes" if options.bytes else "numbers"


def _name(options: Options, method: str, size: int) -> str:
    """Return the name of the runs of a method at a budget."""
    return f"{method}-{'B' if options.bytes else 'N'}{size}"


def _at(options: Options, size: int) -> str:
    """Name a budget for the user."""
    return f"{size:,} bytes" if options.bytes else f"N = {size}"


def config_of(options: Options, method: str, size: int, seed: int, *, in_bytes: bool | None = None) -> Any:
    """Build the config of one run: the method's edition, with M in proportion to N.

    Args:
        options: The options of the comparison.
        method: An edition.
        size: The budget, N or bytes.
        seed: The seed of the run.
        in_bytes: Whether the budget is in bytes; None: as the options say.
    """
    path, _, edition = options.config.partition(":")
    line = [f"--config={path}:{','.join(filter(None, (edition, method)))}", *options.changes]
    config = commandline.parse(line).config
    config.seed = seed
    if bool(options.bytes) if in_bytes is None else in_bytes:
        config.storage.update(bytes=size, M=0)
    else:
        config.storage.bytes = 0
        if config.storage.M:
            config.storage.M = max(1, config.storage.M * size // config.storage.N)
        config.storage.N = size
    config.update_from_flattened_dict(dict.fromkeys(_size_keys(), 0))
    return config


def _size_keys() -> list[str]:
    """Return the config keys, besides `storage.N`, that set the number of images a method stores."""
    return [key for definition in methods.METHODS.values() for key in definition.size_keys]


def run_all(options: Options) -> Comparison:
    """Run everything that is missing.

    Raises:
        UserError: If no method can run, or a folder cannot be used.
    """
    # The references depend neither on a method nor on N: they are measured once, along with one cheap set. One comes
    # first, so that an error in the data or the teacher is reported before anything else; the others come last, as
    # training on all images may take long.
    seeds, earlier = range(options.seeds), _earlier(options)
    references = [] if earlier else [_references(options, 0)]
    completed: dict[tuple[str, int], list[dict[str, Any]]] = {}
    refused = []
    for size in _sizes(options):
        for method in options.methods:
            name = _name(options, method, size)
            try:
                completed[method, size] = [
                    _run(options, name, config_of(options, method, size, seed), seed) for seed in seeds
                ]
            except StoredError:
                # A folder that is in use, or a full disk, says nothing about the method: what is there stays.
                raise
            except UserError as error:
                refused.append(f"{label(method)} at {_at(options, size)}: {' '.join(str(error).split())}")
                print(f"compare: {refused[-1]}", flush=True)
    if not completed:
        raise UserError(f"no method could run: {refused[0]}")
    if earlier is None:
        references += [_references(options, seed) for seed in seeds[1 : options.references or None]]
    seconds_by_run = [one["seconds"] for results in (references, *completed.values()) for one in results]
    # Shared stages took time only in the run that computed them: the maximum over the runs is their cost.
    method_stages = {stage for seconds in seconds_by_run for stage in seconds if stage not in pipeline.STAGES}
    shared = sorted(stage for stage in method_stages if (options.folder / "shared" / stage).is_dir())
    prepared = {stage: max(seconds.get(stage, 0.0) for seconds in seconds_by_run) for stage in shared}
    of_teacher = (references or next(iter(completed.values())))[0].get("teacher", "")
    found = Comparison(
        [_row(method, size, results, prepared) for (method, size), results in completed.items()],
        {name: comparison.values(references, name) for name in REFERENCES} if references else {},
        refused,
        options.seeds,
        max(seconds["teacher"] + seconds["features"] for seconds in seconds_by_run),
        of_teacher,
        _checksum(options),
        options.methods,
        _inputs(_folder(options, _name(options, *next(iter(completed))), 0)),
    )
    return _joined(found, earlier, options) if earlier else found


def _earlier(options: Options) -> Comparison | None:
    """Read the comparison whose rows stand beside those of this one; None without one.

    Raises:
        UserError: If it is of other settings.
    """
    if not options.beside:
        return None
    content = files.read_json(pathlib.Path(options.beside).expanduser())
    try:
        if content["schema"] != SCHEMA:
            raise UserError(f"{options.beside} is of schema {content['schema']}, not {SCHEMA}: make it anew")
        same = {
            "config": (content["config"], options.config),
            "seeds": (content["seeds"], options.seeds),
            "changes": (_settings(content["changes"]), _settings(options.changes)),
        }
        for name, (theirs, ours) in same.items():
            if theirs != ours:
                words = [
                    " ".join(f"--config.{key}={value}" for key, value in one.items()) if isinstance(one, dict) else one
                    for one in (theirs, ours)
                ]
                raise UserError(
                    f"{options.beside} is of other {name}: {words[0] or 'none'} there, {words[1] or 'none'} here; they "
                    "must agree"
                )
        rows = [row for row in (Row(**row) for row in content["rows"]) if row.unit == _unit(options)]
        if not any(row.N in _sizes(options) for row in rows):
            size = _at(options, _sizes(options)[0])
            raise UserError(f"{options.beside} has no rows at {size}: choose at least one size that it has")
        return Comparison(
            rows,
            content["references"],
            list(content["refused"]),
            options.seeds,
            content["teacher_seconds"],
            content["teacher"],
            content.get("teacher_checksum", ""),
            tuple(dict.fromkeys(row.method for row in rows)),
            content.get("inputs", {}),
        )
    except UserError:
        raise
    except (KeyError, TypeError) as error:
        raise UserError(f"{options.beside} is not the comparison.json of a comparison: {error}") from None


def _settings(changes: Sequence[str]) -> dict[str, str]:
    """Return changes of the config by key, without the place of the data."""
    return {key: value for key, value in command_line.by_key(changes).items() if key != "data.data_dir"}


def _checksum(options: Options) -> str:
    """Return the checksum of the weights of the shared teacher; empty for precomputed features."""
    path = options.folder / "shared" / "teacher" / "teacher.json"
    return str(files.read_json(path).get("sha256", "")) if path.exists() else ""


def _inputs(folder: pathlib.Path) -> dict[str, str]:
    """Return the hashes of a run's images, labels, features and weights, by name; of older versions there are none."""
    path = workdir.Workdir(folder).inputs
    return files.read_json(path) if path.exists() else {}


def _joined(found: Comparison, earlier: Comparison, options: Options) -> Comparison:
    """Add the rows of an earlier comparison of the same teacher, also at other sizes, and take its references."""
    if found.teacher != earlier.teacher:
        raise UserError(f"{options.beside} is of another teacher: {earlier.teacher} there, {found.teacher} here")
    # Earlier versions did not keep the checksum.
    if earlier.checksum and found.checksum != earlier.checksum:
        raise UserError(
            f"{options.beside} is of a teacher with other weights: share its folder of features, or make it anew"
        )
    other = [name for name, mark in earlier.inputs.items() if found.inputs.get(name, mark) != mark]
    if other:
        raise UserError(f"{options.beside} is of other {' and '.join(other)}: choose the same, or make it anew")
    asked = {(method, size) for method in options.methods for size in _sizes(options)}
    others = [row for row in earlier.rows if (row.method, row.N) not in asked]
    sizes = sorted({row.N for row in (*found.rows, *others)})
    rows = [row for size in sizes for one in (found.rows, others) for row in one if row.N == size]
    again = tuple(f"{label(method)} at {_at(options, size)}: " for method, size in asked)
    return found._replace(
        rows=rows,
        references=earlier.references,
        refused=[*(line for line in earlier.refused if not line.startswith(again)), *found.refused],
        order=tuple(dict.fromkeys((*found.order, *earlier.order))),
    )


def run_equal(options: Options, found: Comparison) -> tuple[Comparison, list[str]]:
    """Run the methods with a model pool for as long as the first method takes.

    Args:
        options: The options of the comparison.
        found: The complete comparison at the configured steps.

    Returns:
        The rows of the first method and of the others at its time, and the numbers of steps in words.
    """
    by_key = {(row.method, row.N): row for row in found.rows}
    first = options.methods[0]
    path = options.folder / "steps.json"
    # The times of another start would give other numbers of steps, and with them other runs.
    kept = files.read_json(path) if path.exists() else {}
    rows, words = [], []
    for size in _sizes(options):
        if (first, size) not in by_key:
            continue
        rows.append(by_key[first, size])
        for method in options.methods[1:]:
            config = config_of(options, method, size, 0)
            if (method, size) not in by_key or not methods.METHODS[config.method].pooled:
                continue
            share = by_key[first, size].seconds / max(by_key[method, size].seconds, 1e-3)
            name = f"{_name(options, method, size)}-equal-{first}"
            steps = kept.setdefault(name, max(1, round(share * config.distill.steps)))
            files.write_json(path, kept)
            results = []
            for seed in range(options.seeds):
                changed = config_of(options, method, size, seed)
                changed.distill.steps = steps
                results.append(_run(options, name, changed, seed))
            rows.append(_row(method, size, results, {}))
            steps_text = f"{steps:,} steps instead of {config.distill.steps:,}"
            words.append(f"{label(method)} at {_at(options, size)} takes {steps_text}.")
    return found._replace(rows=rows, references={name: {} for name in REFERENCES}, refused=[]), words


def _references(options: Options, seed: int) -> dict[str, Any]:
    """Measure the rows that need no set, along with one cheap set."""
    return _run(options, "references", config_of(options, "random", 1, seed, in_bytes=False), seed, REFERENCES)


def _run(options: Options, name: str, config: Any, seed: int, entries: tuple[str, ...] = ()) -> dict[str, Any]:
    config.evaluate.entries = ("distilled", *entries)
    folder = _folder(options, name, seed)
    results = _finished(folder, config)
    if results is None:
        print(f"compare: {name}, seed {seed}", flush=True)
        results = pipeline.run(config, folder, shared=options.folder / "shared", say=_say)
    assert results is not None
    return results


def _folder(options: Options, name: str, seed: int) -> pathlib.Path:
    return options.folder / f"{name}-seed{seed}"


def _finished(folder: pathlib.Path, config: Any) -> dict[str, Any] | None:
    """Return the results of a completed run of this config, or None; the report is the last file that a run writes."""
    outputs = (folder / "results.json", folder / "config.json", folder / "report.html")
    if not all(path.exists() for path in outputs) or files.read_json(outputs[1]) != configuration.flatten(config):
        return None
    return report.upgrade(files.read_json(outputs[0]))


def _row(method: str, size: int, results: list[dict[str, Any]], prepared: dict[str, float]) -> Row:
    seconds = [one["seconds"] for one in results]
    return Row(
        method,
        size,
        int(np.mean([storage.used(one["storage"])[0] for one in results])),
        results[0]["storage"]["budget"],
        comparison.values(results, "distilled"),
        [value for one in results for value in one.get("post_training", {}).get("top1", {}).get("values", [])],
        round(float(np.mean([s["samples"] + s["distill"] + s["approximate"] for s in seconds])), 1),
        round(sum(value for stage, value in prepared.items() if stage in seconds[0]), 1),
        storage.used(results[0]["storage"])[1],
        results[0]["storage"]["images"],
    )


def write(options: Options, found: Comparison, equal: tuple[Comparison, list[str]] | None = None) -> str:
    """Write comparison.json, .md and .png, and return the tables; `equal` is the result of `run_equal`."""
    content = {
        "schema": SCHEMA,
        "config": options.config,
        "changes": list(options.changes),
        "seeds": options.seeds,
        "rows": [row._asdict() for row in found.rows],
        "differences": comparison.differences(found),
        "references": found.references,
        "refused": found.refused,
        "teacher_seconds": found.teacher_seconds,
        "teacher": found.teacher,
        "teacher_checksum": found.checksum,
        "inputs": dict(found.inputs),
    }
    words = table(found)
    if equal is not None and len(equal[0].rows) > 1:
        rows = [row._asdict() for row in equal[0].rows]
        content["equal_seconds"] = {"rows": rows, "differences": comparison.differences(equal[0])}
        words += f"\n\nAt the seconds of {label(options.methods[0])}: {' '.join(equal[1])}\n\n{table(equal[0])}"
    files.write_json(options.folder / "comparison.json", content)
    files.write_bytes(options.folder / "comparison.md", (words + "\n").encode())
    draw(options.folder / "comparison.png", found)
    return words


def write_page(options: Options, found: Comparison, arguments: Sequence[str]) -> None:
    """Write report.html, which compares the sets and shows the images of the first seed."""
    sides = [
        report.side_of(
            f"{label(row.method)}, {_at(options, row.N)}",
            [report.read(_folder(options, _name(options, row.method, row.N), seed)) for seed in range(options.seeds)],
        )
        for row in found.rows
        if row.method in options.methods and row.N in _sizes(options)  # those of an earlier comparison are elsewhere
    ]
    sets = f"{found.seeds} set{'s' * (found.seeds > 1)} of each kind; images and stored numbers are those of the first."
    teacher = f"The teacher and its features, which all share, took {found.teacher_seconds:.0f} seconds."
    report.compare(
        options.folder / "report.html",
        sides,
        beside=found.references,
        title="Methods at equal storage",
        command=shlex.join(["python", "-m", "experiments.compare", *arguments]),
        table=comparison.differences_table(found),
        notes=[
            sets,
            teacher,
            *([comparison.differences_note(found)] if found.seeds > 1 else []),
            *(f"Not measured: {line}" for line in found.refused),
        ],
    )


def main(arguments: Sequence[str]) -> int:
    """Run the command line and return the exit status."""
    return command_line.run(arguments, __doc__, _compare, memory="the batch sizes and vectorize", name="compare")


def _compare(arguments: Sequence[str]) -> None:
    options = parse(arguments)
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        # The runs of a method differ in seed and size only: they share compiled programs.
        jax.config.update("jax_compilation_cache_dir", str((options.folder / "compiled").absolute()))
    results = run_all(options)
    equal = run_equal(options, results) if options.equal_seconds else None
    words = write(options, results, equal)
    write_page(options, results, arguments)
    constraints.write(options.folder)
    written = "comparison.json, .md and .png, report.html and constraints.txt"
    print(f"\n{words}\n\n{written} are in {options.folder}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
