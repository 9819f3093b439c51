"""What a sweep chooses from: the settings that the paper tries in its two fine-tuning experiments.

arXiv 2006.07733, the appendices on semi-supervised learning and on transfer. Not as in the latter:
the learning rate falls to 0 along a cosine, which it does not mention.
"""

import itertools
from typing import NamedTuple

import numpy as np

from byol_jax.errors import ConfigError


class Choice(NamedTuple):
    """One combination of settings."""

    learning_rate: float  # for batches of 256
    epochs: int  # length of training; or 0, with
    steps: int = 0  # a number of updates
    weight_decay: float = 0.0

    def __str__(self) -> str:
        length = f"steps{self.steps}" if self.steps else f"epochs{self.epochs}"
        return f"rate{self.learning_rate:g}_{length}_decay{self.weight_decay:g}"


class Recipe(NamedTuple):
    """What is combined, and what follows.

    Attributes:
      learning_rates: for batches of 256; each is tried.
      epochs: lengths of training; each is tried.
      steps: updates, where there are no epochs.
      weight_decays: each is tried.
      decay_by_rate: whether weight decays are divided by the learning rate.
      batch_size: images of an update, at most.
      trains_again: whether the best combination is trained again on the held-out images too.
      slow_averages: whether running averages of batch norm decay more slowly than by .9 where an
        epoch has more than 100 steps.
    """

    learning_rates: tuple[float, ...]
    epochs: tuple[int, ...]
    steps: int
    weight_decays: tuple[float, ...]
    decay_by_rate: bool
    batch_size: int
    trains_again: bool
    slow_averages: bool

    def batch_norm_decay(self, steps_per_epoch: int) -> float:
        """Of the running averages: the paper's max(.9, 1 - 10 / steps per epoch) for transfer."""
        return max(0.9, 1 - 10 / steps_per_epoch) if self.slow_averages else 0.9

    def choices(self) -> tuple[Choice, ...]:
        """All combinations.

        Raises:
          ConfigError: there is none, or a number is out of range.
        """
        lengths = [(epochs, 0) for epochs in self.epochs] or [(0, self.steps)]
        combinations = list(itertools.product(self.learning_rates, lengths, self.weight_decays))
        if not combinations:
            raise ConfigError(
                "there is nothing to fine-tune with: name a learning rate and a weight decay."
            )
        for rate, (epochs, steps), decay in combinations:
            if not (0 < rate < 1e6 and 0 <= decay < 1e6):
                raise ConfigError(
                    "a learning rate must be above 0 and a weight decay not below it, not "
                    f"{rate:g} and {decay:g}."
                )
            if epochs + steps < 1:
                raise ConfigError(f"epochs must be at least 1, not {epochs}.")
        found = [
            Choice(rate, epochs, steps, decay / rate if self.decay_by_rate else decay)
            for rate, (epochs, steps), decay in combinations
        ]
        return tuple(dict.fromkeys(found))


SEMI_SUPERVISED = Recipe(
    learning_rates=(0.005, 0.01, 0.02, 0.05, 0.1),
    epochs=(30, 50),
    steps=0,
    weight_decays=(0.0,),
    decay_by_rate=False,
    batch_size=1024,
    trains_again=False,
    slow_averages=False,
)
TRANSFER = Recipe(
    learning_rates=tuple(np.logspace(-4, -1, 7).tolist()),
    epochs=(),
    steps=20_000,
    weight_decays=(*np.logspace(-6, -3, 7).tolist(), 0.0),
    decay_by_rate=True,
    batch_size=256,
    trains_again=True,
    slow_averages=True,
)
RECIPES = {"semi_supervised": SEMI_SUPERVISED, "transfer": TRANSFER}
