"""From a source to batches: pairs of random views for training, one central view for evaluation.

Whatever is random is a function of (seed, epoch, position in the epoch's order), so a run can be
resumed at any step, and split among any number of hosts, without a change to a single pixel.
"""

from collections.abc import Callable, Iterator

import numpy as np

from byol_jax.augment.crops import Crop, check_crop, check_size
from byol_jax.byol import Batch
from byol_jax.data import service as service_lib
from byol_jax.data._tensorflow import tf
from byol_jax.data.crop import center_crop
from byol_jax.data.decode_errors import fault, faulty
from byol_jax.data.small import small_images
from byol_jax.data.source import ShardOptions, Source, one, steps_per_epoch
from byol_jax.data.training import NOT_REPLACED, REPLACEMENTS, TrainPipeline
from byol_jax.errors import UserError

# What to do about an image that cannot be decoded, behind the words that name it.
TRAINING_ADVICE = (
    "; repair it, or put another image under its name: a run that has begun needs as many as "
    "before. --config.data.on_decode_error=skip replaces such images by others."
)
REPLACED_ADVICE = (
    f", and nor can {REPLACEMENTS} others drawn in its place: find out with "
    "`python -m byol_jax.cli.check_data` what is wrong with the data."
)
EVALUATION_ADVICE = (
    "; repair it, or leave it out with --on_decode_error=skip (of evaluate) or "
    "--config.data.on_decode_error=skip "
    "(of pretrain)."
)


def train_batches(
    source: Source,
    *,
    batch_size: int,
    image_size: int,
    seed: int,
    num_steps: int,
    start_step: int = 0,
    crop: Crop | None = None,
    share: ShardOptions | None = None,
    bad: Callable[[int, str], None] | None = None,
    service: str = "",
) -> Iterator[Batch]:
    """Pairs of random views of every example of each epoch, in random order.

    Args:
      source: where the images come from.
      batch_size: examples in the global batch, the sum over hosts.
      image_size: height and width S of a view.
      seed: all randomness follows from it.
      num_steps: steps of the whole run.
      start_step: the first step to yield; nothing before it is decoded.
      crop: the distribution of the boxes; the paper's by default.
      share: the rows of the global batch to yield; None for all of them.
      bad: if given, an example that cannot be decoded is replaced by another one (a function of
        seed, epoch and position), and this is called with the number of the update that gets it,
        start_step + 1 for the first, and the example's name and fault.
      service: "grpc://HOST:PORT" of a tf.data service that makes the batches; "" for this process.

    Yields:
      Steps start_step to num_steps - 1 as NumPy arrays (read-only): examples uint8 (B, 2, S, S, C),
      labels int32 (B,) or None, positions int32 (B,), where B rows are the share's, or all, and
      positions are the rows in the global batch.

    Raises:
      UserError: at the call if an argument is out of its range; while iterating if an image cannot
        be decoded and `bad` is None, if no replacement can be decoded either, or if the service
        is lost.
    """
    epoch_steps = steps_per_epoch(source, batch_size)
    crop = Crop() if crop is None else crop
    check_crop(crop)
    check_size(image_size)
    share = ShardOptions(np.arange(batch_size), 0, 1) if share is None else share
    rows = np.asarray(share.rows, np.int64)
    if rows.size * share.count != batch_size or np.any(np.diff(rows) < 1):
        raise UserError(
            f"a batch of {batch_size} cannot be shared equally by {share.count} hosts; make "
            "--config.batch_size a multiple of the number of devices."
        )
    plan = TrainPipeline(
        source=source,
        part=source.shard(share.index, share.count),
        epoch_steps=epoch_steps,
        batch_size=batch_size,
        rows=rows,
        image_size=image_size,
        crop=crop,
        seed=seed,
        replace_bad=bad is not None,
        small=small_images(source, image_size),
    )
    if service:
        arrays = service_lib.batches(plan, start_step, num_steps, service)
    else:
        arrays = plan.batches(start_step, num_steps).prefetch(tf.data.AUTOTUNE)
        arrays = arrays.as_numpy_iterator()
    return _trained(plan, arrays, start_step, bad)


def _trained(plan, arrays, step, bad):
    """Yields batches of steps from `step` on; tells what is bad, or raises UserError."""
    labelled = plan.source.num_classes is not None
    while True:
        try:
            batch = next(arrays, None)
        except tf.errors.OpError as error:
            raws = plan.examples(step, step + 1).map(lambda epoch, position, raw: raw)
            sentence = faulty(plan.source, raws, error)
            advice = REPLACED_ADVICE if plan.replace_bad else TRAINING_ADVICE
            raise UserError(f"{sentence}{advice}") from error
        if batch is None:
            return
        crops, labels, positions, places = batch
        for name in _names(plan.source, places[places != NOT_REPLACED]):
            bad(step + 1, name)
        yield Batch(examples=crops, labels=labels if labelled else None, positions=positions)
        step += 1


def decoded_views(
    source: Source,
    batch_size: int,
    image_size: int,
    crop_fraction: float,
    limit: int | None,
    bad: Callable[[str], None] | None,
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """What `evaluation.eval_batches` yields, of any source; arguments are checked there."""
    count, shuffle_seed = source.num_examples, None
    if limit is not None and limit < count:
        # The first of a shuffled order, not evenly spaced: labels may well come in turn, and a
        # streamed source can stop reading there.
        count, shuffle_seed = limit, tf.constant([0, 0], tf.int64)
    positions = tf.range(count, dtype=tf.int64)

    def view(*raw):
        image, label = source.decode(one(raw))
        return (
            center_crop(image, image_size, crop_fraction),
            label,
            tf.constant(NOT_REPLACED, tf.int64),
        )

    def view_or_place(*raw):
        place = source.index(one(raw))
        blank = tf.zeros((image_size, image_size, source.channels), tf.uint8)
        nothing = tf.data.Dataset.from_tensors((blank, -1, place))
        views = tf.data.Dataset.from_tensors(raw).map(view)
        return views.ignore_errors().concatenate(nothing).take(1)

    parallel = {"num_parallel_calls": tf.data.AUTOTUNE, "deterministic": True}
    dataset = source.raw(positions, shuffle_seed)
    if bad is None:
        dataset = dataset.map(view, **parallel)
    else:
        dataset = dataset.interleave(view_or_place, cycle_length=tf.data.AUTOTUNE, **parallel)
    arrays = dataset.batch(batch_size).prefetch(tf.data.AUTOTUNE).as_numpy_iterator()
    return _evaluated(
        source, arrays, lambda first: source.raw(positions[first:], shuffle_seed), bad
    )


def _evaluated(source, arrays, raws_from, bad):
    """Yields images and labels without the bad ones, which are told; or raises UserError."""
    count = 0
    while True:
        try:
            batch = next(arrays, None)
        except tf.errors.OpError as error:
            sentence = faulty(source, raws_from(count), error)
            raise UserError(f"{sentence}{EVALUATION_ADVICE}") from error
        if batch is None:
            return
        images, labels, places = batch
        count += len(places)
        for name in _names(source, places[places != NOT_REPLACED]):
            bad(name)
        is_good = places == NOT_REPLACED
        if not is_good.all():
            images, labels = images[is_good], labels[is_good]
        if len(images):
            yield images, labels if source.num_classes is not None else None


def _names(source, places):
    """Name and fault of each example at some places."""
    for place in sorted(set(places.tolist())):
        (raw,) = source.get(tf.constant([place], tf.int64))
        reason = fault(source, raw) or "it could not be read at first"
        yield f"{source.describe(place)}: {reason}"
