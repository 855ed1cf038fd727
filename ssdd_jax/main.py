"""The command line: `python -m ssdd_jax.main [--config=configs/NAME.py] [--config.key=value] [--workdir=DIR]`."""

from __future__ import annotations

import os
import pathlib
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from ssdd_jax.cli import arguments as commandline
    from ssdd_jax.dry_run import Plan

HELP = """\
usage: python -m ssdd_jax.main [--config=FILE[:EDITION]] [--config.KEY=VALUE ...] [--workdir=DIR] [--shared=DIR]
                               [--stage=STAGE] [--tensorboard] [--dry_run]

Distil a set of images into a tiny set of images and target features, and evaluate networks trained on it.
`ssdd run` is the same command.

  --config=FILE[:EDITION]  the config file; default configs/digits.py. Files of the package, for use from any directory:
{configs}
                           An edition is a preset named after a method:
                           {editions}.
                           cifar10.py also has the edition cpu, alone or as cpu,METHOD. folder.py:PATH or
                           folder.py:PATH,METHOD runs on a folder of your own photographs, of any sizes
  --config.KEY=VALUE       change one value, such as --config.storage.N=20 or --config.distill.start=random.
                           --help_config lists all keys with their defaults and meanings
  --workdir=DIR            the run directory for all output; default runs/NAME of the config. The same command with the
                           same directory resumes a run that was stopped or killed
  --shared=DIR             a folder for the teacher, its features and a method's preparations, so that several runs
                           can share them; default the run directory
  --stage=STAGE            the last stage to run:
                           {stages},
                           or a stage of the method: experts (mkdt), probe and post_training (scdd),
                           clusters, ridge_head, linear_head, hard_labels,
                           hard_labels_augmented and dd_ranking (lgm, clp_dd)
  --tensorboard            write the losses to tensorboard/ too, for: tensorboard --logdir=RUN/tensorboard. Needs
                           tensorboardX: pip install 'ssdd_jax[tensorboard]'
  --dry_run                print the plan and exit: stages and their state, shapes, stored numbers, and predicted memory
                           and time on this machine from a few measured steps; no result is written
  --version                print the version
  --help                   print this page

A run directory contains config.json, teacher/, features/, samples/, checkpoints/, distilled/ (the set, for
ssdd_jax.load(path)), metrics.jsonl, results.json, constraints.txt (versions, for pip install -c), figures/,
report.html (all results on one page, for a browser) and compiled/ (XLA's compilation cache, which speeds up later
starts; JAX_COMPILATION_CACHE_DIR names another folder).

All accelerators of the machine are used; for several hosts set --config.devices.hosts=auto.
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
        arguments: The arguments without the program's name.

    Returns:
        The exit status: 0, or 2 for a mistake that the user can correct, reported in one line.
    """
    from ssdd_jax import methods
    from ssdd_jax.cli import console

    # Listed in the error message when the device runs out of memory.
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
        # A dry run uses an existing compilation cache but does not create the folder.
        compiled = (options.shared or options.workdir) / "compiled"
        if not os.environ.get("JAX_COMPILATION_CACHE_DIR") and (compiled.is_dir() or not options.dry_run):
            jax.config.update("jax_compilation_cache_dir", str(compiled.absolute()))
        if options.dry_run:
            _plan(options)
            return
        # Before any computation: the processes of several hosts must connect first.
        devices.join(options.config.devices.hosts)
        announce = _describe(options.config)
        pipeline.run(
            options.config,
            options.workdir,
            shared=options.shared,
            until=options.stage,
            tensorboard=options.tensorboard,
            command=commandline.typed(arguments),
            say=_say,
            announce=announce,
        )
        if devices.is_first():
            print(f"ssdd_jax: done; everything is in {pathlib.Path(options.workdir)}", file=sys.stderr)


def _plan(options: commandline.Options) -> None:
    """Print the plan of a run."""
    from ssdd_jax import dry_run, pipeline

    _describe(options.config)

    def say(line: str) -> None:
        # What was recognised of the teacher; the plan itself describes the data.
        if line.startswith("teacher:"):
            print(line)

    plan = pipeline.plan(options.config, options.workdir, shared=options.shared, until=options.stage, say=say)
    print(dry_run.text(plan))


def _describe(config: ConfigDict) -> Callable[[Plan], None] | None:
    """Log the contents of a folder of photographs; return the `announce` callback, None for other configs."""
    import jax

    from ssdd_jax import dry_run
    from ssdd_jax.api import photos

    if not config.data.name.startswith("folder:") or jax.process_count() > 1:
        return None
    for line in photos.describe(config, accelerator=jax.default_backend() != "cpu"):
        _say(line)
    return lambda plan: _say(dry_run.short(plan))


def _say(line: str) -> None:
    print(line, flush=True)


def cli(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line with these arguments, by default those of the process, and exit with its status."""
    from ssdd_jax.cli import console

    console.leave(_main, arguments)


def _main(arguments: list[str]) -> int:
    try:
        status = main(arguments)
    except Exception as error:
        from ssdd_jax.cli import console

        if console.is_full_memory(error):  # while modules are imported
            print(f"ssdd_jax: the machine's memory is full: end other programs; {console.INTACT}", file=sys.stderr)
            status = 2
        else:
            traceback.print_exc()
            status = 1
    from ssdd_jax.runtime import devices

    devices.leave(status)
    return status


if __name__ == "__main__":
    cli()
