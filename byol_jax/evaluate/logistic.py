"""Multinomial logistic regression on frozen features.

The protocol of BYOL's transfer experiments (arXiv 2006.07733, the appendix on transfer), after
Kornblith et al. 2019 (arXiv 1805.08974): the L2 strength is chosen on a validation split, then the
classifier is refitted on all training data. (The paper's linear evaluation on ImageNet is another
protocol: SGD with crops and flips.) For each strength:

    minimise  f(W, b) = mean_i cross_entropy(x_i W + b, y_i) + l2 / 2 |W|^2

Böhning (1992, "Multinomial logistic regression algorithm") bounds its Hessian for all (W, b) by
X^T X / (2 n) + l2. A gradient step divided by that bound always descends, however correlated the
features are; correlation is what stalls L-BFGS on raw pixels. One eigendecomposition of X^T X / n
serves every strength. With fewer rows than columns, steps stay in the span of the rows, and the
thin SVD of X has all that they need. Nesterov momentum with O'Donoghue and Candès' restart (arXiv
1204.3982, section 3.2) accelerates it without a line search: one gradient per iteration, all
strengths of a group at once.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from byol_jax.errors import ConfigError
from byol_jax.evaluate.features import check_splits
from byol_jax.evaluate.scores import accuracies, label_ranks

L2_STRENGTHS = tuple(10.0 ** (-6 + i / 4) for i in range(45))  # 1e-6 to 1e5, as in the paper

# Strengths fitted at once: each needs a few copies of the weights, and strong ones end sooner.
_GROUP = 9

# Logits held at once, over rows x strengths x classes: 2**25 float32 are 128 MiB.
_LOGITS_PER_CHUNK = 2**25


class Fit(NamedTuple):
    """Logistic regressions for s strengths; logits are x @ weights[i] + biases[i]."""

    weights: jax.Array  # (s, d, num_classes) float32
    biases: jax.Array  # (s, num_classes) float32
    gradient: jax.Array  # (s,) float32: largest |entry| of the last gradient computed
    iterations: jax.Array  # int32 (): of the strength that took the most


def logistic(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    *,
    num_classes: int,
    l2: Sequence[float] = L2_STRENGTHS,
    validation_fraction: float = 0.1,
    seed: int = 0,
) -> dict[str, Any]:
    """Accuracy of logistic regression on frozen features, its L2 strength chosen by validation.

    A seeded permutation holds out `validation_fraction` of the training set; one classifier per
    strength is fitted to the rest. The strength most accurate on the held-out part (of equals, the
    strongest) is refitted on the complete training set and tested once. Features are standardised
    by the rows being fitted. Test labels influence nothing but 'top1'.

    Args:
      train_features: (n, d) float32, finite, n >= 2.
      train_labels: (n,) integers in [0, num_classes).
      test_features: (m, d) float32, finite.
      test_labels: (m,) integers in [0, num_classes).
      num_classes: number of classes, >= 1.
      l2: strengths to choose from, each > 0, for a loss that is a mean over examples
        (scikit-learn's C is 1 / (n l2)).
      validation_fraction: part of the training set to choose on, in (0, 1).
      seed: of the permutation that picks it.

    Returns:
      `scores.accuracies` on the test split; 'l2': the strength chosen; 'validation_top1':
      {strength: accuracy in [0, 1]}.

    Raises:
      DataError: features or labels do not have these shapes or values.
      ConfigError: a strength or the fraction is out of range.
    """
    train_features, train_labels, test_features, test_labels = check_splits(
        train_features, train_labels, test_features, test_labels, num_classes
    )
    logits, chosen, validation_top1 = choose_and_score(
        train_features,
        train_labels,
        test_features,
        lambda logits, labels: float(np.mean(label_ranks(logits, labels) == 0)),
        l2,
        validation_fraction,
        seed,
        num_classes,
    )
    result = accuracies(label_ranks(logits, test_labels), test_labels, num_classes)
    return result | {"l2": chosen, "validation_top1": validation_top1}


def choose_and_score(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    score: Callable[[np.ndarray, np.ndarray], float],
    l2: Sequence[float],
    validation_fraction: float,
    seed: int,
    num_classes: int,
) -> tuple[np.ndarray, float, dict[float, float]]:
    """Chooses the strength on held-out rows, and fits all training rows with it: see `logistic`.

    Args:
      train_features: (n, d) float32.
      train_labels: as of `fit`.
      test_features: (m, d) float32.
      score: of logits and labels of the held-out rows; higher is better.
      l2: strengths to choose from; of equally good ones the strongest.
      validation_fraction: see `logistic`.
      seed: see there.
      num_classes: number of classes.

    Returns:
      The logits of the test rows, (m, num_classes); the strength chosen; {strength: score}.
    """
    held_out, fitted = held_out_rows(len(train_features), validation_fraction, seed)
    all_logits = fit_and_score(
        train_features[fitted], train_labels[fitted], train_features[held_out], l2, num_classes
    )
    found = [score(logits, train_labels[held_out]) for logits in all_logits]
    validation = dict(zip(map(float, l2), found, strict=True))
    chosen = max(validation, key=lambda strength: (validation[strength], strength))
    (logits,) = fit_and_score(
        train_features.copy(), train_labels, test_features.copy(), [chosen], num_classes
    )
    return logits, chosen, validation


def held_out_rows(count: int, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Divides `count` rows at random: the indices to choose on, and those to fit.

    Raises:
      ConfigError: the fraction leaves one of them empty.
    """
    num_validation = max(1, round(count * fraction)) if 0 < fraction < 1 else 0
    if not 0 < num_validation < count:
        raise ConfigError(
            f"validation_fraction {fraction} of {count} training images leaves nothing to fit or "
            "nothing to choose on: use a fraction in (0, 1), for example .1."
        )
    order = np.random.default_rng(seed).permutation(count)
    return order[:num_validation], order[num_validation:]


def standardise(train: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shifts and scales (n, d) train and (m, d) other, in place, by train's mean and deviation.

    In train every column has mean 0 and deviation 1 afterwards. Columns that are constant in train,
    up to float32 rounding, become zero in both: a tiny deviation would blow up their values in
    `other`.
    """
    mean, scale = scaling(train)
    for features in (train, other):
        features -= mean
        features *= scale
    return train, other


def scaling(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What to subtract from each column of (n, d) features, and then to multiply it by: (d,) twice.

    Float32, computed in float64. The factor is 0 for constant columns: see `standardise`.
    """
    mean = features.mean(axis=0, dtype=np.float64)
    # By blocks of columns, which changes no bit: a float64 copy of all would be twice as large.
    blocks = np.array_split(features, max(1, features.shape[1] // 64), axis=1)
    std = np.concatenate([block.std(axis=0, dtype=np.float64) for block in blocks])
    constant = std <= 1e-6 * np.abs(mean)
    scale = np.where(constant, 0, 1 / np.where(constant, 1, std))
    return mean.astype(np.float32), scale.astype(np.float32)


def fit(
    features: np.ndarray,
    labels: np.ndarray,
    l2: Sequence[float],
    num_classes: int,
    *,
    tolerance: float = 1e-5,
    max_iterations: int = 1000,
) -> Fit:
    """Minimises f of the module's docstring for all strengths, from zero, without randomness.

    Args:
      features: (n, d) float32, columns centred (the bias is bounded separately from the weights).
        Their rows are divided among the accelerators of this process.
      labels: (n,) int32 in [0, num_classes); or bool (n, num_classes), which minimises the sum over
        classes of the binary cross-entropy instead. Its curvature is at most half of the bound, so
        the same steps are safe.
      l2: s strengths > 0; the bias is not penalised.
      num_classes: number of classes.
      tolerance: stop once no entry of any gradient exceeds it, > 0.
      max_iterations: stop here at the latest; weak strengths on separable data can reach it.

    Raises:
      ConfigError: there is no strength, or one is not above zero.
    """
    if not len(l2) or not min(l2) > 0:
        raise ConfigError(f"l2 is {tuple(l2)}: pass at least one strength, each above 0.")
    rows, columns = features.shape
    # With a GPU's TF32 products, gradients never fall below the tolerance.
    with jax.default_matmul_precision("float32"):
        if rows < columns:
            _, singular_values, transposed = jnp.linalg.svd(features, full_matrices=False)
            eigenvalues, basis = singular_values**2 / rows, transposed.T
        features, labels = _over_devices(features), _over_devices(labels)
        if rows >= columns:
            eigenvalues, basis = jnp.linalg.eigh(_products(features) / rows)
        # The size of rounding errors: with too small a bound the steps would diverge.
        curvature = jnp.maximum(eigenvalues, 0) / 2 + 1e-6 * eigenvalues.max()
        settings = (curvature, basis, tolerance, max_iterations, num_classes)
        groups = [
            _minimise(
                features, labels, rows, jnp.asarray(l2[i : i + _GROUP], jnp.float32), *settings
            )
            for i in range(0, len(l2), _GROUP)
        ]
    *parts, iterations = zip(*groups, strict=True)
    return Fit(*map(jnp.concatenate, parts), jnp.stack(iterations).max())


def _devices() -> list[jax.Device]:
    """The devices of this process; one if they are parts of a CPU, which it has to itself then."""
    devices = jax.local_devices()
    return devices[:1] if devices[0].platform == "cpu" else devices


def _over_devices(rows: np.ndarray) -> jax.Array:
    """(n, ...) -> (k, ceil(n / k), ...): the next rows on each of k devices, then zeros."""
    devices = _devices()
    each = -(-len(rows) // len(devices))

    def part(index: tuple[slice, ...]) -> np.ndarray:
        first = (index[0].start or 0) * each
        found = rows[first : first + each]
        if len(found) < each:  # np.pad would copy in any case
            found = np.pad(found, ((0, each - len(found)), *((0, 0),) * (rows.ndim - 1)))
        return found[None]

    sharding = NamedSharding(Mesh(devices, ("rows",)), PartitionSpec("rows"))
    return jax.make_array_from_callback((len(devices), each, *rows.shape[1:]), sharding, part)


@jax.jit
def _products(features):
    """X^T X of rows on several devices."""
    return jnp.einsum("knd,kne->kde", features, features).sum(axis=0)


class _Iterate(NamedTuple):
    """One iteration's state; a point is ((s, d, classes) weights, (s, classes) biases)."""

    point: tuple[jax.Array, jax.Array]
    ahead: tuple[jax.Array, jax.Array]  # the point plus its momentum: where gradients are taken
    momentum_step: jax.Array  # (s,): Nesterov's t, 1 after a restart
    gradient: jax.Array  # (s,): largest |entry|
    iteration: jax.Array


@functools.partial(jax.jit, static_argnames="num_classes")
def _minimise(
    features, labels, num_rows, l2, curvature, basis, tolerance, max_iterations, num_classes
):
    def descend(point, gradient):
        """Divides the gradient by the Hessian's bound, which is 1/2 for the bias."""
        coordinates = jnp.einsum("de,sdc->sec", basis, gradient[0])
        coordinates /= (curvature + l2[:, None])[:, :, None]
        weight_step = jnp.einsum("de,sec->sdc", basis, coordinates)
        return point[0] - weight_step, point[1] - 2 * gradient[1]

    def iterate(state):
        gradient = _gradient(state.ahead, features, labels, num_rows, l2)
        point = descend(state.ahead, gradient)
        moved = optax.tree.sub(point, state.point)
        # Momentum that points uphill is dropped, for each strength separately.
        uphill = sum(
            jnp.sum(g * m, axis=range(1, g.ndim)) for g, m in zip(gradient, moved, strict=True)
        )
        step = jnp.where(uphill > 0, 1.0, state.momentum_step)
        next_step = (1 + jnp.sqrt(1 + 4 * step**2)) / 2
        momentum = (step - 1) / next_step
        ahead = (
            point[0] + momentum[:, None, None] * moved[0],
            point[1] + momentum[:, None] * moved[1],
        )
        largest = jnp.maximum(
            jnp.abs(gradient[0]).max(axis=(1, 2)), jnp.abs(gradient[1]).max(axis=1)
        )
        return _Iterate(point, ahead, next_step, largest, state.iteration + 1)

    def unfinished(state):
        return jnp.any(state.gradient > tolerance) & (state.iteration < max_iterations)

    shape = (len(l2), features.shape[-1], num_classes)
    zeros = (jnp.zeros(shape), jnp.zeros(shape[::2]))
    start = _Iterate(zeros, zeros, jnp.ones(len(l2)), jnp.full(len(l2), jnp.inf), jnp.int32(0))
    end = jax.lax.while_loop(unfinished, iterate, start)
    return Fit(*end.point, end.gradient, end.iteration)


def _gradient(point, features, labels, num_rows, l2):
    """Gradient of f at (weights, biases) for every strength, from `_over_devices` rows."""
    num_devices, each = features.shape[:2]
    counts = jnp.clip(num_rows - each * jnp.arange(num_devices), 0, each)
    sums = jax.vmap(functools.partial(_sums, point))(features, labels, counts)
    gradient = jax.tree.map(lambda x: x.sum(axis=0) / num_rows, sums)
    return gradient[0] + l2[:, None, None] * point[0], gradient[1]


def _sums(point, features, labels, count):
    """The sum of the gradients of the first `count` rows, over chunks of rows."""
    weights, biases = point
    num_rows, num_strengths, num_classes = len(features), *biases.shape
    rows = min(num_rows, max(1, _LOGITS_PER_CHUNK // (num_strengths * num_classes)))

    def add_chunk(index, total):
        # The last chunk starts early enough to be full; rows shared with the previous count once.
        start = jnp.minimum(index * rows, num_rows - rows)
        chunk = jax.lax.dynamic_slice_in_dim(features, start, rows)
        targets = jax.lax.dynamic_slice_in_dim(labels, start, rows)
        logits = jnp.einsum("nd,sdc->nsc", chunk, weights) + biases
        if targets.ndim == 1:
            errors = jax.nn.softmax(logits) - jax.nn.one_hot(targets, num_classes)[:, None]
        else:
            errors = jax.nn.sigmoid(logits) - targets[:, None]
        row = start + jnp.arange(rows)
        errors *= ((row >= index * rows) & (row < count))[:, None, None]
        return total[0] + jnp.einsum("nd,nsc->sdc", chunk, errors), total[1] + errors.sum(axis=0)

    num_chunks = -(-num_rows // rows)
    start = optax.tree.zeros_like((weights, biases))
    return jax.lax.fori_loop(0, num_chunks, add_chunk, start)


def fit_and_score(
    features: np.ndarray,
    labels: np.ndarray,
    other_features: np.ndarray,
    l2: Sequence[float],
    num_classes: int,
) -> list[np.ndarray]:
    """The logits of other rows, (m, num_classes), by a fit to `features` for each strength.

    Arguments are those of `fit`. Both features are overwritten.
    """
    features, other_features = standardise(features, other_features)
    weights, biases, *_ = map(np.asarray, fit(features, labels, l2, num_classes))
    return [other_features @ w + b for w, b in zip(weights, biases, strict=True)]
