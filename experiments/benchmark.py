"""Benchmark every stage against the machine's matrix product and the same arithmetic in PyTorch.

    python -m experiments.benchmark --quick
    python -m experiments.benchmark --pairs=100,400 --stages=outer,inner,whole --official=CLONE --output=benchmark.json

Stages: `teacher` (a Barlow Twins step), `features` (the teacher's features of a batch), `inner` (a full-batch SGD step
of one model on the pairs), `outer` (decoding of views, features of synthetic and real images, kernel regression,
gradient, AdamW), `whole` (both, as in `methods.boost`; with one model per step also a step of KRR-ST's published loop,
see `experiments.torch_side.official`), `approximation` (a step of the fit), `evaluation` (an SGD step on a mini-batch).

On the JAX side a step is timed inside its compiled loop, as in a run. The sides take turns, so that drift of the
machine affects all of them; ratios are of medians. On the JAX side the teacher's step includes the random views;
PyTorch's step gets views that are already augmented. PyTorch uses the faster of its two memory formats. Measure on an
idle machine.

Memory is the count of XLA's compiler (arguments, results, temporaries), and for PyTorch that of its allocator on a GPU;
`process` is the growth of the whole process during a call, which shows large arrays only. Operations are those of
direct convolution: an algorithm with fewer multiplications can exceed the rate of matrix products (a share above 1).
"""

from __future__ import annotations

import os

# As in a run: LAPACK's threads compete with XLA's. PyTorch's products do not use OpenBLAS.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# By default JAX reserves most of a GPU's memory, and PyTorch needs some. Must be set before JAX initializes the GPU.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import argparse
import pathlib
import sys
from collections.abc import Iterator, Sequence
from importlib import util
from typing import Any

import jax

from experiments.jax_side import loops as jax_loops
from experiments.jax_side import stages as jax_stages
from experiments.measure import counts, machine, output, tables, timing
from experiments.measure.timing import Timed
from ssdd_jax import augment
from ssdd_jax.models import convnet, convolution, precision

TEACHER = ("teacher", "features")
DISTILLATION = ("inner", "outer", "whole", "approximation", "evaluation")
STAGES = (*TEACHER, *DISTILLATION)
QUICK = {
    "pairs": (16,), "batch": 32, "size": 16, "widths": (32, 64), "dim": 64, "product": 1024, "teacher_width": 8,
    "projector": 64, "fit_steps": 50, "compile": False,
}  # fmt: skip
NO_TORCH = "PyTorch is not installed: pip install 'ssdd_jax[torch]' adds the comparison"


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure the selected stages and return the report; each row is printed as soon as it is measured."""
    sides, notes = torch_sides(options)
    report: dict[str, Any] = {
        "machine": machine.describe(),
        "options": output.plain(options),
        "product_gflops": products(sides, options),
        "rows": [],
        "scan_overhead": None,
        "notes": notes,
    }
    for stage, pairs, calls, flops in prepared(sides, options):
        _log(f"{stage} {pairs or ''}: measuring {', '.join(calls)} in turns")
        rows = of_stage(stage, pairs, calls, flops, report["product_gflops"], options)
        report["rows"] += rows
        for row in rows:
            _log(f"{stage} {pairs or ''} {row['side']}: {row['seconds']:.4g} s per step")
    if "inner" in options.stages and options.scan:
        train, steps = timing.take_turns(
            jax_loops.train_and_steps(jax_loops.make_problem(sized(options, options.pairs[0])), options),
            options.repeats,
        )
        report["scan_overhead"] = timing.compared(train.seconds, steps.seconds)
    if sides is not None:
        report["notes"] += sides.notes
        report["layout_seconds"] = sides.layouts
    report["official"] = "clone" if options.official else "description"
    report["process_peak_bytes"] = timing.peak_process_bytes()
    report["device_peak_bytes"] = machine.device_peak_bytes()
    return report


def prepared(sides: Any, options: argparse.Namespace) -> Iterator[tuple[str, int | None, dict[str, Timed], Any]]:
    """Yield for every stage its name, the number of pairs, the calls by side, and the operation counts by stage."""
    selected = tuple(stage for stage in TEACHER if stage in options.stages)
    if selected:
        flops = counts.stages(sizes(options))
        teacher = jax_stages.make_teacher(options)
        others = sides.teacher(teacher, selected) if sides else {}
        for stage in selected:
            call = jax_stages.teacher_loop(teacher, options).timed() if stage == "teacher" else None
            yield stage, None, {"jax": call or jax_stages.features(teacher, options), **others.get(stage, {})}, flops
    selected = tuple(stage for stage in DISTILLATION if stage in options.stages)
    for pairs in options.pairs if selected else ():
        sized_options = sized(options, pairs)
        flops = counts.stages(sizes(sized_options))
        problem = jax_loops.make_problem(sized_options)
        others = sides.distillation(problem, sized_options, selected) if sides else {}
        for stage in selected:
            yield stage, pairs, {"jax": jax_call(stage, problem, sized_options), **others.get(stage, {})}, flops


def jax_call(stage: str, problem: jax_loops.Problem, options: argparse.Namespace) -> Timed:
    """Return the JAX side of a stage of the distillation."""
    if stage == "approximation":
        return jax_stages.approximation(problem, options)
    if stage == "evaluation":
        return jax_stages.evaluation(problem, options).timed()
    return jax_loops.loop(stage, problem, options).timed()


def of_stage(
    stage: str,
    pairs: int | None,
    calls: dict[str, Timed],
    flops: dict[str, float],
    rates: dict[str, dict[str, float]],
    options: argparse.Namespace,
) -> list[dict[str, Any]]:
    """Measure one stage, with the sides in turns; returns a row per side."""
    results = dict(zip(calls, timing.take_turns(list(calls.values()), options.repeats), strict=True))
    rows = []
    for side, measured in results.items():
        dtype = used_precision(stage, side, options)
        count = flops["official" if side == "official" else stage]
        rate = rates["jax" if side == "jax" else "torch"][dtype]
        row: dict[str, Any] = {"stage": stage, "pairs": pairs, "side": side, "precision": dtype}
        row |= timing.summary(measured, count, rate)
        row["compile_seconds"] = calls[side].compile_seconds
        row["jax_over_this"] = None if side == "jax" else timing.compared(results["jax"].seconds, measured.seconds)
        rows.append(row)
    return rows


def used_precision(stage: str, side: str, options: argparse.Namespace) -> str:
    """Return the precision in which a side computes a stage: `--precision` applies to the students only."""
    lowered = stage in ("inner", "outer", "whole", "evaluation") and side != "official"
    return jax_loops.precision(options) if lowered else "float32"


def products(sides: Any, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Measure the rate of matrix products in GFLOP/s, by side and precision.

    Only in the precisions of the rows: where a processor has no instructions for bfloat16, as with AVX2, PyTorch's
    product takes minutes on one core.
    """
    dtypes = list(dict.fromkeys(("float32", jax_loops.precision(options))))
    _log(f"products of matrices in {' and '.join(dtypes)}")
    makers = {"jax": lambda dtype: machine.product(options.product, dtype)}
    makers |= {"torch": sides.product} if sides else {}
    calls = {(side, dtype): make(dtype) for side, make in makers.items() for dtype in dtypes}
    results = timing.take_turns(list(calls.values()), max(options.repeats, 5))
    rates: dict[str, dict[str, float]] = {side: {} for side in makers}
    for (side, dtype), measured in zip(calls, results, strict=True):
        rates[side][dtype] = machine.gflops(measured, options.product)
    return rates


def torch_sides(options: argparse.Namespace) -> tuple[Any, list[str]]:
    """Return `torch_sides.Sides` and notes, or None and a note that explains why there is no comparison."""
    if options.no_torch:
        return None, []
    if util.find_spec("torch") is None:
        return None, [NO_TORCH]
    # OpenMP's threads sleep while idle, which leaves the cores to the JAX side. Must be set before importing torch.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    from experiments.torch_side import sides as torch_sides

    if jax.default_backend() != "cpu" and not torch.cuda.is_available():
        return None, [f"this PyTorch cannot use the {jax.default_backend()} that JAX runs on: no comparison"]
    notes = [f"PyTorch {torch.__version__}; its teacher is given views already augmented, ours makes them."]
    if "whole" in options.stages and options.models_per_step == 1:
        source = "its own modules" if options.official else "written from its description"
        notes.append(f"KRR-ST's loop: {source}, without its random crops and flips, whose library is left out.")
    return torch_sides.Sides(options), notes


def sized(options: argparse.Namespace, pairs: int) -> argparse.Namespace:
    """Return the options with the number of images that yields this number of pairs."""
    return argparse.Namespace(**vars(options) | {"images": pairs // options.views})


def sizes(options: argparse.Namespace) -> counts.Sizes:
    """Return the sizes that the operation counts depend on."""
    values = {name: getattr(options, name) for name in counts.Sizes._fields if hasattr(options, name)}
    values |= {"images": getattr(options, "images", 1)}
    return counts.Sizes(**values, bases=max(1, values["images"] // 2), hidden=jax_stages.HIDDEN)


def count(text: str) -> int:
    """Parse a positive integer."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return int(text)


def several(text: str) -> tuple[int, ...]:
    """Parse positive integers separated by commas."""
    return tuple(count(part) for part in text.split(","))


def stages(text: str) -> tuple[str, ...]:
    """Parse names of stages, and sort them in the order of `STAGES`."""
    for name in text.split(","):
        if name not in STAGES:
            raise argparse.ArgumentTypeError(f"there is no stage {name}: choose among {', '.join(STAGES)}")
    return tuple(stage for stage in STAGES if stage in text.split(","))


def parser() -> argparse.ArgumentParser:
    """Create the parser of the command line."""
    command = argparse.ArgumentParser(prog="python -m experiments.benchmark", description=__doc__.splitlines()[0])
    command.add_argument("--stages", type=stages, default=STAGES, help=f"out of {', '.join(STAGES)}")
    command.add_argument("--pairs", type=several, default=(100, 400), help="numbers of pairs: views of decoded images")
    command.add_argument("--images", type=count, help="decoded images M, instead of --pairs")
    command.add_argument("--views", type=count, default=4, help=f"views of each, out of {', '.join(augment.VIEWS)}")
    command.add_argument("--batch", type=count, default=256, help="real images: of an outer step, of the teacher's")
    command.add_argument("--data", type=count, help="images of the data set; default: four batches")
    command.add_argument("--size", type=count, default=32, help="side of an image in pixels")
    command.add_argument("--widths", type=several, default=(128, 256, 512), help="channels of the blocks: 128,256,512")
    command.add_argument("--dim", type=count, default=512, help="length of a target")
    command.add_argument("--models-per-step", type=count, default=1)
    command.add_argument("--pool", type=count, default=2, help="inner models")
    command.add_argument("--vectorize", type=count, default=1, help="models computed in parallel (JAX)")
    command.add_argument("--form", choices=("auto", *convolution.FORMS), default="auto", help="of convolutions (JAX)")
    command.add_argument("--teacher-width", type=count, default=64, help="channels of its first stage")
    command.add_argument("--teacher-blocks", type=several, default=(2, 2, 2, 2), help="blocks in each stage: 2,2,2,2")
    command.add_argument("--projector", type=count, default=2048, help="width of the projector's layers")
    command.add_argument("--evaluation-batch", type=count, default=256, help="pairs of a step of the evaluation")
    command.add_argument("--steps", type=count, default=3, help="steps in one call")
    command.add_argument("--teacher-steps", type=count, default=1, help="steps in one call of the teacher's stages")
    command.add_argument("--fit-steps", type=count, default=200, help="steps of the approximation's fit")
    command.add_argument("--repeats", type=count, default=3, help="calls that are timed")
    command.add_argument("--product", type=count, help="side of the matrices whose product is timed")
    command.add_argument("--quick", action="store_true", help="small sizes: within three minutes on two cores")
    command.add_argument(
        "--scan",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compare a scan of inner steps with single ones",
    )
    command.add_argument("--no-torch", action="store_true", help="skip the comparison")
    command.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, default=True, help="time torch.compile as well"
    )
    command.add_argument(
        "--official", default="", metavar="CLONE",
        help="a clone of db-Lee/selfsup_dd, whose loop is timed; without one it is written from its description",
    )  # fmt: skip
    command.add_argument("--output", type=output.path, help="write the report here as JSON, and its table beside it")
    command.add_argument(
        "--precision", choices=precision.NAMES, default="float32", help="of the students' convolutions"
    )
    return command


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse and check the options."""
    line = parser()
    if line.parse_args(arguments).quick:
        line.set_defaults(**QUICK)
    options = line.parse_args(arguments)
    if options.images:
        options.pairs = (options.images * options.views,)
    options.product = options.product or (2048 if jax.default_backend() == "cpu" else 8192)
    del options.images
    try:
        convnet.check_divisible((options.size, options.size), len(options.widths))
    except ValueError as error:
        line.error(str(error))
    if options.official and not (pathlib.Path(options.official) / "algorithms" / "distill.py").is_file():
        line.error(f"--official={options.official} is not a clone of db-Lee/selfsup_dd")
    if options.views > len(augment.VIEWS):
        line.error(f"--views={options.views}: there are {len(augment.VIEWS)}")
    for pairs in options.pairs:
        if pairs % options.views:
            line.error(f"--pairs={pairs} is not a multiple of --views={options.views}")
    if options.models_per_step > options.pool:
        line.error(f"--models-per-step={options.models_per_step} is more than --pool={options.pool}")
    return options


def _log(line: str) -> None:
    print(f"benchmark: {line}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print a table, write the report if `--output` is set, and return it."""
    options = parse(arguments)
    report = measure(options)
    table = tables.benchmark(report)
    print(table)
    if options.output:
        output.write(options.output, report, table)
    return report


if __name__ == "__main__":
    main()
