"""Scores of items for users, by a run on interactions."""

import numpy as np

from byol_jax.data.interactions import InteractionSource
from byol_jax.runs.encoder import Model
from byol_jax.runs.run import Trained

WALKS = 32  # times those of training, so that an embedding hardly depends on their seed
BATCH = 1024


class Recommender:
    """Embeddings of all users and items, and the score of BUIR (arXiv 2105.06323, section 3.3).

    With z the projection and q the prediction of a node by the online network, all of length 1 as
    in the loss, the score of user u and item v is q_u . z_v + z_u . q_v. Without predictor q is z.
    The paper does not normalise them; on MovieLens that is worse.
    """

    def __init__(self, trained: Trained, source: InteractionSource):
        """Embeds all; walks are along the training interactions of the source."""
        model = Model(trained)
        z, q = _embed(model, source, "user", len(source.users))
        self._users = np.concatenate([q, z], axis=1)
        z, q = _embed(model, source, "item", len(source.items))
        self._items = np.concatenate([z, q], axis=1)

    def scores(self, users: np.ndarray) -> np.ndarray:
        """Of all items, float32 (n, items), for users of these numbers, integers (n,)."""
        return self._users[users] @ self._items.T


def _embed(
    model: Model, source: InteractionSource, side: str, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Projections and predictions of all users or items, float32 (count, size)."""
    has_predictor = "predictor" in model.state.online_params
    found = []
    for start in range(0, count, BATCH):
        numbers = np.arange(start, min(start + BATCH, count))
        node = {side: source.nodes(side, numbers, [(0, int(i)) for i in numbers], times=WALKS)}
        z = model.project(node, BATCH)
        found.append((z, model.predict(node, BATCH) if has_predictor else z))
    z, q = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return _unit(z), _unit(q)


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
