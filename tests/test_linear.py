"""Fully connected layers against the oracle, on every ISA and both types."""

import numpy as np
import pytest
from tolerance import activation_bound, assert_close, bound

import fastconv
from fastconv import reference

# leading dimensions, in_features, out_features, reason
CASES = [
    ((), 7, 5, "one vector"),
    ((1,), 9, 11, "batch 1"),
    ((1,), 1031, 67, "batch 1, in_features past several slices"),
    ((3,), 50, 130, "few rows"),
    ((8,), 90, 40, "most rows that are dot products"),
    ((9,), 90, 40, "one row more"),
    ((3,), 1031, 67, "few rows, in_features past several slices"),
    ((4,), 1100, 1000, "most rows of dot products where weights are large"),
    ((5,), 1100, 1000, "one row more, weights large"),
    ((1000,), 33, 3, "few out_features, rows past several slices"),
    ((2,), 4201, 19, "few rows, in_features past what a task adds up"),
    ((15,), 33, 17, "rows one short of a vector"),
    ((17,), 33, 17, "rows one past a vector"),
    ((49,), 20, 25, "rows one past a panel, out_features one past every tile"),
    ((64,), 400, 120, "LeNet's first"),
    ((70,), 1, 1, "one feature to one"),
    ((2, 3, 4), 6, 10, "three leading dimensions"),
    ((1100,), 5, 3, "many rows, few features"),
    ((350,), 500, 1100, "rows past one block, out_features and slices past what is packed together"),
    ((0,), 6, 4, "no rows"),
]
GRADIENTS = ("grad_input", "grad_weight", "grad_bias")

cases = pytest.mark.parametrize(("lead", "features", "out_features"), [c[:3] for c in CASES], ids=[c[3] for c in CASES])


def arrays(lead, features, out_features, dtype, draw):
    shapes = (*lead, features), (out_features, features), (out_features,), (*lead, out_features)
    return [draw(shape).astype(dtype) for shape in shapes]


def check_output(x, weight, bias, y, activation=None):
    expected = reference.linear(x, weight, bias, activation=activation, dtype=np.float64)
    magnitude = reference.linear(np.abs(x), np.abs(weight), None if bias is None else np.abs(bias), dtype=np.float64)
    limit = bound("gemm", x.dtype, x.shape[-1] + (bias is not None), magnitude)
    assert_close(y, expected, activation_bound(activation, x.dtype, expected, limit), x.dtype, "output")


def check_gradients(g, x, weight, actual):
    expected = reference.linear_backward(g, x, weight, dtype=np.float64)
    magnitudes = reference.linear_backward(np.abs(g), np.abs(x), np.abs(weight), dtype=np.float64)
    rows = max(g.size // len(weight), 1)
    for name, a, e, k, m in zip(GRADIENTS, actual, expected, (len(weight), rows, rows), magnitudes, strict=True):
        assert_close(a, e, bound("gemm", x.dtype, k, m), x.dtype, name)


@cases
def test_linear(lead, features, out_features, isa, dtype, rng):
    x, weight, bias, g = arrays(lead, features, out_features, dtype, rng.standard_normal)
    check_output(x, weight, bias, fastconv.linear(x, weight, bias))
    check_output(x, weight, None, fastconv.linear(x, weight))
    check_gradients(g, x, weight, fastconv.linear_backward(g, x, weight))


@cases
def test_small_integers_are_exact(lead, features, out_features, isa, dtype, rng):
    x, weight, bias, g = arrays(lead, features, out_features, dtype, lambda shape: rng.integers(-4, 5, shape))
    np.testing.assert_array_equal(fastconv.linear(x, weight, bias), reference.linear(x, weight, bias))
    actual, expected = (module.linear_backward(g, x, weight) for module in (fastconv, reference))
    for name, a, e in zip(GRADIENTS, actual, expected, strict=True):
        np.testing.assert_array_equal(a, e, err_msg=name)


@pytest.mark.parametrize("activation", ["relu", "relu6", ("leaky_relu", 0.1), "silu", "hardswish", "sigmoid", "tanh"])
@pytest.mark.parametrize(("rows", "features", "out_features"), [(1, 20, 30), (50, 20, 30), (350, 150, 1100)])
def test_activation(activation, rows, features, out_features, isa, dtype, rng):
    x, weight, bias, _ = arrays((rows,), features, out_features, dtype, rng.standard_normal)
    check_output(x, weight, bias, fastconv.linear(x, weight, bias, activation=activation), activation)


@cases
def test_nan_and_inf_stay_in_their_rows(lead, features, out_features, isa, dtype, rng):
    x, weight, bias, g = arrays(lead, features, out_features, dtype, rng.standard_normal)
    for array in (x, g):
        array.flat[:1], array.flat[-1:] = np.nan, np.inf
        check_output(x, weight, bias, fastconv.linear(x, weight, bias))
        check_gradients(g, x, weight, fastconv.linear_backward(g, x, weight))


@cases
def test_out_receives_the_same_bits(lead, features, out_features, isa, dtype, rng):
    x, weight, bias, g = arrays(lead, features, out_features, dtype, rng.standard_normal)
    out = np.full_like(g, np.nan)
    assert fastconv.linear(x, weight, bias, out=out) is out
    np.testing.assert_array_equal(out, fastconv.linear(x, weight, bias))
    outs = tuple(np.full_like(a, np.nan) for a in (x, weight, bias))
    returned = fastconv.linear_backward(g, x, weight, out=outs)
    for a, b, c in zip(returned, outs, fastconv.linear_backward(g, x, weight), strict=True):
        assert a is b
        np.testing.assert_array_equal(b, c)


@cases
def test_equals_torch(torch, lead, features, out_features, dtype, rng):
    *arguments, g = map(torch.from_numpy, arrays(lead, features, out_features, dtype, rng.standard_normal))
    y = torch.nn.functional.linear(*(a.requires_grad_() for a in arguments))
    y.backward(g)
    x, weight, bias = (a.detach().numpy() for a in arguments)
    limit = {"rtol": 0, "atol": 20 * np.finfo(dtype).eps * max(features, out_features, g.numel() // out_features, 8)}
    np.testing.assert_allclose(fastconv.linear(x, weight, bias), y.detach().numpy(), **limit)
    for a, e in zip(fastconv.linear_backward(g.numpy(), x, weight), arguments, strict=True):
        np.testing.assert_allclose(a, e.grad.numpy(), **limit)
