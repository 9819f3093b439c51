"""Settings that are chosen for images and a machine: the rules, by name."""

import math

import pytest

from byol_jax.data.look import Look
from byol_jax.errors import ConfigError
from byol_jax.runs.resolve import resolve
from byol_jax.train import plan as plan_lib
from byol_jax.train import target_decay

CPU = plan_lib.Machine("cpu", "a processor", 2, None)
GPU = plan_lib.Machine("gpu", "a GPU", 1, 80e9)


def look(count, side=300, is_gray=False):
    moments = (0.4, 0.5, 0.6), (0.2, 0.3, 0.1)
    return Look(count, min(count, 256), 0, side, side, side, is_gray, *moments)


def config_of(seen, machine, **settings):
    """The plan's config, which resolves."""
    config = plan_lib.make_plan(seen, machine, settings).config
    config.data.source = "folder:images"
    return resolve(config)[0]


def steps_of(config, count):
    return config.steps or config.epochs * (count // config.batch_size)


@pytest.mark.parametrize("count", [4, 40, 256, 9469, 1_300_000])
@pytest.mark.parametrize("side", [20, 64, 300])
@pytest.mark.parametrize("machine", [CPU, GPU], ids=lambda m: m.platform)
def test_every_plan_can_be_trained(count, side, machine):
    config = config_of(look(count, side), machine)
    assert 4 <= config.batch_size <= count
    assert config.data.image_size <= max(32, side)
    steps = steps_of(config, count)
    assert steps >= 3000
    assert config.optimizer.warmup_epochs * (count // config.batch_size) <= steps / 10 + 1
    # The target network is replaced often enough: docs/ablations.md.
    share = 1 if config.target.tau_schedule == "constant" else 0.5
    assert share * steps * (1 - config.target.tau_base) >= 200 - 1e-6
    assert config.evaluation.every_steps <= steps / 10
    assert config.checkpoint.every_steps <= steps / 10


def test_the_encoder_follows_the_machine_and_the_number_of_images():
    chosen = {
        (machine.platform, count): config_of(look(count), machine)
        for machine in (CPU, GPU)
        for count in (9469, 50_000)
    }
    names = {key: config.encoder.name for key, config in chosen.items()}
    assert names == {
        ("cpu", 9469): "resnet10",
        ("cpu", 50_000): "resnet10",
        ("gpu", 9469): "resnet18",
        ("gpu", 50_000): "resnet50",
    }
    assert {key: config.dtype for key, config in chosen.items() if key[0] == "gpu"} == {
        ("gpu", 9469): "bfloat16",
        ("gpu", 50_000): "bfloat16",
    }


def test_an_accelerator_sees_ten_million_images_within_limits():
    assert config_of(look(20_000), GPU).epochs == 500
    assert config_of(look(1_300_000), GPU).epochs == 100
    few = config_of(look(300), GPU)  # 1000 epochs of one step are too short
    assert (few.epochs, few.steps) == (0, 3000)


def test_small_images_are_not_enlarged():
    assert config_of(look(1000, side=28), CPU).data.image_size == 28
    assert config_of(look(1000, side=100), GPU).data.image_size == 96
    assert config_of(look(1000, side=1000), GPU).data.image_size == 128


def test_colours_are_those_of_the_images():
    colour, gray = config_of(look(1000), CPU), config_of(look(1000, is_gray=True), CPU)
    assert (colour.data.channels, colour.views.mean) == (3, (0.4, 0.5, 0.6))
    assert (gray.data.channels, gray.views.mean, gray.views.std) == (1, (0.4,), (0.2,))
    for seen in (look(1000), look(1000, is_gray=True)):
        given = config_of(seen, CPU, **{"init.encoder": "weights.safetensors"})
        assert (given.data.channels, given.views.mean) == (3, (0.485, 0.456, 0.406))  # ImageNet's
    empty = config_of(look(1000), CPU, **{"views.mean": ("",)})
    assert empty.views.mean == (0.4, 0.5, 0.6)


def test_what_is_open_follows_what_the_user_decides():
    usual = config_of(look(1000), CPU)
    longer = config_of(look(1000), CPU, epochs=2000)
    assert (longer.epochs, longer.steps) == (2000, 0)
    assert longer.target.tau_base == pytest.approx(1 - 200 / (2000 * 7))
    assert usual.target.tau_base == pytest.approx(1 - 200 / 3000)
    other = config_of(look(1000), CPU, **{"encoder.name": "convnet", "batch_size": 32})
    assert (other.encoder.name, other.batch_size) == ("convnet", 32)
    assert config_of(look(1000), CPU, **{"target.tau_base": 0.5}).target.tau_base == 0.5
    kept = config_of(look(1000), CPU, **{"evaluation.every_steps": 0})
    assert kept.evaluation.every_steps == 0


@pytest.mark.parametrize(("gigabytes", "accum_steps"), [(200, 1), (80, 2), (24, 8), (None, 1)])
def test_a_batch_is_divided_until_it_fits(gigabytes, accum_steps):
    machine = GPU._replace(memory=gigabytes and gigabytes * 1e9)
    config = config_of(look(100_000), machine)
    assert config.accum_steps == accum_steps
    if gigabytes:
        used = config.batch_size / accum_steps * plan_lib.BYTES_PER_EXAMPLE["resnet50"]
        assert used <= 0.6 * gigabytes * 1e9
    assert config_of(look(100_000), machine, accum_steps=4).accum_steps == 4


def test_the_cifar_stem_needs_the_memory_of_images_of_four_times_the_side():
    config = config_of(look(50_000, side=32), GPU._replace(memory=8e9))
    assert (config.encoder.name, config.encoder.stem) == ("resnet18", "cifar")
    micro_batch = config.batch_size // config.accum_steps
    assert micro_batch * 60e6 * (128 / 224) ** 2 <= 0.6 * 8e9
    assert config.accum_steps > 1
    steps = [
        config_of(look(9_000), GPU._replace(memory=8e9), **{"encoder.stem": stem}).accum_steps
        for stem in ("imagenet", "strided", "cifar")
    ]
    assert steps[0] < steps[1] < steps[2]


def test_a_plan_says_what_and_why():
    seen = look(1000)._replace(unreadable=2)
    plan = plan_lib.make_plan(seen, CPU, {})
    lines = plan_lib.describe(plan, seen, CPU, "folder:images")
    assert len(lines) == 10 and all(len(line) < 130 for line in lines)
    text = "\n".join(lines)
    for part in (
        "1000 images",
        "2 of them cannot",
        "2 cores",
        "resnet10",
        "3000 steps, 384 epochs",
        "0.9333",
    ):
        assert part in text, part
    assert "1 x a GPU with 80 GB" in str(GPU)


def test_fitting_decay():
    assert target_decay.fitting_decay("constant", 1000) == pytest.approx(0.8)
    assert target_decay.fitting_decay("cosine", 1000) == pytest.approx(0.6)
    assert target_decay.fitting_decay("constant", 10) == 0.5
    # The sum of 1 - tau over a cosine from tau_base to 1 is half of steps times 1 - tau_base.
    taus = [1 - 0.4 * (math.cos(math.pi * k / 1000) + 1) / 2 for k in range(1000)]
    assert sum(1 - tau for tau in taus) == pytest.approx(200, rel=2e-3)


def test_a_batch_is_divided_among_the_devices():
    config = config_of(look(100_000), GPU._replace(devices=3))
    assert config.batch_size == 255


@pytest.mark.parametrize("key", ["batch_size", "steps", "accum_steps", "data.image_size"])
def test_zero_is_refused_before_anything_is_divided_by_it(key):
    for machine in (CPU, GPU):
        with pytest.raises(ConfigError, match=f"config.{key}"):
            plan_lib.make_plan(look(100), machine, {key: 0})


def test_too_few_images_are_refused():
    with pytest.raises(ConfigError, match="too few"):
        plan_lib.make_plan(look(3), CPU, {})
    with pytest.raises(ConfigError, match="bach_size"):
        plan_lib.make_plan(look(100), CPU, {"bach_size": 3})
