"""Text form of a plan: remaining work, time and memory, and which settings to lower if memory is short."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ssdd_jax.dry_run.predictions import Plan, Prediction
from ssdd_jax.runtime.memory import readable


def text(plan: Plan) -> str:
    """Format the whole plan in a few dozen lines."""
    stored = sum(plan.parts.values())
    lines = [f"plan of {plan.title}", "", *_columns([["shapes", ""], *map(list, plan.shapes)]), ""]
    whole = f"{plan.budget:,} = N (HWC + D)"
    lines += [
        f"numbers stored: {stored:,} " + (f"of {whole}" if plan.unit == "numbers" else f"in {plan.budget:,} bytes")
    ]
    lines += _columns([[f"  {name}", f"{count:,}"] for name, count in plan.parts.items()], right=True)
    lines += ["", *stages(plan), "", *_after(plan)]
    return "\n".join(lines)


def stages(plan: Plan) -> list[str]:
    """Format the predictions, one line per stage and one for the sum."""
    rows = [["stage", "state", "left to do", "time", "compiling", "memory"]]
    for stage in plan.stages:
        rows.append(_row(stage))
    seconds, memory = plan.seconds, plan.memory
    rows.append(["all", "", "", duration(seconds), duration(plan.compiling), readable(memory) if memory else ""])
    return _columns(rows, right=True, left=3)


def _row(stage: Prediction) -> list[str]:
    if stage.done:
        return [stage.name, stage.state, "", "", "", ""]
    memory = readable(stage.memory) if stage.memory else ""
    if not stage.costs:
        # A stage without trials takes seconds in any run.
        time = "seconds" if stage.seconds is None else duration(stage.seconds)
        return [stage.name, stage.state, "", time, "", memory]
    several = [f"{cost.count:,.0f} {cost.what}" for cost in stage.costs if cost.count > 1]
    work = ", ".join(several[:2]) + (", ..." if len(several) > 2 else "") or "one pass"
    return [stage.name, stage.state, work, duration(stage.total), duration(stage.compiling), memory]


def _after(plan: Plan) -> list[str]:
    measured = ", ".join(
        f"{stage.name} {sum(cost.measured for cost in stage.costs)}"
        for stage in plan.stages
        if stage.costs and not stage.done
    )
    lines = []
    if measured:
        lines.append(
            f"Times are predictions from a few steps measured on this machine just now ({measured}), on random "
            "stand-ins where an earlier stage has no output yet. They exclude reading streamed data and writing files, "
            "and other work on the machine makes a run slower."
        )
    lines.append(
        f"Memory is XLA's estimate for the largest program of a stage, data included; the device has "
        f"{readable(plan.available)}."
    )
    for stage in plan.stages:
        if not stage.done and stage.memory > plan.available:
            lines.append(f"{stage.name} needs more memory than the device has: lower {stage.lower}.")
    return lines


def short(plan: Plan) -> str:
    """Summarise the plan in one line: stored numbers, memory and time."""
    seconds = plan.seconds
    stored = sum(plan.parts.values())
    numbers, inside = plan.unit == "numbers", f"{stored:,} of {plan.budget:,} numbers"
    budget = f"N={plan.N}: {inside}" if numbers else f"{plan.budget:,} bytes: about {stored:,} numbers"
    time = "unknown: a stage does not fit" if math.isnan(seconds) else f"about {duration(seconds)} (min:s)"
    return (
        f"{budget}; expected memory {readable(plan.memory)} of "
        f"{readable(plan.available)}, expected time {time}, from steps measured just now"
    )


def duration(seconds: float) -> str:
    """Format seconds as `m:ss`, as `h:mm:ss` from an hour on, and with tenths below ten seconds."""
    if math.isnan(seconds):
        return "?"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _columns(rows: Sequence[Sequence[str]], *, right: bool = False, left: int = 1) -> list[str]:
    """Align rows of cells: the first `left` columns to the left, the others to the right if `right`."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if right and column >= left else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines
