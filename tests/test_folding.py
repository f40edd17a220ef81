"""Folded networks compute what the networks in ``eval()`` do."""

import numpy as np
import pytest

from fastconv import conv2d, fold_batch_norm, models
from fastconv.layers import BatchNorm2d, Concat, Conv2d, MaxPool2d, ReLU, ReLU6, Residual, Sequential, Tanh


def trained(model, rng, size):
    """Move the running statistics and the parameters of the normalisations from where they begin."""
    model(rng.standard_normal((4, 3, size, size), np.float32))
    for name, values in model._named_state().items():
        if values.ndim == 1 and "var" not in name:
            values += 0.1 * rng.standard_normal(values.shape, np.float32)
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
