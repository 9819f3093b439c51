"""Ends a run whose encoder no longer gets better."""


class EarlyStopping:
    """Counts the evaluations in a row that were not better than the best before them.

    Attributes:
      best: the highest score so far; -infinity before the first.
      worse: evaluations since then.
    """

    def __init__(self, patience: int, best: float = -float("inf"), worse: int = 0):
        """Counts to a patience, `config.evaluation.patience`; 0 for no end."""
        self._patience = patience
        self.best, self.worse = best, worse

    @property
    def is_due(self) -> bool:
        """Whether there were as many as the patience allows."""
        return 0 < self._patience <= self.worse

    def add(self, score: float) -> None:
        """Counts an evaluation; higher scores are better."""
        self.best, self.worse = (score, 0) if score > self.best else (self.best, self.worse + 1)
