"""The LAPACK library that XLA calls on a CPU."""

from __future__ import annotations

import contextlib

from threadpoolctl import threadpool_limits


def single_threaded() -> contextlib.AbstractContextManager[object]:
    """Limit LAPACK to one thread within the context.

    LAPACK's threads compete with XLA's: a Cholesky factorisation of 400 rows takes 0.5 ms with one thread, and up to
    350 ms were measured with two.
    """
    import scipy.linalg  # noqa: F401, loads the library, which must be loaded to be limited

    return threadpool_limits(1, "blas")
