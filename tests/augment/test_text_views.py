"""Views of texts against plain Python."""

import jax
import numpy as np
import pytest

from byol_jax.augment import text
from byol_jax.augment.text import Policy, View

VOCABULARY = ("[PAD]", "[UNK]", *(f"w{i}" for i in range(2, 20)), *(f"##p{i}" for i in range(10)))
IS_PIECE = np.array([token.startswith("##") for token in VOCABULARY])
# Words of one to three tokens; the first is the rest of one that a window has cut.
WORDS = [[21], [2], [3, 20, 22], [4], [5, 21], [6], [7], [8, 25], [9]]
LENGTH = 16
SEEDS = range(8)


def padded(words):
    tokens = [token for word in words for token in word]
    return np.array(tokens + [0] * (LENGTH - len(tokens)), np.int32)


def draws(key, operation, *shape):
    return np.asarray(jax.random.uniform(jax.random.fold_in(key, operation), shape))


def expected(config, key, words):
    """The words of a view; plainly."""
    kept = list(range(len(words)))
    if config.span_share:
        share, where = draws(key, text.SPAN, 2)
        size = min(
            int(np.floor(np.float32(config.span_share) * share * len(words))), len(words) - 1
        )
        start = int(np.floor(where * np.float32(len(words) - size + 1)))
        kept = [i for i in kept if not start <= i < start + size]
    if config.delete_prob:
        u = draws(key, text.DELETE, LENGTH)
        last = max(kept, key=lambda i: u[i])
        kept = [i for i in kept if u[i] >= config.delete_prob or i == last]
    if config.shuffle_distance:
        u = draws(key, text.SHUFFLE, LENGTH) * (config.shuffle_distance + 1)
        places = {word: place + u[word] for place, word in enumerate(kept)}
        kept.sort(key=places.get)
    return [words[i] for i in kept]


_augment = jax.jit(text.augment, static_argnums=0)


@pytest.mark.parametrize(
    "config",
    [
        View(span_share=0.8),
        View(delete_prob=0.5),
        View(shuffle_distance=2),
        View(span_share=0.5, delete_prob=0.3, shuffle_distance=3),
    ],
)
def test_a_view_is_that_of_plain_python(config):
    changed = 0
    for seed in SEEDS:
        key = jax.random.key(seed)
        got = np.asarray(_augment(config, key, padded(WORDS), IS_PIECE))
        np.testing.assert_array_equal(got, padded(expected(config, key, WORDS)))
        assert got.dtype == np.int32
        changed += not np.array_equal(got, padded(WORDS))
    assert changed > len(SEEDS) / 2


def test_no_word_moves_further_than_the_distance():
    words = [[i] for i in range(2, 18)]
    moves = []
    for seed in range(50):
        got = _augment(View(shuffle_distance=2), jax.random.key(seed), padded(words), IS_PIECE)
        moves.append(np.abs(np.asarray(got) - padded(words)))
        assert sorted(got) == sorted(padded(words))
    assert np.max(moves) == 2


@pytest.mark.parametrize("words", [[[5]], [[5, 21]], WORDS])
def test_a_word_is_always_left(words):
    everything = View(span_share=1.0, delete_prob=1.0, shuffle_distance=1)
    for seed in SEEDS:
        got = np.asarray(_augment(everything, jax.random.key(seed), padded(words), IS_PIECE))
        left = [word for word in words if np.array_equal(padded([word]), got)]
        assert len(left) == 1


def test_with_nothing_on_a_view_is_the_text_and_padding_stays_empty():
    key = jax.random.key(0)
    np.testing.assert_array_equal(_augment(View(), key, padded(WORDS), IS_PIECE), padded(WORDS))
    everything = View(span_share=1.0, delete_prob=0.5, shuffle_distance=1)
    assert not np.any(_augment(everything, key, padded([]), IS_PIECE))


def test_a_policy_has_other_draws_for_each_view():
    config = View(delete_prob=0.5)
    policy = Policy(config, View(), VOCABULARY)
    key = jax.random.key(3)
    first, second = policy(key, padded(WORDS))
    np.testing.assert_array_equal(second, padded(WORDS))
    want = padded(expected(config, jax.random.fold_in(key, 0), WORDS))
    np.testing.assert_array_equal(first, want)
    both = Policy(config, config, VOCABULARY)(key, padded(WORDS))
    assert not np.array_equal(*both)
    np.testing.assert_array_equal(policy.preprocess(padded(WORDS)), padded(WORDS))
