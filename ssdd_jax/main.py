"""The command line: `python -m ssdd_jax.main [--config=configs/NAME.py] [--config.key=value] [--workdir=DIR]`."""

from __future__ import annotations

import os
import pathlib
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from ssdd_jax.cli import arguments as commandline
    from ssdd_jax.dry_run import Plan

HELP = """\
usage: python -m ssdd_jax.main [--config=FILE[:EDITION]] [--config.KEY=VALUE ...] [--workdir=DIR] [--shared=DIR]
                               [--stage=STAGE] [--dry_run]

Distil a set of images into a tiny set of images and target features, and measure what it teaches.

  --config=FILE[:EDITION]  what to run; default configs/digits.py. With the package come, usable from any directory:
{configs}
                           An edition names a method: {editions}.
                           cifar10.py has the edition cpu too, alone or as cpu,METHOD; folder.py:PATH or
                           folder.py:PATH,METHOD is for a folder of your own photographs, of any sizes
  --config.KEY=VALUE       change one value, such as --config.storage.N=20 or --config.distill.start=random.
                           Every key, with its default and what it means: --help_config
  --workdir=DIR            where everything is written; default runs/NAME of the config. The same command in the same
                           folder continues where it was stopped or killed
  --shared=DIR             where the teacher, its features and a method's own preparations are kept, so that several
                           runs use the same; default the run's own folder
  --stage=STAGE            the last stage to run:
                           {stages},
                           or one that the method brings: experts (mkdt), probe and post_training (scdd)
  --dry_run                print the plan and exit: the stages and which are done, shapes, numbers stored, memory and
                           time on this machine, from a few measured steps; no result is written
  --version                print the version
  --help                   print this page

A run's folder holds config.json, teacher/, features/, samples/, checkpoints/, distilled/ (the set:
ssdd_jax.load(path)), metrics.jsonl, results.json, figures/, report.html (all of it on one page, for a browser) and
compiled/ (what XLA compiled, so that a second start is quick; another folder if JAX_COMPILATION_CACHE_DIR names one).

Several accelerators are used as they are found, several hosts with --config.devices.hosts=auto.
Images come from config.data.name: digits, tfds:NAME, tiny_imagenet, aircraft, folder:PATH, npz:PATH
or npy:PATH.
Examples:
  python -m ssdd_jax.main
  python -m ssdd_jax.main --dry_run
  python -m ssdd_jax.main --config=configs/folder.py:~/Pictures/birds
  python -m ssdd_jax.main --config=configs/digits.py:krr_st
  python -m ssdd_jax.main --config=configs/cifar10.py:cpu --config.data.data_dir=~/tensorflow_datasets
  python -m ssdd_jax.main --config=configs/digits.py --config.data.name=folder:photos --config.data.image_size=32
"""


def main(arguments: list[str]) -> int:
    """Run the command line.

    Args:
        arguments: Without the program's name.

    Returns:
        The exit status: 0, 2 for a mistake that a user can mend, told in one line.
    """
    from ssdd_jax import methods
    from ssdd_jax.cli import console

    keys = [f"{definition.lower} ({name})" for name, definition in methods.METHODS.items() if definition.lower]
    return console.answer(lambda: _run(arguments), memory=", ".join(keys))


def _run(arguments: list[str]) -> None:
    import jax

    from ssdd_jax import config as configuration
    from ssdd_jax import pipeline
    from ssdd_jax.cli import arguments as commandline
    from ssdd_jax.runtime import devices
    from ssdd_jax.runtime.version import __version__

    if "--help" in arguments or "-h" in arguments:
        words = {"stages": ", ".join(pipeline.STAGES), "editions": ", ".join(configuration.EDITIONS)}
        print(HELP.format(configs=commandline.shipped_configs(), **words))
    elif "--help_config" in arguments:
        print(commandline.config_page())
    elif "--version" in arguments:
        print(__version__)
    else:
        options = commandline.parse(arguments)
        compiled = (options.shared or options.workdir) / "compiled"
        if not os.environ.get("JAX_COMPILATION_CACHE_DIR") and (compiled.is_dir() or not options.dry_run):
            jax.config.update("jax_compilation_cache_dir", str(compiled.absolute()))
        if options.dry_run:
            _plan(options)
            return
        devices.join(options.config.devices.hosts)
        announce = _describe(options.config)
        pipeline.run(
            options.config,
            options.workdir,
            shared=options.shared,
            until=options.stage,
            command=commandline.typed(arguments),
            say=_say,
            announce=announce,
        )
        if devices.is_first():
            print(f"ssdd_jax: done; everything is in {pathlib.Path(options.workdir)}", file=sys.stderr)


def _plan(options: commandline.Options) -> None:
    """Print what a run would do."""
    from ssdd_jax import dry_run, pipeline

    _describe(options.config)
    found = pipeline.plan(options.config, options.workdir, shared=options.shared, until=options.stage)
    print(dry_run.text(found))


def _describe(config: ConfigDict) -> Callable[[Plan], None] | None:
    """Say what is in a folder of one's own; what is to be told its plan, None where that is not asked for."""
    import jax

    from ssdd_jax import dry_run
    from ssdd_jax.api import photos

    if not config.data.name.startswith("folder:") or jax.process_count() > 1:
        return None
    for line in photos.describe(config, accelerator=jax.default_backend() != "cpu"):
        _say(line)
    return lambda found: _say(dry_run.short(found))


def _say(line: str) -> None:
    print(line, flush=True)


def cli() -> None:
    """Run and exit with the status."""
    status = main(sys.argv[1:])
    from ssdd_jax.runtime import devices

    devices.leave(status)
    sys.exit(status)


if __name__ == "__main__":
    cli()
