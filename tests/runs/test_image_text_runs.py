"""Images with texts through a run's life: training, resuming, evaluation, export, and mistakes."""

import functools
import json

import flax.linen as nn
import jax
import numpy as np
import pytest
import resuming
from absl import flags
from commands import imported
from PIL import Image

import byol_jax
from byol_jax.data.text import first_tokens
from byol_jax.errors import CheckpointError, ConfigError, DataError
from byol_jax.evaluate.cross_modal import cross_modal
from byol_jax.export import stablehlo
from byol_jax.presets import image_text_small
from byol_jax.runs import build, kinds
from byol_jax.runs import config as config_lib
from byol_jax.runs import encoder as encoder_lib
from byol_jax.runs import run as run_lib
from byol_jax.runs.resolve import resolve
from byol_jax.train import loop

pytest.importorskip("tokenizers")
COLOURS = {"red": (200, 20, 20), "blue": (20, 20, 200)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Red and blue squares."""
    folder, rng = tmp_path_factory.mktemp("pairs"), np.random.default_rng(0)
    for split, count in (("train", 16), ("test", 8)):
        rows = []
        for i in range(count):
            colour = [*COLOURS][i % 2]
            pixels = np.array(COLOURS[colour]) + rng.integers(-20, 20, size=(12, 16, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{split}{i}.png")
            text = f"a {colour} one, {rng.choice(['big', 'small', 'old', 'new'])}"
            rows.append({"image": f"{split}{i}.png", "text": text, "label": colour})
        rows[2]["image"] = rows[0]["image"]  # as real data have it
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def config_for(folder):
    config = image_text_small.get_config()
    config.steps, config.batch_size = 4, 8
    config.data.source, config.data.test_split = f"image_text:{folder}", "test"
    config.data.decode_size, config.data.image_size = 10, 8
    config.data.length, config.data.vocabulary_size = 6, 100
    config.encoder.name, config.encoder.stem = "convnet", None
    config.encoder.width_multiplier = None
    config.encoder.channels, config.encoder.features = (4,), 5
    config.text_encoder.width, config.text_encoder.heads = 8, 2
    config.embedding_size = 6
    config.views.view1.jitter_prob = 0.0  # takes time to compile
    config.heads.hidden_size, config.heads.output_size = 8, 4
    config.log_every_steps = config.checkpoint.every_steps = 2
    config.evaluation.every_steps = 4
    return config


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    config, workdir = config_for(folder), tmp_path_factory.mktemp("run")
    assert loop.train(config, workdir)
    return config, workdir, byol_jax.load(workdir)


@pytest.fixture(scope="module")
def pairs(folder):
    """The test pairs as a user has them."""
    rows = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()]
    images = np.stack([np.asarray(Image.open(folder / row["image"]))[2:10, 4:12] for row in rows])
    return {"image": images, "text": [row["text"] for row in rows]}


def test_a_run_resumes_to_the_bit(run, tmp_path, capsys):
    resuming.check(run, tmp_path, capsys, last_step=4)


def test_exports_have_the_same_features(run, pairs, tmp_path):
    _, _, model = run
    features = model.embed(pairs, batch_size=8)
    assert model.project(pairs).shape == model.predict(pairs).shape == (8, 4)
    record = model.config
    pixels = (pairs["image"] / 255 - np.array(record["mean"])) / np.array(record["std"])
    tokens = first_tokens(tuple(record["vocabulary"]), pairs["text"], 6)
    view = {"image": pixels.astype(np.float32), "text": tokens}
    apply = jax.jit(functools.partial(model.module.apply, train=False))
    np.testing.assert_allclose(features, apply(model.variables, view), atol=1e-5)
    text = model.embed({"text": pairs["text"]}, batch_size=8)
    image = model.embed({"image": pairs["image"]}, batch_size=8)
    assert text.shape == (8, 6)
    np.testing.assert_allclose(features, (text + image) / 2, atol=1e-5)
    encoder_lib.save(model, tmp_path / "own")
    opened = byol_jax.load(tmp_path / "own")
    np.testing.assert_array_equal(opened.embed(pairs, batch_size=8), features)
    with pytest.raises(CheckpointError, match=r"takes several arrays \(image, text\)"):
        stablehlo.save(model, tmp_path / "hlo")


IMAGES = np.zeros((2, 8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (IMAGES, r'embed takes \{"image": images, "text": texts\}, or one of them'),
        ({"picture": IMAGES}, "or one of them"),
        ({}, "or one of them"),
        ({"image": IMAGES.astype(float)}, r"takes uint8 images .*not float64 \(2, 8, 8, 3\)"),
        ({"image": [IMAGES[0], IMAGES[0, 1:]]}, "was given images of several sizes"),
        ({"image": IMAGES, "text": ["one"]}, "different numbers of images and texts"),
        ({"text": "one"}, "embed takes a list of strings"),
        ({"text": []}, "was given 0 pairs"),
    ],
)
def test_unusable_inputs_are_one_line(run, given, message):
    with pytest.raises(DataError, match=message):
        run[2].embed(given)


def evaluate(*arguments):
    with imported("evaluate") as command:
        flags.FLAGS.unparse_flags()
        flags.FLAGS(["evaluate", *arguments])
        command.main()


def test_the_command_evaluates_it(run, capsys):
    _, workdir, model = run
    evaluate(f"--checkpoint={workdir}", "--protocol=knn,logistic,cross_modal")
    assert "cross_modal on image_text:" in capsys.readouterr().out
    found = json.loads((workdir / "eval" / "logistic.json").read_text())["top1"]
    rows = {f"{name}{part}" for name in ("byol", "random") for part in ("", ", image", ", text")}
    assert {*found} == {*rows, "raw", "raw, image", "raw, text"}
    assert found["raw, image"] == found["raw, text"] == 1  # red and blue
    report = json.loads((workdir / "eval" / "cross_modal.json").read_text())
    assert report["test_examples"] == 8
    ways = ("image -> text", "text -> image")
    assert {*report["top1"]} == {f"{n}, {way}" for n in ("byol", "random") for way in ways} | {
        "chance"
    }
    # Of 8 queries, two have an identical image, and some an identical text.
    assert report["details"]["chance"]["recall"]["1"] > 1 / 8

    # The query's prediction by the online network, and projections by the target network.
    config, state, learner = run_lib.read(workdir).config, model.state, model.learner
    source = kinds.of(config).open_split(config, "test")
    ((examples, _),) = kinds.of(config).eval_batches(config, source, 8, None, None)
    q = model._infer({"image": examples["image"]}).prediction
    variables = {"params": state.target_params, "batch_stats": state.target_stats}
    target = jax.jit(functools.partial(learner.target.apply, train=False))
    z = target(variables, {"text": examples["text"]}).projection
    ids = (
        np.unique(examples[name].reshape(8, -1), axis=0, return_inverse=True)[1]
        for name in ("image", "text")
    )
    want = cross_modal(np.asarray(q), np.asarray(z), *ids)
    assert report["details"]["byol, image -> text"] == json.loads(json.dumps(want))


def test_info_nce_needs_no_labels(folder, tmp_path, capsys):
    for split in ("train", "test"):
        rows = [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]
        rows = [{key: row[key] for key in ("image", "text")} for row in rows]
        rows[1]["image"] = "missing.png"
        (folder / f"plain_{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = config_for(folder)
    config.crop.area_min = 1.0
    config.views.view2.span_share = config.views.view2.delete_prob = 0.0
    config.objective.name, config.steps, config.evaluation.every_steps = "info_nce", 2, 0
    config.data.train_split, config.data.test_split = "plain_train", "plain_test"
    with pytest.raises(DataError, match=r"line 2 of .* its image missing\.png does not exist"):
        loop.train(config, tmp_path / "error")
    config.data.on_decode_error = "skip"
    assert loop.train(config, tmp_path / "run")
    lines = (tmp_path / "run" / "decode_errors.jsonl").read_text().splitlines()
    assert lines and all("line 2 of" in json.loads(line)["image"] for line in lines)
    protocols = "--protocol=cross_modal,label_free"
    evaluate(f"--checkpoint={tmp_path / 'run'}", protocols, "--baselines=none")
    assert "left out: line 2 of" in capsys.readouterr().out
    report = json.loads((tmp_path / "run" / "eval" / "label_free-skip.json").read_text())
    assert report["details"]["byol"]["lidar"] > 0
    report = json.loads((tmp_path / "run" / "eval" / "cross_modal-skip.json").read_text())
    assert report["test_examples"] == 7 and len(report["left_out"]) == 2  # one of each split
    with pytest.raises(DataError, match="has no labels to evaluate on"):
        evaluate(f"--checkpoint={tmp_path / 'run'}", "--protocol=knn,cross_modal")
    (folder / "plain_gone.jsonl").write_text('{"image": "missing.png", "text": "x"}\n' * 8)
    with pytest.raises(DataError, match="plain_gone: no example can be read"):
        evaluate(
            *(f"--checkpoint={tmp_path / 'run'}", "--protocol=cross_modal"),
            *(f"--data=image_text:{folder}", "--train_split=plain_train"),
            "--test_split=plain_gone",
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.source": "text:x"}, "config.data.source=text:x must be image_text:PATH"),
        ({"data.decode_size": 7}, "config.data.decode_size=7 must be at least .*image_size=8"),
        ({"embedding_size": 0}, "config.embedding_size=0 must be at least 1"),
        ({"views.view1.pad": 8}, "config.views.view1.pad=8 must be below config.data.image_size"),
        ({"views.view2.delete_prob": 1.5}, "view2.delete_prob=1.5 must be at least 0 and at most"),
        ({"text_encoder.heads": 3}, "config.text_encoder.heads=3 must divide width=8"),
        ({"text_encoder.name": "no"}, "config.text_encoder.name='no' is not one of"),
        ({"text_encoder.name": "conv1d"}, "config.text_encoder.name=conv1d cannot take texts of"),
        ({"encoder.name": "dense"}, "config.encoder.channels=.* is not a setting of dense"),
        ({"encoder.channels": (4,) * 4}, "config.encoder.name=convnet cannot take images of shape"),
        ({"target.rule": "frozen", "target.encoder.name": "resnet8"}, "is not for pairs of images"),
        ({"data.train_split": "dev"}, "has no split 'dev' \\(it has .*test, train\\)"),
    ],
)
def test_a_mistake_is_one_line(folder, tmp_path, changes, message):
    config = config_for(folder)
    if changes.get("text_encoder.name") == "conv1d":
        for key in ("width", "heads", "depth"):
            config.text_encoder[key] = None
    config.update_from_flattened_dict(changes)
    with pytest.raises((ConfigError, DataError), match=message) as raised:
        loop.train(config, tmp_path)
    assert "\n" not in str(raised.value)


class OwnTextEncoder(nn.Module):
    """A user's encoder of texts, which the data's number of tokens completes."""

    num_tokens: int | None = None
    size: int = 4

    @nn.compact
    def __call__(self, tokens):
        return nn.Embed(self.num_tokens, self.size)(tokens).mean(axis=1)


def test_an_encoder_of_texts_may_be_the_users_own():
    config = config_for("x")
    config_lib.use_encoder(config, f"{__name__}:OwnTextEncoder", "text_encoder", size=3)
    resolved, _ = resolve(config)
    module = build.encoder(resolved)
    assert module.encoders["text"] == OwnTextEncoder(num_tokens=1, size=3)
    assert module.encoders["image"].features == 5 and module.width == 6
    with pytest.raises(ConfigError, match=r"config\.text_encoder\.size='x' is of another type"):
        config_lib.use_encoder(config, f"{__name__}:OwnTextEncoder", "text_encoder", size="x")


def test_another_name_of_the_encoder_of_texts_opens_the_presets_settings():
    config = config_for("x")
    preset = config.copy_and_resolve_references()
    config.text_encoder.name = "conv1d"
    config_lib.use_other_encoder(config, preset)
    assert config.text_encoder.width is None and config.text_encoder.depth is None
    assert config.encoder.features == 5
