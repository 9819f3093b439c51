"""A run's folder: what may change between two starts, and records of earlier versions."""

import json

import jax
import numpy as np
import pytest
from PIL import Image
from tiny import tiny_resnet_config

from byol_jax.errors import CheckpointError, ConfigError, DataError
from byol_jax.runs import inputs, tree
from byol_jax.runs import run as run_lib
from byol_jax.runs.resolve import resolve

COLORS = ("blue", "red")


@pytest.fixture
def images(tmp_path):
    """A folder of a few images of two classes."""
    rng = np.random.default_rng(0)
    for color in COLORS:
        (tmp_path / "here" / color).mkdir(parents=True)
        for i in range(8):
            image = Image.fromarray(rng.integers(0, 256, (16, 16), np.uint8))
            image.save(tmp_path / "here" / color / f"{i}.png")
    return tmp_path / "here"


@pytest.fixture
def workdir(tmp_path):
    """A folder that looks as if a run had saved a checkpoint."""
    (tmp_path / "run" / "checkpoints" / "2").mkdir(parents=True)
    return tmp_path / "run"


def run_on(source, **settings):
    """The run of the tiny config on a source, with other settings by dotted key."""
    config = tiny_resnet_config()
    config.data.source = source
    for key, value in settings.items():
        tree.put(config, key.replace("__", "."), value)
    config, _ = resolve(config)
    return run_lib.make_run(config, inputs.open_split(config, "train"))


def start(workdir, run):
    """Writes config.json as the first start of a run does."""
    (workdir / "config.json").unlink(missing_ok=True)
    checkpoint = (workdir / "checkpoints" / "2").rename(workdir / "none")
    assert run_lib.prepare_workdir(workdir, run) == []
    checkpoint.rename(workdir / "checkpoints" / "2")


def test_equal_images_may_move(images, workdir):
    before = run_on(f"folder:{images}")
    start(workdir, before)
    moved = images.rename(images.parent / "there")
    now = run_on(f"folder:{moved}", data__dir="elsewhere")
    (line,) = run_lib.prepare_workdir(workdir, now)
    assert f"config.data.source (folder:{images} -> folder:{moved})" in line
    assert "the images are the same by their fingerprint" in line and "\n" not in line
    assert run_lib.read(workdir).config.data.source == f"folder:{moved}"
    assert run_lib.prepare_workdir(workdir, now) == []
    # Each process may have its own copy.
    assert run_lib.fingerprint(before) == run_lib.fingerprint(now)


def test_other_images_are_refused(images, workdir):
    before = run_on(f"folder:{images}")
    start(workdir, before)
    (images / "red" / "3.png").rename(images / "red" / "9.png")
    changed = run_on(f"folder:{images}")
    with pytest.raises(DataError, match=r"not those that the run in .* began with \(16 then, 16"):
        run_lib.prepare_workdir(workdir, changed)
    assert run_lib.fingerprint(before) != run_lib.fingerprint(changed)
    moved = run_on(f"folder:{images.rename(images.parent / 'there')}")
    with pytest.raises(ConfigError, match=r"other settings: config.data.source .*fingerprint of"):
        run_lib.prepare_workdir(workdir, moved)


def test_data_without_a_fingerprint_may_not_move(workdir):
    before = run_on("embedded")
    assert before.data["fingerprint"] is None
    start(workdir, before)
    config = before.config.copy_and_resolve_references()
    config.data.source = "tfds:other"
    now = before._replace(config=config, data=before.data | {"name": "other"})
    with pytest.raises(ConfigError, match=r"config.data.source \(embedded -> tfds:other\)"):
        run_lib.prepare_workdir(workdir, now)
    assert run_lib.fingerprint(before) != run_lib.fingerprint(now)


def test_mutable_settings_may_change(workdir):
    start(workdir, run_on("embedded"))
    (line,) = run_lib.prepare_workdir(workdir, run_on("embedded", log_every_steps=7))
    assert line == "Changed since the last start: config.log_every_steps (2 -> 7)."
    with pytest.raises(
        ConfigError, match=r"other settings: config.target.tau_base \(0.996 -> 0.5\)\. Res"
    ):
        run_lib.prepare_workdir(workdir, run_on("embedded", target__tau_base=0.5))


def test_a_run_of_an_earlier_version_opens_and_resumes(images, workdir):
    run = run_on(f"folder:{images}", crop__fit="retry")
    start(workdir, run)
    record = json.loads((workdir / "config.json").read_text())
    del record["config"]["crop"]["fit"], record["config"]["matmul_precision"]
    (workdir / "config.json").write_text(json.dumps(record))
    assert run_lib.read(workdir) == run
    assert run_lib.prepare_workdir(workdir, run) == []
    with pytest.raises(ConfigError, match=r"config.crop.fit \(retry -> clip\)"):
        run_lib.prepare_workdir(workdir, run_on(f"folder:{images}"))


def test_a_run_with_unknown_settings_is_refused(workdir):
    start(workdir, run_on("embedded"))
    record = json.loads((workdir / "config.json").read_text())
    record["config"]["crop"]["angle"] = 3
    (workdir / "config.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match=r"config.json .*has no config\.crop\.angle\)"):
        run_lib.read(workdir)


def test_a_config_without_checkpoint_may_be_replaced(tmp_path):
    run_lib.prepare_workdir(tmp_path, run_on("embedded"))
    run_lib.prepare_workdir(tmp_path, run_on("embedded", batch_size=32))
    assert run_lib.read(tmp_path).config.batch_size == 32


def test_another_number_of_processes_is_reported_where_it_matters(workdir):
    run = run_on("embedded")
    start(workdir, run)
    record = json.loads((workdir / "config.json").read_text())
    (workdir / "config.json").write_text(json.dumps(record | {"processes": 2}))
    assert run_lib.prepare_workdir(workdir, run) == []
    (line,) = run_lib.prepare_workdir(workdir, run, order_depends_on_processes=True)
    assert line.startswith("This run had 2 processes and now has 1")
    assert run_lib.prepare_workdir(workdir, run, order_depends_on_processes=True) == []


@pytest.mark.parametrize(("batch_size", "want"), [(4096, 512), (512, 128)])
def test_batches_in_evaluation_count_the_devices_of_this_process(monkeypatch, batch_size, want):
    for name, count in (("process_count", 4), ("device_count", 8), ("local_device_count", 2)):
        monkeypatch.setattr(jax, name, lambda count=count: count)
    config = tiny_resnet_config()
    config.batch_size = batch_size
    assert inputs.eval_batch_size(config) == want


def test_a_record_without_the_number_of_images_is_refused(images, workdir):
    run = run_on(f"folder:{images}")
    start(workdir, run)
    record = json.loads((workdir / "config.json").read_text())
    del record["data"]["num_examples"], record["data"]["fingerprint"]
    (workdir / "config.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match="None then, 16 now"):
        run_lib.prepare_workdir(workdir, run)
