"""The networks: torchvision's names and counts, and PyTorch's outputs and gradients on the same weights."""

import numpy as np
import pytest

from fastconv import models
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


class Zeros(np.random.Generator):
    """Draws nothing: random numbers for 138 million weights take longer than the test."""

    def __init__(self):
        super().__init__(np.random.PCG64(0))

    def standard_normal(self, shape, dtype):
        return np.zeros(shape, dtype)


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts_are_the_published_ones(name):
    model = getattr(models, name)(rng=Zeros())
    assert sum(parameter.data.size for parameter in model.parameters()) == COUNTS[name]


# --- Against PyTorch: networks with torchvision's structure and names -------------------------------------------------


def alexnet(nn, num_classes):
    relu = nn.ReLU
    model = nn.Sequential()
    model.features = nn.Sequential(
        *(nn.Conv2d(3, 64, 11, 4, 2), relu(), nn.MaxPool2d(3, 2), nn.Conv2d(64, 192, 5, padding=2), relu()),
        *(nn.MaxPool2d(3, 2), nn.Conv2d(192, 384, 3, padding=1), relu(), nn.Conv2d(384, 256, 3, padding=1), relu()),
        *(nn.Conv2d(256, 256, 3, padding=1), relu(), nn.MaxPool2d(3, 2)),
    )
    model.avgpool, model.flatten = nn.AdaptiveAvgPool2d(6), nn.Flatten()
    model.classifier = nn.Sequential(
        *(nn.Dropout(0.0), nn.Linear(9216, 4096), relu(), nn.Dropout(0.0), nn.Linear(4096, 4096), relu()),
        nn.Linear(4096, num_classes),
    )
    return model


def residual(nn, body, shortcut, relu):
    """A block of the layers of ``body``, under their names."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            for name, layer in body.items():
                setattr(self, name, layer)
            if shortcut is not None:
                self.downsample = shortcut

        def forward(self, x):
            y = x
            for name in body:
                y = getattr(self, name)(y)
            y = y + (x if shortcut is None else self.downsample(x))
            return y.relu() if relu else y

    return Block()


def conv(nn, channels, width, kernel, stride=1, groups=1):
    return nn.Conv2d(channels, width, kernel, stride, kernel // 2, groups=groups, bias=False)


def resnet(nn, num_classes, bottleneck, depths):
    model = nn.Sequential()
    model.conv1, model.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
    model.relu, model.maxpool = nn.ReLU(), nn.MaxPool2d(3, 2, 1)
    channels, expansion = 64, 4 if bottleneck else 1
    for stage, depth in enumerate(depths):
        width, blocks = 64 * 2**stage, []
        for i in range(depth):
            stride = 2 if stage and i == 0 else 1
            out = expansion * width
            kernels = (1, 3, 1) if bottleneck else (3, 3)
            strides = (1, stride, 1) if bottleneck else (stride, 1)
            widths = (channels, width, width, out) if bottleneck else (channels, width, width)
            body = {}
            for j, (k, s) in enumerate(zip(kernels, strides, strict=True), 1):
                body |= {f"conv{j}": conv(nn, widths[j - 1], widths[j], k, s), f"bn{j}": nn.BatchNorm2d(widths[j])}
                if j < len(kernels):
                    body[f"relu{j}"] = nn.ReLU()
            shortcut = None
            if stride > 1 or channels != out:
                shortcut = nn.Sequential(conv(nn, channels, out, 1, stride), nn.BatchNorm2d(out))
            blocks.append(residual(nn, body, shortcut, True))
            channels = out
        setattr(model, f"layer{stage + 1}", nn.Sequential(*blocks))
    model.avgpool, model.flatten, model.fc = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes)
    return model


def mobilenet_v2(nn, num_classes):
    def conv_bn(channels, width, kernel, stride=1, groups=1):
        return nn.Sequential(conv(nn, channels, width, kernel, stride, groups), nn.BatchNorm2d(width), nn.ReLU6())

    features, channels = [conv_bn(3, 32, 3, 2)], 32
    for t, c, n, s in [
        *((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)),
        *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
    ]:
        for i in range(n):
            stride, hidden = s if i == 0 else 1, t * channels
            layers = [conv_bn(channels, hidden, 1)] if t > 1 else []
            layers += [conv_bn(hidden, hidden, 3, stride, hidden), conv(nn, hidden, c, 1), nn.BatchNorm2d(c)]
            block = nn.Sequential()
            block.conv = nn.Sequential(*layers)
            is_residual = stride == 1 and channels == c
            features.append(residual(nn, {"conv": block.conv}, None, False) if is_residual else block)
            channels = c
    model = nn.Sequential()
    model.features = nn.Sequential(*features, conv_bn(channels, 1280, 1))
    model.avgpool, model.flatten = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    model.classifier = nn.Sequential(nn.Dropout(0.0), nn.Linear(1280, num_classes))
    return model


NETWORKS = {
    "alexnet": (alexnet, 224, {"dropout": 0.0}),
    "resnet18": (lambda nn, classes: resnet(nn, classes, False, (2, 2, 2, 2)), 64, {}),
    "resnet50": (lambda nn, classes: resnet(nn, classes, True, (3, 4, 6, 3)), 64, {}),
    "mobilenet_v2": (mobilenet_v2, 64, {"dropout": 0.0}),
}


def doubled(model):
    """Make a model one of float64."""
    for parameter in model.parameters():
        parameter.data = parameter.data.astype(np.float64)
    for module in model.modules():
        for name in module.buffer_names[:2]:
            setattr(module, name, getattr(module, name).astype(np.float64))
    return model


@pytest.mark.parametrize("name", NETWORKS)
def test_equals_torch(torch, name, rng):
    """In float64: a rounding may change which pixel a pool takes, and batch normalisation makes much of it."""
    build, size, options = NETWORKS[name]
    model, theirs = getattr(models, name)(7, rng=0, **options), build(torch.nn, 7)
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
