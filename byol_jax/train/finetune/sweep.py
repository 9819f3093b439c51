"""Fine-tunes an encoder with each of some choices and keeps what is best on held-out images.

DIR/settings.json              what is fine-tuned on what; another start must have the same
DIR/results.json               accuracies on held-out images of the choices that are done, and which
                               images could not be decoded
DIR/CHOICE/checkpoints/        the state of each, to resume from; only the best of them is kept
DIR/CHOICE_all/checkpoints/    that of the best, trained again on the held-out images too
DIR/classifier/                the best classifier, as byol_jax.load opens it
DIR/finetune.json              its accuracy on the test split

All randomness follows from the seed, and a run that was killed ends as one that was not.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from etils import epath

from byol_jax import data, models, parallel
from byol_jax.augment import image as image_augment
from byol_jax.errors import CheckpointError, ConfigError, DataError, UserError
from byol_jax.evaluate import scores
from byol_jax.runs import encoder as encoder_lib
from byol_jax.runs import manifest, paths
from byol_jax.runs import run as run_lib
from byol_jax.runs.checkpoint import Checkpoints, RetentionPolicy
from byol_jax.train.finetune import tuner as tuner_lib
from byol_jax.train.finetune.choices import Choice, Recipe
from byol_jax.train.signals import StopRequest
from byol_jax.train.timer import SaveTimer

MINUTES = 5.0  # between checkpoints


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What is fine-tuned, on what, and how.

    Attributes:
      encoder: where it starts; its variables, or random ones with `from_scratch`.
      train: images to fit.
      held_out: images to choose the settings on.
      test: images to test the best on.
      crop: of the training views; test images are cropped as in the encoder's own evaluation.
      choices: each is trained.
      batch_size: images of an update, over all devices of this process.
      batch_norm_decay: of the running averages, in [0, 1).
      seed: non-negative.
      from_scratch: whether the weights are random: what pre-training was worth.
      all_train: if given, images that are fitted with the best choice before the test: those of
        `train` and `held_out`.
      left_out: if given, images that cannot be decoded are left out, or replaced in training, and
        it is called with a message for each; if None, they raise DataError.
    """

    encoder: encoder_lib.Encoder
    train: data.Source
    held_out: data.Source
    test: data.Source
    crop: data.Crop
    choices: tuple[Choice, ...]
    batch_size: int = 1024
    batch_norm_decay: float = 0.9
    seed: int = 0
    from_scratch: bool = False
    all_train: data.Source | None = None
    left_out: Callable[[str], None] | None = None

    def steps(self, choice: Choice, source: data.Source | None = None) -> int:
        """Updates with a choice, on `train` or another source."""
        source = self.train if source is None else source
        return choice.steps or choice.epochs * data.steps_per_epoch(source, self.batch_size)

    @property
    def images(self) -> int:
        """Images in all updates; at most, as the best is trained again."""
        steps = [self.steps(choice) for choice in self.choices]
        if self.all_train is not None:
            steps.append(max(self.steps(choice, self.all_train) for choice in self.choices))
        return self.batch_size * sum(steps)

    @functools.cached_property  # it hashes the weights
    def settings(self) -> dict[str, Any]:
        """What results depend on, but for the choices; as JSON has it."""
        found = {
            "encoder": self.encoder.config,
            "weights": "" if self.from_scratch else manifest.digest(self.encoder.variables),
            "from_scratch": self.from_scratch,
            "train": [self.train.name, self.train.num_examples, self.train.fingerprint()],
            "held_out": [self.held_out.name, self.held_out.num_examples],
            "trained_again_on": None if self.all_train is None else self.all_train.name,
            "class_names": self.train.class_names,
            "crop": self.crop._asdict(),
            "batch_size": self.batch_size,
            "batch_norm_decay": self.batch_norm_decay,
            "seed": self.seed,
        }
        return json.loads(json.dumps(found))


def of_recipe(recipe: Recipe, train: data.Source, all_train: data.Source, **others: Any) -> Sweep:
    """The sweep of a recipe.

    Args:
      recipe: what is tried.
      train: images to fit.
      all_train: these and those that are held out, for a recipe that trains again.
      **others: the other fields of `Sweep` but those that follow from the recipe.

    Raises:
      ConfigError: a number of the recipe is out of range.
      DataError: there are too few images, or they are of one class.
    """
    if train.num_classes < 2:
        raise DataError(f"{train.name} has one class: name images of several classes.")
    batch_size = largest_batch(train, recipe.batch_size)
    return Sweep(
        train=train,
        all_train=all_train if recipe.trains_again else None,
        choices=recipe.choices(),
        batch_size=batch_size,
        batch_norm_decay=recipe.batch_norm_decay(data.steps_per_epoch(train, batch_size)),
        **others,
    )


def largest_batch(source: data.Source, wanted: int) -> int:
    """The largest batch, at most as wanted, that a source fills and that divides among devices.

    Raises:
      DataError: there are fewer images than devices, or fewer than two of them.
    """
    devices = jax.local_device_count()
    size = min(wanted, source.num_examples) // devices * devices
    if size < max(2, devices):
        raise DataError(
            f"{source.name} has {source.num_examples} images for {devices} devices: name more "
            "labels, or fewer devices."
        )
    return size


def run(
    sweep: Sweep, workdir: paths.AnyPath, stop: StopRequest, log: Callable[[str], None]
) -> dict[str, Any] | None:
    """Trains with each choice, tests the best, and writes the classifier.

    The best is chosen among all that were ever tried in the folder.

    Args:
      sweep: what to do.
      workdir: the folder; with what an earlier start left there.
      stop: on whose request it saves and returns.
      log: called with lines of text.

    Returns:
      The content of finetune.json; None if it was stopped.

    Raises:
      UserError: the folder holds something else, or cannot be read or written; an image cannot be
        decoded; training became non-finite with every choice.
    """
    with run_lib.lock_workdir(workdir):
        _check_settings(sweep, workdir, log)
        worker = _Worker(sweep, workdir, stop, log)
        for choice in sweep.choices:
            if str(choice) not in worker.results and not worker.try_choice(choice):
                return None
        best = worker.best()
        if best is None:
            raise UserError(
                "training became NaN or infinite with every choice: name smaller learning rates."
            )
        trained_on, folder = sweep.train, str(best)  # whose checkpoint is complete
        if sweep.all_train is not None:
            trained_on, folder = sweep.all_train, f"{best}_all"
        state = worker.train(best, trained_on, folder)
        if state is None:
            return None
        if not _is_finite(state):
            raise UserError(
                f"training on {trained_on.name} became NaN or infinite, though not on a part of "
                "it: name smaller learning rates."
            )
        accuracies = worker.accuracies(state, sweep.test)
        report = {
            "choice": best._asdict(),
            "validation_top1": {name: found["top1"] for name, found in worker.results.items()},
            "train_data": trained_on.name,
            "train_examples": trained_on.num_examples,
            "data": sweep.test.name,
            "from_scratch": sweep.from_scratch,
            "left_out": list(worker.left_out),
            **accuracies,
        }
        encoder_lib.save(_classifier(sweep, best, trained_on, state), workdir / "classifier")
        text = json.dumps(report, indent=2) + "\n"
        paths.write_atomically(workdir / "finetune.json", text.encode())
        return report


class _Worker:
    """Trains and evaluates choices of a sweep in a folder.

    Attributes:
      results: {name of a choice: its fields, and 'top1' on held-out images, None if training
        became non-finite}.
      left_out: messages about images that could not be decoded, as keys.
    """

    def __init__(
        self,
        sweep: Sweep,
        workdir: paths.AnyPath,
        stop: StopRequest,
        log: Callable[[str], None],
    ):
        self._sweep, self._workdir, self._stop, self._log = sweep, workdir, stop, log
        self._tuner = make_tuner(sweep)  # one for all choices, so that they compile once
        found = _read(workdir / "results.json") or {}
        try:
            self.results = dict(found.get("choices", {}))
            for result in self.results.values():
                _choice(result)
            self.left_out = dict.fromkeys(found.get("left_out", []))
        except (TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{workdir}/results.json is damaged: move it away.") from error

    def best(self) -> Choice | None:
        """The choice of the highest accuracy; of equals, the first. None if there is none."""
        finite = [result for result in self.results.values() if result["top1"] is not None]
        found = max(finite, key=lambda result: result["top1"], default=None)
        return found and _choice(found)

    def try_choice(self, choice: Choice) -> bool:
        """Trains with a choice and adds its result; returns False if it was stopped."""
        state = self.train(choice, self._sweep.train, str(choice))
        if state is None:
            return False
        top1, text = None, "became NaN or infinite"
        if _is_finite(state):
            top1 = self.accuracies(state, self._sweep.held_out)["top1"]
            text = f"{100 * top1:.1f}% of the held-out images"
        self.results[str(choice)] = choice._asdict() | {"top1": top1}
        self._write()
        self._log(f"{choice}: {text}")
        best = self.best()
        for name in self.results:
            # What is trained again needs no earlier state.
            if name != str(best) or self._sweep.all_train is not None:
                _remove(self._workdir / name)
            if name != str(best):
                _remove(self._workdir / f"{name}_all")
        return True

    def train(self, choice: Choice, source: data.Source, folder: str) -> tuner_lib.State | None:
        """Trains on a source, from the folder's checkpoint if it has one; None if stopped."""
        sweep, config = self._sweep, self._sweep.encoder.config
        size, total = config["image_size"], sweep.steps(choice, source)
        encoder = None if sweep.from_scratch else sweep.encoder.variables
        settings = tuner_lib.Settings(choice.learning_rate, choice.weight_decay, total)
        shape = (size, size, config["channels"])
        state = tuner_lib.init(self._tuner, sweep.seed, shape, encoder, settings)
        keep = RetentionPolicy(1)
        with Checkpoints(self._workdir / folder / "checkpoints", keep) as checkpoints:
            restored = checkpoints.restore_newest(jax.eval_shape(lambda: state), self._log)
            start = 0
            if restored is not None:
                start, state = restored.step, restored.state
                if start < total:
                    self._log(f"{choice}: resumed at step {start} of {total}")
            state, timer = parallel.replicate(state), SaveTimer(MINUTES)
            update = parallel.update(self._tuner, tuner_lib.update)
            batches = data.train_batches(
                source,
                batch_size=sweep.batch_size,
                image_size=size,
                seed=sweep.seed,
                num_steps=total,
                start_step=start,
                crop=sweep.crop,
                views=1,
                on_decode_error=self._on_decode_error(),
            )
            metrics = None
            for step, batch in enumerate(batches, start + 1):
                batch = parallel.device_put_batch(batch)
                jax.block_until_ready(metrics)  # or batches would fill the device
                state, metrics, _ = update(state, batch)
                if step % max(1, total // 10) == 0 or step == total:
                    loss, top1 = (float(parallel.local(metrics)[k]) for k in ("loss", "train_top1"))
                    line = f"{choice}: step {step}/{total}  loss {loss:.4g}  train_top1 {top1:.3f}"
                    self._log(line)
                stops = self._stop.requested  # once: a signal may come at any moment
                if step == total or stops or timer.is_due():
                    self._write()
                    checkpoints.save(step, state)
                    timer.restart()
                if stops:
                    self._log(
                        f"Stopped and saved at step {step} of {choice}; the same command resumes."
                    )
                    return None
        return state

    def accuracies(self, state: tuner_lib.State, source: data.Source) -> dict[str, Any]:
        """`scores.accuracies` on a source, and 'test_examples', those that could be decoded."""
        sweep = self._sweep
        predict = parallel.embedder(self._tuner, tuner_lib.predict, _without_optimizer)(state)
        size = min(256 * jax.local_device_count(), sweep.batch_size)

        def ranks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for images, labels in data.eval_batches(
                source,
                batch_size=size,
                image_size=sweep.encoder.config["image_size"],
                crop_fraction=sweep.encoder.crop_fraction,
                on_decode_error=self._on_decode_error(),
            ):
                yield scores.label_ranks(predict(images, size), labels), labels

        found, labels = map(np.concatenate, zip(*ranks(), strict=True))
        accuracies = scores.accuracies(found, labels, source.num_classes)
        return accuracies | {"test_examples": len(labels)}

    def _on_decode_error(self) -> Callable[[int, str], None] | None:
        if self._sweep.left_out is None:
            return None

        def on_decode_error(_: int, message: str) -> None:
            self.left_out.setdefault(message)
            self._sweep.left_out(message)

        return on_decode_error

    def _write(self) -> None:
        found = {"choices": self.results, "left_out": list(self.left_out)}
        path = self._workdir / "results.json"
        paths.write_atomically(path, json.dumps(found, indent=2).encode())


def _choice(result: dict[str, Any]) -> Choice:
    """The choice of a result; raises TypeError if it is none."""
    return Choice(**{key: value for key, value in result.items() if key != "top1"})


def _remove(folder: paths.AnyPath) -> None:
    if folder.exists():
        epath.Path(folder).rmtree()


def _is_finite(state: tuner_lib.State) -> bool:
    return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(parallel.local(state)))


def _read(path: paths.AnyPath) -> dict[str, Any] | None:
    """The content of a JSON file; None if there is none. Raises CheckpointError."""
    try:
        found = json.loads(path.read_text()) if path.exists() else None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}): move it away.") from error
    if not isinstance(found, dict | None):
        raise CheckpointError(f"{path} was not written by this command: move it away.")
    return found


def _check_settings(sweep: Sweep, workdir: paths.AnyPath, log: Callable[[str], None]) -> None:
    """Writes settings.json, or compares it; raises ConfigError if it holds others."""
    if (workdir / "config.json").exists():
        raise ConfigError(
            f"--workdir={workdir} holds a pre-training run or an export: choose another folder."
        )
    computed_by = {
        "platform": jax.default_backend(),
        "devices": jax.local_device_count(),
        "jax": jax.__version__,
    }
    settings = sweep.settings
    path = workdir / "settings.json"
    before = _read(path)
    if before is not None:
        changed = [key for key in settings if before.get(key) != settings[key]]
        if before.get("computed_by") != computed_by:
            log(
                f"Computed by {before.get('computed_by')} before, by {computed_by} now: rounding "
                "differs, and the result will not be the same to the bit."
            )
        if changed:
            raise ConfigError(
                f"{workdir} holds fine-tuning with other settings ({', '.join(changed)}): resume "
                "with the old ones, or move it away."
            )
    else:
        text = json.dumps(settings | {"computed_by": computed_by}, indent=2) + "\n"
        paths.write_atomically(path, text.encode())


def make_tuner(sweep: Sweep) -> tuner_lib.Tuner:
    """The network and the optimizer of all choices, for all devices of this process."""
    config = sweep.encoder.config
    module = models.with_fields(sweep.encoder.fast_module(), axis_name=parallel.AXIS)
    return tuner_lib.Tuner(
        models.Classifier(module, sweep.train.num_classes),
        functools.partial(image_augment.normalize, mean=config["mean"], std=config["std"]),
        tuner_lib.optimizer(sweep.batch_size, getattr(module, "frozen", ())),
        config.get("matmul_precision", "default"),
        sweep.batch_norm_decay,
        parallel.AXIS,
    )


def _without_optimizer(state: tuner_lib.State) -> tuner_lib.State:
    return state._replace(opt_state=())


def _classifier(
    sweep: Sweep, choice: Choice, trained_on: data.Source, state: tuner_lib.State
) -> encoder_lib.Classifier:
    """The classifier, with a record of how it was trained."""
    state = parallel.local(state)
    config = dict(sweep.encoder.config)
    config["class_names"] = list(sweep.train.class_names)
    config["training"] = config["training"] | {
        "finetune": {
            "data": trained_on.name,
            "examples": trained_on.num_examples,
            "from_scratch": sweep.from_scratch,
            **choice._asdict(),
        }
    }
    variables = {"params": state.params, "batch_stats": state.stats}
    return encoder_lib.Classifier(config, jax.tree.map(np.asarray, variables))
