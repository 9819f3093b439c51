"""What is read off a run now and then: its metrics, the health of its features, kNN accuracy."""

from collections.abc import Callable
from functools import partial

import jax
import numpy as np

from byol_jax import byol, data, evaluate, parallel
from byol_jax.runs import inputs, processes
from byol_jax.runs import run as run_lib
from byol_jax.train import health
from byol_jax.train.decode_error_log import DecodeErrorLog

KNN_NEIGHBOURS = 20


class MetricsCollector:
    """Reads a run. Of several processes all read, and find the same."""

    def __init__(
        self,
        run: run_lib.Run,
        learner: byol.Learner,
        source: data.Source,
        test_source: data.Source | None,
        bad: DecodeErrorLog | None,
    ):
        """Reads `run`, for kNN with images of both sources; what is bad among them is told."""
        self._run, self._source, self._test_source, self._bad = run, source, test_source, bad
        self._rate = run.learning_rate()
        self._features = parallel.gather_rows(partial(health.features, learner))
        self._embed = parallel.embedder(learner)

    def collect(
        self, step: int, metrics: dict[str, jax.Array], state: byol.State, batch: byol.Batch
    ) -> dict[str, float]:
        """The metrics of the update to `step`, where it is in the run, and health.readings.

        Args:
          step: updates done.
          metrics: of the last one, as from parallel.update.
          state: after it.
          batch: that it saw, placed.
        """
        metrics = parallel.local(metrics)
        readings = {key: float(value) for key, value in metrics.items()}
        readings["epoch"] = step / self._run.steps_per_epoch
        readings["learning_rate"] = float(self._rate(step - 1))  # the update began there
        return readings | health.readings(*self._features(state, batch))

    def knn_top1(self, step: int, state: byol.State) -> float:
        """Accuracy of weighted kNN on held-out images, both sets cut to the config's sizes.

        Raises:
          UserError: an image cannot be read, and is not to be left out.
        """
        config = self._run.config
        embed = self._embed(state)

        def features(source: data.Source, limit: int) -> tuple[np.ndarray, np.ndarray]:
            return evaluate.collect(
                lambda images: embed(images, inputs.eval_batch_size(config)),
                inputs.eval_batches(config, source, limit=limit, on_decode_error=self._told(step)),
            )

        result = evaluate.knn(
            *features(self._source, config.knn.train_examples),
            *features(self._test_source, config.knn.test_examples),
            num_classes=self._source.num_classes,
            ks=(KNN_NEIGHBOURS,),
        )
        return result["top1"]

    def _told(self, step: int) -> Callable[[str], None] | None:
        """What to do with images that are left out: all processes meet the same, one lists them."""
        if self._bad is None:
            return None
        return partial(self._bad, step) if processes.is_first() else lambda _: None
