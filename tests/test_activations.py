"""Activations and softmax with their gradients: against the oracle, PyTorch, and bad input."""

import numpy as np
import pytest
from tolerance import OWN_ERRORS, assert_close, bound

import fastconv
from fastconv import reference

SIZES = [0, 1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 65, 70001]  # around every vector width, and past a task
SPECIAL = [np.nan, np.inf, -np.inf, 0.0, -0.0, 6.0, -3.0, 3.0, 100.0, -100.0, 1e-20, 80.0, -95.0, 1e30]
NAMES = ["relu6", "leaky_relu", "sigmoid", "tanh", "silu", "hardswish"]
OF_OUTPUT = ("sigmoid", "tanh")
AXES = [
    ((7,), -1),
    ((3, 10), 1),
    ((3, 17), 0),
    ((2, 5, 33), 1),
    ((2, 1, 4), 1),
    ((4, 0), 1),
    ((0, 4), 1),
    ((1, 40000), 1),
]


def values(size, dtype, rng):
    x = 3 * rng.standard_normal(size, dtype)
    x[: len(SPECIAL)] = rng.permutation(np.array(SPECIAL, dtype))[:size]
    return x


def own_error(name, expected, dtype):
    return OWN_ERRORS.get(name, 0) * np.finfo(dtype).eps * (1 + np.abs(expected)) + np.finfo(dtype).tiny


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", SIZES)
def test_forward(name, size, isa, dtype, rng):
    x = values(size, dtype, rng)
    expected = getattr(reference, name)(x, dtype=np.float64)
    if name == "silu":  # -inf * 0
        x = np.where(np.isinf(x), dtype(1), x)
        expected = reference.silu(x, dtype=np.float64)
    y = getattr(fastconv, name)(x)
    assert_close(y, expected, own_error(name, expected, dtype), dtype, name)
    assert getattr(fastconv, name)(x, out=x) is x
    np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", SIZES)
def test_backward(name, size, isa, dtype, rng):
    x, g = 3 * rng.standard_normal(size, dtype), rng.standard_normal(size, dtype)
    x = getattr(fastconv, name)(x) if name in OF_OUTPUT else x
    expected = getattr(reference, f"{name}_backward")(g, x, dtype=np.float64)
    y = getattr(fastconv, f"{name}_backward")(g, x)
    assert_close(y, expected, 8 * np.finfo(dtype).eps * (1 + np.abs(x)) * np.abs(g), dtype, name)
    for out in (g.copy(), x.copy()):
        arguments = (out, x) if np.array_equal(out, g) else (g, out)
        assert getattr(fastconv, f"{name}_backward")(*arguments, out=out) is out
        np.testing.assert_array_equal(out, y)


@pytest.mark.parametrize("name", ["exp", "tanh"])
def test_relative_errors_near_zero_and_over_the_whole_range(name, isa, dtype):
    """Exponentials carry sigmoid's tail, and tanh must not cancel."""
    x = np.concatenate([np.geomspace(1e-30, 20, 1000), -np.geomspace(1e-30, 20, 1000)]).astype(dtype)
    if name == "tanh":
        actual, expected = fastconv.tanh(x), np.tanh(x.astype(np.float64))
    else:
        actual, expected = 1 / fastconv.sigmoid(x) - 1, np.exp(-x.astype(np.float64))
        actual, expected = actual[expected > 1], expected[expected > 1]
    np.testing.assert_allclose(actual, expected, rtol=(4 if name == "tanh" else 8) * np.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_equals_torch(torch, name, dtype, rng):
    x, g = 3 * rng.standard_normal(1000).astype(dtype), rng.standard_normal(1000).astype(dtype)
    t = torch.from_numpy(x).requires_grad_()
    functional = torch.nn.functional
    y = getattr(functional, name)(t) if name not in OF_OUTPUT else getattr(torch, name)(t)
    y.backward(torch.from_numpy(g))
    ours = getattr(fastconv, name)(x)
    limit = {"rtol": 10 * np.finfo(dtype).eps, "atol": 10 * np.finfo(dtype).eps}
    np.testing.assert_allclose(ours, y.detach().numpy(), **limit)
    ours = getattr(fastconv, f"{name}_backward")(g, ours if name in OF_OUTPUT else x)
    np.testing.assert_allclose(ours, t.grad.numpy(), **limit)


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@pytest.mark.parametrize(("shape", "axis"), AXES, ids=str)
def test_softmax(name, shape, axis, isa, dtype, rng):
    x, g = 5 * rng.standard_normal(shape).astype(dtype), rng.standard_normal(shape).astype(dtype)
    if 0 in shape:
        assert getattr(fastconv, name)(x, axis).shape == shape
        return
    expected = getattr(reference, name)(x, axis, dtype=np.float64)
    y = getattr(fastconv, name)(x, axis)
    terms = shape[axis]
    assert_close(y, expected, bound("sum", dtype, terms + 8, 1 + np.abs(expected)), dtype, name)
    expected = getattr(reference, f"{name}_backward")(g, y, axis, dtype=np.float64)
    magnitude = getattr(reference, f"{name}_backward")(-np.abs(g), y, axis, dtype=np.float64)
    magnitude = np.abs(magnitude) + np.abs(g) + np.abs(g).sum(axis, keepdims=True)
    actual = getattr(fastconv, f"{name}_backward")(g, y, axis)
    assert_close(actual, expected, bound("sum", dtype, terms + 8, magnitude), dtype, name)
    out = np.asfortranarray(np.empty_like(x))
    np.testing.assert_array_equal(getattr(fastconv, name)(x, axis, out=out), y)


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax_of_large_and_non_finite(torch, name, isa, dtype):
    x = np.array([[1e30, 0, -1e30], [-np.inf, 0, 1], [np.nan, 0, 1], [np.inf, 0, 1], [-np.inf] * 3], dtype)
    expected = getattr(torch, name)(torch.from_numpy(x), 1).numpy()
    np.testing.assert_allclose(getattr(fastconv, name)(x), expected, rtol=10 * np.finfo(dtype).eps)


def test_threads_change_no_bit(isa, dtype, rng):
    x = rng.standard_normal((70, 3001)).astype(dtype)
    for name in [*NAMES, "softmax", "log_softmax"]:
        results = []
        for n in (1, 2, 3):
            with fastconv.threads(n):
                y = getattr(fastconv, name)(x)
                results.append((y, getattr(fastconv, f"{name}_backward")(x, y)))
        for other in results[1:]:
            np.testing.assert_array_equal(other, results[0], err_msg=name)


X = np.ones((2, 3), np.float32)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: fastconv.relu6(np.ones(3, int)), TypeError, "relu6: x.dtype must be float32 or float64, got int64"),
        (lambda: fastconv.silu(None), TypeError, "silu: x must be an array in CPU memory"),
        (lambda: fastconv.tanh(X, out=X[:1]), ValueError, "tanh: out must not share memory with x"),
        (lambda: fastconv.tanh(X, out=np.ones(6, np.float32)), ValueError, "tanh: out.shape must equal"),
        (lambda: fastconv.leaky_relu(X, np.inf), ValueError, "leaky_relu: activation must be"),
        (lambda: fastconv.sigmoid_backward(X, X[:1]), ValueError, "sigmoid_backward: y.shape must equal grad_output"),
        (lambda: fastconv.silu_backward(X, X.astype(float)), TypeError, "silu_backward: x.dtype must equal"),
        (lambda: fastconv.softmax(X, 2), ValueError, "softmax: axis must be one of the 2 of x, got 2"),
        (lambda: fastconv.softmax(X, 1.0), TypeError, "softmax: axis must be an integer"),
        (lambda: fastconv.softmax(X[0, 0]), ValueError, "softmax: axis must be one of the 0 of x, got -1"),
        (lambda: fastconv.softmax(X, out=X), ValueError, "softmax: out must not share memory with x"),
        (lambda: fastconv.log_softmax_backward(X, X[:1]), ValueError, "log_softmax_backward: y.shape must equal"),
    ],
)
def test_refused(call, error, message):
    with pytest.raises(error, match=f"^{message}"):
        call()
