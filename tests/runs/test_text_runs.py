"""Texts through a run's whole life: training, resuming, evaluation, export, and mistakes."""

import json
import shutil

import flax.linen as nn
import numpy as np
import pytest
import resuming
from absl import flags
from commands import imported

import byol_jax
from byol_jax.data.text import first_tokens
from byol_jax.errors import ConfigError, DataError
from byol_jax.export import stablehlo
from byol_jax.presets import text_small
from byol_jax.runs import build, kinds
from byol_jax.runs import config as config_lib
from byol_jax.runs import encoder as encoder_lib
from byol_jax.runs import run as run_lib
from byol_jax.runs.resolve import resolve
from byol_jax.train import loop

pytest.importorskip("tokenizers")
ANIMALS, COLOURS = ("cat", "dog", "cow", "hen"), ("red", "blue", "green", "pink")


def sentence(label, rng):
    words = [str(rng.choice((ANIMALS, COLOURS)[label])) for _ in range(rng.integers(2, 7))]
    return " ".join(["the", *words]) + "."


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes, one of them about animals and one about colours."""
    folder, rng = tmp_path_factory.mktemp("texts"), np.random.default_rng(0)
    for split, count in (("train", 24), ("test", 12)):
        rows = [{"text": sentence(i % 2, rng), "label": "ac"[i % 2]} for i in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def config_for(folder):
    config = text_small.get_config()
    config.steps, config.batch_size = 4, 8
    config.data.source, config.data.test_split = f"text:{folder}", "test"
    config.data.length, config.data.vocabulary_size = 6, 100
    config.encoder.width, config.encoder.heads, config.encoder.depth = 8, 2, 1
    config.heads.hidden_size, config.heads.output_size = 8, 4
    config.log_every_steps = config.checkpoint.every_steps = 2
    config.evaluation.every_steps = 4
    return config


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    config, workdir = config_for(folder), tmp_path_factory.mktemp("run")
    assert loop.train(config, workdir)
    return config, workdir, byol_jax.load(workdir)


def texts(folder, split="test"):
    lines = (folder / f"{split}.jsonl").read_text().splitlines()
    return [json.loads(line)["text"] for line in lines]


def test_a_run_resumes_to_the_bit(run, tmp_path, capsys):
    resuming.check(run, tmp_path, capsys, last_step=4)


def test_exports_have_the_same_features(run, folder, tmp_path, monkeypatch):
    _, _, model = run
    given = texts(folder)
    features = model.embed(given, batch_size=5)
    tokens = first_tokens(tuple(model.config["vocabulary"]), given, 6)
    assert model.config["vocabulary"][2:] and (tokens[:, -1] == 0).any()
    want = model.module.apply(model.variables, tokens, train=False)
    np.testing.assert_allclose(features, want, atol=1e-5)
    encoder_lib.save(model, tmp_path / "own")
    opened = byol_jax.load(tmp_path / "own")
    np.testing.assert_array_equal(opened.embed(given, batch_size=5), features)
    assert opened.config["vocabulary"] == model.config["vocabulary"]
    stablehlo.save(model, tmp_path / "hlo")
    record = json.loads((tmp_path / "hlo" / "config.json").read_text())
    assert record["input"]["dtype"] == "int32" and record["input"]["shape"] == ["n", 6]
    assert record["input"]["meaning"].startswith("numbers of tokens of the vocabulary")
    monkeypatch.chdir(tmp_path / "hlo")
    names = {"texts": tokens}
    exec("\n".join(record["load"]), names)
    np.testing.assert_allclose(names["features"], features, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("a text", "embed takes a list of strings"),
        (np.zeros((2, 6), np.int32), "embed takes a list of strings"),
        (["a", 3], "embed takes a list of strings"),
        (5, "embed takes a list of strings"),
        (["a", "\ud800"], "embed was given a string that is no Unicode"),
        ([], "was given 0 texts"),
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


def test_the_command_evaluates_it(run, folder, tmp_path, capsys):
    _, workdir, model = run
    protocols = "--protocol=knn,logistic,retrieval,label_free"
    evaluate(f"--checkpoint={workdir}", protocols, f"--against={workdir}")
    assert "12 texts" in capsys.readouterr().out
    found = json.loads((workdir / "eval" / "knn.json").read_text())["top1"]
    assert {*found} == {"byol", "random", "token counts", str(workdir)}
    assert found["token counts"] == 1 and found[str(workdir)] == found["byol"]
    other = encoder_lib.Encoder(dict(model.config), model.variables)
    other.config["vocabulary"] = other.config["vocabulary"][:2] + other.config["vocabulary"][:1:-1]
    encoder_lib.save(other, tmp_path / "other")
    with pytest.raises(ConfigError, match="has another vocabulary than the run") as raised:
        evaluate(f"--checkpoint={workdir}", "--protocol=knn", f"--against={tmp_path / 'other'}")
    assert len(str(raised.value)) < 300


def test_the_baseline_counts_tokens(run):
    config = run_lib.read(run[1]).config
    got = kinds.get("text").raw(config, np.array([[3, 5, 3, 0], [4, 0, 0, 0], [0, 0, 0, 0]]))
    want = np.zeros((3, len(config.data.vocabulary)))
    want[0, [3, 5]] = np.log([3, 2]) / np.hypot(*np.log([3, 2]))
    want[1, 4] = 1
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_a_long_vocabulary_does_not_fill_a_message(run, tmp_path):
    config, workdir, model = run
    copy = shutil.copytree(workdir, tmp_path / "copy")
    changed = config.copy_and_resolve_references()
    changed.data.vocabulary = (*model.config["vocabulary"], "new")
    with pytest.raises(
        ConfigError, match=r"config\.data\.vocabulary \(\('\[PAD\]'.*\.\.\. ->"
    ) as e:
        loop.train(changed, copy)
    assert len(str(e.value)) < 1000


def test_bad_lines_are_counted_and_a_start_brings_its_vocabulary(run, tmp_path):
    rows = [json.dumps({"text": "gnu yak", "label": i % 2}) for i in range(24)]
    lines = "\n".join(rows).encode()
    (tmp_path / "train.jsonl").write_bytes(lines + b'\n{"text": "\xff"}')
    config = config_for(tmp_path)
    config.data.test_split, config.evaluation.every_steps = "", 0
    with pytest.raises(DataError, match=r"line 25 of .*\.jsonl cannot be read: it is not UTF-8"):
        loop.train(config, tmp_path / "error")
    config.data.on_decode_error = "skip"
    config.init.encoder = str(run[1])
    assert loop.train(config, tmp_path / "skip")
    rows = (tmp_path / "skip" / "decode_errors.jsonl").read_text().splitlines()
    assert rows and all("line 25 of" in json.loads(row)["image"] for row in rows)
    record = byol_jax.load(tmp_path / "skip").config
    assert record["vocabulary"] == run[2].config["vocabulary"]  # and not that of these texts


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.source": "npz:x"}, "config.data.source=npz:x must be text:PATH"),
        ({"data.vocabulary_size": 10}, "config.data.vocabulary_size=10 must be at least 100"),
        ({"data.vocabulary": ("a", "b")}, "config.data.vocabulary must be different tokens"),
        ({"data.length": 0}, "config.data.length=0 must be at least 1"),
        ({"views.view1.delete_prob": 1.5}, "delete_prob=1.5 must be at least 0 and at most 1"),
        ({"views.view2.span_share": 1.5}, "span_share=1.5 must be at least 0 and at most 1"),
        ({"encoder.heads": 3}, "config.encoder.heads=3 must divide width=8"),
        ({"encoder.name": "resnet8"}, "config.encoder.name=resnet8 cannot take texts of shape"),
        ({"data.train_split": "dev"}, "has no split 'dev' \\(it has test, train\\)"),
    ],
)
def test_a_mistake_is_one_line(folder, tmp_path, changes, message):
    config = config_for(folder)
    if "encoder.name" in changes:
        for key in ("width", "heads", "depth"):
            config.encoder[key] = None
    config.update_from_flattened_dict(changes)
    with pytest.raises((ConfigError, DataError), match=message) as raised:
        loop.train(config, tmp_path)
    assert "\n" not in str(raised.value)


def test_pictures_show_the_words(run):
    model = run[2]
    words = model.config["vocabulary"]
    numbers = [words.index(token) for token in ("the", "cat", ".")]
    examples = np.array([[*numbers, 0, 0, 0], [numbers[1]] * 6], np.int32)
    policy, views = model.learner.augment, (examples, examples[::-1])
    rows = kinds.get("text").pictures(policy, examples, views)
    assert [*rows] == ["text", "view 1", "view 2"]
    assert len({picture.shape for picture in rows.values()}) == 1
    np.testing.assert_array_equal(rows["text"], rows["view 1"])
    ink = [(1 - rows[name]).sum(axis=(1, 2, 3)) for name in ("text", "view 2")]
    assert np.argmax(ink[0]) == 1 and np.argmax(ink[1]) == 0  # the longer text has more of it


class OwnEncoder(nn.Module):
    """A user's encoder of texts, which the data's number of tokens completes."""

    num_tokens: int | None = None

    @nn.compact
    def __call__(self, tokens):
        return nn.Embed(self.num_tokens, 4)(tokens).mean(axis=1)


def test_an_encoder_of_the_users_own_gets_the_number_of_tokens(run):
    config = run_lib.read(run[1]).config.copy_and_resolve_references()
    config_lib.use_encoder(config, f"{__name__}:OwnEncoder")
    for vocabulary, count in ((None, 1), (config.data.vocabulary, len(config.data.vocabulary))):
        config.data.vocabulary = vocabulary
        resolved, _ = resolve(config)
        assert build.encoder(resolved).num_tokens == count
