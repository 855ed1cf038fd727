"""Run every method under faults drawn at random, and list what was lost.

    python -m experiments.torture [--minutes=30] [--seed=0] [--only=3,17] [--methods=boost,...] [--faults=SIGKILL,...]
                                  [--parallel=2] [--workdir=runs/torture]

Each trial is a small run (8x8 images, a teacher of its own, a few steps) and one kind of fault: SIGKILL, SIGTERM and
SIGINT at random moments; files that cannot grow, as on a full disk; little address space; one file of the run cut off,
zeroed, missing, unreadable or with one bit flipped; a clock that jumps; the folder moved, copied, opened by two at
once, or read-only; one of several processes killed; ten runs with one shared folder, and five evaluations with one
cache. Then the same command is typed again.

As promised is: a stop that can be continued, or one line with status 2, within 30 seconds of the fault; and in the end
the set, its description and its results with the bits of a run that was left alone. Everything else is a finding: it
is listed with its number, which `--only` repeats; its folder, and what its processes said, are kept. Moments are drawn,
so that a number repeats the fault, but not to the instruction. The exit status is 1 if there are findings. The table is
also in torture.md in the work dir, and every trial in torture.json.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import os
import pathlib
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from experiments.measure import command_line, faults, small_runs, trials
from ssdd_jax import config as configuration
from ssdd_jax import methods
from ssdd_jax.runtime import files

# What can be run: methods register their editions of the config.
assert methods.METHODS
METHODS = tuple(configuration.EDITIONS)
USAGE = "--minutes=M, --seed=S, --only=N,M, --methods=A,B, --faults=A,B, --parallel=N and --workdir=DIR are known"


class Options(NamedTuple):
    """Options of the command.

    Attributes:
        minutes: After which no new trial begins.
        seed: What the trials are drawn from.
        only: Numbers of the trials to make; all, one after the other, if empty.
        methods: Editions of the config to draw from.
        faults: Faults to draw from.
        parallel: How many runs at once.
        workdir: Folder for the runs and the results.
    """

    minutes: float = 30
    seed: int = 0
    only: tuple[int, ...] = ()
    methods: tuple[str, ...] = METHODS
    faults: tuple[str, ...] = tuple(faults.FAULTS)
    parallel: int = max(1, (os.cpu_count() or 2) // 2)
    workdir: str = "runs/torture"


class Result(NamedTuple):
    """Outcome of one trial.

    Attributes:
        number: Its number; with the seed, it stands for what was drawn.
        method: The method that was run.
        fault: The kind of fault.
        done: What was done.
        findings: What was not as promised.
        tried: Whether this machine and user can have the fault.
    """

    number: int
    method: str
    fault: str
    done: tuple[str, ...]
    findings: tuple[str, ...]
    tried: bool = True


def parse(arguments: Sequence[str]) -> Options:
    """Parse the command line; raises a UserError for every mistake."""
    kinds = {
        "minutes": command_line.whole,
        "seed": command_line.whole,
        "only": command_line.wholes,
        "methods": command_line.names(METHODS, "method"),
        "faults": command_line.names(faults.FAULTS, "fault"),
        "parallel": command_line.count,
        "workdir": command_line.text,
    }
    return Options(**command_line.read(arguments, kinds, USAGE)[0])


def draw(options: Options, number: int) -> tuple[str, str, np.random.Generator]:
    """Draw the method, the fault and the generator of a trial; each number stands for itself."""
    generator = np.random.default_rng([options.seed, number])
    weights = np.array([faults.WEIGHTS.get(name, 1) for name in options.faults], float)
    method = options.methods[generator.integers(len(options.methods))]
    fault = options.faults[generator.choice(len(options.faults), p=weights / weights.sum())]
    return method, fault, generator


def trial(options: Options, number: int, base: pathlib.Path) -> Result:
    """Make one trial; its folders are removed unless there is a finding."""
    method, fault, generator = draw(options, number)
    run = base / f"trial-{number}"
    remove(run)
    subject = trials.Trial(method, base, run, generator)
    tried = True
    try:
        faults.FAULTS[fault](subject)
    except trials.NotPossible as reason:
        tried = False
        subject.done.append(str(reason))
    if subject.findings:
        run.with_suffix(".txt").write_text("\n\n".join(subject.errors))
    else:
        remove(run)
    return Result(number, method, fault, tuple(subject.done), tuple(subject.findings), tried)


def remove(run: pathlib.Path) -> None:
    """Remove the folders of a trial: its own, and those whose names begin with its and a space or a dot."""
    for folder in [run, *run.parent.glob(f"{run.name} *"), *run.parent.glob(f"{run.name}.*")]:
        shutil.rmtree(folder, ignore_errors=True)


def table(results: Sequence[Result]) -> str:
    """Return the results by kind of fault and by method, as tables in Markdown."""
    lines = []
    for title, field in (("fault", "fault"), ("method", "method")):
        lines += [f"| {title} | trials | as promised | findings |", "|---|---|---|---|"]
        for name in sorted({getattr(result, field) for result in results}):
            chosen = [result for result in results if getattr(result, field) == name and result.tried]
            wrong = sum(bool(result.findings) for result in chosen)
            lines.append(f"| {name} | {len(chosen)} | {len(chosen) - wrong} | {wrong} |")
        lines.append("")
    left_out = sorted({f"{result.fault}: {result.done[-1]}" for result in results if not result.tried})
    lines += [f"Not tried: {line}." for line in left_out]
    return "\n".join(lines)


def torture(options: Options, say: Callable[[str], None] = print) -> list[Result]:
    """Make trials until the minutes are over; writes torture.md and torture.json."""
    base = pathlib.Path(options.workdir).expanduser().absolute()
    base.mkdir(parents=True, exist_ok=True)
    small_runs.write_images(base / "images.npz")
    with concurrent.futures.ThreadPoolExecutor(options.parallel) as pool:
        for method, seconds in zip(
            options.methods, pool.map(lambda method: trials.undisturbed(method, base), options.methods), strict=True
        ):
            say(f"torture: {method} undisturbed, twice, {seconds:.0f} s")
    until = time.monotonic() + 60 * options.minutes
    results: list[Result] = []

    def numbers() -> Iterator[int]:
        if options.only:
            yield from options.only
        else:
            yield from itertools.takewhile(lambda _: time.monotonic() < until, itertools.count())

    waiting = numbers()
    with concurrent.futures.ThreadPoolExecutor(options.parallel) as pool:
        running = {pool.submit(trial, options, number, base) for number in itertools.islice(waiting, options.parallel)}
        while running:
            ended, running = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
            for future in ended:
                result = future.result()
                results.append(result)
                say(f"torture: {result.number} {result.method}, {result.fault} ({'; '.join(result.done)}): "
                    f"{'; '.join(result.findings) or 'as promised'}")  # fmt: skip
            running |= {pool.submit(trial, options, number, base) for number in itertools.islice(waiting, len(ended))}
            _write(base, options, results)
    say(table(results))
    return results


def _write(base: pathlib.Path, options: Options, results: Sequence[Result]) -> None:
    content = {"options": options._asdict(), "trials": [result._asdict() for result in results]}
    files.write_json(base / "torture.json", content)
    (base / "torture.md").write_text(table(results) + "\n")


def main(arguments: Sequence[str]) -> int:
    """Run the command line and return the exit status."""
    # In the background of a script SIGINT is ignored, which the runs would inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return command_line.run(arguments, __doc__, _torture, memory="--parallel", name="torture")


def _torture(arguments: Sequence[str]) -> list[Result]:
    results = torture(parse(arguments), lambda line: print(line, flush=True))
    return [result for result in results if result.findings]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
