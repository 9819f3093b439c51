"""The bench: its arithmetic, its files, and that the peers do the same work as byol_jax.

Nothing is timed here: clocks are fake.
"""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from byol_jax import byol, data, optim
from byol_jax.errors import UserError
from byol_jax.export.convert import torchvision as weights
from byol_jax.train import console
from experiments.bench import input as input_part
from experiments.bench import measure, memory, page, peers, photographs, race, report, settings
from experiments.bench.report import Column, Report, Table

ROOT = Path(__file__).parents[2]


class Timer:
    """A clock that advances only with work."""

    def __init__(self):
        self.now = 0.0
        self.worked = []

    def __call__(self):
        return self.now

    def work(self, name, seconds):
        self.now += seconds
        self.worked.append(name)
        return seconds


def test_contenders_alternate_after_an_uncounted_turn():
    clock = Timer()
    durations = {"a": iter([9.0, 1.0, 2.0, 3.0]), "b": iter([9.0, 4.0, 4.0, 4.0])}
    took = measure.in_turn(
        {name: lambda name=name: clock.work(name, next(durations[name])) for name in durations},
        seconds=0,
        fewest=3,
        clock=clock,
    )
    assert clock.worked == ["a", "b"] * 4
    assert took == {"a": [1.0, 2.0, 3.0], "b": [4.0, 4.0, 4.0]}


@pytest.mark.parametrize(("seconds", "rounds"), [(0, 2), (25, 3), (1e9, 7)])
def test_rounds_stop_at_the_time_limit_but_not_before_the_minimum(seconds, rounds):
    clock = Timer()
    took = measure.in_turn(
        {"a": lambda: clock.work("a", 10.0)}, seconds=seconds, fewest=2, most=7, clock=clock
    )
    assert len(took["a"]) == rounds


def test_work_is_repeated_to_fill_a_turn_and_waited_for_once():
    clock, waited = Timer(), []
    turn = measure.repeated(
        lambda: clock.work("a", 0.25), lambda result: waited.append(result), seconds=1, clock=clock
    )
    assert turn() == 0.25
    assert len(clock.worked) == len(waited) == 2  # to compile, and to measure one call
    assert turn() == 0.25
    assert len(clock.worked) == 2 + 4 and len(waited) == 3


def test_medians_rates_and_ratios_by_hand():
    assert measure.spread([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)
    assert measure.rates([0.5, 2.0, 1.0], units=10) == (10.0, 5.0, 20.0)
    # Round by round: the machine was four times as slow in the second, and the ratio is the same.
    assert measure.ratios([3.0, 12.0], [1.0, 4.0]) == (3.0, 3.0, 3.0)
    with pytest.raises(ValueError):
        measure.ratios([1.0], [1.0, 2.0])


def sample_report():
    table = Table("Speed", [Column("who", "text"), Column("a|b", "number"), Column("x", "ratio")])
    table.add("ours", measure.Spread(1234.4, 1000.0, 2000.0), None)
    table.add("pipe | peer", 12.34, measure.Spread(0.5, 0.25, 0.75))
    facts = {
        "command": "byol-jax bench step",
        "date": "2026-11-22",
        "device": {"kind": "cpu", "platform": "cpu", "count": 1},
        "processor": "A processor",
        "cores": 2,
        "versions": {"jax": "0.10.2"},
        "seconds": 12.0,
    }
    return Report("step", [table], ["Not measured: a peer."], facts)


def test_a_report_is_unchanged_by_saving_and_loading(tmp_path):
    ours = sample_report()
    report.save(ours, tmp_path / "new" / "step.json")
    assert report.load(tmp_path / "new" / "step.json") == ours
    rows = ours.tables[0].markdown().splitlines()
    assert " ".join(rows[2].split()) == "| ours | 1,234 (1,000 to 2,000) | |"
    assert " ".join(rows[3].split()) == "| pipe \\| peer | 12.3 | 0.50 (0.25 to 0.75) |"
    assert "Not measured: a peer." in ours.markdown()


def test_a_row_has_a_cell_for_each_column():
    with pytest.raises(ValueError, match="1 cells for 2 columns"):
        Table("t", [Column("a", "text"), Column("b", "number")]).add("one")


def test_invalid_report_files_are_named(tmp_path):
    for content in ("{", "[]", '{"part": "step"}', json.dumps({"part": "x", "tables": [{}]})):
        (tmp_path / "step.json").write_text(content)
        with pytest.raises(UserError, match=r"step\.json was not written by --output"):
            report.load(tmp_path / "step.json")


def test_the_page_gets_its_tables_and_keeps_its_prose(tmp_path):
    results, text = tmp_path / "results", "A\n<!-- bench: gpu/step -->\nold\n<!-- end -->\nB\n"
    report.save(sample_report(), results / "gpu" / "step.json")
    filled = page.filled(text, results)
    assert filled == page.filled(filled, results)
    assert filled.startswith("A\n<!-- bench: gpu/step -->\n\n**Speed**") and filled.endswith(
        "\nB\n"
    )
    assert "1,234" in filled and "old" not in filled
    assert page.EMPTY in page.filled(text.replace("gpu/", "tpu/") + text, results)
    report.save(sample_report(), results / "lost.json")
    with pytest.raises(UserError, match=r"no place for .*lost\.json"):
        page.filled(text, results)


def test_the_docs_show_the_files_of_results():
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert page.filled(text, ROOT / "docs" / "results" / "bench") == text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "the first argument is one of input, step"),
        (("speed",), "the first argument is one of input, step"),
        (("step", "--against=tensorflow"), "'tensorflow' is not one of pytorch, pytorch_compile"),
        (("input", "--against=none,per_view"), "none excludes other peers"),
        (("step", "--batch_size=many"), "'many' is not a positive integer"),
        (("memory", "--against=pytorch"), "Unknown command line flag 'against'"),
    ],
)
def test_a_wrong_flag_is_one_line(arguments, message):
    done = subprocess.run(
        [sys.executable, "-m", "byol_jax.cli", "bench", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert message in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_a_peer_that_is_not_installed_is_noted(monkeypatch):
    monkeypatch.setitem(sys.modules, "lightly", None)
    monkeypatch.delitem(sys.modules, "experiments.bench.peers.lightly_loader", raising=False)
    ours = {name: peers.LOADERS[name] for name in ("per_view", "lightly")}
    modules, notes = peers.available([], ours)
    assert list(modules) == ["per_view"]
    assert len(notes) == 1 and notes[0].startswith("Not measured: lightly's BYOLTransform")
    with pytest.raises(UserError, match="--against=lightly cannot be imported"):
        peers.available(["per_view", "lightly"], peers.LOADERS)
    assert peers.available(["none"], peers.LOADERS) == ({}, [])


@pytest.fixture
def torch():
    """PyTorch with one thread: waiting threads spin and slow down tests in other processes.

    Without oneDNN, which writes beyond its memory with one thread on processors without AVX-512
    (PyTorch 2.13.0).
    """
    torch = pytest.importorskip("torch", reason="needs requirements-interop.txt")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.backends.mkldnn.enabled = False
    yield torch
    torch.backends.mkldnn.enabled = True
    torch.set_num_threads(threads)


def learner(network):
    config = settings.config(settings.Case(network, 8, "float32"))
    ours = settings.learner(config, None)
    size = config.data.image_size
    return ours, jax.eval_shape(partial(byol.init, ours, 0), abstract_batch(2, size))


def abstract_batch(count, size):
    return byol.Batch(
        jax.ShapeDtypeStruct((count, 2, size, size, 3), np.uint8),
        None,
        jax.ShapeDtypeStruct((count,), np.int32),
    )


@pytest.mark.parametrize("network", ["small", "resnet50"])
def test_pytorch_has_our_parameters(network, torch):
    from experiments.bench.peers import pytorch_byol

    ours, state = learner(network)
    with torch.device("meta"):
        online = pytorch_byol.Network(ours, is_online=True)
        target = pytorch_byol.Network(ours, is_online=False)
    for theirs, params in ((online, state.online_params), (target, state.target_params)):
        shapes = sorted(p.numel() for p in theirs.parameters())
        assert shapes == sorted(leaf.size for leaf in jax.tree.leaves(params))


def tiny_learner():
    from byol_jax import models
    from byol_jax.augment import image as image_augment

    encoder = models.ResNet8(width_multiplier=0.25, stem="imagenet", padding="torch")
    heads = {"projector": models.MLP(16, 8), "predictor": models.MLP(16, 8)}
    optimizer = optim.lars(0.2)
    policy = image_augment.IMAGENET
    return byol.make_learner(
        encoder, policy, policy.preprocess, optimizer, lambda step: 0.9, **heads
    )


def test_pytorch_computes_our_features(torch):
    from experiments.bench.peers.pytorch_networks import ResNet

    torch.manual_seed(0)
    encoder = tiny_learner().online.encoder
    theirs = ResNet(encoder)
    variables = weights.from_state_dict({k: v.numpy() for k, v in theirs.state_dict().items()})
    images = np.random.default_rng(0).normal(size=(4, 24, 24, 3)).astype(np.float32)
    apply = jax.jit(lambda v, x: encoder.apply(v, x, train=True, mutable=["batch_stats"])[0])
    with torch.no_grad():
        got = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2)))
    np.testing.assert_allclose(got, apply(variables, images), rtol=1e-5, atol=1e-5)


def follow_both(torch, ours, make_theirs, schedule):
    """Parameters after three steps of our optimizer, and of a peer's, which steps in place."""
    rng = np.random.default_rng(0)
    params = {
        "kernel": rng.normal(size=(3, 4)).astype(np.float32),
        "zero": np.zeros((2, 2), np.float32),
        "bias": rng.normal(size=4).astype(np.float32),
    }
    theirs = {name: torch.nn.Parameter(torch.from_numpy(p.copy())) for name, p in params.items()}
    optimizer, state = make_theirs(list(theirs.values())), ours.init(params)
    for step in range(3):
        gradients = {n: rng.normal(size=p.shape).astype(np.float32) for n, p in params.items()}
        updates, state = ours.update(gradients, state, params)
        params = jax.tree.map(np.add, params, updates)
        for name, parameter in theirs.items():
            parameter.grad = torch.from_numpy(gradients[name].copy())
        optimizer.step(schedule(step))
    return params, {name: parameter.detach().numpy() for name, parameter in theirs.items()}


def test_pytorch_lars_is_ours(torch):
    from experiments.bench.peers.pytorch_byol import Lars

    params, theirs = follow_both(
        torch, optim.lars(0.2), lambda p: Lars(p, 1.5e-6, 0.9, 1e-3), lambda step: 0.2
    )
    for name, parameter in theirs.items():
        np.testing.assert_allclose(parameter, params[name], rtol=1e-6, atol=1e-7)


def test_pytorch_adamw_is_ours(torch):
    from experiments.bench.peers.pytorch_byol import AdamW

    def schedule(step):
        return 0.01 * (step + 1)

    params, theirs = follow_both(
        torch, optim.adamw(schedule, weight_decay=0.1), lambda p: AdamW(p, decay=0.1), schedule
    )
    for name, parameter in theirs.items():
        np.testing.assert_allclose(parameter, params[name], rtol=1e-5, atol=1e-6)


def test_pytorch_views_are_the_photometric_operations(torch):
    from byol_jax.augment import image as image_augment
    from experiments.bench.peers import pytorch_views

    rng = np.random.default_rng(0)
    image, amounts = (rng.uniform(size=n).astype(np.float32) for n in ((3, 24, 24), 4))
    order, sigma = np.arange(4, dtype=np.float32), np.float32(1.3)
    batch = torch.from_numpy(image)[None]
    drawn, sigmas = torch.from_numpy(amounts)[:, None], torch.full((1,), float(sigma))
    jittered = jax.jit(lambda x: image_augment.jitter(x, amounts, order, image_augment.View()))(
        image
    )
    for ours, theirs in (
        (jittered, pytorch_views.jitter(batch, drawn, image_augment.View())),
        (image_augment.blur(image, sigma, 4.0), pytorch_views.blur(batch, sigmas, 4.0)),
        (image_augment.to_gray(image), pytorch_views.gray(batch).expand_as(batch)),
    ):
        np.testing.assert_allclose(theirs[0], ours, atol=2e-6)


def test_a_step_of_pytorch_learns_and_the_target_follows(torch):
    from experiments.bench.peers.pytorch_byol import Step

    torch.manual_seed(0)
    batch = np.random.default_rng(0).integers(0, 256, (8, 2, 24, 24, 3), np.uint8)
    step = Step(tiny_learner(), batch, "float32", compiled=False, rate=5.0, tau=0.5)
    xi, theta = step.pairs[0]
    before = xi.clone()
    first = step().item()
    torch.testing.assert_close(xi, 0.5 * before + 0.5 * theta.detach())
    losses = [step().item() for _ in range(9)]
    assert 0 < first < 8 and np.mean(losses[-3:]) < 0.8 * first


def test_the_peers_make_views_like_ours(tmp_path):
    paths = photographs.draw(tmp_path, 16)
    from byol_jax.data._tensorflow import tf
    from experiments.bench.peers import tf_per_view

    tf.random.set_seed(0)
    source = data.open_source(f"folder:{tmp_path}", "train")
    assert input_part.jpegs(source) == paths
    ours = np.concatenate([batch.examples for batch in input_part.ours(source, 32, 16)(8)])
    ours = ours.swapaxes(0, 1) / np.float32(255)
    theirs = np.concatenate(list(tf_per_view.batches(paths, 32, 16, 8)), axis=1)
    assert ours.shape == theirs.shape == (2, 128, 32, 32, 3) and theirs.dtype == np.float32
    for statistic in (np.mean, np.std):
        assert abs(statistic(ours) - statistic(theirs)) < 0.02, statistic.__name__
    # Crops of equal size would vary less in roughness.
    rough = [np.abs(np.diff(views, axis=2)).mean((2, 3, 4)).std() for views in (ours, theirs)]
    assert rough[0] == pytest.approx(rough[1], rel=0.2)


def test_a_turn_reads_a_loader_to_its_end():
    events = []

    def batches(count):
        events.append(count)
        yield from range(count)
        events.append("end")

    turn = input_part.make_turn(batches, batch_size=4, seconds=1e-6)
    turn()
    assert events[1::2] == ["end"] * 2
    assert events[-2] >= input_part.UNTIMED + input_part.FEWEST_BATCHES and events[-2] % 2 == 0


def test_a_race_has_the_steps_that_fit():
    def train(steps, is_trial):
        lengths.append((steps, is_trial))
        return race.Result(5 + 0.1 * (steps - 1), steps, 5.0, [(0.0, 0.1)], 0.5)

    lengths = []
    assert race.race(train, minutes=1).steps == round((0.97 * 60 - 5) / 0.1)
    assert lengths == [(race.TRIAL_STEPS, True), (round((0.97 * 60 - 5) / 0.1), False)]
    with pytest.raises(UserError, match=r"--minutes=0\.1 is too short"):
        race.race(train, minutes=0.1)


def test_a_race_reads_the_lines_of_pretrain(capsys):
    progress = console.Progress(total_steps=100)
    progress.report(40, {"loss": 1.0, "images_per_second": 900.0, "knn_test_top1": 0.25}, 4.0)
    found = race.LOGGED.match(capsys.readouterr().out)
    assert found[1] == "0.25"


def test_a_race_is_drawn(tmp_path):
    result = race.Result(60.0, 100, 5.0, [(10.0, 0.1), (60.0, 0.3)], 0.4)
    race.draw(tmp_path / "new" / "race.png", {"byol_jax": result, "PyTorch": result}, "a title")
    assert (tmp_path / "new" / "race.png").read_bytes().startswith(b"\x89PNG")


def test_files_that_the_peers_cannot_read_are_named(tmp_path):
    photographs.draw(tmp_path, 2)
    (tmp_path / "0001.jpg").rename(tmp_path / "0001.png")
    source = data.open_source(f"folder:{tmp_path}", "train")
    with pytest.raises(UserError, match=r"0001\.png is not a JPEG"):
        input_part.jpegs(source)
    with pytest.raises(UserError, match="fewer than 64 images"):
        input_part.ours(source, 32, 64)


def test_residuals_by_hand():
    import flax.linen as nn

    from byol_jax import models
    from byol_jax.augment import image as image_augment

    class Flat(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x.reshape(len(x), -1)

    heads = {"projector": models.MLP(output_size=6, layers=1)}
    policy, optimizer = image_augment.CIFAR10, optim.sgd(0.1)
    ours = byol.make_learner(
        Flat(), policy, policy.preprocess, optimizer, lambda step: 0.9, predictor=None, **heads
    )
    batch = abstract_batch(5, 4)
    state = jax.eval_shape(partial(byol.init, ours, 0), batch)
    found = sorted(leaf.shape for leaf in memory.residuals(ours, state, batch))
    assert found.count((5, 48)) == 2, "the input of the only layer, for each view"
    assert memory.num_bytes(batch) == 2 * 5 * 48 + 4 * 5
