"""Rows of `byol-jax evaluate --protocol=cross_modal`: parts in the space of the loss."""

import hashlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from byol_jax import byol, data, parallel
from byol_jax.cli import encoders
from byol_jax.errors import ConfigError, DataError
from byol_jax.evaluate import cross_modal
from byol_jax.runs import inputs, kinds
from byol_jax.runs import run as run_lib


def check(config: ConfigDict) -> None:
    """Raises ConfigError for data whose examples do not have two parts."""
    if len(kinds.of(config).parts(config)) != 2:
        raise ConfigError(
            "--protocol=cross_modal is for examples of two parts, such as an image and a text, and "
            f"the run's are {kinds.of(config).unit} of one: leave it out."
        )


def results(
    trained: run_lib.Trained,
    baselines: list[str],
    config: ConfigDict,
    source: data.Source,
    left_out: dict[str, None],
) -> dict[str, dict[str, Any]]:
    """Results of `cross_modal`, by encoder and direction, and of chance.

    Args:
      trained: the run.
      baselines: with "random", also the same networks with random weights.
      config: of the data.
      source: the test split; labels are not read.
      left_out: what cannot be read becomes a key, if the config skips it.
    """
    states = {"byol": trained.state}
    if "random" in baselines:
        states["random"] = run_lib.initial_state(trained.learner, trained.run.config)
    embed_with = parallel.embedder(trained.learner, _compared, _needed)
    embed = {name: embed_with(state) for name, state in states.items()}
    parts, batch_size = kinds.of(config).parts(config), inputs.eval_batch_size(config)
    features: dict[tuple[str, str], list[np.ndarray]] = {}
    digests: dict[str, list[bytes]] = {part: [] for part in parts}
    for examples in _examples(config, source, left_out):
        for part, take in parts.items():
            digests[part] += _digests(take(examples))
            for name, of_state in embed.items():
                found = of_state(take(examples), batch_size)
                features.setdefault((name, part), []).append(found)
    if not features:
        raise DataError(f"{source.name}: no example can be read. Check where its files are.")
    same = {part: np.unique(found, return_inverse=True)[1] for part, found in digests.items()}
    first, second = parts
    rows = {}
    for name in states:
        for query, other in ((first, second), (second, first)):
            predictions, _ = np.split(np.concatenate(features[name, query]), 2, axis=1)
            _, projections = np.split(np.concatenate(features[name, other]), 2, axis=1)
            rows[f"{name}, {query} -> {other}"] = cross_modal.cross_modal(
                predictions, projections, same[query], same[other]
            )
    return rows | {"chance": cross_modal.chance(same[first], same[second])}


def _compared(learner: byol.Learner, state: byol.State, examples: byol.Tree) -> jax.Array:
    """What the loss compares: float32 (n, 2 size), predictions and then projections.

    Predictions are those of the online network, or its projections if it has no predictor.
    Projections are those of the target network, or the online network's if there is none.
    """
    online = byol.infer(learner, state, examples)
    projection = online.projection
    if learner.target.parts:
        variables = {"params": state.target_params, "batch_stats": state.target_stats}
        view = learner.preprocess(examples)
        projection = learner.target.apply(variables, view, train=False).projection
    return jnp.concatenate([online.prediction, projection], axis=1)


def _needed(state: byol.State) -> byol.State:
    return state._replace(opt_state=())


def _examples(
    config: ConfigDict, source: data.Source, left_out: dict[str, None]
) -> Iterator[byol.Tree]:
    """All examples in batches."""
    kind, batch_size = kinds.of(config), inputs.eval_batch_size(config)
    report = encoders.skipping(config, left_out)
    batches = kind.eval_batches(config, source, batch_size, None, report)
    with encoders.progress(source.name, source.num_examples, kind.unit) as shown:
        for examples, _ in batches:
            yield examples
            shown.update(len(jax.tree.leaves(examples)[0]))


def _digests(part: byol.Tree) -> list[bytes]:
    """Of the part of each example, equal where the parts are."""
    leaves = jax.tree.leaves(part)
    rows = zip(*leaves, strict=True)
    return [hashlib.sha256(b"".join(x.tobytes() for x in row)).digest() for row in rows]
