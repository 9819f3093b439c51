"""The transformer of texts: shapes, padding, dropout, and mistakes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from byol_jax import models

TOKENS = np.array([[3, 5, 2, 4, 0, 0, 0], [6, 0, 0, 0, 0, 0, 0], [2, 3, 2, 3, 2, 3, 2]], np.int32)


def small(**settings):
    settings = {"width": 8, "heads": 2, "depth": 1} | settings
    return models.with_fields(models.make_encoder("text_transformer", **settings), num_tokens=7)


embed = jax.jit(functools.partial(small().apply, train=False))


@pytest.fixture(scope="module")
def variables():
    init = jax.jit(functools.partial(small().init, train=False))
    variables = init(jax.random.key(0), TOKENS)
    # Larger than at the start, so that what is attended to matters.
    return jax.tree.map(lambda x: x * 3 + 0.1, variables)


def test_padding_does_not_change_an_embedding(variables):
    got = embed(variables, TOKENS)
    assert got.shape == (3, 8) and got.dtype == jnp.float32
    for row, count in ((0, 4), (1, 1)):
        short = {"params": dict(variables["params"])}
        short["params"]["position_embedding"] = variables["params"]["position_embedding"][:count]
        alone = embed(short, TOKENS[row : row + 1, :count])
        np.testing.assert_allclose(got[row], alone[0], rtol=1e-5, atol=1e-5)
    table = variables["params"]["token_embedding"]["embedding"]
    other = jax.tree.map(jnp.copy, variables)
    other["params"]["token_embedding"]["embedding"] = table.at[0].add(5.0)  # that of padding
    np.testing.assert_array_equal(embed(other, TOKENS), got)


def test_order_matters_and_no_tokens_are_finite(variables):
    got = embed(variables, TOKENS)
    turned = TOKENS.copy()
    turned[0, :4] = TOKENS[0, 3::-1]
    assert np.abs(embed(variables, turned)[0] - got[0]).max() > 1e-3
    assert np.isfinite(embed(variables, np.zeros_like(TOKENS))).all()


def test_dropout_makes_two_views_differ_in_training_only(variables):
    def embed(rate, seed, train=True):
        with models.dropout_by_position(jnp.arange(3)):
            key = jax.random.key(seed)
            return small(dropout=rate).apply(variables, TOKENS, train=train, rngs=key)

    assert np.abs(embed(0.5, 0) - embed(0.5, 1)).max() > 1e-2
    np.testing.assert_array_equal(embed(0.5, 0), embed(0.5, 0))
    np.testing.assert_array_equal(embed(0.5, 0, train=False), embed(0.0, 0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 0}, "width=0 must be at least 1"),
        ({"heads": 3}, "heads=3 must divide width=8"),
        ({"depth": 101}, "depth=101 must be at most 100"),
        ({"dropout": 1.0}, "dropout=1 must be at least 0 and below 1"),
        ({"num_tokens": 3}, "num_tokens=3 is not a setting"),
    ],
)
def test_a_mistake_begins_with_the_setting(settings, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        small(**settings)


def test_other_data_is_refused(variables):
    with pytest.raises(ValueError, match="takes numbers of tokens, not float32"):
        small().apply(variables, np.zeros((2, 7), np.float32), train=False)
    with pytest.raises(ValueError, match="takes texts, not images"):
        models.check_image_size(small(), 8, 8)
    with pytest.raises(ValueError, match="num_tokens must be given"):
        models.TextTransformer().init(jax.random.key(0), TOKENS, train=False)
