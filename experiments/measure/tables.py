"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SIDES = {
    "jax": "ssdd_jax",
    "torch": "PyTorch",
    "torch_compiled": "PyTorch, compiled",
    "official": "KRR-ST's loop",
}


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]], text: int = 1) -> str:
    """Format a table whose first `text` columns are aligned left and the others right."""
    lines = [head, ["---"] * text + ["---:"] * (len(head) - text), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def benchmark(report: Mapping[str, Any]) -> str:
    """Format the rows of a benchmark, with the machine above and the notes below."""
    head = [
        "stage", "pairs", "side", "precision", "s per step (min-max)", "steps/s", "GFLOP", "GFLOP/s", "share",
        "memory MB", "process MB", "compile s", "ssdd_jax over this (min-max)",
    ]  # fmt: skip
    rows = []
    for row in report["rows"]:
        ratio = row.get("jax_over_this")
        rows.append(
            [
                row["stage"],
                str(row["pairs"] or ""),
                SIDES[row["side"]],
                row["precision"],
                f"{figures(row['seconds'])} ({figures(row['min'])}-{figures(row['max'])})",
                figures(row["steps_per_second"]),
                figures(1e-9 * row["flops"]),
                figures(row["gflops"]),
                f"{row['share']:.2f}",
                megabytes(row["memory_bytes"]),
                megabytes(row["process_bytes"]),
                "" if row["compile_seconds"] is None else f"{row['compile_seconds']:.1f}",
                "" if ratio is None else "{ratio:.2f} ({min:.2f}-{max:.2f})".format(**ratio),
            ]
        )
    products = [
        f"{SIDES[side]} {dtype} {figures(rate)}"
        for side, one in report["product_gflops"].items()
        for dtype, rate in one.items()
    ]
    overhead = report["scan_overhead"]
    remarks = [f"Products of matrices, GFLOP/s: {', '.join(products)}."]
    if overhead:
        remarks.append(
            "A scan over inner steps over single ones: {ratio:.2f} ({min:.2f}-{max:.2f}).".format(**overhead)
        )
    remarks += report["notes"]
    return "\n\n".join(
        [machine(report["machine"]), markdown(head, rows, 4), "\n".join(f"- {line}" for line in remarks)]
    )


def machine(host: Mapping[str, Any]) -> str:
    """Describe the machine in one line."""
    software = f"JAX {host['jax']} on {host['backend']} ({host['device']})"
    return f"{host['processor']}, {host['cores']} cores, {software}, load {host['busy'] or 0:.1f}"


def figures(value: float) -> str:
    """Format a number with three significant figures; without an exponent unless it is very small."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def megabytes(count: int | None) -> str:
    """Format bytes in MB; empty for None."""
    return "" if count is None else f"{count / 1e6:,.0f}"
