"""How many threads scikit-learn should have: more of them can be far slower."""

import contextlib

from byol_jax import backend


def limited(count: int) -> contextlib.AbstractContextManager:
    """A context in which scikit-learn uses at most half of the cores, for so many rows.

    Its threads wait for each other at every step. Where one of them has to share its core with
    another process, all of them wait.
    """
    from threadpoolctl import threadpool_limits  # late: it comes with scikit-learn

    return threadpool_limits(max(1, min(backend.cores() // 2, count // 1000)))
