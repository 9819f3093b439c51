"""Replays a trajectory of the authors' implementation through ours, and prints how far they part.

    python tests/replay_reference.py FILE.npz

FILE holds some optimisation steps: `config` (JSON, as the authors' own), `views` (uint8 (step, 2,
batch, height, width, 3)), `labels` (int32 (step, batch)), all parameters, batch-norm state and
momentum before (`init|...`) and after (`final|...`), the readings of each step (`log|...`) and the
final online network's outputs on the first view of the first step (`eval|...`). The sizes of the
networks are those of the arrays in the file. Runs on two virtual CPU devices, as the authors'
values were made on two replicas.

Prints JSON. `log`: by reading, the largest relative error over the steps. All other groups: the
largest error of any leaf as a fraction of that leaf's largest value, and the name of that leaf; the
momentum of a bias right before a batch norm is left out, as its true gradient is zero.
"""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs in a checkout, installed or not
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"

import flax
import jax
import numpy as np
import optax

from byol_jax import byol, parallel
from byol_jax.augment import image as image_augment
from byol_jax.export.convert import reference
from byol_jax.runs import config as config_lib
from byol_jax.runs import run as run_lib

READINGS = {"loss": "loss", "repr_loss": "byol_loss", "classif_loss": "probe_loss", "tau": "tau"}
STATISTICS = {"online_state", "target_state"}
OUTPUTS = ("projection", "prediction", "logits")
WITHOUT_GRADIENT = {"projector/dense1/bias", "predictor/dense1/bias"}


def main(path):
    """Replays a file; returns what is printed."""
    with np.load(path) as file:
        values = dict(file)
    theirs = json.loads(str(values["config"]))
    run = describe(theirs, values)
    learner = run.learner(parallel.AXIS)
    learning_rate = run.learning_rate()
    state = parallel.replicate(start(learner, values))
    update = parallel.update(learner)

    log = {name: [] for name in (*READINGS, "learning_rate")}
    positions = np.arange(theirs["batch_size"], dtype=np.int32)
    for step, (pair, labels) in enumerate(zip(values["views"], values["labels"], strict=True)):
        batch = parallel.device_put_batch(byol.Batch(pair.swapaxes(0, 1), labels, positions))
        state, metrics, _ = update(state, batch)
        for theirs_name, ours in READINGS.items():
            log[theirs_name].append(float(parallel.local(metrics)[ours]))
        log["learning_rate"].append(float(learning_rate(step)))
    state = jax.tree.map(np.asarray, parallel.local(state))

    outputs = jax.jit(lambda s, x: byol.infer(learner, s, x))(state, values["views"][0, 0])
    momentum = optax.tree.get(state.opt_state, "trace")
    final = trees(values, "final")
    return {
        "log": {name: relative_error(log[name], values[f"log|{name}"]) for name in log},
        "online_params": largest_error(state.online_params, final["online_params"]),
        "target_params": largest_error(state.target_params, of_target(final["target_params"])),
        "online_state": largest_error(state.online_stats, final["online_state"]),
        "target_state": largest_error(state.target_stats, of_target(final["target_state"])),
        "momentum": largest_error(momentum, final["opt_state"], WITHOUT_GRADIENT),
        "eval": largest_error(
            {name: getattr(outputs, name) for name in OUTPUTS},
            {name: values[f"eval|{name}"] for name in OUTPUTS},
        ),
    }


def describe(theirs, values):
    """The run that the file's config and arrays describe."""
    norm, schedule = theirs["network_config"]["bn_config"], theirs["lr_schedule_config"]
    if (norm["decay_rate"], norm["eps"]) != (0.9, 1e-5):
        sys.exit(f"error: batch norm with {norm} is not what the authors' recipe has.")
    sizes = reference.architecture(trees(values, "init")["online_params"])
    config = config_lib.default()
    config.data.source = "trajectory"
    config.data.image_size = values["views"].shape[3]
    config.batch_size = theirs["batch_size"]
    config.steps = theirs["max_steps"]
    config.encoder.update(sizes["encoder"])
    config.heads.update(sizes["heads"])
    for view in (config.views.view1, config.views.view2):
        view.update(jitter_prob=0.0, gray_prob=0.0, blur_prob=0.0, solarize_prob=0.0)
    config.views.mean, config.views.std = image_augment.IMAGENET_MEAN, image_augment.IMAGENET_STD
    config.tau_base = theirs["base_target_ema"]
    config.optimizer.base_learning_rate = schedule["base_learning_rate"]
    config.optimizer.warmup_epochs = float(schedule["warmup_steps"])  # an epoch is one step here
    config.optimizer.weight_decay = theirs["optimizer_config"]["weight_decay"]
    config.optimizer.momentum = theirs["optimizer_config"]["momentum"]
    config.optimizer.trust_coefficient = theirs["optimizer_config"]["eta"]
    config, _ = config_lib.resolve(config)
    return run_lib.Run(config, {"num_classes": sizes["num_classes"]}, steps_per_epoch=1)


def start(learner, values):
    """The state before the first step."""
    initial = trees(values, "init")
    state = byol.init(learner, 0, first_batch(values))
    return state._replace(
        online_params=initial["online_params"],
        target_params=of_target(initial["target_params"]),
    )


def first_batch(values):
    """The batch of the first step."""
    views, labels = values["views"][0], values["labels"][0]
    return byol.Batch(views.swapaxes(0, 1), labels, np.arange(len(labels), dtype=np.int32))


def trees(values, when):
    """Our trees of all groups of arrays at one time."""
    modules = {}
    for key, array in values.items():
        if key.startswith(f"{when}|"):
            group, name = key.removeprefix(f"{when}|").split("|")
            module, leaf = name.split("mu/")[-1].rsplit("/", 1)  # momentum: '1/mu/' comes first
            modules.setdefault(group, {}).setdefault(module, {})[leaf] = array
    return {
        group: reference.batch_stats(found) if group in STATISTICS else reference.params(found)
        for group, found in modules.items()
    }


def of_target(tree):
    """What a target needs: theirs carries a predictor and a classifier too, which nothing reads."""
    return {part: tree[part] for part in ("encoder", "projector")}


def relative_error(got, want):
    """The largest |got - want| / |want|; zero must be met exactly."""
    difference = np.abs(np.asarray(got) - want)
    wrong = difference > 0
    return float(np.max(difference[wrong] / np.abs(want[wrong]), initial=0))


def largest_error(got, want, ignored=frozenset()):
    """The leaf furthest off, and by how much of its largest value."""
    got, want = (flax.traverse_util.flatten_dict(dict(t), sep="/") for t in (got, want))
    if missing := sorted(got.keys() ^ want.keys()):
        sys.exit(f"error: {missing[0]} is in one of the two networks only.")
    errors = {}
    for name in want.keys() - ignored:
        largest = np.abs(want[name]).max() or 1  # of zeros, the error itself
        errors[name] = float(np.abs(np.asarray(got[name]) - want[name]).max() / largest)
    leaf = max(errors, key=errors.get)
    return {"error": errors[leaf], "leaf": leaf}


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python tests/replay_reference.py FILE.npz")
    print(json.dumps(main(sys.argv[1]), indent=2))
