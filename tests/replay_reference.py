"""Replays a trajectory of the authors' implementation through ours, and prints the differences.

    python tests/replay_reference.py tests/data/reference/trajectory.npz [--devices=2] [--perturb=N]

FILE holds some optimisation steps: `config` (JSON, the authors' own), `views` (uint8 (step, 2,
batch, height, width, 3)), `labels` (int32 (step, batch)), all parameters, batch-norm state and
momentum before (`init|...`) and after (`final|...`), the metrics of each step (`log|...`) and the
final online network's outputs on the first view of the first step (`eval|...`). The sizes of the
networks are those of the arrays in the file.

Prints JSON. `log`: by metric, the largest relative error over the steps. All other groups: the
largest error of any leaf as a fraction of that leaf's largest value, and the name of that leaf. The
momentum of a bias right before a batch norm is left out, because its true gradient is zero.

With --perturb=N, N more replays start from initial parameters with a relative error of 2e-7, about
what rounding to float32 leaves. `perturbed` has, by metric and by group, the best and the median
error of these replays. Where a pre-activation lies within rounding of zero, two correct programs
can put it on different sides of the ReLU, and their states differ by far more than rounding: the
plain replay and the median can then be large, but the best cannot unless the programs differ.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs in a checkout, installed or not

import flax
import jax
import numpy as np
import optax

from byol_jax import byol, parallel
from byol_jax.augment import image as image_augment
from byol_jax.export.convert import reference
from byol_jax.runs import config as config_lib
from byol_jax.runs import run as run_lib
from byol_jax.runs.resolve import resolve

METRICS = {"loss": "loss", "repr_loss": "byol_loss", "classif_loss": "probe_loss", "tau": "tau"}
STATISTICS = {"online_state", "target_state"}
OUTPUTS = ("projection", "prediction", "logits")
WITHOUT_GRADIENT = {"projector/dense1/bias", "predictor/dense1/bias"}
PERTURBATION = 2e-7  # relative; float32 has a spacing of .6e-7 to 1.2e-7


def main():
    """Replays a file and prints the errors."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", help="trajectory, a .npz file")
    parser.add_argument("--devices", type=int, default=2, help="virtual CPU devices (default: 2)")
    parser.add_argument("--perturb", type=int, default=0, metavar="N", help="perturbed replays")
    arguments = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", arguments.devices)
    with np.load(arguments.file) as file:
        values = dict(file)
    print(json.dumps(compare(values, arguments.perturb), indent=2))


def compare(values, perturbed_starts=0):
    """The errors of a replay; with those of replays from perturbed starts if there are any."""
    run = make_run(values)
    learner = run.learner(parallel.AXIS)
    replay = make_replay(run, learner, values)
    initial = initial_state(learner, values)
    report = replay(initial)
    if perturbed_starts:
        rng = np.random.default_rng(0)
        errors = [numbers(replay(perturb(initial, rng))) for _ in range(perturbed_starts)]
        report["perturbed"] = {
            name: {
                "best": min(e[name] for e in errors),
                "median": float(np.median([e[name] for e in errors])),
            }
            for name in errors[0]
        }
    return report


def make_run(values):
    """The run that the file's config and arrays describe."""
    theirs = json.loads(str(values["config"]))
    norm, schedule = theirs["network_config"]["bn_config"], theirs["lr_schedule_config"]
    if (norm["decay_rate"], norm["eps"]) != (0.9, 1e-5):
        sys.exit(f"error: batch norm with {norm} is not supported: decay_rate .9 and eps 1e-5 are.")
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
    config.target.tau_base = theirs["base_target_ema"]
    config.optimizer.base_learning_rate = schedule["base_learning_rate"]
    config.optimizer.warmup_epochs = float(schedule["warmup_steps"])  # an epoch is one step here
    config.optimizer.weight_decay = theirs["optimizer_config"]["weight_decay"]
    config.optimizer.momentum = theirs["optimizer_config"]["momentum"]
    config.optimizer.trust_coefficient = theirs["optimizer_config"]["eta"]
    config, _ = resolve(config)
    return run_lib.Run(config, {"num_classes": sizes["num_classes"]}, steps_per_epoch=1)


def make_replay(run, learner, values):
    """A function from an initial state to the errors of a replay; it compiles once."""
    update = parallel.update(learner)
    infer = jax.jit(lambda state, images: byol.infer(learner, state, images))
    learning_rate = run.learning_rate()
    final = trees(values, "final")

    def replay(state):
        state = parallel.replicate(state)
        log = {name: [] for name in (*METRICS, "learning_rate")}
        for step in range(len(values["views"])):
            state, metrics, _ = update(state, parallel.device_put_batch(batch(values, step)))
            for name, ours in METRICS.items():
                log[name].append(float(parallel.local(metrics)[ours]))
            log["learning_rate"].append(float(learning_rate(step)))
        state = jax.tree.map(np.asarray, parallel.local(state))
        outputs = infer(state, values["views"][0, 0])
        momentum = optax.tree.get(state.opt_state, "trace")
        target_params, target_stats = map(
            encoder_and_projector, (final["target_params"], final["target_state"])
        )
        return {
            "log": {name: relative_error(log[name], values[f"log|{name}"]) for name in log},
            "online_params": largest_error(state.online_params, final["online_params"]),
            "target_params": largest_error(state.target_params, target_params),
            "online_state": largest_error(state.online_stats, final["online_state"]),
            "target_state": largest_error(state.target_stats, target_stats),
            "momentum": largest_error(momentum, final["opt_state"], WITHOUT_GRADIENT),
            "eval": largest_error(
                {name: getattr(outputs, name) for name in OUTPUTS},
                {name: values[f"eval|{name}"] for name in OUTPUTS},
            ),
        }

    return replay


def batch(values, step):
    """The batch of a step."""
    views, labels = values["views"][step], values["labels"][step]
    return byol.Batch(views.swapaxes(0, 1), labels, np.arange(len(labels), dtype=np.int32))


def initial_state(learner, values):
    """The state before the first step, in NumPy."""
    initial = trees(values, "init")
    state = byol.State(
        step=np.zeros((), np.int32),
        seed=np.zeros((), np.uint32),
        online_params=initial["online_params"],
        target_params=encoder_and_projector(initial["target_params"]),
        online_stats=initial["online_state"],
        target_stats=encoder_and_projector(initial["target_state"]),
        opt_state=learner.optimizer.init(initial["online_params"]),
    )
    return jax.tree.map(np.asarray, state)


def perturb(state, rng):
    """The state with parameters multiplied by 1 + PERTURBATION * (standard normal numbers)."""

    def multiply(x):
        return (x * (1 + PERTURBATION * rng.standard_normal(x.shape))).astype(x.dtype)

    online, target = jax.tree.map(multiply, (state.online_params, state.target_params))
    return state._replace(online_params=online, target_params=target)


def trees(values, when):
    """Our trees of all groups of arrays at one time, 'init' or 'final'."""
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


def encoder_and_projector(tree):
    """Ours of a target's parts: theirs has a predictor and a classifier too, which are not used."""
    return {part: tree[part] for part in ("encoder", "projector")}


def relative_error(got, want):
    """The largest |got - want| / |want|; infinite where zero is not met exactly."""
    difference = np.abs(np.asarray(got) - want)
    wrong = difference > 0
    with np.errstate(divide="ignore"):
        return float(np.max(difference[wrong] / np.abs(want[wrong]), initial=0))


def largest_error(got, want, ignored=frozenset()):
    """The leaf with the largest error, and this error as a fraction of the leaf's largest value."""
    got, want = (flax.traverse_util.flatten_dict(dict(t), sep="/") for t in (got, want))
    if missing := sorted(got.keys() ^ want.keys()):
        sys.exit(f"error: {missing[0]} is in only one of the two networks.")
    errors = {}
    for name in want.keys() - ignored:
        largest = np.abs(want[name]).max() or 1  # of zeros, the error itself
        errors[name] = float(np.abs(np.asarray(got[name]) - want[name]).max() / largest)
    leaf = max(errors, key=errors.get)
    return {"error": errors[leaf], "leaf": leaf}


def numbers(report):
    """The errors of a report by metric and group."""
    groups = {name: value["error"] for name, value in report.items() if name != "log"}
    return report["log"] | groups


if __name__ == "__main__":
    main()
