"""Reports as single HTML files that need no network: of one run, and of several side by side.

python -m ssdd_jax.page runs/digits runs/digits-krr_st --out=comparison.html
"""

from ssdd_jax.page.comparison import Side, compare, side_of
from ssdd_jax.page.records import Record, read
from ssdd_jax.page.run import write

__all__ = ["Record", "Side", "compare", "read", "side_of", "write"]
