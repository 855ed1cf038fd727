"""A plan as text: what there is to do, what it takes, and what to change where it does not fit."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ssdd_jax.dry_run.predictions import Plan, Prediction
from ssdd_jax.runtime.memory import readable


def text(plan: Plan) -> str:
    """The whole plan, a few dozen lines."""
    stored = sum(plan.parts.values())
    lines = [f"plan of {plan.title}", "", *_columns([["shapes", ""], *map(list, plan.shapes)]), ""]
    lines += [f"numbers stored: {stored:,} of {plan.budget:,} = N (HWC + D)"]
    lines += _columns([[f"  {name}", f"{count:,}"] for name, count in plan.parts.items()], right=True)
    lines += ["", *stages(plan), "", *_after(plan)]
    return "\n".join(lines)


def stages(plan: Plan) -> list[str]:
    """The stages with what is predicted of them, a line each, and the sum."""
    rows = [["stage", "state", "left to do", "time", "compiling", "memory"]]
    for one in plan.stages:
        rows.append(_row(one))
    seconds, memory = plan.seconds, plan.memory
    rows.append(["all", "", "", duration(seconds), duration(plan.compiling), readable(memory) if memory else ""])
    return _columns(rows, right=True, left=3)


def _row(one: Prediction) -> list[str]:
    if one.done:
        return [one.name, one.state, "", "", "", ""]
    memory = readable(one.memory) if one.memory else ""
    if not one.costs:
        return [one.name, one.state, "", "seconds" if one.seconds is None else duration(one.seconds), "", memory]
    several = [f"{cost.count:,.0f} {cost.what}" for cost in one.costs if cost.count > 1]
    work = ", ".join(several[:2]) + (", ..." if len(several) > 2 else "") or "one pass"
    return [one.name, one.state, work, duration(one.total), duration(one.compiling), memory]


def _after(plan: Plan) -> list[str]:
    measured = ", ".join(
        f"{one.name} {sum(cost.measured for cost in one.costs)}" for one in plan.stages if one.costs and not one.done
    )
    lines = []
    if measured:
        lines.append(
            f"Times are predictions from a few steps measured here just now ({measured}), where an earlier stage's "
            "output is not there yet on random stand-ins. Reading what is streamed and writing files are not in them, "
            "and a machine with other work to do takes longer."
        )
    lines.append(
        f"Memory is what XLA says that the largest program of a stage takes, data included; the device has "
        f"{readable(plan.available)}."
    )
    for one in plan.stages:
        if not one.done and one.memory > plan.available:
            lines.append(f"{one.name} needs more memory than the device has: lower {one.lower}.")
    return lines


def short(plan: Plan) -> str:
    """The plan in a line: numbers stored, memory and minutes."""
    seconds = plan.seconds
    stored = sum(plan.parts.values())
    time = "unknown: a stage does not fit" if math.isnan(seconds) else f"about {duration(seconds)} (min:s)"
    return (
        f"N={plan.N}: {stored:,} of {plan.budget:,} numbers; expected memory {readable(plan.memory)} of "
        f"{readable(plan.available)}, expected time {time}, from steps measured just now"
    )


def duration(seconds: float) -> str:
    """Seconds as `m:ss`, or `h:mm:ss` from an hour on; tenths below ten seconds."""
    if math.isnan(seconds):
        return "?"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _columns(rows: Sequence[Sequence[str]], *, right: bool = False, left: int = 1) -> list[str]:
    """Rows of cells, aligned: the first `left` columns to the left, the others to the right if that is asked for."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if right and column >= left else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines
