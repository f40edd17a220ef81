"""Folded networks compute what the networks in ``eval()`` do."""

import copy
import pickle

import numpy as np
import pytest

import fastconv
from fastconv import _kernels, conv2d, fold_batch_norm, models
from fastconv.folding import FusedConv2d, _SeparableBlock
from fastconv.layers import (
    AdaptiveAvgPool2d,
    BatchNorm2d,
    Concat,
    Conv2d,
    Flatten,
    Linear,
    MaxPool2d,
    ReLU,
    ReLU6,
    Residual,
    Sequential,
    SiLU,
    Tanh,
)


def trained(model, rng, size, dtype=np.float32):
    """Move the running statistics and the parameters of the normalisations from where they begin."""
    model(rng.standard_normal((4, 3, size, size)).astype(dtype))
    for name, values in model._named_state().items():
        if values.ndim == 1 and "var" not in name:
            values += 0.1 * rng.standard_normal(values.shape).astype(values.dtype)
    return model


def block(inner, *layers, **options):
    return Residual(Sequential(Conv2d(inner, inner, 3, padding=1), BatchNorm2d(inner), *layers), **options)


NETWORKS = {
    "resnet18": lambda: models.resnet18(5, rng=0),
    "resnet50": lambda: models.resnet50(5, rng=0),
    "mobilenet_v2": lambda: models.mobilenet_v2(5, rng=0),
    "no convolution before": lambda: Sequential(BatchNorm2d(3), Conv2d(3, 4, 3), ReLU(), BatchNorm2d(4), ReLU6()),
    "another activation": lambda: Sequential(Conv2d(3, 4, 3), BatchNorm2d(4, affine=False), Tanh(), MaxPool2d(2)),
    "two normalisations": lambda: Sequential(Conv2d(3, 4, 3), BatchNorm2d(4), BatchNorm2d(4), ReLU6()),
    "residual of another end": lambda: Sequential(block(3, ReLU(), activation=ReLU()), block(3, activation=Tanh())),
    "residual with shortcut": lambda: Sequential(block(3, shortcut=Conv2d(3, 3, 1), activation=ReLU6()), block(3)),
    "branches": lambda: Concat(Sequential(Conv2d(3, 4, 3, padding=1), BatchNorm2d(4)), Sequential()),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs(name, rng):
    model = trained(NETWORKS[name](), rng, 64)
    x, before = rng.standard_normal((2, 3, 64, 64), np.float32), model.state_dict()
    folded = fold_batch_norm(model)
    assert all(module._remembered is None for module in folded.modules())
    assert any(module._remembered is not None for module in model.modules())
    expected, y = model.eval()(x), folded(x)
    assert np.abs(y - expected).max() <= 2e-4 * np.abs(expected).max()
    assert before.keys() == model.state_dict().keys()
    if name in ("resnet18", "resnet50", "mobilenet_v2"):
        assert not any(isinstance(layer, (BatchNorm2d, ReLU, ReLU6)) for layer in folded.modules())


def test_folded_networks_do_not_learn(rng):
    folded = fold_batch_norm(Sequential(Conv2d(3, 4, 3), BatchNorm2d(4)))
    y = folded(rng.standard_normal((1, 3, 5, 5), np.float32))
    with pytest.raises(RuntimeError, match=r"^FusedConv2d.backward: it is for inference"):
        folded.backward(y)


def test_weights_are_packed_at_the_first_call(rng):
    folded = fold_batch_norm(Sequential(Conv2d(3, 4, 3), BatchNorm2d(4), ReLU()))
    x, (convolution,) = rng.standard_normal((2, 3, 9, 9), np.float32), folded
    before = folded(x)
    with pytest.raises(ValueError, match="read-only"):
        convolution.weight.data[...] = 0  # what is packed would not follow
    convolution.weight.data = -convolution.weight.data
    np.testing.assert_array_equal(folded(x), folded(x))
    assert not np.array_equal(folded(x), before)
    expected = conv2d(x, convolution.weight.data, convolution.bias.data, activation="relu")
    np.testing.assert_array_equal(folded(x), expected)


def convolution(channels, width, *layers, dtype=np.float32, **options):
    """Return a convolution with its normalisation, as a list of layers."""
    first = Conv2d(channels, width, bias=False, dtype=dtype, rng=width, **options)
    return [first, BatchNorm2d(width, dtype=dtype), *layers]


def separable(channels, width, hidden, kernel=3, stride=1, act=ReLU6, dtype=np.float32, **options):
    """Return 1x1, where `hidden` are not `channels`, depthwise and 1x1, with a residual where the shape is kept."""
    layers = convolution(channels, hidden, act(), kernel_size=1, dtype=dtype) if hidden != channels else []
    options = {"padding": kernel // 2, "stride": stride, "groups": hidden} | options
    layers += convolution(hidden, hidden, act(), kernel_size=kernel, dtype=dtype, **options)
    layers += convolution(hidden, width, kernel_size=1, dtype=dtype)
    return Residual(Sequential(*layers)) if stride == 1 and channels == width else Sequential(*layers)


def mobile(channels, *blocks, act=ReLU6, dtype=np.float32, head=()):
    """Return a network of separable blocks (width, hidden, kernel, stride), for images of three channels."""
    layers = convolution(3, channels, act(), kernel_size=3, stride=2, padding=1, dtype=dtype)
    for width, hidden, kernel, stride in blocks:
        layers.append(separable(channels, width, hidden, kernel, stride, act, dtype))
        channels = width
    return Sequential(*layers, *(head or (AdaptiveAvgPool2d(1), Flatten(), Linear(channels, 5, dtype=dtype, rng=0))))


MOBILE = {  # channels of the first layer, blocks, activation
    "no expansion": (7, ((7, 7, 3, 1), (24, 7, 3, 2), (24, 24, 5, 1)), ReLU6),
    "expansion": (7, ((24, 50, 3, 2), (24, 200, 3, 1), (7, 200, 5, 2)), ReLU6),
    "relu": (24, ((24, 50, 5, 1), (7, 50, 3, 2), (7, 7, 3, 1)), ReLU),
    "silu, which is no epilogue": (7, ((7, 24, 3, 1), (24, 50, 3, 2)), SiLU),
    "several blocks of channels": (24, ((50, 200, 3, 1), (50, 600, 3, 1), (24, 600, 5, 2)), ReLU6),
    "as MobileNet's first": (32, ((16, 32, 3, 1), (24, 96, 3, 2), (24, 144, 3, 1)), ReLU6),
}


def assert_equals_unfolded(model, folded, x):
    expected, y = model.eval()(x), folded(x)
    assert y.shape == expected.shape
    assert y.dtype == expected.dtype == x.dtype
    assert np.isfinite(expected).all()
    tolerance = 2e-4 if x.dtype == np.float32 else 1e-12
    assert np.abs(y - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("name", MOBILE)
def test_networks_of_separable_blocks(name, isa, dtype, rng):
    channels, blocks, act = MOBILE[name]
    model = trained(mobile(channels, *blocks, act=act, dtype=dtype), rng, 32, dtype)
    folded = fold_batch_norm(model)
    for shape in ((1, 7, 7), (8, 7, 7), (3, 32, 33), (1, 49, 30), (8, 25, 24), (1, 2, 3)):
        assert_equals_unfolded(model, folded, rng.standard_normal((shape[0], 3, *shape[1:])).astype(dtype))
    model, folded = Sequential(*[*model][:-3]), Sequential(*[*folded][:-3])  # maps
    for shape in ((1, 3, 21, 18), (3, 3, 8, 9), (4, 3, 8, 9), (0, 3, 8, 9)):
        x = rng.standard_normal(shape).astype(dtype)
        expected, y = model.eval()(x), folded(x)
        assert y.shape == expected.shape
        limit = (2e-4 if dtype == np.float32 else 1e-12) * np.abs(expected).max(initial=0)
        np.testing.assert_allclose(y, expected, rtol=0, atol=limit)


@pytest.mark.parametrize("name", ["as MobileNet's first", "expansion", "relu"])
def test_large_images_in_strips_of_rows(name, isa, rng):
    channels, blocks, act = MOBILE[name]
    model = trained(mobile(channels, *blocks, act=act), rng, 32)
    folded = fold_batch_norm(model)
    for shape in ((1, 3, 225, 260), (2, 3, 301, 203)):
        assert_equals_unfolded(model, folded, rng.standard_normal(shape, np.float32))


@pytest.mark.parametrize("shape", [(3, 21, 22), (3, 1, 1), (3, 7, 7), (3, 70, 9)], ids=str)
def test_unbatched_images(shape, isa, dtype, rng):
    blocks = (24, 96, 3, 1), (24, 50, 5, 2)
    model = trained(mobile(24, *blocks, dtype=dtype, head=[AdaptiveAvgPool2d((1, 1))]), rng, 32, dtype)
    folded, x = fold_batch_norm(model), rng.standard_normal(shape).astype(dtype)
    expected = model.eval()(x[None])[0]  # normalisations take no such images
    assert expected.shape == (24, 1, 1)
    limit = (2e-4 if dtype == np.float32 else 1e-12) * np.abs(expected).max()
    np.testing.assert_allclose(folded(x), expected, rtol=0, atol=limit, strict=True)


@pytest.mark.parametrize(
    "options",
    [
        {"stride": (2, 1)},
        {"stride": (1, 3), "padding": (0, 2)},
        {"padding": 0},
        {"padding": "same", "dilation": 2},
        {"padding": ((2, 0), (0, 3))},
        {"padding": 5},
        {"padding": 1, "padding_mode": "reflect"},
        {"padding": 1, "kernel": 2, "stride": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("hidden", [24, 150])
def test_other_options_of_depthwise_filters(options, hidden, isa, dtype, rng):
    inner = separable(24, 16, hidden, dtype=dtype, **options)
    layers = convolution(3, 24, ReLU(), kernel_size=3, padding=1, dtype=dtype)
    model = trained(Sequential(*layers, inner), rng, 16, dtype)
    folded = fold_batch_norm(model)
    for shape in ((1, 3, 12, 13), (5, 3, 9, 7), (1, 3, 130, 131)):
        assert_equals_unfolded(model, folded, rng.standard_normal(shape).astype(dtype))


def test_mobilenet_v2_of_several_images(isa, rng):
    model = trained(models.mobilenet_v2(5, rng=0), rng, 64)
    folded = fold_batch_norm(model)
    assert sum(isinstance(module, _SeparableBlock) for module in folded.modules()) == 17
    for n in (1, 3, 8):
        assert_equals_unfolded(model, folded, rng.standard_normal((n, 3, 64, 64), np.float32))


def test_any_number_of_threads_gives_the_same_bits(isa, dtype, rng):
    blocks = (24, 144, 3, 1), (50, 200, 5, 2), (50, 600, 3, 1)
    folded = fold_batch_norm(trained(mobile(24, *blocks, dtype=dtype), rng, 32, dtype))
    for shape in ((1, 3, 33, 30), (1, 3, 7, 7), (8, 3, 28, 28), (1, 3, 200, 211)):
        x, results = rng.standard_normal(shape).astype(dtype), []
        for threads in (1, 2, 3):
            with fastconv.threads(threads):
                results.append(folded(x))
        for result in results[1:]:
            np.testing.assert_array_equal(result, results[0])


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["x", 0, 1, 2, 3], ids=lambda where: f"weight {where}" if where != "x" else "x")
@pytest.mark.parametrize("shape", [(1, 3, 19, 18), (8, 3, 14, 15), (1, 3, 120, 122)], ids=str)
def test_what_is_not_finite(shape, where, special, isa, rng):
    model = trained(mobile(24, (24, 150, 3, 1), head=[Sequential()]), rng, 32)
    x = rng.standard_normal(shape, np.float32)
    folded = fold_batch_norm(model)
    (joined,) = (module for module in folded.modules() if isinstance(module, _SeparableBlock))
    convolutions = [folded[0], *joined]
    if where == "x":
        x[0, :, 4:6, -2:] = special
    else:
        weight = convolutions[where].weight.data.copy()
        weight[1, 0, 0, -1] = special
        convolutions[where].weight.data = weight
    expected, shortcut = x, None
    for layer in convolutions:  # each by itself, with the channels first
        options = layer.stride, layer.padding, layer.dilation, layer.groups
        fused = {"activation": layer.activation, "residual": shortcut if layer is convolutions[-1] else None}
        expected = conv2d(expected, layer.weight.data, layer.bias.data, *options, **fused, algorithm="gemm")
        shortcut = expected if shortcut is None else shortcut
    y = folded(x)
    for same in (np.isnan, np.isposinf, np.isneginf):
        np.testing.assert_array_equal(same(y), same(expected))
    finite = np.isfinite(expected)
    scale = np.abs(expected[finite]).max(initial=0)
    np.testing.assert_allclose(y[finite], expected[finite], rtol=0, atol=2e-4 * scale)


@pytest.mark.parametrize("which", [0, 1, 2, 3])
@pytest.mark.parametrize("attribute", ["weight", "bias"])
@pytest.mark.parametrize("n", [1, 8])
def test_blocks_follow_what_is_assigned(n, which, attribute, rng):
    model = trained(mobile(24, (24, 150, 3, 1), (50, 150, 3, 2), head=[Sequential()]), rng, 32)
    folded, x = fold_batch_norm(model), rng.standard_normal((n, 3, 25, 26), np.float32)
    before = folded(x)
    np.testing.assert_array_equal(folded(x), before)
    convolutions = [module for module in folded.modules() if isinstance(module, FusedConv2d)]
    parameter = getattr(convolutions[which], attribute)
    parameter.data = parameter.data + np.float32(0.5)
    after = folded(x)
    assert np.abs(after - before).max() > 1e-2 * np.abs(before).max()
    fresh = fold_batch_norm(model)  # which has packed nothing yet
    others = [module for module in fresh.modules() if isinstance(module, FusedConv2d)]
    getattr(others[which], attribute).data = parameter.data.copy()
    np.testing.assert_array_equal(after, fresh(x))
    parameter.data = parameter.data - np.float32(0.5)
    np.testing.assert_allclose(folded(x), before, rtol=0, atol=1e-4 * np.abs(before).max())


def test_copies_of_folded_networks(rng):
    model = trained(mobile(24, (24, 150, 3, 1), (50, 150, 3, 2)), rng, 32)
    folded, x = fold_batch_norm(model), rng.standard_normal((2, 3, 25, 26), np.float32)
    expected = folded(x)  # plans and packed weights are there now
    for copied in (copy.deepcopy(folded), pickle.loads(pickle.dumps(folded)), fold_batch_norm(folded)):
        np.testing.assert_array_equal(copied(x), expected)
        convolution = next(module for module in copied.modules() if isinstance(module, FusedConv2d))
        convolution.bias.data = convolution.bias.data + np.float32(1)
        assert np.abs(copied(x) - expected).max() > 1e-3
        np.testing.assert_array_equal(folded(x), expected)


def test_images_that_are_no_arrays(rng):
    folded = fold_batch_norm(trained(mobile(8, (8, 50, 3, 1)), rng, 32))
    x = rng.standard_normal((1, 3, 9, 9))
    np.testing.assert_allclose(folded(Exported(np.float32(x))), folded(np.float32(x)), rtol=1e-4, atol=1e-5)


class Exported:
    """An array as another library shows it."""

    def __init__(self, array):
        self._array, self.__array_interface__ = array, array.__array_interface__


def test_a_bias_that_does_not_fit_is_an_error(rng):
    folded = fold_batch_norm(trained(mobile(8, (8, 50, 3, 1)), rng, 32))
    x = rng.standard_normal((1, 3, 9, 9), np.float32)
    *_, last = (module for module in folded.modules() if isinstance(module, FusedConv2d))
    right = last.bias.data
    last.bias.data = right.astype(np.float64)
    with pytest.raises(TypeError, match="bias"):
        folded(x)
    last.bias.data = right[:-1]
    with pytest.raises(ValueError, match="bias"):
        folded(x)


def test_far_apart_taps_of_small_images_take_little_memory(rng):
    options = {"padding": (10**5, 1), "dilation": (10**5, 1)}
    model = trained(Sequential(*convolution(3, 24, kernel_size=1), separable(24, 50, 100, **options)), rng, 32)
    folded, x = fold_batch_norm(model), rng.standard_normal((4, 3, 12, 12), np.float32)
    fastconv.empty_cache()
    _kernels.peak_bytes()
    assert_equals_unfolded(model, folded, x)
    folded(x)
    assert _kernels.peak_bytes() < 32 << 20


def last_in_memory(y):
    return y.transpose(0, 2, 3, 1).flags.c_contiguous


def record(monkeypatch):
    """Record whether the channels of each result of a convolution or of a block lie last."""
    found = []
    for kind in (FusedConv2d, _SeparableBlock):

        def forward(self, *arguments, _forward=kind.forward):
            y = _forward(self, *arguments)
            found.append(last_in_memory(y))
            return y

        monkeypatch.setattr(kind, "forward", forward)
    return found


@pytest.mark.parametrize("n", [1, 8])
def test_channels_lie_last_in_memory(n, monkeypatch, isa, dtype, rng):
    blocks = (24, 150, 3, 1), (50, 150, 3, 2), (50, 50, 5, 1)
    folded = fold_batch_norm(mobile(24, *blocks, dtype=dtype, head=[Sequential()]))
    found = record(monkeypatch)
    y = folded(rng.standard_normal((n, 3, 34, 31)).astype(dtype))
    assert len(found) >= 4
    assert all(found)
    assert y.shape == (n, 50, 9, 8)
    assert last_in_memory(y)


def test_another_dense_filter_leaves_channels_first(monkeypatch, isa, dtype, rng):
    dense = convolution(24, 24, ReLU6(), kernel_size=3, padding=1, dtype=dtype)
    head = [*dense, separable(24, 24, 50, dtype=dtype), AdaptiveAvgPool2d(1), Flatten(), Linear(24, 5, dtype=dtype)]
    model = trained(mobile(24, (24, 150, 3, 1), dtype=dtype, head=head), rng, 32, dtype)
    folded, found = fold_batch_norm(model), record(monkeypatch)
    assert not any(isinstance(module, _SeparableBlock) for module in folded.modules())
    assert not any(module.channels_last for module in folded.modules() if isinstance(module, FusedConv2d))
    for shape in ((1, 3, 19, 18), (3, 3, 32, 32)):
        assert_equals_unfolded(model, folded, rng.standard_normal(shape).astype(dtype))
    assert len(found) == 16
    assert not any(found)
