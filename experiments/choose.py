"""Choose settings on held-out training images: values of one config key at a time, without a look at the test images.

    python -m experiments.choose --vary=KEY=VALUE,VALUE [--vary=...] [--config=configs/digits.py] [--seeds=3]
                                 [--by=few_shot] [--workdir=runs/choose-digits] [--config.KEY=VALUE ...]

The training images alone are written to training.npz in the work dir, and a fifth of them (`data.test_fraction`) takes
the place of the test images in every run. The config is run as it is, and with every value of every key that is varied,
the others staying as they are; a seed is a distillation. Values with commas are in brackets, as in

    python -m experiments.choose --vary=distill.learning_rate=0.01,0.03 "--vary=student.widths=(8,16),(16,32)"

The teacher and what methods prepare are shared by the runs, except where one of them varies. The same command resumes.
Writes choices.json and choices.md: for each key the values, the measures of the distilled set, and which value is best
by one of them (`--by`). It chooses nothing for you: write the choice into your config, then look at the test images
once.
"""

from __future__ import annotations

import os
import pathlib
import re
import sys
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.measure import command_line, comparison, tables
from ssdd_jax import config as configuration
from ssdd_jax import data, pipeline, report
from ssdd_jax.cli import arguments as commandline
from ssdd_jax.errors import UserError
from ssdd_jax.runtime import files

_say = command_line.warnings_once()
USAGE = "--vary=KEY=VALUE,VALUE --config=FILE --seeds=3 --by=few_shot --workdir=DIR and --config.KEY=VALUE are known"
OWNED = ("seed", "evaluate.entries")
# Keys of `config.data` that decide which images training.npz holds.
DATA = ("name", "data_dir", "train_split", "test_split", "image_size", "train_limit", "test_fraction")
# The only key of the data that can be varied: the others decide which images there are.
HELD_OUT = "data.test_fraction"


class Choice(NamedTuple):
    """A value of a config key, as it is typed, and the argument that sets it."""

    key: str
    value: str

    @property
    def argument(self) -> str:
        """The argument of the command line."""
        return f"--config.{self.key}={self.value}"

    @property
    def folder(self) -> str:
        """A name for the folder of its runs; a checksum tells values apart whose names are the same otherwise."""
        text = f"{self.key}={self.value}"
        name = re.sub(r"[^\w.=-]+", "_", text).strip("_")
        return name if name == text else f"{name}-{zlib.crc32(text.encode()):08x}"


class Options(NamedTuple):
    """Options of the command: config file, changes to it, choices, seeds, the measure that names the best, folder."""

    config: str
    changes: tuple[str, ...]
    choices: tuple[Choice, ...]
    seeds: int
    by: str
    folder: pathlib.Path


def parse(arguments: Sequence[str]) -> Options:
    """Parse the command line; raises a UserError for every mistake."""
    varied = [argument for argument in arguments if argument.startswith("--vary=")]
    kinds = {
        "config": command_line.text,
        "seeds": command_line.count,
        "by": command_line.names(comparison.MEASURES, "measure"),
        "workdir": command_line.text,
    }
    others = [argument for argument in arguments if argument not in varied]
    values, changes = command_line.read(others, kinds, USAGE, config=True)
    if not varied:
        raise UserError(f"name what to vary, such as --vary=distill.learning_rate=0.01,0.03: {USAGE}")
    choices = tuple(dict.fromkeys(choice for argument in varied for choice in _choices(argument)))
    config = values.get("config", commandline.DEFAULT)
    folder = command_line.folder(values.get("workdir", ""), "choose", config)
    by = values.get("by", ("few_shot",))
    if len(by) > 1:
        raise UserError(f"--by={','.join(by)}: name one measure")
    for key in command_line.by_key(changes):
        if key in OWNED:
            raise UserError(f"config.{key} differs between the runs: this command sets it")
    options = Options(config, tuple(changes), choices, values.get("seeds", 3), by[0], folder)
    for choice in (None, *choices):  # a mistake in the last value is found before the first run
        if _parsed(options, choice).teacher.features:
            raise UserError("config.teacher.features are of all images, and a part is held out here: name the network")
    return options


def _choices(argument: str) -> list[Choice]:
    key, equals, values = argument.removeprefix("--vary=").partition("=")
    if not (key and equals and values):
        raise UserError(f"cannot read {argument!r}: it is --vary=KEY=VALUE,VALUE")
    if key in OWNED or (key.startswith("data.") and key != HELD_OUT):
        raise UserError(f"config.{key} cannot be varied: this command sets it")
    # At commas outside of brackets.
    return [Choice(key, value.strip()) for value in re.split(r",(?![^()\[\]]*[)\]])", values) if value.strip()]


def _parsed(options: Options, choice: Choice | None) -> Any:
    line = [f"--config={options.config}", *options.changes, *([choice.argument] if choice else [])]
    return commandline.parse(line).config


def prepare(options: Options) -> pathlib.Path:
    """Write the training images of the config's data set to an archive of their own, and return its path."""
    path, kept = options.folder / "training.npz", options.folder / "training.json"
    settings = _parsed(options, None).data
    of_data = {key: settings[key] for key in DATA}
    if path.exists() and kept.exists() and files.read_json(kept) != of_data:
        raise UserError(f"{path} is of another data set or of other config.data: choose another --workdir")
    if not (path.exists() and kept.exists()):
        dataset = data.load(settings)
        arrays = {"train_images": dataset.train_images}
        if dataset.train_labels is not None:
            arrays |= {"train_labels": dataset.train_labels, "class_names": np.array(dataset.class_names)}
        partial = path.with_name(".training.partial.npz")
        with files.saving(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(partial, allow_pickle=False, **arrays)
            partial.replace(path)
        files.write_json(kept, of_data)
    return path


def run(options: Options, choice: Choice | None, seed: int) -> dict[str, Any]:
    """Run the config with one choice and return its results, those in the folder if they are complete."""
    config = _parsed(options, choice)
    archive = options.folder / "training.npz"
    config.seed = seed
    config.evaluate.entries = ("distilled",)
    # Of the size and number that they were written in.
    config.data.update(name=f"npz:{archive}", data_dir="", image_size=0, train_limit=0, cache_dir="")
    folder = options.folder / f"{choice.folder if choice else 'as_it_is'}-seed{seed}"
    done = folder / "report.html"
    if done.exists() and files.read_json(folder / "config.json") == configuration.flatten(config):
        return report.upgrade(files.read_json(folder / "results.json"))
    shared = options.folder / "shared"
    # The runs of the config as it is come first, and leave a record of the keys that their shared parts depend on.
    records = [files.read_json(path) for path in sorted(shared.glob("*.json"))]
    if choice is not None and any(choice.key in record for record in records):
        shared = options.folder / f"shared-{choice.folder}"
    print(f"choose: {folder.name}", flush=True)
    results = pipeline.run(config, folder, shared=shared, say=_say)
    assert results is not None
    return results


def measure(options: Options) -> list[dict[str, Any]]:
    """Run everything that is missing.

    Returns:
        A row per key and value, the config's own first: `key`, `value`, `as_it_is`, and `values` by measure, one per
        network.
    """
    prepare(options)
    seeds = range(options.seeds)
    base = [run(options, None, seed) for seed in seeds]
    measured = comparison.values(base, "distilled")
    if options.by not in measured:
        raise UserError(f"{options.by} is not measured on these data: choose --by={', '.join(measured) or 'nothing'}")
    plain = configuration.flatten(_parsed(options, None))
    rows = []
    for key in dict.fromkeys(choice.key for choice in options.choices):
        rows.append(_row(key, plain[key], base, as_it_is=True))
        for choice in options.choices:
            changed = configuration.flatten(_parsed(options, choice))[key]
            if choice.key == key and changed != plain[key]:
                rows.append(_row(key, changed, [run(options, choice, seed) for seed in seeds], as_it_is=False))
    return rows


def _row(key: str, value: Any, results: Sequence[dict[str, Any]], *, as_it_is: bool) -> dict[str, Any]:
    return {"key": key, "value": value, "as_it_is": as_it_is, "values": comparison.values(results, "distilled")}


def best(rows: Sequence[dict[str, Any]], by: str) -> dict[str, dict[str, Any]]:
    """Return the row of the best mean by key; an equal one does not replace the config's own."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        if by in row["values"] and (
            row["key"] not in found or np.mean(row["values"][by]) > np.mean(found[row["key"]]["values"][by])
        ):
            found[row["key"]] = row
    return found


def table(rows: Sequence[dict[str, Any]], by: str) -> str:
    """Format the rows as Markdown: mean and standard deviation; the config's own values are in bold."""
    measures = list(rows[0]["values"])
    chosen = best(rows, by)
    lines = []
    for row in rows:
        mark = "**" if row["as_it_is"] else ""
        words = "best" if row is chosen.get(row["key"]) else ""
        cells = [comparison.cell(name, row["values"][name]) for name in measures]
        lines.append([row["key"], f"{mark}{row['value']}{mark}", words, *cells])
    head = ["key", "value", f"by {by}", *(report.TITLES[name] for name in measures)]
    return tables.markdown(head, lines, text=3)


def main(arguments: Sequence[str]) -> int:
    """Run the command line and return the exit status."""
    return command_line.run(arguments, __doc__, _choose, memory="the batch sizes", name="choose")


def _choose(arguments: Sequence[str]) -> None:
    options = parse(arguments)
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str((options.folder / "compiled").absolute()))
    rows = measure(options)
    words = table(rows, options.by)
    files.write_json(options.folder / "choices.json", {"config": options.config, "by": options.by, "rows": rows})
    note = f"Mean ± standard deviation over the networks of {options.seeds} sets, on held-out training images."
    files.write_bytes(options.folder / "choices.md", f"{words}\n\n{note}\n".encode())
    print(f"\n{words}\n\n{note} choices.json and choices.md are in {options.folder}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
