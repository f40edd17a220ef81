"""The networks: torchvision's names and counts, and PyTorch's outputs and gradients on the same weights."""

import numpy as np
import pytest

from fastconv import models
from fastconv.bench import torch_models
from fastconv.bench.networks import doubled
from fastconv.layers import Concat, Linear, Sequential

COUNTS = {
    "lenet5": 61_706,
    "alexnet": 61_100_840,
    "vgg16": 138_357_544,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "mobilenet_v2": 3_504_872,
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts_are_the_published_ones(name, no_random_numbers):
    model = getattr(models, name)(rng=no_random_numbers)
    assert sum(parameter.data.size for parameter in model.parameters()) == COUNTS[name]


# --- Against PyTorch --------------------------------------------------------------------------------------------------


SIZES = {"alexnet": 224, "resnet18": 64, "resnet50": 64, "mobilenet_v2": 64}


@pytest.mark.parametrize("name", SIZES)
def test_equals_torch(torch, name, rng):
    """In float64: a rounding may change which pixel a pool takes, and batch normalisation makes much of it."""
    options = {"dropout": 0.0} if name in ("alexnet", "mobilenet_v2") else {}
    model, theirs, size = getattr(models, name)(7, rng=0, **options), torch_models.build(torch, name, 7), SIZES[name]
    assert model.state_dict().keys() == theirs.state_dict().keys()
    if name == "alexnet":  # 57 of its 61 million weights, in a chain of layers that tests of their own cover
        model.classifier, theirs.classifier = Linear(9216, 7, rng=0), torch.nn.Linear(9216, 7)
    compare(torch, model, theirs, rng.standard_normal((2, 3, size, size)), rng)


def twin(torch, layer):
    """A layer of PyTorch's of the same names, from what ours prints."""
    children = {name: twin(torch, child) for name, child in layer.named_children()}
    if isinstance(layer, Concat):

        class Joined(torch.nn.Module):
            def forward(self, x):
                return torch.cat([child(x) for child in self.children()], 1)

        module = Joined()
    elif isinstance(layer, Sequential):
        module = torch.nn.Sequential()
    else:
        return eval(repr(layer), vars(torch.nn))
    for name, child in children.items():
        module.add_module(name, child)
    return module


@pytest.mark.parametrize(
    ("name", "shape"), [("unet_small", (2, 1, 24, 32)), ("text_cnn", (3, 96, 50)), ("volume_cnn", (2, 1, 9, 16, 11))]
)
def test_other_networks_equal_torch(torch, name, shape, rng):
    options = {"dropout": 0.0} if name == "text_cnn" else {}
    model = getattr(models, name)(num_classes=3, rng=0, **options)
    theirs = twin(torch, model)
    assert model.state_dict().keys() == theirs.state_dict().keys()
    compare(torch, model, theirs, rng.standard_normal(shape), rng)


def compare(torch, model, theirs, x, rng):
    """Outputs and every gradient, in training and after it, on the same weights in float64."""
    doubled(model)
    theirs.double()
    theirs.load_state_dict({key: torch.from_numpy(value) for key, value in model.state_dict().items()})
    y, expected = model(x), theirs(torch.from_numpy(x))
    g = rng.standard_normal(y.shape)
    expected.backward(torch.from_numpy(g))
    model.backward(g, needs_input_grad=False)
    assert_near(y, expected)
    gradients, buffers = dict(theirs.named_parameters()), dict(theirs.named_buffers())
    for key, parameter in model.named_parameters():
        assert_near(parameter.grad, gradients[key].grad, key)
    for key, values in model.named_buffers():
        assert_near(values, buffers[key], key)
    assert_near(model.eval()(x), theirs.eval()(torch.from_numpy(x)))


def assert_near(actual, expected, what=""):
    expected = expected.detach().numpy()
    assert actual.shape == expected.shape
    error = np.abs(actual - expected).max() / max(np.abs(expected).max(), 1e-2)
    assert error <= 1e-7, what


# --- Files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_save_and_load(tmp_path, suffix, rng):
    if suffix == ".safetensors":
        pytest.importorskip("safetensors")
    model, path = models.resnet18(3, rng=0), tmp_path / f"model{suffix}"
    model(rng.standard_normal((2, 3, 32, 32), np.float32))  # moves the running statistics
    models.save(model, path)
    other = models.resnet18(3, rng=1)
    assert models.load(other, path) is other
    for (key, a), b in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        np.testing.assert_array_equal(a, b, strict=True, err_msg=key)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_files_of_other_kinds(tmp_path):
    with pytest.raises(ValueError, match=r"^save: path must end in .npz or .safetensors, got '.*model.pt'"):
        models.save(models.lenet5(), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"^read: path must end in"):
        models.load(models.lenet5(), tmp_path / "model")


def test_safetensors_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "safetensors", None)
    monkeypatch.setitem(__import__("sys").modules, "safetensors.numpy", None)
    with pytest.raises(ImportError, match=r"pip install 'fastconv\[models\]'"):
        models.save(models.lenet5(), tmp_path / "model.safetensors")
