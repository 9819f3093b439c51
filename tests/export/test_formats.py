"""StableHLO, SavedModel and Orbax exports compute what the encoder computes."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from encoders import random_encoder, tiny_convnext, tiny_vit

import byol_jax
from byol_jax.errors import UserError
from byol_jax.export import inference, orbax, savedmodel, stablehlo
from byol_jax.runs import encoder as encoder_lib
from byol_jax.runs import paths

ROOT = Path(__file__).parents[2]
TOLERANCE = 1e-5  # of the largest feature; another order of summation gives 1e-6


def images_for(encoder, n=2, seed=0):
    shape = inference.input_spec(encoder, n).shape
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def run(module, directory, monkeypatch, **names):
    """The names of the lines in config.json that load the export, run unchanged in its folder."""
    lines = json.loads((directory / "config.json").read_text())["load"]
    assert "\n".join(lines) + "\n" == module.LOAD
    monkeypatch.chdir(directory)
    exec(module.LOAD, names)
    return names


def assert_close(got, want, tolerance=TOLERANCE):
    got = np.asarray(got)
    assert got.dtype == np.float32 and got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * np.abs(want).max())


ENCODERS = {
    "resnet10": lambda: random_encoder("resnet10", width_multiplier=0.25),
    "vit": lambda: tiny_vit(positions="learned"),
    "convnext": tiny_convnext,
}


@pytest.fixture(scope="module", params=sorted(ENCODERS))
def encoder(request):
    return ENCODERS[request.param]()


@pytest.fixture(scope="module")
def features(encoder):
    return encoder.embed(images_for(encoder))


@pytest.fixture(scope="module")
def classifier(small):
    """The small encoder with a classifier of three classes."""
    config = small.config | {"class_names": ["ant", "bee", "cat"]}
    kernel = np.random.default_rng(0).standard_normal((small.embed(images_for(small)).shape[1], 3))
    params = {
        "encoder": small.variables["params"],
        "head": {"kernel": kernel.astype(np.float32), "bias": np.zeros(3, np.float32)},
    }
    stats = {"encoder": small.variables["batch_stats"]}
    return encoder_lib.Classifier(config, {"params": params, "batch_stats": stats})


def test_a_classifier_predicts_from_its_encoders_features(classifier, small):
    images = images_for(small)
    logits = small.embed(images) @ classifier.variables["params"]["head"]["kernel"]
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(classifier.probabilities(images), shares, rtol=1e-3, atol=1e-5)
    names = np.array(classifier.config["class_names"])
    assert classifier.predict(images) == names[shares.argmax(axis=1)].tolist()
    np.testing.assert_array_equal(classifier.embed(images), small.embed(images))


def test_a_classifier_is_exported_with_its_probabilities(classifier, tmp_path, monkeypatch):
    images = images_for(classifier)
    want = classifier.probabilities(images)
    encoder_lib.save(classifier, tmp_path / "ours")
    loaded = byol_jax.load(tmp_path / "ours")
    assert loaded.predict(images) == classifier.predict(images)
    np.testing.assert_array_equal(loaded.probabilities(images), want)
    stablehlo.save(classifier, tmp_path / "stablehlo")
    record = json.loads((tmp_path / "stablehlo" / "config.json").read_text())
    assert record["output"] == {"name": "probabilities", "dtype": "float32", "shape": ["n", 3]}
    assert record["class_names"] == ["ant", "bee", "cat"]
    monkeypatch.chdir(tmp_path / "stablehlo")
    names = {"images": images}
    exec("\n".join(record["load"]), names)
    assert_close(names["probabilities"], want)


@pytest.mark.parametrize("names", [[], "ant", [1, 2, 3], ["ant"]])
def test_garbled_class_names_are_one_line(classifier, tmp_path, names):
    encoder_lib.save(classifier, tmp_path)
    record = json.loads((tmp_path / "config.json").read_text()) | {"class_names": names}
    (tmp_path / "config.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"class_names|does not fit"):
        byol_jax.load(tmp_path)


@pytest.fixture(scope="module")
def small():
    """Another stem, padding and number of channels than the ResNets above."""
    return random_encoder("resnet8", image_size=16, padding="same", stem="strided", channels=1)


def test_stablehlo_needs_only_jax(encoder, features, tmp_path):
    stablehlo.save(encoder, tmp_path / "out")
    np.save(tmp_path / "images.npy", images_for(encoder))
    program = (
        "import sys\n"
        "for name in ('byol_jax', 'flax', 'tensorflow'):\n"
        "    sys.modules[name] = None\n"
        "import numpy as np\n"
        "images = np.load('../images.npy')\n"
        f"{stablehlo.LOAD}"
        "np.save('../features.npy', features)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path / "out",
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert_close(np.load(tmp_path / "features.npy"), features)


def test_savedmodel_is_served_by_tensorflow(encoder, features, tmp_path, monkeypatch):
    tf = pytest.importorskip("tensorflow")
    savedmodel.save(encoder, tmp_path)
    names = run(savedmodel, tmp_path, monkeypatch, images=images_for(encoder))
    assert_close(names["features"], features)
    serve = tf.saved_model.load(str(tmp_path)).signatures["serving_default"]
    (spec,) = serve.structured_input_signature[1].values()
    assert spec.name == "images" and spec.dtype == tf.uint8
    assert spec.shape.as_list() == [None, *inference.input_spec(encoder).shape[1:]]


def test_orbax_restores_every_array(encoder, tmp_path, monkeypatch):
    orbax.save(encoder, tmp_path)
    variables = run(orbax, tmp_path, monkeypatch)["variables"]
    jax.tree.map(np.testing.assert_array_equal, variables, dict(encoder.variables))


@pytest.mark.parametrize("module", [stablehlo, savedmodel], ids=lambda m: m.FORMAT)
def test_other_stems_and_paddings_and_any_number_of_images(small, tmp_path, monkeypatch, module):
    module.save(small, tmp_path)
    for n in (1, 5):
        names = run(module, tmp_path, monkeypatch, images=images_for(small, n))
        assert_close(names["features"], small.embed(images_for(small, n)))


def test_our_own_format_gives_the_same_embeddings(encoder, features, tmp_path):
    encoder_lib.save(encoder, tmp_path)
    found = byol_jax.load(tmp_path)
    assert found.config["encoder"] == json.loads(json.dumps(encoder.config["encoder"]))
    np.testing.assert_array_equal(found.embed(images_for(encoder)), features)


def test_an_encoder_trained_in_bfloat16_is_exported_in_float32(tmp_path, monkeypatch):
    rounded, exact = (
        random_encoder("resnet8", image_size=32, stem="strided", dtype=dtype)
        for dtype in ("bfloat16", "float32")
    )
    images = images_for(rounded)
    stablehlo.save(rounded, tmp_path)
    got = run(stablehlo, tmp_path, monkeypatch, images=images)["features"]
    assert_close(got, exact.embed(images))
    assert_close(got, rounded.embed(images), 0.05)
    with pytest.raises(AssertionError):
        assert_close(got, rounded.embed(images), 1e-4)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float32"


def test_the_config_describes_input_and_output(small, tmp_path):
    stablehlo.save(small, tmp_path)
    record = json.loads((tmp_path / "config.json").read_text())
    assert record["format"] == "byol_jax.stablehlo.1"
    assert record["input"]["dtype"] == "uint8" and record["input"]["shape"] == ["n", 16, 16, 1]
    assert record["output"]["shape"] == ["n", small.embed(images_for(small)).shape[1]]
    assert record["platforms"] == ["cpu", "cuda", "tpu"]
    assert record["mean"] == [0.5] and record["training"] == small.config["training"]


@pytest.mark.parametrize("module", [stablehlo, savedmodel, orbax], ids=lambda m: m.FORMAT)
def test_a_folder_is_replaced_only_by_its_own_kind(small, tmp_path, module):
    module.save(small, tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    module.save(small, tmp_path / "out")
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    assert not list((tmp_path / "out").glob(".*"))
    encoder_lib.save(small, tmp_path / "own")
    before = {path: path.read_bytes() for path in (tmp_path / "own").iterdir()}
    with pytest.raises(UserError, match=r"own holds something else than an earlier export of this"):
        module.save(small, tmp_path / "own")
    assert {path: path.read_bytes() for path in (tmp_path / "own").iterdir()} == before


def test_files_without_a_config_are_not_overwritten(small, tmp_path):
    (tmp_path / "encoder.stablehlo").write_text("mine")
    with pytest.raises(UserError, match="holds something else"):
        stablehlo.save(small, tmp_path)
    assert (tmp_path / "encoder.stablehlo").read_text() == "mine"


def test_a_folder_that_cannot_be_written_is_named(small, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--output=.*file/out cannot be written \(Not a directory"):
        stablehlo.save(small, tmp_path / "file" / "out")
    with pytest.raises(UserError, match=r"--output=.*file cannot be written \(File exists"):
        stablehlo.save(small, tmp_path / "file")


def test_a_failure_changes_nothing(small, tmp_path):
    def fail(directory):
        with paths.write_folder(directory, {"format": stablehlo.FORMAT}) as new:
            (new / "encoder.stablehlo").write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="No space left on device"):
        fail(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    stablehlo.save(small, tmp_path / "old")
    before = {path: path.read_bytes() for path in (tmp_path / "old").iterdir()}
    with pytest.raises(UserError, match="No space left on device"):
        fail(tmp_path / "old")
    assert {path: path.read_bytes() for path in (tmp_path / "old").iterdir()} == before


def test_leftovers_of_a_killed_export_do_not_prevent_the_next(small, tmp_path):
    (tmp_path / ".export-killed" / "new").mkdir(parents=True)
    stablehlo.save(small, tmp_path)
    assert (tmp_path / "encoder.stablehlo").is_file()


def test_weights_above_the_limit_of_a_file_are_refused(small, tmp_path, monkeypatch):
    monkeypatch.setattr(inference, "MAX_WEIGHT_BYTES", 1000)
    with pytest.raises(UserError, match="use --format=byol_jax, orbax or savedmodel"):
        stablehlo.save(small, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_tensorflow_is_named(small, tmp_path):
    own, out = tmp_path / "own", tmp_path / "out"
    encoder_lib.save(small, own)
    program = (
        "import sys, pathlib\n"
        "sys.modules['tensorflow'] = None\n"
        "import byol_jax\n"
        "from byol_jax.export import savedmodel\n"
        "from byol_jax.errors import UserError\n"
        "try:\n"
        f"    savedmodel.save(byol_jax.load({str(own)!r}), pathlib.Path({str(out)!r}))\n"
        "except UserError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert "pip install 'byol_jax[train]'" in done.stdout, done.stderr
    assert not out.exists()


@pytest.mark.parametrize("name", ["stablehlo", "savedmodel", "onnx", "orbax", "features"])
def test_the_documentation_has_the_lines_that_load(name):
    load = importlib.import_module(f"byol_jax.export.{name}").LOAD
    assert f"```python\n{load}```" in (ROOT / "docs" / "export.md").read_text()


def call(*flags):
    command = [sys.executable, "-m", "byol_jax.cli", "export", *map(str, flags)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_export_from_the_command_line(small, tmp_path):
    encoder_lib.save(small, tmp_path / "own")
    out = tmp_path / "out"
    done = call(f"--checkpoint={tmp_path / 'own'}", f"--output={out}", "--format=orbax")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{out}: config.json, variables: encoder of resnet8, step 0\n"
    copy = tmp_path / "copy"
    done = call(f"--checkpoint={tmp_path / 'own'}", f"--output={copy}")
    assert done.returncode == 0, done.stderr
    images = images_for(small)
    np.testing.assert_array_equal(byol_jax.load(copy).embed(images), small.embed(images))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--format=coreml"], "--format=coreml is not one of byol_jax, torchvision,"),
        (["--what=logits"], "--what=logits is neither encoder nor features"),
        (["--what=features", "--format=onnx"], "features are always written as features.npz"),
        (["--data=embedded"], "--data is for features"),
        (["--split=test", "--format=onnx"], "--split is for features"),
        (["--on_decode_error=skip"], "--on_decode_error is for features"),
    ],
)
def test_flags_that_exclude_each_other(tmp_path, flags, message):
    done = call(f"--checkpoint={tmp_path}", f"--output={tmp_path / 'out'}", *flags)
    assert done.returncode == 1 and message in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
