"""Limits of settings."""

MIN_POSITIVE = 1e-6  # stands for "above 0"
MAX_FINITE = 1e12  # stands for "finite"


def limit(value: float, keys: str) -> dict[str, float]:
    """The same limit for several keys, separated by spaces."""
    return dict.fromkeys(keys.split(), value)
