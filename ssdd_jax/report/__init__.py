"""Reports as single HTML files that need no network: of one run, and of several side by side.

python -m ssdd_jax.report runs/digits runs/digits-krr_st --out=comparison.html
"""

from ssdd_jax.report.comparison_page import Side, compare, side_of
from ssdd_jax.report.records import Record, read
from ssdd_jax.report.run_page import write

__all__ = ["Record", "Side", "compare", "read", "side_of", "write"]
