"""The model of scale: sizes against the lowered update, formulas against values by hand."""

import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_resnet_config

from byol_jax import byol, parallel
from byol_jax.errors import UserError
from byol_jax.runs import run as run_lib
from byol_jax.runs.resolve import resolve
from experiments import scale

DOCS = Path(__file__).parents[2] / "docs" / "scale.md"


def all_reduces(config):
    """Shapes of the all-reduces in the lowered update."""
    learner = run_lib.Run(config, {"num_classes": 3}, steps_per_epoch=3).learner(parallel.AXIS)
    state = run_lib.abstract_state(learner, config)
    rows = parallel.split(
        byol.Batch(
            np.zeros((16, 2, 16, 16, 1), np.uint8), np.zeros(16, np.int32), np.zeros(16, np.int32)
        ),
        config.accum_steps,
    )
    update = jax.pmap(
        lambda state, batch: byol.update(learner, state, batch),
        axis_name=parallel.AXIS,
        in_axes=(None, 0),
        out_axes=None,
    )
    text = update.lower(state, rows).as_text()
    operands = re.findall(r'"stablehlo\.all_reduce".*?\) : \(tensor<([^>]*)>\) ->', text, re.S)
    shapes = [operand.split("x") for operand in operands]
    assert shapes and all(shape[-1] == "f32" for shape in shapes)
    return state, [tuple(map(int, shape[:-1])) for shape in shapes]


def test_sizes_are_those_of_the_lowered_update():
    state, found = all_reduces(resolve(tiny_resnet_config())[0])
    sent = scale.traffic(state)
    sizes = sorted(scale.FLOAT * math.prod(shape) for shape in found)
    leaves = (state.online_params, state.online_stats, state.target_stats)
    once = [scale.FLOAT * leaf.size for leaf in jax.tree.leaves(leaves)]
    assert sum(once) == sent.gradients + sent.statistics
    for size in (*sent.moments, *once):
        sizes.remove(size)
    assert sizes == [scale.FLOAT] * len(sizes) and len(sizes) < 10, "only metrics are left"
    moments = [shape for shape in found if len(shape) == 2 and shape[0] == 2]
    assert len(moments) == len(sent.moments) == 2 * (11 + 11 + 10)  # norms of the tiny networks


def test_gradients_have_the_counted_size():
    config = resolve(tiny_resnet_config())[0]
    learner, state = scale.learner_and_state(config, 3)
    batch = byol.Batch(
        jax.ShapeDtypeStruct((8, 2, 16, 16, 1), jnp.uint8),
        jax.ShapeDtypeStruct((8,), jnp.int32),
        jax.ShapeDtypeStruct((8,), jnp.int32),
    )
    grads_fn = jax.grad(byol.loss_fn, has_aux=True)
    gradients, _ = jax.eval_shape(
        lambda s, b: grads_fn(s.online_params, learner, s, b), state, batch
    )
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(gradients))
    assert scale.traffic(state).gradients == size
    assert scale.traffic(state).parameters == size / 4


def test_micro_batches_repeat_only_the_norms():
    config = resolve(tiny_resnet_config())[0]
    _, state = scale.learner_and_state(config, 3)
    one, four = scale.traffic(state), scale.traffic(state, accum_steps=4)
    assert len(four.moments) == 4 * len(one.moments)
    assert four._replace(moments=()) == one._replace(moments=())


def test_a_dense_layer_has_two_flops_a_weight():
    config = resolve(tiny_resnet_config())[0]
    learner, state = scale.learner_and_state(config, 3)
    more = config.copy_and_resolve_references()
    more.heads.output_size += 10
    learner10, state10 = scale.learner_and_state(more, 3)
    grown = scale.forward_flops(learner10, state10, more)
    grown -= scale.forward_flops(learner, state, config)
    # Ten more columns in the projector's last layer, rows in the predictor's first, and columns in
    # its last; the hidden layer of each head has 8 units.
    assert grown == 2 * 10 * 8 * 3


def test_rings_by_hand():
    assert scale.ring(800.0, 8, 100.0) == 14.0  # 7/8 of 800 bytes, twice, at 100 a second
    assert scale.ring(800.0, 1, 100.0) == 0
    device = scale.Device(1, 8, 100.0, 10.0, launch=0.5, hop=0.25, network_hop=2.0)
    assert scale.all_reduce(device, 800.0, 8, 1.0) == 0.5 + 2 * 3 * 0.25 + 14
    assert scale.all_reduce(device, 800.0, 8, 0.5) == 0.5 + 2 * 3 * 0.25 + 28
    # Four such domains: rings of an eighth of the bytes through them, at 10 a second.
    assert scale.all_reduce(device, 800.0, 32, 1.0) == 0.5 + 1.5 + 14 + 2 * 2 * 2.0 + 15


def test_a_step_by_hand():
    device = scale.Device(1e3, 8, 100.0, 10.0, launch=0.5, hop=0.25, network_hop=2.0)
    sent = scale.Traffic(parameters=100, gradients=400, statistics=400, moments=(80, 80))
    took = scale.step(device, sent, 10.0, 8, batch_size=80, flops_share=0.5, link_share=1.0)
    # 10 images on each device, two views, four passes, 10 FLOPs, at 500 a second.
    assert took.compute == pytest.approx(10 * 2 * 4 * 10 / 500)
    assert took.moments == pytest.approx(2 * (2 + 1.4))
    assert took.rest == pytest.approx(2 + 14)
    assert took.exposed == pytest.approx(16 - took.compute / 2)
    assert took.total == pytest.approx(took.compute + took.moments + took.exposed)


def test_invalid_batch_sizes_and_shares_are_named():
    sent = scale.Traffic(1, 4, 4, (8,))
    arguments = {"batch_size": 512, "flops_share": 0.5, "link_share": 0.5}
    for change, message in (
        ({"batch_size": 500}, "--global_batch_size=500 does not divide among 512 devices"),
        ({"flops_share": 0.0}, "--flops_share=0.0 must be above 0"),
        ({"link_share": 2.0}, "--link_share=2.0 must be"),
    ):
        with pytest.raises(UserError, match=message):
            scale.table(scale.DEVICES["h100"], sent, 1.0, **arguments | change)


def test_the_docs_show_the_output_of_the_command():
    config = scale.paper()
    learner, state = scale.learner_and_state(config, scale.CLASSES)
    sent, flops = scale.traffic(state), scale.forward_flops(learner, state, config)
    text = DOCS.read_text()
    assert scale.counted(sent, flops) in text
    for name, device in scale.DEVICES.items():
        lines = scale.table(device, sent, flops, batch_size=4096, flops_share=0.25, link_share=0.6)
        assert f"### {name}\n\n{lines}\n" in text
