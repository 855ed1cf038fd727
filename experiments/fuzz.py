"""Give damaged files to every reader, and list what was not answered with a result or with one line.

    python -m experiments.fuzz [--readers=set,npz,...] [--mutants=200] [--seed=0] [--workdir=runs/fuzz]

A mutant is a valid file or folder in which one file was changed: bits flipped, bytes overwritten, cut off, repeated or
inserted, or a number in it replaced. Besides, every reader gets files that lie about what they hold: headers of 2^60
numbers, archives and pictures that expand, nested JSON, pickled objects.

An answer is right if it is a result or a UserError of one line, within 10 seconds and with less memory than four times
the file's size beyond 256 MB, and if a set with checksums that is read is the set that was written. Everything else is
a finding: it is listed with the seed that makes the same file again. The exit status is 1 if there are any. Findings
and counts are also in fuzz.json in the work dir.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import pathlib
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.measure import command_line, damage, readers
from ssdd_jax.errors import UserError
from ssdd_jax.runtime import files

SECONDS = 10
# Memory beyond four times the file's size: what libraries take when they are loaded.
MARGIN = 256 << 20
USAGE = "--readers=A,B --mutants=N --seed=S and --workdir=DIR are known"


class Options(NamedTuple):
    """Options of the command: readers, mutants of each, seed, and folder for fuzz.json."""

    readers: tuple[str, ...] = tuple(readers.READERS)
    mutants: int = 200
    seed: int = 0
    workdir: str = "runs/fuzz"


class Finding(NamedTuple):
    """A file that was not answered as it should be.

    Attributes:
        reader: Name of the reader.
        number: Number of the mutant, or the name of a file that lies.
        change: What was changed.
        answer: What happened instead of a result or a line.
    """

    reader: str
    number: int | str
    change: str
    answer: str


class TooLong(BaseException):
    """Raised by the alarm; not an Exception, so that no reader takes it for a damaged file."""


def parse(arguments: Sequence[str]) -> Options:
    """Parse the command line; raises a UserError for every mistake."""
    kinds = {
        "readers": command_line.names(readers.READERS, "reader"),
        "mutants": command_line.whole,
        "seed": command_line.whole,
        "workdir": command_line.text,
    }
    return Options(**command_line.read(arguments, kinds, USAGE)[0])


def answer_to(reader: readers.Reader, path: pathlib.Path, expected: Any) -> str:
    """Read a damaged file; returns what is wrong with the answer, empty if nothing is."""
    size = sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def ring(*_: Any) -> None:
        raise TooLong

    signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = reader.read(path)
    except UserError as error:
        return "a message of several lines" if "\n" in str(error) else ""
    except TooLong:
        return f"no answer within {SECONDS} seconds"
    except Exception as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "ssdd_jax" in frame.filename]
        place = f"{pathlib.Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
        return f"{type(error).__name__} at {place}: {' '.join(str(error).split())[:200]}"
    finally:
        signal.alarm(0)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    if grown > 4 * size + MARGIN:
        return f"{grown >> 20} MB of memory for {size:,} bytes"
    if reader.exact and not readers.same(found, expected):
        return "another set than the one that was written"
    return ""


def _try(name: str, numbers: Sequence[int | str], seed: int, output: str) -> None:
    """Try some mutants of a reader, in a process of its own; one line of JSON each goes to the file `output`."""
    reader = readers.READERS[name]
    with tempfile.TemporaryDirectory() as folder, open(output, "a") as lines:
        valid = pathlib.Path(folder, "valid")
        valid.mkdir()
        path = reader.make(valid)
        expected = reader.read(path)
        # The limit is on what is allocated from here on, which a reader's libraries are part of.
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        resource.setrlimit(resource.RLIMIT_DATA, (used + (4 << 30), resource.RLIM_INFINITY))
        for number in numbers:
            copy = pathlib.Path(folder, "copy")
            shutil.copytree(valid, copy)
            damaged = copy / path.relative_to(valid)
            if isinstance(number, str):
                damage.LIES[number](damaged)
                change = "a file that lies"
            else:
                change = damage.mutate(np.random.default_rng([seed, number]), damaged)
            print(json.dumps([number, change, None]), file=lines, flush=True)
            print(json.dumps([number, change, answer_to(reader, damaged, expected)]), file=lines, flush=True)
            shutil.rmtree(copy)
            if sorted(os.listdir(folder)) != ["valid"]:
                print(json.dumps([number, change, "a file was written beside the one that was read"]), file=lines)


def try_reader(name: str, options: Options, say: Callable[[str], None] = print) -> tuple[int, list[Finding]]:
    """Try all mutants of a reader; a process that dies is a finding, and the next one goes on behind it.

    Returns:
        The number of files tried, and the findings.
    """
    numbers: list[int | str] = [*damage.lies_for(readers.READERS[name].kinds), *range(options.mutants)]
    context = multiprocessing.get_context("spawn")
    findings, tried = [], 0
    with tempfile.TemporaryDirectory() as folder:
        output = pathlib.Path(folder, "answers")
        while numbers:
            output.write_text("")
            process = context.Process(target=_try, args=(name, numbers, options.seed, str(output)))
            process.start()
            process.join()
            answers: dict[int | str, tuple[str, str | None]] = {}
            for line in output.read_text().splitlines():
                number, change, answer = json.loads(line)
                # A later line of the same file replaces its answer, unless that is a finding.
                if not (number in answers and answers[number][1]):
                    answers[number] = (change, answer)
            for number, (change, answer) in answers.items():
                if answer is None:
                    answer = f"the process ended with {process.exitcode}"
                if answer:
                    findings.append(Finding(name, number, change, answer))
                    say(f"fuzz: {name} {number} ({change}): {answer}")
            tried += len(answers)
            if process.exitcode and not answers:
                raise RuntimeError(f"the reader {name} does not read its own valid file")
            numbers = numbers[len(answers) :]
    return tried, findings


def main(arguments: Sequence[str]) -> int:
    """Run the command line and return the exit status."""
    return command_line.run(arguments, __doc__, _fuzz, memory="--mutants", name="fuzz")


def _fuzz(arguments: Sequence[str]) -> list[Finding]:
    options = parse(arguments)
    findings, counts = [], {}
    for name in options.readers:
        counts[name], found = try_reader(name, options)
        findings += found
        print(f"fuzz: {name}: {counts[name]} files, {len(found)} findings", flush=True)
    folder = pathlib.Path(options.workdir).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    content = {"seed": options.seed, "files": counts, "findings": [one._asdict() for one in findings]}
    files.write_json(folder / "fuzz.json", content)
    return findings


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
