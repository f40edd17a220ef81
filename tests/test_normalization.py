"""Batch and local response normalisation: against the oracle, PyTorch, themselves on any number of threads."""

import numpy as np
import pytest
from tolerance import assert_close, bound

import fastconv
from fastconv import reference

# shape, offset of all values, reason
CASES = [
    ((2, 1), 0, "two values of one channel"),
    ((64, 5), 0, "fully connected"),
    ((3, 4, 15), 0, "1-D, one short of a vector"),
    ((2, 3, 16, 17), 0, "2-D, whole vectors"),
    ((1, 5, 9, 31), 0, "one image"),
    ((2, 3, 4, 5, 6), 0, "3-D"),
    ((4, 70, 7, 7), 1000, "a mean far above the deviation"),
    ((2, 4, 210, 200), -3, "more than a task"),
]
cases = pytest.mark.parametrize(("shape", "offset"), [c[:2] for c in CASES], ids=[c[2] for c in CASES])


def arrays(shape, offset, dtype, rng):
    c = shape[1]
    x, g = (rng.standard_normal(shape).astype(dtype) for _ in range(2))
    return x + dtype(offset), g, *(rng.standard_normal(c).astype(dtype) for _ in range(3)), rng.random(c, dtype) + 1


def absolute(x, weight, bias, mean, var, training, eps=1e-5):
    """The magnitude that a normalised value's rounding goes with: shift and scale of the largest."""
    mean = np.abs(x).mean((0, *range(2, x.ndim))) if training else np.abs(mean)  # what a mean rounds with
    scale = np.abs(weight) / np.sqrt(var + eps)
    shape = (-1, *[1] * (x.ndim - 2))
    return (np.abs(x) + mean.reshape(shape)) * scale.reshape(shape) + np.abs(bias).reshape(shape)


def gradient_magnitudes(g, x, weight, mean, var, training, eps=1e-5):
    """The same of the gradients in x, weight and bias."""
    shape, axes = (-1, *[1] * (x.ndim - 2)), (0, *range(2, x.ndim))
    inverse = 1 / np.sqrt(var + eps).reshape(shape)
    normal = (np.abs(x) + np.abs(mean).reshape(shape)) * inverse
    sizes = np.abs(g) + training * (np.abs(g).max(initial=0) * (1 + normal * normal.max(initial=0)))
    return sizes * inverse * np.abs(weight).reshape(shape), (np.abs(g) * normal).sum(axes), np.abs(g).sum(axes)


@cases
@pytest.mark.parametrize("training", [True, False])
def test_batch_norm(shape, offset, training, isa, dtype, rng):
    x, g, weight, bias, mean, var = arrays(shape, offset, dtype, rng)
    running, expected_running = ((mean.copy(), var.copy()) for _ in range(2))
    expected, m, v = reference.batch_norm(
        x, *expected_running, weight, bias, training, return_statistics=True, dtype=np.float64
    )
    y, actual_m, actual_v = fastconv.batch_norm(x, *running, weight, bias, training, return_statistics=True)
    assert_close(y, expected, bound("sum", dtype, 8, absolute(x, weight, bias, m, v, training)), dtype, "y")
    np.testing.assert_allclose(actual_m, m, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(actual_v, v, rtol=1e-9)
    for a, e in zip(running, expected_running, strict=True):
        np.testing.assert_allclose(a, e, rtol=2 * np.finfo(dtype).eps, atol=np.finfo(dtype).eps)
    out = np.full_like(x, np.nan)
    assert fastconv.batch_norm(x, mean, var, weight, bias, training, out=out) is out
    np.testing.assert_array_equal(out, y)

    expected = reference.batch_norm_backward(g, x, m, v, weight, training, dtype=np.float64)
    actual = fastconv.batch_norm_backward(g, x, m, v, weight, training)
    limits = gradient_magnitudes(g, x, weight, m, v, training)
    for name, a, e, limit in zip(("input", "weight", "bias"), actual, expected, limits, strict=True):
        assert_close(a, e, bound("sum", dtype, 8, limit), dtype, name)


@cases
def test_batch_norm_equals_torch(torch, shape, offset, dtype, rng):
    x, g, weight, bias, mean, var = arrays(shape, offset, dtype, rng)
    theirs = [torch.from_numpy(a.copy()) for a in (x, mean, var, weight, bias)]
    for tensor in (theirs[0], *theirs[3:]):
        tensor.requires_grad_()
    y = torch.nn.functional.batch_norm(*theirs, training=True)
    y.backward(torch.from_numpy(g))
    actual, m, v = fastconv.batch_norm(x, mean, var, weight, bias, True, return_statistics=True)
    eps = np.finfo(dtype).eps * (1 + abs(offset)) * 100
    np.testing.assert_allclose(actual, y.detach().numpy(), rtol=eps, atol=eps)
    np.testing.assert_allclose(mean, theirs[1].numpy(), rtol=eps, atol=eps)
    np.testing.assert_allclose(var, theirs[2].numpy(), rtol=eps, atol=eps)
    scale = np.abs(g).sum() * eps
    for a, t in zip(fastconv.batch_norm_backward(g, x, m, v, weight, True), (theirs[0], *theirs[3:]), strict=True):
        np.testing.assert_allclose(a, t.grad.numpy(), rtol=eps, atol=scale)


def test_threads_change_no_bit(isa, dtype, rng):
    x, g = (rng.standard_normal((5, 37, 60, 61)).astype(dtype) for _ in range(2))
    results = []
    for n in (1, 2, 3):
        with fastconv.threads(n):
            y, mean, var = fastconv.batch_norm(x, None, None, training=True, return_statistics=True)
            results.append((y, mean, var, *fastconv.batch_norm_backward(g, x, mean, var, None, True)))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_nan_stays_in_its_channel(isa, dtype, rng):
    x = rng.standard_normal((2, 3, 40)).astype(dtype)
    x[0, 1, 0] = np.inf
    y = fastconv.batch_norm(x, None, None, training=True)
    assert np.isnan(y[:, 1]).any()
    assert np.isfinite(y[:, [0, 2]]).all()


def test_empty_batch(dtype):
    x, ones = np.empty((0, 3, 4), dtype), np.ones(3, dtype)
    assert fastconv.batch_norm(x, ones, ones).shape == x.shape
    gradients = fastconv.batch_norm_backward(x, x, ones, ones)
    np.testing.assert_array_equal(gradients[1], 0)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("shape", [(2, 6, 5, 7), (1, 3, 4), (3, 9)])
def test_local_response_norm(torch, size, shape, dtype, rng):
    x, g = rng.standard_normal(shape).astype(dtype), rng.standard_normal(shape).astype(dtype)
    options = (size, 0.3, 0.75, 1.5)
    limit = {"rtol": 0, "atol": 40 * np.finfo(dtype).eps}
    y, gradient = fastconv.local_response_norm(x, *options), fastconv.local_response_norm_backward(g, x, *options)
    np.testing.assert_allclose(y, reference.local_response_norm(x, *options), **limit)
    np.testing.assert_allclose(gradient, reference.local_response_norm_backward(g, x, *options), **limit)
    assert y.dtype == gradient.dtype == dtype
    if len(shape) > 2:
        t = torch.from_numpy(x).requires_grad_()
        theirs = torch.nn.functional.local_response_norm(t, *options)
        theirs.backward(torch.from_numpy(g))
        np.testing.assert_allclose(y, theirs.detach().numpy(), **limit)
        np.testing.assert_allclose(gradient, t.grad.numpy(), **limit)


X, ONES = np.ones((2, 3, 4), np.float32), np.ones(3, np.float32)
FROZEN = np.ones(3, np.float32)
FROZEN.flags.writeable = False


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((X, None, ONES), TypeError, "batch_norm: running_mean must be an array in CPU memory, got NoneType: it may"),
        ((X, ONES, ONES[:2]), ValueError, r"batch_norm: running_var.shape must equal x.shape\[1:2\] = \(3,\)"),
        ((X, ONES, ONES, ONES[:2]), ValueError, "batch_norm: weight.shape must equal"),
        ((X, ONES, ONES, ONES.astype(float)), TypeError, "batch_norm: weight.dtype must equal x.dtype"),
        ((X, FROZEN, ONES, None, None, True), ValueError, "batch_norm: running_mean must be writeable"),
        ((X, ONES, ONES, None, None, 1), TypeError, "batch_norm: training must be a bool, got 1"),
        ((X, ONES, ONES, None, None, True, -1), ValueError, "batch_norm: momentum must be finite and at least 0"),
        ((X, ONES, ONES, None, None, True, 0.1, "a"), TypeError, "batch_norm: eps must be a number, got 'a'"),
        ((X[:1, :, :1], ONES, ONES, None, None, True), ValueError, "batch_norm: x must have more than one value"),
        ((X[0, 0], ONES, ONES), ValueError, r"batch_norm: x must have shape \(n, c, ...\)"),
    ],
)
def test_refused(arguments, error, message):
    with pytest.raises(error, match=f"^{message}"):
        fastconv.batch_norm(*arguments)


def test_other_refusals():
    with pytest.raises(ValueError, match=r"^batch_norm_backward: grad_output.shape must equal"):
        fastconv.batch_norm_backward(X[:1], X, ONES, ONES)
    with pytest.raises(ValueError, match=r"^batch_norm: out must not share memory with x"):
        fastconv.batch_norm(X, ONES, ONES, out=X)
    with pytest.raises(ValueError, match=r"^local_response_norm: size must be at least 1, got 0"):
        fastconv.local_response_norm(X, 0)
