"""Five whole steps beside the authors' implementation: losses, weights, statistics, momentum."""

import functools
import json
import re

import flax
import flax.linen as nn
import jax
import numpy as np
import pytest

from byol_jax import byol, networks, optim, views

PLAIN = views.View(jitter_prob=0.0, gray_prob=0.0, blur_prob=0.0, solarize_prob=0.0)


class TinyResNet(nn.Module):
    """The reference's test network: a wide stem, and four groups of one narrow block."""

    @nn.compact
    def __call__(self, x, train):
        conv = functools.partial(networks.conv2d, padding="same", dtype=np.float32)
        norm = functools.partial(networks.BatchNorm, use_running_average=not train)
        x = nn.relu(norm(name="bn1")(conv(64, 7, 2, name="conv1")(x)))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
        for group in range(4):
            name, stride = f"layer{group + 1}_0", 2 if group else 1
            x = networks.BasicBlock(8, stride, conv, norm, zero_init_scale=False, name=name)(x)
        return x.mean((1, 2))


def ours(name):
    """The path in our trees of one of the reference's names."""
    name = re.sub(r"^\d/mu/", "", name)  # momentum, in the optimiser's state
    name = re.sub(r"^tiny_res_net/~/", "encoder/", name)
    name = re.sub(
        r"block_group_(\d)/~/block_0/~/", lambda m: f"layer{int(m.group(1)) + 1}_0/", name
    )
    for theirs, its in (
        (r"^classifier/", "probe/"),
        (r"initial_conv", "conv1"),
        (r"initial_batchnorm|(?<=r/)batch_norm|batchnorm_0", "bn1"),
        (r"batchnorm_1", "bn2"),
        (r"shortcut_conv", "downsample_conv"),
        (r"shortcut_batchnorm", "downsample_bn"),
        (r"conv_1", "conv2"),
        (r"conv_0", "conv1"),
        (r"linear_1", "dense2"),
        (r"linear", "dense1"),
        (r"/w$", "/kernel"),
        (r"/b$", "/bias"),
        (r"/offset$", "/bias"),
    ):
        name = re.sub(theirs, its, name)
    return name


def tree(values, group, parts):
    """The arrays of one group of the file, as a tree of ours with only these parts."""
    flat = {}
    for key in values.files:
        if key.startswith(f"{group}|"):
            name = ours(key.removeprefix(f"{group}|"))
            if name.split("/")[0] in parts:
                # The reference keeps the axes it averages over.
                is_vector = name.endswith(("scale", "bias"))
                flat[name] = values[key].reshape(-1) if is_vector else values[key]
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def statistics(values, group, parts, steps):
    """The reference's running statistics as Flax counts them: from 0 and 1, without debiasing."""
    flat = {}
    for key in values.files:
        if key.startswith(f"{group}|") and key.endswith("/hidden"):
            module, kind = key.removeprefix(f"{group}|").removesuffix("/hidden").rsplit("/~/", 1)
            name = ours(module + "/scale").removesuffix("scale")
            if name.split("/")[0] in parts:
                start = 0.9**steps if kind == "var_ema" else 0.0
                leaf = "mean" if kind == "mean_ema" else "var"
                flat[name + leaf] = values[key].reshape(-1) + start
    return flax.traverse_util.unflatten_dict(flat, sep="/")


ONLINE = {"encoder", "projector", "predictor", "probe"}
TARGET = {"encoder", "projector"}


@pytest.fixture(scope="module")
def replayed(shared):
    """The file, and our final state and metrics by step."""
    values = np.load(shared("reference/trajectory.npz"))
    config = json.loads(str(values["config"]))
    network, chosen = config["network_config"], config["optimizer_config"]
    batch, total = config["batch_size"], config["max_steps"]
    peak = config["lr_schedule_config"]["base_learning_rate"] * batch / 256
    schedule = optim.warmup_cosine(peak, config["lr_schedule_config"]["warmup_steps"], total)
    learner = byol.make_learner(
        TinyResNet(),
        views.Policy(PLAIN, PLAIN, views.IMAGENET_MEAN, views.IMAGENET_STD),
        optim.lars(schedule, chosen["weight_decay"], chosen["momentum"], chosen["eta"]),
        optim.target_decay(config["base_target_ema"], total),
        hidden_size=network["projector_hidden_size"],
        output_size=network["projector_output_size"],
        num_classes=config["num_classes"],
    )
    state = byol.init(learner, 0, values["views"].shape[3:])
    state = state._replace(
        online_params=tree(values, "init|online_params", ONLINE),
        target_params=tree(values, "init|target_params", TARGET),
    )
    update = jax.jit(functools.partial(byol.update, learner))
    log = []
    for pair, labels in zip(values["views"], values["labels"], strict=True):
        positions = np.arange(batch, dtype=np.int32)
        state, metrics = update(state, byol.Batch(pair, labels, positions))
        log.append({key: float(value) for key, value in metrics.items()})
    return values, state, log


@pytest.mark.parametrize(
    ("theirs", "its"),
    [
        ("loss", "loss"),
        ("repr_loss", "byol_loss"),
        ("classif_loss", "probe_loss"),
        ("top1_accuracy", "probe_train_top1"),
        ("tau", "tau"),
    ],
)
def test_readings_equal_the_authors(replayed, theirs, its):
    values, _, log = replayed
    np.testing.assert_allclose([row[its] for row in log], values[f"log|{theirs}"], rtol=1e-5)


def assert_close(got, want):
    """Within 2e-4 of each leaf's largest value; the reference differs from itself by 2e-5."""
    got, want = (flax.traverse_util.flatten_dict(dict(t), sep="/") for t in (got, want))
    assert got.keys() == want.keys()
    for name, expected in want.items():
        error = np.abs(np.asarray(got[name]) - expected).max() / np.abs(expected).max()
        assert error < 2e-4, (name, error)


def test_parameters_equal_the_authors(replayed):
    values, state, _ = replayed
    assert_close(state.online_params, tree(values, "final|online_params", ONLINE))
    assert_close(state.target_params, tree(values, "final|target_params", TARGET))


def test_running_statistics_equal_the_authors(replayed):
    values, state, _ = replayed
    # Two views, so two updates, a step.
    assert_close(state.online_stats, statistics(values, "final|online_state", ONLINE, 10))
    assert_close(state.target_stats, statistics(values, "final|target_state", TARGET, 10))


def test_momentum_equals_the_authors(replayed):
    values, state, _ = replayed
    (momentum,) = (s.trace for s in state.opt_state if hasattr(s, "trace"))
    got, want = dict(momentum), tree(values, "final|opt_state", ONLINE)
    for t in (got, want):  # a bias before a batch norm: its gradient is rounding noise
        for head in ("projector", "predictor"):
            t[head] = {**t[head], "dense1": {"kernel": t[head]["dense1"]["kernel"]}}
    assert_close(got, want)
