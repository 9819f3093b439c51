"""A torchvision and PIL DataLoader with one worker per core that makes the same pairs.

`views("crops")` are crops and flips alone, as uint8: the work of our input, with colours left to
the device. `views("all")` are all augmentations of the paper in PIL, normalised, as usual in
PyTorch implementations of BYOL.
"""

import importlib
import os
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch.utils import data

# Imported where used: the workers, which import this file, do not need JAX.
if TYPE_CHECKING:
    from byol_jax.augment import crops as crops_lib
    from byol_jax.augment import image as image_augment

try:
    import torchvision
except RuntimeError:
    # A torchvision that was compiled for another build of PyTorch: its transforms do not need the
    # part that fails to load, for which the tests have a replacement.
    stand_in = Path(__file__).parents[3] / "tests"
    if not (stand_in / "torchvision_on_cpu.py").exists():
        raise
    sys.path.append(str(stand_in))
    torchvision = importlib.import_module("torchvision_on_cpu").torchvision
from torchvision import transforms

# A note for the report.
NOTE = ""
if "torchvision_on_cpu" in sys.modules:
    NOTE = "torchvision ran without its compiled part, which its transforms do not use."
WORKERS = len(os.sched_getaffinity(0))  # one per available core
BICUBIC = transforms.InterpolationMode.BICUBIC
Transform = Callable[[Image.Image], torch.Tensor]


class Blur:
    """Gaussian blur by PIL with a uniformly random sigma."""

    def __init__(self, low: float, high: float):
        self.low, self.high = low, high

    def __call__(self, image: Image.Image) -> Image.Image:
        """Blurs one image."""
        return image.filter(ImageFilter.GaussianBlur(random.uniform(self.low, self.high)))


def crops(size: int, crop: "crops_lib.Crop | None" = None) -> list:
    """The geometric part of a view; by default the paper's."""
    from byol_jax.data import Crop

    crop = crop or Crop()
    return [
        transforms.RandomResizedCrop(size, crop.area, crop.ratio, interpolation=BICUBIC),
        transforms.RandomHorizontalFlip(crop.flip),
    ]


def all_augmentations(
    size: int,
    view: "image_augment.View",
    policy: "image_augment.Policy",
    crop: "crops_lib.Crop | None" = None,
) -> Transform:
    """One view with all augmentations of the policy; by default the paper's crops."""
    jitter = transforms.ColorJitter(view.brightness, view.contrast, view.saturation, view.hue)
    steps = crops(size, crop)
    steps += [
        transforms.RandomApply([jitter], view.jitter_prob),
        transforms.RandomGrayscale(view.gray_prob),
    ]
    if view.blur_prob > 0:
        blur = Blur(view.blur_sigma_min, view.blur_sigma_max)
        steps.append(transforms.RandomApply([blur], view.blur_prob))
    if view.solarize_prob > 0:
        steps.append(transforms.RandomSolarize(256 * view.solarize_threshold, view.solarize_prob))
    steps += [transforms.ToTensor(), transforms.Normalize(policy.mean, policy.std)]
    return transforms.Compose(steps)


def views(what: str, size: int) -> tuple[Transform, Transform]:
    """The transforms of both views: "crops" or "all"."""
    from byol_jax.augment import image as image_augment

    if what == "crops":
        view = transforms.Compose([*crops(size), transforms.PILToTensor()])
        return view, view
    policy = image_augment.CIFAR10 if size == 32 else image_augment.IMAGENET
    return tuple(all_augmentations(size, view, policy) for view in (policy.view1, policy.view2))


class Pairs(data.Dataset):
    """Pairs of views of images in files or in memory."""

    def __init__(self, images: Sequence[str] | np.ndarray, both: Callable[[Image.Image], tuple]):
        self.images, self.both = images, both

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        if isinstance(self.images, np.ndarray):
            return self.both(Image.fromarray(self.images[index]))
        with Image.open(self.images[index]) as image:
            return self.both(image.convert("RGB"))


class Each:
    """Both views of an image, each by its own transform."""

    def __init__(self, first: Transform, second: Transform):
        self.transforms = first, second

    def __call__(self, image: Image.Image) -> tuple[torch.Tensor, torch.Tensor]:
        """A pair of tensors."""
        first, second = self.transforms
        return first(image), second(image)


class Turn(data.Sampler):
    """`count` batches of indices, over repeated random permutations of the data set."""

    def __init__(self, examples: int, batch_size: int):
        self.examples, self.batch_size, self.count = examples, batch_size, 0

    def __iter__(self) -> Iterator[list[int]]:
        indices: list[int] = []
        for _ in range(self.count):
            while len(indices) < self.batch_size:
                indices += torch.randperm(self.examples).tolist()
            yield indices[: self.batch_size]
            indices = indices[self.batch_size :]


class Loader:
    """A DataLoader whose workers persist between turns."""

    def __init__(
        self,
        images: Sequence[str] | np.ndarray,
        both: Callable[[Image.Image], tuple],
        batch_size: int,
    ):
        self._turn = Turn(len(images), batch_size)
        self._loader = data.DataLoader(
            Pairs(images, both),
            batch_sampler=self._turn,
            num_workers=WORKERS,
            persistent_workers=True,
            # TensorFlow and JAX run threads in this process, which a fork would break.
            multiprocessing_context="spawn",
        )

    def batches(self, count: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """`count` batches of pairs, (batch, channels, size, size) twice."""
        self._turn.count = count
        yield from self._loader
