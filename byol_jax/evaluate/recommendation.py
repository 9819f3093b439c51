"""Recommendation: how high a user's held-out items rank among all that are new to the user."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

CUTOFFS = (10, 20)
USERS_AT_A_TIME = 256  # whose scores are in memory
BPR_RATES = (0.01, 0.03, 0.1)  # of which held-out interactions choose

# Numbers of users, integers (n,) -> a score for each item, float (n, items); higher is better.
Scores = Callable[[np.ndarray], np.ndarray]


def recommendation(
    scores: Scores, held_out: np.ndarray, seen: np.ndarray, cutoffs: Sequence[int] = CUTOFFS
) -> dict[str, Any]:
    """Recall, NDCG and hit rate, each a mean over users.

    Args:
      scores: of all items, by user.
      held_out: integers (n, 2), numbers of user and item; users without any do not count.
      seen: likewise, items that are not recommended to a user.
      cutoffs: k, how many items are recommended.

    Returns:
      'recall', 'ndcg' and 'hit_rate', each by k: the share of the held-out items that are
      recommended; the sum of 1 / log2(1 + rank) over those, divided by the largest possible;
      whether one of them is recommended. With one item for each user, recall is the hit rate.
      And 'users', how many count.
    """
    held_out = held_out[np.argsort(held_out[:, 0], kind="stable")]
    users, starts = np.unique(held_out[:, 0], return_index=True)
    wanted = dict(zip(users, np.split(held_out[:, 1], starts[1:]), strict=True))
    found: dict[str, dict[int, list[float]]] = {
        name: {k: [] for k in cutoffs} for name in ("recall", "ndcg", "hit_rate")
    }
    for start in range(0, len(users), USERS_AT_A_TIME):
        some = users[start : start + USERS_AT_A_TIME]
        for user, best in zip(some, top(scores, some, seen, max(cutoffs))[0], strict=True):
            hits = np.isin(best, wanted[user])
            gains = hits / np.log2(np.arange(2, 2 + len(best)))
            for k in cutoffs:
                ideal = sum(1 / np.log2(2 + rank) for rank in range(min(k, len(wanted[user]))))
                found["recall"][k].append(hits[:k].sum() / len(wanted[user]))
                found["ndcg"][k].append(gains[:k].sum() / ideal)
                found["hit_rate"][k].append(float(hits[:k].any()))
    means = {
        name: {k: float(np.mean(values)) for k, values in by_k.items()}
        for name, by_k in found.items()
    }
    return {**means, "users": len(users)}


def top(
    scores: Scores, users: np.ndarray, seen: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """The items of the highest scores that a user has not seen, the best first.

    Args:
      scores: as of `recommendation`.
      users: integers (n,), distinct.
      seen: as of `recommendation`.
      count: how many; fewer if there are not as many items.

    Returns:
      Items, integers (n, count), and their scores; of items that a user has seen -infinity, which
      come last. Of equal scores, the lower number comes first.
    """
    found = np.array(scores(users), np.float64)
    row_of = np.full(max(seen[:, 0].max(initial=0), users.max()) + 1, -1)
    row_of[users] = np.arange(len(users))
    rows = row_of[seen[:, 0]]
    found[rows[rows >= 0], seen[rows >= 0, 1]] = -np.inf
    count = min(count, found.shape[1])
    # The `count` highest of a row are found first, and those alone are sorted. Of those that are
    # equal to the last one, the lower numbers are taken.
    last = -np.partition(-found, count - 1, axis=1)[:, count - 1 : count]
    is_tie = found == last
    places = count - (found > last).sum(axis=1, keepdims=True)
    chosen = (found > last) | (is_tie & (np.cumsum(is_tie, axis=1) <= places))
    best = np.nonzero(chosen)[1].reshape(len(found), count)
    order = np.argsort(-np.take_along_axis(found, best, axis=1), axis=1, kind="stable")
    best = np.take_along_axis(best, order, axis=1)
    return best, np.take_along_axis(found, best, axis=1)


def popularity(train: np.ndarray, items: int) -> Scores:
    """How many training interactions an item has, for every user."""
    counts = np.bincount(train[:, 1], minlength=items)
    return lambda users: np.tile(counts, (len(users), 1))


def item_knn(train: np.ndarray, users: int, items: int, neighbours: int = 100) -> Scores:
    """Sums of the cosine similarities of an item and those of a user, of the nearest to each."""
    from implicit.nearest_neighbours import CosineRecommender  # late: an extra

    matrix = _matrix(train, users, items)
    model = CosineRecommender(K=neighbours, num_threads=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Method expects CSR")  # of the package's own matrix
        model.fit(matrix.astype(np.float64), show_progress=False)
    return lambda some: (matrix[some] @ model.similarity).toarray()


def bpr(
    train: np.ndarray,
    held_out: np.ndarray,
    users: int,
    items: int,
    features: int,
    epochs: int,
) -> Scores:
    """Matrix factorisation by Bayesian personalised ranking (Rendle et al. 2009, 1205.2618).

    Args:
      train: integers (n, 2), numbers of user and item.
      held_out: likewise; the highest NDCG@10 of these chooses the learning rate.
      users: how many there are.
      items: likewise.
      features: of an embedding.
      epochs: passes over the training interactions.
    """
    from implicit.bpr import BayesianPersonalizedRanking  # late: an extra

    matrix, best = _matrix(train, users, items), (-1.0, None)
    for rate in BPR_RATES:
        model = BayesianPersonalizedRanking(
            factors=features,
            learning_rate=rate,
            iterations=epochs,
            use_gpu=False,
            num_threads=1,
            random_state=0,
        )
        model.fit(matrix, show_progress=False)
        factors = np.array(model.user_factors), np.array(model.item_factors).T
        scores = _product(*factors)
        ndcg = recommendation(scores, held_out, train)["ndcg"][CUTOFFS[0]]
        best = max(best, (ndcg, scores), key=lambda pair: pair[0])
    return best[1]


def _product(users: np.ndarray, items: np.ndarray) -> Scores:
    return lambda some: users[some] @ items


def _matrix(pairs: np.ndarray, users: int, items: int) -> Any:
    """1 for each interaction, as a sparse matrix (users, items)."""
    from scipy.sparse import csr_matrix

    ones = np.ones(len(pairs), np.float32)
    return csr_matrix((ones, (pairs[:, 0], pairs[:, 1])), shape=(users, items))
