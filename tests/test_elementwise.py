"""ReLU and its gradient: exact, to the sign of zero."""

import numpy as np
import pytest

import fastconv
from fastconv import reference

# Around every vector width, and past the size from which stores bypass the caches.
SIZES = [0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 129, 1000, (1 << 22) + 5]
SPECIAL = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-40, -1e-40, 1e-310, -1e-310, 3.0, -3.0]


def values(size, dtype, rng):
    x = rng.standard_normal(size, dtype)
    x[: len(SPECIAL)] = rng.permutation(SPECIAL)[:size]
    return x


def assert_same_bits(actual, expected):
    assert actual.dtype == expected.dtype
    np.testing.assert_array_equal(actual, expected)
    np.testing.assert_array_equal(np.signbit(actual), np.signbit(expected))


@pytest.mark.parametrize("size", SIZES)
def test_relu(size, isa, dtype, rng):
    x = values(size, dtype, rng)
    expected = reference.relu(x)
    assert_same_bits(fastconv.relu(x), expected)
    out = np.full_like(x, 7)
    assert fastconv.relu(x, out=out) is out
    assert_same_bits(out, expected)
    assert fastconv.relu(x, inplace=True) is x
    assert_same_bits(x, expected)


@pytest.mark.parametrize("size", SIZES)
def test_relu_backward(size, isa, dtype, rng):
    x, g = values(size, dtype, rng), values(size, dtype, rng)
    expected = reference.relu_backward(g, x)
    assert_same_bits(fastconv.relu_backward(g, x), expected)
    assert_same_bits(fastconv.relu_backward(g, fastconv.relu(x)), expected)
    for which in range(3):  # out may be either argument
        arrays = g.copy(), x.copy(), np.full_like(g, 7)
        assert fastconv.relu_backward(*arrays[:2], out=arrays[which]) is arrays[which]
        assert_same_bits(arrays[which], expected)


@pytest.mark.parametrize("offset", range(17))
def test_any_alignment(offset, isa, dtype, rng):
    """Vector stores begin at a boundary that the array need not begin at; what lies around stays."""
    x, out = values(200, dtype, rng), np.full(200, 7, dtype)
    fastconv.relu(x[offset : offset + 150], out=out[offset : offset + 150])
    assert_same_bits(out[offset : offset + 150], reference.relu(x[offset : offset + 150]))
    assert (out[:offset] == 7).all()
    assert (out[offset + 150 :] == 7).all()


def test_shapes_and_strides(isa, dtype, rng):
    for x in (dtype(-3), values(24, dtype, rng).reshape(2, 3, 4), values(24, dtype, rng).reshape(4, 6).T[::-2]):
        assert_same_bits(fastconv.relu(x), reference.relu(x))
        assert fastconv.relu(x).shape == np.shape(x)


def test_equals_torch(torch, isa, dtype, rng):
    x, g = values(1000, dtype, rng), values(1000, dtype, rng)
    t = torch.from_numpy(x).requires_grad_()
    y = torch.relu(t)
    y.backward(torch.from_numpy(g))
    np.testing.assert_array_equal(fastconv.relu(x), y.detach().numpy())
    np.testing.assert_array_equal(fastconv.relu_backward(g, x), t.grad.numpy())
