"""A race on labelled images: byol_jax and PyTorch train for the same time; whose encoder is better?

Both train the same encoder and heads with the same optimizer and schedules, on the same images with
the same distribution of views. byol_jax is `pretrain` as a user runs it, timed from the start of
its process. PyTorch is the step of `peers/pytorch_byol.py`, fed by a torchvision DataLoader with
all augmentations, timed from before the loader and the networks are made; its imports are not
counted, and its clock stands still during its kNN, while that of byol_jax does not.

The length of a run must be known before it starts, as its schedules depend on it. So each first
trains briefly, and the number of steps that fit is computed from that.
"""

import json
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from byol_jax import data, evaluate
from byol_jax.errors import UserError
from byol_jax.presets import cifar10_small
from byol_jax.runs import build, inputs
from byol_jax.runs.kinds import images
from byol_jax.runs.resolve import resolve
from byol_jax.train.metrics import KNN_NEIGHBOURS
from experiments.bench import peers, pretraining, startup
from experiments.bench.report import Column, Report, Table

PRESET = "cifar10_small"
TRIAL_STEPS = 400  # of the first, short training
MARGIN = 0.97  # of the time is planned, for what a short training does not show
CHECKS = 10  # kNN measurements in a run
OURS, PEER = "byol_jax", "PyTorch"
LOGGED = re.compile(r"step \d+/\d+ .*\bknn_test_top1 ([\d.]+)")


class Result(NamedTuple):
    """One contender's race."""

    seconds: float
    steps: int
    first_step: float  # seconds until it was done
    curve: list[tuple[float, float]]  # seconds and top-1 accuracy by kNN
    accuracy: float  # top-1 by logistic regression on all features


def run(images: str, data_dir: str, minutes: float, output: str | None) -> Report:
    """Races; draws the curves next to `output`, with the ending .png.

    Args:
      images: labelled images with the splits train and test, such as tfds:cifar10 or npz:PATH.
      data_dir: where TFDS keeps its data; "" for its own default.
      minutes: of each contender.
      output: the JSON file that the report will be written to, or None.

    Raises:
      UserError: PyTorch or torchvision is missing, the data have no labels, or a run failed.
    """
    steps, _ = peers.available(["pytorch"], peers.STEPS)
    peers.available(["torchvision"], peers.LOADERS)
    if steps["pytorch"].device() != "cpu":
        raise UserError("the race is for CPUs: hide the GPU with CUDA_VISIBLE_DEVICES=.")
    changes = {"data.source": images, "data.dir": data_dir}
    config = cifar10_small.get_config()
    config.update_from_flattened_dict(changes)
    # PyTorch first: byol_jax runs in its own processes, and nothing of it is left in this one.
    results = {PEER: race(partial(train_peer, config), minutes)}
    results[OURS] = race(partial(train_ours, changes), minutes)
    table = Table(
        f"{minutes:g} minutes on {images}",
        [
            Column("", "text"),
            Column("seconds", "number"),
            Column("until the first step", "seconds"),
            Column("images seen", "number"),
            Column("images/s", "number"),
            Column("kNN, at the end", "share"),
            Column("logistic regression", "share"),
        ],
    )
    for name in (OURS, PEER):
        result = results[name]
        seen = result.steps * config.batch_size
        table.add(
            name,
            result.seconds,
            result.first_step,
            float(seen),
            seen / result.seconds,
            result.curve[-1][1],
            result.accuracy,
        )
    if output:
        draw(Path(output).with_suffix(".png"), results, table.title)
    return Report("race", [table])


def race(train: Callable[..., Result], minutes: float) -> Result:
    """Trains briefly, then for as many steps as fit into the time."""
    trial = train(TRIAL_STEPS, is_trial=True)
    per_step = (trial.seconds - trial.first_step) / (trial.steps - 1)
    steps = round((MARGIN * 60 * minutes - trial.first_step) / per_step)
    if steps < CHECKS:
        raise UserError(f"--minutes={minutes:g} is too short for {CHECKS} steps: give it more.")
    return train(steps, is_trial=False)


def lengths(steps: int) -> dict[str, Any]:
    """Changes of a config for a run of so many steps."""
    return {
        "epochs": 0,
        "steps": steps,
        "evaluation.every_steps": max(1, steps // CHECKS),
        "log_every_steps": max(1, steps // CHECKS),
        "checkpoint.every_steps": steps,
        "checkpoint.keep_best": False,
    }


def train_ours(changes: dict[str, Any], steps: int, is_trial: bool) -> Result:
    """Runs `pretrain`, and then `evaluate` unless it is a trial, each in its own process.

    Raises:
      UserError: one of them failed.
    """
    with tempfile.TemporaryDirectory() as workdir:
        command = pretraining.command(PRESET, changes | lengths(steps), workdir)
        start, curve, first_step, last = time.perf_counter(), [], 0.0, "nothing"
        with subprocess.Popen(
            command,
            env=pretraining.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            for line in process.stdout:
                last, now = line.strip() or last, time.perf_counter() - start
                if startup.DONE.match(line):
                    first_step = now
                if found := LOGGED.match(line):
                    curve.append((now, float(found[1])))
        seconds = time.perf_counter() - start
        if process.returncode or not curve:
            raise UserError(f"a run of {PRESET} failed; its last output: {last}")
        if is_trial:
            return Result(seconds, steps, first_step, curve, 0.0)
        done = subprocess.run(
            [
                *(command[0], "-m", "byol_jax.cli", "evaluate", f"--checkpoint={workdir}"),
                *("--protocol=logistic", "--baselines="),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise UserError(f"the evaluation failed: {done.stderr.strip().splitlines()[-1]}")
        report = json.loads((Path(workdir) / "eval" / "logistic.json").read_text("utf-8"))
    return Result(seconds, steps, first_step, curve, report["top1"]["byol"])


def train_peer(config: ConfigDict, steps: int, is_trial: bool) -> Result:
    """Trains the peer of a config, and evaluates it unless it is a trial.

    Raises:
      UserError: the data have no labels, or are not in memory.
    """
    import torch

    from experiments.bench.peers import pytorch_byol, torchvision_loader

    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(lengths(steps))
    config = resolve(config)[0]
    source, test_source = inputs.open_sources(config)
    if test_source is None or not isinstance(source, data.ArraySource):
        raise UserError(f"{source.name}: the race needs labelled images of one size, in memory.")
    steps_per_epoch = data.steps_per_epoch(source, config.batch_size)
    schedule = build.learning_rate(config, steps_per_epoch)
    rates = np.asarray([schedule(step) for step in range(steps)])
    learner = build.make_learner(config, schedule, steps, None, None)
    taus = np.asarray([learner.tau(step) for step in range(steps)])

    start = time.perf_counter()
    torch.manual_seed(config.seed)
    policy, size = learner.augment, config.data.image_size
    views = [
        torchvision_loader.all_augmentations(size, view, policy, images.crop(config))
        for view in (policy.view1, policy.view2)
    ]
    loader = torchvision_loader.Loader(
        source.images, torchvision_loader.Each(*views), config.batch_size
    )
    adamw = partial(pytorch_byol.AdamW, decay=config.optimizer.weight_decay)
    blank = np.zeros((1, 2, size, size, config.data.channels), np.uint8)
    step = pytorch_byol.Step(learner, blank, config.dtype, compiled=False, optimizer=adamw)
    curve, first_step, paused = [], 0.0, 0.0
    for done, pair in enumerate(loader.batches(steps), 1):
        step.rate, step.tau = float(rates[done - 1]), float(taus[done - 1])
        pair = [view.contiguous(memory_format=torch.channels_last) for view in pair]
        loss = step.update(*pair)
        if done == 1:
            step.wait(loss)
            first_step = time.perf_counter() - start
        if done % config.evaluation.every_steps == 0 or done == steps:
            step.wait(loss)
            now = time.perf_counter()
            limits = config.evaluation.train_examples, config.evaluation.test_examples
            parts = peer_features(step.online.encoder, config, (source, test_source), limits)
            top1 = evaluate.knn(
                *parts[0], *parts[1], num_classes=source.num_classes, ks=(KNN_NEIGHBOURS,)
            )["top1"]
            curve.append((now - start - paused, top1))
            paused += time.perf_counter() - now
    seconds = time.perf_counter() - start - paused
    if is_trial:
        return Result(seconds, steps, first_step, curve, 0.0)
    parts = peer_features(step.online.encoder, config, (source, test_source), (None, None))
    logistic = evaluate.logistic(*parts[0], *parts[1], num_classes=source.num_classes)
    return Result(seconds, steps, first_step, curve, logistic["top1"])


def peer_features(
    encoder: Any, config: ConfigDict, sources: Sequence[data.Source], limits: Sequence[int | None]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Features of the peer's encoder in evaluation mode, float32 (n, d), and labels, by source."""
    import torch

    mean, std = np.float32(config.views.mean), np.float32(config.views.std)

    def embed(images: np.ndarray) -> np.ndarray:
        x = (images / np.float32(255) - mean) / std
        with torch.no_grad():
            return encoder(torch.from_numpy(x.transpose(0, 3, 1, 2))).numpy()

    encoder.eval()
    parts = [
        evaluate.collect(
            embed,
            inputs.eval_batches(config, source, limit=limit),
            min(limit or source.num_examples, source.num_examples),
        )
        for source, limit in zip(sources, limits, strict=True)
    ]
    encoder.train()
    return parts


def draw(path: Path, results: dict[str, Result], title: str) -> None:
    """Draws accuracy by time, with the final logistic accuracy in the legend."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, result in results.items():
        minutes, accuracy = zip(*result.curve, strict=True)
        label = f"{name} (logistic regression at the end: {result.accuracy:.1%})"
        axes.plot(np.asarray(minutes) / 60, 100 * np.asarray(accuracy), marker="o", label=label)
    axes.set(title=title, xlabel="minutes", ylabel="top-1 accuracy by kNN, %", xlim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(path)
