"""Weights of torchvision and timm are converted to ours and back exactly."""

import pickle
import sys

import numpy as np
import pytest
from encoders import random_encoder
from torchvision_on_cpu import torch, torchvision

from byol_jax import models
from byol_jax.errors import UserError
from byol_jax.export.convert.torchvision import (
    SETTLED_COUNT,
    from_state_dict,
    read,
    to_state_dict,
)

safetensors_torch = pytest.importorskip("safetensors.torch")
IMAGES = np.random.default_rng(0).standard_normal((3, 64, 64, 3), np.float32)
NETWORKS = {"resnet18": models.ResNet18, "resnet50": models.ResNet50}


def randomised(model, seed=0):
    """The model with random batch norms and plausible counts, in evaluation mode."""
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.weight, 1, 0.1)
            torch.nn.init.normal_(module.bias, 0, 0.1)
            torch.nn.init.normal_(module.running_mean, 0, 0.1)
            module.running_var.copy_(1 + 0.1 * torch.randn(module.running_var.shape).abs())
            module.num_batches_tracked.fill_(77)
    return model.eval()


@pytest.fixture(scope="module", params=sorted(NETWORKS))
def theirs(request):
    torch.manual_seed(1)
    return request.param, randomised(getattr(torchvision.models, request.param)(weights=None))


@pytest.fixture(scope="module")
def small():
    """The state dict of a ResNet-10, as NumPy arrays."""
    torch.manual_seed(2)
    model = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1])
    return {name: tensor.numpy() for name, tensor in randomised(model).state_dict().items()}


def flat(tree, prefix=()):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, (*prefix, key))
        else:
            yield (*prefix, key), value


def assert_equal_trees(got, want):
    got, want = dict(flat(got)), dict(flat(want))
    assert got.keys() == want.keys()
    for name, array in want.items():
        assert got[name].dtype == np.asarray(array).dtype, name
        np.testing.assert_array_equal(got[name], array, err_msg=str(name), strict=True)


@pytest.fixture(params=["weights.pth", "weights.safetensors"])
def file(request, theirs, tmp_path):
    state = theirs[1].state_dict()
    if request.param.endswith(".pth"):
        torch.save(state, tmp_path / request.param)
    else:
        safetensors_torch.save_file(state, tmp_path / request.param)
    return tmp_path / request.param


@pytest.fixture(scope="module")
def apply():
    """One compiled function for each network."""
    import jax

    modules = {name: network() for name, network in NETWORKS.items()}
    return {
        name: jax.jit(lambda variables, x, m=module: m.apply(variables, x, train=False))
        for name, module in modules.items()
    }


def test_our_network_computes_torchvisions_features(theirs, file, apply):
    name, model = theirs
    variables = from_state_dict(read(file))
    got = apply[name](variables, IMAGES)
    model.fc = torch.nn.Identity()
    with torch.no_grad():
        want = model(torch.from_numpy(IMAGES.transpose(0, 3, 1, 2).copy())).numpy()
    assert np.std(want, axis=0).max() > 0
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())


def test_theirs_to_ours_and_back_is_exact(theirs):
    arrays = {name: t.numpy() for name, t in theirs[1].state_dict().items()}
    arrays = {name: array for name, array in arrays.items() if not name.startswith("fc.")}
    back = to_state_dict(from_state_dict(arrays))
    assert_equal_trees(back, arrays)
    assert all(array.flags.c_contiguous for array in back.values())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet10", {}),
        ("resnet18", {}),
        ("resnet50", {"width_multiplier": 0.25}),
        ("resnet200", {"width_multiplier": 0.125}),
        ("resnet8", {"stem": "cifar", "channels": 1}),
    ],
)
def test_ours_to_theirs_and_back_is_exact(name, options):
    encoder = random_encoder(name, image_size=32, **options)
    arrays = to_state_dict(encoder.variables)
    assert {array.dtype for array in arrays.values()} == {np.dtype("float32"), np.dtype("int64")}
    assert_equal_trees(from_state_dict(arrays), encoder.variables)


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"])
def test_names_and_shapes_are_those_of_torchvision_and_timm(name):
    timm = pytest.importorskip("timm", reason="needs requirements-interop-no-deps.txt")
    import jax

    image = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    module = models.ENCODERS[name]()
    shapes = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), image)
    # Broadcast, as resnet152 has 60 million numbers.
    arrays = to_state_dict(jax.tree.map(lambda s: np.broadcast_to(np.float32(1), s.shape), shapes))
    got = {key: array.shape for key, array in arrays.items()}
    with torch.device("meta"):
        others = [getattr(torchvision.models, name)(), timm.create_model(name)]
    for model in others:
        want = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
        assert got == {key: shape for key, shape in want.items() if not key.startswith("fc.")}


def test_the_orientation_of_a_kernel(small):
    kernel = from_state_dict(small)["params"]["layer2_0"]["downsample_conv"]["kernel"]
    assert kernel.shape == (1, 1, 64, 128) and kernel.flags.c_contiguous
    assert kernel[0, 0, 5, 7] == small["layer2.0.downsample.0.weight"][7, 5, 0, 0]


@pytest.mark.parametrize("how", ["missing", "zero"])
def test_statistics_without_a_count_are_settled(small, how):
    name = "bn1.num_batches_tracked"
    arrays = {k: v for k, v in small.items() if k != name}
    if how == "zero":
        arrays[name] = np.zeros((), np.int64)
    stats = from_state_dict(arrays)["batch_stats"]
    assert stats["bn1"]["count"] == SETTLED_COUNT and stats["layer1_0"]["bn1"]["count"] == 77


def test_a_new_norm_has_count_zero(small):
    fresh = {
        "bn1.running_mean": np.zeros(64, np.float32),
        "bn1.running_var": np.ones(64, np.float32),
        "bn1.num_batches_tracked": np.zeros((), np.int64),
    }
    assert from_state_dict(small | fresh)["batch_stats"]["bn1"]["count"] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer1.0.conv2.weight": None}, "lack layer1.0.conv2.weight"),
        ({"bn1.running_var": None}, "lack bn1.running_var"),
        ({"layer3.0.downsample.1.bias": None}, "lack layer3.0.downsample.1.bias"),
        ({"layer2.0.downsample.0.weight": None}, "lack layer2.0.downsample.0.weight"),
        ({"conv1.weight": None}, "lack conv1.weight"),
        (
            {"layer2.0.se.fc1.weight": np.zeros(3)},
            "have layer2.0.se.fc1.weight, which torchvision's plain",
        ),
        (
            {"foo.num_batches_tracked": np.zeros(())},
            "have foo.num_batches_tracked, which torchvision's plain",
        ),
        ({"conv1.weight": np.zeros((64, 3))}, r"conv1.weight of shape \(64, 3\)"),
        (
            {"layer1.0.bn1.bias": np.zeros(63, np.float32)},
            r"layer1.0.bn1.bias of shape \(63,\), which should be \(64,\)",
        ),
        ({"bn1.bias": np.zeros(64, np.int8)}, "bn1.bias of type int8"),
    ],
)
def test_weights_of_other_networks_are_refused(small, change, message):
    arrays = {k: v for k, v in (small | change).items() if v is not None}
    with pytest.raises(UserError, match=message):
        from_state_dict(arrays)


@pytest.mark.parametrize("name", ["wide_resnet50_2", "resnext50_32x4d"])
def test_torchvisions_other_resnets_are_refused(name):
    state = getattr(torchvision.models, name)(weights=None).state_dict()
    with pytest.raises(UserError, match=r"The weights have layer1.0.* should be"):
        from_state_dict({k: v.numpy() for k, v in state.items()})


def test_half_precision_becomes_float32(small):
    half = {k: v.astype(np.float16) if v.ndim else v for k, v in small.items()}
    bias = from_state_dict(half)["params"]["bn1"]["bias"]
    assert bias.dtype == np.float32
    np.testing.assert_array_equal(bias, half["bn1.bias"].astype(np.float32))


TENSORS = {"conv1.weight": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(3)}


@pytest.mark.parametrize(
    "found",
    [
        TENSORS,
        {"state_dict": TENSORS, "epoch": 3},
        {"model": TENSORS, "args": {}},
        {"state_dict": {f"module.{k}": v for k, v in TENSORS.items()}},
        {k: torch.nn.Parameter(v) if v.ndim else v for k, v in TENSORS.items()},
    ],
    ids=["plain", "state_dict", "model", "data parallel", "parameters"],
)
def test_the_weights_in_a_checkpoint_are_found(found, tmp_path):
    torch.save(found, tmp_path / "x.pth")
    got = read(tmp_path / "x.pth")
    assert_equal_trees(got, {k: v.numpy() for k, v in TENSORS.items()})


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_bfloat16_is_read(tmp_path, small, suffix):
    state = {k: torch.from_numpy(v).bfloat16() if v.ndim else v for k, v in small.items()}
    state = {k: torch.as_tensor(v) for k, v in state.items()}
    path = tmp_path / f"x{suffix}"
    torch.save(state, path) if suffix == ".pth" else safetensors_torch.save_file(state, path)
    bias = from_state_dict(read(path))["params"]["bn1"]["bias"]
    np.testing.assert_array_equal(bias, state["bn1.bias"].float().numpy(), strict=True)


class Other:
    """Anything but tensors in a pickle."""


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.pth", Other(), "cannot be read safely"),
        ("x.pt", b"not a file of PyTorch's", "cannot be read safely"),
        ("x.bin", torch.zeros(3), "holds a Tensor without weights by name"),
        ("x.pth", {}, "holds a dict without weights by name"),
        ("x.pth", {"optimizer": {"lr": 0.1}}, "holds 'optimizer', a dict, among its weights"),
        ("x.safetensors", b"short", "cannot be read as safetensors"),
        ("x.npz", b"", "none of the endings"),
        ("x.pth", None, "is not a file"),
    ],
)
def test_other_files_are_refused(tmp_path, name, content, message):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(UserError, match=message):
        read(path)


def test_code_in_a_file_is_not_executed(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "made"), "w"))

    (tmp_path / "x.pth").write_bytes(pickle.dumps(Evil(), protocol=2))
    with pytest.raises(UserError, match="cannot be read safely"):
        read(tmp_path / "x.pth")
    assert not (tmp_path / "made").exists()


def test_pytorchs_files_need_pytorch_and_safetensors_do_not(tmp_path, monkeypatch):
    torch.save(TENSORS, tmp_path / "x.pth")
    safetensors_torch.save_file(TENSORS, tmp_path / "x.safetensors")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert read(tmp_path / "x.safetensors").keys() == TENSORS.keys()
    with pytest.raises(UserError, match="needs PyTorch: pip install torch, or save"):
        read(tmp_path / "x.pth")


def test_a_huge_block_number_is_refused_quickly():
    arrays = to_state_dict(random_encoder("resnet10", width_multiplier=0.125).variables)
    arrays["layer1.999999999.bn1.weight"] = np.ones(8, np.float32)
    with pytest.raises(UserError, match=r"block layer1.999999999 but not those before it"):
        from_state_dict(arrays)


def test_a_count_that_is_not_a_number_is_refused():
    arrays = to_state_dict(random_encoder("resnet10", width_multiplier=0.125).variables)
    arrays["bn1.num_batches_tracked"] = np.zeros(2, np.int64)
    with pytest.raises(UserError, match=r"bn1.num_batches_tracked of shape \(2,\): give a number"):
        from_state_dict(arrays)
