"""CS231n's names against the course's naive loops."""

import numpy as np
import pytest

from fastconv.integrations import cs231n


def conv_naive(x, w, b, stride, pad):
    x = np.pad(x, [(0, 0), (0, 0), (pad, pad), (pad, pad)])
    size = [(i - k) // stride + 1 for i, k in zip(x.shape[2:], w.shape[2:], strict=True)]
    out = np.zeros((len(x), len(w), *size))
    for n, f, i, j in np.ndindex(out.shape):
        window = x[n, :, i * stride : i * stride + w.shape[2], j * stride : j * stride + w.shape[3]]
        out[n, f, i, j] = (window * w[f]).sum() + b[f]
    return out


def conv_backward_naive(dout, x, w, stride, pad):
    dx, dw = np.zeros((*x.shape[:2], x.shape[2] + 2 * pad, x.shape[3] + 2 * pad)), np.zeros(w.shape)
    x = np.pad(x, [(0, 0), (0, 0), (pad, pad), (pad, pad)])
    for n, f, i, j in np.ndindex(dout.shape):
        place = n, slice(None), slice(i * stride, i * stride + w.shape[2]), slice(j * stride, j * stride + w.shape[3])
        dx[place] += w[f] * dout[n, f, i, j]
        dw[f] += x[place] * dout[n, f, i, j]
    return dx[:, :, pad : dx.shape[2] - pad, pad : dx.shape[3] - pad], dw, dout.sum(axis=(0, 2, 3))


def pool_backward_naive(dout, x, height, width, stride, shared):
    dx = np.zeros_like(x)
    for n, c, i, j in np.ndindex(dout.shape):
        place = n, c, slice(i * stride, i * stride + height), slice(j * stride, j * stride + width)
        is_max = x[place] == x[place].max()
        if not shared:
            is_max.flat[np.argmax(is_max) + 1 :] = False
        dx[place] += is_max * dout[n, c, i, j] / is_max.sum()
    return dx


@pytest.mark.parametrize("name", ["fast", "im2col", "strides"])
@pytest.mark.parametrize(("stride", "pad", "size"), [(1, 1, 6), (2, 1, 7), (2, 0, 5), (3, 2, 5)])
def test_convolution(name, stride, pad, size, dtype, rng):
    x, w = rng.standard_normal((2, 3, size, size)).astype(dtype), rng.standard_normal((4, 3, 3, 3)).astype(dtype)
    b, conv_param = rng.standard_normal(4).astype(dtype), {"stride": stride, "pad": pad}
    forward, backward = (getattr(cs231n, f"conv_{way}_{name}") for way in ("forward", "backward"))
    out, cache = forward(x, w, b, conv_param)
    limit = {"rtol": 0, "atol": 300 * np.finfo(dtype).eps}
    np.testing.assert_allclose(out, conv_naive(x, w, b, stride, pad), **limit)
    dout = rng.standard_normal(out.shape)  # float64, as the notebooks have it
    for actual, expected in zip(backward(dout, cache), conv_backward_naive(dout, x, w, stride, pad), strict=True):
        np.testing.assert_allclose(actual, expected, **limit)


@pytest.mark.parametrize(("height", "width", "stride", "shared"), [(2, 2, 2, True), (3, 2, 1, False), (2, 2, 1, False)])
def test_max_pool_with_ties(height, width, stride, shared, dtype, rng):
    x = rng.integers(0, 3, (2, 3, 6, 8)).astype(dtype)
    pool_param = {"pool_height": height, "pool_width": width, "stride": stride}
    out, cache = cs231n.max_pool_forward_fast(x, pool_param)
    dout = rng.standard_normal(out.shape).astype(dtype)
    expected = pool_backward_naive(dout, x, height, width, stride, shared)
    limit = {"rtol": 0, "atol": 20 * np.finfo(dtype).eps}
    np.testing.assert_allclose(cs231n.max_pool_backward_fast(dout, cache), expected, **limit)
    out, cache = cs231n.max_pool_forward_im2col(x, pool_param)
    expected = pool_backward_naive(dout, x, height, width, stride, False)
    np.testing.assert_allclose(cs231n.max_pool_backward_im2col(dout, cache), expected, **limit)


@pytest.mark.parametrize("batch_first", [False, True])
def test_columns(batch_first, rng):
    x = rng.standard_normal((2, 3, 7, 5))
    sizes = (3, 3, 1, 2)
    cols = cs231n.im2col_cython(x, *sizes, batch_first=batch_first)
    padded = np.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1)])
    shape = (2, 4, 3) if batch_first else (4, 3, 2)
    for place in np.ndindex(shape):
        n, i, j = place if batch_first else (place[2], *place[:2])
        expected = padded[n, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].ravel()
        np.testing.assert_array_equal(cols[:, np.ravel_multi_index(place, shape)], expected)
    g = rng.standard_normal(cols.shape)
    image = cs231n.col2im_cython(g, *x.shape, *sizes, batch_first=batch_first)
    assert image.shape == x.shape
    assert np.sum(image * x) == pytest.approx(np.sum(g * cols))
    if batch_first:
        six = g.reshape(3, 3, 3, 2, 4, 3)
        np.testing.assert_array_equal(cs231n.col2im_6d_cython(six, *x.shape, *sizes), image)


def test_sizes_must_divide():
    x, w = np.ones((1, 1, 6, 6)), np.ones((1, 1, 3, 3))
    with pytest.raises(AssertionError, match="height does not work"):
        cs231n.conv_forward_fast(x, w, np.ones(1), {"stride": 2, "pad": 0})
    with pytest.raises(AssertionError, match="Invalid height"):
        cs231n.max_pool_forward_fast(x, {"pool_height": 3, "pool_width": 3, "stride": 2})
    with pytest.raises(AssertionError, match="Invalid pool params"):
        cs231n.max_pool_forward_reshape(x, {"pool_height": 2, "pool_width": 2, "stride": 1})
