"""What is read off a run now and then: its metrics, the health of its features, kNN accuracy."""

from collections.abc import Callable
from functools import partial

import jax
import numpy as np

from byol_jax import byol, data, evaluate, health, hosts, parallel, runs
from byol_jax import input as input_lib
from byol_jax.bad_images import BadImages

KNN_NEIGHBOURS = 20
FLAGS = ("stop", "finite")  # among the metrics, but nothing to read


class Reader:
    """Reads a run. Of several processes all read, and find the same."""

    def __init__(
        self,
        run: runs.Run,
        learner: byol.Learner,
        source: input_lib.Source,
        test_source: input_lib.Source | None,
        bad: BadImages | None,
    ):
        """Reads `run`, for kNN with images of both sources; what is bad among them is told."""
        self._run, self._source, self._test_source, self._bad = run, source, test_source, bad
        self._rate = run.learning_rate()
        self._inspect = parallel.inspect_features(learner)
        self._embed = parallel.embedder(learner)

    def read(
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
        readings = {key: float(value) for key, value in metrics.items() if key not in FLAGS}
        readings["epoch"] = step / self._run.steps_per_epoch
        readings["learning_rate"] = float(self._rate(step - 1))  # the update began there
        return readings | health.readings(*self._inspect(state, batch))

    def knn_top1(self, step: int, state: byol.State) -> float:
        """Accuracy of weighted kNN on held-out images, both sets cut to the config's sizes.

        Raises:
          UserError: an image cannot be read, and is not to be left out.
        """
        config = self._run.config

        def features(source: input_lib.Source, limit: int) -> tuple[np.ndarray, np.ndarray]:
            return evaluate.collect(
                lambda images: self._embed(state, images, data.eval_batch_size(config)),
                data.eval_batches(config, source, limit=limit, bad=self._told(step)),
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
        return partial(self._bad, step) if hosts.is_first() else lambda _: None
