"""Facts about a run that need no measurement: shapes, stored numbers, and the progress of its stages."""

from __future__ import annotations

import pathlib

from ssdd_jax.methods.base import Run, Stage
from ssdd_jax.runtime.memory import readable

DONE = "done"
# States of a stage with no work left.
COMPLETE = (DONE, "precomputed", "nothing to learn")


def newest(folder: pathlib.Path) -> int:
    """Return the step of the newest checkpoint in a folder, 0 without one; no checkpoint is opened."""
    return max((int(path.name) for path in folder.glob("*") if path.name.isdigit()), default=0)


def state_of(run: Run, stage: Stage) -> str:
    """Describe the progress of a stage without opening or writing a file.

    Args:
        run: The run.
        stage: One of its stages.

    Returns:
        `done`, a description of a part that is done, or an empty string.
    """
    work = run.work
    if stage.name == "teacher" and not run.problem.network:
        return "precomputed"
    # A stage writes its output file last, so that the file marks it as complete.
    if stage.output and ((work.shared if stage.shared else work.folder) / stage.output).exists():
        return DONE
    if stage.name == "distill" and run.method.step is None:
        return "nothing to learn"
    # Only these two stages write checkpoints.
    checkpoints = {"teacher": work.teacher / "checkpoints", "distill": work.checkpoints}
    step = newest(checkpoints[stage.name]) if stage.name in checkpoints else 0
    return f"{step:,} steps done" if step else ""


def shapes_of(run: Run) -> list[tuple[str, str]]:
    """Return names and shapes of the data, the teacher's features, and the method."""
    problem = run.problem
    assert run.dataset.test_images is not None
    size = "x".join(map(str, problem.image_shape))
    image_bytes, feature_bytes = problem.images * problem.image_numbers, 4 * problem.images * problem.dim
    residence = "on the device" if run.resident() else "streamed from the host"
    pairs, dim = pairs_of(run)
    return [
        ("training images n", f"{problem.images:,} of {size}, {readable(image_bytes)} {residence}"),
        ("test images", f"{len(run.dataset.test_images):,} of {size}"),
        ("classes", f"{problem.classes:,}" if problem.classes else "no labels: feature_r2 alone is measured"),
        ("teacher's features", f"{problem.images:,} of {problem.dim:,}, {readable(feature_bytes)}"),
        ("pairs", f"{pairs:,} of {size} and {dim:,}"),
        *run.method.shapes,
        *(("data", note) for note in run.dataset.notes),
    ]


def pairs_of(run: Run) -> tuple[int, int]:
    """Return the number of pairs of the decoded set, and the length of a target."""
    if run.method.pairs is not None:
        return run.method.pairs
    return len(run.method.views) * (run.method.samples or run.config.storage.N), run.problem.dim


def parts_of(run: Run) -> dict[str, int]:
    """Return the numbers that the set stores, by part."""
    if run.method.parts is not None:
        return dict(run.method.parts)
    count, dim = pairs_of(run)
    return {"images": count * run.problem.image_numbers, "targets": count * dim}
