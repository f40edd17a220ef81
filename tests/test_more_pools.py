"""Adaptive, Lp and inverse pools, unfold and fold: against the oracle, PyTorch and their adjoints."""

from itertools import product
from math import prod

import numpy as np
import pytest
from tolerance import assert_close, bound

import fastconv
from fastconv import reference

SHAPES = {1: (2, 3, 23), 2: (2, 3, 7, 10), 3: (2, 2, 5, 6, 7)}
EXACT = {"rtol": 1e-10, "atol": 1e-12}


def functions(family, ndim):
    names = f"{family}{ndim}d", f"{family}{ndim}d_backward"
    return *(getattr(fastconv, name) for name in names), *(getattr(reference, name) for name in names)


def with_nan(x, rng):
    x = np.round(2 * x)
    x[rng.random(x.shape) < 0.1] = np.nan
    return x


ADAPTIVE = [
    (1, (2, 3, 23), 5),
    (1, (3, 24), 8),
    (1, (2, 3, 5), 9),
    (2, (2, 3, 7, 10), 1),
    (2, (2, 9, 7, 7), 1),
    (2, (2, 3, 7, 10), (3, 5)),
    (2, (2, 3, 7, 10), (None, 2)),
    (2, (3, 8, 12), (4, 3)),
    (2, (0, 3, 7, 10), 3),
    (2, (2, 3, 7, 10), None),
    (3, (2, 2, 5, 6, 7), (2, 3, 4)),
    (3, (2, 2, 4, 6, 8), 2),
]
adaptive = pytest.mark.parametrize(("ndim", "shape", "size"), ADAPTIVE)


@adaptive
def test_adaptive_avg_pool(ndim, shape, size, isa, dtype, rng):
    forward, backward, oracle, oracle_backward = functions("adaptive_avg_pool", ndim)
    x = rng.standard_normal(shape).astype(dtype)
    y = forward(x, size)
    limit = bound("sum", dtype, prod(shape[-ndim:]), oracle(np.abs(x), size, dtype=np.float64))
    assert_close(y, oracle(x, size, dtype=np.float64), limit, dtype, "output")
    g = rng.standard_normal(y.shape).astype(dtype)
    limit = bound("sum", dtype, 3**ndim + 1, oracle_backward(np.abs(g), shape, size, dtype=np.float64))
    assert_close(backward(g, shape, size), oracle_backward(g, shape, size, dtype=np.float64), limit, dtype, "gradient")


@adaptive
def test_adaptive_max_pool(ndim, shape, size, isa, dtype, rng):
    forward, backward, oracle, oracle_backward = functions("adaptive_max_pool", ndim)
    x = with_nan(rng.standard_normal(shape), rng).astype(dtype)
    y, indices = forward(x, size, return_indices=True)
    expected, places = oracle(x, size, return_indices=True)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(indices, places)
    np.testing.assert_array_equal(forward(x, size), expected)
    g = rng.integers(-4, 5, y.shape).astype(dtype)
    np.testing.assert_array_equal(backward(g, indices, shape, size), oracle_backward(g, indices, shape, size))


@adaptive
def test_adaptive_pools_equal_torch(torch, ndim, shape, size, rng):
    if not prod(shape) or size is None:
        pytest.skip("not PyTorch's")
    for family in ("adaptive_avg_pool", "adaptive_max_pool"):
        forward, backward, *_ = functions(family, ndim)
        x = rng.standard_normal(shape)
        x = x if "avg" in family else with_nan(x, rng)
        theirs = torch.from_numpy(x).requires_grad_()
        extra = {} if "avg" in family else {"return_indices": True}
        expected = getattr(torch.nn.functional, f"{family}{ndim}d")(theirs, size, **extra)
        actual = forward(x, size, **extra)
        expected, *places = expected if extra else (expected,)
        y, *indices = actual if extra else (actual,)
        np.testing.assert_allclose(y, expected.detach(), **EXACT)
        for ours, other in zip(indices, places, strict=True):
            np.testing.assert_array_equal(ours, other)
        g = rng.standard_normal(y.shape)
        expected.backward(torch.from_numpy(g))
        np.testing.assert_allclose(backward(g, *indices, shape, size), theirs.grad, **EXACT)


@pytest.mark.parametrize("size", [3, 5])  # of windows of 4 and less, of windows of 2
def test_adaptive_index_outside_its_window(size, dtype):
    x = np.arange(20, dtype=dtype).reshape(1, 2, 10)
    y, indices = fastconv.adaptive_max_pool1d(x, size, return_indices=True)
    for index in (-1, 5, 10, 2**62, -(2**63)):
        wrong, out = indices.copy(), np.full(x.shape, 3, dtype)
        wrong[0, 1, 0] = index
        with pytest.raises(ValueError, match=r"^adaptive_max_pool1d_backward: indices .* 1 outside"):
            fastconv.adaptive_max_pool1d_backward(y, wrong, x.shape, size, out=out)
        assert (out == 3).all()


LP = [
    *((ndim, p, {}) for ndim, p in product((1, 2, 3), (1, 2, 3, 1.5))),
    (2, 2, {"stride": 1, "padding": 1}),
    (2, 3, {"stride": (2, 3), "ceil_mode": True}),
    (1, 2.0, {"padding": ((0, 1),), "ceil_mode": True}),
]


@pytest.mark.parametrize(("ndim", "p", "options"), LP)
def test_lp_pool(ndim, p, options, isa, dtype, rng):
    forward, backward, oracle, oracle_backward = functions("lp_pool", ndim)
    x = rng.standard_normal(SHAPES[ndim]).astype(dtype)
    x[rng.random(x.shape) < 0.3] = 0
    y, expected = forward(x, p, 2, **options), oracle(x, p, 2, **options, dtype=np.float64)
    assert_close(y, expected, bound("sum", dtype, 2**ndim + 8, expected), dtype, "output")
    g = rng.standard_normal(y.shape).astype(dtype)
    expected = oracle_backward(g, x, p, 2, **options, dtype=np.float64)
    magnitude = np.abs(oracle_backward(np.abs(g), np.abs(x), p, 2, **options, dtype=np.float64))
    assert_close(backward(g, x, p, 2, **options), expected, bound("sum", dtype, 36, magnitude), dtype, "gradient")


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_lp_pool_equals_torch(torch, ndim, rng):
    """Where it takes no odd power."""
    forward, backward, *_ = functions("lp_pool", ndim)
    x = rng.standard_normal(SHAPES[ndim])
    theirs = torch.from_numpy(x).requires_grad_()
    expected = getattr(torch.nn.functional, f"lp_pool{ndim}d")(theirs, 2, 2, 1)
    y = forward(x, 2, 2, 1)
    np.testing.assert_allclose(y, expected.detach(), **EXACT)
    g = rng.standard_normal(y.shape)
    expected.backward(torch.from_numpy(g))
    np.testing.assert_allclose(backward(g, x, 2, 2, 1), theirs.grad, **EXACT)


@pytest.mark.parametrize("options", [{}, {"stride": 3, "padding": 1}, {"output_size": True}])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_max_unpool(torch, ndim, options, dtype, rng):
    forward, backward, oracle, oracle_backward = functions("max_unpool", ndim)
    x = rng.standard_normal(SHAPES[ndim]).astype(dtype)
    if "output_size" in options:
        options = {"output_size": x.shape[-ndim:]}
    pool = {k: v for k, v in options.items() if k != "output_size"}
    y, indices = getattr(fastconv, f"max_pool{ndim}d")(x, 3, **pool, return_indices=True)
    if "output_size" not in options:  # the size by default may be less than the image
        indices %= prod(forward(y, np.zeros_like(indices), 3, **options).shape[-ndim:])
    actual = forward(y, indices, 3, **options)
    np.testing.assert_array_equal(actual, oracle(y, indices, 3, **options))
    g = rng.standard_normal(actual.shape).astype(dtype)
    grad = backward(g, indices, 3, **options)
    np.testing.assert_array_equal(grad, oracle_backward(g, indices, 3, **options))
    if "output_size" in options:
        theirs = torch.from_numpy(y).requires_grad_()
        unpool = getattr(torch.nn.functional, f"max_unpool{ndim}d")
        expected = unpool(theirs, torch.from_numpy(indices), 3, **options)
        np.testing.assert_array_equal(actual, expected.detach())
        expected.backward(torch.from_numpy(g))
        np.testing.assert_array_equal(grad, theirs.grad)


FOLDS = [
    ((2, 3, 7, 10), 2, {}),
    ((2, 3, 7, 10), (3, 2), {"stride": 2, "padding": 1}),
    ((2, 3, 7, 10), (3, 2), {"dilation": (2, 3), "padding": ((1, 0), (2, 3)), "stride": (1, 2)}),
    ((3, 7, 10), (3, 3), {"padding": "same"}),
    ((0, 3, 7, 10), (3, 3), {}),
    ((2, 3, 23), (4,), {"stride": 3, "padding": 2}),
    ((2, 2, 4, 5, 6), (2, 3, 2), {"stride": 2, "padding": 1}),
]


@pytest.mark.parametrize("order", [None, "batch_outer", "batch_inner"])
@pytest.mark.parametrize(("shape", "kernel", "options"), FOLDS)
def test_unfold_and_fold(shape, kernel, options, order, dtype, rng):
    ndim = 2 if isinstance(kernel, int) else len(kernel)
    x = rng.integers(-4, 5, shape).astype(dtype)
    columns = fastconv.unfold(x, kernel, **options, order=order)
    np.testing.assert_array_equal(columns, reference.unfold(x, kernel, **options, order=order), strict=True)
    g = rng.integers(-4, 5, columns.shape).astype(dtype)
    folded = fastconv.fold(g, shape[-ndim:], kernel, **options, order=order)
    np.testing.assert_array_equal(folded, reference.fold(g, shape[-ndim:], kernel, **options, order=order))
    assert np.vdot(columns, g) == np.vdot(x, folded)  # adjoint, and exact
    for out, run in (
        (np.empty_like(columns), lambda out: fastconv.unfold(x, kernel, **options, order=order, out=out)),
        (np.empty_like(folded), lambda out: fastconv.fold(g, shape[-ndim:], kernel, **options, order=order, out=out)),
    ):
        assert run(out) is out
        np.testing.assert_array_equal(out, columns if out.shape == columns.shape else folded)


@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1, "dilation": (1, 2)}])
def test_unfold_and_fold_equal_torch(torch, options, rng):
    x = rng.standard_normal((2, 3, 7, 10))
    expected = torch.nn.functional.unfold(torch.from_numpy(x), (3, 2), **options)
    np.testing.assert_array_equal(fastconv.unfold(x, (3, 2), **options), expected)
    expected = torch.nn.functional.fold(expected, (7, 10), (3, 2), **options)
    np.testing.assert_allclose(
        fastconv.fold(fastconv.unfold(x, (3, 2), **options), (7, 10), (3, 2), **options), expected
    )


def test_orders_of_columns():
    x = np.arange(4.0).reshape(2, 1, 2)
    np.testing.assert_array_equal(fastconv.unfold(x, (1,)), [[[0, 1]], [[2, 3]]])
    np.testing.assert_array_equal(fastconv.unfold(x, (1,), order="batch_outer"), [[0, 1, 2, 3]])
    np.testing.assert_array_equal(fastconv.unfold(x, (1,), order="batch_inner"), [[0, 2, 1, 3]])
