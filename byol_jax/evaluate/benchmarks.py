"""The data sets of the paper's transfer experiments, and what it reports on them.

arXiv 2006.07733, table 3 and appendix: logistic regression on frozen features of images that are
resized to 224 pixels along the shorter side and cropped to the central square; a ResNet-50 of 1000
epochs on ImageNet. The training and validation splits are fitted together, after the L2 strength is
chosen; where the paper names its own validation split, ours is another (a tenth of both).
"""

from typing import NamedTuple


class Benchmark(NamedTuple):
    """A data set, and the accuracy that the paper reports on it."""

    name: str
    source: str  # of data.open_source; "" where it cannot be read
    train_split: str
    test_split: str
    metric: str  # top1 or mean_per_class, of `scores.accuracies`; or map, of `multi_label`
    linear: float | None  # percent, of BYOL's features; None: the paper has none
    finetuned: float | None  # percent, of BYOL's network
    why_not: str = ""  # why it cannot be read


BENCHMARKS = {
    b.name: b
    for b in (
        Benchmark("food101", "tfds:food101", "train", "validation", "top1", 75.3, 88.5),
        Benchmark("cifar10", "tfds:cifar10", "train", "test", "top1", 91.3, 97.8),
        Benchmark("cifar100", "tfds:cifar100", "train", "test", "top1", 78.4, 86.1),
        Benchmark(
            *("birdsnap", "", "", "", "top1", 57.2, 76.3),
            why_not="TFDS does not have it: make a folder of it, and name that as folder:PATH",
        ),
        Benchmark(
            *("sun397", "tfds:sun397/standard-part1-120k", "train", "test", "top1", 62.2, 63.7)
        ),
        Benchmark("cars", "tfds:cars196", "train", "test", "top1", 67.8, 91.6),
        Benchmark(
            *("aircraft", "", "", "", "mean_per_class", 60.6, 88.1),
            why_not="TFDS does not have it: make a folder of it, and name that as folder:PATH",
        ),
        Benchmark("voc2007", "tfds:voc/2007", "train+validation", "test", "map", 82.5, 85.4),
        Benchmark("dtd", "tfds:dtd", "train+validation", "test", "top1", 75.5, 76.2),
        Benchmark("pets", "tfds:oxford_iiit_pet", "train", "test", "mean_per_class", 90.4, 91.7),
        Benchmark("caltech101", "tfds:caltech101", "train", "test", "mean_per_class", 94.2, 93.8),
        Benchmark(
            *("flowers", "tfds:oxford_flowers102", "train+validation", "test"),
            *("mean_per_class", 96.1, 97.0),
        ),
    )
}


def benchmark(name: str) -> Benchmark | None:
    """One of the paper's by its name; or any source, with splits "train" and "test".

    Args:
      name: a key of `BENCHMARKS`, or a source such as tfds:NAME or folder:PATH.
    """
    if ":" in name:
        return Benchmark(name, name, "train", "test", "top1", None, None)
    return BENCHMARKS.get(name)
