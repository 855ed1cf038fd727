"""Reports of runs: figures, tables, and self-contained HTML pages of one run or of several.

    python -m ssdd_jax.report runs/digits runs/digits-krr_st --out=comparison.html

Matplotlib is imported only when a figure is drawn.
"""

from ssdd_jax.report.comparison_page import Side, compare, side_of
from ssdd_jax.report.figures import (
    SHOWN,
    draw,
    grid,
    images_figure,
    loss_figure,
    results_figure,
    save,
    stretch,
    table,
)
from ssdd_jax.report.labels import TITLES, digits
from ssdd_jax.report.records import POINTS, Record, read, upgrade
from ssdd_jax.report.run_page import write

__all__ = [
    "POINTS",
    "SHOWN",
    "TITLES",
    "Record",
    "Side",
    "compare",
    "digits",
    "draw",
    "grid",
    "images_figure",
    "loss_figure",
    "read",
    "results_figure",
    "save",
    "side_of",
    "stretch",
    "table",
    "upgrade",
    "write",
]
