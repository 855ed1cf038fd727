"""The LAPACK library that XLA calls on a CPU."""

from __future__ import annotations

import contextlib

from threadpoolctl import threadpool_limits


def single_threaded() -> contextlib.AbstractContextManager[object]:
    """Limit LAPACK to one thread within the context.

    Its threads compete with XLA's: a Cholesky factorisation of 400 rows takes 0.5 ms with one thread, and was seen to
    take 350 ms with two.
    """
    import scipy.linalg  # noqa: F401, loads the library, which cannot be limited before

    return threadpool_limits(1, "blas")
