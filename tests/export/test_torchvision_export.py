"""torchvision and timm load the exports for them, and compute the same features."""

import json
import re
import subprocess
import sys

import flax.linen as nn
import jax
import numpy as np
import pytest
from encoders import random_encoder, tiny_convnext, tiny_vit
from torchvision_on_cpu import torch, torchvision

from byol_jax.errors import CheckpointError, UserError
from byol_jax.export import timm as timm_export
from byol_jax.export import torchvision as torchvision_export

safetensors_torch = pytest.importorskip("safetensors.torch")
timm = pytest.importorskip("timm", reason="needs requirements-interop-no-deps.txt")

SIZE = 64
IMAGES = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)
FEATURES = {"resnet18": 512, "resnet50": 2048}


@pytest.fixture(scope="module", params=sorted(FEATURES))
def encoder(request):
    return random_encoder(request.param, image_size=SIZE)


@pytest.fixture(scope="module")
def features(encoder):
    return encoder.embed(IMAGES)


@pytest.fixture(scope="module")
def small():
    return random_encoder("resnet10", image_size=SIZE)


@pytest.fixture(scope="module")
def exported(encoder, tmp_path_factory):
    directory = tmp_path_factory.mktemp("exported") / "torchvision"
    torchvision_export.save(encoder, directory)
    return directory


@pytest.fixture(scope="module")
def model_folder(encoder, tmp_path_factory):
    directory = tmp_path_factory.mktemp("exported") / "timm"
    timm_export.save(encoder, directory)
    return directory


def normalised(mean, std, images=IMAGES):
    """Images as PyTorch's networks take them."""
    x = images.astype(np.float32) / 255
    x = (x - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def run(model, mean, std, images=IMAGES):
    with torch.no_grad():
        return model.eval()(normalised(mean, std, images)).numpy()


def assert_same_features(got, want):
    assert got.shape == want.shape and got.dtype == np.float32
    assert np.median(np.std(want, axis=0)) > 0.1, "the features must tell the images apart"
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("file", ["model.safetensors", "model.pth"])
def test_torchvision_computes_the_same_features(encoder, exported, features, file):
    record = json.loads((exported / "config.json").read_text())
    name = encoder.config["encoder"]["name"]
    assert record["architecture"] == name and record["features"] == FEATURES[name]
    if file == "model.pth":
        weights = torch.load(exported / file, weights_only=True)
    else:
        weights = safetensors_torch.load_file(exported / file)
    model = getattr(torchvision.models, name)(weights=None)
    model.fc = torch.nn.Identity()
    model.load_state_dict(weights, strict=True)
    assert_same_features(run(model, record["mean"], record["std"]), features)


def test_the_lines_of_config_load_the_weights(exported, features, monkeypatch):
    record = json.loads((exported / "config.json").read_text())
    assert record["format"] == "byol_jax.torchvision.1" and record["image_size"] == SIZE
    monkeypatch.chdir(exported)
    names = {}
    exec("\n".join(record["load"]), names)
    assert not names["model"].training
    assert_same_features(run(names["model"], record["mean"], record["std"]), features)


def test_a_network_without_a_name_in_torchvision_is_loaded(small, tmp_path, monkeypatch):
    torchvision_export.save(small, tmp_path)
    record = json.loads((tmp_path / "config.json").read_text())
    monkeypatch.chdir(tmp_path)
    names = {}
    exec("\n".join(record["load"]), names)
    assert_same_features(run(names["model"], record["mean"], record["std"]), small.embed(IMAGES))


def test_the_counts_of_the_statistics_are_exported(encoder, exported):
    weights = torch.load(exported / "model.pth", weights_only=True)
    counts = {k: v for k, v in weights.items() if k.endswith("num_batches_tracked")}
    assert len(counts) == sum(name.endswith("running_var") for name in weights)
    assert all(v.dtype == torch.int64 and v.shape == () and v == 1000 for v in counts.values())


def test_timm_loads_the_folder(encoder, model_folder, features):
    model = timm.create_model(f"local-dir:{model_folder}", pretrained=True)
    config = timm.data.resolve_model_data_config(model)
    assert tuple(config["input_size"]) == (3, SIZE, SIZE) and config["crop_pct"] == 0.875
    assert config["interpolation"] == "bicubic"
    assert model.num_features == FEATURES[encoder.config["encoder"]["name"]]
    assert model.num_classes == 0
    assert_same_features(run(model, config["mean"], config["std"]), features)


def test_timms_own_network_takes_the_weights(encoder, model_folder, features):
    model = timm.create_model(encoder.config["encoder"]["name"], num_classes=0)
    weights = safetensors_torch.load_file(model_folder / "model.safetensors")
    model.load_state_dict(weights, strict=True)
    assert_same_features(run(model, encoder.config["mean"], encoder.config["std"]), features)


def test_timm_adds_a_classifier(model_folder):
    model = timm.create_model(f"local-dir:{model_folder}", pretrained=True, num_classes=10)
    weights = safetensors_torch.load_file(model_folder / "model.safetensors")
    assert torch.equal(model.layer4[1].conv2.weight, weights["layer4.1.conv2.weight"])
    assert model.eval()(torch.zeros(1, 3, SIZE, SIZE)).shape == (1, 10)


def test_timm_loads_a_resnet10(small, tmp_path):
    timm_export.save(small, tmp_path)
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    got = run(model, small.config["mean"], small.config["std"])
    assert_same_features(got, small.embed(IMAGES))


@pytest.mark.parametrize(
    ("make", "architecture", "pool"),
    [
        (tiny_vit, "vit_tiny_patch16_224", "token"),
        (lambda: tiny_vit(positions="learned", pool="mean"), "vit_tiny_patch16_224", "avg"),
        (lambda: tiny_vit(patch_size=4, image_size=16), "vit_tiny_patch16_224", "token"),
        (tiny_convnext, "convnext_tiny", "avg"),
    ],
    ids=["vit", "vit of the mean", "vit of small patches", "convnext"],
)
def test_timm_loads_a_transformer_or_convnext(make, architecture, pool, tmp_path):
    encoder = make()
    timm_export.save(encoder, tmp_path)
    record = json.loads((tmp_path / "config.json").read_text())
    assert (record["architecture"], record["global_pool"]) == (architecture, pool)
    size = encoder.config["image_size"]
    images = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), np.uint8)
    want = encoder.embed(images)
    folder = f"local-dir:{tmp_path}"
    config = timm.data.resolve_model_data_config(timm.create_model(folder, pretrained=True))
    assert tuple(config["input_size"]) == (3, size, size)
    # Also as a plain network with the same settings.
    plain = timm.create_model(architecture, num_classes=0, **record["model_args"])
    plain.load_state_dict(safetensors_torch.load_file(tmp_path / "model.safetensors"), strict=True)
    for model in (timm.create_model(folder, pretrained=True), plain):
        assert model.num_features == 24 == record["num_features"]
        got = run(model, config["mean"], config["std"], images)
        assert_same_features(got, want)
    model = timm.create_model(folder, pretrained=True, num_classes=10).eval()
    assert model(torch.zeros(1, 3, size, size)).shape == (1, 10)
    loaded = model.state_dict()
    for name, value in plain.state_dict().items():
        assert torch.equal(loaded[name], value), name


@pytest.mark.parametrize("make", [tiny_vit, tiny_convnext])
def test_transformers_and_convnexts_that_a_library_lacks_are_refused(make, tmp_path):
    encoder = make()
    kind = type(encoder.module).__name__
    with pytest.raises(UserError, match=f"no counterpart in torchvision: it is a {kind}, not a Re"):
        torchvision_export.save(encoder, tmp_path / "out")
    with pytest.raises(UserError, match="no counterpart in timm: its images have 1 channel"):
        timm_export.save(make(channels=1), tmp_path / "out")
    with pytest.raises(UserError, match="no counterpart in timm: it is a ConvNet"):
        timm_export.save(random_encoder("convnet", image_size=16), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_timm_has_a_resnet200_of_these_shapes():
    shapes = timm.create_model("resnet200", num_classes=0, device="meta").state_dict()
    with torch.device("meta"):
        block = torchvision.models.resnet.Bottleneck
        want = torchvision.models.ResNet(block, [3, 24, 36, 3]).state_dict()
    assert {k: v.shape for k, v in shapes.items()} == {
        k: v.shape for k, v in want.items() if not k.startswith("fc.")
    }


def test_the_model_card_runs(encoder, model_folder, monkeypatch):
    card = (model_folder / "README.md").read_text()
    header = card.split("---\n")[1]
    yaml = pytest.importorskip("yaml").safe_load(header)
    assert yaml["library_name"] == "timm" and "license" not in yaml
    assert "Updates: 0\n" in card and "Data: not recorded\n" in card
    monkeypatch.chdir(model_folder)
    names = {}
    (block,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    exec(block, names)
    want = (1, FEATURES[encoder.config["encoder"]["name"]])
    assert names["features"].shape == want and f"# {want}" in block
    assert names["config"]["crop_pct"] == 0.875


def test_the_model_card_tells_how_the_encoder_was_trained(small, tmp_path):
    config = {"crop": {"test_fraction": 1.0}}
    data = {"name": "folder:images/train", "num_examples": 1234}
    training = {
        "method": "BYOL",
        "step": 30,
        "total_steps": 40,
        "data": data,
        "config": config,
    }
    trained = type(small)(small.config | {"training": training}, small.variables)
    timm_export.save(trained, tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "Updates: 30 of 40\n" in card and "Data: folder:images/train, 1234 images" in card
    record = json.loads((tmp_path / "config.json").read_text())
    assert record["pretrained_cfg"]["crop_pct"] == 1.0
    assert record["training"] == training


@pytest.mark.parametrize("library", ["torchvision", "timm"])
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"padding": "same"}, "its padding is 'same', which puts the odd pixel .* would differ"),
        ({"stem": "cifar"}, "starts with the stem 'cifar'"),
        ({"stem": "strided"}, "starts with the stem 'strided'"),
        ({"width_multiplier": 2.0}, "have 128, 128, 256, 512, 1024 channels"),
        ({"channels": 1}, "its images have 1 channel"),
        ({"name": "resnet8"}, "have 16, 16, 32, 64 channels"),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_networks_that_the_library_lacks_are_refused(tmp_path, library, options, reason):
    encoder = random_encoder(**{"name": "resnet10", "image_size": 32, **options})
    save = {"torchvision": torchvision_export.save, "timm": timm_export.save}[library]
    with pytest.raises(UserError, match=f"no counterpart in {library}: .*{reason}"):
        save(encoder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_projected_first_shortcut_is_refused(small, tmp_path):
    settings = small.config["encoder"] | {"first_shortcut": True}
    encoder = type(small)(small.config | {"encoder": settings}, small.variables)
    with pytest.raises(CheckpointError, match="its first block projects the shortcut"):
        torchvision_export.save(encoder, tmp_path / "out")


def test_an_encoder_that_is_no_resnet_is_refused(small, tmp_path):
    encoder = type(small)(small.config, small.variables)
    encoder.module = nn.Dense(4)
    with pytest.raises(CheckpointError, match="it is a Dense, not a ResNet"):
        torchvision_export.save(encoder, tmp_path / "out")


SAVES = [torchvision_export.save, timm_export.save]


@pytest.mark.parametrize("save", SAVES)
def test_an_earlier_export_is_replaced_and_nothing_else(small, tmp_path, save):
    save(small, tmp_path / "out")
    before = (tmp_path / "out" / "config.json").read_bytes()
    save(small, tmp_path / "out")
    assert (tmp_path / "out" / "config.json").read_bytes() == before
    assert len(list((tmp_path / "out").iterdir())) == 3

    other = SAVES[1 - SAVES.index(save)]
    for holder in ("out", "notes", "run"):
        (tmp_path / holder).mkdir(exist_ok=True)
    (tmp_path / "notes" / "notes.txt").write_text("mine")
    (tmp_path / "run" / "config.json").write_text('{"config": {}}')
    for holder in ("out", "notes", "run"):
        held = {p.name: p.read_bytes() for p in (tmp_path / holder).iterdir()}
        with pytest.raises(UserError, match="holds something else than an earlier export"):
            other(small, tmp_path / holder)
        assert {p.name: p.read_bytes() for p in (tmp_path / holder).iterdir()} == held


def test_an_edited_model_card_is_kept(small, tmp_path, capsys):
    timm_export.save(small, tmp_path)
    timm_export.save(small, tmp_path)
    assert capsys.readouterr().out == ""
    card, weights = tmp_path / "README.md", tmp_path / "model.safetensors"
    card.write_text(card.read_text() + "License: mine.\n")
    changed = type(small)(small.config, jax.tree.map(lambda x: 2 * x, small.variables))
    timm_export.save(changed, tmp_path)
    assert "README.md differs from the new model card and is kept" in capsys.readouterr().out
    assert card.read_text().endswith("License: mine.\n")
    assert safetensors_torch.load_file(weights)["bn1.bias"][0] == pytest.approx(
        2 * small.variables["params"]["bn1"]["bias"][0]
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == [card.name, "config.json", weights.name]


@pytest.mark.parametrize("save", SAVES)
def test_a_failure_leaves_the_earlier_export(small, tmp_path, monkeypatch, save):
    save(small, tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.rename", fail)
    with pytest.raises(UserError, match="No space left on device"):
        save(small, tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_without_pytorch_only_safetensors_are_exported(small, tmp_path, monkeypatch):
    torchvision_export.save(small, tmp_path)
    assert (tmp_path / "model.pth").exists()
    monkeypatch.setitem(sys.modules, "torch", None)
    torchvision_export.save(small, tmp_path)
    # model.pth would have the weights of the earlier export.
    assert {p.name for p in tmp_path.iterdir()} == {"model.safetensors", "config.json"}


def test_neither_export_imports_pytorch():
    program = (
        "import sys\n"
        "import byol_jax.export.torchvision, byol_jax.export.timm\n"
        "assert 'torch' not in sys.modules and 'torchvision' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
