"""Views of texts: words that are left out, and words in another order.

Each operation takes the numbers of a text's tokens and is off at 0. Leaving out words and the order
of near words are the noise of Lample et al. 2018 (arXiv 1711.00043, section 2.3); leaving out spans
is as in CLEAR (arXiv 2012.15466), but without a mark in their place. A word is a token
and the pieces that continue it; it is left out or moved as a whole. Views without any change, with
dropout in the encoder, are those of SimCSE (arXiv 2104.08821).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

# What the key of a view is folded with, so that no operation changes the draws of another.
SPAN, DELETE, SHUFFLE = range(3)
CONTINUES = "##"  # begins a piece that continues a word


@dataclasses.dataclass(frozen=True)
class View:
    """Strengths of one view; all off by default."""

    span_share: float = 0.0  # largest share of words in one span left out; uniform from 0
    delete_prob: float = 0.0  # of each word to be left out, independently; but one word stays
    shuffle_distance: int = 0  # places that a word moves at most


def augment(config: View, key: jax.Array, tokens: jax.Array, is_piece: jax.Array) -> jax.Array:
    """One view of a text, of which at least one word is left; with nothing on, the text.

    Args:
      config: strengths.
      key: the PRNG key of the view.
      tokens: int32 (length,); 0 is padding, after all others.
      is_piece: bool (vocabulary,): whether a token continues a word.

    Returns:
      Int32 (length,), with padding after all others.
    """
    if config == View():
        return tokens

    def key_of(operation: int) -> jax.Array:
        return jax.random.fold_in(key, operation)

    length = len(tokens)
    place, is_token = jnp.arange(length), tokens != 0
    # A window of a longer text may begin within a word.
    begins = is_token & (~is_piece[tokens] | (place == 0))
    word_of, count = jnp.cumsum(begins) - 1, jnp.sum(begins)
    is_kept = place < count  # by word: there are no more words than tokens
    if config.span_share > 0:
        share_u, start_u = jax.random.uniform(key_of(SPAN), (2,))
        size = jnp.minimum(jnp.floor(config.span_share * share_u * count), count - 1)
        start = jnp.floor(start_u * (count - size + 1))
        is_kept &= (place < start) | (place >= start + size)
    if config.delete_prob > 0:
        u = jnp.where(is_kept, jax.random.uniform(key_of(DELETE), (length,)), -1)
        is_kept &= (u >= config.delete_prob) | (place == jnp.argmax(u))
    rank = jnp.cumsum(is_kept) - 1.0
    if config.shuffle_distance > 0:
        # In the order of rank + u, no word passes one that is more than the distance away.
        u = jax.random.uniform(key_of(SHUFFLE), (length,))
        rank += u * (config.shuffle_distance + 1)
    stays = is_token & is_kept[word_of]
    order = jnp.argsort(jnp.where(stays, rank[word_of], jnp.inf))  # stable: words stay whole
    return jnp.where(place < jnp.sum(stays), tokens[order], 0)


@dataclasses.dataclass(frozen=True)
class Policy:
    """What makes two views of a text.

    Attributes:
      view1: strengths of view 1.
      view2: and of view 2.
      vocabulary: the tokens by number.
    """

    view1: View
    view2: View
    vocabulary: tuple[str, ...]

    def __call__(self, key: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The views of one text, each int32 (length,).

        Args:
          key: a PRNG key for this text alone.
          tokens: int32 (length,), as of `augment`.
        """
        is_piece = jnp.asarray(np.array([t.startswith(CONTINUES) for t in self.vocabulary]))
        first, second = (
            augment(view, jax.random.fold_in(key, i), tokens, is_piece)
            for i, view in enumerate((self.view1, self.view2))
        )
        return first, second

    def preprocess(self, tokens: jax.Array) -> jax.Array:
        """A batch of texts, int32 (n, length), as the encoder takes it: unchanged."""
        return tokens
