"""All methods at equal storage: the same data, teacher and evaluator, several seeds and sizes, one table and one plot.

    python -m experiments.compare [--config=configs/digits.py] [--methods=boost,krr_st,...] [--N=10,20] [--seeds=3]
                                  [--workdir=runs/compare-digits] [--config.KEY=VALUE ...]

Every run is a folder of its own in the work dir; the teacher, its features, MKDT's experts and SC-DD's probe are made
once for all. The same command continues where it stopped, and adds what a longer list of methods, sizes or seeds asks
for.
In the end it writes comparison.json, comparison.md and comparison.png into the work dir.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ssdd_jax import commandline, files, loop, pipeline, report
from ssdd_jax import config as configuration
from ssdd_jax.errors import UserError

USAGE = "--config=FILE --methods=A,B --N=10,20 --seeds=3 --workdir=DIR and --config.KEY=VALUE are understood"
REFERENCES = ("random_init", "full_data", "teacher")
MEASURES = ("linear", "few_shot", "feature_r2")
LABELS = {
    "boost": "Boost-SSDD",
    "krr_st": "KRR-ST",
    "mkdt": "MKDT",
    "scdd": "SC-DD",
    "random": "random subset",
    "kmeans": "k-means subset",
    "high_loss": "high-loss subset",
    "noise": "Gaussian noise",
    "random_init": "untrained",
    "full_data": "all images",
    "teacher": "teacher",
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


class Row(NamedTuple):
    """One method at one size: what its sets store, what they teach (all networks of all seeds), how long they took."""

    method: str
    N: int
    numbers: int
    values: dict[str, list[float]]
    seconds: float
    preparation: float


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
            found["methods"] = tuple(value.split(","))
        elif name == "--N" and all(part.isdigit() and int(part) for part in value.split(",")):
            found["sizes"] = tuple(sorted({int(part) for part in value.split(",")}))
        elif name == "--seeds" and value.isdigit() and int(value):
            found["seeds"] = int(value)
        else:
            raise UserError(f"cannot read {argument!r}: {USAGE}")
    options = Options(**found, changes=tuple(changes))
    unknown = [name for name in options.methods if name not in configuration.EDITIONS]
    if unknown:
        raise UserError(f"unknown method {unknown[0]!r}: there are {', '.join(configuration.EDITIONS)}")
    return options


def config_of(options: Options, method: str, N: int, seed: int) -> Any:
    """The config of one run: its edition, with M in proportion to N."""
    path, _, edition = options.config.partition(":")
    line = [f"--config={path}:{','.join(filter(None, (edition, method)))}", *options.changes]
    config = commandline.parse(line).config
    if config.storage.M:
        config.storage.M = config.storage.M * N // config.storage.N
    config.storage.N, config.seed, config.scdd.images_per_class = N, seed, 0
    return config


def run_all(options: Options) -> tuple[list[Row], dict[str, dict[str, list[float]]], list[str]]:
    """Run what is missing.

    Returns:
        The rows, the values of the reference entries by measure, and a line for each method that refused.
    """
    rows, refused = [], []
    for N in options.sizes:
        for method in options.methods:
            try:
                results = list(_runs(options, method, N))
            except UserError as error:
                refused.append(f"{LABELS[method]} at N = {N}: {error}")
                print(f"compare: {refused[-1]}", flush=True)
                continue
            rows.append(_row(method, N, results))
    # What depends neither on a method nor on N is measured beside one cheap set.
    found = [_run(options, "references", "random", 1, seed, REFERENCES) for seed in range(options.seeds)]
    return rows, {name: _values(found, name) for name in REFERENCES}, refused


def _runs(options: Options, method: str, N: int) -> Iterator[dict[str, Any]]:
    for seed in range(options.seeds):
        yield _run(options, f"{method}-N{N}", method, N, seed)


def _run(options: Options, name: str, method: str, N: int, seed: int, entries: tuple[str, ...] = ()) -> dict[str, Any]:
    print(f"compare: {name}, seed {seed}", flush=True)
    config = config_of(options, method, N, seed)
    config.evaluate.entries = ("distilled", *entries)
    folder = options.folder / f"{name}-seed{seed}"
    results = pipeline.run(config, folder, shared=options.folder / "shared", say=lambda line: None)
    assert results is not None
    return results


def _values(results: list[dict[str, Any]], entry: str) -> dict[str, list[float]]:
    return {
        measure: [value for one in results for value in one[measure][entry]["values"]]
        for measure in MEASURES
        if entry in results[0].get(measure, {})
    }


def _row(method: str, N: int, results: list[dict[str, Any]]) -> Row:
    spent = [one["seconds"] for one in results]
    return Row(
        method,
        N,
        int(np.mean([one["storage"]["numbers"] for one in results])),
        _values(results, "distilled"),
        round(float(np.mean([s["samples"] + s["distill"] + s["approximate"] for s in spent])), 1),
        round(max(s.get("experts", 0.0) + s.get("probe", 0.0) for s in spent), 1),
    )


def table(rows: list[Row], references: dict[str, dict[str, list[float]]], refused: list[str]) -> str:
    """The comparison as Markdown: mean and sample standard deviation over the networks of all seeds."""
    lines = [
        "| | N | numbers stored | " + " | ".join(report.TITLES[m] for m in MEASURES) + " | seconds |",
        "|---|---:|---:|" + "---:|" * (len(MEASURES) + 1),
    ]
    for row in rows:
        cells = [_cell(measure, row.values.get(measure)) for measure in MEASURES]
        extra = f" + {row.preparation:.0f}" if row.preparation >= 1 else ""
        lines.append(
            f"| {LABELS[row.method]} | {row.N} | {row.numbers:,} | {' | '.join(cells)} | {row.seconds:.0f}{extra} |"
        )
    for name, values in references.items():
        if values:
            cells = [_cell(measure, values.get(measure)) for measure in MEASURES]
            lines.append(f"| {LABELS[name]} | | | {' | '.join(cells)} | |")
    return "\n".join([*lines, *(f"\n{line}" for line in refused)])


def _cell(measure: str, values: list[float] | None) -> str:
    if not values:
        return ""
    digits = 3 if measure == "feature_r2" else 1
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return f"{np.mean(values):.{digits}f} ± {deviation:.{digits}f}"


def draw(path: pathlib.Path, rows: list[Row], references: dict[str, dict[str, list[float]]]) -> None:
    """Every measure over the numbers stored, and the seconds that a set takes."""
    from matplotlib import pyplot as plt

    measures = [m for m in MEASURES if any(row.values.get(m) for row in rows)]
    methods = list(dict.fromkeys(row.method for row in rows))
    figure, panels = plt.subplots(1, len(measures) + 1, figsize=(4.2 * (len(measures) + 1), 4), layout="constrained")
    colors = dict(zip(methods, plt.get_cmap("tab10").colors * 2, strict=False))  # type: ignore[attr-defined]
    for axes, measure in zip(panels, measures, strict=False):
        for name, style in zip(REFERENCES[:2], (":", "--"), strict=True):
            if references[name].get(measure) and (name != "random_init" or measure != "linear"):
                axes.axhline(np.mean(references[name][measure]), color="0.6", linestyle=style, label=LABELS[name])
        for method in methods:
            mine = [row for row in rows if row.method == method and row.values.get(measure)]
            means = [np.mean(row.values[measure]) for row in mine]
            errors = [np.std(row.values[measure], ddof=min(1, len(row.values[measure]) - 1)) for row in mine]
            stored = [row.numbers for row in mine]
            axes.errorbar(stored, means, errors, color=colors[method], marker="o", capsize=3, label=LABELS[method])
        axes.set(xscale="log", xlabel="numbers stored", title=report.TITLES[measure])
        axes.grid(alpha=0.3)
    _draw_seconds(panels[-1], [row for row in rows if row.N == max(row.N for row in rows)], colors)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    with files.saving(path):
        figure.savefig(path, dpi=130, metadata={"Software": None})
    plt.close(figure)


def _draw_seconds(axes: Any, rows: list[Row], colors: dict[str, Any]) -> None:
    names = [LABELS[row.method] for row in rows]
    axes.barh(names, [row.seconds for row in rows], color=[colors[row.method] for row in rows])
    axes.barh(names, [row.preparation for row in rows], left=[row.seconds for row in rows], color="0.8")
    axes.invert_yaxis()
    axes.set(xlabel="seconds per set", title=f"distillation at N = {rows[0].N}; grey: once for all sets")
    axes.grid(axis="x", alpha=0.3)


def main(arguments: Sequence[str]) -> int:
    """Run the command line; the exit status."""
    try:
        options = parse(arguments)
        folder = options.folder
        # The runs of a method differ in seed and size only: what is compiled for one serves the next.
        jax.config.update("jax_compilation_cache_dir", str((folder / "compiled").absolute()))
        rows, references, refused = run_all(options)
        content = {
            "config": options.config,
            "changes": list(options.changes),
            "seeds": options.seeds,
            "rows": [row._asdict() for row in rows],
            "references": references,
            "refused": refused,
        }
        files.write_json(folder / "comparison.json", content)
        words = table(rows, references, refused)
        files.write_bytes(folder / "comparison.md", (words + "\n").encode())
        if rows:
            draw(folder / "comparison.png", rows, references)
        print(f"\n{words}\n\ncomparison.json, .md and .png are in {folder}", flush=True)
    except UserError as error:
        print(f"compare: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except (loop.Stopped, KeyboardInterrupt):
        print("compare: stopped; the same command continues from there", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
