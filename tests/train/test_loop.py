"""The loop end to end on a tiny run: files, resuming, stopping, evaluating, and errors."""

import json
import os
import re
import shutil
import signal
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image
from tiny import tiny_config

import byol_jax
from byol_jax import byol, data
from byol_jax.augment import image as image_augment
from byol_jax.data import textures
from byol_jax.errors import DataError, UserError
from byol_jax.runs import encoder as encoder_lib
from byol_jax.runs import inputs
from byol_jax.runs import run as run_lib
from byol_jax.runs.resolve import resolve
from byol_jax.train import console, health, loop, metrics, setup, timer

KEYS = {
    *("step", "epoch", "loss", "byol_loss", "probe_loss", "probe_train_top1", "tau"),
    *("learning_rate", "gradient_norm", "parameter_norm", "embedding_std", "embedding_rank"),
    *("projection_std", "projection_rank"),
}
HANDLERS = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
TIMES = {"images_per_second", "input_wait_share"}
MEASURES = {"knn_test_top1", "probe_test_top1", "rankme", "alpha_req"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, pictures):
    """An uninterrupted run."""
    workdir = tmp_path_factory.mktemp("finished")
    with pictures():
        loop.train(tiny_config(), workdir)
    return workdir


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def final_state(workdir):
    return jax.tree.map(np.asarray, run_lib.restore(workdir).state)


def check_same_end(workdir, undisturbed):
    """The last states are equal to the bit."""
    want, got = (
        jax.tree_util.tree_leaves_with_path(final_state(d)) for d in (undisturbed, workdir)
    )
    for (path, a), (_, b) in zip(want, got, strict=True):
        np.testing.assert_array_equal(b, a, err_msg=jax.tree_util.keystr(path))


def test_files_of_a_run(finished):
    names = {path.name.split(".")[0] for path in finished.iterdir()}
    assert names == {"config", "lock", "metrics", "events", "checkpoints", "views", "curves"}
    assert (finished / "views.png").stat().st_size > 1000
    assert (finished / "curves.png").stat().st_size > 1000
    record = json.loads((finished / "config.json").read_text())
    assert record["config"]["batch_size"] == 16 and record["total_steps"] == 6
    assert record["data"]["num_classes"] == 10 and "jax" in record["versions"]


def test_metrics_of_a_run(finished):
    logged = rows(finished)
    assert [row["step"] for row in logged] == [2, 3, 4, 6]
    for row in logged:
        assert set(row) - TIMES - MEASURES == KEYS
        assert all(np.isfinite(value) for value in row.values())
    assert [row["step"] for row in logged if set(row) >= MEASURES] == [3, 6]
    assert all(set(row) >= TIMES for row in logged)
    assert all(0 <= row["input_wait_share"] <= 1 for row in logged)
    # Of the update that was made: the first has the full rate, since there is no warm-up.
    rate = 0.01 * 16 / 256
    np.testing.assert_allclose(
        [row["learning_rate"] for row in logged],
        [rate * (np.cos(np.pi * (row["step"] - 1) / 6) + 1) / 2 for row in logged],
        rtol=1e-5,
    )
    np.testing.assert_allclose(
        [row["tau"] for row in logged],
        [1 - 0.004 * (np.cos(np.pi * (row["step"] - 1) / 6) + 1) / 2 for row in logged],
        rtol=1e-6,
    )


def test_accuracy_of_the_probe_on_held_out_images(finished):
    trained = run_lib.restore(finished)
    config = trained.run.config
    _, test_source = inputs.open_sources(config)
    batches = inputs.eval_batches(config, test_source, limit=config.evaluation.test_examples)
    images, labels = map(np.concatenate, zip(*batches, strict=True))
    logits = byol.infer(trained.learner, trained.state, images).logits
    want = np.mean(np.argmax(logits, axis=-1) == labels)
    assert rows(finished)[-1]["probe_test_top1"] == pytest.approx(want)


def test_training_changes_every_part(finished):
    trained = run_lib.restore(finished)
    fresh = run_lib.initial_state(trained.learner, trained.run.config)
    for name in ("online_params", "target_params", "online_stats", "target_stats"):
        for old, new in zip(
            jax.tree.leaves(getattr(fresh, name)),
            jax.tree.leaves(getattr(trained.state, name)),
            strict=True,
        ):
            assert np.any(np.asarray(old) != np.asarray(new)), name
    assert int(trained.state.step) == 6


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A run that gets SIGTERM in its third step and stops after the fourth."""
    workdir = tmp_path_factory.mktemp("interrupted")
    with pytest.MonkeyPatch.context() as patch:

        def advance(self, step):
            if step == 3:
                os.kill(os.getpid(), signal.SIGTERM)

        patch.setattr(console.Progress, "advance", advance)
        assert not loop.train(tiny_config(), workdir)
    return workdir


def test_a_signal_saves_and_the_same_command_resumes(finished, interrupted, capsys):
    assert int(final_state(interrupted).step) == 4
    assert {number: signal.getsignal(number) for number in HANDLERS} == HANDLERS
    loop.train(tiny_config(), interrupted)
    assert "Resuming from the checkpoint of step 4" in capsys.readouterr().out

    check_same_end(interrupted, finished)

    def comparable(workdir):
        return [{k: v for k, v in row.items() if k not in TIMES} for row in rows(workdir)]

    assert comparable(interrupted) == comparable(finished)


def test_a_killed_run_resumes_from_an_intermediate_checkpoint(finished, tmp_path):
    """The checkpoint of step 3 was written while the next update ran and its state was donated."""
    killed = shutil.copytree(finished, tmp_path / "killed")
    shutil.rmtree(killed / "checkpoints" / "6")
    loop.train(tiny_config(), killed)
    check_same_end(killed, finished)
    assert [row["step"] for row in rows(killed)] == [2, 3, 4, 6]


def test_a_run_in_a_bucket(finished, tmp_path, pictures):
    """By paths as for gs://: nothing is locked, and no file is appended to."""
    bucket = epath.Path(tmp_path / "bucket")
    ignored = shutil.ignore_patterns("6", "events*", "lock", "curves.png")
    shutil.copytree(finished, bucket, ignore=ignored)
    with pictures():
        loop.train(tiny_config(), bucket)
    check_same_end(bucket, finished)
    assert [row["step"] for row in rows(bucket)] == [2, 3, 4, 6]
    names = {path.name for path in bucket.iterdir()}
    assert names == {"config.json", "metrics.jsonl", "checkpoints", "views.png", "curves.png"}


def test_a_run_skips_a_damaged_checkpoint(finished, tmp_path, capsys):
    damaged = shutil.copytree(finished, tmp_path / "damaged")
    for path in (damaged / "checkpoints" / "6").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:10])
    message = r"step 6 .*damaged: \w+/.* cannot be read .*Going back to that of step 3\."
    assert int(run_lib.restore(damaged).state.step) == 3
    assert re.search(message, capsys.readouterr().err)
    assert (damaged / "checkpoints" / "6").exists()  # reading moves nothing
    loop.train(tiny_config(), damaged)
    assert re.search(message, capsys.readouterr().out)
    assert (damaged / "damaged_checkpoints" / "6").exists()
    check_same_end(damaged, finished)
    assert [row["step"] for row in rows(damaged)] == [2, 3, 4, 6]


def test_a_run_without_checkpoint_can_start_with_other_settings(finished, tmp_path):
    """A first attempt that failed must not lock its folder."""
    run = run_lib.read(finished)
    run_lib.prepare_workdir(tmp_path, run)
    run.config.batch_size = 32
    run_lib.prepare_workdir(tmp_path, run)
    assert run_lib.read(tmp_path).config.batch_size == 32


def test_checkpoints_without_config_are_refused(finished, tmp_path):
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    with pytest.raises(UserError, match=r"checkpoints, but no config.json"):
        run_lib.prepare_workdir(tmp_path, run_lib.read(finished))


def test_a_complete_run_has_nothing_left_to_do(finished, capsys):
    before = (finished / "metrics.jsonl").read_text()
    loop.train(tiny_config(), finished)
    assert "nothing left to do" in capsys.readouterr().out
    assert (finished / "metrics.jsonl").read_text() == before


@pytest.mark.parametrize(("kind", "saved"), [(DataError, 5), (UserError, 3)])
def test_an_image_that_cannot_be_decoded_costs_no_step(
    finished, tmp_path, monkeypatch, kind, saved
):
    """Only an error of the data saves the state before it."""
    train_batches = inputs.train_batches

    def broken(*args):
        batches = train_batches(*args)
        yield from (next(batches) for _ in range(5))
        raise kind("x.png cannot be decoded")

    with monkeypatch.context() as patch:
        patch.setattr(inputs, "train_batches", broken)
        with pytest.raises(kind, match=r"x\.png"):
            loop.train(tiny_config(), tmp_path)
    assert int(final_state(tmp_path).step) == saved
    loop.train(tiny_config(), tmp_path)
    check_same_end(tmp_path, finished)


def test_a_held_out_image_that_cannot_be_decoded_costs_no_step(finished, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise DataError("y.png cannot be decoded")

    with monkeypatch.context() as patch:
        patch.setattr(inputs, "eval_batches", broken)
        with pytest.raises(DataError, match=r"y\.png"):
            loop.train(tiny_config(), tmp_path)
    assert int(final_state(tmp_path).step) == 3
    assert [row["step"] for row in rows(tmp_path)] == [2, 3]
    loop.train(tiny_config(), tmp_path)
    check_same_end(tmp_path, finished)


def saved_steps(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


@pytest.fixture
def minutes(monkeypatch):
    """A clock that begins at 0 and shows the number of steps done, in minutes."""
    clock = SimpleNamespace(now=0.0)
    monotonic = lambda: 60 * clock.now  # noqa: E731
    fake = SimpleNamespace(perf_counter=time.perf_counter, monotonic=monotonic)
    monkeypatch.setattr(timer, "time", fake)
    advance = console.Progress.advance

    def counting(self, step):
        advance(self, step)
        clock.now += 1

    monkeypatch.setattr(console.Progress, "advance", counting)


def test_a_checkpoint_by_time(finished, tmp_path, minutes):
    """Requested with the update after a minute, saved with the next; it leaves no other trace."""
    config = tiny_config()
    config.log_every_steps = config.checkpoint.every_steps = 100
    config.evaluation.every_steps = 0
    config.checkpoint.every_minutes = 1.0
    loop.train(config, tmp_path)
    assert saved_steps(tmp_path) == [3, 6]
    assert [row["step"] for row in rows(tmp_path)] == [6]
    check_same_end(tmp_path, finished)
    shutil.rmtree(tmp_path / "checkpoints" / "6")
    config.checkpoint.every_minutes = 0.0
    loop.train(config, tmp_path)
    assert saved_steps(tmp_path) == [3, 6]
    check_same_end(tmp_path, finished)


def test_the_best_evaluation_is_saved_between_checkpoints(tmp_path, monkeypatch):
    accuracies = iter([0.5, 0.9, 0.9, 0.4])
    monkeypatch.setattr(metrics.evaluate, "knn", lambda *_, **__: {"top1": next(accuracies)})
    config = tiny_config()
    config.steps, config.evaluation.every_steps, config.log_every_steps = 7, 2, 100
    config.checkpoint.every_steps, config.checkpoint.keep = 100, 1
    loop.train(config, tmp_path)
    assert saved_steps(tmp_path) == [4, 7]
    assert [row["knn_test_top1"] for row in rows(tmp_path)] == [0.5, 0.9, 0.9, 0.4]


@pytest.fixture
def unlabelled(monkeypatch):
    """Images without labels, and a function that sets what RankMe will be."""
    images, _ = textures.draw(40, seed=3)

    def rankme_will_be(*values):
        remaining = iter(values)
        monkeypatch.setattr(metrics.label_free, "rankme", lambda _: next(remaining))

    return data.from_arrays(images), rankme_will_be


def short_evaluations(steps, patience=0):
    config = tiny_config()
    config.steps, config.evaluation.every_steps, config.log_every_steps = steps, 1, 100
    config.evaluation.patience, config.evaluation.train_examples = patience, 20
    config.checkpoint.every_steps, config.checkpoint.keep = 100, 1
    return config


def test_without_labels_the_best_is_kept_by_rankme(unlabelled, tmp_path, capsys):
    source, rankme_will_be = unlabelled
    rankme_will_be(2.0, 3.0, 3.0, 1.0)
    loop.train(short_evaluations(4), tmp_path, source)
    assert saved_steps(tmp_path) == [2, 4]
    assert [row["rankme"] for row in rows(tmp_path)] == [2.0, 3.0, 3.0, 1.0]
    assert not any("knn_test_top1" in row for row in rows(tmp_path))
    assert "RankMe judges the encoder instead" in capsys.readouterr().out


def test_a_run_that_gets_no_better_ends_early(unlabelled, tmp_path, capsys):
    source, rankme_will_be = unlabelled
    rankme_will_be(2.0, 3.0, 2.5, 2.9)
    config = short_evaluations(6, patience=2)
    assert loop.train(config, tmp_path, source)
    assert saved_steps(tmp_path) == [2, 4] and rows(tmp_path)[-1]["step"] == 4
    assert "Ended early and saved at step 4" in capsys.readouterr().out
    assert loop.train(config, tmp_path, source)  # trains no further, and measures nothing
    assert "This run ended early, at step 4" in capsys.readouterr().out
    rankme_will_be(2.9, 2.8)
    config.evaluation.patience = 4
    assert loop.train(config, tmp_path, source)  # counts on: to the last step, the fourth
    assert saved_steps(tmp_path) == [2, 6]
    assert "Done: 6 steps." in capsys.readouterr().out


def test_two_processes_do_not_train_in_one_folder(tmp_path):
    with (
        run_lib.lock_workdir(tmp_path),
        pytest.raises(UserError, match="Another process is training in"),
    ):
        loop.train(tiny_config(), tmp_path)
    with run_lib.lock_workdir(tmp_path):  # free again
        pass


def test_a_changed_config_is_refused_by_name(finished):
    config = tiny_config()
    config.batch_size = 32
    config.views.view1.hue = 0.3
    with pytest.raises(UserError, match=r"batch_size \(16 -> 32\).*view1.hue \(0.1 -> 0.3\)"):
        loop.train(config, finished)


def exploding_config():
    """Its second update is infinite."""
    config = tiny_config()
    config.optimizer.name = "sgd"
    config.optimizer.base_learning_rate = 1e37
    config.optimizer.warmup_epochs = 2 / 625  # two steps, the first at rate 0
    config.checkpoint.every_steps = config.log_every_steps = 1
    config.evaluation.every_steps = 0
    return config


def test_a_non_finite_loss_stops_the_run_and_keeps_the_checkpoint(tmp_path):
    config = exploding_config()
    with pytest.raises(UserError, match=r"at step 2 is (nan|inf); .*step 1 is good and was"):
        loop.train(config, tmp_path)
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["1"]
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(final_state(tmp_path)))


def test_a_limited_number_of_non_finite_updates_can_be_skipped(tmp_path, capsys):
    config = exploding_config()
    config.on_nonfinite, config.max_skipped_updates = "skip", 2
    for skipped in (["step 2", "step 3"], []):  # a new start keeps the count
        with pytest.raises(UserError, match=r"at step 4 is (nan|inf), and 2 updates before it"):
            loop.train(config, tmp_path)
        output = capsys.readouterr().out
        assert output.count("the update was skipped") == len(skipped)
        assert all(f"at {step} is" in output for step in skipped)
    assert int(final_state(tmp_path).step) == 3
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(final_state(tmp_path)))
    # The limit may change when the run resumes.
    config.max_skipped_updates = 4
    with pytest.raises(UserError, match=r"at step 6 is (nan|inf), and 4 updates before it"):
        loop.train(config, tmp_path)
    assert "max_skipped_updates (2 -> 4)" in capsys.readouterr().out


@pytest.fixture
def collapsed(monkeypatch):
    """Every health check finds a collapse."""
    names = ("embedding_std", "embedding_rank", "projection_std", "projection_rank")
    monkeypatch.setattr(health, "feature_metrics", lambda *_: dict.fromkeys(names, 0.01))


def test_a_collapse_stops_the_run_and_further_starts(tmp_path, collapsed, capsys):
    config = tiny_config()
    config.evaluation.every_steps = 0
    config.health.patience = 2
    config.health.stop_on_collapse = True
    with pytest.raises(UserError, match="saved at step 3: the features collapsed"):
        loop.train(config, tmp_path)
    assert "Try, in this order: another config.target.tau_base" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"had collapsed .* step 3: .*stop_on_collapse=False\.$"):
        loop.train(config, tmp_path)
    assert int(final_state(tmp_path).step) == 3
    config.health.stop_on_collapse = False
    assert loop.train(config, tmp_path)
    assert int(final_state(tmp_path).step) == 6


def test_a_signal_does_not_change_when_a_collapse_ends_the_run(tmp_path, collapsed, monkeypatch):
    """The step of the stop has no health check, because an uninterrupted run has none there."""
    advance, step = console.Progress.advance, 1

    def stopping(self, now):
        advance(self, now)
        if now == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(console.Progress, "advance", stopping)
    config = tiny_config()
    config.steps, config.log_every_steps, config.checkpoint.every_steps = 20, 4, 100
    config.evaluation.every_steps, config.health.patience, config.health.stop_on_collapse = (
        0,
        2,
        True,
    )
    assert not loop.train(config, tmp_path)
    assert int(final_state(tmp_path).step) == 3 and rows(tmp_path) == []
    step = 5
    assert not loop.train(config, tmp_path)
    with pytest.raises(UserError, match="saved at step 8: the features collapsed"):
        loop.train(config, tmp_path)
    assert [row["step"] for row in rows(tmp_path)] == [4, 8]


def test_another_list_of_images_is_refused(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(16):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(tmp_path / f"{i}.png")
    config = tiny_config()
    config.data.source = f"folder:{tmp_path}"
    config.data.channels = 3
    config.views.mean, config.views.std = (0.5,) * 3, (0.25,) * 3
    resolved, _ = resolve(config)

    def now():
        return run_lib.make_run(resolved, inputs.open_split(resolved, "train"))

    (tmp_path / ".run" / "checkpoints").mkdir(parents=True)
    run_lib.prepare_workdir(tmp_path / ".run", now())
    (tmp_path / ".run" / "checkpoints" / "2").mkdir()
    assert run_lib.prepare_workdir(tmp_path / ".run", now()) == []
    (tmp_path / "3.png").rename(tmp_path / "z.png")
    with pytest.raises(UserError, match=r"not those that the run in .* began with \(16 then, 16"):
        run_lib.prepare_workdir(tmp_path / ".run", now())


def test_a_flat_folder_trains_without_labels(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for i in range(20):
        size = (20 + i, 40 - i)
        image = Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8))
        image.save(tmp_path / f"{i}.{'png' if i % 2 else 'jpg'}")
    config = tiny_config()
    config.data.source = f"folder:{tmp_path}"
    config.data.channels = 3
    config.views.mean, config.views.std = (0.5,) * 3, (0.25,) * 3
    config.steps = 2
    loop.train(config, tmp_path / "run")
    assert "No kNN while training: the data has no labels." in capsys.readouterr().out
    state = final_state(tmp_path / "run")
    assert "probe" not in state.online_params
    (row,) = rows(tmp_path / "run")
    assert "probe_loss" not in row and np.isfinite(row["loss"])


def test_held_out_images_of_other_classes_are_refused(tmp_path):
    for split, classes in (("train", "abc"), ("test", "abd")):
        for name in classes:
            (tmp_path / split / name).mkdir(parents=True)
            image = Image.fromarray(np.zeros((16, 16, 3), np.uint8))
            for i in range(6):
                image.save(tmp_path / split / name / f"{i}.png")
    config = tiny_config()
    config.data.source = f"folder:{tmp_path}"
    config.data.channels = 3
    config.views.mean, config.views.std = (0.5,) * 3, (0.25,) * 3
    with pytest.raises(UserError, match="have different classes"):
        loop.train(config, tmp_path / "run")


def test_arrays_from_python(tmp_path):
    images, labels = textures.draw(40, seed=3)
    config = tiny_config()
    config.steps = 1
    config.evaluation.train_examples = 20
    source = data.from_arrays(images, labels)
    loop.train(config, tmp_path, source, test_source=source)
    (row,) = rows(tmp_path)
    assert 0 <= row["knn_test_top1"] <= 1
    assert run_lib.read(tmp_path).data["name"] == "arrays"


def test_labels_of_a_test_source_are_matched_by_name(tmp_path, monkeypatch):
    images = np.zeros((16, 16, 16, 1), np.uint8)
    source = data.from_arrays(images, [0, 1] * 8, class_names=("ant", "bee"))
    test_source = data.from_arrays(images, [0, 1] * 8, class_names=("bee", "ant"))
    seen = []
    monkeypatch.setattr(setup, "evaluator", lambda *args: seen.append(args[3]))
    with setup.run_context(tiny_config(), tmp_path, source, test_source):
        np.testing.assert_array_equal(seen[0].labels, [1, 0] * 8)
    other = data.from_arrays(images, [0, 1] * 8, class_names=("ant", "wasp"))
    with pytest.raises(DataError, match="different classes"):
        loop.train(tiny_config(), tmp_path, source, other)


def test_settings_of_the_crops_reach_the_pipeline(finished, monkeypatch):
    seen = {}
    monkeypatch.setattr(data, "train_batches", lambda *_, **k: seen.update(k) or [], raising=False)
    monkeypatch.setattr(data, "eval_batches", lambda *_, **k: seen.update(k), raising=False)
    config = run_lib.read(finished).config
    config.data.placement = "host"
    config.crop.update(
        {"area_min": 0.2, "area_max": 0.7, "ratio_min": 0.5, "ratio_max": 3.0, "flip_prob": 0.1}
    )
    config.seed, config.crop.test_fraction = 9, 0.6
    list(inputs.train_batches(config, None, 2, 5))
    inputs.eval_batches(config, None, limit=3)
    assert seen["crop"] == data.Crop(area=(0.2, 0.7), ratio=(0.5, 3.0), flip=0.1)
    assert (seen["seed"], seen["start_step"], seen["num_steps"]) == (9, 2, 5)
    assert (seen["batch_size"], seen["image_size"]) == (16, 16)
    assert (seen["crop_fraction"], seen["limit"]) == (0.6, 3)


def test_photographs_of_mixed_sizes(shared, tmp_path):
    config = tiny_config()
    config.data.source = f"folder:{shared('photos')}"
    config.data.channels, config.data.image_size = 3, 32
    config.views.mean, config.views.std = image_augment.IMAGENET_MEAN, image_augment.IMAGENET_STD
    config.steps = 2
    loop.train(config, tmp_path / "run")
    encoder_lib.save(byol_jax.load(tmp_path / "run"), tmp_path / "encoder")
    source, _ = inputs.open_sources(config)
    images, labels = next(inputs.eval_batches(config, source, limit=5))
    assert labels is None
    features = byol_jax.load(tmp_path / "encoder").embed(images)
    assert features.shape == (5, 16) and np.all(np.isfinite(features))


def test_a_workdir_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--workdir=.*file/run cannot be written"):
        loop.train(tiny_config(), tmp_path / "file" / "run")


def test_positions_of_a_batch(finished):
    run = run_lib.read(finished)
    source, _ = inputs.open_sources(run.config)
    batch = next(inputs.train_batches(run.config, source, 0, run.total_steps))
    assert isinstance(batch, byol.Batch)
    np.testing.assert_array_equal(np.ravel(batch.positions), np.arange(16))
    assert data.steps_per_epoch(source, 16) == run.steps_per_epoch == 625
