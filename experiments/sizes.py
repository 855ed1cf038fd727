"""Compare the numbers of images and bases that shapes and that data choose, by the error of held-out examples.

    python -m experiments.sizes [--config=configs/digits.py] [--N=10,20,40] [--workdir=runs/sizes-digits]
                                [--config.KEY=VALUE ...]

The error is the share of the variance of held-out images (at the bases' resolution) and targets (in all views) that the
bases leave. A row is a number of decoded images M; the one in bold is what a run uses. Writes sizes.json and sizes.md
to the work dir, which keeps the teacher and its features for other budgets of the same config.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from experiments.measure import command_line
from ssdd_jax import config as configuration
from ssdd_jax import pipeline
from ssdd_jax.cli import arguments as commandline
from ssdd_jax.errors import UserError
from ssdd_jax.methods import boost, budget, starts
from ssdd_jax.methods.base import Run
from ssdd_jax.runtime import files
from ssdd_jax.runtime.workdir import Workdir
from ssdd_jax.stages import features, samples, teacher

USAGE = "--config=FILE --N=10,20 --workdir=DIR and --config.KEY=VALUE are understood"


def measure(run: Run, sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Measure the plans for every budget and several numbers of decoded images.

    Args:
        run: A run of Boost-SSDD with the teacher's features.
        sizes: Budgets N.

    Returns:
        A row per budget and number of images: sizes and errors of the plan by shapes and of the plan by data.
    """
    source = samples.pilot(run).start()
    plan = boost.plan_of(run.config, run.problem)
    images, targets = boost.errors(plan, source)
    by_loss = run.config.storage.criterion == "loss"
    score = starts.score_of(run.config, source, plan.base_size) if by_loss else None
    rows = []
    for N in sizes:
        config = run.config.copy_and_resolve_references()
        config.storage.update(N=N, M=0, U=0, V=0)
        automatic = boost.plan_of(config, run.problem)
        limits = {"most": run.problem.images, **budget.wishes(config)}
        chosen = budget.fit(automatic, images, targets, free=("M", "U", "V"), score=score, **limits)
        for multiple in budget.MULTIPLES:
            M = min(multiple * N, run.problem.images)
            config.storage.M = M
            try:
                by_shape = boost.plan_of(config, run.problem)
            except UserError:  # the coefficients of so many images exceed the budget
                break
            by_data = budget.fit(by_shape, images, targets, free=("U", "V"), **limits)
            row: dict[str, Any] = {"N": N, "M": M, "used": M == chosen.M}
            for name, plan in (("shapes", by_shape), ("data", by_data)):
                errors = float(images[plan.U]), float(targets[plan.V])
                row[name] = {"U": plan.U, "V": plan.V, "images": errors[0], "targets": errors[1]}
            rows.append(row)
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Format the rows as Markdown."""
    lines = [
        "| N | M | by shapes: U, V | error of images + targets (%) | by data: U, V | error of images + targets (%) |",
        "|---:|---:|---|---:|---|---:|",
    ]
    for row in rows:
        cells = []
        for name in ("shapes", "data"):
            one = row[name]
            cells.append(f"{one['U']}, {one['V']} | {100 * one['images']:.1f} + {100 * one['targets']:.1f}")
        mark = "**" if row["used"] else ""
        lines.append(f"| {row['N']} | {mark}{row['M']}{mark} | {' | '.join(cells)} |")
    return "\n".join(lines)


def parse(arguments: Sequence[str]) -> tuple[Any, list[int], pathlib.Path]:
    """Parse the command line: the config, the budgets and the work dir.

    Raises:
        UserError: For an argument that is not understood.
    """
    kinds = {"N": command_line.counts, "workdir": command_line.text, "config": command_line.text}
    values, changes = command_line.read(arguments, kinds, USAGE, config=True)
    name = values.get("config", commandline.DEFAULT)
    workdir = command_line.folder(values.get("workdir", ""), "sizes", name)
    return commandline.parse([f"--config={name}", *changes]).config, list(values.get("N", (10, 20, 40))), workdir


def _measure(arguments: Sequence[str]) -> None:
    config, sizes, folder = parse(arguments)
    config.method = "boost"
    # The folder is bound to the config, but not to the budgets of a table: teacher and features serve all.
    config.storage.update(N=1, M=0, U=0, V=0)
    configuration.validate(config)
    config = configuration.resolved(config)
    work = Workdir(folder)
    with work.claim(config):
        largest = config.copy_and_resolve_references()
        largest.storage.N = max(sizes)
        run = pipeline.prepare(largest, work, print)
        work.record(config)
        teacher.train(run)
        features.compute(run)
        rows = measure(run, sizes)
        words = table(rows)
        files.write_json(folder / "sizes.json", {"config": config.data.name, "rows": rows, **budget.wishes(config)})
        files.write_bytes(folder / "sizes.md", (words + "\n").encode())
    print(f"\n{words}\n\nsizes.json and sizes.md are in {folder}", flush=True)


def main(arguments: Sequence[str]) -> int:
    """Run the command line and return the exit status."""
    return command_line.run(arguments, __doc__, _measure, memory="config.data.train_limit", name="sizes")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
