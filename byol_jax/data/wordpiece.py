"""WordPiece vocabularies, by the package `tokenizers`: learned from texts, and applied to them.

A vocabulary is a tuple of tokens, and the number of a token is its place. It begins with PAD and
UNKNOWN; "##" begins a piece that continues a word. Together with BERT's normalisation (lower case,
without accents) and its splitting into words (arXiv 1810.04805), it determines the tokens of any
text: a word is the longest pieces from its beginning on, or UNKNOWN where there are none.
"""

import functools
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from byol_jax.data import optional
from byol_jax.errors import DataError

PAD, UNKNOWN = "[PAD]", "[UNK]"  # tokens 0 and 1
CONTINUES = "##"
CHARACTERS = 2  # a vocabulary has at most its size over this number of tokens of one character
LONGEST_WORD = 100  # characters, and so tokens; a longer word is UNKNOWN
CHARACTERS_A_TOKEN = 16  # more than most texts have


def learn(texts: Callable[[], Iterable[str]], size: int) -> tuple[str, ...]:
    """A vocabulary of at most `size` tokens; the same for the same texts.

    Args:
      texts: makes an iterator over the texts; it is called twice.
      size: tokens, PAD and UNKNOWN included.

    Raises:
      DataError: there are no words in the texts.
      UserError: the package is missing.
    """
    tokenizers = _package()
    normalize = tokenizers.normalizers.BertNormalizer(lowercase=True).normalize_str
    split = tokenizers.pre_tokenizers.BertPreTokenizer()
    parts: Counter = Counter()  # words, with their punctuation
    for text in texts():
        parts.update(normalize(text).split())
    counts: Counter = Counter()
    continuing = set()  # not so Chinese characters, each of which is a word
    for part, count in parts.items():
        for word, _ in split.pre_tokenize_str(part):
            continuing.update(word[1:])
        for character in part:
            counts[character] += count
    kept, room = [], size // CHARACTERS
    for character in sorted(counts, key=lambda c: (-counts[c], c)):
        room -= 1 + (character in continuing)
        if room < 0:
            break
        kept.append(character)
    if not kept:
        raise DataError("the training texts have no words to learn a vocabulary from.")
    rare = dict.fromkeys(map(ord, set(counts) - set(kept)), " ")
    # The trainer numbers continuing characters in the order of a hash table, which differs from
    # process to process and breaks ties: named here, they have their numbers before.
    first = [PAD, UNKNOWN, *(CONTINUES + c for c in sorted(continuing & {*kept}))]
    trainer = tokenizers.trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=first, show_progress=False
    )
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = split
    tokenizer.train_from_iterator((normalize(text).translate(rare) for text in texts()), trainer)
    numbers = tokenizer.get_vocab(with_added_tokens=False)
    return tuple(sorted(numbers, key=numbers.get))


def encode(vocabulary: tuple[str, ...], texts: list[str]) -> list[list[int]]:
    """The numbers of each text's tokens, at least one: a text without words is UNKNOWN.

    Raises:
      UserError: the package is missing.
    """
    found = _tokenizer(vocabulary).encode_batch_fast(texts, add_special_tokens=False)
    return [encoding.ids or [1] for encoding in found]


def encode_beginning(vocabulary: tuple[str, ...], texts: list[str], length: int) -> list[list[int]]:
    """As `encode`, but of a text of more than `length` tokens perhaps only so many, or some more.

    So a book costs no more than its beginning.
    """
    size = CHARACTERS_A_TOKEN * (length + LONGEST_WORD)
    found = encode(vocabulary, [text[:size] for text in texts])
    for row, text in enumerate(texts):
        # All but the last word, which may be cut, have the same tokens in the whole text.
        if len(text) > size and len(found[row]) < length + LONGEST_WORD:
            (found[row],) = encode(vocabulary, [text])
    return found


@functools.lru_cache(4)  # as it takes longer to make than to apply to a batch
def _tokenizer(vocabulary: tuple[str, ...]) -> Any:
    tokenizers = _package()
    numbers = {token: number for number, token in enumerate(vocabulary)}
    model = tokenizers.models.WordPiece(
        numbers, unk_token=UNKNOWN, max_input_chars_per_word=LONGEST_WORD
    )
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    return tokenizer


def _package() -> Any:
    return optional.package("tokenizers", "texts", "text")
